"""Evaluation for several tasks: one pass per source, predictions kept by task."""

from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ...modeling.heads import IGNORE
from ...modeling.modeling_polyhead import PolyheadModel, PolyheadOutput
from ..batches.collator import MultiTaskCollator, model_inputs
from ..data.dataset import MultiTaskDataset
from ..evaluation.scoring import EvalSplit, MetricFunction, macro, score
from ..kinds import kind_of
from ..reports.task_report import task_report
from .meters import LossMeter


class EvaluationLoop:
    """Passes over the rows of each source, and what becomes of their batches.

    Args:
        model: the model, without what accelerate wraps around it.
        collator: makes the batches; never packed.
        args: size of a batch, workers.
        accelerator: knows the ranks.
        compute_metrics: more metrics of a caller of Python, by task.
        loop: Trainer's `evaluation_loop`, which calls `inputs_of` and `predictions` for each batch.
    """

    def __init__(
        self,
        model: PolyheadModel,
        collator: MultiTaskCollator,
        *,
        args: TrainingArguments,
        accelerator: Accelerator,
        compute_metrics: MetricFunction | None = None,
        loop: Callable[..., EvalLoopOutput],
    ) -> None:
        self.model = model
        self.collator = collator
        self.args = args
        self.accelerator = accelerator
        self.compute_metrics = compute_metrics
        self.loop = loop
        self.meter = LossMeter(model.task_names)
        self._tasks: list[str] = []  # of the source in evaluation

    def run(
        self,
        splits: dict[str, EvalSplit],
        prefix: str,
        *,
        sizes: dict[str, int] | None = None,
        reports: dict[str, dict[str, Any]] | None = None,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
        """See `MultiTaskTrainer.evaluate_tasks`.

        Args:
            splits: what to evaluate.
            prefix: names the split in progress bars.
            sizes: of tasks whose loss compares the groups of a batch, as many as in training: such
                a loss grows with their number.
            reports: is given a report of each task.
        """
        scores: dict[str, dict[str, Any]] = {}
        losses: dict[str, float] = {}
        for task, split, values in self.values(splits, prefix):
            config = self.model.config.tasks[task]
            scores[task] = score(task, config, split, values, self.compute_metrics)
            if task in (sizes or {}):
                losses |= self._loss_of_batches(task, values, split.rows, (sizes or {})[task])
            if reports is not None:
                reports[task] = task_report(task, config, split, values, scores[task])
        return dict(sorted(scores.items())), self.meter.means(self.accelerator) | losses

    def values(
        self, splits: dict[str, EvalSplit], prefix: str
    ) -> Iterator[tuple[str, EvalSplit, np.ndarray]]:
        """What the heads give for the rows: (task, its split, one entry for each row), by source.

        Args:
            splits: the rows; their losses are in `meter` afterwards.
            prefix: names the split in progress bars.
        """
        self.meter.clear()
        self.collator.sources = {name: list(split.source.tasks) for name, split in splits.items()}
        for name, split in splits.items():
            self._tasks = list(split.source.tasks)
            output = self.loop(
                self._dataloader(name, split.rows),
                description=f"Evaluation of {name}",
                prediction_loss_only=False,
                metric_key_prefix=prefix,
            )
            predictions: Any = output.predictions
            yield from ((task, split, predictions[task]) for task in self._tasks)

    def _loss_of_batches(
        self, task: str, values: np.ndarray, rows: datasets.Dataset, size: int
    ) -> dict[str, float]:
        """Mean loss of a task over batches of about `size` groups that come together by chance.

        Args:
            task: its loss compares the groups of a batch.
            values: (groups, texts, D) embeddings.
            rows: the rows of these groups.
            size: groups in a batch.
        """
        labels = torch.tensor(rows[f"labels_{task}"]).float()
        known = (~labels.isnan()).nonzero().flatten()
        if not len(known):
            return {}
        order = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))]
        head: Any = self.model.heads[task]
        groups, total = torch.from_numpy(np.ascontiguousarray(values)).float(), 0.0
        for part in order.tensor_split(max(1, round(len(order) / size))):
            vectors = groups[part].flatten(0, 1)
            total += float(head.loss_sum(vectors, labels[part]))
        return {task: total / len(known)}

    def _dataloader(self, name: str, rows: datasets.Dataset) -> DataLoader:
        loader = DataLoader(
            MultiTaskDataset({name: rows}),
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=self.collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare_data_loader(loader, device_placement=False)

    def inputs_of(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model gets of a batch: the labels of repeated rows are taken out."""
        inputs = model_inputs(batch)
        return {**inputs, "labels": self._without_repeats(inputs, len(batch["rows"]))}

    def predictions(
        self, outputs: PolyheadOutput, inputs: dict[str, Any], rows: Tensor
    ) -> tuple[Tensor, Any, Any]:
        """Loss and predictions by task: one entry per example, in the batch's order.

        Args:
            outputs: the model's outputs for a batch.
            inputs: what `inputs_of` gave.
            rows: (examples,), the batch's own.

        Returns:
            the loss, predictions by task, and `rows` on the device.
        """
        model, count = self.model, len(rows)
        units = model.count_items(inputs["labels"])
        for name, loss in (outputs.losses or {}).items():
            self.meter.add(name, loss * units[name], units[name])
        values: dict[str, Tensor] = {}
        for name, logits in (outputs.logits or {}).items():
            gathered = kind_of(model.config.tasks[name]).gathered(logits, inputs["labels"][name])
            values[name] = self._spread(name, gathered.float(), inputs, count)
        for name, vectors in (outputs.embeddings or {}).items():
            values[name] = vectors.float().view(count, -1, vectors.shape[-1])
        for name in self._tasks:  # no rows: all are windows after the first
            if name not in values:
                width = model.config.tasks[name].num_labels
                values[name] = torch.full((count, width), float("nan"), device=self.args.device)
        assert outputs.loss is not None
        return outputs.loss.detach(), values, rows.to(self.args.device)

    def _without_repeats(self, inputs: dict[str, Any], rows: int) -> dict[str, Tensor]:
        """Labels, but none for the rows that accelerate repeats so that ranks have equal batches.

        It drops their predictions itself; their losses would count twice.
        """
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return inputs["labels"]
        known = max(state.remainder - self.args.process_index * rows, 0)
        labels = {}
        for name, values in inputs["labels"].items():
            number = self.model.task_names.index(name)
            reads = (inputs["task_ids"] == number).any(1).view(rows, -1)[:, 0]  # by example
            missing = float("nan") if values.is_floating_point() else IGNORE
            labels[name] = values.clone()
            labels[name][int(reads[:known].sum()) :] = missing
        return labels

    def _spread(self, name: str, values: Tensor, inputs: dict[str, Any], rows: int) -> Tensor:
        """Values of the task's own rows to one entry per row: NaN for windows it does not read."""
        number = self.model.task_names.index(name)
        reads = (inputs["task_ids"] == number).any(1).view(rows, -1)[:, 0]  # by example
        if bool(reads.all()):
            return values
        spread = values.new_full((rows, *values.shape[1:]), float("nan"))
        spread[reads.to(values.device)] = values
        return spread


def metrics_of(
    scores: dict[str, dict[str, Any]], losses: dict[str, float], prefix: str
) -> dict[str, float]:
    """Scores and losses by task as HF logs metrics; see `MultiTaskTrainer.evaluate`."""
    metrics = {}
    for name, values in scores.items():
        for metric, value in values.items():
            if not isinstance(value, dict):
                metrics[f"{prefix}_{name}_{metric}"] = value
        if name in losses:  # not where no row has a label that the model knows
            metrics[f"{prefix}_{name}_loss"] = losses[name]
    metrics[f"{prefix}_loss"] = sum(losses.values())
    metrics[f"{prefix}_macro"] = macro(scores)
    return metrics
