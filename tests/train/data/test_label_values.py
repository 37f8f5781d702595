"""Labels are what the user means: marks of missing ones, 0/1 vectors, numbers, ids, words."""

import json
import math
import os

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from polyhead.train.data.loading import unseen_labels
from polyhead.train.data.tokenization import tokenize
from polyhead.train.errors import UserError
from polyhead.train.kinds.values import labels_in, number_of
from train_helpers import (
    MULTI,
    SEQUENCE,
    private_cache,  # noqa: F401
    sources_of,
    task,
)


def jsonl(folder, labels, name="rows.jsonl"):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def table(folder, labels, name="rows.csv"):
    path = folder / name
    lines = "".join(f"text {i},{label}\n" for i, label in enumerate(labels))
    path.write_text(f"text,label\n{lines}", encoding="utf-8")
    return str(path)


def source_of(files, **options):
    options = {"data_files": files, "text": "text", "label": "label", **options}
    (source,) = sources_of(one=task(SEQUENCE, **options))
    return source


def labels_of(files, **options):
    return source_of(files, **options).configs["one"].labels


def values_of(source, split="train"):
    return source.splits[split][:]["label"]


def faults_of(files, **options):
    with pytest.raises(UserError) as caught:
        source_of(files, **options)
    return str(caught.value)


# ---- words of CSV ----


@pytest.mark.parametrize(
    "word", ["None", "NA", "N/A", "null", "nan", "n/a", "<NA>", "#N/A", "NULL"]
)
def test_a_word_that_other_readers_drop_is_a_class(word, tmp_path):
    source = source_of(table(tmp_path, [word, word, "Water"]), labels=[word, "Water"])
    assert values_of(source) == [word, word, "Water"]
    assert source.notes == []


@pytest.mark.parametrize(
    "labels", [["001", "010"], ["01", "1", "2"], ["1E5", "100000"], ["1", "1.0"]]
)
def test_codes_are_classes_as_they_are_written(labels, tmp_path):
    for given in (None, labels):
        assert set(labels_of(table(tmp_path, labels), labels=given)) == set(labels)


def test_ids_with_an_empty_cell_are_ids(tmp_path):
    source = source_of(table(tmp_path, ["0", "1", "", "2"]))
    assert source.configs["one"].labels == ["0", "1", "2"]
    assert source.notes == [
        "one: 1 of 4 rows of train have no label in 'label'; the task skips them"
    ]


@pytest.mark.parametrize(
    "labels", [["²", "³"], ["--5", "1"], ["٣", "1"], ["9" * 5000, "1"], ["1²", "2"]]
)
def test_odd_digits_are_names(labels, tmp_path):
    assert labels_of(jsonl(tmp_path, labels)) == sorted(labels)


def test_dates_are_strings(tmp_path):
    days = ["2024-05-06", "2024-05-07T10:11:12Z"]
    assert labels_of(jsonl(tmp_path, days)) == days


# ---- no label ----


@pytest.mark.parametrize(
    ("labels", "mark"),
    [
        (["a", "n/a", "b"], "n/a"),
        (["a", "b", "-", "n/a"], ["-", "n/a"]),
        ([0, 1, -1], -1),
        (["0", "1", "-1"], -1),
        ([0, 1, -1], "-1"),
        ([0, 1, -100], None),
        (["a", "b", None], None),
        (["a", "b", math.nan], None),
        ([0.0, 1.0, math.nan], None),
    ],
)
def test_a_mark_is_no_class(labels, mark, tmp_path):
    source = source_of(jsonl(tmp_path, labels), missing_label=mark)
    found = source.configs["one"].labels
    assert found in (["a", "b"], ["0", "1"])
    assert "n/a" not in values_of(source)
    assert source.notes == [
        f"one: {len(labels) - 2} of {len(labels)} rows of train have no label in 'label'; "
        "the task skips them"
    ]


def test_a_mark_is_skipped_in_training_and_in_every_split(tmp_path, tokenizer_of):
    files = {
        "train": jsonl(tmp_path, ["a", "b", "?"]),
        "test": jsonl(tmp_path, ["?", "a"], "t.jsonl"),
    }
    source = source_of(files, missing_label="?")
    assert tokenize(source, "train", tokenizer_of("wordpiece"))["labels_one"][:] == [0, 1, -100]
    assert tokenize(source, "test", tokenizer_of("wordpiece"))["labels_one"][:] == [-100, 0]
    assert [note for note in unseen_labels([source]) if "not in train" in note] == []


def test_minus_one_of_ids_without_names_is_told(tmp_path):
    source = source_of(jsonl(tmp_path, [0, 1, -1, -1]))
    assert source.configs["one"].labels == ["-1", "0", "1"]
    assert source.notes == [
        "one: -1 is a class, of 2 rows of train; if it marks a missing label, write "
        "data.missing_label: -1"
    ]
    assert source_of(jsonl(tmp_path, [0, 1, -1]), labels=[-1, 0, 1]).notes == []


def test_marks_in_lists_of_labels(tmp_path):
    labels = [["a", "n/a"], ["n/a"], ["b"], []]
    source = source_of(jsonl(tmp_path, labels), problem_type=MULTI, missing_label="n/a")
    assert values_of(source) == [["a"], None, ["b"], []]
    assert source.configs["one"].labels == ["a", "b"]


def test_marks_of_numbers_compare_as_numbers(tmp_path):
    options = {"problem_type": "regression", "missing_label": [-1, "n/a"]}
    source = source_of(table(tmp_path, ["0.5", "-1.0", "-1", "n/a", "1e1", ""]), **options)
    assert values_of(source) == [0.5, None, None, None, 10.0, None]


def test_a_mark_of_minus_100_is_a_number_where_numbers_are_wanted(tmp_path):
    source = source_of(jsonl(tmp_path, [-100, 0.5]), problem_type="regression")
    assert values_of(source) == [-100, 0.5]


def test_one_column_cannot_have_two_marks(tmp_path):
    data = {"data_files": jsonl(tmp_path, ["a", "b"]), "text": "text", "label": "label"}
    with pytest.raises(UserError, match="write the same in a, b"):
        sources_of(a=task(SEQUENCE, **data), b=task(SEQUENCE, missing_label="x", **data))


def test_ids_of_class_names_in_lists(tmp_path):
    kind = datasets.List(datasets.ClassLabel(names=["a", "b"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    rows = {"text": ["x", "y", "z"], "label": [[0, 1], [1, 0], [0]]}
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    source = source_of(str(path), problem_type=MULTI)
    assert values_of(source) == [["a", "b"], ["b", "a"], ["a"]]


def test_pandas_writes_ids_with_gaps_as_fractions(tmp_path):
    path = tmp_path / "rows.parquet"
    pandas.DataFrame({"text": ["a", "b", "c"], "label": [0, 1, None]}).to_parquet(path)
    assert labels_of(str(path)) == ["0", "1"]


def test_a_label_of_the_recipe_without_a_row_is_told(tmp_path):
    source = source_of(jsonl(tmp_path, ["a", "b"]), labels=["a", "None", "b", "c"])
    assert source.notes == ["one: no row of train has the label 'None', 'c'"]


# ---- 0/1 vectors ----

VECTORS = {
    "integers": [[1, 0, 0], [0, 1, 0], [1, 0, 1]],
    "fractions": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]],
    "booleans": [[True, False, False], [False, True, False], [True, False, True]],
    "strings": [["1", "0", "0"], ["0", "1", "0"], ["1", "0", "1"]],
    "mixed": [[1, 0.0, 0], [0, 1, False], [1, 0, 1]],
}


@pytest.mark.parametrize("case", VECTORS)
def test_vectors_are_refused_without_names(case, tmp_path):
    said = faults_of(jsonl(tmp_path, VECTORS[case]), problem_type=MULTI)
    assert "1 fault" in said
    assert "holds 0/1 vectors of 3; name the labels: labels: [name1, name2, name3]" in said
    said = faults_of(jsonl(tmp_path, VECTORS[case]), problem_type=MULTI, labels=["a", "b"])
    assert "0/1 vectors of 3, but labels names 2; name the labels" in said


@pytest.mark.parametrize("case", VECTORS)
def test_vectors_point_at_as_many_labels(case, tmp_path):
    files = {split: jsonl(tmp_path, VECTORS[case], f"{split}.jsonl") for split in ("train", "test")}
    source = source_of(files, problem_type=MULTI, labels=["red", "green", "blue"])
    for split in files:
        assert values_of(source, split) == [["red"], ["green"], ["red", "blue"]]
    assert source.configs["one"].labels == ["red", "green", "blue"]
    assert source.notes == ["one: 0/1 vectors of 3 are read as the labels red, green, blue"]


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ([[1, 0, 0], [0, 1, 0], [1, 0]], "vectors of 3, but row 2 of train holds [1, 0]"),
        ([[1, 0, 0], [0, 1, 0], []], "vectors of 3, but row 2 of train holds []"),
        ([[1, 0, 0], [0, 1, 2], [0, 0, 1]], "each id once in a list"),
        ([[0.2, 0.8], [0.5, 0.5]], "a list of strings or ids"),
        ([[True], [False]], "0/1 vectors of 1; name"),
    ],
)
def test_what_is_not_quite_a_vector_is_refused(vectors, says, tmp_path):
    assert says in faults_of(jsonl(tmp_path, vectors), problem_type=MULTI)


@pytest.mark.parametrize("lists", [[[0], [1], [0, 1]], [["0"], ["1"], []], [[0], [1], [1]]])
def test_lists_of_the_ids_0_and_1_are_lists_of_ids(lists, tmp_path):
    assert labels_of(jsonl(tmp_path, lists), problem_type=MULTI) == ["0", "1"]


def test_lists_of_two_named_ids(tmp_path):
    lists = [[0, 1], [1, 0]]
    found = labels_of(jsonl(tmp_path, lists), problem_type=MULTI, labels=[0, 1, 2])
    assert found == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([["a", None], ["b"]], "a list of strings or ids is wanted, but row 0 holds ['a', None]"),
        ([["a"], [{"start": 0}]], "a list of strings or ids is wanted, but row 1"),
        ([["a"], [["b"]]], "a list of strings or ids is wanted, but row 1"),
        ([["a"], [1]], "strings or ids, not both, but row 0 holds 'a' and row 1 1"),
        (["a", ["b"]], "a list of labels is wanted, but row 0 holds 'a'"),
        ([{"a": 1}, ["b"]], "a list of labels is wanted, but row 0 holds {'a': 1}"),
    ],
)
def test_lists_hold_strings_or_ids(labels, says, tmp_path):
    assert says in faults_of(jsonl(tmp_path, labels), problem_type=MULTI)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["1", 1, "a"], "strings or ids, not both, but row 0 holds '1' and row 1 1"),
        ([True, 1], "strings or ids, not both"),
        ([1.5, 2.5], "a label (string or id) is wanted, but row 0, 1 holds 1.5"),
        (["a", ["b"]], "write problem_type: multi_label_classification, but row 1 holds ['b']"),
        ([{"a": 1}, "b"], "a label (string or id) is wanted, but row 0 holds {'a': 1}"),
    ],
)
def test_one_label_is_a_string_or_an_id(labels, says, tmp_path):
    assert says in faults_of(jsonl(tmp_path, labels))


def test_ids_larger_than_64_bit_are_ids(tmp_path):
    ids = [2**70, 2**70 + 1]
    found = labels_of(jsonl(tmp_path, [*ids, -1]), missing_label=-1)
    assert set(found) == set(map(str, ids))


# ---- numbers ----


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1.0),
        (" -2.5 ", -2.5),
        ("1e5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("+3", 3.0),
        ("NaN", None),
    ],
)
def test_a_number_is_what_it_writes(text, number):
    assert number_of(text) == number


@pytest.mark.parametrize("text", ["2a", "1_000", "1,5", "٣", "", "0x1F", "inf", "NA", "1 2", "--1"])
def test_any_other_text_is_no_number(text):
    assert number_of(text) == text


def test_scores_of_csv_are_numbers(tmp_path):
    source = source_of(table(tmp_path, ["0.5", "1", "", "2e-1"]), problem_type="regression")
    assert values_of(source) == [0.5, 1.0, None, 0.2]


def test_a_score_that_is_none_is_named_by_file_row_and_value(tmp_path):
    files = {"train": table(tmp_path, ["1", "2"]), "test": table(tmp_path, ["1", "2a"], "t.csv")}
    said = faults_of(files, problem_type="regression")
    assert "1 fault" in said
    assert "test, column 'label': a number is wanted, but row 1 holds '2a'" in said


def test_whole_numbers_beside_fractions_in_json(tmp_path):
    source = source_of(jsonl(tmp_path, [1, 0.5, None]), problem_type="regression")
    assert values_of(source) == [1.0, 0.5, None]


def test_one_column_may_be_classes_and_scores(tmp_path, tokenizer_of):
    data = {"data_files": table(tmp_path, ["01", "2"]), "text": "text", "label": "label"}
    stars = task(SEQUENCE, **data)
    score = task(SEQUENCE, problem_type="regression", label_range=[0, 4], **data)
    (source,) = sources_of(score=score, stars=stars)
    assert source.configs["stars"].labels == ["01", "2"]
    assert tokenize(source, "train", tokenizer_of("wordpiece"))["labels_score"][:] == [0.25, 0.5]


def test_only_the_split_that_has_the_gap_is_told(tmp_path):
    files = {"train": table(tmp_path, ["0", "1"]), "test": table(tmp_path, ["0", ""], "t.csv")}
    assert source_of(files).notes == [
        "one: 1 of 2 rows of test have no label in 'label'; the task skips them"
    ]


def test_a_column_may_be_text_and_label(tmp_path):
    path = table(tmp_path, ["1", "2"])
    score = {"data_files": path, "text": "text", "label": "label", "problem_type": "regression"}
    words = task("masked_lm", data_files=path, text="label")
    scored, _ = sources_of(score=task(SEQUENCE, **score), words=words)
    assert values_of(scored) == [1.0, 2.0]
    (source,) = sources_of(score=task(SEQUENCE, **{**score, "text": "label"}))
    assert values_of(source) == ["1", "2"]
    with pytest.raises(UserError, match="is read as text too"):
        sources_of(score=task(SEQUENCE, **{**score, "text": "label", "missing_label": 1}))


@pytest.mark.parametrize(
    "value", [[{"start": 0, "end": 1, "label": "x"}], {"start": [0]}, [["O"], ["O"]]]
)
def test_spans_in_the_place_of_tags_are_shown(value, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": ["a", "b"], "tags": value}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ner = task("token_classification", data_files=str(path), tokens="tokens", label="tags")
    with pytest.raises(UserError) as caught:
        sources_of(ner=ner)
    assert "1 fault" in str(caught.value)
    assert f"one for each word, is wanted, but row 1 holds {value!r}" in str(caught.value)


def test_a_mark_in_tags_is_a_word_without_a_tag(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"tokens": ["a", "b"], "tags": ["B-x", "?"]},
        {"tokens": ["a", "b"], "tags": ["?", "O"]},
        {"tokens": ["a"], "tags": ["?"]},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"data_files": str(path), "tokens": "tokens", "label": "tags", "missing_label": "?"}
    (source,) = sources_of(ner=task("token_classification", **data))
    assert source.configs["ner"].labels == ["O", "B-x"]
    assert source.splits["train"]["tags"][:] == [["B-x", None], [None, "O"], [None]]


def test_a_column_of_another_split_need_not_be_there(tmp_path):
    (tmp_path / "train.csv").write_text("text,label,more\na,x,1\nb,y,2\n")
    (tmp_path / "test.csv").write_text("label,text\nx,a\n")
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "test")}
    assert values_of(source_of(files), "test") == ["x"]


class TestSplits:
    @pytest.fixture
    def folder(self, tmp_path):
        for split, labels in (("train", ["None", "001"]), ("test", ["001", "2024-05-06"])):
            table(tmp_path, labels, f"{split}.csv")
        return tmp_path

    def test_files_of_a_folder_go_through_the_same_reader(self, folder):
        for data in ({"path": str(folder)}, {"path": "csv", "data_dir": str(folder)}):
            source = source_of(None, **data)
            assert values_of(source) == ["None", "001"]
            assert values_of(source, "test") == ["001", "2024-05-06"]

    def test_a_file_of_a_folder_that_is_replaced_is_read_anew(self, folder):
        table(folder, ["a", "b"], "train.csv")
        assert values_of(source_of(None, path=str(folder))) == ["a", "b"]
        table(folder, ["c", "d"], "train.csv")
        os.utime(folder / "train.csv", (10**9, 10**9))
        assert values_of(source_of(None, path=str(folder))) == ["c", "d"]

    def test_slices_and_sums_of_splits(self, folder):
        splits = {"train": "train+test[:50%]", "test": "test[-1:]"}
        source = source_of(None, path=str(folder), splits=splits)
        assert values_of(source) == ["None", "001", "001"]
        assert values_of(source, "test") == ["2024-05-06"]

    def test_types_that_a_data_set_gives_itself_are_kept(self, folder):
        table(folder, ["0", "1"], "train.csv")
        table(folder, ["1", "0"], "test.csv")
        names = {"class_label": {"names": {"0": "low", "1": "high"}}}
        features = [{"name": "text", "dtype": "string"}, {"name": "label", "dtype": names}]
        card = yaml.safe_dump({"dataset_info": {"features": features}})
        (folder / "README.md").write_text(f"---\n{card}---\n")
        assert values_of(source_of(None, path=str(folder))) == ["low", "high"]


def test_labels_that_are_hard_to_tell_apart_are_told(tmp_path):
    source = source_of(table(tmp_path, ["x", " x", "y", "X"]))
    assert "one: classes of their own, though alike: ' x' and 'X', ' x' and 'x'" in source.notes
    assert not any("alike" in line for line in source_of(table(tmp_path, ["x", "y"])).notes)


# ---- what is hard to see ----


@pytest.mark.parametrize("blank", ["", " ", "\t"])
@pytest.mark.parametrize("multi", [False, True])
def test_a_label_without_letters_is_refused_or_a_mark(blank, multi, tmp_path):
    labels = [["x"], ["x", blank], ["y"]] if multi else ["x", blank, "y"]
    kind = {"problem_type": "multi_label_classification"} if multi else {}
    files = jsonl(tmp_path, labels)
    message = faults_of(files, **kind)
    assert "row 1 holds" in message
    assert "data.missing_label" in message
    assert labels_of(files, missing_label=blank, **kind) == ["x", "y"]


def test_true_and_false_are_no_numbers(tmp_path):
    message = faults_of(jsonl(tmp_path, [True, False]), problem_type="regression")
    assert "a number is wanted, but row 0, 1 holds True" in message


@pytest.mark.parametrize("mark", [-1, "zz", ["x", "zz"]])
def test_a_mark_that_no_row_holds_is_told(mark, tmp_path):
    source = source_of(table(tmp_path, ["-1.0", "x", "0.0"]), missing_label=mark)
    last = mark[-1] if isinstance(mark, list) else mark
    assert f"one: no row holds the missing_label {last!r} in 'label'" in source.notes


def test_a_mark_that_a_row_of_some_split_holds_is_not_told(tmp_path):
    files = {"train": table(tmp_path, ["a", "b"]), "test": table(tmp_path, ["a", "zz"], "t.csv")}
    assert not any("no row holds" in note for note in source_of(files, missing_label="zz").notes)


@pytest.mark.parametrize("pair", [("1", "1.0"), ("01", "1"), ("1e1", "10")])
def test_numbers_written_in_two_ways_are_told(pair, tmp_path):
    assert "alike" in " ".join(source_of(table(tmp_path, [*pair, "2"])).notes)


def test_long_ids_that_floats_cannot_tell_apart_are_not_alike(tmp_path):
    source = source_of(table(tmp_path, ["9007199254740992", "9007199254740993", "nan"]))
    assert not any("alike" in note for note in source.notes)


def test_a_label_that_stands_twice_in_a_list_is_one():
    assert labels_in(["a", "a", "b"]) == ["a", "b"]


def test_a_class_id_without_a_name_is_refused(tmp_path):
    kind = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    made = pa.table({"text": ["a", "b"], "label": [0, 7]})
    made = made.replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(made, tmp_path / "rows.parquet")
    message = faults_of(str(tmp_path / "rows.parquet"))
    assert "train, column 'label': row 1 holds 7" in message


@pytest.mark.parametrize("other", [["y", "x"], None, ["x", "y", "z"]])
def test_places_of_0_1_vectors_have_one_meaning(other, tmp_path):
    files = jsonl(tmp_path, [[1, 0], [0, 1]])
    options = {"data_files": files, "text": "text", "label": "label"}
    options["problem_type"] = "multi_label_classification"
    one = task(SEQUENCE, labels=["x", "y"], **options)
    with pytest.raises(UserError, match=r"tasks.two.labels: one reads 0/1 vectors .* are x, y;"):
        sources_of(one=one, two=task(SEQUENCE, labels=other, **options))
    (source,) = sources_of(one=one, two=task(SEQUENCE, labels=["x", "y"], **options))
    assert values_of(source) == [["x"], ["y"]]


def test_a_column_without_any_label_is_told(tmp_path):
    assert "no row of train has a label in 'label'" in faults_of(jsonl(tmp_path, [None, None]))
