"""AdamW with moments by source of rows on the weights that sources share (AdaTask).

One AdamW over the sum of the tasks' gradients divides by the root of the sum's second moment: the
task with the largest gradients sets the step of all of them. AdaTask (arXiv:2211.15055) keeps the
accumulated gradients, first and second moment, of each task apart, and adds up the tasks' updates:

    m_k = b1 m_k + (1 - b1) g_k        v_k = b2 v_k + (1 - b2) g_k^2
    w   = w - lr * weight_decay * w - sum over k of lr * r_k * m^_k / (sqrt(v^_k) + eps)

with m^_k and v^_k corrected for their bias by the number of steps that source k was in, so that its
moments warm up by themselves. Three things follow. Each source moves the weights by up to the
learning rate, so a step with K sources goes as far as K steps with one. The size of a loss, and its
`loss_weight`, no longer say how much a source counts; its rate r_k does. A source without rows in a
step is not there: its moments keep, and it moves nothing.

`second_moment` keeps the second moments apart and has one first moment, of the sum of the gradients
so normalised (RMSProp with AdaTask, then momentum): half the memory, and momentum that is the
step's rather than a source's own, which may be of many steps ago:

    m = b1 m + (1 - b1) sum over k of r_k * g_k / (sqrt(v^_k) + eps)        w = w - ... - lr * m^

Time: an AdamW over the shared weights for each source in the step; of a table with a sparse
gradient only over the rows that the source has met, for on all others its moments are 0. Memory, in
copies of the shared weights, for K sources: 2 K (`moments`) or K + 1 (`second_moment`) of state,
where AdamW has 2, and a gradient for each source in the step, where it has 1.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from .source_gradients import SourceGradients, many


@dataclass
class _Update:
    """Numbers that AdamW changes in place, by their gradient and its moments.

    Args:
        target: weights, or rows of them.
        gradient: as many numbers.
        first: first moment.
        second: second moment.
        step: scalar, updates so far.
        rows: numbers of the rows, where the others are rows of a table; else None.
        whole: the table, and its moments, that the rows go back to.
    """

    target: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor
    step: Tensor
    rows: Tensor | None = None
    whole: tuple[Tensor, ...] = ()

    def write(self) -> None:
        """Put rows back where they came from."""
        if self.rows is not None:
            parts = (self.second, self.first, self.target)
            for table, part in zip(self.whole, parts, strict=False):
                table.index_copy_(0, self.rows, part)


class TaskAdamW(torch.optim.Optimizer):
    """AdamW; on weights that sources share, with moments by source.

    State of a shared weight: `exp_avg_sq` (K, *shape), `exp_avg` (K, *shape), or (*shape) for
    `second_moment`, and `step` (K,), or (K + 1,) with that of the first moment. Other weights have
    the state of `torch.optim.AdamW`, and are updated by it from their `grad`.

    Args:
        params: weights or parameter groups.
        gradients: holds the sources' gradients on shared weights; a step uses them up.
        by_task: which moments are kept apart.
        lr: learning rate.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: taken off once a step, of the weights that have a gradient from any source.
        rates: by source, r_k; default 1.
        fused: as of `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Any,
        gradients: SourceGradients,
        *,
        by_task: Literal["moments", "second_moment"] = "moments",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        rates: list[float] | None = None,
        fused: bool | None = None,
    ) -> None:
        self.gradients = gradients
        self.by_task = by_task
        self._shared = set(gradients.shared)
        self._met: dict[tuple[nn.Parameter, int], Tensor] = {}  # (rows,) bool
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rates": rates or [1.0] * len(gradients.names),
            "fused": fused,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            alone = [w for w in group["params"] if w not in self._shared and w.grad is not None]
            by_source = [
                {w: values[w] for w in group["params"] if w in values}
                for values in self.gradients.values
            ]
            moved = list(dict.fromkeys([*alone, *(w for some in by_source for w in some)]))
            if not moved:
                continue
            if group["weight_decay"]:
                many._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            for weight in moved:
                if not self.state[weight]:
                    self._begin(weight, group)
            keys = ("exp_avg", "exp_avg_sq", "step")
            updates = [_Update(w, w.grad, *(self.state[w][key] for key in keys)) for w in alone]
            _adamw(updates, group, lr=group["lr"], beta1=group["betas"][0])
            if self.by_task == "moments":
                for number, gradients in enumerate(by_source):
                    self._two_moments(group, number, gradients)
            else:
                self._one_momentum(group, by_source)
        self.gradients.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; the rows of a table that a source has met are read off its moments."""
        self._met = {}
        super().load_state_dict(state_dict)

    def _begin(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        """State of a weight before its first update."""
        shared, sources = weight in self._shared, len(self.gradients.names)
        one, each = weight.shape, (sources, *weight.shape)
        both = shared and self.by_task == "moments"
        count = (sources + (not both),) if shared else ()
        device = weight.device if group["fused"] else "cpu"
        self.state[weight] = {
            "step": torch.zeros(count, dtype=torch.float32, device=device),
            "exp_avg": weight.new_zeros(each if both else one),
            "exp_avg_sq": weight.new_zeros(each if shared else one),
        }

    # ---- moments ----

    def _two_moments(
        self, group: dict[str, Any], number: int, gradients: dict[nn.Parameter, Tensor]
    ) -> None:
        """The update of one source, with first and second moments of its own."""
        updates = []
        for weight, gradient in gradients.items():
            state = self.state[weight]
            first, second = state["exp_avg"][number], state["exp_avg_sq"][number]
            step = state["step"][number]
            if gradient.is_sparse:
                whole = (second, first, weight)
                rows = self._rows_met(weight, number, gradient, whole[:2])
                target, first, second = weight[rows], first[rows], second[rows]
                gradient = _dense_rows(rows, gradient)
                updates.append(_Update(target, gradient, first, second, step, rows, whole))
            else:
                updates.append(_Update(weight, gradient, first, second, step))
        lr, beta1 = group["lr"] * group["rates"][number], group["betas"][0]
        _adamw(updates, group, lr=lr, beta1=beta1)

    def _rows_met(
        self, weight: nn.Parameter, number: int, gradient: Tensor, moments: tuple[Tensor, ...]
    ) -> Tensor:
        """Rows of a table on which these moments are not 0, with those of a sparse gradient.

        Args:
            weight: the table.
            number: the source; -1 for their sum.
            gradient: coalesced.
            moments: those of the source.

        Returns:
            (rows,), rising.
        """
        met = self._met.get((weight, number))
        if met is None:
            met = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
            for values in moments:
                met |= values.any(1)
            self._met[weight, number] = met
        met[gradient.indices()[0][gradient.values().any(1)]] = True
        return met.nonzero().flatten()

    # ---- second_moment ----

    def _one_momentum(
        self, group: dict[str, Any], by_source: list[dict[nn.Parameter, Tensor]]
    ) -> None:
        """The first moment of the sum of the sources' gradients, each normalised by its own second.

        AdamW without a first moment (beta1 of 0), with a rate of -r_k, adds r_k g_k / (sqrt(v^_k) +
        eps) to its target.
        """
        sums: dict[nn.Parameter, Tensor] = {}
        for number, gradients in enumerate(by_source):
            updates = []
            for weight, gradient in gradients.items():
                second, step = (self.state[weight][k][number] for k in ("exp_avg_sq", "step"))
                if gradient.is_sparse:
                    rows = self._rows_met(weight, number, gradient, (second,))
                    dense = _dense_rows(rows, gradient)
                    update = _Update(
                        torch.zeros_like(dense), dense, dense, second[rows], step, rows, (second,)
                    )
                else:
                    total = sums.setdefault(weight, torch.zeros_like(weight))
                    update = _Update(total, gradient, gradient, second, step)
                updates.append(update)
            _adamw(updates, group, lr=-group["rates"][number], beta1=0.0)
            for weight, update in zip(gradients, updates, strict=True):
                if update.rows is not None:
                    places = update.rows[None], update.target
                    part = torch.sparse_coo_tensor(*places, weight.shape, is_coalesced=True)
                    sums[weight] = sums[weight] + part if weight in sums else part
        self._move(group, sums)

    def _move(self, group: dict[str, Any], sums: dict[nn.Parameter, Tensor]) -> None:
        """Momentum over the sums, and the step along it."""
        if not sums:
            return
        beta1, steps = group["betas"][0], [self.state[weight]["step"][-1] for weight in sums]
        many._foreach_add_(steps, 1)
        sizes = [-group["lr"] / (1 - beta1**count) for count in torch.stack(steps).tolist()]
        dense = []
        for (weight, total), size in zip(sums.items(), sizes, strict=True):
            first = self.state[weight]["exp_avg"]
            if total.is_sparse:
                total = total.coalesce()
                rows = self._rows_met(weight, -1, total, (first,))
                part = first[rows].lerp_(_dense_rows(rows, total), 1 - beta1)
                first.index_copy_(0, rows, part)
                weight.index_add_(0, rows, part, alpha=size)
            else:
                dense.append((weight, first, total, size))
        if dense:
            weights, firsts, totals, sizes = zip(*dense, strict=True)
            many._foreach_lerp_(firsts, totals, 1 - beta1)
            many._foreach_add_(weights, many._foreach_mul(firsts, sizes))


def _dense_rows(rows: Tensor, gradient: Tensor) -> Tensor:
    """Rows of a coalesced sparse gradient, zeros where it has none.

    Args:
        rows: (R,) numbers, rising, with all of the gradient's that are not zero.
        gradient: sparse (V, H).

    Returns:
        (R, H).
    """
    numbers, values = gradient.indices()[0], gradient.values()
    there = values.any(1)
    dense = values.new_zeros(len(rows), values.shape[1])
    dense[torch.searchsorted(rows, numbers[there])] = values[there]
    return dense


def _adamw(updates: list[_Update], group: dict[str, Any], *, lr: float, beta1: float) -> None:
    """Torch's AdamW less its weight decay."""
    if not updates:
        return
    adamw(
        [update.target for update in updates],
        [update.gradient for update in updates],
        [update.first for update in updates],
        [update.second for update in updates],
        [],
        [update.step for update in updates],
        fused=group["fused"],
        amsgrad=False,
        beta1=beta1,
        beta2=group["betas"][1],
        lr=lr,
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )
    for update in updates:
        update.write()
