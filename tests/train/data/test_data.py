"""Rows of a recipe: which tasks share them, which labels and tag schemes are found in them."""

import csv
import json

import datasets
import pytest
from polyhead.modeling import TaskConfig
from polyhead.train.data.loading import unseen_labels
from polyhead.train.errors import UserError
from train_helpers import (
    messages,
    pairs,
    private_cache,  # noqa: F401
    sources_of,
    task,
    write_rows,
)

SEQUENCE, TOKENS = "sequence_classification", "token_classification"


@pytest.fixture
def rows(tmp_path) -> str:
    return str(write_rows(tmp_path / "messages.jsonl", messages(12)))


@pytest.fixture
def pair_rows(tmp_path) -> str:
    return str(write_rows(tmp_path / "pairs.jsonl", pairs(12)))


def classes(files, **options):
    return task(SEQUENCE, data_files=files, **{"text": "text", "label": "intent", **options})


def tags(files, **options):
    return task(TOKENS, data_files=files, **{"tokens": "tokens", "label": "tags", **options})


def labels_of(files, **options):
    """Labels found for a task over one column `label` of single-label classes."""
    (source,) = sources_of(one=classes(files, label="label", **options))
    return source.configs["one"].labels


@pytest.mark.parametrize(
    ("values", "listed", "expected"),
    [
        ([2, 10, 1], None, ["1", "2", "10"]),
        (["low", "high", "mid"], ["low", "mid", "high"], ["low", "mid", "high"]),
        (["low", "high", "mid"], None, "name the labels in their order, the lowest first"),
    ],
)
def test_the_order_of_labels_is_that_of_numbers_or_named(values, listed, expected, tmp_path):
    rows = [{"text": f"text {n}", "label": value} for n, value in enumerate(values)]
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    options = {"problem_type": "ordinal", "labels": listed}
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            labels_of(file, **options)
    else:
        assert labels_of(file, **options) == expected


# ---- which tasks share their rows ----


class TestSources:
    def names(self, **tasks):
        return [source.name for source in sources_of(**tasks)]

    def test_tasks_over_one_text_share_its_rows(self, rows):
        urgency = classes(rows, label="urgency", problem_type="regression")
        words = task("masked_lm", data_files=rows, text="text")
        found = self.names(urgency=urgency, intent=classes(rows), words=words)
        assert found == ["intent+urgency+words"]

    def test_words_join_the_text_that_they_are_the_words_of(self, rows):
        (source,) = sources_of(intent=classes(rows), slots=tags(rows))
        assert (source.name, source.text) == ("intent+slots", "text")
        assert source.texts_of({"text": ["a b"], "tokens": [["a", "b"]]}) == [["a b"]]

    def test_words_given_with_their_text_join_too(self, rows):
        assert self.names(intent=classes(rows), slots=tags(rows, text="text")) == ["intent+slots"]

    def test_words_alone_are_joined_by_spaces(self, rows):
        (source,) = sources_of(slots=tags(rows))
        assert source.text is None
        assert source.texts_of({"tokens": [["a", "b", "!"], []]}) == [["a b !", ""]]

    def test_words_stay_alone_where_two_texts_could_be_theirs(self, tmp_path):
        lines = [{**row, "other": row["text"]} for row in messages(6)]
        rows = str(write_rows(tmp_path / "rows.jsonl", lines))
        found = self.names(a=classes(rows), b=classes(rows, text="other"), c=tags(rows))
        assert sorted(found) == ["a", "b", "c"]

    def test_other_columns_as_text_are_other_rows(self, tmp_path):
        lines = [{**row, "other": row["text"]} for row in messages(6)]
        rows = str(write_rows(tmp_path / "rows.jsonl", lines))
        assert self.names(a=classes(rows), b=classes(rows, text="other")) == ["a", "b"]

    def test_another_number_of_rows_is_another_source(self, rows):
        found = self.names(intent=classes(rows, max_rows=6), slots=tags(rows))
        assert found == ["intent", "slots"]

    def test_the_same_number_of_rows_is_the_same_source(self, rows):
        found = self.names(intent=classes(rows, max_rows=9), slots=tags(rows, max_rows=9))
        assert found == ["intent+slots"]

    def test_other_files_are_another_source(self, rows, tmp_path):
        more = str(write_rows(tmp_path / "more.jsonl", messages(6)))
        assert self.names(a=classes(rows), b=classes(more)) == ["a", "b"]

    def test_pair_tasks_share_the_pair(self, pair_rows):
        options = {"data_files": pair_rows, "text": "text1", "text_pair": "text2"}
        same = task(SEQUENCE, label="same", **options)
        score = task(SEQUENCE, label="score", problem_type="regression", **options)
        assert self.names(score=score, same=same) == ["same+score"]

    def test_embedding_groups_are_not_shared_with_pair_tasks(self, pair_rows):
        options = {"data_files": pair_rows, "text": "text1", "text_pair": "text2"}
        same = task(SEQUENCE, label="same", **options)
        near = task("embedding", label="score", **options)
        far = task("embedding", label="score", loss="cosine_mse", **options)
        assert sorted(self.names(same=same, near=near, far=far)) == ["far+near", "same"]

    def test_a_pair_is_not_shared_with_its_first_text(self, pair_rows):
        options = {"data_files": pair_rows, "text": "text1", "label": "same"}
        one, both = task(SEQUENCE, **options), task(SEQUENCE, text_pair="text2", **options)
        assert sorted(self.names(one=one, both=both)) == ["both", "one"]

    def test_the_order_of_the_tasks_does_not_matter(self, rows, pair_rows):
        tasks = {
            "a": classes(rows),
            "b": tags(rows),
            "c": task(SEQUENCE, data_files=pair_rows, text="text1", label="same"),
        }
        turned = dict(reversed(tasks.items()))
        assert self.names(**tasks) == self.names(**turned) == ["a+b", "c"]


# ---- loading ----


class TestLoading:
    def test_csv_jsonl_and_parquet_hold_the_same_rows(self, tmp_path):
        lines = [{"text": row["text"], "intent": row["intent"]} for row in messages(6)]
        write_rows(tmp_path / "rows.jsonl", lines)
        datasets.Dataset.from_list(lines).to_parquet(tmp_path / "rows.parquet")
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "intent"])
            writer.writeheader()
            writer.writerows(lines)
        for ending in ("jsonl", "csv", "parquet"):
            (source,) = sources_of(intent=classes(str(tmp_path / f"rows.{ending}")))
            assert source.splits["train"].to_list() == lines
            assert source.configs["intent"].labels == ["book", "cancel", "play"]

    def test_splits_may_be_slices_of_one_file(self, rows):
        splits = {"train": "train[:8]", "validation": "train[8:]"}
        (source,) = sources_of(intent=classes(rows, splits=splits))
        assert source.splits["train"].to_list() == messages(8)
        assert source.splits["validation"].to_list() == messages(4, 8)

    def test_max_rows_is_a_sample_of_train_and_the_same_each_time(self, tmp_path):
        rows = str(write_rows(tmp_path / "rows.jsonl", messages(40)))
        files = {"train": rows, "test": rows}
        first, second = (
            sources_of(a=classes(files, max_rows=20))[0].splits["train"]["text"] for _ in range(2)
        )
        every = [row["text"] for row in messages(40)]
        (source,) = sources_of(a=classes(files, max_rows=20))
        assert len(first) == 20
        assert first == second != every[:20]
        assert source.splits["test"]["text"] == every

    def test_max_rows_above_the_number_of_rows_takes_all(self, rows):
        (source,) = sources_of(intent=classes(rows, max_rows=100))
        assert source.splits["train"].to_list() == messages(12)


# ---- labels ----


class TestLabels:
    def write(self, tmp_path, labels):
        lines = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
        return str(write_rows(tmp_path / "rows.jsonl", lines))

    def test_names_are_in_alphabetical_order(self, tmp_path):
        assert labels_of(self.write(tmp_path, ["b", "a", "C", "b"])) == ["C", "a", "b"]

    def test_numbers_are_in_numerical_order(self, tmp_path):
        assert labels_of(self.write(tmp_path, [10, 9, -1, 10])) == ["-1", "9", "10"]

    def test_the_recipe_decides_the_order(self, tmp_path):
        files = self.write(tmp_path, ["b", "a"])
        assert labels_of(files, labels=["b", "c", "a"]) == ["b", "c", "a"]

    def test_a_row_without_a_label_adds_none(self, tmp_path):
        assert labels_of(self.write(tmp_path, ["b", None, "a"])) == ["a", "b"]

    def test_labels_of_lists_are_those_of_all_rows(self, tmp_path):
        files = self.write(tmp_path, [["b"], [], ["c", "a"], None])
        found = labels_of(files, problem_type="multi_label_classification")
        assert found == ["a", "b", "c"]

    def test_o_is_the_first_tag(self, rows):
        (source,) = sources_of(slots=tags(rows))
        assert source.configs["slots"].labels == ["O", "B-city", "I-city"]

    def test_class_ids_become_their_names(self, tmp_path):
        kind = datasets.ClassLabel(names=["no", "yes"])
        features = datasets.Features({"text": datasets.Value("string"), "label": kind})
        rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
        path = tmp_path / "rows.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        (source,) = sources_of(one=classes(str(path), label="label"))
        assert source.splits["train"].to_list() == [
            {"text": "a", "label": "yes"},
            {"text": "b", "label": "no"},
            {"text": "c", "label": None},
        ]
        assert source.configs["one"].labels == ["no", "yes"]

    def test_lists_of_class_ids_become_their_names(self, tmp_path):
        text, kind = datasets.Value("string"), datasets.ClassLabel(names=["B-x", "O", "I-x"])
        features = {"tokens": datasets.List(text), "tags": datasets.List(kind)}
        rows = {"tokens": [["a", "b", "c"], []], "tags": [[0, 2, 1], []]}
        path = tmp_path / "rows.parquet"
        datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)
        (source,) = sources_of(slots=tags(str(path)))
        assert source.splits["train"]["tags"] == [["B-x", "I-x", "O"], []]
        assert source.configs["slots"].labels == ["O", "B-x", "I-x"]

    def test_a_label_that_train_lacks_is_told_with_row_and_count(self, tmp_path):
        train = self.write(tmp_path, ["a", "b"])
        lines = [{"text": "x", "label": label} for label in ["a", "d", "c", "d"]]
        other = str(write_rows(tmp_path / "other.jsonl", lines))
        sources = sources_of(one=classes({"train": train, "test": other}, label="label"))
        assert sources[0].configs["one"].labels == ["a", "b"]
        assert unseen_labels(sources) == [
            "one: label 'c' is not in train; test has it in 1 rows, first in row 2; "
            "scored as wrong",
            "one: label 'd' is not in train; test has it in 2 rows, first in row 1; "
            "scored as wrong",
        ]

    def test_a_label_that_a_model_lacks_is_told_where_train_has_it_too(self, tmp_path):
        files = dict.fromkeys(("train", "test"), self.write(tmp_path, ["A", "b"]))
        sources = sources_of(one=classes(files, label="label"))
        model = {
            "one": TaskConfig(head="sequence_classification", labels=["a", "b"]),
            "two": TaskConfig(head="sequence_classification", labels=["a", "b"]),
        }
        assert unseen_labels(sources, model, "test") == [
            "one: label 'A' is not in the model; test has it in 1 rows, first in row 0; "
            "scored as wrong"
        ]

    def test_kinds_of_entities_count_for_a_model_in_another_scheme(self, tmp_path):
        lines = [{"tokens": ["a", "b", "c"], "tags": ["B-x", "E-x", "S-y"]}]
        sources = sources_of(slots=tags(str(write_rows(tmp_path / "rows.jsonl", lines))))
        model = TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"], scheme="iob2")
        [line] = unseen_labels(sources, {"slots": model}, "train")
        assert line.startswith("slots: label 'S-y' is not in the model")

    def test_tags_of_the_parts_of_a_word_are_labels_too(self, tmp_path):
        lines = [{"tokens": ["in", "New-York"], "tags": ["O", "B-city"]}]
        rows = str(write_rows(tmp_path / "rows.jsonl", lines))
        (source,) = sources_of(slots=tags(rows))
        assert source.configs["slots"].labels == ["O", "B-city", "I-city"]


# ---- tag schemes ----

SCHEMES = {  # name: (scheme, rows of tags that follow it)
    "iob1": ("iob1", [["I-x", "I-x", "B-x", "O"], ["O", "I-y"]]),
    "iob1-without-neighbours": ("iob1", [["I-x", "I-x", "O"], ["O", "I-y"]]),
    "iob2": ("iob2", [["B-x", "I-x", "B-x", "O"], ["O", "B-y"]]),
    "iob2-of-single-words": ("iob2", [["B-x", "O"], ["O", "B-y"]]),
    "bioes": ("bioes", [["B-x", "I-x", "E-x", "S-x"], ["O", "B-y", "E-y"]]),
    "bioes-of-single-words": ("bioes", [["S-x", "O"], ["O", "S-y", "S-y"]]),
    "bioes-without-single-words": ("bioes", [["B-x", "E-x", "O"], ["O", "B-y", "I-y", "E-y"]]),
    "none": (None, [["NOUN", "VERB"], ["NOUN"]]),
    "none-with-dashes": (None, [["NN-P", "V-D"], ["O"]]),
}


class TestSchemes:
    def scheme(self, tmp_path, rows, **options):
        lines = [{"tokens": [f"w{i}" for i in range(len(row))], "tags": row} for row in rows]
        path = str(write_rows(tmp_path / "rows.jsonl", lines))
        (source,) = sources_of(slots=tags(path, **options))
        return source.configs["slots"].scheme

    @pytest.mark.parametrize("case", SCHEMES)
    def test_the_scheme_that_all_rows_follow_is_found(self, case, tmp_path):
        scheme, rows = SCHEMES[case]
        assert self.scheme(tmp_path, rows) == scheme

    @pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes"])
    def test_a_scheme_given_is_kept(self, scheme, tmp_path):
        assert self.scheme(tmp_path, SCHEMES[scheme][1], scheme=scheme) == scheme

    def test_validation_and_test_count_too(self, tmp_path):
        train = [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", "b"], "tags": ["B-x", "I-x"]}]
        test = [{"tokens": ["a", "b"], "tags": ["O", "I-x"]}]
        files = {
            "train": str(write_rows(tmp_path / "train.jsonl", train)),
            "test": str(write_rows(tmp_path / "test.jsonl", test)),
        }
        with pytest.raises(ValueError, match="test breaks the tag scheme iob2: row 0, word 1"):
            sources_of(slots=tags(files))


def test_a_text_that_json_lines_escape_arrives_as_it_was(tmp_path):
    text = 'naïve "quote" \\ 🎉\u00a0end'
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": text, "label": "a"}) + '\n{"text": "b", "label": "b"}\n')
    (source,) = sources_of(one=classes(str(path), label="label"))
    assert source.splits["train"]["text"][0] == text
