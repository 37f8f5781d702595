"""What happens beside the training step: the sampler's epoch, the progress bar."""

import sys
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainingArguments

from .collator import MultiTaskCollator
from .sampler import MultiTaskBatchSampler


class SetEpoch(TrainerCallback):
    """Tells sampler and collator the epoch; when several processes resume, nothing else does."""

    def __init__(self, sampler: MultiTaskBatchSampler, collator: MultiTaskCollator) -> None:
        self.sampler = sampler
        self.collator = collator

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Set the epoch that begins."""
        self.sampler.set_epoch(int(state.epoch or 0))
        self.collator.epoch = int(state.epoch or 0)


class TaskProgress(ProgressCallback):
    """HF's progress bar, with the loss of each task beside it and one line per evaluation."""

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any
    ) -> None:
        """A bar for each source: HF's would count on where the last one ended."""
        if self.prediction_bar is not None and self.prediction_bar.n == self.prediction_bar.total:
            self.prediction_bar.close()
            self.prediction_bar = None
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader)

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Show the losses of the tasks, or the metrics of an evaluation."""
        if self.training_bar is None or not logs:
            return
        losses = {k.removeprefix("loss_"): v for k, v in logs.items() if k.startswith("loss_")}
        if losses:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3f} | {shown}", refresh=False)
        elif "eval_macro" in logs:
            scores = "  ".join(
                f"{key.removeprefix('eval_')} {value:.4f}"
                for key, value in logs.items()
                if key.startswith("eval_") and not key.endswith("loss")
            )
            self.training_bar.write(f"epoch {state.epoch:.2f}: {scores}", file=sys.stderr)
