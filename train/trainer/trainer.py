"""The Trainer for several tasks: exact loss normalisers, balancing, losses and gradients by task.

What it overrides and why; the work is done by parts, plain objects that it makes:
- an optimizer step (`OptimizerStep`): exact normalisers by task, balancing;
- evaluation (`EvaluationLoop`): one pass per source, predictions kept by task;
- the train dataloader: rows come from `MultiTaskBatchSampler`;
- the optimizer: learning rates by layer, head and adapter;
- saving (`saving.py`, `checkpoints.py`): a checkpoint is the folder that users load, and never half
  of one.
"""

import logging
import os
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import HubStrategy, PredictionOutput
from transformers.utils.generic import strtobool

from ...modeling.modeling_polyhead import PolyheadModel
from ..balancing.methods import COMPILED, make_balancer, reads_tasks_apart
from ..balancing.task_gradients import GradientComparison, shared_parameters
from ..batches.by_source import SourceCollator, passes_of
from ..batches.collator import FOR_TRAINER, MultiTaskCollator, model_inputs
from ..batches.sampler import make_sampler
from ..batches.strategies import together_by_source
from ..data.dataset import MultiTaskDataset
from ..evaluation.scoring import EvalSplit, MetricFunction
from ..optimization.by_task import make_source_gradients, rates_of_sources
from ..optimization.freezing import Unfreezing, apply_freeze
from ..optimization.parameter_groups import optimizer_groups
from ..optimization.task_adamw import TaskAdamW
from ..recipe.sections import MultiTaskArguments
from .average import StartAverage
from .callbacks import (
    AfterStep,
    RunIdentity,
    SetEpoch,
    TaskProgress,
    TrainingState,
    stopping_callbacks,
)
from .evaluation_loop import EvaluationLoop, metrics_of
from .fsdp import ShardedTasks, check_deepspeed, prepare_sharding
from .identity import check_resume, identity_of
from .layer_norms import EVERY, LayerNorms
from .meters import TaskCounters
from .optimizer_step import OptimizerStep
from .retain import Retention
from .rows import Columns, TaskRows, answers_of, read_task_rows
from .saving import FolderCheckpoints
from .sigterm import SigtermCallback, outlive_sigterm

logger = logging.getLogger(__name__)
ON_TRAIN = "on_train"  # begins the names of scores of training rows
COMPARE_EVERY = 48  # optimizer steps per task between two comparisons of gradients: 2 % time
# of a batch: read by the host, which would wait for the device to have done all before
HOST = ("task_ids", "cu_seq_lens_q", "window_counts", *FOR_TRAINER)


class MultiTaskTrainer(FolderCheckpoints):
    """Trains a `PolyheadModel` on the rows of several tasks.

    Rows are given as one has them, `{task: rows}`: lists of dicts, `datasets`, pandas, torch; see
    `data/memory.py`. They are checked as those of a recipe. Or, with `sources`, they are prepared.

    Args:
        model: the model; its tasks are those of the rows, or more.
        args: TrainingArguments; a copy is kept, with `remove_unused_columns=False`.
        processing_class: the model's tokenizer.
        train_dataset: rows by task, or the tokenized rows of all sources; None to evaluate only.
        eval_dataset: rows by task, or `EvalSplit` by source name.
        columns: by task, as `{"intent": {"text": "utterance", "label": "intent"}}`, which column is
            what; default `text`, `label`, `tokens`, `text_pair`, `negative`.
        callbacks: as HF's.
        compute_metrics: `(task, predictions, references) -> {metric: value}`, added to the task's
            scores. Both are lists, one entry per labelled row, in the order of evaluation (longest
            texts first): labels, lists of labels, numbers, or the tags of words.
        optimizers: as HF's: an optimizer over the model's parameters, and a scheduler.
        sources: source name to its tasks, where the datasets are prepared.
        multitask: sampling, balancing, what trains, when to stop.
        origin: what tells the encoder's first weights from others; a checkpoint keeps it.

    Attributes:
        sampler: draws the rows; None without a train dataset, as `optimizer_step`.
        optimizer_step: the losses of a step, their weights, and what is known of each task.
        evaluation: the passes over the rows of each source.
        train_splits: training rows that are scored beside those of `eval_dataset`; none at first.
        average: what is averaged with the start's weights; None where nothing is.
        sigterm: within `with trainer.sigterm:` a SIGTERM saves a checkpoint and ends the training.

    Raises:
        UserError: rows that do not fit their tasks.
        ValueError: arguments that do not fit several tasks.
    """

    loss_is_scaled_for_ga = True  # `num_items` counts the whole optimizer step
    model: PolyheadModel
    optimizer_step: OptimizerStep

    def __init__(
        self,
        *,
        model: PolyheadModel,
        args: TrainingArguments,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: MultiTaskDataset | Mapping[str, Any] | None = None,
        eval_dataset: Mapping[str, Any] | None = None,
        columns: Columns | None = None,
        callbacks: list[TrainerCallback] | None = None,
        compute_metrics: MetricFunction | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        sources: dict[str, list[str]] | None = None,
        multitask: MultiTaskArguments | None = None,
        origin: str | None = None,
    ) -> None:
        if faults := argument_faults(args):
            raise ValueError(f"TrainingArguments: {'; '.join(faults)}")
        args = copy(args)
        args.remove_unused_columns = False  # the collator needs all
        args.ddp_find_unused_parameters = True  # a head or adapter may have no rows on a rank
        self.columns = columns
        if sources is None:
            rows = _task_rows(model, processing_class, train_dataset, eval_dataset, columns)
            sources, train_dataset, eval_dataset = rows.tasks, rows.train, rows.evaluation or None
        self.multitask = multitask or MultiTaskArguments()
        self.origin = origin
        self._optim = None if optimizers[0] is None else type(optimizers[0]).__name__
        self.sources = sources
        options = (processing_class, model.config.tasks, model.task_names, sources)
        packed = train_dataset is not None and self.multitask.sampling.packing and model.can_pack
        collator = MultiTaskCollator(*options, packed=packed, mask_seed=args.seed)
        if self.multitask.optimizer.by_task and optimizers[0] is not None:
            raise ValueError("optimizer.by_task: an optimizer is given too; take one of them out")
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=collator,
            train_dataset=train_dataset,  # pyright: ignore[reportArgumentType]
            eval_dataset=eval_dataset,  # pyright: ignore[reportArgumentType]
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.evaluation = EvaluationLoop(
            model,
            MultiTaskCollator(*options, mask_seed=args.seed),
            args=args,
            accelerator=self.accelerator,
            compute_metrics=compute_metrics,
            loop=self.evaluation_loop,
        )
        self.sampler = None
        self.train_splits: dict[str, EvalSplit] = {}
        self.average: StartAverage | None = None
        self.sigterm = SigtermCallback()
        if isinstance(train_dataset, MultiTaskDataset):
            self._set_up_training(train_dataset, collator)
            self._set_up_average()
            self._set_up_sharding()
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TaskProgress())

    def _set_up_training(self, dataset: MultiTaskDataset, collator: MultiTaskCollator) -> None:
        args, sampling = self.args, self.multitask.sampling
        by_length = sampling.order == "length" or sampling.batch_tokens is not None
        self.sampler = make_sampler(
            dataset.ranges,
            self.sources,
            self.multitask,
            args,
            lengths=dataset.lengths if by_length else None,
            texts=dataset.texts if sampling.order == "no_duplicates" else None,
            together=together_by_source(sampling, self.sources, self.model.config.tasks),
        )
        step = self.optimizer_step = self._make_optimizer_step(dataset)
        callbacks: list[TrainerCallback] = [
            SetEpoch(self.sampler, collator),
            step.unfreezing,
            self.sigterm,
            TrainingState(step.counters, step.balancer),
            RunIdentity(lambda: self.identity),
            AfterStep(step.end_step),
        ]
        splits: Any = self.eval_dataset or {}
        callbacks += stopping_callbacks(self.multitask.stopping, splits, self.sampler, collator)
        for callback in callbacks:
            self.add_callback(callback)

    def _make_optimizer_step(self, dataset: MultiTaskDataset) -> OptimizerStep:
        model, balancing = self.model, self.multitask.balancing
        sizes = {name: len(rows) for name, rows in dataset.ranges.items()}
        rows = {task: sizes[name] for name, tasks in self.sources.items() for task in tasks}
        configs = {name: model.config.tasks[name] for name in rows}
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        plain = sharded or bool(self.args.torch_compile)
        balancer = make_balancer(balancing, configs, rows, self.args.seed, plain=plain)
        apply_freeze(model, self.multitask.freeze)
        by_task = reads_tasks_apart(balancer)
        if by_task and not shared_parameters(model):
            raise ValueError(
                f"balancing.method: {balancing.method} needs weights that tasks share "
                "and that train; there are none"
            )
        apart = by_task or balancer.reads_output or balancing.gradient_steps
        if self.args.torch_compile and apart:
            raise ValueError(f"balancing: {COMPILED}")
        retain = self.multitask.retain
        if retain is not None and sharded:
            raise ValueError("retain: does not go with FSDP or DeepSpeed; take it out")
        return OptimizerStep(
            model=model,
            accelerator=self.accelerator,
            balancer=balancer,
            comparison=GradientComparison(self._compare_every(len(rows)), sorted(rows)),
            layers=LayerNorms(model, self._layers_every()),
            unfreezing=Unfreezing(model, self.multitask.freeze),
            counters=TaskCounters(model.task_names),
            sigterm=self.sigterm,
            multitask=self.multitask,
            sources=self.sources,
            gradients=make_source_gradients(model, self.multitask, self.args, self.sources),
            prepare=self._prepare_inputs,
            autocast=self.compute_loss_context_manager,
            retention=None if retain is None else Retention(model, retain, dataset, self.sources),
        )

    def _set_up_average(self) -> None:
        """What is averaged with the start's weights after training."""
        options = self.multitask.average
        if options is None:
            return
        if options.start == "auto" and not self.eval_dataset:
            raise ValueError("average.start: auto needs rows to evaluate; write a number, as 0.2")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("average: does not go with FSDP or DeepSpeed; take it out")
        self.average = StartAverage(self.model, options)

    def _compare_every(self, tasks: int) -> int:
        """0 for never: one task, nothing shared that trains, weights in shards, or compiled."""
        apart = self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.torch_compile
        if tasks < 2 or apart or not shared_parameters(self.model):
            return 0
        steps = self.multitask.balancing.gradient_steps
        return COMPARE_EVERY * tasks if steps is None else steps

    def _layers_every(self) -> int:
        """0 for never: weights in shards, or each source's gradients in a place of their own."""
        apart = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if apart or self.multitask.optimizer.by_task:
            return 0
        steps = self.multitask.balancing.gradient_steps
        return EVERY if steps is None else steps

    def _set_up_sharding(self) -> None:
        """FSDP and DeepSpeed, where they were asked for."""
        if strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")) and not self.is_fsdp_enabled:
            raise ValueError("FSDP needs accelerators; on CPUs take configs/accelerate/cpu.yaml")
        if self.is_deepspeed_enabled:
            check_deepspeed(self.multitask, self.args)
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            prepare_sharding(self.model, plugin, self.multitask, self.args)
            self.add_callback(ShardedTasks(self.optimizer_step.idle_tasks))

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the sampler, dealt to the ranks by accelerate."""
        collate: Any = self.data_collator
        if self.optimizer_step.gradients is not None:
            collate = SourceCollator(collate)
        loader = DataLoader(
            self.train_dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=self.sampler,  # pyright: ignore[reportArgumentType]
            collate_fn=collate,
            worker_init_fn=outlive_sigterm,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare_data_loader(loader, device_placement=False)

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

    # ---- a step ----

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint of this training is made of; see `identity.py`."""
        parts: Any = getattr(self.train_dataset, "parts", {})
        evaluation: Any = self.eval_dataset or {}
        rows = {f"{name} train": part for name, part in parts.items()}
        rows |= {f"{name} {part.split}": part.rows for name, part in evaluation.items()}
        options: dict[str, Any] = {"rows": rows, "origin": self.origin, "optim": self._optim}
        together = {} if self.sampler is None else self.sampler.together
        multitask = replace(  # what the defaults came to: another version may have others
            self.multitask,
            balancing=self.optimizer_step.balancer.options,
            sampling=replace(
                self.multitask.sampling, rows_together=max(together.values(), default=None)
            ),
        )
        return identity_of(self.model_for_tasks, self.args, multitask, **options)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any):  # noqa: ANN201 - HF's
        """As HF's, from no checkpoint of other tasks, rows or steps.

        The model it begins with is the start that `multitask.retain` and `average` speak of.

        Raises:
            UserError: something else made the checkpoint; every difference is named.
        """
        if isinstance(resume_from_checkpoint, str):
            check_resume(resume_from_checkpoint, self.identity)
        self._compute_targets()
        if self.average is None:
            return super().train(resume_from_checkpoint, *args, **options)
        self.average.keep_start()
        output = super().train(resume_from_checkpoint, *args, **options)
        splits: Any = self.eval_dataset
        self.average.apply(lambda: self.evaluate_tasks(splits, "average")[0])
        for line in self.average.logs():
            self.log(line)
        return output

    def _compute_targets(self) -> None:
        """What rows are to keep of the model as it is before it trains, or is resumed."""
        dataset = self.train_dataset
        if self.multitask.distill is not None and self.optimizer_step.distillation is None:
            raise ValueError("distill: the teachers have not been asked; train by a recipe")
        if isinstance(dataset, MultiTaskDataset) and self.optimizer_step.retention is not None:
            self.optimizer_step.retention.compute(
                dataset,
                self.data_collator,  # pyright: ignore[reportArgumentType]
                self._prepare_inputs,
                self.compute_loss_context_manager,
                accelerator=self.accelerator,
                progress=not self.args.disable_tqdm,
            )

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Begins an optimizer step, with all its micro-batches; labelled units by task."""
        state, count = self.state, len(batch_samples)
        progress = state.global_step / max(state.max_steps, 1)
        step, epoch, batches = state.global_step, state.epoch or 0.0, passes_of(batch_samples)
        return self.optimizer_step.begin(batches, step, epoch, progress, micro_batches=count)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Weighted sum of the tasks' losses, each over its units in the whole optimizer step."""
        self.optimizer_step.replay()
        retention = self.optimizer_step.retention
        options = {} if retention is None else retention.model_options
        outputs = model(**model_inputs(inputs), num_items=num_items_in_batch, **options)
        loss = self.optimizer_step.loss(outputs, inputs)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """As HF's; after the last micro-batch the step's gradients are balanced and compared."""
        gradients, step = self.optimizer_step.gradients, super().training_step
        if gradients is None:
            loss = step(model, inputs, num_items_in_batch)
        else:  # not as DDP wraps it: the sources' gradients are exchanged, and passes are not even
            train = partial(step, self.model, num_items_in_batch=num_items_in_batch)
            loss = self.optimizer_step.each_source(passes_of([inputs]), train)
        if self.accelerator.sync_gradients:
            self.optimizer_step.end_backward()
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """As HF's; sources have been clipped one by one."""
        gradients = self.optimizer_step.gradients
        return super()._clip_grad_norm(model) if gradients is None else gradients.norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As HF's; that of all sources, where each has its own."""
        gradients = self.optimizer_step.gradients
        return super()._get_grad_norm(model, grad_norm if gradients is None else gradients.norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the training loss what there is to know of each task.

        `loss_<task>`, the mean over its units since the last log; `rows_` and `tokens_` seen;
        `weight_` of its loss; `grad_norm_` and the `cosine_` of two tasks, where compared since the
        last log; `gradient_` of embeddings and layers; `lr_` of parts of the model, where they
        differ; `norm_<source>` with `optimizer.by_task`; `skipped_` losses that were not finite.
        """
        if "loss" in logs:
            logs |= self.optimizer_step.log() | self._rates()
        super().log(logs, start_time)

    def _rates(self) -> dict[str, float]:
        """`lr_<part>` of each part of the model, 0 while it waits; none where all have one rate."""
        groups = getattr(self.optimizer, "param_groups", [])  # DeepSpeed has its own
        if not all("name" in group for group in groups):  # a caller's optimizer
            return {}
        waiting = {id(weight) for weight in self.optimizer_step.unfreezing.frozen_weights}
        rates = {
            f"lr_{group['name'].removesuffix(', no decay').replace(' ', '_')}": (
                0.0 if id(group["params"][0]) in waiting else float(group["lr"])
            )
            for group in groups
        }
        started = {group.get("initial_lr", group["lr"]) for group in groups}
        return rates if len(started) > 1 or self.optimizer_step.unfreezing.starts else {}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As HF's, with the parameter groups of `optimization`."""
        if self.optimizer is None:
            whole = self.model if model is None else model
            groups = optimizer_groups(
                self.model_for_tasks,
                self.multitask.freeze,
                self.multitask.optimizer,
                self.args,
                self.get_decay_parameter_names(whole),
                self.multitask.rates,
            )
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, whole)
            if "params" in options or "optimizer_dict" in options:
                raise ValueError(f"optim {self.args.optim} brings parameter groups of its own")
            if by_task := self.multitask.optimizer.by_task:
                rates = rates_of_sources(
                    self.multitask.rates, self.sources, self.args.learning_rate
                )
                gradients = self.optimizer_step.gradients
                options |= {"gradients": gradients, "by_task": by_task, "rates": rates}
                kind = TaskAdamW
            self.optimizer_cls_and_kwargs = kind, {**options, "params": groups}
        return super().create_optimizer(model)

    # ---- evaluation ----

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
        return _task_rows(self.model_for_tasks, tokenizer, None, rows, self.columns).evaluation

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
        sizes = {} if self.sampler is None else self.optimizer_step.compared()
        return self.evaluation.run(splits, prefix, sizes=sizes, reports=reports)


def _task_rows(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    evaluation: Any,
    columns: Columns | None,
) -> TaskRows:
    """Rows by task, checked and tokenized; what is to be said of them is logged."""
    rows = read_task_rows(
        model.config.tasks, tokenizer, train=train, evaluation=evaluation, columns=columns
    )
    for line in rows.notes:
        logger.warning(line)
    return rows


def argument_faults(args: TrainingArguments) -> list[str]:
    """What of TrainingArguments does not fit several tasks."""
    faults = []
    if args.label_smoothing_factor:
        faults.append("label_smoothing_factor does not fit several tasks")
    if args.push_to_hub and args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
        faults.append("hub_strategy is end or every_save here")
    checkpointing: Any = args.activation_checkpointing_kwargs or {}
    if args.world_size > 1 and checkpointing.get("use_reentrant"):
        faults.append("several ranks need use_reentrant=False")
    return faults
