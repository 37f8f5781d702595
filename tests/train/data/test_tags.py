"""Tags as the data has them: without a label, in other letters, in no known notation, illegal."""

import datasets
import pytest
from polyhead.train.data.loading import unseen_labels
from polyhead.train.kinds.tokens import tags_in
from train_helpers import (
    private_cache,  # noqa: F401
    sources_of,
    task,
    write_rows,
)


def source_of(tmp_path, rows, *, text=False, test=None, **options):
    """Source of rows of tags; words are w0, w1, ..., or as many as `tokens` of a row says."""

    def lines(rows):
        made = [
            {"tokens": [f"w{i}" for i in range(len(tags or [0]))], "tags": tags} for tags in rows
        ]
        return [{"text": " ".join(row["tokens"]), **row} if text else row for row in made]

    files = {"train": str(write_rows(tmp_path / "train.jsonl", lines(rows)))}
    if test is not None:
        files["test"] = str(write_rows(tmp_path / "test.jsonl", lines(test)))
    made = task("token_classification", data_files=files, tokens="tokens", label="tags", **options)
    (source,) = sources_of(slots=made)
    return source


def fault_of(tmp_path, rows, **options):
    with pytest.raises(ValueError) as refused:
        source_of(tmp_path, rows, **options)
    return str(refused.value)


# ---- no label ----


def test_null_and_the_marks_of_class_ids_are_no_label():
    assert tags_in(None) is None
    assert tags_in(["O", None, "B-x"]) == ["O", None, "B-x"]
    assert tags_in([0, -1, 2, -100]) == ["0", None, "2", None]


@pytest.mark.parametrize("mark", [-1, -100, None])
def test_marks_for_no_label_are_no_class(mark, tmp_path):
    source = source_of(tmp_path, [[0, mark, 1], [1, 1]])
    assert source.configs["slots"].labels == ["0", "1"]
    assert source.splits["train"]["tags"][:] == [["0", None, "1"], ["1", "1"]]


def test_class_labels_keep_their_scheme_beside_words_without_a_label(tmp_path):
    names = ["O", "B-x", "I-x"]
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=names)),
        }
    )
    rows = {"tokens": [["a", "b", "c"], ["d"]], "tags": [[1, 2, -1], [0]]}
    path = str(tmp_path / "rows.parquet")
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    (source,) = sources_of(
        slots=task("token_classification", data_files=path, tokens="tokens", label="tags")
    )
    config = source.configs["slots"]
    assert (config.labels, config.scheme) == (["O", "B-x", "I-x"], "iob2")
    assert source.splits["train"]["tags"][:] == [["B-x", "I-x", None], ["O"]]


def test_a_row_without_tags_is_for_the_other_tasks(tmp_path):
    rows = [
        {"text": "go to Rome", "tokens": ["go", "to", "Rome"], "tags": ["O", "O", "B-loc"]},
        {"text": "come back", "tokens": ["come", "back"], "tags": None},
        {"text": "stay", "tokens": None, "tags": None},
    ]
    path = str(write_rows(tmp_path / "rows.jsonl", [r | {"y": f"{i}"} for i, r in enumerate(rows)]))
    tasks = {
        "ner": task("token_classification", data_files=path, tokens="tokens", label="tags"),
        "y": task("sequence_classification", data_files=path, text="text", label="y"),
    }
    (source,) = sources_of(**tasks)
    assert source.configs["ner"].labels == ["O", "B-loc"]
    with pytest.raises(ValueError, match=r"no list of words in row 2, but None"):
        sources_of(ner=tasks["ner"])  # without the text there is nothing to read


def test_tags_without_words_and_other_things_than_tags_are_refused(tmp_path):
    row = {"text": "a b", "tokens": None, "tags": ["O", "O"]}
    rows = [{"text": "a", "tokens": ["a"], "tags": ["B-x"]}, row]
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    with pytest.raises(ValueError, match="no list of words in row 1, but None"):
        sources_of(
            a=task(
                "token_classification", data_files=path, text="text", tokens="tokens", label="tags"
            )
        )
    spans = [{"tokens": ["a", "b"], "tags": [{"start": 0, "end": 1, "label": "x"}]}]
    path = str(write_rows(tmp_path / "spans.jsonl", spans))
    with pytest.raises(ValueError, match=r"a list of tags .* is wanted, but row 0"):
        sources_of(a=task("token_classification", data_files=path, tokens="tokens", label="tags"))


# ---- the same in other letters ----

OTHERS = {  # tags, as they are read
    "bilou": (
        [["B-x", "I-x", "L-x", "U-y"], ["O", "B-y", "L-y"]],
        [["B-x", "I-x", "E-x", "S-y"], ["O", "B-y", "E-y"]],
    ),
    "bilou-of-single-words": ([["U-x", "O"]], [["S-x", "O"]]),
    "bmes": ([["B-x", "M-x", "E-x", "S-y"]], [["B-x", "I-x", "E-x", "S-y"]]),
    "bmewo": ([["B-x", "M-x", "E-x", "W-y"]], [["B-x", "I-x", "E-x", "S-y"]]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_bilou_and_bmes_are_bioes(case, tmp_path):
    rows, expected = OTHERS[case]
    source = source_of(tmp_path, rows)
    assert source.splits["train"]["tags"][:] == expected
    assert source.configs["slots"].scheme == "bioes"
    assert set(source.configs["slots"].labels) == {tag for row in expected for tag in row}
    [note] = unseen_labels([source])
    assert note.startswith("slots: tags are read in the letters of bioes: ")


def test_labels_of_the_recipe_are_read_alike(tmp_path):
    labels = ["O", "B-x", "I-x", "L-x", "U-x"]
    source = source_of(tmp_path, [["B-x", "L-x", "O", "U-x"]], labels=labels)
    assert source.configs["slots"].labels == ["O", "B-x", "I-x", "E-x", "S-x"]


def test_a_tag_of_the_kind_o_is_o(tmp_path):
    source = source_of(tmp_path, [["I-O", "B-x", "I-x"], ["I-O"]])
    assert source.splits["train"]["tags"][:] == [["O", "B-x", "I-x"], ["O"]]
    assert (source.configs["slots"].labels, source.configs["slots"].scheme) == (
        ["O", "B-x", "I-x"],
        "iob2",
    )
    assert "I-O as O" in unseen_labels([source])[0]


PLAIN = {
    "bare": ["B", "I", "O"],
    "bare-dash": ["B-", "I-", "O"],
    "turned": ["per-B", "per-I", "O"],
    "underscore": ["B_per", "I_per", "O"],
    "turned-underscore": ["per_B", "per_I", "O"],
    "colon": ["B:per", "I:per", "O"],
    "small": ["b-per", "i-per", "o"],
    "small-bare": ["b", "i", "o"],
}


@pytest.mark.parametrize("case", PLAIN)
def test_notations_that_are_not_known_are_told(case, tmp_path):
    source = source_of(tmp_path, [PLAIN[case]])
    assert source.configs["slots"].scheme is None
    [note] = unseen_labels([source])
    assert "taken as labels of single words" in note
    assert "B-x, I-x and O (iob2)" in note


@pytest.mark.parametrize("tags", [["NOUN", "VERB"], ["NN-P", "VB"], ["0", "1"], ["IN", "BES"]])
def test_plain_tags_need_no_note(tags, tmp_path):
    source = source_of(tmp_path, [tags])
    assert (source.configs["slots"].scheme, unseen_labels([source])) == (None, [])


# ---- illegal tags ----


def test_all_illegal_tags_are_told_at_once(tmp_path):
    rows = [["O", "B-x"], *[["O", "I-x"]] * 300, *[["O", "B-x"]] * 300]
    fault = fault_of(tmp_path, rows, test=[["O", "I-x"]])
    assert "train breaks the tag scheme iob2 300 times: row 1, word 1: 'I-x' cannot follow" in fault
    assert fault.count("cannot follow 'O'") == 11  # ten of train, one of test
    assert "and 290 more" in fault
    assert "test breaks the tag scheme iob2: row 0, word 1" in fault
    assert "every entity begins with B-x" in fault


def test_the_scheme_with_fewest_faults_is_the_one_meant(tmp_path):
    rows = [["I-x", "O", "I-y"], ["I-x", "B-x"], ["O", "B-x"]]
    fault = fault_of(tmp_path, rows)
    assert "train breaks the tag scheme iob1: row 2, word 1: 'B-x' cannot follow 'O'" in fault
    assert "iob2" not in fault


def test_an_entity_that_does_not_end_is_told(tmp_path):
    fault = fault_of(tmp_path, [["B-x", "E-x"], ["S-x", "B-x"]])
    assert "bioes: row 1, word 2: the end cannot follow 'B-x'" in fault


def test_a_word_without_a_label_bars_nothing(tmp_path):
    source = source_of(tmp_path, [["B-x", None, "I-x"], [None, "I-x", "O", "B-x"]])
    assert source.configs["slots"].scheme == "iob2"


def test_a_scheme_without_ends_does_not_take_tags_with_ends(tmp_path):
    assert "scheme iob2 has no E- and S-" in fault_of(tmp_path, [["S-x", "O"]], scheme="iob2")


# ---- parts of words, signs ----


def lines_of(tmp_path, text, tokens, tags, **options):
    path = str(
        write_rows(tmp_path / "rows.jsonl", [{"text": text, "tokens": tokens, "tags": tags}])
    )
    made = task(
        "token_classification",
        data_files=path,
        text="text",
        tokens="tokens",
        label="tags",
        **options,
    )
    (source,) = sources_of(slots=made)
    return source.configs["slots"]


def test_the_tags_of_parts_are_labels_in_every_scheme(tmp_path):
    row = ("ask x@y.z now", ["ask", "x@y.z", "now"])
    assert lines_of(tmp_path, *row, ["O", "B-m", "O"]).labels == ["O", "B-m", "I-m"]
    labels = lines_of(tmp_path, *row, ["O", "S-m", "O"]).labels
    assert labels == ["O", "B-m", "E-m", "I-m", "S-m"]


def test_words_that_may_share_a_token_have_the_tag_of_a_single_one(tmp_path):
    config = lines_of(tmp_path, "pay £5", ["pay", "£", "5"], ["O", "B-m", "E-m"])
    assert config.labels == ["O", "B-m", "E-m", "S-m"]


@pytest.mark.parametrize(
    ("tokens", "tags", "signs"),
    [
        (["£5"], ["B-m"], ["£"]),
        (["£", "5"], ["O", "B-m"], []),
        (["£", "5"], ["B-m", "I-m"], ["£"]),
    ],
)
def test_signs_at_the_ends_of_entities_are_found(tokens, tags, signs, tmp_path):
    config = lines_of(tmp_path, "pay £5 now", ["pay", *tokens, "now"], ["O", *tags, "O"])
    assert config.signs == signs


def test_plain_tags_have_no_signs(tmp_path):
    assert lines_of(tmp_path, "pay £5", ["pay", "£5"], ["VERB", "NUM"]).signs is None


# ---- words of each task ----


def test_each_task_reads_its_own_words(tmp_path):
    rows = [
        {
            "en": ["the", "red", "house"],
            "e": ["D", "A", "N"],
            "fr": ["la", "maison"],
            "f": ["D", "N"],
        }
    ]
    path = str(write_rows(tmp_path / "rows.jsonl", [{**rows[0], "label": x} for x in "ab"]))
    tasks = {
        "en": task("token_classification", data_files=path, tokens="en", label="e"),
        "fr": task("token_classification", data_files=path, tokens="fr", label="f"),
        "kind": task("sequence_classification", data_files=path, tokens="fr", label="label"),
        "masks": task("masked_lm", data_files=path, tokens="en"),
    }
    sources = sources_of(**tasks)
    texts = {s.name: s.texts_of(s.splits["train"][:1])[0] for s in sources}
    assert texts == {"en+masks": ["the red house"], "fr+kind": ["la maison"]}


def test_words_and_characters_of_one_text_are_read_together(tmp_path):
    row = {"text": "a bc", "w": ["a", "bc"], "wt": ["X", "Y"], "c": ["a", "b", "c"], "ct": [*"PQR"]}
    path = str(write_rows(tmp_path / "rows.jsonl", [row]))
    options = {"data_files": path, "text": "text"}
    (source,) = sources_of(
        words=task("token_classification", tokens="w", label="wt", **options),
        signs=task("token_classification", tokens="c", label="ct", **options),
    )
    assert source.name == "signs+words"
    assert source.configs["signs"].labels == ["P", "Q", "R"]


@pytest.mark.parametrize("blank", ["", " "])
def test_an_empty_tag_is_refused_or_a_mark(blank, tmp_path):
    rows = [["B-x", "I-x", "O"], ["B-x", blank, "O"]]
    assert "row 1 holds an empty tag" in fault_of(tmp_path, rows)
    source = source_of(tmp_path, rows, missing_label=blank)
    assert source.splits["train"]["tags"][1] == ["B-x", None, "O"]
    assert source.configs["slots"].scheme == "iob2"


@pytest.mark.parametrize(
    "tags", [["B-x", "_"], ["B-x", "X", "[PAD]", "O"], ["B\u2013x", "I\u2013x", "O"], ["B.x", "O"]]
)
def test_entities_in_a_notation_that_is_not_known_are_told(tags, tmp_path):
    source = source_of(tmp_path, [tags])
    assert source.configs["slots"].scheme is None
    assert "taken as labels of single words" in " ".join(source.notes)


@pytest.mark.parametrize(
    "test", [["B-x", "E-x", "S-x"], ["B-x", "L-x", "U-x"], ["O", "x", "O"], [0, 1, 0], ["o", "O"]]
)
def test_another_notation_in_another_split_is_refused(test, tmp_path):
    message = fault_of(tmp_path, [["B-x", "I-x", "O"]], test=[test])
    assert "test has tags" in message
    assert "write all splits in one notation" in message


def test_kinds_that_train_has_not_are_no_other_notation(tmp_path):
    source = source_of(tmp_path, [["B-x", "I-x", "O"]], test=[["B-y", "I-y", "O"]])
    assert source.configs["slots"].scheme == "iob2"
