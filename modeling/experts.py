# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Experts between encoder and heads: a task reads a mixture of them, weighed anew at each token.

    x = h + sum_i g_i E_i(h),   E_i(h) = U_i gelu(D_i h + b_i),   g = softmax(G h + c)

- `mmoe` (Ma et al., KDD 2018): n experts that all tasks share; each task has a gate G.
- `cgc` (Tang et al., RecSys 2020): each task has experts of its own beside the shared ones.
- `ple` (the same): a level of these below, whose shared experts read what all experts gave.

All U_i begin with 0, so a model begins with the logits of one without experts, to the bit, however
many there are. A task with one expert in all has no gate. Gate and own experts of a task are its
head's (`heads.<task>.mixture`); what tasks share is the model's (`experts`).

The first layer of the shared experts is computed once for all tasks, the second one for each task
on its own rows, as one product: gates scale the hidden units, which is the sum above. So a batch
in which each row has one task costs what one task over the batch does.

Shapes: `H` hidden, `n` shared experts, `o` own ones of a task, `S` hidden units of one, `K` tasks.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_choice, check_fields

KINDS = ("mmoe", "cgc", "ple")
LARGEST_COUNT = 64  # of experts that tasks share, and of those of one task
LARGEST_SIZE = 1 << 16  # hidden units of one


@dataclass(kw_only=True)
class ExpertOptions:
    """What `experts` may say.

    Args:
        kind: one of `KINDS`.
        experts: how many all tasks share.
        per_task: how many each task has beside them, for cgc and ple; default 1.
        size: hidden units of an expert; default half of the encoder's width.

    Raises:
        ValueError: a value is not allowed.
    """

    kind: str
    experts: int = 4
    per_task: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if self.kind == "mmoe" and self.per_task:
            raise ValueError("per_task belongs to cgc and ple, not to mmoe")
        bounds = {"experts": (1, LARGEST_COUNT), "size": (1, LARGEST_SIZE)}
        bounds["per_task"] = (0, 0) if self.kind == "mmoe" else (1, LARGEST_COUNT)
        for name, (least, largest) in bounds.items():
            number = getattr(self, name)
            whole = isinstance(number, int) and not isinstance(number, bool)
            if number is not None and not (whole and least <= number <= largest):
                raise ValueError(f"{name} is {number!r:.40}; allowed: {least} to {largest}")

    @property
    def own(self) -> int:
        """Experts of each task's own."""
        if self.kind == "mmoe":
            return 0
        return 1 if self.per_task is None else self.per_task


def checked_experts(options: Any, hidden_size: int) -> dict[str, Any]:
    """The options as config.json holds them, with what was left out.

    Raises:
        ValueError: a key is unknown or missing, or a value is not allowed.
    """
    check_fields("experts", ExpertOptions, options)
    try:
        given = ExpertOptions(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"experts: {error}") from error
    size = given.size or max(hidden_size // 2, 1)
    return {**asdict(given), "per_task": given.own, "size": size}


def expert_names(options: dict[str, Any]) -> list[str]:
    """Names of the experts that a task reads, in the order of its gate: shared_0, ..., own_0."""
    shared = [f"shared_{number}" for number in range(options["experts"])]
    return [*shared, *(f"own_{number}" for number in range(options["per_task"]))]


class ZeroLinear(nn.Linear):
    """A linear layer whose weights are 0 at first."""


class Bank(nn.Module):
    """Experts side by side, as one layer: sum_i g_i U_i gelu(D_i h + b_i).

    Args:
        width: of what they read and give, H.
        count: how many.
        size: hidden units of each, S.
    """

    def __init__(self, *, width: int, count: int, size: int) -> None:
        super().__init__()
        self.shape = (count, size)
        self.down = nn.Linear(width, count * size)
        self.up = ZeroLinear(count * size, width, bias=False)

    def hidden(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., count * S)."""
        return F.gelu(self.down(x))

    def mixed(self, hidden: Tensor, gates: Tensor | None) -> Tensor:
        """(..., count * S) and (..., count) weights (None: one expert, weight 1) -> (..., H)."""
        if gates is not None:
            hidden = (hidden.unflatten(-1, self.shape) * gates.unsqueeze(-1)).flatten(-2)
        return self.up(hidden)


class Mixture(nn.Module):
    """What one task reads of shared experts, and experts of its own.

    Args:
        width: of the states, H.
        options: `experts` of the config.
    """

    def __init__(self, *, width: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.counts = [options["experts"], options["per_task"]]
        size, count = options["size"], sum(self.counts)
        self.gate = nn.Linear(width, count) if count > 1 else None
        own = Bank(width=width, count=self.counts[1], size=size) if self.counts[1] else None
        self.own = own

    def forward(self, x: Tensor, hidden: Tensor, shared: Bank) -> tuple[Tensor, Tensor | None]:
        """The task's states, and the weights of its experts.

        Args:
            x: (..., H) states.
            hidden: (..., n * S), of the shared experts.
            shared: these.

        Returns:
            (..., H), and (..., n + o); None without a gate.
        """
        if self.gate is None:
            return x + shared.mixed(hidden, None), None
        gates = self.gate(x).softmax(-1)
        of_shared, of_own = gates.split(self.counts, -1)
        mixed = x + shared.mixed(hidden, of_shared)
        if self.own is not None:
            mixed = mixed + self.own.mixed(self.own.hidden(x), of_own)
        return mixed, gates


class LowerLevel(nn.Module):
    """The level of `ple` below the heads' own: states for each task, and those of all.

    Args:
        width: of the states, H.
        options: `experts` of the config.
        tasks: all of the model's, in order.
    """

    def __init__(self, *, width: int, options: dict[str, Any], tasks: Sequence[str]) -> None:
        super().__init__()
        self.shared = Bank(width=width, count=options["experts"], size=options["size"])
        self.tasks = nn.ModuleDict({n: Mixture(width=width, options=options) for n in tasks})
        self.counts = [options["experts"], *[options["per_task"]] * len(tasks)]
        self.gate = nn.Linear(width, sum(self.counts))

    def of_all(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(..., H) states and (..., n * S) -> (..., H): a mixture of the experts of all tasks."""
        of_shared, *of_tasks = self.gate(x).softmax(-1).split(self.counts, -1)
        mixed = x + self.shared.mixed(hidden, of_shared)
        for mixture, gates in zip(self.tasks.values(), of_tasks, strict=True):
            own: Any = mixture.own
            mixed = mixed + own.mixed(own.hidden(x), gates)
        return mixed


class Experts(nn.Module):
    """What tasks share: the experts of all, and with `ple` the level below.

    Args:
        width: of the encoder's states, H.
        options: `experts` of the config.
        tasks: the model's, in order.
    """

    def __init__(self, *, width: int, options: dict[str, Any], tasks: Sequence[str]) -> None:
        super().__init__()
        self.shared = Bank(width=width, count=options["experts"], size=options["size"])
        ple = options["kind"] == "ple"
        self.lower = LowerLevel(width=width, options=options, tasks=tasks) if ple else None

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        """What all tasks read, computed once: parts with a row for each token.

        Args:
            states: (..., H), the encoder's.

        Returns:
            the states, the hidden layer of the shared experts, (..., n * S), and that of the
            level below, where there is one. `of_task` takes them, or some of their rows or tokens.
        """
        if self.lower is None:
            return states, self.shared.hidden(states)
        below = self.lower.shared.hidden(states)
        return states, self.shared.hidden(self.lower.of_all(states, below)), below

    def of_task(
        self, task: str, head: nn.Module, parts: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """A task's states (..., H), and the weights of its experts, (..., n + o) or None.

        Args:
            task: its name.
            head: its head, which has gate and own experts as `mixture`.
            parts: of `forward`.
        """
        states, hidden, *below = parts
        mixture: Any = head.mixture
        if self.lower is not None:
            lower: Any = self.lower.tasks[task]
            states, _ = lower(states, below[0], self.lower.shared)
        return mixture(states, hidden, self.shared)


def mean_load(gates: Tensor, mask: Tensor | None) -> Tensor:
    """(..., n + o) weights at tokens -> (n + o,), their mean over tokens, those of padding not.

    Args:
        gates: weights.
        mask: (...), 1 for real tokens; None where all are.
    """
    gates = gates.detach().float().flatten(0, -2)
    if mask is None:
        return gates.mean(0) if len(gates) else gates.sum(0)
    weights = mask.flatten().to(gates.dtype)
    return weights @ gates / weights.sum().clamp(min=1)


def build_experts(
    options: dict[str, Any] | None, width: int, tasks: Sequence[str]
) -> Experts | None:
    """The shared experts of a model; None without `experts`."""
    return None if options is None else Experts(width=width, options=options, tasks=tasks)
