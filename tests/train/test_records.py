"""JSON of runs and models that is damaged is refused in one message that names the file."""

import copy

import pytest
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.train.artifacts import read_json, write_json
from polyhead.train.errors import UserError
from polyhead.train.hub import save_folder
from polyhead.train.hub.card import read_scores
from polyhead.train.inference.exported import load_any
from polyhead.train.inference.load import load_model
from polyhead.train.records import MODEL_SCORES, PROOFS, RUN_SCORES, TRAININGS, read_record
from polyhead.train.reports import report

TRAINING = {
    "encoder": None,
    "tasks": {"a1": {"data": None, "license": None, "rows": {"train": 3}, "scored_on": "test"}},
    "card": {"language": ["en"], "license": "mit", "limits": None},
    "recipe": {},
    "steps": 3,
    "epochs": 1.0,
    "seconds": 2,
    "resumed": False,
    "processes": 1,
    "threads": 1,
    "device": "cpu",
    "machine": "Linux",
    "versions": {"torch": "2"},
    "gradient_cosines": [{"tasks": ["a1", "b1"], "mean": 0.1, "negative": 0.0, "compared": 3}],
}
PROOF = {
    "change": "added",
    "changed": ["a1"],
    "encoder": "0",
    "tasks": {"a1": {"weights": "1", "logits": "2"}},
    "made_with": {},
}
SHARE = {"share": 0.5, "low": 0.1, "high": 0.9, "of": 4}
DECISIONS = {
    "a1": {"calibration": 1.5, "ece_before": 0.2, "ece": 0.1, "abstain": 0.4, "kept": SHARE},
    "b1": {"thresholds": {"x": 0.3}, "precision": SHARE},
}
SCORES = {"a1": {"f1_macro": 0.5, "per_type": {}, "mcc": None}}
RUN = {"tasks": SCORES, "macro": 0.5, "splits": {"a1": "test"}, "decisions": DECISIONS}


def positions(value, path=()):
    """Every place in a JSON value."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else []
    parts = enumerate(value) if isinstance(value, list) else parts
    for key, part in parts:
        yield from positions(part, (*path, key))


def exchanged(value, path, new):
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


@pytest.mark.parametrize(
    ("value", "shape"),
    [([TRAINING], TRAININGS), ([PROOF], PROOFS), (SCORES, MODEL_SCORES), (RUN, RUN_SCORES)],
    ids=["training.json", "proof.json", "scores.json", "scores.json of a run"],
)
def test_each_exchanged_value_is_named(value, shape, tmp_path):
    path = tmp_path / "a.json"
    write_json(path, value)
    assert read_record(path, shape) == value
    for position in positions(value):
        write_json(path, exchanged(value, position, ["odd", 3]))
        if "recipe" in position or "made_with" in position:
            continue
        with pytest.raises(UserError, match=r"a.json: \d fault"):
            read_record(path, shape)
    assert read_record(tmp_path / "none.json", shape, "default") == "default"


def test_a_missing_key_is_named(tmp_path):
    write_json(tmp_path / "a.json", [{k: v for k, v in TRAINING.items() if k != "steps"}])
    with pytest.raises(UserError, match=r"0.steps: .*; field required"):
        read_record(tmp_path / "a.json", TRAININGS)


@pytest.mark.parametrize(
    "text", ["null", "7", "[]", "{", "", "[" * 100_000, "\x00", '{"a":1,"a":1}']
)
def test_a_file_that_is_damaged_is_named(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError) as stopped:
        read_json(path, {})
    assert str(stopped.value).startswith(f"{path}: 1 fault\n  - ")
    assert len(str(stopped.value).splitlines()) == 2


def test_logs_may_hold_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert str(read_json(tmp_path / "a.json", {})["loss"]) == "nan"
    assert read_json(tmp_path / "b.json", {"none": True}) == {"none": True}


def test_scores_of_entities_are_checked_too(tmp_path):
    row = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3}
    good = {"tags": {"entity_f1": 1.0, "per_type": {"city": row}}}
    write_json(tmp_path / "scores.json", good)
    assert read_scores(tmp_path) == good
    for path in positions(row):
        value = exchanged(good, ("tags", "per_type", "city", *path), None)
        write_json(tmp_path / "scores.json", value)
        with pytest.raises(UserError, match=rf"tags.per_type.city.{path[0]}: None"):
            read_scores(tmp_path)


# ---- a run ----


@pytest.fixture
def run(tmp_path):
    task_report = {"task": "a1", "kind": "embedding", "rows": 3, "split": "test"}
    write_json(tmp_path / "scores.json", RUN)
    write_json(tmp_path / "reports/a1.json", task_report)
    write_json(tmp_path / "log_history.json", [{"loss": 1.0, "step": 1, "epoch": 1.0}])
    return tmp_path


RUN_DAMAGES = {
    "scores: null": ("scores.json", None),
    "scores: a list": ("scores.json", [1]),
    "scores: no splits": ("scores.json", {"tasks": SCORES, "macro": 1.0}),
    "scores: no split": ("scores.json", {**RUN, "splits": {}}),
    "scores: tasks null": ("scores.json", {**RUN, "tasks": None}),
    "scores: a task null": ("scores.json", {**RUN, "tasks": {"a1": None}}),
    "scores: a list as score": ("scores.json", {**RUN, "tasks": {"a1": {"mcc": [1]}}}),
    "scores: macro": ("scores.json", {**RUN, "macro": "high"}),
    "scores: a path as task": ("scores.json", {**RUN, "tasks": {"../../x": {}}}),
    "log: null": ("log_history.json", None),
    "log: numbers": ("log_history.json", [1, 2]),
    "report: null": ("reports/a1.json", None),
    "report: a list": ("reports/a1.json", []),
    "report: of another task": (
        "reports/a1.json",
        {"task": "../../../x", "kind": "embedding", "rows": 3, "split": "test"},
    ),
    "report: keys": ("reports/a1.json", {"task": "a1", "confusion": {}}),
    "report: rows": (
        "reports/a1.json",
        {"task": "a1", "kind": "embedding", "rows": "3", "split": "test"},
    ),
    "report: tables": (
        "reports/a1.json",
        {"task": "a1", "kind": "x", "rows": 3, "split": "test", "entities": {"city": None}},
    ),
}


@pytest.mark.parametrize("name", RUN_DAMAGES)
def test_a_damaged_file_of_a_run_is_named(name, run):
    report(run)
    path, value = RUN_DAMAGES[name]
    write_json(run / path, value)
    before = {p for p in run.parent.rglob("*") if p.is_file()}
    with pytest.raises(UserError) as stopped:
        report(run)
    assert str(stopped.value).startswith(str(run / path))
    assert {p for p in run.parent.rglob("*") if p.is_file()} == before


# ---- a model ----


@pytest.fixture
def folder(tmp_path, make_model, tokenizer_of):
    model = make_model("bert", {"a1": TaskConfig(head="embedding")})
    save_folder(model, tokenizer_of("wordpiece"), tmp_path, metrics=SCORES, runs=[TRAINING])
    return tmp_path


CONFIGS = ["null", "[]", '"x"', "[" * 100_000, "{", "", '{"model_type": "bert"}', "{}"]


@pytest.mark.parametrize("text", CONFIGS, ids=lambda text: text[:12])
def test_a_damaged_config_is_one_message(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError) as stopped:
        load_model(folder)
    assert str(stopped.value).startswith(f"{folder}: 1 fault")


def test_a_model_without_its_tokenizer_is_refused_with_what_to_do(folder):
    for path in [*folder.glob("tokenizer*"), folder / "modules.json"]:
        path.unlink()
    PolyheadModel.from_pretrained(folder)  # save_pretrained writes no tokenizer
    with pytest.raises(UserError, match=r"the tokenizer cannot be loaded .*save_pretrained"):
        load_model(folder)


EXPORT = {"kind": "onnx", "inputs": ["input_ids"], "tasks": ["a1"], "adapters": {"a1": None}}
EXPORT["usable_length"] = 64
EXPORTS = {
    "unknown kind": ({**EXPORT, "kind": "../evil"}, "kind is '../evil'; allowed: onnx, openvino"),
    "kind of another type": (
        {**EXPORT, "kind": ["onnx"]},
        "kind: ['onnx']; input should be a valid string",
    ),
    "no kind": ({}, "kind: {}; field required"),
    "a list": ([], "input should be an object; got []"),
    "null": (None, "input should be an object; got None"),
    "no graph": (EXPORT, "model.onnx is missing"),
    "no graph of OpenVINO": ({**EXPORT, "kind": "openvino"}, "model.xml is missing"),
    "tasks": ({**EXPORT, "tasks": "a1"}, "tasks: 'a1'; input should be a valid array"),
    "length": (
        {**EXPORT, "usable_length": "64"},
        "usable_length: '64'; input should be a valid integer",
    ),
    "adapters": ({**EXPORT, "adapters": {}}, "adapters and tasks name other tasks"),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_damaged_export_is_refused(name, folder):
    value, expected = EXPORTS[name]
    write_json(folder / "export.json", value)
    with pytest.raises(UserError) as stopped:
        load_any(folder)
    assert expected in str(stopped.value)


def test_a_graph_that_is_none_is_refused(folder):
    pytest.importorskip("onnxruntime")
    write_json(folder / "export.json", EXPORT)
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"the graph cannot be opened .*copy the folder again"):
        load_any(folder)
    write_json(folder / "export.json", {**EXPORT, "tasks": ["b1"], "adapters": {"b1": None}})
    with pytest.raises(UserError, match=r"export.json and config.json name other tasks"):
        load_any(folder)
