# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What differs between classes, their order, several labels and numbers: `PROBLEM_TYPES`.

The names are HF's, and `ordinal`.

Shapes: `N` rows, `L` labels.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoding import decode_classes, if_sure, rank_strict
from .hierarchy import decode_tree
from .options import HeadTask

IGNORE = -100  # the label that torch's cross-entropy and HF skip


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """How much each class and each answer counts in a loss over classes.

    Args:
        smoothing: share of a label that is spread over all classes (arXiv:1512.00567).
        gamma: of the focal loss, (1 - p)^gamma times the cross-entropy (arXiv:1708.02002).
        classes: weights of the L classes; None for all alike.
    """

    smoothing: float = 0.0
    gamma: float = 0.0
    classes: tuple[float, ...] | None = None

    @classmethod
    def of(cls, task: HeadTask) -> "Weighing":
        """As the options of a task say."""
        by_label: Any = task.class_weight
        classes = tuple(by_label.get(label, 1.0) for label in task.labels or []) if by_label else ()
        return cls(smoothing=task.label_smoothing, gamma=task.focal, classes=classes or None)

    def of_classes(self, like: Tensor) -> Tensor | None:
        """(L,), on the device and of the type of `like`."""
        if self.classes is None:
            return None
        return torch.tensor(self.classes, dtype=like.dtype, device=like.device)

    def focus(self, miss: Tensor) -> Tensor:
        """(1 - p)^gamma of `miss`, 1 - p; a root is kept from its end, where it has no slope."""
        return miss.clamp(min=torch.finfo(miss.dtype).tiny) ** self.gamma


PLAIN = Weighing()


class ProblemType(Protocol):
    """One problem type: its labels, its loss and how it answers."""

    least_labels: int  # 0: it has none

    def count(
        self, labels: Tensor, weighing: Weighing = PLAIN, weights: Tensor | None = None
    ) -> Tensor:
        """Number of labelled rows, each as often as it weighs; a scalar.

        Args:
            labels: (N,) or (N, L).
            weighing: of classes.
            weights: (N,), of rows; None for all alike.
        """
        ...

    def loss_sum(
        self,
        logits: Tensor,
        labels: Tensor,
        weighing: Weighing = PLAIN,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Loss summed over the labelled rows, each as often as it weighs; a scalar."""
        ...

    def answer(
        self, task: HeadTask, values: Tensor, *, top_k: int | None, threshold: float | None
    ) -> Any:
        """(L,) logits of one text -> what the pipeline says."""
        ...


class SingleLabel:
    """One class for each row (or token): cross-entropy over (N,) ids; -100 is no label.

        loss = -sum_l w_l q_l (1 - p_l)^gamma log p_l,   count = w_y

    with q one at the label y, or smoothed. Of rows, also over (N, L) distributions q; NaN is no
    label, and count = sum_l w_l q_l.
    """

    least_labels = 2

    def count(
        self, labels: Tensor, weighing: Weighing = PLAIN, weights: Tensor | None = None
    ) -> Tensor:
        """Rows whose label is not -100, each as often as its class and it weigh; a scalar."""
        if labels.is_floating_point():
            classes, shares = weighing.of_classes(labels), labels.nan_to_num()
            units = (shares if classes is None else shares * classes).sum(-1)
            return (units if weights is None else units * weights).sum()
        known = labels != IGNORE
        if weighing.classes is None and weights is None:
            return known.sum()
        units = known.float()
        classes = weighing.of_classes(units)
        if classes is not None:
            units = units * classes[labels.clamp(min=0)]
        return (units if weights is None else units * weights).sum()

    def loss_sum(
        self,
        logits: Tensor,
        labels: Tensor,
        weighing: Weighing = PLAIN,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of (..., L) logits and (...) ids, or distributions, summed; a scalar."""
        soft, logits = labels.is_floating_point(), logits.flatten(0, -2)
        labels = labels if soft else labels.flatten()
        if weighing.gamma or soft:
            losses = _losses(logits, labels, weighing)
        else:
            losses = F.cross_entropy(
                logits,
                labels,
                weight=weighing.of_classes(logits),
                ignore_index=IGNORE,
                reduction="sum" if weights is None else "none",
                label_smoothing=weighing.smoothing,
            )
        return _weighed_sum(losses, None if weights is None else weights.flatten())

    def answer(
        self, task: HeadTask, values: Tensor, *, top_k: int | None, threshold: float | None
    ) -> Any:
        """(L,) -> the best label and its probability; a list of them unless `top_k` is 1.

        The one answer has no label where its probability is below `abstain`; a list has all.
        """
        labels = task.labels or []
        if task.strict:
            ranked = rank_strict(values, labels, task.strict)
            answer = ranked[0] if top_k == 1 else ranked[:top_k]
        elif task.hierarchy:
            answer = decode_tree(values, labels, top_k)
        else:
            answer = decode_classes(values, labels, multi_label=False, top_k=top_k, threshold=0.0)
        return if_sure(answer, task.abstain, task.strict) if isinstance(answer, dict) else answer


def _losses(logits: Tensor, labels: Tensor, weighing: Weighing) -> Tensor:
    """(N,) losses of (N, L) logits and (N,) ids or (N, L) distributions; 0 without a label."""
    count, log_p = logits.shape[-1], logits.log_softmax(-1)
    if labels.is_floating_point():
        known, targets = ~labels.isnan().any(-1), labels.nan_to_num().to(logits.dtype)
    else:
        known = labels != IGNORE
        targets = F.one_hot(labels.clamp(min=0), count).to(logits.dtype)
    targets = targets * (1 - weighing.smoothing) + weighing.smoothing / count
    classes = weighing.of_classes(logits)
    targets = (targets if classes is None else targets * classes) * known[:, None]
    if weighing.gamma:
        targets = targets * weighing.focus(-torch.expm1(log_p))
    return -(targets * log_p).sum(-1)


def marginal_loss_sum(
    logits: Tensor, labels: Tensor, partial: list[list[int]], weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy where a label may be one of several: the sum of their probabilities counts.

        loss = -log sum_{l in allowed} p(l),   the marginal likelihood of what the data says

    Args:
        logits: (..., L).
        labels: (...) ids; L + k allows the ids `partial[k]`; -100 is no label.
        partial: sets of ids.
        weights: (...), of the labels; None for all alike.

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
    losses = logits.logsumexp(-1) - inside
    return _weighed_sum(losses, None if weights is None else weights.flatten()[known])


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


class _Numbers:
    """Labels that are numbers, (N,) or (N, L); NaN is no label."""

    def count(
        self, labels: Tensor, weighing: Weighing = PLAIN, weights: Tensor | None = None
    ) -> Tensor:
        """Rows with a number that is not NaN, each as often as it weighs; a scalar."""
        known = (~labels.isnan()).view(len(labels), -1).any(1)
        return known.sum() if weights is None else (known * weights).sum()


class MultiLabel(_Numbers):
    """Any number of labels for each row: binary cross-entropy over (N, L) of 0, 1 or NaN."""

    least_labels = 1

    def loss_sum(
        self,
        logits: Tensor,
        labels: Tensor,
        weighing: Weighing = PLAIN,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Sum over rows of the mean over a row's known labels, a scalar.

        A label that is set weighs as its class does (torch's `pos_weight`), one that is not 1.
        """
        known = ~labels.isnan()
        filled = torch.where(known, labels, 0).to(logits.dtype)
        classes = weighing.of_classes(logits)
        if weighing.gamma:
            p, positive = logits.sigmoid(), 1.0 if classes is None else classes
            errors = positive * filled * weighing.focus(1 - p) * F.softplus(-logits)
            errors = errors + (1 - filled) * weighing.focus(p) * F.softplus(logits)
        else:
            errors = F.binary_cross_entropy_with_logits(
                logits, filled, pos_weight=classes, reduction="none"
            )
        losses = (errors * known).sum(1) / known.sum(1).clamp(min=1)
        return _weighed_sum(losses, weights)

    def answer(
        self, task: HeadTask, values: Tensor, *, top_k: int | None, threshold: float | None
    ) -> Any:
        """(L,) -> labels from `threshold` on (None: the task's; all, if `top_k` is), best first."""
        if threshold is None:
            chosen = 0.0 if top_k is None else task.label_thresholds
        else:
            chosen = threshold
        return decode_classes(
            values, task.labels or [], multi_label=True, top_k=top_k, threshold=chosen
        )


class Regression(_Numbers):
    """A number for each row: squared error over (N,); NaN is no label."""

    least_labels = 0

    def loss_sum(
        self,
        logits: Tensor,
        labels: Tensor,
        weighing: Weighing = PLAIN,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Squared error of (N, 1) logits and (N,) numbers, summed; a scalar."""
        known = ~labels.isnan()
        filled = torch.where(known, labels, 0).to(logits.dtype)
        losses = (logits.squeeze(-1) - filled.view(-1)).square() * known.view(-1)
        return _weighed_sum(losses, weights)

    def answer(
        self, task: HeadTask, values: Tensor, *, top_k: int | None, threshold: float | None
    ) -> Any:
        """(1,) -> the number."""
        return {"score": float(values[0])}


def _weighed_sum(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Sum of losses, each times its weight; a scalar."""
    return losses.sum() if weights is None else (losses * weights).sum()


PROBLEM_TYPES: dict[str, ProblemType] = {
    "single_label_classification": SingleLabel(),
    "ordinal": Ordinal(),
    "multi_label_classification": MultiLabel(),
    "regression": Regression(),
}
