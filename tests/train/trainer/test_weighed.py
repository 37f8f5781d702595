"""Training where classes weigh differently: a step is one, however it is cut."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from polyhead.modeling.heads import IGNORE
from polyhead.train.batches.collator import model_inputs
from polyhead.train.recipe.sections import MultiTaskArguments, Sampling
from torch.testing import assert_close
from train_helpers import messages, pairs, private_cache, write_rows  # noqa: F401
from trainer_fixtures import logged, weights

LABELS = ["book", "cancel", "play"]
ROWS = {"intent": "intent_weight", "slots": "slots_weight", "urgency": "w", "same": "w"}
WEIGHED = {
    "intent": {"class_weight": {"book": 0.05, "cancel": 0.02, "play": 0.1}, "focal": 1.5},
    "slots": {"class_weight": {"O": 0.1, "B-city": 4.0}, "label_smoothing": 0.1},
    "topics": {"class_weight": "balanced", "focal": 2.0},
}


@pytest.fixture(scope="module")
def weighed(usual_tasks, tmp_path_factory):
    """The usual tasks: three with weights of classes, four with weights of rows, one soft."""
    folder = tmp_path_factory.mktemp("weighed")
    files = {}
    for name, make in (("messages", messages), ("pairs", pairs)):
        rows = [
            {
                **row,
                "w": number % 3 / 100,
                "intent_weight": number % 4 / 10,
                "slots_weight": 0.5 + number % 2,
                "shares": [0.2, 0.3, 0.5] if number % 2 else None,
            }
            for number, row in enumerate(make(12))
        ]
        files[name] = {"train": str(write_rows(folder / f"{name}.jsonl", rows))}
    tasks = {}
    for name, task in sorted(usual_tasks.items()):
        data = replace(
            task.data,
            data_files=files["pairs" if name in ("near", "same") else "messages"],
            weight=ROWS.get(name),
            soft_label="shares" if name == "intent" else None,
        )
        options = WEIGHED.get(name, {}) | ({"labels": LABELS} if name == "intent" else {})
        tasks[name] = replace(task, data=data, **options)
    return tasks


@pytest.mark.parametrize("batches", ["mixed", "pure"])
def test_accumulation_changes_neither_losses_nor_weights(build, weighed, batches):
    results = []
    for size, accumulation in ((12, 1), (3, 4)):
        trainer = build(weighed, size=size, accumulation=accumulation, batches=batches)
        trainer.train()
        results.append((weights(trainer), logged(trainer, "loss")))
    assert_close(results[1][0], results[0][0], rtol=0, atol=1e-5)
    assert_close(results[1][1], results[0][1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_of_a_task_is_over_the_weights_of_the_step(build, weighed, packing):
    trainer = build(weighed, size=9, accumulation=4, max_steps=1, packing=packing)
    rows = trainer.train_dataset.__getitems__(list(range(len(trainer.train_dataset))))
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        outputs = trainer.model.eval()(**model_inputs(batch))
    trainer.train()
    losses = logged(trainer, "loss_")[0]
    logits, labels = outputs.logits["slots"].flatten(0, 1), batch["labels"]["slots"].flatten()
    weight = torch.tensor([0.1, 4.0, 1.0])  # O, B-city, I-city
    assert trainer.model.config.tasks["slots"].labels == ["O", "B-city", "I-city"]
    of_tokens = batch["label_weights"]["slots"].flatten()
    assert of_tokens.unique().tolist() == [0.5, 1.5]
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": "none"}
    total = (F.cross_entropy(logits, labels, **options) * of_tokens).sum()
    expected = total / (weight[labels.clamp(min=0)] * of_tokens)[labels != IGNORE].sum()
    assert losses["loss_slots"] == pytest.approx(float(expected), abs=1e-4)
    # intent: weights of rows and classes, focal; every second row has a distribution
    p, labels = outputs.logits["intent"].softmax(-1), batch["labels"]["intent"]
    of_rows = batch["label_weights"]["intent"][:, None]
    weight = labels * torch.tensor([0.05, 0.02, 0.1]) * of_rows
    expected = (weight * (1 - p) ** 1.5 * -p.log()).sum() / weight.sum()
    assert float(weight.sum()) < 1
    assert sorted(set(map(tuple, labels.tolist()))) == sorted(
        map(tuple, torch.cat([torch.eye(3), torch.tensor([[0.2, 0.3, 0.5]])]).tolist())
    )
    assert losses["loss_intent"] == pytest.approx(float(expected), abs=1e-4)
    numbers, weight = batch["labels"]["urgency"], batch["label_weights"]["urgency"]
    errors = (outputs.logits["urgency"][:, 0] - numbers) ** 2
    expected = (weight * errors).sum() / weight.sum()
    assert losses["loss_urgency"] == pytest.approx(float(expected), abs=1e-4)


def test_rows_are_drawn_by_class(build, usual_tasks):
    chosen = {name: usual_tasks[name] for name in ("same", "near", "urgency")}
    multitask = MultiTaskArguments(sampling=Sampling(balance="label"))
    sampler = build(chosen, multitask=multitask).sampler
    assert list(sampler.classes) == ["same"]
    lines = sampler.summary(1)
    assert [line.endswith(", of each class as many") for line in lines] == [
        name in sampler.classes for name in sampler.ranges
    ]
