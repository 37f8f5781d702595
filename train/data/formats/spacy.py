"""JSON of spaCy: training examples, documents (`Doc.to_json`), and the corpora of version 2.

The binary `.spacy` (a DocBin) is read by spaCy alone; `SAVE_JSON` is what to type.
"""

from collections.abc import Iterator
from typing import Any

from .base import Format, Row, shown
from .tools import as_object

SAVE_JSON = (
    "is a DocBin, which spaCy reads; write its documents as JSON: "
    "[doc.to_json() for doc in DocBin().from_disk(FILE).get_docs(spacy.blank(LANGUAGE).vocab)]"
)
THRESHOLD = 0.5  # of a category's score


def read_spacy(value: Any) -> Iterator[Row]:
    """Rows with `text`, `ents` (spans, null where nobody has marked any) and `cats` (classes)."""
    if isinstance(value, list):
        yield _example(value)
        return
    document = as_object(value)
    if "paragraphs" in document:
        for paragraph in document["paragraphs"]:
            yield _paragraph(paragraph)
    elif "annotations" in document and "text" not in document:  # of an annotator for spaCy
        for example in document["annotations"]:
            if example is not None:
                yield _example(example)
    else:
        spans = document.get("ents", document.get("entities", document.get("spans")))
        ents = spans if isinstance(spans, list) or spans is None else _spans_key(spans)
        yield {"text": document.get("text"), "ents": ents, "cats": _classes(document.get("cats"))}


def _spans_key(spans: Row) -> list:
    """Spans of a document by key; those of its only one."""
    if len(spans) != 1:
        raise ValueError(f"spans of several keys, {', '.join(spans)}; leave one")
    return next(iter(spans.values()))


def _example(value: list) -> Row:
    """`["text", {"entities": [[0, 5, "PER"]], "cats": {"GOOD": 1.0}}]`."""
    if len(value) != 2 or not isinstance(value[0], str) or not isinstance(value[1], dict):
        raise ValueError(f'["text", {{"entities": [[0, 5, "PER"]]}}] is wanted, but {shown(value)}')
    text, marks = value
    return {"text": text, "ents": marks.get("entities"), "cats": _classes(marks.get("cats"))}


def _classes(cats: Any) -> list[str] | None:
    """Names of the categories that are so; null where there are none to choose from."""
    if isinstance(cats, list):  # of version 2
        cats = {part["label"]: part["value"] for part in cats}
    return [name for name, score in cats.items() if score >= THRESHOLD] if cats else None


def _paragraph(paragraph: Row) -> Row:
    """A text of a corpus of version 2, whose tokens have BILUO tags."""
    text, position, spans = paragraph.get("raw"), 0, []
    tokens = [token for sentence in paragraph["sentences"] for token in sentence["tokens"]]
    if text is None:
        text = " ".join(token["orth"] for token in tokens)
    begin = None
    for token in tokens:
        start = text.find(token["orth"], position)
        if start < 0 or text[position:start].strip():
            raise ValueError(f"token {shown(token['orth'])} is not where it should be in the text")
        position = start + len(token["orth"])
        prefix, _, label = (token.get("ner") or "O").partition("-")
        if prefix in ("B", "U"):
            begin = start
        if prefix in ("L", "U") and begin is not None:
            spans.append({"start": begin, "end": position, "label": label})
    known = any("ner" in token for token in tokens)
    return {
        "text": text,
        "ents": spans if known else None,
        "cats": _classes(paragraph.get("cats")),
    }


SPACY = Format(read_value=read_spacy, tags="ents", label="cats")
