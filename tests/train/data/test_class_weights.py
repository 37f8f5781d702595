"""Weights of classes as a recipe names them, or as the rows of train tell them."""

import pytest
from polyhead.train.errors import UserError
from train_helpers import private_cache, sources_of, task, write_rows  # noqa: F401

SEQUENCE, TOKENS = "sequence_classification", "token_classification"


@pytest.fixture
def weights_of(tmp_path):
    """Labels of rows, head and options -> the weights that the model gets."""

    def read(values, head=SEQUENCE, **options):
        words = head == TOKENS
        rows = [
            {"text": f"row {i}", "tokens": ["row", str(i)][: len(label or []) or 2], "label": label}
            for i, label in enumerate(values)
        ]
        file = str(write_rows(tmp_path / "train.jsonl", rows))
        columns = {"tokens": "tokens"} if words else {"text": "text"}
        [source] = sources_of(
            t=task(head, data_files={"train": file}, label="label", **columns, **options)
        )
        return source.configs["t"].class_weight

    return read


def test_balanced_is_rows_by_classes_and_rows_of_the_class(weights_of):
    labels = ["a", "a", "a", "b", None, "c", "c", "a"]
    expected = {"a": 7 / (3 * 4), "b": 7 / (3 * 1), "c": 7 / (3 * 2)}
    assert weights_of(labels, class_weight="balanced") == expected
    listed = weights_of(labels, class_weight="balanced", labels=["c", "b", "a", "never"])
    assert listed == expected


def test_balanced_of_tags_counts_words(weights_of):
    labels = [["O", "O"], ["O", "B-x"], None, ["O", None]]
    found = weights_of(labels, TOKENS, class_weight="balanced", scheme="iob2")
    assert found["O"] == 5 / (2 * 4)
    assert found["B-x"] == 5 / (2 * 1)


def test_balanced_of_several_labels_is_rows_without_by_rows_with(weights_of):
    labels = [["a"], ["a", "b"], [], ["a"], None]
    options = {"problem_type": "multi_label_classification", "class_weight": "balanced"}
    assert weights_of(labels, **options) == {"a": 1 / 3, "b": 3.0}


def test_weights_of_the_recipe_are_taken_as_they_are(weights_of):
    assert weights_of(["a", "b"], class_weight={"b": 2.5}) == {"b": 2.5}
    assert weights_of(["a", "b"]) is None


def test_a_label_that_there_is_not_is_told(weights_of):
    with pytest.raises(UserError, match="tasks.t: class_weight names 'z'; labels: a, b"):
        weights_of(["a", "b"], class_weight={"z": 2.0})
