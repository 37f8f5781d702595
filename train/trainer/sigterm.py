"""SIGTERM in training: save a checkpoint and leave."""

import signal
import threading
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import Interrupted

ECHO = 3.0  # seconds; torchrun passes on a SIGTERM that its workers may have got already


def outlive_sigterm(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: a signal to the whole process group leaves it to serve."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class SigtermCallback(TrainerCallback):
    """Within `with sigterm:` a SIGTERM lets the optimizer step end, saves, and interrupts.

    It raises `Interrupted` from `on_save`: that keeps Trainer from loading the best checkpoint and,
    with `save_total_limit=1`, deleting the one just saved. A second SIGTERM ends the process at
    once; so does one that finds no step to end. Works in the main thread only; elsewhere nothing
    happens.

    Attributes:
        requested: this process has got the signal.
        agreed: some process has, for the same step on all ranks; see `agree`.
    """

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False
        self._leaves = False  # with the next checkpoint
        self._usual: Any = None
        self._since = 0.0

    def __enter__(self) -> "SigtermCallback":
        self.requested = self.agreed = self._leaves = False
        self._usual = None
        if threading.current_thread() is threading.main_thread():
            self._usual = signal.signal(signal.SIGTERM, self._take) or signal.SIG_DFL
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._usual is not None:
            signal.signal(signal.SIGTERM, self._usual)
        if self.requested and error is None:
            signal.raise_signal(signal.SIGTERM)

    def agree(self, requested: bool) -> None:
        """Say for an optimizer step whether any rank has got the signal; the same on all ranks."""
        self.agreed = requested

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = True, now
        elif now - self._since > ECHO:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint, unless the end of the epoch is about to evaluate and save."""
        by_epoch = "epoch" in (args.eval_strategy, args.save_strategy)
        ends = control.should_training_stop or float(state.epoch or 0).is_integer()
        if self._asked(args) and not (by_epoch and ends):
            self._leaves = control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint, which follows the evaluation."""
        if self._asked(args):
            self._leaves = control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave.

        Raises:
            Interrupted: the checkpoint asked for has been saved.
        """
        if self._leaves:
            folder = f"{args.output_dir}/checkpoint-{state.global_step}"
            raise Interrupted(state.global_step, folder)

    def _asked(self, args: TrainingArguments) -> bool:
        return self.agreed or (self.requested and args.world_size == 1)
