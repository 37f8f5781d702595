"""Weights of classes, the focal loss and weights of rows: by hand, and exact over micro-batches."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_encoder_config
from polyhead.modeling import TaskConfig
from torch.testing import assert_close

LABELS = ["a", "b", "c"]
WEIGHTS = {"a": 3.0, "c": 0.25}  # b weighs 1
TASKS = {
    "single_label_classification": {"labels": LABELS},
    "ordinal": {"labels": LABELS, "problem_type": "ordinal"},
    "multi_label_classification": {
        "labels": LABELS,
        "problem_type": "multi_label_classification",
    },
    "regression": {"problem_type": "regression"},
    "token_classification": {"labels": LABELS},
    "multiple_choice": {},
}
CLASSES = ["single_label_classification", "ordinal", "token_classification"]


def head_of(kind, **options):
    head = "sequence_classification" if "problem_type" in TASKS[kind] else kind
    head = "sequence_classification" if kind == "single_label_classification" else head
    task = TaskConfig(head=head, **TASKS[kind], **options)
    return task.head_class(task=task, encoder_config=tiny_encoder_config("bert"), pooling="mean")


def rows_of(kind, count=8):
    """Logits and labels of so many rows, and their weights; row 5 has no label."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 1 if kind == "regression" else 3, generator=generator)
    labels = torch.arange(count) % 3
    weights = torch.rand(count, generator=generator) * 2
    if kind == "multi_label_classification":
        labels = torch.rand(count, 3, generator=generator).round()
        labels[2, 1] = labels[5] = float("nan")
    elif kind == "regression":
        labels = torch.rand(count, generator=generator)
        labels[5] = float("nan")
    else:
        labels[5] = -100
    if kind == "ordinal":
        logits = logits.log_softmax(-1)
    return logits, labels, weights


def shaped(kind, logits, *of_rows):
    """As the head has them: tokens of one text, or a row for each choice."""
    if kind == "token_classification":
        return logits[None], *(values[None] for values in of_rows)
    return (logits.view(-1, 1) if kind == "multiple_choice" else logits), *of_rows


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_label_counts_as_often_as_its_class_weighs(kind, smoothing):
    if kind == "ordinal" and smoothing:
        return
    logits, labels, _ = rows_of(kind)
    weight = torch.tensor([3.0, 1.0, 0.25])
    expected = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    head = head_of(kind, class_weight=WEIGHTS, label_smoothing=smoothing)
    assert_close(head.loss(*shaped(kind, logits, labels)), expected)
    assert float(head.count(*shaped(kind, logits, labels)[1:])) == 3 * 3 + 3 + 0.25


def test_a_class_weight_by_hand():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 2])
    surprise = math.log(math.exp(2) + 1 + math.exp(-1)) - 2
    by_hand = (3 * surprise + 0.25 * math.log(3)) / 3.25
    head = head_of("single_label_classification", class_weight=WEIGHTS)
    assert_close(head.loss(logits, labels), torch.tensor(by_hand))


def test_a_set_label_of_several_weighs_as_its_class():
    logits, labels, _ = rows_of("multi_label_classification")
    kept = [row for row in range(8) if row not in (2, 5)]
    weight = torch.tensor([3.0, 1.0, 0.25])
    whole = F.binary_cross_entropy_with_logits(logits[kept], labels[kept], pos_weight=weight)
    known = [0, 2]
    part = F.binary_cross_entropy_with_logits(
        logits[2, known], labels[2, known], pos_weight=weight[known]
    )
    head = head_of("multi_label_classification", class_weight=WEIGHTS)
    assert_close(head.loss(logits, labels), (6 * whole + part) / 7)
    assert int(head.count(labels)) == 7


@pytest.mark.parametrize("kind", [*CLASSES, "multiple_choice"])
def test_the_focal_loss_by_hand(kind):
    logits, labels, _ = rows_of(kind)
    p = logits.softmax(-1)
    expected = sum(
        (1 - p[row, y]) ** 2 * -p[row, y].log() for row, y in enumerate(labels) if y != -100
    )
    head = head_of(kind, focal=2.0)
    assert_close(head.loss(*shaped(kind, logits, labels)), expected / 7)


def test_the_focal_loss_goes_with_smoothing_and_class_weights():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([1])
    p = logits[0].softmax(-1)
    q, w = torch.tensor([0.1, 0.8, 0.1]), torch.tensor([3.0, 1.0, 0.25])
    head = head_of(
        "single_label_classification", focal=0.5, label_smoothing=0.3, class_weight=WEIGHTS
    )
    assert_close(head.loss(logits, labels), (-w * q * (1 - p) ** 0.5 * p.log()).sum())


def test_the_focal_loss_of_several_labels_by_hand():
    logits, labels, _ = rows_of("multi_label_classification")
    head = head_of("multi_label_classification", focal=2.0, class_weight=WEIGHTS)
    total, weight = torch.zeros(()), torch.tensor([3.0, 1.0, 0.25])
    for x, y in zip(logits, labels, strict=True):
        p, known = x.sigmoid(), ~y.isnan()
        error = torch.where(y == 1, -weight * (1 - p) ** 2 * p.log(), -(p**2) * torch.log(1 - p))
        total += error[known].mean() if known.any() else 0
    assert_close(head.loss(logits, labels), total / 7)


@pytest.mark.parametrize("kind", [*CLASSES, "multi_label_classification"])
def test_a_certain_answer_has_a_gradient_that_is_a_number(kind):
    logits, labels, _ = rows_of(kind)
    logits = torch.full_like(logits, -200.0)
    logits[:, 0] = 200.0
    logits = logits.log_softmax(-1) if kind == "ordinal" else logits
    head = head_of(kind, focal=0.5)
    logits.requires_grad_()
    head.loss(*shaped(kind, logits, labels)).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", TASKS)
def test_a_row_of_weight_2_counts_as_two(kind):
    logits, labels, _ = rows_of(kind)
    options = {} if kind in ("regression", "multiple_choice") else {"class_weight": WEIGHTS}
    options |= {} if kind == "regression" else {"focal": 1.5}
    head = head_of(kind, **options)
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 3.0, 1.0, 1.0])
    often = [0, 1, 1, 3, 4, 6, 7]
    expected = head.loss(*shaped(kind, logits[often], labels[often]))
    values, ids, of_rows = shaped(kind, logits, labels, weights)
    assert_close(head.loss(values, ids, None, of_rows), expected)
    assert_close(head.loss(values, ids, head.count(ids, of_rows), of_rows), expected)


@pytest.mark.parametrize("kind", TASKS)
def test_micro_batches_add_up_to_the_whole_step(kind):
    logits, labels, weights = rows_of(kind)
    options = {} if kind in ("regression", "multiple_choice") else {"class_weight": WEIGHTS}
    head = head_of(kind, **options)
    values, ids, of_rows = shaped(kind, logits, labels, weights / 100)  # a sum below 1
    items, total = head.count(ids, of_rows), torch.zeros(())
    assert float(items) < 1
    for i in range(0, 8, 2):
        part = [x[i : i + 2] for x in (logits, labels, weights / 100)]
        part_values, part_ids, part_weights = shaped(kind, *part)
        total += head.loss(part_values, part_ids, items, part_weights)
    assert_close(total, head.loss(values, ids, None, of_rows))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"class_weight": {"z": 1.0}}, "class_weight names 'z'; labels: a, b, c"),
        ({"class_weight": {"a": 0}}, "class_weight of 'a' is 0; write a number above 0"),
        ({"class_weight": {"a": "2"}}, "class_weight of 'a' is '2'; write a number above 0"),
        ({"class_weight": "balanced"}, "balanced is found by a recipe"),
        ({"class_weight": {"a": 2.0}, "partial": [["a", "b"]]}, "class_weight weighs one label"),
        ({"focal": 1.0, "partial": [["a", "b"]]}, "focal weighs one label"),
        ({"focal": -1.0}, "focal is -1.0"),
    ],
)
def test_what_has_no_meaning_is_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        TaskConfig(
            head="sequence_classification",
            labels=LABELS,
            problem_type="single_label_classification",
            **options,
        )


def test_numbers_have_no_classes():
    for options in ({"class_weight": {}}, {"focal": 1.0}):
        with pytest.raises(ValueError, match="class_weight and focal are for classes"):
            TaskConfig(head="sequence_classification", problem_type="regression", **options)
