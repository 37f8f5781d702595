"""A config.json that means harm, or is broken, is refused before anything is made of it."""

import json
import resource
import subprocess
import sys

import pytest
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig

TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["a", "b"]),
    "near": TaskConfig(head="embedding"),
}
HUGE = 10**12


def of_task(**keys):
    return lambda config: config["tasks"]["intent"].update(keys)


def of_encoder(**keys):
    return lambda config: config["encoder_config"].update(keys)


def of_config(**keys):
    return lambda config: config.update(keys)


def rename(name):
    def change(config):
        config["tasks"][name] = config["tasks"].pop("intent")
        config["task_names"] = [name, "near"]

    return change


CASES = {
    "task name that leaves the folder": (rename("../../x"), "task name '../../x': use lower-case"),
    "task name with a dot": (rename("a.b"), "task name 'a.b': use lower-case"),
    "adapter that leaves the folder": (
        of_config(adapters=["../../etc"]),
        "adapter name '../../etc': use lower-case",
    ),
    "adapter by an absolute path": (of_config(adapters=["/etc"]), "adapter name '/etc'"),
    "adapter that is no string": (of_config(adapters=[7]), "adapter name 7: use lower-case"),
    "unknown kind of head": (of_task(head="exec"), "head is 'exec'; allowed: embedding"),
    "unknown key": (of_task(evil=1), "task 'intent': unknown key evil; allowed: head"),
    "labels of a wrong type": (of_task(labels="ab"), "labels is 'ab'; it must be"),
    "labels that are no strings": (of_task(labels=[1, 2]), "labels is [1, 2]; it must be"),
    "number that is a string": (of_task(dropout="0.1"), "dropout is '0.1'; it must be float"),
    "flag that is a string": (of_task(pair="yes"), "pair is 'yes'; it must be bool"),
    "task that is a list": (
        lambda config: config["tasks"].update(intent=[]),
        "task 'intent' is []; it must be a dict",
    ),
    "tasks that are a list": (of_config(tasks=[1]), "tasks is [1]; it must be a dict"),
    "projection without bounds": (
        lambda config: config["tasks"]["near"].update(projection=HUGE),
        f"projection is {HUGE}; allowed: 1 to",
    ),
    "encoder too wide": (of_encoder(hidden_size=HUGE), f"hidden_size is {HUGE}; a number up to"),
    "encoder too deep": (of_encoder(num_hidden_layers=HUGE), "num_hidden_layers is"),
    "vocabulary too large": (of_encoder(vocab_size=HUGE), "vocab_size is"),
    "positions without bounds": (
        of_encoder(max_position_embeddings=HUGE),
        "max_position_embeddings is",
    ),
    "size that is a string": (of_encoder(hidden_size="32"), "hidden_size is '32'"),
}


@pytest.fixture
def folder(make_model, tmp_path):
    make_model("bert", TASKS).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_config_is_refused_with_what_is_wrong(case, folder):
    change, expected = CASES[case]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as stopped:
        PolyheadModel.from_pretrained(folder)
    assert expected in str(stopped.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB


def test_remote_code_of_the_encoder_is_dropped(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["encoder_config"] |= {
        "trust_remote_code": True,
        "auto_map": {"AutoModel": "evil/repo--evil.Evil"},
    }
    path.write_text(json.dumps(config))
    loaded = PolyheadConfig.from_pretrained(folder)
    assert "auto_map" not in loaded.encoder_config.to_dict()
    assert "trust_remote_code" not in loaded.encoder_config.to_dict()
    model = PolyheadModel.from_pretrained(folder)
    assert type(model.encoder).__module__.startswith("transformers.models.bert")


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not to be read")
    with pytest.raises(OSError, match="safetensors"):
        PolyheadModel.from_pretrained(folder)


@pytest.mark.slow
def test_loading_and_use_open_no_connection_and_write_nothing(folder, tmp_path):
    script = """
import sys
folder = sys.argv[1]
import torch, peft
from transformers import AutoModel
from polyhead.modeling import PolyheadModel
seen = []
def watch(event, args):
    if event in ("socket.connect", "subprocess.Popen", "os.system", "exec_command"):
        seen.append((event, str(args)))
    if event == "open" and args[1] and set(str(args[1])) & set("wax+"):
        seen.append((event, str(args)))
sys.addaudithook(watch)
model = PolyheadModel.from_pretrained(folder)
model(torch.tensor([[1, 2, 3]]))
assert not seen, seen
"""
    process = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
