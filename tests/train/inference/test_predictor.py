"""A callable over tables of Arrow, as Ray Data calls it."""

import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from conftest import CORPUS
from polyhead.modeling import TaskConfig
from polyhead.train.errors import UserError
from polyhead.train.hub import save_folder
from polyhead.train.inference import PolyheadPredictor
from serving_fixtures import SINGLE, make_pipe, make_served, same  # noqa: F401

ROWS = pa.table({"number": range(len(CORPUS)), "text": CORPUS})


def test_rows_come_out_with_the_answers_of_the_pipeline(served, pipe):
    out = PolyheadPredictor(str(served), compute="exact")(ROWS)
    assert out.column_names == ["number", "text", *SINGLE]
    assert out.select(["number", "text"]) == ROWS
    for row, answer in zip(out.to_pylist(), pipe(CORPUS, SINGLE), strict=True):
        for name in SINGLE:
            value = answer[name]
            assert same(row[name], value.tolist() if isinstance(value, np.ndarray) else value)


def test_no_rows_come_out_with_the_columns_of_many(served):
    predictor = PolyheadPredictor(str(served), tasks=["intent", "near"])
    assert predictor(ROWS.slice(0, 0)).schema == predictor(ROWS).schema


def test_pairs_and_choices(make_model, tokenizer_of, tmp_path):
    tasks = {
        "same": TaskConfig(head="sequence_classification", labels=["no", "yes"], pair=True),
        "next": TaskConfig(head="multiple_choice"),
    }
    save_folder(make_model("bert", tasks), tokenizer_of("wordpiece"), tmp_path / "model")
    rows = pa.table({"text": CORPUS, "other": CORPUS[::-1], "some": [CORPUS[:2]] * len(CORPUS)})
    for task, column, lists in (("same", "other", False), ("next", "some", True)):
        predictor = PolyheadPredictor(str(tmp_path / "model"), tasks=[task], text_pair=column)
        others = rows.column(column).to_pylist()
        expected = predictor.pipe(list(zip(CORPUS, others, strict=True)), [task])
        assert same(predictor(rows).column(task).to_pylist(), [one[task] for one in expected])
        with pytest.raises(UserError, match="text-pair: no column" if not lists else "no lists"):
            predictor(
                rows.drop_columns([column])
                if not lists
                else rows.rename_columns(["text", "some", "other"])
            )


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (pa.table({"body": ["a"]}), "text: no column 'text'; the file has: body"),
        (pa.table({"text": ["a", None]}), r"column 'text': no text in row 1 \(1 rows\)"),
        (pa.table({"text": ["a"], "near": [1]}), "choose other tasks"),
        ({"text": ["a"]}, 'rows come as dict; give map_batches batch_format="pyarrow"'),
    ],
)
def test_rows_that_cannot_be_read_are_refused(served, rows, fault):
    predictor = PolyheadPredictor(str(served), tasks=["near"])
    with pytest.raises(UserError, match=fault) as refusal:
        predictor(rows)
    again = pickle.loads(pickle.dumps(refusal.value))  # on its way from a worker
    assert (str(again), again.faults) == (str(refusal.value), refusal.value.faults)


def test_an_unknown_task_is_refused_at_once(served):
    with pytest.raises(UserError, match="unknown task"):
        PolyheadPredictor(str(served), tasks=["intents"])


@pytest.mark.slow
def test_the_predictor_and_the_command_line_import_nothing_of_ray():
    code = """
import sys
sys.modules["ray"] = None
from polyhead.train import cli
from polyhead.train.inference import PolyheadPredictor
import polyhead.train.serving
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
