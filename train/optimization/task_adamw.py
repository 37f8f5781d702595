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

Time: an AdamW over the shared weights for each source in the step. Memory, in copies of the shared
weights, for K sources: 2 K (`moments`) or K + 1 (`second_moment`) of state, where AdamW has 2, and
a gradient for each source in the step. So 12 with pure batches and 5 sources: 10 + 1 + the weights.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from .source_gradients import SourceGradients, many


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
        fused: one kernel for each call, for `moments`; numbers and memory are those of torch's.
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
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rates": rates or [1.0] * len(gradients.names),
            "fused": fused if by_task == "moments" else None,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            alone = [w for w in group["params"] if w not in self._shared and w.grad is not None]
            by_source = [
                [w for w in group["params"] if w in values] for values in self.gradients.values
            ]
            moved = list(dict.fromkeys([*alone, *(w for some in by_source for w in some)]))
            if not moved:
                continue
            if group["weight_decay"]:
                many._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            for weight in moved:
                if not self.state[weight]:
                    self._begin(weight, group)
            self._adamw(group, alone, [w.grad for w in alone], None)
            if self.by_task == "moments":
                for number, weights in enumerate(by_source):
                    values = self.gradients.values[number]
                    self._adamw(group, weights, [values[w] for w in weights], number)
            else:
                self._one_momentum(group, by_source)
        self.gradients.clear()

    def _begin(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        """State of a weight before its first update."""
        place: Any = {"dtype": torch.float32, "device": weight.device if group["fused"] else "cpu"}
        first = second = torch.zeros_like(weight)
        count: tuple[int, ...] = ()
        if weight in self._shared:
            sources = len(self.gradients.names)
            second = weight.new_zeros(sources, *weight.shape)
            count = (sources + (self.by_task == "second_moment"),)
            if self.by_task == "moments":
                first = torch.zeros_like(second)
        else:
            second = torch.zeros_like(weight)
        self.state[weight] = {
            "step": torch.zeros(count, **place),
            "exp_avg": first,
            "exp_avg_sq": second,
        }

    def _adamw(
        self,
        group: dict[str, Any],
        weights: list[nn.Parameter],
        gradients: list[Any],
        number: int | None,
    ) -> None:
        """Torch's AdamW, less the weight decay, with the moments of one source.

        Args:
            group: the parameter group.
            weights: some of its weights.
            gradients: their gradients.
            number: the source; None for weights that are not shared.
        """
        if not weights:
            return
        states = [self.state[weight] for weight in weights]
        moments = [
            [s[key] if number is None else s[key][number] for s in states]
            for key in ("exp_avg", "exp_avg_sq", "step")
        ]
        beta1, beta2 = group["betas"]
        adamw(
            weights,  # pyright: ignore[reportArgumentType]
            gradients,
            moments[0],
            moments[1],
            [],
            moments[2],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"] * (1.0 if number is None else group["rates"][number]),
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _one_momentum(self, group: dict[str, Any], by_source: list[list[nn.Parameter]]) -> None:
        """`second_moment`: see above; uses up the gradients as memory."""
        (beta1, beta2), sums = group["betas"], {}
        for number, weights in enumerate(by_source):
            if not weights:
                continue
            gradients = [self.gradients.values[number][w] for w in weights]
            second = [self.state[w]["exp_avg_sq"][number] for w in weights]
            many._foreach_mul_(second, beta2)
            many._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
            roots = many._foreach_sqrt(second)
            many._foreach_div_(roots, [(1 - beta2**n) ** 0.5 for n in self._count(weights, number)])
            many._foreach_add_(roots, group["eps"])
            many._foreach_div_(gradients, roots)
            if group["rates"][number] != 1.0:
                many._foreach_mul_(gradients, group["rates"][number])
            _add_by_weight(sums, weights, gradients)
        weights, gradients = list(sums), list(sums.values())
        if not weights:
            return
        first = [self.state[w]["exp_avg"] for w in weights]
        many._foreach_lerp_(first, gradients, 1 - beta1)
        sizes = [-group["lr"] / (1 - beta1**n) for n in self._count(weights, -1)]
        many._foreach_add_(weights, many._foreach_mul(first, sizes))

    def _count(self, weights: list[nn.Parameter], number: int) -> list[float]:
        """Count a step of these weights, and tell how many there have been."""
        steps = [self.state[weight]["step"][number] for weight in weights]
        many._foreach_add_(steps, 1)
        return [step.item() for step in steps]


def _add_by_weight(
    sums: dict[nn.Parameter, Tensor], weights: list[nn.Parameter], values: list[Tensor]
) -> None:
    """Add values to the sums of these weights; a first one becomes the sum."""
    again = [(sums[w], v) for w, v in zip(weights, values, strict=True) if w in sums]
    if again:
        many._foreach_add_([total for total, _ in again], [value for _, value in again])
    for weight, value in zip(weights, values, strict=True):
        sums.setdefault(weight, value)
