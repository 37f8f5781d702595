"""Rows that a Python caller holds come out as those of a file; the objects stay as they are."""

import copy
import datetime
import logging
import re

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from polyhead.train.data import memory
from polyhead.train.data.loading import load_sources
from polyhead.train.data.memory import splits_in_memory
from polyhead.train.errors import UserError
from polyhead.train.recipe.data_config import RowsInMemory
from polyhead.train.recipe.schema import Recipe
from train_helpers import TOKENS, task

ROWS = [
    {"text": "a b", "tags": ["O", "B-x"], "label": "one", "score": 0.5},
    {"text": "c d", "tags": ["B-x", "O"], "label": "two", "score": 1.0},
    {"text": "e", "tags": ["O"], "label": None, "score": 2.0},
]


class Items(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def transformed() -> datasets.Dataset:
    """Rows whose texts only a transform makes."""
    rows = datasets.Dataset.from_list([{**row, "text": row["text"].upper()} for row in ROWS])
    rows.set_transform(lambda batch: {**batch, "text": [text.lower() for text in batch["text"]]})
    return rows


def formatted() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS).with_format("numpy")


def generated():
    yield from ROWS


KINDS = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "dataset": lambda: datasets.Dataset.from_list(ROWS),
    "formatted dataset": formatted,
    "transformed dataset": transformed,
    "frame": lambda: pd.DataFrame(ROWS),
    "torch dataset": lambda: Items(ROWS),
    "torch subset": lambda: torch.utils.data.Subset(Items(ROWS), [0, 1, 2]),
    "torch stream": lambda: Stream(ROWS),
    "stream": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "generated stream": lambda: datasets.IterableDataset.from_generator(generated),
}


def read(data, *columns, **options) -> dict[str, list]:
    splits = splits_in_memory(RowsInMemory(data), set(columns), **options)
    return {split: list(rows) for split, rows in splits.items()}


def fault(data, *columns, **options) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is what is tested
        read(data, *columns, **options)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_gives_the_same_values(kind):
    assert read(KINDS[kind]()) == {"train": ROWS}


@pytest.mark.parametrize("kind", ["list", "dataset", "frame", "torch stream"])
def test_rows_by_split(kind):
    parts = {"test": KINDS[kind](), "train": KINDS[kind]()}
    assert list(read(parts)) == ["train", "test"]
    assert read(parts)["test"] == ROWS


def test_the_objects_given_stay_as_they_are():
    rows, frame, named = copy.deepcopy(ROWS), pd.DataFrame(ROWS), formatted()
    tasks = {"one": task("sequence_classification", text="text", label="label")}
    for data in (rows, frame, named):
        recipe = Recipe(encoder="-", tasks=tasks, output_dir="-")
        recipe.tasks["one"].data.rows = RowsInMemory(data)
        (source,) = load_sources(recipe)
        assert source.configs["one"].labels == ["one", "two"]
    assert rows == ROWS
    pd.testing.assert_frame_equal(frame, pd.DataFrame(ROWS))
    assert named.format["type"] == "numpy"
    assert named.column_names == list(ROWS[0])


def test_numbers_of_other_libraries_are_pythons():
    row = {
        "a": np.int64(1),
        "b": np.float32(0.5),
        "c": np.array([1, 2]),
        "d": torch.tensor([0.5, 1.0]),
        "e": torch.tensor(3),
        "f": np.str_("text"),
        "g": np.bool_(True),
        "h": (1, 2),
    }
    (found,) = read([row])["train"]
    assert found == {
        "a": 1, "b": 0.5, "c": [1, 2], "d": [0.5, 1.0], "e": 3, "f": "text", "g": True, "h": [1, 2]
    }  # fmt: skip
    assert [type(found[key]) for key in "abefg"] == [int, float, int, str, bool]


def test_what_pandas_calls_missing_is_null():
    frame = pd.DataFrame({"label": ["a", None, float("nan")], "n": pd.array([1, None, 2], "Int64")})
    values = read(frame)["train"]
    assert [row["label"] for row in values] == ["a", None, None]
    assert [row["n"] for row in values] == [1, None, 2]


def test_a_column_that_some_rows_lack_is_null_there():
    assert read([{"text": "a", "label": "x"}, {"text": "b"}])["train"][1]["label"] is None


def test_strings_beside_numbers_stay_what_they_are():
    values = read([{"label": 1}, {"label": "1"}, {"label": 1.5}])["train"]
    assert [row["label"] for row in values] == [1, "1", 1.5]


def test_names_of_classes_of_a_stream_are_kept():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    stream = rows.to_iterable_dataset()
    splits = splits_in_memory(RowsInMemory(stream), set())
    assert splits["train"].features["label"].names == ["no", "yes"]


class TestFaults:
    @pytest.mark.parametrize("data", [7, None, "rows", {1, 2}, iter(ROWS), object()])
    def test_an_object_of_another_type(self, data):
        kind = type(data).__name__
        assert fault(data).startswith(f"train: a {kind} is given; allowed: datasets.Dataset, ")
        assert fault({"train": ROWS, "test": data}).startswith(f"test: a {kind} is given")

    @pytest.mark.parametrize("data", [[], pd.DataFrame(), datasets.Dataset.from_dict({"a": []})])
    def test_no_rows(self, data):
        assert fault(data) == "train: there are no rows"
        assert fault({"train": ROWS, "validation": data}) == "validation: there are no rows"

    def test_an_empty_dict(self):
        assert fault({}) == "an empty dict is given; give rows of train"

    def test_a_row_that_is_no_dict(self):
        assert fault([ROWS[0], ("a", "b")]) == (
            'train: row 1 is a tuple, but has to be a dict, as {"text": ...}'
        )
        assert fault(Items([torch.zeros(2)])).startswith("train: row 0 is a Tensor")

    def test_a_split_of_another_name(self):
        assert fault({"train": ROWS, "dev": ROWS}) == (
            "split 'dev': allowed: train, validation, test, or name them in splits"
        )

    def test_columns_instead_of_splits(self):
        assert "datasets.Dataset.from_dict" in fault({"text": ["a"], "label": ["b"]}, "text")

    def test_other_splits_of_a_dataset_dict_are_told(self, caplog):
        rows = datasets.Dataset.from_list(ROWS)
        assert list(read(datasets.DatasetDict(train=rows, dev=rows))) == ["train"]
        assert caplog.messages == ["splits dev are not read; name them in splits"]

    def test_a_value_without_a_form_counts_where_it_is_read(self):
        rows = [{"text": "a", "at": datetime.date(2026, 1, 2)}]
        assert read(rows, "text") == {"train": [{"text": "a"}]}
        assert re.fullmatch(
            r"train: column 'at', row 0: datetime\.date\(2026, 1, 2\) is a date, not a text, .*",
            fault(rows, "at"),
        )

    def test_a_column_that_stands_twice(self):
        frame = pd.DataFrame([["a", "b"]], columns=["text", "text"])
        assert fault(frame) == "train: column 'text' stands twice"


class TestStreams:
    def test_a_stream_is_read_as_far_as_max_rows(self, caplog):
        caplog.set_level(logging.INFO, logger="polyhead")
        assert read(Stream(ROWS), max_rows=2) == {"train": ROWS[:2]}
        assert caplog.messages == [
            "train: a stream (Stream) is read into memory",
            "train: 2 rows were read, as max_rows says",
        ]

    def test_max_rows_does_not_cut_other_splits(self):
        parts = {"train": Stream(ROWS), "test": Stream(ROWS)}
        assert len(read(parts, max_rows=1)["test"]) == 3

    def test_a_stream_without_an_end_is_refused_and_not_cut(self, monkeypatch):
        monkeypatch.setattr(memory, "MOST_ROWS", 2)
        assert fault(Stream(ROWS)) == (
            "train: the Stream has more than 2 rows; give the task max_rows"
        )
        assert len(read(Stream(ROWS[:2]))["train"]) == 2

    def test_progress_is_told(self, monkeypatch, caplog):
        monkeypatch.setattr(memory, "TOLD", 1)
        caplog.set_level(logging.INFO, logger="polyhead")
        read(Stream(ROWS))
        assert "train: 2 rows of the Stream are read" in caplog.messages


def sources_of(rows, **tasks):
    recipe = Recipe(encoder="-", tasks=tasks, output_dir="-")
    for name, one in recipe.tasks.items():
        one.data.rows = RowsInMemory(rows[name])
    return load_sources(recipe)


class TestTasks:
    def test_tasks_over_the_same_object_share_its_rows(self):
        tasks = {
            "kind": task("sequence_classification", text="text", label="label"),
            "near": task(
                "sequence_classification", problem_type="regression", text="text", label="score"
            ),
        }
        (source,) = sources_of(dict.fromkeys(tasks, ROWS), **tasks)
        assert source.name == "kind+near"
        (source,) = sources_of({n: {"train": ROWS} for n in tasks}, **tasks)  # dicts of its own
        assert source.name == "kind+near"
        assert len(sources_of({"kind": ROWS, "near": copy.deepcopy(ROWS)}, **tasks)) == 2

    def test_slices_of_the_splits(self):
        part = task("sequence_classification", text="text", label="label")
        part.data.splits = {"train": "rows[:2]", "test": "rows[2:]"}
        part.labels = ["one", "two"]
        data = {"one": {"rows": [*ROWS[:2], ROWS[0]]}}
        (source,) = sources_of(data, one=part)
        assert {split: len(rows) for split, rows in source.splits.items()} == {
            "train": 2, "test": 1
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("rows", "options", "said"),
        [
            (ROWS, {"label": "lable"}, "split train has no column 'lable'; it has: text, tags,"),
            ([{"text": None, "label": "a"}, *ROWS], {}, "column 'text': no text in row 0"),
            (ROWS, {"label": "tags"}, "column 'tags': a label (string or id) is wanted; "),
            (ROWS[:1], {}, "label"),
            ([{"text": "a", "label": 0.5}, *ROWS], {}, "row 0"),
            ([{"text": "a", "label": float("nan")}] * 2, {}, "no row of train has a label"),
        ],
    )
    def test_faults_name_task_split_and_column(self, rows, options, said):
        one = task("sequence_classification", text="text", **{"label": "label", **options})
        with pytest.raises(UserError) as error:
            sources_of({"one": rows}, one=one)
        assert len(error.value.faults) == 1
        assert error.value.faults[0].startswith("tasks.one")
        assert said in error.value.faults[0]

    def test_tags_against_words(self):
        rows = [{"tokens": ["a", "b"], "tags": ["O"]}]
        with pytest.raises(UserError, match="tags"):
            sources_of({"one": rows}, one=task(TOKENS, tokens="tokens", label="tags"))
