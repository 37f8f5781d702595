"""What a caller gives the pipeline is answered as what it is, or refused with what to type."""

import collections
import copy
import logging
import sys
from enum import Enum, StrEnum

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import shake_heads
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.inputs import read_inputs, tokenizable
from tokenizers import normalizers

ONE, TWO = "bad poor awful", "good"
BOTH = [ONE, TWO]
COLUMNS = {"text": BOTH, "label": ["a", "b"]}
Pair = collections.namedtuple("Pair", "first second")


class Loud(str):
    def __str__(self):
        return "another text"


class Named(str, Enum):  # noqa: UP042 - StrEnum shows its value
    one = ONE


LISTS = {
    "list": BOTH,
    "deque": collections.deque(BOTH),
    "values": dict(enumerate(BOTH)).values(),
    "array": np.array(BOTH),
    "array of objects": np.array(BOTH, dtype=object),
    "series": pd.Series(BOTH),
    "series of strings": pd.Series(BOTH, dtype="string"),
    "series with ids": pd.Series(BOTH, index=["id1", "id2"]),
    "column of a frame": pd.DataFrame(COLUMNS)["text"],
    "index": pd.Index(BOTH),
    "dataset's column": datasets.Dataset.from_dict(COLUMNS)["text"],
    "slice's column": datasets.Dataset.from_dict(COLUMNS)[:2]["text"],
    "arrow's array": pa.array(BOTH),
    "arrow's column": pa.table(COLUMNS)["text"],
    "dicts": [{"text": ONE}, {"text": TWO}],
    "subclasses": [Loud(ONE), np.str_(TWO)],
}
SINGLES = {
    "string": ONE,
    "numpy's string": np.str_(ONE),
    "subclass": Loud(ONE),
    "enum": Named.one,
    "array of no dimension": np.array(ONE),
    "dict": {"text": ONE},
    "row": pd.Series({"text": ONE}),
}
PAIRS = {
    "tuple": (ONE, TWO),
    "named tuple": Pair(ONE, TWO),
    "dict": {"text": ONE, "text_pair": TWO},
    "dict in another order": {"text_pair": TWO, "text": ONE},
}
REFUSED = {
    "columns": (COLUMNS, "keys .*'label'"),
    "texts as keys": (dict.fromkeys(BOTH), "give the text itself"),
    "no text": ({"text_pair": ONE}, "give the text itself"),
    "empty dict": ({}, "give the text itself"),
    "list in a dict": ({"text": BOTH}, r"the text\['text'\] is \['bad"),
    "half a pair": ({"text": ONE, "text_pair": None}, "it is missing"),
    "frame": (
        pd.DataFrame(COLUMNS),
        r"DataFrame of columns \['text', 'label'\]; .*table\['text'\]",
    ),
    "row of a frame": (pd.DataFrame(COLUMNS).iloc[0], r"keys \['text', 'label'\]"),
    "row of other columns": (pd.DataFrame({"q": BOTH, "r": BOTH}).iloc[1], r"keys \['q', 'r'\]"),
    "dataset": (datasets.Dataset.from_dict(COLUMNS), "Dataset of columns"),
    "datasets": (datasets.DatasetDict(train=datasets.Dataset.from_dict(COLUMNS)), "train"),
    "slice": (datasets.Dataset.from_dict(COLUMNS)[:2], "keys"),
    "row of a dataset": (datasets.Dataset.from_dict(COLUMNS)[0], "keys"),
    "table": (pa.table(COLUMNS), "Table of columns"),
    "set": (set(BOTH), "no order"),
    "frozenset": (frozenset(BOTH), "no order"),
    "keys": (dict.fromkeys(BOTH).keys(), "no order"),
    "bytes": (ONE.encode(), "decode it"),
    "bytes in a list": ([TWO, ONE.encode()], "text 1 is b'bad.*decode it"),
    "bytearray": (bytearray(b"a"), "decode it"),
    "array of bytes": (np.array([b"a"]), "text 0 .*decode it"),
    "matrix": (np.array([BOTH, BOTH]), "2 dimensions"),
    "numbers": (np.array([1.0, 2.0]), "text 0 is "),
    "tensor": (torch.zeros(2), "text 0 is "),
    "nothing": (None, "texts is None"),
    "number": (3, "texts is 3"),
    "none among texts": ([ONE, None], "text 1 is None: it is missing"),
    "nan among texts": (pd.Series([ONE, float("nan")]), "text 1 is nan: it is missing"),
    "NA among texts": (pd.Series([None, ONE], dtype="string"), "text 0 is <NA>: it is missing"),
    "null among texts": (pa.array([ONE, None]), "text 1 is None: it is missing"),
    "lists of two": ([[ONE, TWO]], "text 0 is .*a list; .*as a tuple"),
    "rows of a frame": (pd.DataFrame(COLUMNS).itertuples(index=False), r"text 0 is a row of \['t"),
    "three": ((ONE, TWO, ONE), "a tuple of 3"),
    "one": ((ONE,), "a tuple of 1"),
    "pair with none": ([(ONE, None)], r"text 0\[1\] is None: it is missing"),
    "generators": ([iter(BOTH)], "text 0 is "),
    "label in a row": ([{"text": ONE, "label": "a"}], "text 0 has the keys"),
}


@pytest.mark.parametrize("texts", LISTS.values(), ids=LISTS)
def test_lists(texts):
    texts_read, single = read_inputs(texts)
    assert (texts_read, single) == (BOTH, False)
    assert {type(text) for text in texts_read} == {str}


@pytest.mark.parametrize("texts", SINGLES.values(), ids=SINGLES)
def test_single_texts(texts):
    texts_read, single = read_inputs(texts)
    assert (texts_read, single) == ([ONE], True)
    assert type(texts_read[0]) is str


@pytest.mark.parametrize("texts", PAIRS.values(), ids=PAIRS)
def test_pairs(texts):
    assert read_inputs(texts) == ([(ONE, TWO)], True)
    assert read_inputs([texts]) == ([(ONE, TWO)], False)
    assert type(read_inputs(texts)[0][0]) is tuple


@pytest.mark.parametrize(("texts", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_text_is_refused(texts, says):
    with pytest.raises(ValueError, match=says) as error:
        read_inputs(texts)
    assert len(str(error.value)) < 400


def test_messages_are_short_whatever_was_given():
    for texts in (
        [["x" * 100_000]],
        {"x" * 100_000: 1},
        [b"x" * 100_000],
        [{i: i for i in range(99)}],
    ):
        with pytest.raises(ValueError, match="give|decode") as error:
            read_inputs(texts)
        assert len(str(error.value)) < 400


# ---- through the pipeline ----

TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["book", "play", "ask"]),
    "topics": TaskConfig(
        head="sequence_classification",
        problem_type="multi_label_classification",
        labels=["food", "travel"],
        threshold=0.99,
    ),
    "slots": TaskConfig(head="token_classification", labels=["O", "x", "y"]),
    "same": TaskConfig(head="sequence_classification", labels=["no", "yes"], pair=True),
}


FAMILIES = {"wordpiece": "bert", "bpe": "roberta", "unigram": "xlm-roberta"}


@pytest.fixture(scope="module")
def pipes(encoder_folder, tokenizer_of):
    """Family of tokenizers -> a pipeline; no test changes them."""
    made = {}
    for family, kind in FAMILIES.items():
        model = PolyheadModel.from_encoder(str(encoder_folder(kind)), tasks=TASKS)
        shake_heads(model)
        made[family] = PolyheadPipeline(model=model, tokenizer=tokenizer_of(family), device="cpu")
    return made


@pytest.fixture
def pipe(pipes):
    return PolyheadPipeline(
        model=pipes["wordpiece"].model, tokenizer=pipes["wordpiece"].tokenizer, device="cpu"
    )


def test_a_dict_is_answered_as_its_text(pipe):
    assert pipe({"text": ONE}) == pipe(ONE)
    assert pipe({"text": ONE, "text_pair": TWO}) == pipe((ONE, TWO))
    assert pipe([{"text": ONE}, {"text": TWO}]) == pipe(BOTH)
    assert pipe(pd.DataFrame(COLUMNS)["text"]) == pipe(BOTH)
    assert pipe(row for row in [{"text": ONE}, {"text": TWO}]).__next__() == pipe(BOTH)[0]


@pytest.mark.parametrize("texts", [COLUMNS, pd.DataFrame(COLUMNS), set(BOTH), None, {"text": BOTH}])
def test_what_is_no_text_gets_no_answer(pipe, texts):
    with pytest.raises(ValueError, match="give"):
        pipe(texts)


def test_a_generator_says_which_text_is_none(pipe, monkeypatch):
    monkeypatch.setattr(sys.modules[PolyheadPipeline.__module__], "STRETCH", 2)
    answers = pipe(iter([ONE, TWO, ONE, None]))
    assert [next(answers), next(answers)] == pipe(BOTH)
    with pytest.raises(ValueError, match="text 3 is None: it is missing"):
        next(answers)


def test_a_generator_of_texts_and_later_pairs_is_refused(pipe, monkeypatch):
    monkeypatch.setattr(sys.modules[PolyheadPipeline.__module__], "STRETCH", 2)
    for texts, tasks in (([*BOTH, (ONE, TWO)], None), ([(ONE, TWO)] * 2 + BOTH, None)):
        answers = pipe(iter(texts), tasks=tasks)
        assert [next(answers), next(answers)] == pipe(texts[:2])
        with pytest.raises(ValueError, match="texts and pairs of texts are mixed"):
            next(answers)


def test_names_of_tasks_are_plain_strings_in_the_answer(pipe):
    class Name(StrEnum):
        INTENT = "intent"

    for tasks in (np.array(["intent"]), [np.str_("intent")], [Name.INTENT]):
        answer = pipe(ONE, tasks=tasks)
        assert answer == pipe(ONE, tasks=["intent"])
        assert {type(name) for name in answer} == {str}


def test_steps_of_the_base_class_give_no_answer(pipe):
    assert pipe.predict(ONE) == pipe.transform(ONE) == pipe(ONE)
    for call in (
        lambda: pipe.preprocess(ONE),
        lambda: pipe.forward({"input_ids": torch.ones(1, 2)}),
        lambda: pipe.postprocess(ONE),
        lambda: pipe.run_single(ONE, {}, {}, {}),
        lambda: list(pipe.get_iterator([ONE], 0, 1, {}, {}, {})),
    ):
        with pytest.raises(NotImplementedError, match="call it"):
            call()


def test_what_is_no_whole_polyhead_is_refused(pipe):
    for model in ("folder", None, pipe.model.encoder, pipe.model.view("intent")):
        for arguments in ({"model": model}, {}):
            with pytest.raises(ValueError, match="give a loaded Polyhead with all its tasks"):
                PolyheadPipeline(
                    *[] if arguments else [model], tokenizer=pipe.tokenizer, **arguments
                )


def test_another_tokenizer_is_used_from_then_on(pipe):
    before = pipe(ONE, tasks=["intent"])
    other = copy.deepcopy(pipe.tokenizer)
    other.backend_tokenizer.normalizer = normalizers.Replace("bad", "good")
    pipe.tokenizer = other
    replaced = pipe(ONE.replace("bad", "good"), tasks=["intent"])
    assert pipe(ONE, tasks=["intent"]) == replaced != before


def test_a_generator_is_refused_at_once_for_a_task_that_is_not_there(pipe):
    with pytest.raises(ValueError, match="unknown task 'nope'"):
        pipe(iter(BOTH), tasks=["nope"])


def test_all_labels(pipe):
    answer = pipe(ONE, top_k=None)
    assert [one["score"] for one in answer["intent"]] == sorted(
        (one["score"] for one in answer["intent"]), reverse=True
    )
    assert {one["label"] for one in answer["intent"]} == {"book", "play", "ask"}
    assert sum(one["score"] for one in answer["intent"]) == pytest.approx(1)
    assert {one["label"] for one in answer["topics"]} == {"food", "travel"}
    assert pipe(ONE, top_k=None, threshold=1.0)["topics"] == []
    assert answer["intent"][0] == pipe(ONE)["intent"]
    assert pipe(ONE, top_k=99)["intent"] == answer["intent"]
    assert pipe(ONE, top_k=np.int64(2))["intent"] == answer["intent"][:2]


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 1.0},
        {"top_k": True},
        {"top_k": "2"},
        {"threshold": 2},
        {"threshold": -0.1},
        {"threshold": float("nan")},
        {"threshold": "0.5"},
        {"threshold": True},
        {"threshold": [0.3, 0.5]},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_tokens": "many"},
        {"batch_tokens": 8, "batch_size": 8},
        {"document": "no"},
        {"document": 1},
        {"tasks": []},
        {"tasks": "intent"},
        {"tasks": 3},
        {"tasks": [None]},
        {"tasks": [["intent"]]},
        {"tasks": {"intent": False}},
        {"tasks": b"intent"},
        {"tasks": np.array("intent")},
        {"tasks": ["intent", "nope"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("texts", [ONE, [], "generator"])
def test_options_out_of_range_are_refused(pipe, options, texts):
    with pytest.raises(ValueError, match=next(iter(options)).removesuffix("s")):
        pipe(iter(BOTH) if texts == "generator" else texts, **options)


def test_a_task_named_twice_is_answered_once(pipe):
    assert pipe(ONE, tasks=["intent", "intent"]) == pipe(ONE, tasks=["intent"])
    assert pipe(ONE, tasks=(name for name in ["intent"])) == pipe(ONE, tasks=["intent"])


@pytest.mark.parametrize(
    "option",
    ["batch_size", "num_workers", "binary_output", "top_k", "threshold", "tasks", "nonsense"]
    + [
        "aggregation_strategy",
        "return_all_scores",
        "truncation",
        "max_length",
        "function_to_apply",
    ],
)
def test_options_of_the_constructor_that_change_nothing_are_refused(pipe, option):
    with pytest.raises(ValueError, match=f"unknown option {option}; give options in the call"):
        PolyheadPipeline(model=pipe.model, tokenizer=pipe.tokenizer, **{option: 1})


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_a_dtype_that_the_model_has_not_is_refused(pipe, option):
    parts = {"model": pipe.model, "tokenizer": pipe.tokenizer, "device": "cpu"}
    for dtype in (torch.float32, "float32", "auto", None):
        assert PolyheadPipeline(**parts, **{option: dtype})(ONE) == pipe(ONE)
    with pytest.raises(ValueError, match="the model's is float32; load it in that dtype"):
        PolyheadPipeline(**parts, **{option: torch.bfloat16})


# ---- characters that tokenizers have trouble with ----

ODD = [
    "see \x00 you\x00now",
    "\x00",
    "a\ud83d b",
    "\ude00\ud83d",
    "x\ud83d" * 40,
    "\ufeffa b",
    "e\u0301a b",
]


@pytest.mark.parametrize("text", ODD, ids=ascii)
@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_are_those_of_the_text(pipes, family, text):
    pipe = pipes[family]
    for answer in (pipe(text), pipe([text, ONE])[0]):
        for span in answer["slots"]:
            assert text[span["start"] : span["end"]] == span["word"]
        assert answer["intent"]["label"] in TASKS["intent"].labels
    assert pipe((text, ONE))["same"]["label"] in ("no", "yes")


@pytest.mark.parametrize("family", FAMILIES)
def test_half_a_surrogate_is_read_as_the_replacement_character(pipes, family):
    answer, expected = (pipes[family](t)["intent"] for t in ("a\ud83d b", "a\ufffd b"))
    assert answer == expected


def test_the_replacement_has_the_length_of_what_it_replaces():
    assert tokenizable("a\ud83d\ude00b\udc80") == "a\ufffd\ufffdb\ufffd"
    assert tokenizable("a😀") == "a😀"


# ---- texts that are too long ----


def said(pipe, caplog, texts, **options):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pipe(texts, **options)
    return [line.getMessage() for line in caplog.records if "longer than" in line.getMessage()]


def test_texts_that_are_cut_are_told_once(pipe, caplog):
    long = "now " * 2000
    limit = pipe.model.usable_length
    assert said(pipe, caplog, [ONE, long], tasks=["slots"]) == []
    (line,) = said(pipe, caplog, [ONE, long, long], tasks=["intent"])
    assert line.startswith(f"2 of 3 texts (66.7%) are longer than {limit} tokens")
    assert said(pipe, caplog, [long]) == []


def test_pairs_that_are_cut_are_told(pipe, caplog):
    assert said(pipe, caplog, (ONE, TWO)) == []
    assert len(said(pipe, caplog, [(ONE, TWO), ("now " * 2000, TWO)])) == 1


def test_texts_that_fit_are_not_told(pipe, caplog):
    assert said(pipe, caplog, BOTH) == []
