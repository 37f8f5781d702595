"""What happens beside the training step: the sampler's epoch, state to resume, the progress bar."""

import math
import sys
from collections.abc import Callable
from typing import Any

from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..balancing.base import Balancer
from ..batches.collator import MultiTaskCollator
from ..batches.sampler import MultiTaskBatchSampler
from ..evaluation.metrics import main_metric
from ..evaluation.scoring import EvalSplit
from ..kinds import kind_of
from ..recipe.sections import Stopping
from .meters import TaskCounters


class SetEpoch(TrainerCallback):
    """Tells sampler and collator the epoch; when several processes resume, nothing else does."""

    def __init__(self, sampler: MultiTaskBatchSampler, collator: MultiTaskCollator) -> None:
        self.sampler = sampler
        self.collator = collator

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Set the epoch that begins."""
        self.sampler.set_epoch(int(state.epoch or 0))
        self.collator.epoch = int(state.epoch or 0)


class AfterStep(TrainerCallback):
    """Calls a function after each step of the optimizer, before anything is saved."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Call it."""
        self.function()


class Resumed(TrainerCallback, ExportableState):
    """State that a checkpoint keeps, under the name of the class, in trainer_state.json.

    HF writes it by `state`, and gives it back by `on_train_begin`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up what a checkpoint kept; a training that starts anew has nothing to take up."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and saved is not None:
            self.load_state_dict(saved["attributes"])

    def state(self) -> dict[str, Any]:
        """What is written to trainer_state.json."""
        return {"args": {}, "attributes": self.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """State as plain lists and numbers."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        raise NotImplementedError


class TrainingState(Resumed):
    """What has been counted by task, and what balancing has learned.

    Args:
        counters: rows, tokens and skipped losses.
        balancer: weighs the tasks.
    """

    def __init__(self, counters: TaskCounters, balancer: Balancer) -> None:
        self.counters = counters
        self.balancer = balancer

    def state_dict(self) -> dict[str, Any]:
        """See `Resumed`."""
        return {**self.counters.state_dict(), "balancer": self.balancer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Resumed`."""
        self.counters.load_state_dict(state)
        self.balancer.load_state_dict(state["balancer"])


class RunIdentity(Resumed):
    """What a checkpoint is made of, for `identity.check_resume`, which has read it before.

    Args:
        identity: makes it, once a training begins.
    """

    def __init__(self, identity: Callable[[], dict[str, Any]]) -> None:
        self.identity = identity

    def state_dict(self) -> dict[str, Any]:
        """See `identity_of`."""
        return self.identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It is what it is."""


class TaskStopping(Resumed):
    """Ends the training of a task whose own metric stops improving; the others go on.

    From the next epoch on its head and its own adapter get no gradient and, when all tasks over its
    rows have stopped, its rows are not drawn. It is still evaluated.

    Args:
        options: patience and threshold.
        metrics: task to the metric that says whether it improves; tasks without one never stop.
        sampler: draws the rows.
        collator: leaves out the labels.
    """

    def __init__(
        self,
        options: Stopping,
        metrics: dict[str, str],
        sampler: MultiTaskBatchSampler,
        collator: MultiTaskCollator,
    ) -> None:
        self.options = options
        self.metrics = metrics
        self.sampler = sampler
        self.collator = collator
        self.best: dict[str, float] = {}
        self.waited = dict.fromkeys(metrics, 0)
        self.stopped: dict[str, int] = {}  # task to the first epoch without it

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        """Compare each task's metric with its best."""
        for name, metric in self.metrics.items():
            value = (metrics or {}).get(f"eval_{name}_{metric}")
            if value is None or name in self.stopped:
                continue
            if name not in self.best or value > self.best[name] + self.options.threshold:
                self.best[name], self.waited[name] = value, 0
            else:
                self.waited[name] += 1
            if self.waited[name] >= self.options.patience:
                self.stopped[name] = math.ceil(state.epoch - 1e-6)
        if set(self.collator.configs) <= set(self.stopped):
            control.should_training_stop = True

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave out what has stopped by now."""
        epoch = int(state.epoch or 0)
        self.collator.stopped = {name for name, first in self.stopped.items() if first <= epoch}
        for source, tasks in self.collator.sources.items():
            if set(tasks) <= set(self.stopped):
                self.sampler.stop(source, max(self.stopped[name] for name in tasks))

    def state_dict(self) -> dict[str, Any]:
        """See `Resumed`."""
        return {"best": self.best, "waited": self.waited, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Resumed`."""
        self.best, self.waited, self.stopped = (
            dict(state[key]) for key in ("best", "waited", "stopped")
        )


def stopping_callbacks(
    stopping: Stopping | None,
    splits: dict[str, EvalSplit],
    sampler: MultiTaskBatchSampler,
    collator: MultiTaskCollator,
) -> list[TrainerCallback]:
    """What ends the training, of all tasks or of one; empty where nothing does before its time.

    Args:
        stopping: the recipe's options.
        splits: validation rows by source.
        sampler: draws the rows.
        collator: leaves out the labels, and knows the tasks.

    Raises:
        ValueError: tasks stop one by one, and some optimizer step has fewer rows than others.
    """
    if stopping is None:
        return []
    if stopping.by == "macro":
        return [EarlyStoppingCallback(stopping.patience, stopping.threshold)]
    if sampler.has_short_steps:
        raise ValueError("stopping by task: some optimizer step has fewer rows than others")
    metrics = {}
    for split in splits.values():
        for name, recipe in split.source.tasks.items():
            usual = kind_of(collator.configs[name]).scored_as(recipe).default_metrics
            metrics[name] = main_metric(recipe.metrics or usual)
    return [TaskStopping(stopping, metrics, sampler, collator)]


class TaskProgress(ProgressCallback):
    """HF's progress bar, with the loss of each task beside it and one line per evaluation."""

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any
    ) -> None:
        """A bar for each source, closed with its last batch.

        HF's would count on into the next source, and outside training stay open until it is
        garbage, which draws it once more below the result.
        """
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader)
        if self.prediction_bar is not None and self.prediction_bar.n == self.prediction_bar.total:
            self.prediction_bar.close()
            self.prediction_bar = None

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
