"""How a Trainer's parts are made, and what of the arguments is refused."""

from dataclasses import replace

import pytest
from polyhead.train.recipe.sections import Average, Balancing, MultiTaskArguments, Retain
from polyhead.train.trainer.average import StartAverage
from polyhead.train.trainer.trainer_parts import TrainerParts, fitting_arguments
from train_helpers import private_cache  # noqa: F401
from transformers import TrainingArguments


@pytest.fixture
def parts(build):
    trainer = build()
    return TrainerParts(
        model=trainer.model,
        args=trainer.args,
        accelerator=trainer.accelerator,
        multitask=trainer.multitask,
        sources=trainer.sources,
        fsdp_plugin=None,
        uses_deepspeed=False,
    ), trainer


def step_of(parts, trainer):
    return parts.optimizer_step(
        trainer.train_dataset,
        sigterm=trainer.sigterm,
        prepare=lambda batch: batch,
        autocast=trainer.compute_loss_context_manager,
    )


def test_gradients_are_compared_every_so_many_steps(parts):
    parts, trainer = parts
    assert step_of(parts, trainer).shared.comparison.every == 48 * 6
    often = replace(parts.multitask, balancing=Balancing(gradient_steps=3))
    step = step_of(replace(parts, multitask=often), trainer)
    assert (step.shared.comparison.every, step.layers.every) == (3, 3)
    in_shards = step_of(replace(parts, uses_deepspeed=True), trainer)
    assert (in_shards.shared.comparison.every, in_shards.layers.every) == (0, 0)
    assert type(in_shards.balancer).__name__ == "Balancer"


def test_what_does_not_go_with_shards_is_refused(parts):
    parts, trainer = parts
    sharded = replace(parts, fsdp_plugin=object())
    keeping = replace(sharded, multitask=MultiTaskArguments(retain=Retain()))
    with pytest.raises(ValueError, match="^retain: does not go with FSDP or DeepSpeed"):
        step_of(keeping, trainer)
    averaging = replace(sharded, multitask=MultiTaskArguments(average=Average(start=0.2)))
    with pytest.raises(ValueError, match="^average: does not go with FSDP or DeepSpeed"):
        averaging.average(evaluates=True)


def test_an_average_that_is_chosen_needs_rows(parts):
    parts = replace(parts[0], multitask=MultiTaskArguments(average=Average(start="auto")))
    with pytest.raises(ValueError, match="needs rows to evaluate"):
        parts.average(evaluates=False)
    assert isinstance(parts.average(evaluates=True), StartAverage)
    assert replace(parts, multitask=MultiTaskArguments()).average(evaluates=True) is None


def test_fsdp_that_was_asked_for_and_is_not_there_is_told(parts, monkeypatch):
    parts, trainer = parts
    assert parts.sharding(trainer.optimizer_step) == []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP needs accelerators"):
        parts.sharding(trainer.optimizer_step)


def test_the_callers_arguments_stay_as_they_are(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    fitting = fitting_arguments(args)
    assert (args.remove_unused_columns, fitting.remove_unused_columns) == (True, False)
    with pytest.raises(ValueError, match="^TrainingArguments: label_smoothing_factor does not"):
        fitting_arguments(replace(args, label_smoothing_factor=0.1))
