"""Losses that are not finite: they stop the training, or are left out and counted."""

from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from .meters import TaskCounters

ROWS_SHOWN = 20


class NanLosses:
    """What becomes of losses that are not finite.

    Args:
        policy: stop, or skip.
        counters: counts what is skipped.
        sources: source name to its tasks, as the collator counts them.
    """

    def __init__(
        self,
        policy: Literal["stop", "skip"],
        counters: TaskCounters,
        sources: dict[str, list[str]],
    ) -> None:
        self.skips = policy == "skip"
        self.counters = counters
        self.sources = sources

    def finite(
        self, losses: dict[str, Tensor], batch: dict[str, Any], number: int, epoch: float
    ) -> dict[str, Tensor]:
        """The losses of a micro-batch that are finite; the others are counted.

        Args:
            losses: by task, scalars.
            batch: the micro-batch, with the numbers of its rows.
            number: optimizer steps done before.
            epoch: epoch of the training, fractions included.

        Raises:
            UserError: one is not finite, and the policy is stop.
        """
        if not losses or bool(torch.stack(list(losses.values())).isfinite().all()):
            return losses
        for name, loss in losses.items():
            if loss.isfinite():
                continue
            if not self.skips:
                what = f"the loss of task {name} is {loss.item()}"
                when = f"in step {number + 1} (epoch {epoch:.2f})"
                raise UserError("training", [f"{what} {when}; {self._advice(name, batch)}"])
            self.counters.skip(name)
        return {name: loss for name, loss in losses.items() if loss.isfinite()}

    def _advice(self, name: str, batch: dict[str, Any]) -> str:
        numbers = [i for i, tasks in enumerate(self.sources.values()) if name in tasks]
        rows = batch["rows"][torch.isin(batch["sources"], batch["sources"].new_tensor(numbers))]
        shown = ", ".join(map(str, rows[:ROWS_SHOWN].tolist()))
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        return (
            f"its rows of train there: {shown}{more}. Look at these rows, lower "
            "training.learning_rate, or write nan_loss: skip to leave such batches out"
        )
