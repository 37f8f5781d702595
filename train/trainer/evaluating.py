"""What the Trainer evaluates and predicts: a pass for each source of rows, scores by task."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PredictionOutput

from ...modeling.modeling_polyhead import PolyheadModel
from ..batches.collator import FOR_TRAINER, MultiTaskCollator
from ..evaluation.scoring import EvalSplit, MetricFunction
from .evaluation_loop import EvaluationLoop, metrics_of
from .rows import Columns, answers_of, read_task_rows
from .saving import FolderCheckpoints

ON_TRAIN = "on_train"  # begins the names of scores of training rows
# of a batch: read by the host, which would wait for the device to have done all before
HOST = ("task_ids", "cu_seq_lens_q", "window_counts", *FOR_TRAINER)


class EvaluatingTrainer(FolderCheckpoints):
    """A Trainer that scores each task on its own rows.

    Args:
        model: the model.
        args: TrainingArguments.
        processing_class: the model's tokenizer.
        data_collator: makes the batches of training.
        eval_collator: makes those of evaluation; never packed.
        train_dataset: as HF's.
        eval_dataset: `EvalSplit` by source name.
        train_splits: training rows that are scored beside those of `eval_dataset`.
        columns: of rows that `evaluate` and `predict` are given; see `MultiTaskTrainer`.
        callbacks: as HF's.
        compute_metrics: see `MultiTaskTrainer`.
        optimizers: as HF's.
    """

    model: PolyheadModel

    def __init__(
        self,
        *,
        model: PolyheadModel,
        args: TrainingArguments,
        processing_class: PreTrainedTokenizerBase,
        data_collator: MultiTaskCollator,
        eval_collator: MultiTaskCollator,
        train_dataset: Any,
        eval_dataset: Any,
        train_splits: dict[str, EvalSplit] | None,
        columns: Columns | None,
        callbacks: list[TrainerCallback] | None,
        compute_metrics: MetricFunction | None,
        optimizers: tuple[Any, Any],
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.columns = columns
        self.train_splits = train_splits or {}
        self.evaluation = EvaluationLoop(
            model,
            eval_collator,
            args=self.args,
            accelerator=self.accelerator,
            compute_metrics=compute_metrics,
            loop=self.evaluation_loop,
        )

    # ---- batches ----

    def _prepare_input(self, data: Any) -> Any:
        """As HF's; nothing waits for a tensor in pinned memory."""
        if isinstance(data, Tensor) and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Moves to the device what it computes with; what the host decides by stays there."""
        moved = {key: value for key, value in inputs.items() if key not in HOST}
        return {**inputs, **super()._prepare_inputs(moved)}

    def prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch as a step gets it, on the device."""
        return self._prepare_inputs(inputs)

    # ---- rows ----

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Any, Any]:
        """Loss and predictions by task: one entry per example, in the batch's order."""
        batch = self._prepare_inputs(inputs)
        inputs = self.evaluation.inputs_of(batch)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        return self.evaluation.predictions(outputs, inputs, batch["rows"])

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> Any:
        """Answers and scores of rows.

        Args:
            test_dataset: rows by task, with their labels.
            ignore_keys: not used.
            metric_key_prefix: begins the name of each metric.

        Returns:
            HF's PredictionOutput: `predictions`, by task one answer of `PolyheadPipeline` for each
            row; `label_ids`, by task the labels of the rows; `metrics`, as `evaluate` gives them.

        Raises:
            TypeError: it is no dict; it says what to call.
            UserError: rows that do not fit their tasks.
        """
        if not isinstance(test_dataset, Mapping):
            raise TypeError(
                "predict takes {task: rows}; for answers to texts call PolyheadPipeline("
                "model=trainer.model, tokenizer=trainer.processing_class)(texts)"
            )
        splits = self._splits(test_dataset)
        scores, losses = self.evaluate_tasks(splits, metric_key_prefix)
        metrics = metrics_of(scores, losses, metric_key_prefix)
        model, tokenizer = self.model_for_tasks, self.processing_class
        predictions, labels = answers_of(model, tokenizer, splits)  # pyright: ignore
        return PredictionOutput(predictions, labels, metrics)  # pyright: ignore

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Metrics of all tasks, one pass per source.

        Args:
            eval_dataset: rows by task, or `EvalSplit` by source name; default the trainer's.
            ignore_keys: not used.
            metric_key_prefix: begins every key.

        Returns:
            `<prefix>_<task>_<metric>`, `<prefix>_<task>_loss` and `<prefix>_macro`, the mean of the
            tasks' main metrics; `evaluate_tasks` gives the rows by entity type too.
        """
        splits: Any = self.eval_dataset if eval_dataset is None else self._splits(eval_dataset)
        if not splits:
            raise ValueError("there are no rows to evaluate; give eval_dataset")
        metrics = metrics_of(*self.evaluate_tasks(splits, metric_key_prefix), metric_key_prefix)
        self.log(metrics)
        if eval_dataset is None and self.train_splits:
            scored = self.evaluate_tasks(self.train_splits, ON_TRAIN)
            self.log(metrics_of(*scored, ON_TRAIN))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _splits(self, rows: Mapping[str, Any]) -> dict[str, EvalSplit]:
        """Rows to evaluate, prepared where they are not."""
        if all(isinstance(part, EvalSplit) for part in rows.values()):
            return dict(rows)
        tokenizer: Any = self.processing_class
        tasks = self.model_for_tasks.config.tasks
        read = read_task_rows(tasks, tokenizer, train=None, evaluation=rows, columns=self.columns)
        return read.evaluation

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
        sizes = self.groups_compared()
        return self.evaluation.run(splits, prefix, sizes=sizes, reports=reports)

    def groups_compared(self) -> dict[str, int]:
        """Of tasks whose loss compares groups of texts, how many it has on average in training."""
        return {}
