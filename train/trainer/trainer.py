"""The Trainer for several tasks: exact loss normalisers, balancing, losses and gradients by task.

What it overrides and why:
- an optimizer step (`optimizer_step.py`): exact normalisers by task, balancing;
- the train dataloader: rows come from `MultiTaskBatchSampler`;
- the optimizer: learning rates by layer, head and adapter;
- evaluation (`evaluation_loop.py`): one pass per source, predictions kept by task;
- saving (`checkpoints.py`): a checkpoint is the folder that users load, and never half of one.
"""

import os
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainingArguments,
)
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.generic import strtobool

from ...modeling.adapters import load_adapter
from ...modeling.modeling_polyhead import PolyheadModel
from ..balancing.methods import BY_TASK, COMPILED, make_balancer
from ..balancing.task_gradients import GradientComparison, shared_parameters
from ..batches.collator import MultiTaskCollator
from ..batches.sampler import make_sampler
from ..data.dataset import MultiTaskDataset
from ..evaluation.metrics import default_metrics, main_metric
from ..evaluation.scoring import EvalSplit
from ..hub.folder import save_folder
from ..hub.push import HUB_ERRORS, push
from ..optimization.freezing import Unfreezing, apply_freeze
from ..optimization.parameter_groups import optimizer_groups
from ..recipe.schema import MultiTaskArguments
from .callbacks import (
    AfterStep,
    RunIdentity,
    SetEpoch,
    TaskProgress,
    TaskStopping,
    TrainingState,
)
from .checkpoints import AtomicCheckpoints
from .evaluation_loop import TaskEvaluation, TaskSums
from .fsdp import ShardedTasks, check_deepspeed, own_class, prepare_sharding
from .identity import check_resume, identity_of
from .optimizer_step import TaskSteps
from .sigterm import LeaveOnSigterm, outlive_sigterm

logger = logging.get_logger(__name__)


class MultiTaskTrainer(TaskEvaluation, TaskSteps, AtomicCheckpoints):
    """Trains a `PolyheadModel` on the rows of several sources.

    Args:
        model: the model; its tasks are those of the sources.
        args: TrainingArguments with `remove_unused_columns=False`.
        tokenizer: the tokenizer that made the rows.
        train_dataset: tokenized rows of all sources, or None to evaluate only.
        eval_dataset: `EvalSplit` by source name.
        sources: source name to its tasks, for the collator.
        multitask: sampling, balancing, what trains, when to stop.
        origin: what tells the encoder's first weights from others; a checkpoint keeps it.

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
        multitask: MultiTaskArguments | None = None,
        origin: str | None = None,
    ) -> None:
        if args.remove_unused_columns:
            raise ValueError("TrainingArguments: set remove_unused_columns=False")
        if args.label_smoothing_factor:
            raise ValueError("TrainingArguments: label_smoothing_factor does not fit several tasks")
        if args.push_to_hub and args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError("TrainingArguments: hub_strategy is end or every_save here")
        checkpointing: Any = args.activation_checkpointing_kwargs or {}
        if args.world_size > 1 and checkpointing.get("use_reentrant"):
            raise ValueError("TrainingArguments: several ranks need use_reentrant=False")
        args.ddp_find_unused_parameters = True  # a head or adapter may have no rows on a rank
        self.multitask = multitask or MultiTaskArguments()
        self.origin = origin
        self.sources = sources
        options = (tokenizer, model.config.tasks, model.task_names, sources)
        packed = train_dataset is not None and self.multitask.sampling.packing and model.can_pack
        collator = MultiTaskCollator(*options, packed=packed, mask_seed=args.seed)
        self._eval_collator = MultiTaskCollator(*options, mask_seed=args.seed)
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,  # pyright: ignore[reportArgumentType]
        )
        self._sums = TaskSums(model.task_names)
        self.sampler = None
        self.leaving = LeaveOnSigterm()
        if train_dataset is not None:
            self._set_up_training(train_dataset, collator)
            self._set_up_sharding()
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TaskProgress())

    def _set_up_training(self, dataset: MultiTaskDataset, collator: MultiTaskCollator) -> None:
        args, multitask, model = self.args, self.multitask, self.model
        order, by_tokens = multitask.sampling.order, multitask.sampling.batch_tokens is not None
        self.sampler = make_sampler(
            dataset.ranges,
            self.sources,
            multitask,
            args,
            lengths=dataset.lengths if order == "length" or by_tokens else None,
            texts=dataset.texts if order == "no_duplicates" else None,
        )
        sizes = {name: len(rows) for name, rows in dataset.ranges.items()}
        rows = {task: sizes[name] for name, tasks in self.sources.items() for task in tasks}
        self.balancer = make_balancer(
            multitask.balancing, {name: model.config.tasks[name] for name in rows}, rows, args.seed
        )
        apply_freeze(model, multitask.freeze)
        by_task = self.balancer.needs in BY_TASK
        if by_task and not shared_parameters(model):
            raise ValueError(
                f"balancing.method: {multitask.balancing.method} needs weights that tasks share "
                "and that train; there are none"
            )
        if args.torch_compile and (by_task or multitask.balancing.gradient_steps):
            raise ValueError(f"balancing: {COMPILED}")
        self.unfreezing = Unfreezing(model, multitask.freeze)
        self.counts = TrainingState(self.balancer, model.task_names)
        self.comparison = GradientComparison(
            self._steps_between_comparisons(sorted(rows)), sorted(rows)
        )
        callbacks = [SetEpoch(self.sampler, collator), self.unfreezing, self.leaving, self.counts]
        callbacks.append(RunIdentity(lambda: self.identity))
        for callback in [*callbacks, AfterStep(self._end_of_step)]:
            self.add_callback(callback)
        stopping = multitask.stopping
        if stopping is not None and stopping.by == "macro":
            self.add_callback(EarlyStoppingCallback(stopping.patience, stopping.threshold))
        elif stopping is not None:
            if self.sampler.has_short_steps:
                raise ValueError("stopping by task: some optimizer step has fewer rows than others")
            metrics = self._main_metrics()
            self.add_callback(TaskStopping(stopping, metrics, self.sampler, collator))

    def _set_up_sharding(self) -> None:
        """FSDP and DeepSpeed, where they were asked for."""
        if strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")) and not self.is_fsdp_enabled:
            raise ValueError("FSDP needs accelerators; on CPUs take configs/accelerate/cpu.yaml")
        if self.is_deepspeed_enabled:
            check_deepspeed(self.multitask, self.args)
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            prepare_sharding(self.model, plugin, self.multitask, self.args)
            self.add_callback(ShardedTasks(lambda: self.idle_tasks))

    def _main_metrics(self) -> dict[str, str]:
        """The metric of each task with validation rows that says whether it still improves."""
        found = {}
        splits: Any = self.eval_dataset or {}
        for part in splits.values():
            for name, recipe in part.source.tasks.items():
                config, scored = self.model.config.tasks[name], recipe.data.label is not None
                found[name] = main_metric(recipe.metrics or default_metrics(config, scored=scored))
        return found

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the sampler, dealt to the ranks by accelerate."""
        loader = DataLoader(
            self.train_dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=self.sampler,  # pyright: ignore[reportArgumentType]
            collate_fn=self.data_collator,
            worker_init_fn=outlive_sigterm,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare_data_loader(loader, device_placement=False)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the training loss what there is to know of each task.

        `loss_<task>`, the mean over its units since the last log; `rows_` and `tokens_` seen;
        `weight_` of its loss; `grad_norm_` and the `cosine_` of two tasks, where compared since the
        last log; `skipped_` losses that were not finite.
        """
        if "loss" in logs:
            for name, value in self._sums.means(self.accelerator).items():
                logs[f"loss_{name}"] = value
            logs |= self.counts.log() | self.balancer.log() | self.comparison.log()
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
            )
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, whole)
            if "params" in options or "optimizer_dict" in options:
                raise ValueError(f"optim {self.args.optim} brings parameter groups of its own")
            self.optimizer_cls_and_kwargs = kind, {**options, "params": groups}
        return super().create_optimizer(model)

    # ---- saving and loading ----

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint of this training is made of; see `identity.py`."""
        parts: Any = getattr(self.train_dataset, "parts", {})
        evaluation: Any = self.eval_dataset or {}
        rows = {f"{name} train": part for name, part in parts.items()}
        rows |= {f"{name} {part.split}": part.rows for name, part in evaluation.items()}
        options: dict[str, Any] = {"rows": rows, "origin": self.origin}
        return identity_of(self.model_for_tasks, self.args, self.multitask, **options)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any):  # noqa: ANN201 - HF's
        """As HF's, from no checkpoint of other tasks, rows or steps.

        Raises:
            UserError: something else made the checkpoint; every difference is named.
        """
        if isinstance(resume_from_checkpoint, str):
            check_resume(resume_from_checkpoint, self.identity)
        return super().train(resume_from_checkpoint, *args, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The encoder and heads as HF loads them, then the adapters beside them."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_adapters(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_adapters(str(self.state.best_model_checkpoint))

    def _load_adapters(self, folder: str) -> None:
        if self.is_fsdp_enabled:  # a sharded checkpoint holds them among the weights
            return
        model = self.model_for_tasks
        for name in model.loaded_adapters:
            load_adapter(model.encoder, name, folder)

    def gathered_state(self) -> dict[str, Tensor] | None:
        """The weights of all ranks, on the first; None where each rank has them whole."""
        state: Any = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        return state

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A checkpoint is the folder that users load; the trainer's state is added to it."""
        if self.args.should_save:
            with own_class(self.model_for_tasks):
                save_folder(
                    self.model_for_tasks,
                    self.processing_class,  # pyright: ignore[reportArgumentType]
                    output_dir or str(self.args.output_dir),
                    state_dict=state_dict,
                )

    # ---- the Hub ----

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **_: Any,
    ) -> Any:
        """Upload the folder that users load, as it is now; what `push` gives, on the first rank.

        Args:
            commit_message: of the commit.
            blocking: not used; it returns when the commit is made.
            token: instead of `args.hub_token`.
            revision: branch instead of `args.hub_revision`.
            private: instead of `args.hub_private_repo`, for a repository that is made.
        """
        state = self.gathered_state()  # by all ranks
        if not self.is_world_process_zero():
            return None
        with TemporaryDirectory() as folder:
            self._save(folder, state)
            return self.push_folder(
                folder, message=commit_message, token=token, revision=revision, private=private
            )

    def push_folder(
        self,
        folder: str | Path,
        *,
        message: str | None = None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> dict[str, Any]:
        """`hub.push` of a folder to the repository that the arguments name."""
        args = self.args
        return push(
            folder,
            self.hub_model_id or args.hub_model_id or Path(str(args.output_dir)).name,
            private=args.hub_private_repo if private is None else private,
            revision=revision or args.hub_revision,
            message=message or "End of training",
            token=token or args.hub_token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """After each save; a Hub that does not answer stops no training: the next save tries."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        try:
            message = f"Training in progress, step {self.state.global_step}"
            self.push_folder(checkpoint_folder, message=message)
        except HUB_ERRORS as error:
            logger.warning(f"step {self.state.global_step} was not pushed: {error}")
