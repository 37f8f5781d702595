"""Real shapes of annotations, a file each in `tests/data`, and the exact rows that are read."""

import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import ROOT
from polyhead.modeling.decoding import gold_entities
from polyhead.modeling.windows import locate_words
from polyhead.train.commands.convert import our_rows
from polyhead.train.commands.from_objects import Task
from polyhead.train.data.formats.spans import SpanReader
from polyhead.train.errors import UserError
from polyhead.train.recipe.data_config import RowsInMemory
from polyhead.train.recipe.schema import Recipe
from train_helpers import (
    MULTI,
    SEQUENCE,
    TOKENS,
    private_cache,  # noqa: F401
    sources_of,
    task,
)

DATA = ROOT / "tests" / "data"


def source_of(name, head, **options):
    return sources_of(t=task(head, data_files={"train": str(DATA / name)}, **options))[0]


def read(name, head=TOKENS, **options):
    return list(our_rows(source_of(name, head, **options), "t", "train"))


def notes_of(name, head=TOKENS, **options):
    return source_of(name, head, **options).notes


def fault_of(name, head=TOKENS, **options):
    with pytest.raises(UserError) as caught:
        source_of(name, head, **options)
    return str(caught.value)


def words(line):
    """`Anna/B-PER sings/O` as a row of words and tags."""
    pairs = [pair.rpartition("/") for pair in line.split(" ")]
    return {"tokens": [word for word, _, _ in pairs], "tags": [tag for _, _, tag in pairs]}


def tagged(text, line):
    return {"text": text, **words(line)}


def unread(text):
    return {"text": text, "tokens": None, "tags": None}


def label(text, value):
    return {"text": text, "label": value}


WNUT = [words("@paulwalk/O #/O Empire/B-location"), words("#hashtag/O ESB/B-location")]
JOE = [
    tagged("Anna lives in New York.", "Anna/B-PER lives/O in/O New/B-LOC York/I-LOC ./O"),
    tagged("Nothing here.", "Nothing/O here/O ./O"),
    unread("Not annotated."),
]
DOGS = "Dogs/NOUN ca/AUX n't/PART bark/VERB ./PUNCT"
SINGS = tagged("Anna sings", "Anna/B-PER sings/O")
RAINS = tagged("It rains", "It/O rains/O")
SHOP = "Anna/B-PER Smith/I-PER founded/O ACME/B-ORG in/O Bonn/O ./O She/O left/O ./O"
SHAKA = tagged("Who is Shaka Khan?", "Who/O is/O Shaka/B-PERSON Khan/I-PERSON ?/O")
LONDON = tagged("I like London.", "I/O like/O London/B-LOC ./O")
BONN = [
    tagged("Anna sings.", "Anna/B-PER sings/O ./O"),
    tagged("In Bonn.", "In/O Bonn/B-LOC ./O"),
]
TOPICS = [
    label("Anna", ["people", "music"]),
    label("Bonn", ["place"]),
    label("Not read", None),
]
CONLL = {"format": "conll"}
SPLIT = {"text": "text", "label": "topics", "separator": "|", "problem_type": MULTI}
PLAIN = {"text": "text", "label": "label"}
SHAPES = [  # file, head, options, rows
    (
        "conll2003.txt",
        TOKENS,
        CONLL,
        [
            words("EU/B-ORG rejects/O German/B-MISC call/O ./O"),
            words("Peter/B-PER Blackburn/I-PER"),
        ],
    ),
    (
        "conll2003.txt",
        TOKENS,
        {**CONLL, "label": "1"},
        [words("EU/NNP rejects/VBZ German/JJ call/NN ./."), words("Peter/NNP Blackburn/NNP")],
    ),
    (
        "iob1.txt",
        TOKENS,
        CONLL,
        [
            words('between/O SILICON/I-ORG VALLEY/I-ORG BANK/I-ORG ("/O Bank/I-ORG "),/O'),
            words("1999/O"),
        ],
    ),
    (
        "bioes.tsv.txt",
        TOKENS,
        CONLL,
        [words("Anna/B-PER Smith/E-PER in/O Paris/S-LOC"), words("Hi/O")],
    ),
    (
        "bilou.conll",
        TOKENS,
        CONLL,
        [words("Anna/B-PER van/I-PER Smith/E-PER in/O Paris/S-LOC")],
    ),
    ("wnut.conll", TOKENS, CONLL, WNUT),
    ("wnut.conll.gz", TOKENS, CONLL, WNUT),
    (
        "xsid.conll",
        TOKENS,
        {**CONLL, "tokens": "1"},
        [words("wake/O me/O at/B-time 7/I-time"), words("play/O jazz/B-genre")],
    ),
    (
        "xsid.conll",
        SEQUENCE,
        {**CONLL, "tokens": "1", "label": "intent"},
        [
            {"tokens": ["wake", "me", "at", "7"], "label": "alarm/set"},
            {"tokens": ["play", "jazz"], "label": "music/play"},
        ],
    ),
    ("ud.conllu", TOKENS, {**CONLL, "tokens": "form", "label": "upos"}, [words(DOGS)]),
    (
        "ud.conllu",
        TOKENS,
        {**CONLL, "tokens": "1", "label": "3", "text": "text"},
        [tagged("Dogs can't bark.", DOGS)],
    ),
    ("plus.conllup", TOKENS, CONLL, [words("Anna/B-PER sings/O")]),
    ("wikiann.txt", TOKENS, CONLL, [words("en:Anna/B-PER en:sings/O"), words("en:Bonn/B-LOC")]),
    (
        "label_studio_conll2003.conll",
        TOKENS,
        CONLL,
        [words("Anna/B-PER sings/O"), words("Bonn/B-LOC")],
    ),
    ("bom.conll", TOKENS, CONLL, [{"tokens": ["Anna", "1 1/2"], "tags": ["B-PER", "O"]}]),
    ("spans_objects.jsonl", TOKENS, {"format": "spans"}, JOE),
    ("spans_objects.jsonl.gz", TOKENS, {"format": "spans"}, JOE),
    (
        "spans_objects.jsonl",
        TOKENS,
        {"format": "spans", "scheme": "bioes"},
        [
            tagged("Anna lives in New York.", "Anna/S-PER lives/O in/O New/B-LOC York/E-LOC ./O"),
            *JOE[1:],
        ],
    ),
    (
        "spans_lists.json",
        TOKENS,
        {"format": "spans", "text": "sentence", "label": "entities"},
        BONN,
    ),
    (
        "spans_bytes.jsonl",
        TOKENS,
        {"format": "spans", "offsets": "bytes"},
        [tagged("Zoë in Köln", "Zoë/B-PER in/O Köln/B-LOC")],
    ),
    (
        "spans_utf16.jsonl",
        TOKENS,
        {"format": "spans", "offsets": "utf16"},
        [tagged("🎉 Anna 🎉🎉 Bonn", "🎉/O Anna/B-PER 🎉/O 🎉/O Bonn/B-LOC")],
    ),
    (
        "spans_inside.jsonl",
        TOKENS,
        {"format": "spans"},
        [tagged("10km to Bonn", "10/O km/B-UNIT to/O Bonn/B-LOC")],
    ),
    (
        "spans_overlap.jsonl",
        TOKENS,
        {"format": "spans", "overlap": "longest"},
        [tagged("New York City Hall", "New/B-LOC York/I-LOC City/I-LOC Hall/O")],
    ),
    (
        "pipeline.jsonl",
        TOKENS,
        {"format": "spans", "label": "entities"},
        [tagged("Anna lives in Bonn", "Anna/B-PER lives/O in/O Bonn/B-LOC")],
    ),
    (
        "doccano_spans.jsonl",
        TOKENS,
        {"format": "doccano"},
        [
            tagged("EU rejects German call", "EU/B-ORG rejects/O German/B-MISC call/O"),
            tagged("Peter Blackburn", "Peter/B-PER Blackburn/I-PER"),
        ],
    ),
    (
        "doccano_relations.jsonl",
        TOKENS,
        {"format": "doccano"},
        [tagged("Google was founded by Larry", "Google/B-ORG was/O founded/O by/O Larry/B-PER")],
    ),
    (
        "doccano_old.json",
        TOKENS,
        {"format": "doccano"},
        [tagged("Terrible film", "Terrible/B-OPINION film/O"), tagged("Good", "Good/O")],
    ),
    (
        "doccano_classes.jsonl",
        SEQUENCE,
        {"format": "doccano"},
        [label("Terrible film", "negative"), label("Great", "positive"), label("Hm", None)],
    ),
    (
        "doccano_classes.jsonl",
        SEQUENCE,
        {"format": "doccano", "problem_type": MULTI},
        [label("Terrible film", ["negative"]), label("Great", ["positive"]), label("Hm", [])],
    ),
    (
        "doccano_classes.csv",
        SEQUENCE,
        {**PLAIN, "separator": "#", "problem_type": MULTI},
        [label("Terrible but cheap", ["negative", "price"]), label("Great", ["positive"])],
    ),
    (
        "label_studio.json",
        TOKENS,
        {"format": "label_studio"},
        [SINGS, RAINS, unread("Nobody has read this")],
    ),
    (
        "label_studio.json",
        SEQUENCE,
        {"format": "label_studio", "label": "sentiment"},
        [
            label("Anna sings", "happy"),
            label("It rains", "sad"),
            label("Nobody has read this", None),
        ],
    ),
    ("label_studio_min.json", TOKENS, {"format": "label_studio"}, [SINGS, RAINS]),
    (
        "label_studio_min.json",
        SEQUENCE,
        {"format": "label_studio", "label": "sentiment", "problem_type": MULTI},
        [label("Anna sings", ["happy"]), label("It rains", ["sad", "wet"])],
    ),
    (
        "label_studio_old.json",
        TOKENS,
        {"format": "label_studio", "offsets": "utf16"},
        [tagged("💩Anna", "💩/O Anna/B-PER")],
    ),
    (
        "prodigy_ner.jsonl",
        TOKENS,
        {"format": "prodigy"},
        [
            tagged("Apple buys Beats", "Apple/B-ORG buys/O Beats/B-ORG"),
            tagged("No names", "No/O names/O"),
            unread("Unclear"),
            unread("Skipped"),
        ],
    ),
    (
        "prodigy_choice.jsonl",
        SEQUENCE,
        {"format": "prodigy", "problem_type": MULTI},
        [label("Great", ["POS"]), label("Hm", ["POS", "NEG"]), label("??", None)],
    ),
    (
        "prodigy_binary.jsonl",
        SEQUENCE,
        {"format": "prodigy"},
        [label("Buy now", "SPAM"), label("Dear Anna", "HAM"), label("Hello", None)],
    ),
    ("spacy_examples.json", TOKENS, {"format": "spacy"}, [SHAKA, LONDON]),
    ("spacy_examples.jsonl", TOKENS, {"format": "spacy"}, [SHAKA, tagged("Go!", "Go/O !/O")]),
    (
        "spacy_examples.jsonl",
        SEQUENCE,
        {"format": "spacy"},
        [label("Who is Shaka Khan?", "QUESTION"), label("Go!", "ORDER")],
    ),
    ("spacy_docs.json", TOKENS, {"format": "spacy"}, [LONDON]),
    (
        "spacy_docs.json",
        SEQUENCE,
        {"format": "spacy", "problem_type": MULTI},
        [label("I like London.", ["GOOD"])],
    ),
    (
        "spacy_v2.json",
        TOKENS,
        {"format": "spacy"},
        [
            tagged(
                "Anna Smith sings. In Bonn.",
                "Anna/B-PER Smith/I-PER sings/O ./O In/O Bonn/B-LOC ./O",
            )
        ],
    ),
    ("ner_annotator.json", TOKENS, {"format": "spacy"}, BONN),
    (
        "argilla_v2.json",
        TOKENS,
        {"format": "argilla", "label": "entities"},
        [SINGS, RAINS, unread("Not read")],
    ),
    (
        "argilla_v2.json",
        SEQUENCE,
        {"format": "argilla", "label": "sentiment"},
        [label("Anna sings", "happy"), label("It rains", "sad"), label("Not read", None)],
    ),
    (
        "argilla_flat.jsonl",
        SEQUENCE,
        {"format": "argilla", "label": "sentiment"},
        [label("Anna sings", "happy"), label("It rains", None), label("It snows", "sad")],
    ),
    (
        "argilla_feedback.jsonl",
        SEQUENCE,
        {"format": "argilla", "label": "topics", "problem_type": MULTI},
        [label("Anna sings", ["music", "people"]), label("Not read", None)],
    ),
    (
        "argilla_records.json",
        SEQUENCE,
        {"format": "argilla", "label": "sentiment"},
        [label("Anna sings", "happy"), label("It rains", "sad"), label("Not read", None)],
    ),
    ("argilla_tokens.jsonl", TOKENS, {"format": "argilla"}, [SINGS, unread("Not read")]),
    (
        "argilla_classes.jsonl",
        SEQUENCE,
        {"format": "argilla"},
        [label("Anna sings", "happy"), label("Not read", None), label("It rains", "sad")],
    ),
    (
        "brat",
        TOKENS,
        {"format": "brat"},
        [
            tagged("Anna Smith founded ACME in Bonn.\nShe left.\n", SHOP),
            unread("Not read.\n"),
            tagged("Nothing.\n", "Nothing/O ./O"),
        ],
    ),
    (
        "one_hot.csv",
        SEQUENCE,
        {
            "text": "comment_text",
            "label": ["toxic", "insult", "threat"],
            "problem_type": MULTI,
        },
        [label("Hello,\nyou", []), label("Fool", ["toxic", "insult"]), label("Not read", None)],
    ),
    (
        "one_hot.jsonl",
        SEQUENCE,
        {"text": "text", "label": ["red", "blue"], "problem_type": MULTI},
        [label("a", ["red"]), label("b", ["blue"])],
    ),
    (
        "one_hot_minus.csv",
        SEQUENCE,
        {
            "text": "text",
            "label": ["toxic", "insult"],
            "problem_type": MULTI,
            "missing_label": -1,
        },
        [label("a", ["toxic"]), label("b", None)],
    ),
    (
        "one_hot_class.csv",
        SEQUENCE,
        {"text": "text", "label": ["sport", "politics"]},
        [label("Goal", "sport"), label("Vote", "politics")],
    ),
    ("separated.csv", SEQUENCE, SPLIT, TOPICS),
    ("separated.csv.gz", SEQUENCE, SPLIT, TOPICS),
    (
        "separated_ids.tsv",
        SEQUENCE,
        {"text": "text", "label": "ids", "separator": ",", "problem_type": MULTI},
        [label("I am so happy", ["2", "27"]), label("No", ["0"])],
    ),
    (
        "separated_tags.csv",
        TOKENS,
        {"tokens": "words", "label": "tags", "separator": " "},
        [words("Anna/B-PER lives/O in/O Bonn/B-LOC"), words("Hi/O")],
    ),
    # values as they are found
    (
        "words.csv",
        SEQUENCE,
        {"text": "text", "label": "damage"},
        [
            label("A", "None"),
            label("B", "NA"),
            label("C", "null"),
            label("D", "n/a"),
            label("E", "Water"),
            label("nan", "True"),
        ],
    ),
    (
        "codes.csv",
        SEQUENCE,
        {"text": "text", "label": "code"},
        [label("first", "001"), label("second", "010"), label("third", "1e5")],
    ),
    (
        "codes.csv",
        SEQUENCE,
        {"text": "id", "label": "code"},
        [label("00123", "001"), label("00456", "010"), label("00789", "1e5")],
    ),
    (
        "gap.csv",
        SEQUENCE,
        {"text": "text", "label": "answer"},
        [label("a", "1"), label("b", "0"), label("c", None), label("d", "1")],
    ),
    (
        "gap.csv",
        SEQUENCE,
        {"text": "text", "label": "answer", "problem_type": "regression"},
        [label("a", 1), label("b", 0), label("c", None), label("d", 1)],
    ),
    (
        "minus_one.csv",
        SEQUENCE,
        {**PLAIN, "missing_label": -1},
        [label("a", "1"), label("b", "0"), label("c", None), label("d", "1")],
    ),
    ("bom.csv", SEQUENCE, PLAIN, [label("Zoë", "x"), label("b", "y")]),
    ("utf16.csv", SEQUENCE, PLAIN, [label("Zoë", "x"), label("b", "y")]),
    ("cr.csv", SEQUENCE, PLAIN, [label("a", "x"), label("b", "y")]),
    ("spreadsheet.csv", SEQUENCE, PLAIN, [label("a", "x"), label("b", "y")]),
    ("pandas.csv", SEQUENCE, PLAIN, [label("a", "x"), label("b", "y")]),
    ("plain.tsv", SEQUENCE, PLAIN, [label("a, b", "x"), label("c", "y")]),
    ("dates.jsonl", SEQUENCE, PLAIN, [label("a", "2024-05-06T10:11:12Z"), label("b", "NA")]),
    (
        "vectors.jsonl",
        SEQUENCE,
        {**PLAIN, "problem_type": MULTI, "labels": ["red", "green", "blue"]},
        [label("a", ["red", "blue"]), label("b", ["green"])],
    ),
    (
        "ids.jsonl",
        TOKENS,
        {"text": "text", "tokens": "tokens", "label": "tags"},
        [
            {"text": "a b", "tokens": ["a", "b"], "tags": ["1", None]},
            {"text": "c", "tokens": ["c"], "tags": ["0"]},
        ],
    ),
]
REFUSED = [  # file, head, options, what the message says
    ("xsid.conll", TOKENS, CONLL, "column '0' counts the words (1, 2, ...); name"),
    ("ud.conllu", TOKENS, CONLL, "label: name the column, one of id, form, lemma, upos"),
    ("conll2003.txt", TOKENS, {**CONLL, "label": "7"}, "no column '7'; it has: 0, 1, 2, 3"),
    ("spans_bytes.jsonl", TOKENS, {"format": "spans"}, "row 0: span 8-13 (LOC) lies outside"),
    ("spans_bytes.jsonl", TOKENS, {"format": "spans"}, "write offsets: bytes"),
    ("spans_utf16.jsonl", TOKENS, {"format": "spans"}, "write offsets: utf16"),
    ("spans_overlap.jsonl", TOKENS, {"format": "spans"}, "row 0: span 13-13 (LOC) is empty"),
    ("label_studio_old.json", TOKENS, {"format": "label_studio"}, "write offsets: utf16"),
    (
        "label_studio.json",
        TOKENS,
        {"format": "label_studio", "label": "names"},
        "no column 'names'; it has: text, source, label, sentiment",
    ),
    ("prodigy_choice.jsonl", SEQUENCE, {"format": "prodigy"}, "row 1 has several classes"),
    (
        "spans_lists.json",
        TOKENS,
        {"format": "spans"},
        "split train has no column 'text'",
    ),
    (
        "one_hot_minus.csv",
        SEQUENCE,
        {"text": "text", "label": ["toxic", "insult"], "problem_type": MULTI},
        "column 'toxic': row 1 holds '-1'; 0 or 1 is wanted",
    ),
    (
        "one_hot.csv",
        SEQUENCE,
        {"text": "comment_text", "label": ["toxic", "insult", "threat"]},
        "row 1 has several columns with 1, ['toxic', 'insult']",
    ),
    ("latin1.csv", SEQUENCE, PLAIN, "latin1.csv, line 3: byte 0xEB is not UTF-8"),
    ("quote.csv", SEQUENCE, PLAIN, "line 3: a double quote that opens here closes in line 5"),
    ("swallowed.csv", SEQUENCE, PLAIN, "over lines that look like rows"),
    ("twice.csv", SEQUENCE, PLAIN, "line 1: column 'text' stands twice"),
    ("comma.csv", SEQUENCE, PLAIN, "line 2: 3 fields, but the header has 2"),
    ("semicolons.csv", SEQUENCE, PLAIN, "fields are parted by , here"),
    ("mixed.jsonl", SEQUENCE, PLAIN, "labels are strings or ids, not both"),
]


def named(shape):
    name, head, options = shape[:3]
    return "-".join([name, head[:5], *map(str, options.values())]).replace("/", "_")


@pytest.mark.parametrize(("name", "head", "options", "rows"), SHAPES, ids=map(named, SHAPES))
def test_a_shape_is_read_as_its_rows(name, head, options, rows):
    assert read(name, head, **options) == rows


@pytest.mark.parametrize(("name", "head", "options", "says"), REFUSED, ids=map(named, REFUSED))
def test_a_shape_that_cannot_be_taken_is_told(name, head, options, says):
    assert says in fault_of(name, head, **options)


def test_every_file_stands_in_the_table_of_the_page_and_is_read_here():
    page = (ROOT / "docs" / "data.md").read_text()
    files = {path.name for path in DATA.iterdir()}
    assert files == {name for name, *_ in SHAPES + REFUSED}
    assert len(files) >= 40
    assert [name for name in sorted(files) if f"`{name}`" not in page] == []


# ---- what is told ----


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("spans_inside.jsonl", {}, "read without the white space at their ends, 1: row 0: span 7-"),
        ("spans_inside.jsonl", {}, "inside a word, where no answer can, 1: row 0: 'km' (UNIT) of "),
        (
            "spans_overlap.jsonl",
            {"overlap": "longest"},
            "t: spans of train left out by overlap: longest, 3: row 0: span 13-13 (LOC) in",
        ),
    ],
)
def test_spans_that_are_read_otherwise_are_told(name, options, says):
    assert any(says in note for note in notes_of(name, format="spans", **options))


def test_a_class_that_may_mean_no_label_is_told():
    assert "write data.missing_label: -1" in "".join(notes_of("minus_one.csv", SEQUENCE, **PLAIN))


SPAN_FAULTS = [  # text, spans, what the message says
    ("Anna", [{"start": 0, "end": 9, "label": "PER"}], "lies outside of the text, which has 4 ch"),
    ("Anna", [{"start": 3, "end": 1, "label": "PER"}], "lies outside"),
    ("Anna", [[0, 4]], "spans are {start: 0, end: 5, label: PER} or [0, 5, PER]"),
    ("Anna", [[0, 4, None]], "spans are"),
    ("Anna", [["0", "4", "PER"]], "spans are"),
    ("Anna", [[0, 4, "O"]], "a span has the label 'O', which means no label"),
    ("Anna", "0-4", "spans are"),
    ("Anna ", [[4, 5, "PER"]], "span 4-5 (PER) is empty"),
    ("Anna", [[0, 4, "PER"], [0, 4, "PER"]], "spans 0-4 (PER) and 0-4 (PER) overlap"),
    ("Anna", [[0, 4, "PER"], [2, 4, "LOC"]], "spans 0-4 (PER) and 2-4 (LOC) overlap"),
    ("éAnna", [{"start": 2, "end": 6, "label": "x", "text": "Anna"}], "write offsets: bytes"),
    (
        "Anna Bonn",
        [{"start": 0, "end": 4, "label": "PER", "text": "Bonn"}],
        "span 0-4 (PER) holds 'Anna', but says 'Bonn'",
    ),
]


@pytest.mark.parametrize(("text", "spans", "says"), SPAN_FAULTS)
def test_a_span_that_is_none_is_told_with_row_and_text(text, spans, says):
    reader = SpanReader()
    assert reader.read(7, text, spans) == (None, None)
    [line] = reader.faults.rows
    assert line.startswith("row 7: ")
    assert says in line
    assert text in line


def test_more_than_three_rows_are_counted():
    reader = SpanReader()
    for row in range(5):
        reader.read(row, "Anna", [[0, 9, "PER"]])
    assert str(reader.faults).count("lies outside") == 3
    assert str(reader.faults).endswith("; and 2 more")


@given(st.data())
def test_words_and_tags_say_the_spans_to_the_character(data):
    text = data.draw(st.text(st.sampled_from("ab1.-  é\u0301日本🎉\n_"), max_size=20))
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    spans, entities = [], []
    unit = data.draw(st.sampled_from(["characters", "bytes", "utf16"]))
    size = {
        "characters": len,
        "bytes": lambda part: len(part.encode()),
        "utf16": lambda part: len(part.encode("utf-16-le")) // 2,
    }[unit]
    for start, end in zip(places[::2], places[1::2], strict=False):
        inner = text[start:end].strip()
        if inner:
            kind = data.draw(st.sampled_from(["PER", "LOC"]))
            spans.append([size(text[:start]), size(text[:end]), kind])
            begin = start + text[start:end].find(inner)
            entities.append((kind, begin, begin + len(inner)))
    scheme = data.draw(st.sampled_from(["iob1", "iob2", "bioes"]))
    tokens, tags = SpanReader(offsets=unit, scheme=scheme).read(0, text, spans)
    assert gold_entities(text, locate_words(text, tokens), tags, scheme) == entities


# ---- other places ----


def test_a_record_with_a_class_and_spans_is_one_row_for_two_tasks():
    data = {"data_files": {"train": str(DATA / "argilla_v2.json")}, "format": "argilla"}
    [source] = sources_of(
        entities=task(TOKENS, label="entities", **data),
        sentiment=task(SEQUENCE, label="sentiment", **data),
    )
    assert source.name == "entities+sentiment"
    assert source.texts_of(source.splits["train"][:]) == [["Anna sings", "It rains", "Not read"]]
    assert list(our_rows(source, "entities", "train")) == [SINGS, RAINS, unread("Not read")]
    assert [row["label"] for row in our_rows(source, "sentiment", "train")] == [
        "happy",
        "sad",
        None,
    ]


def test_two_columns_of_one_conll_file_share_their_rows():
    data = {"data_files": {"train": str(DATA / "conll2003.txt")}, **CONLL}
    [source] = sources_of(ner=task(TOKENS, **data), pos=task(TOKENS, label="1", **data))
    assert source.configs["ner"].labels == ["O", "B-MISC", "B-ORG", "B-PER", "I-PER"]
    assert source.configs["pos"].labels == [".", "JJ", "NN", "NNP", "VBZ"]


def test_spans_and_a_plain_column_of_one_file_share_their_rows():
    data = {"data_files": {"train": str(DATA / "doccano_relations.jsonl")}, "text": "text"}
    [source] = sources_of(
        spans=task(TOKENS, format="spans", label="entities", **data),
        words=task("masked_lm", **data),
    )
    assert source.name == "spans+words"


def test_several_files_are_one_after_the_other(tmp_path):
    [source] = sources_of(
        t=task(
            TOKENS,
            data_files={"train": [str(DATA / "wnut.conll"), str(DATA / "wikiann.txt")]},
            format="conll",
        )
    )
    assert list(our_rows(source, "t", "train"))[2] == words("en:Anna/B-PER en:sings/O")


def test_files_of_other_columns_are_told():
    with pytest.raises(UserError, match="conll2003.txt has 4 columns .*, but wnut.conll has 2"):
        sources_of(
            t=task(
                TOKENS,
                data_files={"train": [str(DATA / "wnut.conll"), str(DATA / "conll2003.txt")]},
                format="conll",
            )
        )


def test_spans_of_a_parquet_file_and_of_rows_in_memory(tmp_path):
    rows = [{"text": "Anna", "spans": [{"start": 0, "end": 4, "label": "PER"}]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    [source] = sources_of(
        t=task(TOKENS, data_files={"train": str(tmp_path / "rows.parquet")}, format="spans")
    )
    assert list(our_rows(source, "t", "train")) == [tagged("Anna", "Anna/B-PER")]
    for form in (rows, datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})):
        one = task(TOKENS, format="spans")
        one.data.rows = RowsInMemory(form)
        [source] = sources_of(t=one)
        assert list(our_rows(source, "t", "train")) == [tagged("Anna", "Anna/B-PER")]


def test_records_of_a_tool_in_memory():
    one = task(TOKENS, format="argilla", label="entities")
    one.data.rows = RowsInMemory(json.loads((DATA / "argilla_v2.json").read_text()))
    [source] = sources_of(t=one)
    assert list(our_rows(source, "t", "train")) == [SINGS, RAINS, unread("Not read")]


@pytest.mark.parametrize("whole", [True, False])
def test_folders_of_save_to_disk(whole, tmp_path):
    rows = datasets.Dataset.from_list([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    if whole:
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
        data = {"path": str(tmp_path / "saved")}
    else:
        rows.save_to_disk(tmp_path / "saved")
        data = {"data_files": {"train": str(tmp_path / "saved"), "test": str(tmp_path / "saved")}}
    [source] = sources_of(t=task(SEQUENCE, **PLAIN, **data))
    assert list(source.splits) == ["train", "test"]
    assert list(our_rows(source, "t", "test")) == [label("a", "x"), label("b", "y")]


def test_objects_with_other_keys_in_each_row_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"text": "Anna", "spans": [{"start": 0, "end": 4, "label": "PER", "note": 1}]}\n'
        '{"text": "Bonn", "spans": [[0, 4, "LOC"]]}\n'
    )
    [source] = sources_of(t=task(TOKENS, data_files={"train": str(path)}, format="spans"))
    assert list(our_rows(source, "t", "train")) == [
        tagged("Anna", "Anna/B-PER"),
        tagged("Bonn", "Bonn/B-LOC"),
    ]


FILES = {  # name and content of a file, format, what the message says
    "four columns": ("a.conll", "a O\nb X O\n", "conll", "a.conll, line 2: 3 columns, but 2 in"),
    "no word": ("a.conll", "\n# x\n", "conll", "a.conll: no line with a word"),
    "no label": ("a.conll", "a\tO\nb\t\n", "conll", "a.conll, line 2: an empty column"),
    "no json": ("a.json", '[{"text": "a"\n', "doccano", "a.json, the whole: JSON parse error"),
    "a line that is no json": (
        "a.jsonl",
        '{"text": "a", "label": []}\n{"text"\n',
        "doccano",
        "a.jsonl, line 2 (row 1): JSON parse error",
    ),
    "no object": ("a.json", '[{"text": "a"}, 7]', "doccano", "a.json, item 1: an object is wanted"),
    "an odd answer": ("a.jsonl", '{"text": "a", "answer": "y"}', "prodigy", "allowed: accept"),
    "no example": ("a.json", '[["a", 3]]', "spacy", '["text", {"entities": [[0, 5, "PER"]]}]'),
    "a token elsewhere": (
        "a.json",
        '[{"paragraphs": [{"raw": "a", "sentences": [{"tokens": [{"orth": "b"}]}]}]}]',
        "spacy",
        "token 'b' is not where it should be",
    ),
    "another shape": ("a.json", '[{"paragraphs": [{"raw": "a"}]}]', "spacy", "KeyError: 'senten"),
    "a docbin": ("a.spacy", "xx", "spacy", "doc.to_json()"),
    "an ending": ("a.xml", "<a/>", "doccano", "ending .xml; format: doccano is read from .parquet"),
    "annotations that differ": (
        "a.json",
        '[{"id": 3, "data": {"text": "a"}, "annotations": [{"result": []}, {"result": [{"type": '
        '"choices", "from_name": "q", "value": {"choices": ["x"]}}]}]}]',
        "label_studio",
        "task 3 has 2 annotations that differ; mark one as ground truth",
    ),
    "responses that differ": (
        "a.json",
        '[{"fields": {"text": "a"}, "responses": {"label": [{"value": "x"}, {"value": "y"}]}}]',
        "argilla",
        "question 'label' has 2 responses that differ",
    ),
    "no column of words": ("a.conll", "a\nb\n", "conll", "column '0' is that of the words"),
    "no brat": ("a.csv", "text\n", "brat", "brat has .txt files, with .ann files beside them"),
}


@pytest.mark.parametrize(("name", "content", "kind", "says"), FILES.values(), ids=FILES)
def test_a_file_that_is_not_in_its_format_is_told(name, content, kind, says, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        sources_of(t=task(TOKENS, data_files={"train": str(path)}, format=kind))
    assert says in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("T1 PER 0 1 a", "a.ann, line 1: no annotation"),
        ("T1\tPER 0 1;2 3\ta b", "line 1: a span of several parts"),
        ("T1\tPER 0\ta", "line 1: no start and end"),
        ("T1\tPER 0 1\tb", "holds 'a', but says 'b'"),
    ],
)
def test_a_line_of_brat_that_is_none_is_told(line, says, tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    (tmp_path / "a.ann").write_text(line + "\n")
    with pytest.raises(UserError) as caught:
        sources_of(t=task(TOKENS, data_files={"train": str(tmp_path)}, format="brat"))
    assert says in str(caught.value)


def test_annotations_of_brat_without_a_text_are_told(tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    (tmp_path / "b.ann").write_text("")
    with pytest.raises(UserError, match="there is no b.txt beside it"):
        sources_of(t=task(TOKENS, data_files={"train": str(tmp_path)}, format="brat"))


def test_tasks_that_read_one_column_in_two_ways_have_each_their_own(tmp_path):
    data = {"data_files": {"train": str(DATA / "spans_overlap.jsonl")}, "format": "spans"}
    data |= {"overlap": "longest"}
    [source] = sources_of(
        one=task(TOKENS, scheme="bilou", **data), two=task(TOKENS, scheme="bio", **data)
    )
    tags = {name: next(our_rows(source, name, "train"))["tags"] for name in ("one", "two")}
    assert tags["one"] == ["B-LOC", "I-LOC", "E-LOC", "O"]
    assert tags["two"] == ["B-LOC", "I-LOC", "I-LOC", "O"]


def test_words_by_another_separator_are_another_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("words,tags,label\na_b c,O B-x,u\nd e,O O,v\n")
    data = {"data_files": {"train": str(path)}, "tokens": "words"}
    sources = sources_of(
        slots=task(TOKENS, label="tags", separator=" ", **data),
        topic=task(SEQUENCE, label="label", separator="_", **data),
    )
    rows = {
        name: list(our_rows(source, name, "train")) for source in sources for name in source.tasks
    }
    assert rows["slots"][0] == {"tokens": ["a_b", "c"], "tags": ["O", "B-x"]}
    assert rows["topic"][0] == {"tokens": ["a", "b c"], "label": "u"}


def test_names_of_columns_stay_as_they_are_written():
    text = f"""
encoder: x
output_dir: out
tasks:
  words:
    head: token_classification
    scheme: BILOU
    data: {{data_files: {{train: {DATA}/wnut.conll}}, format: conll, tokens: 0, label: -1}}
  marks:
    head: sequence_classification
    problem_type: multi_label_classification
    data: {{data_files: {{train: {DATA}/one_hot.csv}}, text: 007, label: [001, no, -1]}}
"""
    recipe = Recipe.from_yaml(text)
    words, marks = recipe.tasks["words"], recipe.tasks["marks"]
    assert (words.data.tokens, words.data.label, words.scheme) == ("0", "-1", "bioes")
    assert (marks.data.text, marks.data.label) == ("007", ["001", "no", "-1"])
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_a_class_that_is_none_is_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": ["x"]}\n{"text": "b", "label": [{"y": 1}]}\n')
    with pytest.raises(UserError) as caught:
        sources_of(t=task(SEQUENCE, data_files={"train": str(path)}, format="doccano"))
    assert "a class, or a list of them, is wanted, but row 1 holds [{'y': 1}]" in str(caught.value)


def test_a_task_of_python_names_its_format():
    one = Task(head=TOKENS, data=[], format="spans", offsets="utf16", overlap="longest")
    data = {"format": "spans", "offsets": "utf16", "overlap": "longest"}
    assert one.keys() == {"head": TOKENS, "data": data}
