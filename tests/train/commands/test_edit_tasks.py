"""Tasks in and out of a finished model: what comes, what goes, and what stays to the bit.

A proof needs two fresh processes. One fixture pays for them; the other tests take the same hashes
in this process.
"""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ENCODERS, shake_heads
from peft import LoraConfig, get_peft_model
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.train.adapters import attach_adapters
from polyhead.train.artifacts import UNFINISHED
from polyhead.train.commands import edit_tasks as tasks
from polyhead.train.commands.setup import prepare
from polyhead.train.hub import save_folder
from polyhead.train.hub.proof import fingerprint, fresh_fingerprint
from safetensors.torch import load_file, save_file
from train_helpers import (
    QUIET,
    files_of,
    message_of,
    messages,
    private_cache,  # noqa: F401
    run_cli,
    set_key,
    write_recipe,
    write_splits,
)
from transformers import AutoModel

SEQUENCE, TOKENS = "sequence_classification", "token_classification"
OLD = ["intent", "slots", "tone", "urgency"]
METRICS = {"intent": {"accuracy": 0.25}, "slots": {"entity_f1": 0.5}}
LORA = {"r": 2, "lora_alpha": 4, "init_lora_weights": False}
TEXT = {"data_files": files_of("messages"), "text": "text"}
TOPICS = {
    "head": SEQUENCE,
    "problem_type": "multi_label_classification",
    "data": {**TEXT, "label": "topics"},
}
TRAINING = {
    **QUIET,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
}
HEADS = {
    "intent": "heads.intent.out.weight",
    "slots": "heads.slots.out.bias",
    "urgency": "heads.urgency.out.weight",
}


TARGETS = {"bert": ["query", "value"], "modernbert": ["Wqkv"], "llama": ["q_proj", "v_proj"]}


def recipe_of(**new: dict) -> dict:
    return copy.deepcopy({"tasks": new, "training": TRAINING, "output_dir": "${RECIPE_DIR}/out"})


def files(folder: Path) -> dict[str, str]:
    """Every file of a folder by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def results(folder: Path) -> dict[str, torch.Tensor]:
    """What each task makes of two texts, the shorter one padded."""
    ids = torch.arange(5, 25).view(2, 10)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        model = PolyheadModel.from_pretrained(folder)
        return model(input_ids=ids, attention_mask=mask).logits


def hashes_here(folder: Path) -> dict:
    """Hashes without a process of their own: the same ones, sooner."""
    return fingerprint(PolyheadModel.from_pretrained(folder))


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(tasks, "fresh_fingerprint", hashes_here)


only_bert = pytest.mark.parametrize("given", ["bert"], indirect=True)


@pytest.fixture(scope="module", params=list(TARGETS))
def given(request, tmp_path_factory, encoder_folder, tokenizer_of) -> SimpleNamespace:
    """A finished model: two tasks on one adapter, one on another, one without."""
    folder = tmp_path_factory.mktemp(request.param)
    write_splits(folder, "messages", messages)
    model = PolyheadModel.from_encoder(
        str(encoder_folder(request.param)),
        tasks={
            "intent": TaskConfig(head=SEQUENCE, labels=["book", "cancel", "play"]),
            "slots": TaskConfig(head=TOKENS, labels=["O", "B-city", "I-city"]),
            "tone": TaskConfig(head=SEQUENCE, labels=["plain", "rude"], pooling="cls"),
            "urgency": TaskConfig(head=SEQUENCE, problem_type="regression"),
        },
    )
    shake_heads(model)
    torch.manual_seed(0)
    sections = {"intent": {**LORA, "name": "first"}, "tone": "first", "slots": LORA}
    attach_adapters(model, {**sections, "urgency": None})
    tokenizer = tokenizer_of(ENCODERS[request.param][0])
    save_folder(model, tokenizer, folder / "model", metrics=METRICS)
    return SimpleNamespace(
        folder=folder, model=folder / "model", files=files(folder / "model"), kind=request.param
    )


@pytest.fixture(scope="module")
def added(given) -> SimpleNamespace:
    """The command run once: a new task with an adapter of its own."""
    recipe = write_recipe(
        given.folder / "topics.yaml", recipe_of(topics={**TOPICS, "adapter": {"r": 2}})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "fresh_fingerprint", hashes_here)
        code = run_cli("add-task", given.model, recipe)
    return SimpleNamespace(
        code=code, recipe=recipe, out=given.folder / "out", model=given.folder / "out/model"
    )


@pytest.fixture(scope="module")
def again(given, added, encoder_folder) -> SimpleNamespace:
    """More tasks on top: on an old adapter, without one, and on one that plain PEFT made."""
    encoder = AutoModel.from_pretrained(encoder_folder(given.kind))
    config = LoraConfig(r=3, target_modules=TARGETS[given.kind], init_lora_weights=False)
    get_peft_model(encoder, config).save_pretrained(given.folder / "peft")
    recipe = recipe_of(
        hurry={
            "head": SEQUENCE,
            "problem_type": "regression",
            "data": {**TEXT, "label": "urgency"},
            "adapter": "first",
        },
        words={"head": "masked_lm", "data": TEXT},
        wish={
            "head": SEQUENCE,
            "data": {**TEXT, "label": "intent"},
            "adapter": {"path": "${RECIPE_DIR}/peft"},
        },
    )
    recipe["output_dir"] = "${RECIPE_DIR}/again"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "fresh_fingerprint", hashes_here)
        code = run_cli("add-task", added.model, write_recipe(given.folder / "more.yaml", recipe))
    return SimpleNamespace(code=code, model=given.folder / "again/model")


def adapter_file(folder: Path, name: str) -> Path:
    return folder / "adapters" / name / "adapter_model.safetensors"


def encoder_of(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return {key: value for key, value in weights.items() if key.startswith("encoder.")}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit, with the same names."""
    assert sorted(one) == sorted(other)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


# ---- one task more ----


@pytest.mark.slow
@only_bert
def test_a_process_of_its_own_finds_the_same_hashes(given):
    assert fresh_fingerprint(given.model) == hashes_here(given.model)


class TestAddTask:
    def test_the_old_tasks_logits_are_the_same_to_the_bit(self, given, added):
        assert added.code == 0
        before, after = results(given.model), results(added.model)
        assert list(after) == [*OLD, "topics"]
        assert_same(before, {name: after[name] for name in OLD})

    @only_bert
    @pytest.mark.slow
    def test_they_are_for_a_stranger_too(self, given, added, tmp_path):
        code = f"""
import sys
sys.modules["polyhead"] = None
import torch
from transformers import AutoModel
torch.set_num_threads({torch.get_num_threads()})
ids = torch.arange(5, 25).view(2, 10)
mask = torch.ones_like(ids)
mask[1, 6:] = 0
for number, folder in enumerate(sys.argv[1:3]):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        torch.save(model(input_ids=ids, attention_mask=mask).logits, f"{{number}}.pt")
"""
        subprocess.run(
            [sys.executable, "-c", code, str(given.model), str(added.model)],
            check=True,
            cwd=tmp_path,
            env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        )
        before, after = (torch.load(tmp_path / f"{number}.pt") for number in (0, 1))
        assert_same(before, results(given.model))
        assert_same(before, {name: after[name] for name in OLD})

    def test_only_the_new_head_and_its_adapter_can_train(self, given, added):
        model = prepare(added.recipe, onto=given.model).model
        training = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {n for n in training if not n.startswith("encoder.")} == {
            "heads.topics.out.weight",
            "heads.topics.out.bias",
        }
        adapter = {n for n in training if n.startswith("encoder.")}
        assert adapter
        assert all(".topics." in name for name in adapter)

    def test_they_did_train(self, given, added):
        start = prepare(added.recipe, onto=given.model).model.state_dict()
        end = PolyheadModel.from_pretrained(added.model).state_dict()
        assert start.keys() == end.keys()
        moved = {key for key in start if not torch.equal(start[key], end[key])}
        assert moved == {
            key for key in start if key.startswith("heads.topics.") or ".topics." in key
        }

    def test_encoder_and_old_adapters_are_the_same_on_disk(self, given, added):
        assert_same(encoder_of(given.model), encoder_of(added.model))
        for name in ("first", "slots"):
            one, other = (adapter_file(folder, name) for folder in (given.model, added.model))
            assert one.read_bytes() == other.read_bytes()

    def test_the_given_model_is_not_touched(self, given, added):
        assert files(given.model) == given.files

    def test_the_folder_is_as_it_was_but_for_the_new_adapter_and_the_proof(self, given, added):
        new = set(files(added.model)) - set(given.files)
        assert {name for name in new if name.startswith("plots/")} == {
            f"plots/topics_{what}.png" for what in ("labels", "map", "reliability")
        }
        assert {name for name in new if not name.startswith("plots/")} == {
            "history.json",
            "proof.json",
            "training.json",
            *(f"adapters/topics/{n}" for n in ("adapter_config.json", "adapter_model.safetensors")),
        }
        found = {path.name for path in added.out.iterdir()}
        assert found == {"log_history.json", "model", "reports", "scores.json"}

    def test_the_proof_holds_the_hashes_of_the_old_tasks(self, given, added):
        (entry,) = json.loads((added.model / "proof.json").read_text())
        expected = hashes_here(given.model)
        assert entry.pop("change") == "added"
        assert entry.pop("changed") == ["topics"]
        assert entry == expected
        assert sorted(entry["tasks"]) == OLD

    def test_the_card_shows_the_proof(self, added):
        (entry,) = json.loads((added.model / "proof.json").read_text())
        card = (added.model / "README.md").read_text()
        assert "## Added: `topics`\n" in card
        for name in OLD:
            weights, logits = (entry["tasks"][name][part][:16] for part in ("weights", "logits"))
            assert f"| `{name}` | `{weights}` | `{logits}` |" in card

    def test_old_scores_are_kept_and_the_new_ones_added(self, added):
        scores = json.loads((added.out / "scores.json").read_text())
        assert list(scores["tasks"]) == ["topics"]
        kept = json.loads((added.model / "scores.json").read_text())
        assert kept == {**METRICS, "topics": scores["tasks"]["topics"]}
        assert list(kept["topics"]) == ["f1_micro", "f1_macro"]


@pytest.mark.slow
class TestAddTaskAgain:
    def test_the_second_proof_stands_behind_the_first(self, added, again):
        assert again.code == 0
        first, second = json.loads((again.model / "proof.json").read_text())
        assert [first] == json.loads((added.model / "proof.json").read_text())
        assert second["changed"] == ["hurry", "wish", "words"]
        assert sorted(second["tasks"]) == sorted([*OLD, "topics"])
        card = (again.model / "README.md").read_text()
        assert card.index("## Added: `topics`") < card.index("## Added: `hurry`, `wish`, `words`")

    def test_all_tasks_so_far_are_the_same_to_the_bit(self, given, added, again):
        first, second, third = (results(m) for m in (given.model, added.model, again.model))
        assert list(third) == [*OLD, "topics", "hurry", "wish", "words"]
        assert_same(second, {name: third[name] for name in second})
        assert_same(first, {name: third[name] for name in first})
        assert_same(encoder_of(added.model), encoder_of(again.model))

    def test_an_old_adapter_that_a_new_task_reads_stays_frozen(self, given, again):
        model = PolyheadModel.from_pretrained(again.model)
        assert model.config.tasks["hurry"].adapter == "first"
        assert model.config.tasks["words"].adapter is None
        assert sorted(model.loaded_adapters) == ["first", "slots", "topics", "wish"]
        one, other = (adapter_file(folder, "first") for folder in (given.model, again.model))
        assert one.read_bytes() == other.read_bytes()

    def test_an_adapter_of_plain_peft_trains_on(self, given, again):
        start = load_file(given.folder / "peft/adapter_model.safetensors")
        end = load_file(adapter_file(again.model, "wish"))
        assert start.keys() == end.keys()
        moved = [(start[key] - end[key]).abs().max() for key in start]
        assert 0 < max(moved) < 0.2  # from there, by a few steps of 0.01, and not from new weights


# ---- one task less ----


@pytest.fixture(scope="module")
def removed(given, again) -> SimpleNamespace:
    """Gone: a task whose adapter others read, and one with an adapter of its own."""
    before, output = files(again.model), given.folder / "removed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "fresh_fingerprint", hashes_here)
        code = run_cli("remove-task", again.model, "slots", "intent", "--output", output)
    return SimpleNamespace(code=code, model=output, source=again.model, before=before)


class TestRemoveTask:
    def test_the_other_tasks_are_the_same_to_the_bit(self, removed):
        assert removed.code == 0
        before, after = results(removed.source), results(removed.model)
        assert list(after) == ["tone", "urgency", "topics", "hurry", "wish", "words"]
        assert_same(after, {name: before[name] for name in after})
        assert_same(encoder_of(removed.source), encoder_of(removed.model))

    def test_heads_go_and_adapters_that_nobody_reads(self, removed):
        keys = load_file(removed.model / "model.safetensors")
        assert {key.split(".")[1] for key in keys if key.startswith("heads.")} == {
            "tone", "urgency", "topics", "hurry", "wish", "words",
        }  # fmt: skip
        folders = sorted(path.name for path in (removed.model / "adapters").iterdir())
        assert folders == ["first", "topics", "wish"]
        for name in folders:
            one, other = (adapter_file(f, name) for f in (removed.source, removed.model))
            assert one.read_bytes() == other.read_bytes()

    def test_the_given_model_is_not_touched(self, removed):
        assert files(removed.source) == removed.before

    def test_proof_card_and_scores_say_so(self, removed):
        entries = json.loads((removed.model / "proof.json").read_text())
        assert [(e["change"], e["changed"]) for e in entries] == [
            ("added", ["topics"]),
            ("added", ["hurry", "wish", "words"]),
            ("removed", ["intent", "slots"]),
        ]
        left = ["hurry", "tone", "topics", "urgency", "wish", "words"]
        assert sorted(entries[-1]["tasks"]) == left
        assert "## Removed: `intent`, `slots`\n" in (removed.model / "README.md").read_text()
        scores = json.loads((removed.model / "scores.json").read_text())
        assert sorted(scores) == ["hurry", "topics", "wish", "words"]

    @only_bert
    def test_a_task_named_twice_is_removed_once(self, given, tmp_path, in_process):
        assert run_cli("remove-task", given.model, "tone", "tone", "--output", tmp_path / "m") == 0
        (entry,) = json.loads((tmp_path / "m/proof.json").read_text())
        assert entry["changed"] == ["tone"]


# ---- the proof computed again ----


@pytest.fixture
def copied(added, tmp_path) -> Path:
    """A copy of the model with a proof, to be spoilt."""
    return Path(shutil.copytree(added.model, tmp_path / "copy"))


def flip(path: Path, key: str) -> None:
    """Change one weight in a file."""
    weights = load_file(path)
    weights[key].view(-1)[0] += 1e-6 + weights[key].view(-1)[0].abs() * 1e-6
    save_file(weights, path, metadata={"format": "pt"})


@only_bert
class TestVerify:
    def test_a_model_that_is_what_its_proof_says_passes(self, added, capsys, in_process):
        assert run_cli("inspect", added.model, "--verify", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {"tasks": OLD, "logits_compared": True}

    def test_so_does_one_with_tasks_removed(self, removed, capsys, in_process):
        assert run_cli("inspect", removed.model, "--verify") == 0
        tasks_left = "tone, urgency, topics, hurry, wish, words"
        assert capsys.readouterr().out.splitlines() == [
            f"{tasks_left}: weights as the proof says",
            "logits: as the proof says",
        ]

    @pytest.mark.parametrize("task", HEADS)
    def test_one_weight_of_a_head_is_enough(self, copied, capsys, in_process, task):
        flip(copied / "model.safetensors", HEADS[task])
        assert run_cli("inspect", copied, "--verify") == 2
        said = message_of(capsys.readouterr().err)
        assert f"  - task {task}: its weights changed" in said
        assert not any(f"task {other}:" in line for line in said for other in OLD if other != task)

    def test_one_weight_of_an_adapter_is_told_of_every_task_that_reads_it(
        self, copied, capsys, in_process
    ):
        path = adapter_file(copied, "first")
        flip(path, sorted(load_file(path))[0])
        assert run_cli("inspect", copied, "--verify") == 2
        said = capsys.readouterr().err
        assert "task intent: its weights changed" in said
        assert "task tone: its weights changed" in said
        assert "slots" not in said
        assert "urgency" not in said

    def test_one_weight_of_the_encoder_is_told(self, copied, capsys, in_process):
        path = copied / "model.safetensors"
        flip(path, sorted(encoder_of(copied))[0])
        assert run_cli("inspect", copied, "--verify") == 2
        assert "  - the encoder's weights changed" in message_of(capsys.readouterr().err)

    def test_elsewhere_weights_are_compared_and_logits_are_not(self, copied, capsys, in_process):
        (entry,) = json.loads((copied / "proof.json").read_text())
        entry["made_with"]["threads"] += 1
        entry["tasks"]["intent"]["logits"] = "of another machine"
        (copied / "proof.json").write_text(json.dumps([entry]))
        assert run_cli("inspect", copied, "--verify", "--json") == 0
        assert json.loads(capsys.readouterr().out)["logits_compared"] is False
        flip(copied / "model.safetensors", HEADS["intent"])
        assert run_cli("inspect", copied, "--verify") == 2
        assert message_of(capsys.readouterr().err)[1:] == ["  - task intent: its weights changed"]

    def test_a_task_that_is_gone_is_told(self, copied, capsys, in_process):
        model = PolyheadModel.from_pretrained(copied)
        model.remove_task("urgency")
        model.save_pretrained(copied)  # proof.json stays behind
        assert run_cli("inspect", copied, "--verify") == 2
        (line,) = message_of(capsys.readouterr().err)[1:]
        assert "urgency" in line

    def test_a_folder_without_proof_is_refused(self, given, capsys):
        assert run_cli("inspect", given.model, "--verify") == 2
        said = message_of(capsys.readouterr().err)
        assert said[1:] == ["  - has no proof.json; add-task and remove-task write one"]


# ---- a proof that fails ----


@only_bert
class TestFailedProof:
    @pytest.fixture(autouse=True)
    def failing(self, monkeypatch, in_process):
        def fails(*_):
            return ["task intent: its logits changed"]

        monkeypatch.setattr(tasks, "compare", fails)

    def test_nothing_is_added(self, given, added, tmp_path):
        out = tmp_path / "out"
        with pytest.raises(RuntimeError, match="task intent: its logits changed"):
            tasks.add_task(given.model, added.recipe, [f"output_dir={out}"])
        assert not (out / "model").exists()
        assert not (out / UNFINISHED).exists()
        assert files(given.model) == given.files

    def test_what_lies_at_the_target_stays(self, given, added, tmp_path):
        shutil.copytree(given.model, tmp_path / "model")
        overrides = [f"output_dir={tmp_path}"]
        with pytest.raises(RuntimeError, match="its logits changed"):
            tasks.add_task(given.model, added.recipe, overrides, overwrite=True)
        assert files(tmp_path / "model") == given.files

    def test_nothing_is_removed(self, given, tmp_path):
        with pytest.raises(RuntimeError, match="task intent: its logits changed"):
            tasks.remove_task(given.model, ["slots"], tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


# ---- refusals ----


@pytest.fixture
def refused(given, capsys, monkeypatch):
    """Run a command that must be refused: one message, no hash computed, nothing written."""

    def never(folder):
        raise AssertionError(f"{folder}: a proof was begun")

    monkeypatch.setattr(tasks, "fresh_fingerprint", never)

    def run(*arguments: str | Path, output: Path) -> list[str]:
        code = run_cli(*arguments)
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, ""), captured
        assert not output.exists()
        assert not output.with_name(UNFINISHED).exists()
        assert files(given.model) == given.files
        first, *lines = message_of(captured.err)
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        assert first.endswith(f": {count}"), captured.err
        return [line.removeprefix("  - ") for line in lines]

    return run


@pytest.fixture
def refused_recipe(given, refused, tmp_path):
    """The faults of a recipe with some keys changed."""

    def run(changes: dict, *overrides: str, model: Path = given.model) -> list[str]:
        recipe = recipe_of(topics={**TOPICS, "adapter": {"r": 2}})
        recipe["output_dir"] = str(tmp_path / "out")
        for key, value in changes.items():
            set_key(recipe, key, value)
        path = write_recipe(given.folder / "refused.yaml", recipe)
        return refused("add-task", model, path, *overrides, output=tmp_path / "out")

    return run


IN_MODEL = "the model has this task; take another name"
ANOTHER = {**TOPICS, "adapter": None}


@only_bert
class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"encoder": "bert-base-uncased"}, "encoder: it is the model's that the tasks are"),
            ({"pooling": "cls"}, "pooling: it is the model's; write the pooling of a new task"),
            ({"max_length": 32}, "max_length: it is the model's; take it out"),
            ({"freeze": {"encoder": True}}, "freeze: all but the new heads and adapters is frozen"),
            ({"tasks.slots": ANOTHER}, f"tasks.slots: {IN_MODEL}"),
            (
                {"tasks.topics.adapter.name": "first"},
                "tasks.topics.adapter: the model has an adapter 'first'; write the name alone",
            ),
            (
                {"tasks.topics.adapter": "nope"},
                "tasks.topics.adapter: there is no adapter 'nope'; defined: first, slots",
            ),
            ({"tasks.topics.adapter.layers": [5]}, "adapter layers: [5]; the encoder has"),
            ({"tasks.topics.adapter": {"path": "/nowhere"}}, "adapter path /nowhere: "),
            ({"tasks.topics.adapter": {"type": "ia3"}}, "adapter 'topics' is "),
            ({"training.metric_for_best_model": "nope", "training.load_best_model_at_end": True,
              "training.eval_strategy": "epoch", "training.save_strategy": "epoch"},
             "training.metric_for_best_model: 'nope' is unknown"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )  # fmt: skip
    def test_a_recipe_that_does_not_fit_the_model(
        self, refused_recipe, changes, fault, in_process_where_hashed
    ):
        (line,) = refused_recipe(changes)
        assert fault in line

    @pytest.fixture
    def in_process_where_hashed(self, request, refused, monkeypatch):
        """What only TrainingArguments tell is found after the hash of the given model."""
        if "metric" in request.node.name:
            monkeypatch.setattr(tasks, "fresh_fingerprint", hashes_here)

    def test_a_column_that_is_not_there(self, refused_recipe):
        faults = refused_recipe({"tasks.topics.data.label": "nope"})
        assert [fault.partition(";")[0] for fault in faults] == [
            f"tasks.topics.data.label: split {split} has no column 'nope'"
            for split in ("train", "validation", "test")
        ]

    def test_all_faults_of_a_recipe_come_in_one_message(self, refused_recipe):
        changes = {
            "encoder": "bert-base-uncased",
            "pooling": "cls",
            "max_length": 32,
            "freeze.encoder": True,
            "tasks.slots": ANOTHER,
            "tasks.topics.adapter": "nope",
            "training.learning_rat": 1,
        }
        faults = refused_recipe(changes)
        assert [fault.partition(":")[0] for fault in faults] == [
            "encoder",
            "pooling",
            "max_length",
            "freeze",
            "tasks.slots",
            "tasks.topics.adapter",
            "training.learning_rat",
        ]

    def test_an_encoder_on_the_command_line_is_one_too(self, refused_recipe):
        (fault,) = refused_recipe({}, "encoder=bert-base-uncased")
        assert fault.startswith("encoder: it is the model's")

    def test_the_model_is_not_overwritten(self, given, refused, tmp_path):
        recipe = recipe_of(topics=TOPICS)
        for place in (given.folder, given.folder / "peft" / ".."):
            recipe["output_dir"] = str(place)
            path = write_recipe(given.folder / "refused.yaml", recipe)
            (fault,) = refused("add-task", given.model, path, output=tmp_path / "none")
            assert fault == "output_dir: the model lies there; name another"

    def test_nor_is_anything_written_into_its_folder(self, given, refused, tmp_path):
        recipe = {**recipe_of(topics=TOPICS), "output_dir": str(given.model)}
        path = write_recipe(given.folder / "refused.yaml", recipe)
        (fault,) = refused("add-task", given.model, path, output=tmp_path / "none")
        assert fault.startswith("output_dir: ")

    def test_nor_is_it_taken_for_what_a_failed_proof_left(self, given, added, tmp_path, in_process):
        model = Path(shutil.copytree(given.model, tmp_path / UNFINISHED / "model"))
        assert run_cli("add-task", model, added.recipe, f"output_dir={tmp_path}") == 2
        assert run_cli("remove-task", model, "slots", "--output", tmp_path / "model") == 2
        assert [path.name for path in tmp_path.iterdir()] == [UNFINISHED]
        assert files(model) == given.files

    def test_what_is_no_folder(self, given, refused_recipe, refused, tmp_path):
        nowhere = tmp_path / "nowhere"
        said = ["is no folder; download a Hub model first"]
        assert refused_recipe({}, model=nowhere) == said
        out = tmp_path / "out"
        assert refused("remove-task", nowhere, "intent", "--output", out, output=out) == said

    def test_what_is_no_polyhead(self, encoder_folder, refused_recipe, refused, tmp_path):
        plain, out = encoder_folder("bert"), tmp_path / "out"
        said = ["is a bert model, not a Polyhead"]
        assert refused_recipe({}, model=plain) == said
        assert refused("remove-task", plain, "intent", "--output", out, output=out) == said

    @pytest.mark.parametrize(
        ("names", "faults"),
        [
            (["nope"], [f"there is no task 'nope'; the model has: {', '.join(OLD)}"]),
            (OLD, ["no task would be left"]),
            (
                [*OLD, "nope"],
                [
                    f"there is no task 'nope'; the model has: {', '.join(OLD)}",
                    "no task would be left",
                ],
            ),
        ],
        ids=["unknown", "all", "both"],
    )
    def test_tasks_that_cannot_be_removed(self, given, refused, tmp_path, names, faults):
        out = tmp_path / "out"
        assert refused("remove-task", given.model, *names, "--output", out, output=out) == faults

    def test_a_folder_that_is_there(self, given, refused, tmp_path):
        (tmp_path / "kept").write_text("as it was")
        arguments = ("remove-task", given.model, "intent", "--output", tmp_path)
        (fault,) = refused(*arguments, output=tmp_path / "none")
        again = "name a new folder, or type --overwrite to replace it"
        assert fault == f"--output: {tmp_path} exists; {again}"
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
