"""`few_shot`: pairs of rows train the encoder before the head."""

import subprocess
import sys

import datasets
import pytest
import torch
import torch.nn.functional as F
from polyhead.modeling import PolyheadModel
from polyhead.train.commands import few_shot, fitting
from polyhead.train.commands.few_shot import pairs_of
from polyhead.train.commands.fitting import fit, make_trainer
from polyhead.train.commands.setup import prepare
from polyhead.train.commands.training import train
from polyhead.train.errors import UserError
from polyhead.train.recipe import load_recipe
from safetensors.torch import load_file
from torch.testing import assert_close
from train_helpers import (
    QUIET,
    files_of,
    messages,
    private_cache,  # noqa: F401
    write_recipe,
    write_splits,
)

SEQUENCE = "sequence_classification"
SHORT = "tasks.intent.few_shot"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, encoder_folder):
    """A classification task with `few_shot` beside one over its texts and one over other rows."""
    folder = tmp_path_factory.mktemp("few_shot")
    write_splits(folder, "messages", messages)
    write_splits(folder, "others", lambda count, start=0: messages(count, start + 100))
    text = {"data_files": files_of("messages"), "text": "text"}
    others = {"data_files": files_of("others"), "text": "text", "label": "urgency"}
    slots = {**text, "tokens": "tokens", "label": "tags"}
    content = {
        "encoder": str(encoder_folder("bert")),
        "tasks": {
            "intent": {
                "head": SEQUENCE,
                "data": {**text, "label": "intent"},
                "few_shot": {"pairs": 2, "learning_rate": 1e-3},
            },
            "slots": {"head": "token_classification", "data": slots},
            "urgency": {"head": SEQUENCE, "data": others, "problem_type": "regression"},
        },
        "training": {**QUIET, "num_train_epochs": 1},
        "output_dir": str(folder / "run"),
    }
    return write_recipe(folder / "recipe.yaml", content)


def tokenized(*labels):
    """Rows whose one token is their number; the last one is a later window of the first text."""
    columns = {"input_ids": [[[number]] for number in range(len(labels))], "labels_t": labels}
    windows = [0] * (len(labels) - 1) + [1]
    return datasets.Dataset.from_dict({**columns, "window": windows, "row": windows})


class TestPairs:
    def test_each_row_has_as_many_pairs_with_its_class_as_with_others(self):
        labels = [0, 0, 0, 1, 1, 2, -100, 0]
        pairs = pairs_of(tokenized(*labels), "t", 3, seed=1)[:]
        assert pairs["row"] == list(range(6 * 3 * 2 - 3))  # the only row of class 2 has no other
        for number, label in enumerate(labels[:6]):
            mine = [
                (other[0], same)
                for ([one], other), same in zip(pairs["input_ids"], pairs["labels_t"], strict=True)
                if one == number
            ]
            alike = [labels[other] == label for other, _ in mine]
            assert alike == [bool(same) for _, same in mine]
            assert sum(alike) == (0 if number == 5 else 3)
            assert len(mine) - sum(alike) == 3
            assert all(other not in (number, 6, 7) for other, _ in mine)

    def test_they_are_those_of_the_seed(self):
        rows = tokenized(*[number % 3 for number in range(30)])
        first, again, other = (pairs_of(rows, "t", 2, seed)[:] for seed in (1, 1, 2))
        assert first == again
        assert first["input_ids"] != other["input_ids"]

    def test_one_class_makes_none(self):
        assert pairs_of(tokenized(0, 0, -100, 1), "t", 2, seed=1) is None


def cosine_loss(run, pairs):
    """Mean squared error of the cosines of pairs to their labels."""
    errors, model = [], run.model.eval()
    for (one, other), same in zip(pairs["input_ids"], pairs["labels_intent"], strict=True):
        with torch.no_grad():
            states = [
                model(torch.tensor([ids]), tasks=()).last_hidden_state for ids in (one, other)
            ]
        a, b = (state[0].mean(0) for state in states)
        errors.append(float((F.cosine_similarity(a, b, dim=0) - same) ** 2))
    return sum(errors) / len(errors)


def test_the_encoder_learns_which_rows_are_alike_and_nothing_else_trains(recipe):
    run = prepare(recipe, ["freeze.encoder=true"])
    trainer = make_trainer(run)
    rows = trainer.train_dataset.parts["intent+slots"]
    pairs = pairs_of(rows, "intent", 2, run.args.seed)[:]
    heads = {name: weight.clone() for name, weight in run.model.heads.state_dict().items()}
    before = cosine_loss(run, pairs)
    few_shot.train_on_pairs(trainer, run)
    assert cosine_loss(run, pairs) < 0.7 * before
    assert_close(run.model.heads.state_dict(), heads, rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in run.model.encoder.parameters())
    assert run.model.task_names == ["intent", "slots", "urgency"]


def test_the_training_that_follows_is_the_recipe_s(recipe, monkeypatch):
    after = {}

    def stage(trainer, run):
        few_shot.train_on_pairs(trainer, run)
        after.update({k: v.clone() for k, v in run.model.state_dict().items()})

    monkeypatch.setattr(fitting, "train_on_pairs", stage)
    run = prepare(recipe, ["freeze.encoder=true"])
    fit(run)
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, after[name]) == name.startswith("encoder."), name


@pytest.mark.slow
def test_a_resumed_run_leaves_the_stage_out_and_ends_at_the_same_weights(recipe, monkeypatch):
    folder = recipe.parent / "resumed"
    steps = [f"output_dir={folder}", "training.save_strategy=steps", "training.save_steps=1"]
    steps += ["training.per_device_train_batch_size=6", "training.save_total_limit=9"]
    train(recipe, steps)
    whole = load_file(folder / "model/model.safetensors")
    monkeypatch.setattr(fitting, "train_on_pairs", lambda *_: pytest.fail("a stage"))
    checkpoint = f"training.resume_from_checkpoint={folder}/checkpoint-2"
    train(recipe, [*steps, checkpoint])
    assert_close(load_file(folder / "model/model.safetensors"), whole, rtol=0, atol=0)
    with pytest.raises(UserError, match="few_shot: .*'pairs': 2"):
        train(recipe, [*steps, checkpoint, f"{SHORT}.pairs=3"])


def test_what_it_does_not_go_with_is_one_message(recipe):
    options = ["tasks.slots.few_shot={pairs: 2, learning_rate: 1e-3}", "tasks.urgency.few_shot={}"]
    options += ["tasks.urgency.adapter={type: lora, r: 2}", "retain={}", "average={}"]
    with pytest.raises(UserError) as error:
        load_recipe(recipe, [*options, "training.fsdp=full_shard"])
    only = "only for classification with one label for each text, in no order or tree; take it out"
    assert [fault for fault in error.value.faults if "few_shot" in fault] == [
        f"tasks.slots.few_shot: {only}",
        f"tasks.urgency.few_shot: {only}",
        "few_shot: intent and slots and urgency train in one stage; write one learning_rate for "
        "all",
        "few_shot: the pairs train the encoder, urgency an adapter; take one of them out",
        "retain: does not go with few_shot; take one of them out",
        "average: does not go with few_shot; take one of them out",
        "training.fsdp: does not go with few_shot; take one of them out",
    ]


@pytest.mark.slow
def test_two_ranks_give_the_weights_of_one(recipe, tmp_path):
    options = ["training.per_device_train_batch_size=3", "training.learning_rate=1e-3"]
    options += [f"tasks.{name}.dropout=0.0" for name in ("intent", "slots", "urgency")]
    train(
        recipe, [*options, f"output_dir={tmp_path}/one", "training.gradient_accumulation_steps=2"]
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "polyhead.train", str(recipe), *options, f"output_dir={tmp_path}/two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    for name in [name for name in one if name.endswith("key.bias")]:  # rounding alone, by Adam
        del one[name], two[name]
    assert_close(two, one, rtol=0, atol=1e-5)


def test_the_encoder_of_a_finished_model_is_not_touched(recipe, make_model):
    model: PolyheadModel = make_model("bert", tasks={})
    with pytest.raises(UserError, match="few_shot: would train the encoder, which the model's"):
        load_recipe(recipe, onto=model.config)
