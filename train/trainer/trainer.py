"""The Trainer for several tasks: exact loss normalisers, balancing, losses and gradients by task.

What it overrides and why; the work is done by parts, plain objects that `trainer_parts.py` makes:
- an optimizer step (`OptimizerStep`): exact normalisers by task, balancing;
- the train dataloader: rows come from `MultiTaskBatchSampler`;
- the optimizer: learning rates by layer, head and adapter;
- evaluation (`evaluating.py`): one pass per source, predictions kept by task;
- saving (`saving.py`, `checkpoints.py`): a checkpoint is the folder that users load, and never half
  of one.
"""

from collections.abc import Mapping
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

from ...modeling.modeling_polyhead import PolyheadModel
from ..batches.by_source import SourceCollator, passes_of
from ..batches.collator import TAUGHT, MultiTaskCollator, model_inputs
from ..data.dataset import MultiTaskDataset
from ..evaluation.scoring import EvalSplit, MetricFunction
from ..optimization.by_task import rates_of_sources
from ..optimization.parameter_groups import logged_rates, optimizer_groups
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
from .evaluating import EvaluatingTrainer
from .identity import check_resume, identity_of
from .optimizer_step import OptimizerStep
from .rows import Columns, read_task_rows
from .sigterm import SigtermCallback, outlive_sigterm
from .trainer_parts import TrainerParts, fitting_arguments


class MultiTaskTrainer(EvaluatingTrainer):
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
        train_splits: training rows that are scored beside those of `eval_dataset`.

    Attributes:
        sampler: draws the rows; None without a train dataset, as `optimizer_step`.
        optimizer_step: the losses of a step, their weights, and what is known of each task.
        evaluation: the passes over the rows of each source.
        average: what is averaged with the start's weights; None where nothing is.
        sigterm: within `with trainer.sigterm:` a SIGTERM saves a checkpoint and ends the training.

    Raises:
        UserError: rows that do not fit their tasks.
        ValueError: arguments that do not fit several tasks.
    """

    loss_is_scaled_for_ga = True  # `num_items` counts the whole optimizer step
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
        train_splits: dict[str, EvalSplit] | None = None,
    ) -> None:
        args = fitting_arguments(args)
        tasks, options = model.config.tasks, multitask or MultiTaskArguments()
        if sources is None:
            rows: dict[str, Any] = {"train": train_dataset, "evaluation": eval_dataset}
            read = read_task_rows(tasks, processing_class, **rows, columns=columns)
            sources, train_dataset, eval_dataset = read.tasks, read.train, read.evaluation or None
        if options.optimizer.by_task and optimizers[0] is not None:
            raise ValueError("optimizer.by_task: an optimizer is given too; take one of them out")
        packed = train_dataset is not None and options.sampling.packing and model.can_pack
        collate = partial(
            MultiTaskCollator, processing_class, tasks, model.task_names, mask_seed=args.seed
        )
        collator = collate(sources, packed=packed)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=collator,
            eval_collator=collate(sources),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            train_splits=train_splits,
            columns=columns,
            callbacks=callbacks,
            compute_metrics=compute_metrics,
            optimizers=optimizers,
        )
        self.multitask = options
        self.origin = origin
        self.sources = sources
        self.sampler = None
        self.average: StartAverage | None = None
        self.sigterm = SigtermCallback()
        self._optim = None if optimizers[0] is None else type(optimizers[0]).__name__
        if isinstance(train_dataset, MultiTaskDataset):
            self._set_up_training(train_dataset, collator)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TaskProgress())

    def _set_up_training(self, dataset: MultiTaskDataset, collator: MultiTaskCollator) -> None:
        parts = TrainerParts(
            model=self.model,
            args=self.args,
            accelerator=self.accelerator,
            multitask=self.multitask,
            sources=self.sources,
            fsdp_plugin=self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None,
            uses_deepspeed=self.is_deepspeed_enabled,
        )
        self.sampler = parts.sampler(dataset)
        step = self.optimizer_step = parts.optimizer_step(
            dataset,
            sigterm=self.sigterm,
            prepare=self._prepare_inputs,
            autocast=self.compute_loss_context_manager,
        )
        splits: Any = self.eval_dataset or {}
        stopping = self.multitask.stopping
        callbacks: list[TrainerCallback] = [
            SetEpoch(self.sampler, collator),
            step.unfreezing,
            self.sigterm,
            TrainingState(step.counters, step.balancer),
            RunIdentity(lambda: self.identity),
            AfterStep(step.end_step),
            *stopping_callbacks(stopping, splits, self.sampler, collator),
        ]
        self.average = parts.average(evaluates=bool(splits))
        for callback in [*callbacks, *parts.sharding(step)]:
            self.add_callback(callback)

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
        distill = self.multitask.distill
        taught: Any = self.optimizer_step.losses.distillation
        if distill is not None and distill.rows == "others":
            parts = getattr(dataset, "parts", {})
            columns = {name for part in parts.values() for name in part.column_names}
            taught = columns.issuperset(TAUGHT + task for task in distill.teachers)
        if distill is not None and not taught:
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
        differ; `load_<task>_<expert>` of experts; `norm_<source>` with `optimizer.by_task`;
        `skipped_` losses that were not finite.
        """
        if "loss" in logs:
            groups = getattr(self.optimizer, "param_groups", [])  # DeepSpeed has its own
            unfreezing = self.optimizer_step.unfreezing
            logs |= self.optimizer_step.log() | logged_rates(groups, unfreezing)
        super().log(logs, start_time)

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

    def groups_compared(self) -> dict[str, int]:
        """Of tasks whose loss compares groups of texts, how many it has on average in training."""
        return {} if self.sampler is None else self.optimizer_step.compared()
