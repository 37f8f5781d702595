"""The parts of a Trainer, made of its model, its rows and the options."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils.generic import strtobool

from ...modeling.modeling_polyhead import PolyheadModel
from ..balancing.base import Balancer
from ..balancing.methods import COMPILED, make_balancer, reads_tasks_apart
from ..balancing.task_gradients import GradientComparison, shared_parameters
from ..batches.by_class import classes_by_source
from ..batches.sampler import MultiTaskBatchSampler, make_sampler
from ..batches.strategies import together_by_source
from ..data.dataset import MultiTaskDataset
from ..optimization.by_task import make_source_gradients
from ..optimization.freezing import Unfreezing, apply_freeze
from ..recipe.sections import MultiTaskArguments
from .average import StartAverage
from .fsdp import ShardedTasks, check_deepspeed, prepare_sharding
from .layer_norms import EVERY, LayerNorms
from .meters import TaskCounters
from .nan_losses import NanLosses
from .optimizer_step import OptimizerStep
from .retain import Retention
from .shared_gradients import SharedGradients
from .sigterm import SigtermCallback
from .step_counts import StepCounter
from .task_losses import TaskLosses

COMPARE_EVERY = 48  # optimizer steps per task between two comparisons of gradients: 2 % time


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainerParts:
    """Makes the parts of a Trainer.

    Args:
        model: the model, without what accelerate wraps around it.
        args: of the training.
        accelerator: knows the ranks.
        multitask: sampling, balancing, what trains, when to stop.
        sources: source name to its tasks, as the collator counts them.
        fsdp_plugin: accelerate's options of FSDP; None without.
        uses_deepspeed: DeepSpeed does the steps.
    """

    model: PolyheadModel
    args: TrainingArguments
    accelerator: Accelerator
    multitask: MultiTaskArguments
    sources: dict[str, list[str]]
    fsdp_plugin: Any
    uses_deepspeed: bool

    @property
    def shards(self) -> bool:
        """A rank holds a share of the weights, or of their gradients."""
        return self.fsdp_plugin is not None or self.uses_deepspeed

    def sampler(self, dataset: MultiTaskDataset) -> MultiTaskBatchSampler:
        """What draws the rows of each step.

        Args:
            dataset: tokenized rows of all sources.
        """
        sampling = self.multitask.sampling
        by_length = sampling.order == "length" or sampling.batch_tokens is not None
        return make_sampler(
            dataset.ranges,
            self.sources,
            self.multitask,
            self.args,
            lengths=dataset.lengths if by_length else None,
            texts=dataset.texts if sampling.order == "no_duplicates" else None,
            together=together_by_source(sampling, self.sources, self.model.config.tasks),
            classes=None if sampling.balance is None else self._classes(dataset),
        )

    def _classes(self, dataset: MultiTaskDataset) -> dict[str, np.ndarray]:
        return classes_by_source(dataset, self.sources, self.model.config.tasks)

    def optimizer_step(
        self,
        dataset: MultiTaskDataset,
        *,
        sigterm: SigtermCallback,
        prepare: Callable[[dict[str, Any]], dict[str, Any]],
        autocast: Callable[[], AbstractContextManager],
    ) -> OptimizerStep:
        """What computes the losses of a step and weighs them; it freezes what never trains.

        Args:
            dataset: tokenized rows of all sources.
            sigterm: is told whether a rank has got the signal.
            prepare: moves a batch to the device.
            autocast: Trainer's context around a forward pass.

        Raises:
            ValueError: options that do not fit the model, or each other.
        """
        model, multitask, sources = self.model, self.multitask, self.sources
        balancer = self._balancer(dataset)
        retention = self._retention(dataset)
        unfreezing = Unfreezing(model, multitask.freeze)
        counters = TaskCounters(model.task_names)
        tasks = sorted(task for names in sources.values() for task in names)
        return OptimizerStep(
            model=model,
            accelerator=self.accelerator,
            balancer=balancer,
            counter=StepCounter(
                model=model,
                accelerator=self.accelerator,
                counters=counters,
                sigterm=sigterm,
                retention=retention,
            ),
            counters=counters,
            losses=TaskLosses(
                model,
                self.accelerator,
                cached=multitask.cached,
                prepare=prepare,
                autocast=autocast,
            ),
            nan=NanLosses(multitask.nan_loss, counters, sources),
            shared=SharedGradients(
                model,
                self.accelerator,
                balancer=balancer,
                comparison=GradientComparison(self._compare_every(len(tasks)), tasks),
                unfreezing=unfreezing,
            ),
            layers=LayerNorms(model, self._layers_every()),
            unfreezing=unfreezing,
            sources=sources,
            gradients=make_source_gradients(model, multitask, self.args, sources),
            retention=retention,
        )

    def _balancer(self, dataset: MultiTaskDataset) -> Balancer:
        """What weighs the tasks; what never trains is frozen before it is asked what they share."""
        model, balancing = self.model, self.multitask.balancing
        sizes = {name: len(rows) for name, rows in dataset.ranges.items()}
        rows = {task: sizes[name] for name, tasks in self.sources.items() for task in tasks}
        configs = {name: model.config.tasks[name] for name in rows}
        plain = self.shards or bool(self.args.torch_compile)
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
        return balancer

    def _retention(self, dataset: MultiTaskDataset) -> Retention | None:
        options = self.multitask.retain
        if options is None:
            return None
        if self.shards:
            raise ValueError("retain: does not go with FSDP or DeepSpeed; take it out")
        return Retention(self.model, options, dataset, self.sources)

    def _compare_every(self, tasks: int) -> int:
        """0 for never: one task, nothing shared that trains, weights in shards, or compiled."""
        apart = self.shards or self.args.torch_compile
        if tasks < 2 or apart or not shared_parameters(self.model):
            return 0
        steps = self.multitask.balancing.gradient_steps
        return COMPARE_EVERY * tasks if steps is None else steps

    def _layers_every(self) -> int:
        """0 for never: weights in shards, or each source's gradients in a place of their own."""
        if self.shards or self.multitask.optimizer.by_task:
            return 0
        steps = self.multitask.balancing.gradient_steps
        return EVERY if steps is None else steps

    def average(self, *, evaluates: bool) -> StartAverage | None:
        """What is averaged with the start's weights after training.

        Args:
            evaluates: there are rows to evaluate.

        Raises:
            ValueError: options that do not fit.
        """
        options = self.multitask.average
        if options is None:
            return None
        if options.start == "auto" and not evaluates:
            raise ValueError("average.start: auto needs rows to evaluate; write a number, as 0.2")
        if self.shards:
            raise ValueError("average: does not go with FSDP or DeepSpeed; take it out")
        return StartAverage(self.model, options)

    def sharding(self, step: OptimizerStep) -> list[ShardedTasks]:
        """Prepare FSDP and DeepSpeed, where they were asked for.

        Args:
            step: knows the tasks without rows.

        Returns:
            Callbacks.

        Raises:
            ValueError: what does not go with them.
        """
        plugin = self.fsdp_plugin
        if strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")) and plugin is None:
            raise ValueError("FSDP needs accelerators; on CPUs take configs/accelerate/cpu.yaml")
        if self.uses_deepspeed:
            check_deepspeed(self.model, self.multitask, self.args)
        if plugin is None:
            return []
        prepare_sharding(self.model, plugin, self.multitask, self.args)
        return [ShardedTasks(step.idle_tasks)]


def fitting_arguments(args: TrainingArguments) -> TrainingArguments:
    """A copy for several tasks.

    Raises:
        ValueError: what does not fit them.
    """
    if faults := _argument_faults(args):
        raise ValueError(f"TrainingArguments: {'; '.join(faults)}")
    args = copy(args)
    args.remove_unused_columns = False  # the collator needs all
    args.ddp_find_unused_parameters = True  # a head or adapter may have no rows on a rank
    return args


def _argument_faults(args: TrainingArguments) -> list[str]:
    faults = []
    if args.label_smoothing_factor:
        faults.append("label_smoothing_factor does not fit several tasks")
    if args.push_to_hub and args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
        faults.append("hub_strategy is end or every_save here")
    checkpointing: Any = args.activation_checkpointing_kwargs or {}
    if args.world_size > 1 and checkpointing.get("use_reentrant"):
        faults.append("several ranks need use_reentrant=False")
    return faults
