"""Weights of rows, distributions over labels and tags that are left out, as the data has them."""

import math

import pytest
from polyhead.train.data.tokenization import tokenize
from polyhead.train.errors import UserError
from polyhead.train.recipe.checks import task_faults
from train_helpers import private_cache, sources_of, task, write_rows  # noqa: F401

SEQUENCE, TOKENS = "sequence_classification", "token_classification"
TEXTS = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(4)]


@pytest.fixture
def read(tmp_path, tokenizer_of):
    """Columns of train to add, options -> the tokenized rows of train and of validation."""

    def tokenized(head=SEQUENCE, rows=TEXTS, **options):
        files = {s: str(write_rows(tmp_path / f"{s}.jsonl", rows)) for s in ("train", "validation")}
        text = {"tokens": "tokens"} if head == TOKENS else {"text": "text"}
        [source] = sources_of(t=task(head, data_files=files, label="label", **text, **options))
        return source, *(tokenize(source, s, tokenizer_of("wordpiece")) for s in files)

    return tokenized


def with_column(name, *values):
    return [{**row, name: value} for row, value in zip(TEXTS, values, strict=True)]


def test_rows_of_train_have_their_weights_and_others_count_alike(read):
    rows = with_column("often", 1, 0, 2.5, "3")
    _, train, validation = read(rows=rows, weight="often")
    assert train["weight_t"][:] == [1.0, 0.0, 2.5, 3.0]
    assert "weight_t" not in validation.column_names


def test_a_distribution_stands_for_the_label_of_its_row(read):
    rows = with_column("shares", [0.25, 0.75], None, [1.0, 0.0], None)
    rows[3]["label"] = None
    _, train, validation = read(rows=rows, soft_label="shares", labels=["b", "a"])
    labels = train["labels_t"][:]
    assert labels[:3] == [[0.25, 0.75], [1.0, 0.0], [1.0, 0.0]]
    assert all(map(math.isnan, labels[3]))
    assert validation["labels_t"][:] == [1, 0, 1, -100]


@pytest.mark.parametrize(
    ("key", "values", "fault"),
    [
        ("weight", (1, -1, 1, 1), "a number from 0 is wanted, but row 1 holds -1"),
        ("weight", (1, 1, None, 1), "a number from 0 is wanted, but row 2 holds None"),
        ("weight", (1, "much", 1, 1), "a number from 0 is wanted, but row 1 holds 'much'"),
        ("weight", (0, 0, 0, 0), "all weights are 0, no row would train"),
        ("soft_label", ([1.0], None, None, None), "2 numbers from 0 that sum to 1 is wanted"),
        ("soft_label", ([0.5, 0.6], None, None, None), "but row 0 holds .0.5, 0.6."),
        ("soft_label", ([1.5, -0.5], None, None, None), "but row 0 holds .1.5, -0.5."),
    ],
)
def test_what_is_no_such_column_is_told_with_its_row(read, key, values, fault):
    with pytest.raises(UserError, match=f"tasks.t.data.{key}: train, column 'more': .*{fault}"):
        read(rows=with_column("more", *values), labels=["a", "b"], **{key: "more"})


def test_a_column_has_one_meaning(read):
    with pytest.raises(UserError, match="data.weight: column 'label' is read as text or label too"):
        read(weight="label")
    with pytest.raises(UserError, match="data.weight: split train has no column 'none'"):
        read(weight="none")


def test_what_has_no_meaning_is_refused():
    place = {"data_files": {"train": __file__}, "text": "text", "label": "label"}
    pair = {**place, "text_pair": "other"}
    only = "only for classification with one label for each text, in no order or tree; take it out"
    cases = [
        (task("embedding", weight="w", **pair), "weight: the loss of embedding knows no weights"),
        (task("masked_lm", weight="w", **place), "weight: the loss of masked_lm knows no weights"),
        (task(SEQUENCE, soft_label="s", **place), "soft_label: its numbers stand in the order of"),
        (
            task(SEQUENCE, soft_label="s", problem_type="regression", **place),
            f"soft_label: {only}",
        ),
        (task(SEQUENCE, ignore_labels=["O"], **place), "ignore_labels: only for token tasks"),
    ]
    for wrong, fault in cases:
        assert any(f"tasks.t.data.{fault}" in told for told in task_faults("t", wrong)), fault


TAGGED = [
    {"tokens": ["a", "b", "c"], "label": ["B-x", "I-x", "B-y"]},
    {"tokens": ["d", "e", "f"], "label": ["X", "O", "B-y"]},
]


def test_words_of_ignored_tags_and_types_have_no_label(read):
    source, train, validation = read(TOKENS, TAGGED, ignore_labels=["x", "X"])
    assert source.configs["t"].labels == ["O", "B-y"]
    for rows in (train, validation):
        marked = [[tag for tag in row if tag != -100] for row in rows["labels_t"][:]]
        assert marked == [[1], [0, 1]]


def test_ignored_labels_that_no_row_has_are_told(read):
    source, *_ = read(TOKENS, TAGGED, ignore_labels=["X", "z"])
    assert "t: no row holds the ignore_labels 'z' in 'label'" in source.notes
