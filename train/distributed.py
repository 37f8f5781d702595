"""The processes that torchrun or accelerate started, for work that needs no gradients.

Only the plan and the end are shared: gloo carries both, on GPUs too, so that a rank that waits for
the others, maybe for hours, keeps no device busy. A single process makes no process group.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState

from .errors import UserError

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=365)  # for the slowest; a rank that dies closes its connections


class Ranks:
    """This process among the others.

    Args:
        tell: shows an error to the user; called on the first rank only.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
        device: device of this process; None where it is the only one and may choose.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.rank, self.count, self.device = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            cpu = not torch.cuda.is_available()
            state = PartialState(cpu=cpu, backend="gloo", timeout=LONGEST_WAIT)
            self.rank, self.count = state.process_index, state.num_processes
            self.device = state.device

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def together(self, step: Callable[[], T]) -> T:
        """Take a step on all ranks or on none, the first one ahead: others find what it has made.

        Args:
            step: what to do.

        Returns:
            what `step` gave on this rank.

        Raises:
            UserError: of `step`, in a single process.
            SystemExit: with 2, on all ranks, when it was raised on one; its message has been told.
        """
        if self.count == 1:
            return step()
        results: list[T] = []
        for turn in (True, False):
            fault = None
            if self.is_first == turn:
                try:
                    results.append(step())
                except UserError as error:
                    fault = str(error)
            faults: list[str | None] = [None] * self.count
            torch.distributed.all_gather_object(faults, fault)
            told = [one for one in faults if one is not None]
            if told:
                if self.is_first:
                    self.tell(told[0])
                self.wait()  # a rank that ends makes torchrun end the others
                self.leave()
                raise SystemExit(2)
        return results[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """End the process group, where there is one: its threads abort an interpreter that ends."""
        if self.count > 1:
            torch.distributed.destroy_process_group()
