"""An encoder's folder that is not whole gives no model: nothing is filled with random numbers."""

import shutil

import pytest
import torch
from polyhead.modeling import PolyheadModel, TaskConfig
from safetensors.torch import load_file, save_file

TASKS = {"intent": TaskConfig(head="sequence_classification", labels=["a", "b"])}
QUERY = "encoder.layer.1.attention.self.query.weight"
WORDS = "embeddings.word_embeddings.weight"


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def exchanged(key, change):
    return lambda state: {n: change(v) if n == key else v for n, v in state.items()}


def without_a_layer(state):
    return {name: value for name, value in state.items() if ".layer.1." not in name}


DAMAGES = {
    "a weight": (without(QUERY), f"missing: {QUERY}"),
    "a bias": (without("encoder.layer.0.output.LayerNorm.bias"), "missing: encoder.layer.0"),
    "a layer": (without_a_layer, "missing: .*encoder.layer.1"),
    "the embeddings": (without(WORDS), f"missing: {WORDS}"),
    "a shape": (exchanged(QUERY, lambda w: w[:4].clone()), "(?i)shape|mismatch"),
    "NaN": (exchanged(QUERY, lambda w: w * float("nan")), "NaN or infinite"),
    "infinity": (exchanged(WORDS, lambda w: w / 0.0), "NaN or infinite"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_encoder_is_refused(name, encoder_folder, tmp_path):
    change, message = DAMAGES[name]
    shutil.copytree(encoder_folder("bert"), tmp_path / "encoder")
    path = tmp_path / "encoder" / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=message):
        PolyheadModel.from_encoder(str(tmp_path / "encoder"), tasks=TASKS)


def test_an_encoder_without_its_pooler_is_whole(encoder_folder, tmp_path):
    shutil.copytree(encoder_folder("bert"), tmp_path / "encoder")
    path = tmp_path / "encoder" / "model.safetensors"
    state = {n: v for n, v in load_file(path).items() if "pooler" not in n}
    save_file(state, path, metadata={"format": "pt"})
    model = PolyheadModel.from_encoder(str(tmp_path / "encoder"), tasks=TASKS)
    assert torch.equal(model.encoder.state_dict()[QUERY], state[QUERY])


def test_a_pickle_is_not_read(encoder_folder, tmp_path):
    shutil.copytree(encoder_folder("bert"), tmp_path / "encoder")
    path = tmp_path / "encoder" / "model.safetensors"
    torch.save(load_file(path), tmp_path / "encoder" / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(OSError, match="safetensors"):
        PolyheadModel.from_encoder(str(tmp_path / "encoder"), tasks=TASKS)
