"""The Trainer for several tasks: exact loss normalisers, losses and metrics by task, a macro score.

What it overrides and why:
- the counting of items: each task's loss is divided by its own labelled units in the whole
  optimizer step, over micro-batches and ranks (HF counts one number over a key `labels`);
- the train dataloader: rows come from `MultiTaskBatchSampler`;
- evaluation: one pass per source gives the metrics of all its tasks; predictions are kept by task;
- saving: a checkpoint is the folder that users load.
"""

from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, ProgressCallback, Trainer, TrainingArguments

from ..modeling.adapters import load_adapter
from ..modeling.modeling_polyhead import PolyheadModel
from .callbacks import SetEpoch, TaskProgress
from .collator import MultiTaskCollator
from .evaluation import EvalSplit, macro, score
from .features import MultiTaskDataset
from .hub import save_folder
from .sampler import MultiTaskBatchSampler
from .schema import Sampling


class MultiTaskTrainer(Trainer):
    """Trains a `PolyheadModel` on the rows of several sources.

    Args:
        model: the model; its tasks are those of the sources.
        args: TrainingArguments with `remove_unused_columns=False`.
        tokenizer: the tokenizer that made the rows.
        train_dataset: tokenized rows of all sources, or None to evaluate only.
        eval_dataset: `EvalSplit` by source name.
        sources: source name to its tasks, for the collator.
        sampling: which batches the sampler makes.

    Raises:
        ValueError: arguments that do not fit several tasks.
    """

    loss_is_scaled_for_ga = True  # `num_items` counts the whole optimizer step
    model: PolyheadModel

    def __init__(
        self,
        *,
        model: PolyheadModel,
        args: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        sources: dict[str, list[str]],
        train_dataset: MultiTaskDataset | None = None,
        eval_dataset: dict[str, EvalSplit] | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        if args.remove_unused_columns:
            raise ValueError("TrainingArguments: set remove_unused_columns=False")
        if args.label_smoothing_factor:
            raise ValueError("TrainingArguments: label_smoothing_factor does not fit several tasks")
        options = (tokenizer, model.config.tasks, model.task_names, sources)
        sampling = sampling or Sampling()
        packed = train_dataset is not None and sampling.packing and model.can_pack
        collator = MultiTaskCollator(*options, packed=packed, mask_seed=args.seed)
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,  # pyright: ignore[reportArgumentType]
        )
        self._eval_collator = MultiTaskCollator(*options, mask_seed=args.seed)
        self._sums = _TaskSums(model.task_names)
        self._eval_sums = _TaskSums(model.task_names)
        self._evaluated: list[str] = []  # the tasks of the source in evaluation
        self.sampler = None
        if train_dataset is not None:
            self.sampler = MultiTaskBatchSampler(
                train_dataset.ranges,
                batch_size=args.per_device_train_batch_size,
                batches=sampling.batches,
                lengths=train_dataset.lengths if sampling.order == "length" else None,
                replicas=args.world_size,
                accumulation=args.gradient_accumulation_steps,
                seed=args.seed if args.data_seed is None else args.data_seed,
            )
            self.add_callback(SetEpoch(self.sampler, collator))
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TaskProgress())

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the sampler, dealt to the ranks by accelerate."""
        loader = DataLoader(
            self.train_dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=self.sampler,  # pyright: ignore[reportArgumentType]
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
        )
        return self.accelerator.prepare(loader)

    def _eval_dataloader(self, name: str, rows: datasets.Dataset) -> DataLoader:
        loader = DataLoader(
            MultiTaskDataset({name: rows}),
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=self._eval_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    # ---- loss ----

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Labelled units by task, over the micro-batches of a step and over all ranks."""
        names = self.model_for_tasks.task_names
        total = torch.zeros(len(names), dtype=torch.float64)
        for batch in batch_samples:
            for name, count in self.model_for_tasks.count_items(batch["labels"]).items():
                total[names.index(name)] += count.cpu()
        total = self.accelerator.reduce(total.to(device, torch.float32), "sum")
        return dict(zip(names, total, strict=True))  # pyright: ignore[reportArgumentType]

    @property
    def model_for_tasks(self) -> PolyheadModel:
        """The model without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Weighted sum of the tasks' losses, each over its units in the whole optimizer step."""
        inputs = {key: value for key, value in inputs.items() if key != "rows"}
        outputs = model(**inputs, num_items=num_items_in_batch)
        counts = self.model_for_tasks.count_items(inputs["labels"])
        for name, loss in (outputs.losses or {}).items():
            units = counts[name] if num_items_in_batch is None else num_items_in_batch[name]
            self._sums.add(name, loss.detach() * units, counts[name])
        # DDP averages gradients over ranks; `num_items` already counts all of them
        loss = outputs.loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `loss_<task>`, the mean over its units since the last log, to the training loss."""
        if "loss" in logs:
            for name, value in self._sums.means(self.accelerator).items():
                logs[f"loss_{name}"] = value
        super().log(logs, start_time)

    # ---- evaluation ----

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
        fed = {key: value for key, value in inputs.items() if key != "rows"}
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
                found[name] = torch.full((len(rows), width), float("nan"), device=rows.device)
        return outputs.loss.detach(), found, rows

    def _spread(self, name: str, values: Tensor, inputs: dict[str, Any], rows: int) -> Tensor:
        """Values of the task's own rows to one entry per row: NaN for windows it does not read."""
        number = self.model_for_tasks.task_names.index(name)
        own = (inputs["task_ids"] == number).any(1)
        if bool(own.all()):
            return values
        spread = values.new_full((rows, *values.shape[1:]), float("nan"))
        spread[own] = values
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
        self, splits: dict[str, EvalSplit], prefix: str = "eval"
    ) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
        """Metrics by task (`entity_f1` with its rows by type), and loss by task."""
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
        return dict(sorted(scores.items())), self._eval_sums.means(self.accelerator)

    # ---- saving and loading ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The encoder and heads as HF loads them, then the adapters beside them."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_adapters(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_adapters(str(self.state.best_model_checkpoint))

    def _load_adapters(self, folder: str) -> None:
        model = self.model_for_tasks
        for name in model.loaded_adapters:
            load_adapter(model.encoder, name, folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A checkpoint is the folder that users load; the trainer's state is added to it."""
        if self.args.should_save:
            save_folder(
                self.model_for_tasks,
                self.processing_class,  # pyright: ignore[reportArgumentType]
                output_dir or str(self.args.output_dir),
                state_dict=state_dict,
            )


def _mask_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, T, V) logits -> (N, 2): masked tokens found, masked tokens."""
    masked = labels != -100
    hits = (logits.argmax(-1) == labels) & masked
    return torch.stack([hits.sum(1), masked.sum(1)], dim=1)


class _TaskSums:
    """Loss sums and unit counts by task, added up over steps and then over ranks."""

    def __init__(self, names: list[str]) -> None:
        self.names = sorted(names)
        self.clear()

    def clear(self) -> None:
        self.values: dict[str, list[Tensor]] = {name: [] for name in self.names}

    def add(self, name: str, total: Tensor, count: Tensor) -> None:
        self.values[name].append(torch.stack([total.float(), count.float()]))

    def means(self, accelerator: Any) -> dict[str, float]:
        """Mean loss per unit of each task that had any, over all ranks; starts anew."""
        zero = torch.zeros(2, device=accelerator.device)
        rows = [torch.stack(self.values[n]).sum(0) if self.values[n] else zero for n in self.names]
        totals = accelerator.reduce(torch.stack(rows), "sum").tolist()
        self.clear()
        return {n: s / c for n, (s, c) in zip(self.names, totals, strict=True) if c}
