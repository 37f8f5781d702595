"""What is counted by task while a model trains or is evaluated: losses, rows, tokens."""

from typing import Any

import torch
from torch import Tensor


class LossMeter:
    """Loss sums and unit counts by task, added up over steps and then over ranks."""

    def __init__(self, names: list[str]) -> None:
        self.names = sorted(names)
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self.values: dict[str, list[Tensor]] = {name: [] for name in self.names}

    def add(self, name: str, total: Tensor, count: Tensor) -> None:
        """Add a task's loss, summed over its units, and their number: two scalars."""
        self.values[name].append(torch.stack([total.float(), count.float()]))

    def means(self, accelerator: Any) -> dict[str, float]:
        """Mean loss per unit of each task that had any, over all ranks; starts anew."""
        zero = torch.zeros(2, device=accelerator.device)
        rows = [torch.stack(self.values[n]).sum(0) if self.values[n] else zero for n in self.names]
        totals = accelerator.reduce(torch.stack(rows), "sum").tolist()
        self.clear()
        return {n: s / c for n, (s, c) in zip(self.names, totals, strict=True) if c}


class GroupSizes:
    """How many groups of texts the losses of embeddings compare at a time, on average."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # groups that were compared, and how often

    def add(self, name: str, groups: Tensor) -> None:
        """Add what a loss has just compared, a scalar; the host does not wait for it."""
        new = torch.stack([groups, groups > 0]).float()
        self._sums[name] = self._sums[name] + new if name in self._sums else new

    def means(self) -> dict[str, int]:
        """By task, so far; without those that have compared none."""
        counts = {name: count.tolist() for name, count in self._sums.items()}
        return {name: round(total / times) for name, (total, times) in counts.items() if times}


class ExpertLoads:
    """How much each task's gate weighs its experts, added up over micro-batches and then ranks.

    Args:
        names: the tasks.
        experts: what a task reads, in the order of its gate; none without experts.
    """

    def __init__(self, names: list[str], experts: list[str]) -> None:
        self.names = sorted(names)
        self.experts = experts
        self._sums: dict[str, Tensor] = {}

    def add(self, loads: dict[str, Tensor]) -> None:
        """Add a micro-batch: (experts,) mean weights by task."""
        for name, load in loads.items():
            new = torch.cat([load, load.new_ones(1)])
            self._sums[name] = self._sums[name] + new if name in self._sums else new

    def log(self, accelerator: Any) -> dict[str, float]:
        """`load_<task>_<expert>`, means since the last log over all ranks; starts anew."""
        if not self.experts:
            return {}
        zero = torch.zeros(len(self.experts) + 1, device=accelerator.device)
        rows = torch.stack([self._sums.get(name, zero) for name in self.names])
        self._sums = {}
        return {
            f"load_{name}_{expert}": total / count
            for name, (*totals, count) in zip(
                self.names, accelerator.reduce(rows, "sum").tolist(), strict=True
            )
            for expert, total in zip(self.experts, totals, strict=True)
            if count
        }


class TaskCounters:
    """Rows and tokens seen by task since training began, and losses skipped.

    Args:
        names: the tasks, in the model's order.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.seen = torch.zeros(len(names), 2, dtype=torch.float64)  # rows, tokens
        self.skipped = dict.fromkeys(names, 0)

    def add(self, counts: Tensor) -> None:
        """Add the rows and tokens of a step: (tasks, 2), over all ranks."""
        self.seen = self.seen.to(counts.device) + counts

    def skip(self, name: str) -> None:
        """Count a loss of the task that was left out."""
        self.skipped[name] += 1

    def log(self) -> dict[str, float]:
        """`rows_<task>` and `tokens_<task>` seen so far, and `skipped_<task>` where any were."""
        values: dict[str, float] = {}
        for name, (rows, tokens) in zip(self.names, self.seen.tolist(), strict=True):
            values |= {f"rows_{name}": rows, f"tokens_{name}": tokens}
        return values | {f"skipped_{name}": n for name, n in self.skipped.items() if n}

    def state_dict(self) -> dict[str, Any]:
        """The counts, as JSON can hold them."""
        seen = dict(zip(self.names, self.seen.tolist(), strict=True))
        return {"seen": seen, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.seen = torch.tensor([state["seen"][name] for name in self.names], dtype=torch.float64)
        self.skipped = dict(state["skipped"])
