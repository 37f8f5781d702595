"""The errors that end a command with a message; alone, so that showing them loads nothing else."""

import signal
from typing import Any

RESUME = "training.resume_from_checkpoint=true"


class UserError(ValueError):
    """All faults that a user can mend, in a recipe, its data or a command, in one message.

    Args:
        source: the file or command they were found in.
        faults: one line each: where, what was found, what is allowed.
    """

    def __init__(self, source: str, faults: list[str]) -> None:
        self.source, self.faults = source, faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {fault}" for fault in faults))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.faults)  # it crosses processes whole


RecipeError = UserError  # its earlier name


class Interrupted(Exception):
    """Training has stopped on SIGTERM, after a checkpoint.

    Args:
        step: optimizer steps done.
        folder: the checkpoint.
    """

    exit_code = 128 + signal.SIGTERM

    def __init__(self, step: int, folder: str) -> None:
        self.step = step
        self.folder = folder
        super().__init__(f"stopped by SIGTERM at step {step}; type the same command with {RESUME}")
