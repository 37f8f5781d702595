"""Label smoothing: by hand, for every head that chooses a class, and exact over micro-batches."""

import math

import pytest
import torch
from conftest import tiny_encoder_config
from polyhead.modeling import TaskConfig
from torch.testing import assert_close

S = 0.3
TASKS = {
    "sequence_classification": {"labels": ["a", "b", "c"]},
    "token_classification": {"labels": ["a", "b", "c"]},
    "multiple_choice": {},
}


def head_of(kind, **options):
    task = TaskConfig(head=kind, **TASKS[kind], **options)
    return task.head_class(task=task, encoder_config=tiny_encoder_config("bert"), pooling="mean")


def shaped(kind, logits, labels):
    """Rows of three classes as the head has them: tokens of one text, or a row for each choice."""
    if kind == "token_classification":
        return logits[None], labels[None]
    return (logits.view(-1, 1), labels) if kind == "multiple_choice" else (logits, labels)


@pytest.mark.parametrize("kind", TASKS)
def test_the_loss_is_that_of_a_hand_calculation(kind):
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [5.0, 5.0, 5.0]]), torch.tensor([1, -100])
    total = math.log(math.exp(2) + 1 + math.exp(-1))
    surprise = [total - 2, total, total + 1]
    by_hand = (1 - S) * surprise[1] + S / 3 * sum(surprise)
    loss = head_of(kind, label_smoothing=S).loss(*shaped(kind, logits, labels))
    assert_close(loss, torch.tensor(by_hand))


@pytest.mark.parametrize("kind", TASKS)
def test_micro_batches_add_up_to_the_whole_step(kind):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 3, generator=generator), torch.arange(8) % 3
    labels[5] = -100
    head, items = head_of(kind, label_smoothing=S), torch.tensor(7)
    parts = [
        head.loss(*shaped(kind, logits[i : i + 2], labels[i : i + 2]), items)
        for i in range(0, 8, 2)
    ]
    assert_close(torch.stack(parts).sum(), head.loss(*shaped(kind, logits, labels)))


@pytest.mark.parametrize("kind", TASKS)
def test_without_it_the_loss_has_the_same_bits(kind):
    logits, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.ones(8)
    expected = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="sum") / 8
    assert torch.equal(head_of(kind).loss(*shaped(kind, logits, labels.long())), expected)
