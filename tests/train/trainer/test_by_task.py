"""`optimizer.by_task` in a training: passes by source, and what a step is made of."""

import pytest
import torch
from polyhead.train.batches.collator import model_inputs
from polyhead.train.recipe.sections import MultiTaskArguments, OptimizerOptions, Sampling
from torch.testing import assert_close
from train_helpers import private_cache  # noqa: F401

MODES = ["moments", "second_moment"]
EPS = 1e-4  # large: the gradient of a key's bias is 0 but for rounding, which Adam would blow up
ADAMW = {"optim": "adamw_torch_fused", "learning_rate": 3e-3, "weight_decay": 0.1}
ADAMW |= {"adam_epsilon": EPS}


def by_task(mode="moments", *, rates=None, optimizer=None, **sampling):
    options = OptimizerOptions(by_task=mode, **(optimizer or {}))
    return MultiTaskArguments(optimizer=options, rates=rates or {}, sampling=Sampling(**sampling))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batches", ["mixed", "pure"])
def test_it_is_adam_by_source_over_separate_backward_passes(build, batches, packing):
    """One AdamW for each source, over the gradients of the losses of its tasks, added up."""
    rates = {"near": 1e-2, "same": 1e-3}
    multitask = by_task(rates=rates, batches=batches, packing=packing)
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
