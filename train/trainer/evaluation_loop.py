"""The Trainer's evaluation for several tasks: one pass per source, predictions kept by task."""

from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from ...modeling.heads import IGNORE
from ...modeling.modeling_polyhead import PolyheadModel
from ..batches.collator import MultiTaskCollator, model_inputs
from ..data.dataset import MultiTaskDataset
from ..evaluation.scoring import EvalSplit, macro, score
from ..reports.task_report import task_report


class TaskEvaluation(Trainer):
    """What `MultiTaskTrainer` overrides of evaluation."""

    model: PolyheadModel
    _eval_collator: MultiTaskCollator

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._evaluated: list[str] = []  # the tasks of the source in evaluation
        self._eval_sums = TaskSums(self.model.task_names)

    @property
    def model_for_tasks(self) -> PolyheadModel:
        """The model without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def _eval_dataloader(self, name: str, rows: datasets.Dataset) -> DataLoader:
        loader = DataLoader(
            MultiTaskDataset({name: rows}),
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=self._eval_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare_data_loader(loader, device_placement=False)

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Any, Any]:
        """Loss and predictions by task: one entry per example, in the batch's order."""
        inputs = self._prepare_inputs(inputs)
        rows = inputs["rows"]
        fed = model_inputs(inputs)
        fed["labels"] = self._without_repeats(fed, len(rows))
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**fed)
        counts = self.model_for_tasks.count_items(fed["labels"])
        for name, loss in (outputs.losses or {}).items():
            self._eval_sums.add(name, loss * counts[name], counts[name])
        found: dict[str, Tensor] = {}
        for name, logits in (outputs.logits or {}).items():
            if self.model_for_tasks.config.tasks[name].head == "masked_lm":
                logits = _mask_hits(logits, fed["labels"][name])
            found[name] = self._spread(name, logits.float(), fed, len(rows))
        for name, vectors in (outputs.embeddings or {}).items():
            found[name] = vectors.float().view(len(rows), -1, vectors.shape[-1])
        for name in self._evaluated:  # no rows: all are windows after the first
            if name not in found:
                width = self.model_for_tasks.config.tasks[name].num_labels
                found[name] = torch.full((len(rows), width), float("nan"), device=self.args.device)
        return outputs.loss.detach(), found, rows.to(self.args.device)

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
            number = self.model_for_tasks.task_names.index(name)
            own = (inputs["task_ids"] == number).any(1).view(rows, -1)[:, 0]  # by example
            missing = float("nan") if values.is_floating_point() else IGNORE
            labels[name] = values.clone()
            labels[name][int(own[:known].sum()) :] = missing
        return labels

    def _spread(self, name: str, values: Tensor, inputs: dict[str, Any], rows: int) -> Tensor:
        """Values of the task's own rows to one entry per row: NaN for windows it does not read."""
        number = self.model_for_tasks.task_names.index(name)
        own = (inputs["task_ids"] == number).any(1)
        if bool(own.all()):
            return values
        spread = values.new_full((rows, *values.shape[1:]), float("nan"))
        spread[own.to(values.device)] = values
        return spread

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Metrics of all tasks, one pass per source.

        Args:
            eval_dataset: `EvalSplit` by source name; default the trainer's.
            ignore_keys: not used.
            metric_key_prefix: begins every key.

        Returns:
            `<prefix>_<task>_<metric>`, `<prefix>_<task>_loss` and `<prefix>_macro`, the mean of the
            tasks' main metrics; `evaluate_tasks` gives the rows by entity type too.
        """
        splits: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        scores, losses = self.evaluate_tasks(splits, metric_key_prefix)
        metrics = {}
        for name, values in scores.items():
            for metric, value in values.items():
                if not isinstance(value, dict):
                    metrics[f"{metric_key_prefix}_{name}_{metric}"] = value
            if name in losses:  # not where no row has a label that the model knows
                metrics[f"{metric_key_prefix}_{name}_loss"] = losses[name]
        metrics[f"{metric_key_prefix}_loss"] = sum(losses.values())
        metrics[f"{metric_key_prefix}_macro"] = macro(scores)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def evaluate_tasks(
        self,
        splits: dict[str, EvalSplit],
        prefix: str = "eval",
        *,
        reports: dict[str, dict[str, Any]] | None = None,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
        """Metrics by task (`entity_f1` with its rows by type), and loss by task.

        Args:
            splits: what to evaluate.
            prefix: names the split in progress bars.
            reports: is given a report of each task (`reports/task_report.py`).
        """
        scores: dict[str, dict[str, Any]] = {}
        self._eval_sums.clear()
        for name, part in splits.items():
            self._evaluated = list(part.source.tasks)
            output = self.evaluation_loop(
                self._eval_dataloader(name, part.rows),
                description=f"Evaluation of {name}",
                prediction_loss_only=False,
                metric_key_prefix=prefix,
            )
            found: Any = output.predictions
            for task in part.source.tasks:
                config = self.model_for_tasks.config.tasks[task]
                scores[task] = score(task, config, part, found[task])
                if reports is not None:
                    reports[task] = task_report(task, config, part, found[task], scores[task])
        return dict(sorted(scores.items())), self._eval_sums.means(self.accelerator)


def _mask_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, T, V) logits -> (N, 2): masked tokens found, masked tokens."""
    masked = labels != -100
    hits = (logits.argmax(-1) == labels) & masked
    return torch.stack([hits.sum(1), masked.sum(1)], dim=1)


class TaskSums:
    """Loss sums and unit counts by task, added up over steps and then over ranks."""

    def __init__(self, names: list[str]) -> None:
        self.names = sorted(names)
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self.values: dict[str, list[Tensor]] = {name: [] for name in self.names}

    def add(self, name: str, total: Tensor, count: Tensor) -> None:
        """Add a task's loss, summed over its units, and their number."""
        self.values[name].append(torch.stack([total.float(), count.float()]))

    def means(self, accelerator: Any) -> dict[str, float]:
        """Mean loss per unit of each task that had any, over all ranks; starts anew."""
        zero = torch.zeros(2, device=accelerator.device)
        rows = [torch.stack(self.values[n]).sum(0) if self.values[n] else zero for n in self.names]
        totals = accelerator.reduce(torch.stack(rows), "sum").tolist()
        self.clear()
        return {n: s / c for n, (s, c) in zip(self.names, totals, strict=True) if c}
