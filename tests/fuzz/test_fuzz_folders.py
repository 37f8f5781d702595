"""A saved folder with one value exchanged is refused by one message or answers as before."""

import json
import shutil

import pytest
import torch
from conftest import tiny_encoder_config
from fuzzing import TREES, examples, in_time, places_in, value_at
from hypothesis import assume, given
from hypothesis import strategies as st
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from polyhead.train.adapters import attach_adapters
from polyhead.train.errors import UserError
from polyhead.train.records import PROOFS, RUN_SCORES, TASK_REPORT, TRAININGS, read_record

pytestmark = pytest.mark.fuzz

IDS = torch.tensor([[2, 11, 12, 13, 3], [2, 14, 15, 16, 3]])
CONFIG, ADAPTER = "config.json", "adapters/slots/adapter_config.json"


@torch.no_grad()
def logits(model):
    return {name: values.clone() for name, values in model.eval()(IDS).logits.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, and the logits of the model in it."""
    torch.manual_seed(0)
    tasks = {
        "intent": TaskConfig(head="sequence_classification", labels=["a", "b"]),
        "slots": TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"]),
    }
    config = tiny_encoder_config("bert")
    config.dtype = torch.float32
    model = PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks))
    attach_adapters(model, {"slots": {"r": 4, "lora_alpha": 8, "init_lora_weights": False}})
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return folder, logits(model)


def kind(value):
    """JSON's type of a value; another value of the same type may be another model."""
    numbers = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if numbers else type(value).__name__


def try_file(saved, tmp_path_factory, name, text):
    """Logits of the folder with another file, or None where it is refused."""
    folder, _ = saved
    changed = tmp_path_factory.mktemp("changed") / "model"
    shutil.copytree(folder, changed)
    (changed / name).write_text(text)
    try:
        with in_time():
            try:
                model = PolyheadModel.from_pretrained(changed)
            except (ValueError, ImportError) as error:
                assert str(error)
                return None
            return logits(model)
    finally:
        shutil.rmtree(changed.parent)


@examples(500)
@given(data=st.data(), name=st.sampled_from([CONFIG, ADAPTER]), value=TREES)
def test_one_value_exchanged(saved, tmp_path_factory, data, name, value):
    folder, expected = saved
    config = json.loads((folder / name).read_text())
    place = data.draw(st.sampled_from(sorted(places_in(config), key=str)))
    before = value_at(config, place)
    assume(kind(value) != kind(before))
    value_at(config, place[:-1])[place[-1]] = value
    found = try_file(saved, tmp_path_factory, name, json.dumps(config))
    if found is not None:
        assert found.keys() == expected.keys(), place
        assert all(torch.equal(found[task], expected[task]) for task in expected), place


@examples(200)
@given(data=st.data(), name=st.sampled_from([CONFIG, ADAPTER]))
def test_one_value_left_out(saved, tmp_path_factory, data, name):
    folder, expected = saved
    config = json.loads((folder / name).read_text())
    place = data.draw(st.sampled_from(sorted(places_in(config), key=str)))
    del value_at(config, place[:-1])[place[-1]]
    found = try_file(saved, tmp_path_factory, name, json.dumps(config))
    if found is not None:
        same = all(torch.equal(found[task], expected[task]) for task in expected if task in found)
        assert same and found.keys() == expected.keys(), place  # noqa: PT018


@examples(60)
@given(
    text=st.text(st.sampled_from('{}[]",:0a\\ue\n'), max_size=30),
    name=st.sampled_from([CONFIG, ADAPTER]),
)
def test_any_text_as_config(saved, tmp_path_factory, text, name):
    assert try_file(saved, tmp_path_factory, name, text) is None


@examples(400)
@given(value=TREES, kind=st.sampled_from([PROOFS, RUN_SCORES, TASK_REPORT, TRAININGS]))
def test_any_json_as_a_file_of_a_run(tmp_path_factory, value, kind):
    path = tmp_path_factory.getbasetemp() / "record.json"
    path.write_text(json.dumps(value))
    try:
        assert read_record(path, kind) == value
        assert value == []
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
