"""What an optimizer step has: labelled units, rows and tokens by task, on all ranks.

One exchange between the ranks counts all of it, before the first forward pass.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ...modeling.modeling_polyhead import PolyheadModel
from .meters import TaskCounters
from .retain import Retention
from .sigterm import SigtermCallback


@dataclass(frozen=True)
class StepCounts:
    """What an optimizer step has, on all ranks.

    Args:
        num_items: labelled units by task: scalars, on the CPU.
        idle: the tasks without rows.
        retained: texts whose vectors are retained.

    Attributes:
        present: the tasks with labelled units.
    """

    num_items: dict[str, Tensor] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)
    retained: float = 0.0
    present: list[str] = field(init=False)

    def __post_init__(self) -> None:
        present = [name for name, count in self.num_items.items() if count]
        object.__setattr__(self, "present", present)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepCounter:
    """Counts what a step has, over its micro-batches and over ranks.

    Args:
        model: the model, without what accelerate wraps around it.
        accelerator: knows the ranks.
        counters: counters of rows, tokens and skipped losses.
        sigterm: is told whether a rank has got the signal.
        retention: knows the texts whose vectors are retained.
    """

    model: PolyheadModel
    accelerator: Accelerator
    counters: TaskCounters
    sigterm: SigtermCallback
    retention: Retention | None = None

    def count(self, batches: list[dict[str, Any]]) -> StepCounts:
        """Count what the micro-batches of this rank and of the others hold.

        The same exchange tells all ranks of a SIGTERM, so that they leave after the same step.
        """
        names = self.model.task_names
        total = torch.zeros(len(names), 3, dtype=torch.float64)  # units, rows, tokens
        for batch in batches:
            total[:, 1:] += batch["counts"]
            units = self.model.count_items(batch["labels"], batch.get("label_weights"))
            for name, count in units.items():
                total[names.index(name), 0] += count
        retained = 0
        if self.retention is not None:
            retained = sum(map(self.retention.numbers.count_in, batches))
        others = total.new_tensor([retained, self.sigterm.requested])
        flat = torch.cat([total.flatten(), others]).float()
        if self.accelerator.num_processes > 1:  # else the host would wait for its own numbers
            flat = flat.to(self.accelerator.device)
        summed: Any = self.accelerator.reduce(flat, "sum")
        flat = summed.cpu()
        self.sigterm.agree(bool(flat[-1]))
        counts = flat[:-2].view(len(names), 3)
        self.counters.add(counts[:, 1:])
        rows = dict(zip(names, counts[:, 1].tolist(), strict=True))
        idle = [name for name, number in rows.items() if not number]
        num_items = dict(zip(names, counts[:, 0], strict=True))
        return StepCounts(num_items, idle, float(flat[-2]))
