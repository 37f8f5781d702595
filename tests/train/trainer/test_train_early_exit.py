"""Training of tasks that read a lower layer: what is above it, balancing, resuming."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from polyhead.train.recipe.sections import (
    Balancing,
    MultiTaskArguments,
    OptimizerOptions,
    Retain,
    Sampling,
)
from polyhead.train.trainer.fsdp import check_deepspeed
from torch.testing import assert_close
from trainer_fixtures import weights

ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.1}
LOW = ("intent", "slots", "near")


@pytest.fixture
def low(usual_tasks):
    """Three of the usual tasks, which read the first of two layers."""
    return {name: replace(usual_tasks[name], layer=1) for name in LOW}


@pytest.fixture
def some(usual_tasks, low):
    """All of them, three of which do."""
    return {**usual_tasks, **low}


def test_layers_above_stay_as_they_are(build, low):
    trainer = build(low, batches="mixed", **ADAMW)
    before = weights(trainer)
    trainer.train()
    changed = {name for name, value in weights(trainer).items() if not value.equal(before[name])}
    assert changed == {name for name in before if ".layer.1." not in name}


@pytest.mark.parametrize("batches", ["mixed", "pure"])
def test_packed_and_padded_rows_train_alike(batches, build, some):
    results = []
    for packing in (True, False):
        trainer = build(some, batches=batches, packing=packing)
        trainer.train()
        results.append(weights(trainer))
    assert_close(results[0], results[1], atol=1e-5, rtol=0)


def test_micro_batches_add_up_to_the_step(build, some):
    multitask = MultiTaskArguments(
        sampling=Sampling(batches="mixed"), balancing=Balancing(method="none")
    )
    results = []
    for size, accumulation in ((12, 1), (6, 2)):
        trainer = build(some, size=size, accumulation=accumulation, multitask=multitask)
        trainer.train()
        results.append(weights(trainer))
    assert_close(results[0], results[1], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        MultiTaskArguments(balancing=Balancing(method="pcgrad")),
        MultiTaskArguments(balancing=Balancing(method="equal_norms")),
        MultiTaskArguments(balancing=Balancing(method="gradnorm")),
        MultiTaskArguments(optimizer=OptimizerOptions(by_task="moments")),
    ],
)
def test_balancing_and_moments_by_task(options, build, some, low):
    for tasks in (some, low):
        trainer = build(tasks, multitask=options, **ADAMW)
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        top = [name for name in before if ".layer.1." in name]
        assert all(after[name].equal(before[name]) == (tasks is low) for name in top)


@pytest.mark.slow
def test_it_is_resumed_to_the_bit(build, some):
    options = {**ADAMW, "dropout": 0.1, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = build(some, output="whole", **options)
    whole.train()
    again = build(some, output="again", **options)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert all(value.equal(weights(whole)[name]) for name, value in weights(again).items())


def test_retain_reads_the_last_layer(build, low):
    options = MultiTaskArguments(retain=Retain(weight=1.0))
    trainer = build(low, multitask=options, learning_rate=0.3)
    before = weights(trainer)
    trainer.train()
    assert any(
        not value.equal(before[name])
        for name, value in weights(trainer).items()
        if ".layer.1." in name
    )


def test_deepspeed_is_refused(build, low):
    trainer = build(low)
    args = SimpleNamespace(world_size=1)
    multitask = MultiTaskArguments(sampling=Sampling(batches="pure"))
    with pytest.raises(ValueError, match=r"DeepSpeed: layer \(of intent, near, slots\)"):
        check_deepspeed(trainer.model, multitask, args)
    for task in trainer.model.config.tasks.values():
        task.layer = None
    check_deepspeed(trainer.model, multitask, args)
