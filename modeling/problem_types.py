# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What differs between classes, their order, several labels and numbers: `PROBLEM_TYPES`.

The names are HF's, and `ordinal`.

Shapes: `N` rows, `L` labels.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoding import decode_classes, rank_strict
from .hierarchy import decode_tree
from .options import HeadTask

IGNORE = -100  # the label that torch's cross-entropy and HF skip


class ProblemType(Protocol):
    """One problem type: its labels, its loss and how it answers."""

    least_labels: int  # 0: it has none

    def count(self, labels: Tensor) -> Tensor:
        """Number of labelled rows, a scalar."""
        ...

    def loss_sum(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Loss summed over the labelled rows, a scalar; `smoothing` of types with one class."""
        ...

    def answer(
        self, task: HeadTask, values: Tensor, *, top_k: int | None, threshold: float | None
    ) -> Any:
        """(L,) logits of one text -> what the pipeline says."""
        ...


class SingleLabel:
    """One class for each row (or token): cross-entropy over (N,) ids; -100 is no label."""

    least_labels = 2

    def count(self, labels: Tensor) -> Tensor:
        """Rows whose label is not -100, a scalar."""
        return (labels != IGNORE).sum()

    def loss_sum(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of (..., L) logits and (...) ids, summed; a scalar."""
        return F.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(),
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def answer(
        self, task: HeadTask, values: Tensor, *, top_k: int | None, threshold: float | None
    ) -> Any:
        """(L,) -> the best label and its probability; a list of them unless `top_k` is 1."""
        if task.strict:
            ranked = rank_strict(values, task.labels or [], task.strict)
            return ranked[0] if top_k == 1 else ranked[:top_k]
        if task.hierarchy:
            return decode_tree(values, task.labels or [], top_k)
        return decode_classes(
            values, task.labels or [], multi_label=False, top_k=top_k, threshold=0.0
        )


def marginal_loss_sum(logits: Tensor, labels: Tensor, partial: list[list[int]]) -> Tensor:
    """Cross-entropy where a label may be one of several: the sum of their probabilities counts.

        loss = -log sum_{l in allowed} p(l),   the marginal likelihood of what the data says

    Args:
        logits: (..., L).
        labels: (...) ids; L + k allows the ids `partial[k]`; -100 is no label.
        partial: sets of ids.

    Returns:
        sum over the labelled rows, a scalar.
    """
    count = logits.shape[-1]
    allowed = torch.eye(count + len(partial), count, dtype=torch.bool)
    for number, ids in enumerate(partial):
        allowed[count + number, ids] = True
    known = labels.flatten() != IGNORE
    logits, ids = logits.flatten(0, -2)[known], labels.flatten()[known]
    barred = ~allowed.to(logits.device)[ids]
    inside = logits.masked_fill(barred, float("-inf")).logsumexp(-1)
    return (logits.logsumexp(-1) - inside).sum()


def ordinal_logits(steps: Tensor) -> Tensor:
    """Log-probabilities of L classes in order, from L - 1 steps up.

        P(y > k | y >= k) = sigmoid(s_k)
        log P(y = k) = sum_{j<k} log sigmoid(s_j) + log sigmoid(-s_k)

    CORN (arXiv:2111.08851): P(y > k) is a product, so that it never rises with k; cross-entropy
    over these is the sum of its losses of the conditional steps.

    Args:
        steps: (..., L - 1).

    Returns:
        (..., L).
    """
    up, stay = F.logsigmoid(steps), F.logsigmoid(-steps)
    none = torch.zeros_like(steps[..., :1])
    return torch.cat([none, up.cumsum(-1)], -1) + torch.cat([stay, none], -1)


def middle_class(logits: Tensor) -> Tensor:
    """(..., L) logits of classes in order -> (...) the median class, whose absolute error is least.

    It is the number of classes k with P(y > k) > 1/2.
    """
    below = logits.float().softmax(-1).cumsum(-1)[..., :-1]
    return (below < 0.5).sum(-1)


class Ordinal(SingleLabel):
    """One of several classes in order, the lowest first; trained as CORN says."""

    def answer(
        self, task: HeadTask, values: Tensor, *, top_k: int | None, threshold: float | None
    ) -> Any:
        """(L,) -> the class in the middle and its probability; a list by probability unless 1."""
        ranked: Any = super().answer(task, values, top_k=None, threshold=threshold)
        if top_k != 1:
            return ranked[:top_k]
        label = (task.labels or [])[int(middle_class(values))]
        return next(answer for answer in ranked if answer["label"] == label)


class MultiLabel:
    """Any number of labels for each row: binary cross-entropy over (N, L) of 0, 1 or NaN."""

    least_labels = 1

    def count(self, labels: Tensor) -> Tensor:
        """Rows with a label that is not NaN, a scalar."""
        return _rows_known(labels)

    def loss_sum(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Sum over rows of the mean over a row's known labels, a scalar."""
        known = ~labels.isnan()
        filled = torch.where(known, labels, 0).to(logits.dtype)
        errors = F.binary_cross_entropy_with_logits(logits, filled, reduction="none") * known
        return (errors.sum(1) / known.sum(1).clamp(min=1)).sum()

    def answer(
        self, task: HeadTask, values: Tensor, *, top_k: int | None, threshold: float | None
    ) -> Any:
        """(L,) -> labels from `threshold` on (None: the task's; all, if `top_k` is), best first."""
        if threshold is None:
            threshold = 0.0 if top_k is None else task.threshold
        return decode_classes(
            values, task.labels or [], multi_label=True, top_k=top_k, threshold=threshold
        )


class Regression:
    """A number for each row: squared error over (N,); NaN is no label."""

    least_labels = 0

    def count(self, labels: Tensor) -> Tensor:
        """Rows whose number is not NaN, a scalar."""
        return _rows_known(labels)

    def loss_sum(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Squared error of (N, 1) logits and (N,) numbers, summed; a scalar."""
        known = ~labels.isnan()
        filled = torch.where(known, labels, 0).to(logits.dtype)
        return ((logits.squeeze(-1) - filled.view(-1)).square() * known.view(-1)).sum()

    def answer(
        self, task: HeadTask, values: Tensor, *, top_k: int | None, threshold: float | None
    ) -> Any:
        """(1,) -> the number."""
        return {"score": float(values[0])}


def _rows_known(labels: Tensor) -> Tensor:
    """Rows of (N,) or (N, L) with any number that is not NaN, a scalar."""
    return (~labels.isnan()).view(len(labels), -1).any(1).sum()


PROBLEM_TYPES: dict[str, ProblemType] = {
    "single_label_classification": SingleLabel(),
    "ordinal": Ordinal(),
    "multi_label_classification": MultiLabel(),
    "regression": Regression(),
}
