"""Training where classes weigh differently: a step is one, however it is cut."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from polyhead.train.batches.collator import model_inputs
from torch.testing import assert_close
from train_helpers import private_cache  # noqa: F401
from trainer_fixtures import logged, weights

WEIGHED = {
    "intent": {"class_weight": {"book": 0.05, "cancel": 0.02, "play": 0.1}, "focal": 1.5},
    "slots": {"class_weight": {"O": 0.1, "B-city": 4.0}, "label_smoothing": 0.1},
    "topics": {"class_weight": "balanced", "focal": 2.0},
}


@pytest.fixture(scope="module")
def weighed(usual_tasks):
    """The usual tasks, three of which have weights."""
    return {
        name: replace(task, **WEIGHED.get(name, {})) for name, task in sorted(usual_tasks.items())
    }


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
    expected = F.cross_entropy(logits, labels, weight=weight, label_smoothing=0.1)
    assert losses["loss_slots"] == pytest.approx(float(expected), abs=1e-4)
    chosen, labels = outputs.logits["intent"].softmax(-1), batch["labels"]["intent"]
    p, weight = chosen[range(len(labels)), labels], torch.tensor([0.05, 0.02, 0.1])[labels]
    expected = (weight * (1 - p) ** 1.5 * -p.log()).sum() / weight.sum()
    assert float(weight.sum()) < 1
    assert losses["loss_intent"] == pytest.approx(float(expected), abs=1e-4)
