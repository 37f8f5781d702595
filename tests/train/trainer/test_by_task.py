"""`optimizer.by_task` in a training: passes by source, and what a step is made of."""

import re

import pytest
import torch
from polyhead.modeling import TaskConfig
from polyhead.train.adapters import attach_adapters
from polyhead.train.batches.collator import model_inputs
from polyhead.train.errors import UserError
from polyhead.train.optimization.by_task import (
    by_task_faults,
    learning_rates,
    model_faults,
    rates_of_sources,
)
from polyhead.train.optimization.model_parts import own_adapters
from polyhead.train.optimization.parameter_groups import optimizer_groups, parameter_table
from polyhead.train.optimization.source_gradients import readers_of
from polyhead.train.recipe.schema import Recipe
from polyhead.train.recipe.sections import (
    Balancing,
    Freeze,
    MultiTaskArguments,
    OptimizerOptions,
    Retain,
    Sampling,
    Unfreeze,
)
from torch.testing import assert_close
from train_helpers import private_cache, task  # noqa: F401
from trainer_fixtures import logged, weights
from transformers import TrainingArguments

MODES = ["moments", "second_moment"]
EPS = 1e-4  # large: the gradient of a key's bias is 0 but for rounding, which Adam would blow up
ADAMW = {"optim": "adamw_torch_fused", "learning_rate": 3e-3, "weight_decay": 0.1}
ADAMW |= {"adam_epsilon": EPS}


SOURCES = {"one+three": ["one", "three"], "two": ["two"]}
TEXT = """
encoder: e
output_dir: o
optimizer: {{by_task: {by_task}}}
tasks:
  one: {{head: masked_lm, learning_rate: 2.0e-3, data: {{path: p, text: t}}}}
  two: {{head: masked_lm, data: {{path: q, text: t}}}}
"""


def recipe_with(**sections):
    tasks = {
        "intent": task("sequence_classification", path="p", text="t", label="intent"),
        "slots": task("token_classification", path="p", text="t", tokens="w", label="tags"),
        "same": task("sequence_classification", path="q", text="t", label="same"),
    }
    return Recipe(encoder="e", tasks=tasks, output_dir="o", **sections)


def by_task(mode="moments", *, rates=None, method=None, **sampling):
    options = OptimizerOptions(by_task=mode)
    return MultiTaskArguments(
        optimizer=options,
        rates=rates or {},
        sampling=Sampling(**sampling),
        balancing=Balancing(method=method),
    )


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batches", ["mixed", "pure"])
def test_it_is_adam_by_source_over_separate_backward_passes(build, batches, packing):
    """One AdamW for each source, over the gradients of the losses of its tasks, added up."""
    rates = {"near": 1e-2, "same": 1e-3}
    multitask = by_task(rates=rates, method="none", batches=batches, packing=packing)
    trainer = build(multitask=multitask, size=6, max_steps=6, max_grad_norm=0.5, **ADAMW)
    model = build(multitask=multitask, **ADAMW).model
    steps = [list(batch) for batch in trainer.sampler]
    collator, tasks = trainer.evaluation.collator, model.config.tasks
    names = list(trainer.sources)
    assert (len(names), len(steps)) == (3, 6)
    named = dict(model.named_parameters())
    first = [{n: torch.zeros_like(w) for n, w in named.items()} for _ in names]
    second = [{n: torch.zeros_like(w) for n, w in named.items()} for _ in names]
    counts = [dict.fromkeys(named, 0) for _ in names]
    decaying = trainer.get_decay_parameter_names(model)
    for step in steps:
        rows = [trainer.train_dataset[number] for number in step]
        moves, moved = {}, set()
        for number, name in enumerate(names):
            some = [row for row in rows if row["source"] == name]
            if not some:
                continue
            model.zero_grad()
            losses = model.train()(**model_inputs(collator(some))).losses
            sum(tasks[task].loss_weight * loss for task, loss in losses.items()).backward()
            gradients = {n: w.grad for n, w in named.items() if w.grad is not None}
            norm = torch.stack([g.norm() for g in gradients.values()]).norm()
            rate = rates.get(name, ADAMW["learning_rate"])
            for n, g in gradients.items():
                g = g * min(1.0, 0.5 / (norm + 1e-6))
                first[number][n] = 0.9 * first[number][n] + 0.1 * g
                second[number][n] = 0.999 * second[number][n] + 0.001 * g**2
                counts[number][n] += 1
                mean = first[number][n] / (1 - 0.9 ** counts[number][n])
                root = (second[number][n] / (1 - 0.999 ** counts[number][n])).sqrt() + EPS
                moves[n] = moves.get(n, 0.0) + rate * mean / root
                moved.add(n)
        for n in moved:
            part = n.split(".")[1] if n.startswith("heads") else ""
            rate = rates.get(part, ADAMW["learning_rate"])
            decay = 0.1 * rate if n in decaying else 0.0
            named[n].data.mul_(1 - decay).sub_(moves[n])
    trainer.train()
    for n, weight in trainer.model.named_parameters():
        assert_close(weight, named[n], rtol=1e-3, atol=2e-5, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batches", ["mixed", "pure"])
def test_accumulation_changes_nothing(build, mode, batches):
    results = []
    for size, accumulation in ((12, 1), (3, 4)):
        multitask = by_task(mode, batches=batches)
        trainer = build(size=size, accumulation=accumulation, multitask=multitask, **ADAMW)
        trainer.train()
        results.append((weights(trainer), logged(trainer, "norm_")))
    assert_close(results[1][0], results[0][0], rtol=0, atol=2e-5)
    for line, other in zip(results[1][1], results[0][1], strict=True):
        assert line == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_a_sparse_gradient_of_the_embeddings_changes_nothing(build, mode):
    results = []
    for is_sparse in (True, False):
        trainer = build(size=6, max_steps=8, multitask=by_task(mode), **ADAMW)
        assert trainer.optimizer_step.gradients.table is not None
        if not is_sparse:
            trainer.optimizer_step.gradients.table = None
        trainer.train()
        assert not trainer.model.encoder.get_input_embeddings().sparse
        results.append(weights(trainer))
    assert_close(results[0], results[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_it_is_resumed_to_the_bit(build, mode):
    options = {
        "multitask": by_task(mode, rates={"near": 1e-3}),
        "dropout": 0.1,
        "size": 8,
        "max_steps": 9,
        "save_strategy": "steps",
        "save_steps": 4,
        "lr_scheduler_type": "linear",
        **ADAMW,
    }
    whole = build(output="whole", **options)
    whole.train()
    again = build(output="again", **options)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert all(value.equal(weights(whole)[name]) for name, value in weights(again).items())
    states = [trainer.optimizer.state_dict()["state"] for trainer in (whole, again)]
    for number, state in states[0].items():
        assert all(value.equal(states[1][number][key]) for key, value in state.items())


def test_another_optimizer_goes_on_from_none_of_its_checkpoints(build):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, **ADAMW}
    plain = build(output="plain", **options)
    plain.train()
    other = build(multitask=by_task(rates={"near": 1e-3}), **options)
    with pytest.raises(UserError) as raised:
        other.train(resume_from_checkpoint=f"{plain.args.output_dir}/checkpoint-1")
    rates, moments = raised.value.faults
    assert rates == "learning rates of tasks was not set, is {'near': 0.001}"
    assert moments.startswith("optimizer.by_task was not set, is moments; take that back")


def test_layers_that_wait_have_no_moments(build):
    freeze = Freeze(layers=[0], unfreeze=Unfreeze(every=0.5))
    multitask = MultiTaskArguments(freeze=freeze, optimizer=OptimizerOptions(by_task="moments"))
    trainer = build(size=6, max_steps=5, multitask=multitask, **ADAMW)
    layer = trainer.model.encoder.encoder.layer[0].output.dense.weight
    above = trainer.model.encoder.encoder.layer[1].output.dense.weight
    trainer.train()  # six steps an epoch: it joins after three
    state = trainer.optimizer.optimizer.state
    assert state[layer]["step"].tolist() == [2, 2, 2]
    assert state[above]["step"].tolist() == [5, 5, 5]


def test_heads_and_adapters_of_one_source_have_ordinary_moments(build):
    trainer = build(multitask=by_task(), **ADAMW)
    trainer.train()
    state = trainer.optimizer.optimizer.state
    head = trainer.model.heads["same"]
    for weight in head.parameters():
        assert state[weight]["exp_avg"].shape == weight.shape
        assert state[weight]["step"].shape == ()
    layer = trainer.model.encoder.encoder.layer[1].output.dense.weight
    assert state[layer]["exp_avg"].shape == (3, *layer.shape)


def test_each_adapter_is_read_by_the_sources_of_its_tasks(make_model):
    labels = {"head": "sequence_classification", "labels": ["a", "b"]}
    model = make_model("bert", {name: TaskConfig(**labels) for name in ("one", "three", "two")})
    attach_adapters(model, {"one": {"r": 2}, "two": "one", "three": {"r": 2}})
    readers = {id(w): numbers for w, numbers in readers_of(model, SOURCES)}
    named = dict(model.named_parameters())
    by_part = {}
    for name, weight in named.items():
        part = next((p for p in ("one", "three", "two") if p in name.split(".")), "encoder")
        part = f"head {part}" if name.startswith("heads") else part
        by_part.setdefault(part, set()).add(frozenset(readers[id(weight)]))
    assert by_part == {
        "encoder": {frozenset({0, 1})},
        "one": {frozenset({0, 1})},
        "three": {frozenset({0})},
        "head one": {frozenset({0})},
        "head three": {frozenset({0})},
        "head two": {frozenset({1})},
    }
    assert own_adapters(model) == {"three": "three"}


def test_a_task_has_a_learning_rate_for_its_head_and_its_own_adapter(make_model):
    labels = {"head": "sequence_classification", "labels": ["a", "b"]}
    model = make_model("bert", {name: TaskConfig(**labels) for name in ("one", "three", "two")})
    attach_adapters(model, {"one": {"r": 2}, "two": "one", "three": {"r": 2}})
    args = TrainingArguments(output_dir="-", use_cpu=True, learning_rate=1e-4)
    options = OptimizerOptions(head_lr=1e-3, adapter_lr=2e-3)
    rates = {"one": 3e-3, "three": 4e-3}
    groups = optimizer_groups(model, Freeze(), options, args, (), rates)
    made = {group["name"].split(",")[0]: group["lr"] for group in groups}
    assert {name: lr for name, lr in made.items() if name.startswith(("head", "adapter"))} == {
        "head one": 3e-3,
        "head three": 4e-3,
        "head two": 1e-3,
        "adapter one": 2e-3,  # of two tasks
        "adapter three": 4e-3,
    }
    table = parameter_table(model, Freeze(), options, args, rates)
    assert {row["name"]: row["learning_rate"] for row in table if row["name"] in made} == made
    assert rates_of_sources({"two": 2e-4}, SOURCES, 1e-4) == [1.0, 2.0]


def test_gradients_are_compared_as_without(build):
    logs = []
    for optimizer in (OptimizerOptions(by_task="moments"), OptimizerOptions()):
        multitask = MultiTaskArguments(optimizer=optimizer, balancing=Balancing(gradient_steps=1))
        trainer = build(max_steps=2, multitask=multitask, **{**ADAMW, "learning_rate": 0.0})
        trainer.train()
        logs.append([logged(trainer, "grad_norm_"), logged(trainer, "cosine_")])
    for line, other in zip(sum(logs[0], []), sum(logs[1], []), strict=True):
        assert line == pytest.approx(other, abs=1e-3)


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "fault"),
        [
            ({"optim": "sgd"}, "training.optim: sgd, but optimizer.by_task is an AdamW; allowed: "),
            ({"torch_compile": True}, "training.torch_compile: "),
        ],
    )
    def test_arguments_of_the_trainer(self, build, arguments, fault):
        with pytest.raises(ValueError, match=re.escape(fault)):
            build(multitask=by_task(), **{**ADAMW, **arguments})

    def test_all_of_a_recipe_in_one_message(self):
        recipe = recipe_with(
            optimizer=OptimizerOptions(by_task="moments"),
            balancing=Balancing(method="dwa"),
            training={"optim": "adafactor", "fp16": True, "deepspeed": "x", "fsdp": "full_shard"},
        )
        recipe.tasks["intent"].learning_rate = 1e-3
        faults = by_task_faults(recipe, {"intent+slots": ["intent", "slots"], "same": ["same"]})
        assert [fault.split(":")[0] for fault in faults] == [
            "training.optim",
            "training.fp16",
            "training.fsdp",
            "training.deepspeed",
            "balancing.method",
            "tasks.intent.learning_rate",
        ]
        assert faults[-1] == (
            "tasks.intent.learning_rate: intent, slots share their rows, so one gradient with "
            "optimizer.by_task; give all of them the same, or none"
        )
        recipe.optimizer.by_task = False
        assert by_task_faults(recipe, {}) == []

    def test_one_source(self):
        recipe = recipe_with(optimizer=OptimizerOptions(by_task="second_moment"))
        assert by_task_faults(recipe, {"intent+slots": ["intent", "slots"]}) == [
            "optimizer.by_task: all rows are of one source, one gradient; take it out"
        ]

    def test_what_has_no_effect_on_a_model(self, make_model):
        labels = {"head": "sequence_classification", "labels": ["a", "b"]}
        tasks = {name: TaskConfig(**labels) for name in ("one", "three", "two")}
        model = make_model("bert", tasks)
        frozen, moments = Freeze(encoder=True), OptimizerOptions(by_task="moments")
        options = MultiTaskArguments(freeze=frozen, optimizer=moments)
        nothing = "optimizer.by_task: no weights that tasks share train; take it out"
        assert model_faults(model, options, SOURCES) == [nothing]
        assert model_faults(model, MultiTaskArguments(optimizer=moments), SOURCES) == []
        without = Freeze(heads=["one", "two"])
        options = MultiTaskArguments(freeze=without, rates={"one": 1.0, "two": 1.0, "three": 1.0})
        attach_adapters(model, {"one": None, "two": {"r": 2}, "three": None})
        why = "no head or adapter of its own trains; take it out"
        assert model_faults(model, options, SOURCES) == [f"tasks.one.learning_rate: {why}"]

    @pytest.mark.parametrize("value", ["true", "all"])
    def test_what_is_no_choice(self, tmp_path, value):
        path = tmp_path / "recipe.yaml"
        path.write_text(TEXT.format(by_task=value), encoding="utf-8")
        with pytest.raises(UserError) as raised:
            Recipe.from_yaml(path)
        (fault,) = raised.value.faults
        assert fault.startswith("optimizer.by_task: ")
        assert "'moments' or 'second_moment'" in fault


def test_to_yaml_and_back():
    recipe = Recipe.from_yaml(TEXT.format(by_task="second_moment"))
    assert recipe.optimizer.by_task == "second_moment"
    assert learning_rates(recipe) == {"one": 0.002}
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert "by_task" not in Recipe.from_yaml(TEXT.format(by_task="false")).to_yaml()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_retained_is_part_of_each_sources_gradient(build, mode):
    """Over the texts of the whole step, however it is cut into micro-batches."""
    results = []
    for size, accumulation in ((12, 1), (3, 4), (12, 1)):
        multitask = by_task(mode)
        if len(results) < 2:
            multitask.retain = Retain(weight=5.0)
        trainer = build(size=size, accumulation=accumulation, multitask=multitask, **ADAMW)
        trainer.train()
        results.append((weights(trainer), logged(trainer, "loss_retain")))
    assert_close(results[1][0], results[0][0], rtol=0, atol=2e-5)
    for line, other in zip(results[1][1], results[0][1], strict=True):
        assert line == pytest.approx(other, abs=1e-4)
    far = [(results[2][0][name] - value).abs().max() for name, value in results[0][0].items()]
    assert max(far) > 1e-3
