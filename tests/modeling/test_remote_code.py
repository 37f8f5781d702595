"""The saved folder: bytes, code files, and use where the package is not installed."""

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import polyhead.modeling
import pytest
import torch
from conftest import shake
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from transformers.dynamic_module_utils import get_relative_imports

MODELING = Path(polyhead.modeling.__file__).parent
SOURCES = sorted(MODELING.glob("*.py"))
TRAIN = sorted((MODELING.parent / "train").rglob("*.py"))
SEQUENCE = {"head": "sequence_classification"}
TASKS = {
    "slots": TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"], layers=2),
    "intent": TaskConfig(**SEQUENCE, labels=["a", "b", "c"], activation="tanh"),
    "urgency": TaskConfig(**SEQUENCE, problem_type="regression"),
    "vector": TaskConfig(head="embedding", projection=8),
    "words": TaskConfig(head="masked_lm"),
}
TEXTS = ["Book a table in Paris.", "go"]


def code_files(folder):
    return sorted(path.name for path in Path(folder).glob("*.py"))


def results(model, batch):
    with torch.no_grad():
        out = model(**batch)
    return {**(out.logits or {}), **(out.embeddings or {})}


# ---- saving and loading ----


def test_saving_what_was_loaded_gives_the_same_bytes(kind, tmp_path, make_model):
    make_model(kind, TASKS).save_pretrained(tmp_path / "first")
    again, info = PolyheadModel.from_pretrained(tmp_path / "first", output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    again.save_pretrained(tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        first, second = ((tmp_path / part / name).read_bytes() for part in ("first", "second"))
        assert first == second, name


def test_loaded_weights_are_the_saved_ones(kind, tmp_path, make_model):
    model = make_model(kind, TASKS)
    model.save_pretrained(tmp_path)
    expected = model.state_dict()
    again = PolyheadModel.from_pretrained(tmp_path)
    assert list(again.state_dict()) == list(expected)
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert again.heads["words"].decoder.weight is again.get_input_embeddings().weight
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "heads.words.decoder.weight" not in file.keys()  # noqa: SIM118
        assert "heads.words.decoder.bias" in file.keys()  # noqa: SIM118


def test_tasks_keep_their_order_and_options(tmp_path, make_model):
    make_model("bert", TASKS).save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path)
    assert again.task_names == list(TASKS)
    assert list(again.heads) == list(TASKS)
    assert again.config.tasks == TASKS


def test_half_precision_stays(tmp_path, make_model):
    make_model("bert", TASKS).bfloat16().save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}


def test_shards_hold_the_same_weights(tmp_path, make_model):
    model = make_model("bert", TASKS)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    expected = model.state_dict()
    again = PolyheadModel.from_pretrained(tmp_path)
    assert all(torch.equal(v, expected[name]) for name, v in again.state_dict().items())


def test_a_changed_model_is_saved_as_changed(tmp_path, make_model):
    model = make_model("bert", TASKS)
    model.remove_task("intent")
    model.add_task("mood", TaskConfig(head="embedding"))
    model.save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path)
    assert again.task_names == ["slots", "urgency", "vector", "words", "mood"]


def test_auto_model_gives_the_installed_class(tmp_path, make_model):
    make_model("bert", TASKS).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is PolyheadModel


def test_a_task_added_later_leaves_the_others_bit_identical_after_loading(
    tmp_path, make_model, batch_of
):
    # regression is one dot product: its last bit depends on where the weights lie in memory
    model = make_model("bert", TASKS)
    model.save_pretrained(tmp_path / "before")
    batch = batch_of(model, [9, 5, 12])
    expected = results(PolyheadModel.from_pretrained(tmp_path / "before"), batch)
    for number in range(1, 9):  # names and labels of different length move the weights about
        labels = [str(label) for label in range(number + 1)]
        model.add_task(f"t{'x' * number}", TaskConfig(**SEQUENCE, labels=labels))
        model.save_pretrained(tmp_path / "after")
        actual = results(PolyheadModel.from_pretrained(tmp_path / "after"), batch)
        for name in TASKS:
            assert torch.equal(actual[name], expected[name]), name


# ---- the code in the folder ----


def test_folder_holds_exactly_the_code_that_travels(tmp_path, make_model):
    make_model("bert", TASKS).save_pretrained(tmp_path)
    assert code_files(tmp_path) == [p.name for p in SOURCES if p.name != "__init__.py"]
    for name in code_files(tmp_path):
        assert (tmp_path / name).read_text() == (MODELING / name).read_text()


def imports_of(path):
    """(node, module names) of every import in the file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield node, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, [node.module]


def relative_imports_of(path):
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level > 0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_modeling_imports_torch_transformers_and_the_standard_library_only(path):
    guarded = {
        getattr(inner, "lineno", None)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Try)
        for inner in ast.walk(node)
    }
    for node, names in imports_of(path):
        for name in names:
            top = name.partition(".")[0]
            allowed = {"torch", "transformers", *sys.stdlib_module_names}
            assert top in allowed or (top in ("peft", "safetensors") and node.lineno in guarded), (
                node.lineno,
                name,
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_modeling_imports_its_own_files_one_level_one_a_line(path):
    for node in relative_imports_of(path):
        assert node.level == 1, (node.lineno, "leaves the folder")
        assert node.module is not None, (node.lineno, "from . import x is not copied")
        assert "." not in node.module, (node.lineno, "nested modules are not copied")
        assert (MODELING / f"{node.module}.py").is_file(), (node.lineno, node.module)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_transformers_copies_is_what_is_imported(path):
    # transformers reads imports by regular expression: it misses a second one on a line and takes
    # a line of a docstring for one
    imported = {node.module for node in relative_imports_of(path)}
    assert set(get_relative_imports(path)) == imported


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_name_their_licence_first(path):
    if path.name != "__init__.py":
        assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")


def test_train_reaches_modeling_and_never_the_other_way():
    assert TRAIN
    for path in TRAIN:
        depth = len(path.relative_to(MODELING.parent / "train").parts)
        for node in relative_imports_of(path):
            to_modeling = node.level == depth + 1 and node.module.split(".")[0] == "modeling"
            assert node.level <= depth or to_modeling, (path, node.lineno)
        for node, names in imports_of(path):
            assert not any(n.split(".")[0] in ("modeling", "train") for n in names), node.lineno
    for path in SOURCES:
        assert all(node.level == 1 for node in relative_imports_of(path)), path
        assert not any("polyhead" in name for _, names in imports_of(path) for name in names), path


# ---- in a process where the package is not installed ----

STRANGER = """
import json, sys
folder, batch, out = sys.argv[1:4]
sys.modules["polyhead"] = None
import torch
torch.set_num_threads(int(sys.argv[4]))
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, pipeline
try:
    import polyhead.modeling
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported")
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert "transformers_modules" in type(model).__module__, type(model)
with torch.no_grad():
    found = model(**load_file(batch))
save_file({**found.logits, **found.embeddings}, out + "/logits.safetensors")
model.save_pretrained(out + "/again")
pipe = pipeline(model=folder, trust_remote_code=True)
results = pipe(json.loads(sys.argv[5]), tasks=["intent", "slots", "urgency", "words"])
print(json.dumps([type(pipe).__name__, results]))
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, encoder_folder, tokenizer_of):
    """What a process without the package makes of a saved folder."""
    root = tmp_path_factory.mktemp("stranger")
    experts = {"kind": "ple", "experts": 2}
    model = PolyheadModel.from_encoder(str(encoder_folder("electra")), TASKS, experts=experts)
    shake(model.experts)
    model.save_pretrained(root / "model")
    tokenizer_of("wordpiece").save_pretrained(root / "model")
    ids = torch.randint(5, 160, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    save_file({"input_ids": ids, "attention_mask": mask}, root / "batch.safetensors")
    paths = [str(root / "model"), str(root / "batch.safetensors"), str(root)]
    done = subprocess.run(
        [
            sys.executable, "-I", "-c", STRANGER, *paths,
            str(torch.get_num_threads()), json.dumps(TEXTS),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"},
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_stranger_gets_bit_identical_results(stranger):
    root, _ = stranger
    model = PolyheadModel.from_pretrained(root / "model")
    expected = results(model, load_file(root / "batch.safetensors"))
    actual = load_file(root / "logits.safetensors")
    assert set(actual) == set(TASKS)
    for name in TASKS:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.slow
def test_a_stranger_gets_the_pipeline(stranger, tokenizer_of):
    root, (name, answers) = stranger
    assert name == "PolyheadPipeline"
    model = PolyheadModel.from_pretrained(root / "model")
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer_of("wordpiece"))
    assert answers == pipe(TEXTS, tasks=["intent", "slots", "urgency", "words"])


@pytest.mark.slow
def test_a_stranger_saves_the_same_folder(stranger):
    root, _ = stranger
    assert code_files(root / "again") == code_files(root / "model")
    first, again = (root / part / "model.safetensors" for part in ("model", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_forward_takes_no_catch_all_arguments():
    # an argument that some encoder knows and we do not would be swallowed without a word
    kinds = {p.kind for p in inspect.signature(PolyheadModel.forward).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
