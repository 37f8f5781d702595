"""Experts in training: resumed to the bit, loads logged, shared ones balanced with the rest."""

import pytest
import torch
from polyhead.train.balancing.task_gradients import shared_parameters
from polyhead.train.errors import UserError
from polyhead.train.optimization.model_parts import model_parts
from polyhead.train.optimization.source_gradients import readers_of
from polyhead.train.recipe.sections import Balancing, MultiTaskArguments, OptimizerOptions, Sampling
from torch.testing import assert_close
from trainer_fixtures import logged, weights

KINDS = {
    "mmoe": {"kind": "mmoe", "experts": 3, "size": 8},
    "cgc": {"kind": "cgc", "experts": 2, "size": 8},
    "ple": {"kind": "ple", "experts": 2, "size": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_resumed_to_the_bit(kind, build):
    options = {
        "experts": KINDS[kind],
        "dropout": 0.1,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = build(output="whole", **options)
    whole.train()
    again = build(output="again", **options)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert all(value.equal(weights(whole)[name]) for name, value in weights(again).items())
    other = build(output="other", **{**options, "experts": None})
    with pytest.raises(UserError) as raised:
        other.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert "experts" in str(raised.value)


def test_packed_and_padded_rows_train_alike(build):
    results = []
    for packing in (True, False):
        trainer = build(experts=KINDS["ple"], packing=packing)
        trainer.train()
        results.append(weights(trainer))
    assert_close(results[0], results[1], atol=1e-5, rtol=0)


def test_micro_batches_add_up_to_the_step(build):
    sampling = {"batches": "mixed"}
    results = []
    for size, accumulation in ((12, 1), (6, 2)):
        multitask = MultiTaskArguments(
            sampling=Sampling(**sampling), balancing=Balancing(method="none")
        )
        trainer = build(
            experts=KINDS["cgc"], size=size, accumulation=accumulation, multitask=multitask
        )
        trainer.train()
        results.append(weights(trainer))
    assert_close(results[0], results[1], atol=1e-4, rtol=0)


def test_loads_are_logged_by_task_and_expert(build):
    trainer = build(experts=KINDS["cgc"], max_steps=2)
    trainer.train()
    lines = logged(trainer, "load_")
    assert len(lines) == 2
    task = trainer.model.task_names[0]
    keys = [f"load_{task}_{expert}" for expert in ("shared_0", "shared_1", "own_0")]
    assert [key for key in lines[0] if key.startswith(f"load_{task}_")] == keys
    assert sum(lines[0][key] for key in keys) == pytest.approx(1, abs=1e-5)
    plain = build(max_steps=1)
    plain.train()
    assert not logged(plain, "load_")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pcgrad", "equal_norms"])
def test_balancing_and_moments_by_task_train_what_tasks_share(method, build):
    multitask = MultiTaskArguments(balancing=Balancing(method=method))
    for options in (multitask, MultiTaskArguments(optimizer=OptimizerOptions(by_task="moments"))):
        trainer = build(
            experts=KINDS["mmoe"], multitask=options, optim="adamw_torch", learning_rate=1e-3
        )
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        changed = {n for n, w in after.items() if not w.equal(before[n])}
        assert {n for n in after if n.startswith("experts.")} <= changed


def test_shared_experts_are_a_part_and_own_ones_their_heads(build):
    trainer = build(experts=KINDS["cgc"])
    model = trainer.model
    parts = {part.title: part for part in model_parts(model)}
    assert set(parts["experts"].weights) == {f"experts.{n}" for n in model.experts.state_dict()}
    task = model.task_names[0]
    gate = f"heads.{task}.mixture.gate.weight"
    assert gate in parts[f"head {task}"].weights
    shared = {id(weight) for weight in shared_parameters(model)}
    assert shared >= {id(weight) for weight in model.experts.parameters()}
    assert id(model.get_parameter(gate)) not in shared
    readers = {id(w): numbers for w, numbers in readers_of(model, trainer.sources)}
    everyone = set(range(len(trainer.sources)))
    assert all(readers[id(weight)] == everyone for weight in model.experts.parameters())
    assert torch.tensor([len(part.weights) for part in parts.values()]).sum() == len(
        list(model.parameters())
    )
