"""Annotations with one value exchanged or left out, CoNLL with any lines: rows, or one message."""

import contextlib
import copy
import json

import pytest
from fuzzing import examples, in_time
from hypothesis import given
from hypothesis import strategies as st
from pages import ROOT
from polyhead.modeling.decoding import gold_entities
from polyhead.modeling.windows import locate_words
from polyhead.train.commands.convert import our_rows
from polyhead.train.data.formats.spans import SpanReader
from polyhead.train.errors import UserError
from train_helpers import (
    MULTI,
    SEQUENCE,
    TOKENS,
    private_cache,  # noqa: F401
    sources_of,
    task,
)

pytestmark = pytest.mark.fuzz

DATA = ROOT / "tests" / "data"
FILES = {  # file to its format and the column of its spans, classes
    "spans_objects.jsonl": ("spans", "spans", "meta"),
    "spans_lists.json": ("spans", "entities", "sentence"),
    "doccano_spans.jsonl": ("doccano", "label", "label"),
    "doccano_relations.jsonl": ("doccano", "label", "label"),
    "label_studio.json": ("label_studio", "label", "sentiment"),
    "label_studio_min.json": ("label_studio", "label", "sentiment"),
    "prodigy_ner.jsonl": ("prodigy", "spans", "label"),
    "prodigy_choice.jsonl": ("prodigy", "spans", "label"),
    "spacy_examples.json": ("spacy", "ents", "cats"),
    "spacy_docs.json": ("spacy", "ents", "cats"),
    "spacy_v2.json": ("spacy", "ents", "cats"),
    "ner_annotator.json": ("spacy", "ents", "cats"),
    "argilla_v2.json": ("argilla", "entities", "sentiment"),
    "argilla_flat.jsonl": ("argilla", "sentiment", "sentiment"),
    "argilla_feedback.jsonl": ("argilla", "topics", "topics"),
    "argilla_records.json": ("argilla", "sentiment", "sentiment"),
    "argilla_tokens.jsonl": ("argilla", "label", "label"),
}
OTHERS = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        7,
        2**70,
        1.5,
        "",
        "O",
        "x",
        [],
        {},
        [[]],
        [None],
        {"value": 1},
        [0, 4, "x"],
    ]
)
NOTHING = object()


def values_of(name):
    text = (DATA / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def places_in(value, place=()):
    """Every place of a value, as keys and numbers."""
    yield place
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places_in(part, (*place, key))


def exchanged(value, place, other):
    """The value with another one at a place, or without it."""
    if not place:
        return None if other is NOTHING else other
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if other is NOTHING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = other
    return value


def rows_or_message(**options):
    with in_time(), contextlib.suppress(UserError):
        [source] = sources_of(t=task(**options))
        return list(our_rows(source, "t", "train"))
    return None


@examples(1500)
@given(data=st.data(), name=st.sampled_from(sorted(FILES)), classes=st.booleans())
def test_one_value_exchanged_or_left_out(data, name, classes, tmp_path_factory):
    values = values_of(name)
    # strings as values of JSON: their places have no parts
    place = data.draw(st.sampled_from(list(places_in(values))))
    other = data.draw(OTHERS | st.just(NOTHING))
    path = tmp_path_factory.mktemp("files") / "rows.json"
    path.write_text(json.dumps(exchanged(values, place, other)))
    kind, spans, label = FILES[name]
    text = "sentence" if name == "spans_lists.json" else "text"
    options = {"data_files": {"train": str(path)}, "format": kind, "text": text}
    if classes:
        options |= {"head": SEQUENCE, "problem_type": MULTI, "label": label}
    else:
        overlap = data.draw(st.sampled_from(["error", "longest"]))
        options |= {"head": TOKENS, "label": spans, "overlap": overlap}
    for row in rows_or_message(**options) or []:
        if not classes and row["tags"] is not None:
            assert locate_words(row["text"], row["tokens"]) is not None
            assert len(row["tokens"]) == len(row["tags"])


LINES = st.sampled_from(
    ["", " ", "\t", "a O", "a\tO", "b B-x", "# O", "#x\tO", "# id = 1", "# : O", "-DOCSTART- O"]
    + [
        "1\ta\tO",
        "a\t\tO",
        "a O ",
        " a O",
        "a  O",
        "\u00a0 O",
        "\u2028\tO",
        "# global.columns = A B",
    ]
    + ["O", "c\tI-x", "c\tE-x", "#", "##", "x\ty z\tO"]
)


@examples(1000)
@given(lines=st.lists(LINES, max_size=8), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_lines_of_conll(lines, end, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "rows.conll"
    path.write_bytes(end.join(lines).encode())
    files = {"data_files": {"train": str(path)}, "format": "conll"}
    for row in rows_or_message(head=TOKENS, **files) or []:
        assert len(row["tokens"]) == len(row["tags"]) > 0
        assert all(word.strip(" \t") for word in row["tokens"])


@examples(2000)
@given(st.data())
def test_words_and_tags_say_the_spans_to_the_character(data):
    text = data.draw(st.text(max_size=20))
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    unit = data.draw(st.sampled_from(["characters", "bytes", "utf16"]))
    size = {
        "characters": len,
        "bytes": lambda part: len(part.encode()),
        "utf16": lambda part: len(part.encode("utf-16-le")) // 2,
    }[unit]
    spans, entities = [], []
    for start, end in zip(places[::2], places[1::2], strict=False):
        if inner := text[start:end].strip():
            spans.append([size(text[:start]), size(text[:end]), "x"])
            begin = start + text[start:end].find(inner)
            entities.append(("x", begin, begin + len(inner)))
    scheme = data.draw(st.sampled_from(["iob1", "iob2", "bioes"]))
    tokens, tags = SpanReader(offsets=unit, scheme=scheme).read(0, text, spans)
    assert gold_entities(text, locate_words(text, tokens), tags, scheme) == entities
