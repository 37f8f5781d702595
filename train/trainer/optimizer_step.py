"""An optimizer step over several tasks: exact normalisers, weights, gradients by task.

Each task's loss is divided by its own labelled units in the whole step, over micro-batches and
ranks, so that the losses of micro-batches and ranks just add up. On these sums `balancing`
works: methods that weigh losses cost nothing, or a forward pass; those over gradients cost a
backward pass for each task, and the shared weights' gradients are set after the last micro-batch.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ...modeling.modeling_polyhead import PolyheadModel
from ..balancing.methods import Balancer
from ..balancing.task_gradients import (
    SKETCH,
    GradientComparison,
    StepGradients,
    last_layer_of,
    shared_parameters,
)
from ..batches.collator import model_inputs
from ..errors import UserError
from ..optimization.freezing import Unfreezing
from ..recipe.schema import MultiTaskArguments, compares
from .callbacks import TrainingState
from .evaluation_loop import TaskSums
from .gradcache import CachedPart, cache_step, loss_over_ranks
from .sigterm import LeaveOnSigterm

COMPARE_EVERY = 16  # optimizer steps per task between two comparisons of gradients: some 4 % time
ROWS_SHOWN = 20
# of a batch: read by the host, which would wait for the device to have done all before
HOST = ("task_ids", "cu_seq_lens_q", "rows", "sources", "seen")


@dataclass
class Step:
    """What is kept during an optimizer step.

    Args:
        batches: its micro-batches, where balancing reads them again.
        num_items: labelled units by task.
        present: the tasks with any, on all ranks.
        weights: of the losses; None until the losses are known.
        sums: losses of this rank's micro-batches so far.
        gradients: of the tasks, for balancing.
        compared: of the tasks, to be compared, where balancing does not read all of them.
        cached: of each micro-batch, where tasks are compared over all of them.
        position: the micro-batch that comes next.
    """

    batches: list
    num_items: dict[str, Tensor]
    present: list[str]
    weights: dict[str, float] | None = None
    sums: dict[str, Any] = field(default_factory=dict)
    gradients: StepGradients | None = None
    compared: StepGradients | None = None
    cached: list[CachedPart] = field(default_factory=list)
    position: int = 0


class TaskSteps(Trainer):
    """What `MultiTaskTrainer` overrides of an optimizer step."""

    model: PolyheadModel
    model_for_tasks: PolyheadModel
    multitask: MultiTaskArguments
    sources: dict[str, list[str]]
    balancer: Balancer
    comparison: GradientComparison
    counts: TrainingState
    leaving: LeaveOnSigterm
    unfreezing: Unfreezing
    idle_tasks: list[str]  # without rows in the optimizer step, on all ranks
    _step: Step
    _sums: TaskSums

    def _steps_between_comparisons(self, tasks: list[str]) -> int:
        """0 for never: one task, nothing shared that trains, weights in shards, or compiled."""
        apart = self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.torch_compile
        if len(tasks) < 2 or apart or not shared_parameters(self.model):
            return 0
        given = self.multitask.balancing.gradient_steps
        return COMPARE_EVERY * len(tasks) if given is None else given

    def _prepare_input(self, data: Any) -> Any:
        """As HF's; nothing waits for a tensor in pinned memory."""
        if isinstance(data, Tensor) and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Moves to the device what it computes with; what the host decides by stays there."""
        moved = {key: value for key, value in inputs.items() if key not in HOST}
        return {**inputs, **super()._prepare_inputs(moved)}

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of an optimizer step, and the labelled units of each task in them."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._begin_step(batches, num_items)
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Labelled units by task, over the micro-batches of a step and over all ranks."""
        names = self.model_for_tasks.task_names
        total = torch.zeros(len(names), 3, dtype=torch.float64)  # units, rows, tokens
        for batch in batch_samples:
            total[:, 1:] += batch["seen"]
            for name, count in self.model_for_tasks.count_items(batch["labels"]).items():
                total[names.index(name), 0] += count
        flat = torch.cat([total.flatten(), total.new_tensor([self.leaving.requested])]).float()
        if self.accelerator.num_processes > 1:  # else the host would wait for its own numbers
            flat = flat.to(device)
        summed: Any = self.accelerator.reduce(flat, "sum")
        flat = summed.cpu()
        self.leaving.agreed = bool(flat[-1])  # all ranks leave after the same step
        found = flat[:-1].view(len(names), 3)
        self.idle_tasks = [
            n for n, rows in zip(names, found[:, 1].tolist(), strict=True) if not rows
        ]
        self.counts.see(found[:, 1:])
        return dict(zip(names, found[:, 0], strict=True))

    def _begin_step(self, batches: list, num_items: Any) -> None:
        """What balancing and the comparison of gradients need in this optimizer step."""
        model, step = self.model_for_tasks, self.state.global_step
        present = [name for name, count in num_items.items() if count]
        needs = self.balancer.needs
        self._step = Step(batches if needs.startswith("losses") else [], num_items, present)
        self._cache(batches)
        if not needs.startswith("losses"):
            self._step.weights = self.balancer.weights(step, None)
        elif len(batches) > 1:  # they depend on losses of micro-batches that are still to come
            self._step.weights = self.balancer.weights(step, self._losses_of_step())
        waiting = {id(weight) for weight in self.unfreezing.frozen_weights}
        shared = [weight for weight in shared_parameters(model) if id(weight) not in waiting]
        compared = self.comparison.wanted(step, present) and bool(shared)
        if needs == "last_layer":
            self._step.gradients = StepGradients(present, last_layer_of(model, shared))
        elif needs == "gradients" and shared:
            self._step.gradients = StepGradients(present, shared)
        if needs != "gradients" and compared:
            self._step.compared = StepGradients(present, shared, SKETCH)

    def _cache(self, batches: list) -> None:
        """The gradients of tasks that are compared over all micro-batches of the step."""
        names = [name for name in self._step.present if name in self.multitask.cached]
        if not names or len(batches) == 1:
            return

        def forward(batch: dict[str, Any]) -> Any:
            with self.compute_loss_context_manager():
                return self.model_for_tasks(**model_inputs(self._prepare_inputs(batch)))

        self.model_for_tasks.train()
        heads: Any = {name: self.model_for_tasks.heads[name] for name in names}
        num_items = self._step.num_items
        self._step.cached = cache_step(batches, forward, heads, num_items, self.accelerator)

    def _task_losses(self, outputs: Any, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's losses; those that compare texts over all ranks, or over the whole step.

        A rank without rows of such a task takes part all the same.
        """
        step, model = self._step, self.model_for_tasks
        losses = dict(outputs.losses or {})
        if step.cached:
            losses |= step.cached[step.position].losses(outputs.embeddings or {})
        if self.accelerator.num_processes == 1:
            return losses
        comparing = [n for n in step.present if compares(model.config.tasks[n])]
        for name in [n for n in comparing if not (step.cached and n in self.multitask.cached)]:
            empty = torch.zeros(0, 0, device=self.args.device)
            found = (outputs.embeddings or {}).get(name, empty)
            given = labels.get(name, empty.flatten())
            head: Any = model.heads[name]
            loss = loss_over_ranks(head, found, given, step.num_items[name], self.accelerator)
            if loss is not None:
                losses[name] = loss
        return losses

    def _losses_of_step(self) -> dict[str, float]:
        """The losses of the step's batches under the weights of now; dropout as in training."""
        device = self.args.device
        total = torch.zeros(len(self._step.present), dtype=torch.float64, device=device)
        with torch.random.fork_rng(), torch.no_grad(), self.compute_loss_context_manager():
            self.model_for_tasks.train()
            for batch in self._step.batches:
                fed = model_inputs(self._prepare_inputs(batch))
                outputs = self.model_for_tasks(**fed, num_items=self._step.num_items)
                losses = self._task_losses(outputs, fed["labels"])
                for number, name in enumerate(self._step.present):
                    total[number] += losses.get(name, 0.0)
        total: Any = self.accelerator.reduce(total, "sum")
        return dict(zip(self._step.present, total.tolist(), strict=True))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Weighted sum of the tasks' losses, each over its units in the whole optimizer step."""
        if self._step.cached:
            self._step.cached[self._step.position].replay()
        outputs = model(**model_inputs(inputs), num_items=num_items_in_batch)
        losses = self._finite(self._task_losses(outputs, inputs["labels"]), inputs)
        self._step.position += 1
        counts = self.model_for_tasks.count_items(inputs["labels"])
        for name, loss in losses.items():
            units = counts[name] if num_items_in_batch is None else num_items_in_batch[name]
            self._sums.add(name, loss.detach() * units, counts[name])
        loss = self._weigh(losses)
        # DDP averages gradients over ranks; `num_items` already counts all of them
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """The total loss of a micro-batch; keeps what the end of the step needs."""
        step, tasks = self._step, self.model_for_tasks.config.tasks
        detached = {name: loss.detach().double() for name, loss in losses.items()}
        for name, value in detached.items():
            step.sums[name] = step.sums.get(name, 0.0) + value
        own = {name: tasks[name].loss_weight * loss for name, loss in losses.items()}
        for gradients in (step.gradients, step.compared):
            if gradients is not None:
                gradients.add(own)
        if step.weights is None:
            step.weights = self.balancer.weights(self.state.global_step, self._totals())
        if not own:  # every loss was skipped: nothing changes
            weight = next(p for p in self.model_for_tasks.parameters() if p.requires_grad)
            return weight.sum() * 0.0
        return torch.stack([step.weights.get(n, 1.0) * loss for n, loss in own.items()]).sum()

    def _totals(self) -> dict[str, float]:
        """Losses of the step so far, over all ranks."""
        step = self._step
        if not step.present:  # on no rank
            return {}
        zero = torch.zeros((), dtype=torch.float64, device=self.args.device)
        values = torch.stack([torch.as_tensor(step.sums.get(n, zero)) for n in step.present])
        values: Any = self.accelerator.reduce(values, "sum")
        return dict(zip(step.present, values.tolist(), strict=True))

    def _finite(self, losses: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
        """The losses that are finite.

        Raises:
            UserError: one is not, and `nan_loss` is stop.
        """
        if not losses or bool(torch.stack(list(losses.values())).isfinite().all()):
            return losses
        for name, loss in losses.items():
            if not loss.isfinite():
                if self.multitask.nan_loss == "stop":
                    raise UserError("training", [self._not_finite(name, loss, inputs)])
                self.counts.skipped[name] += 1
        return {name: loss for name, loss in losses.items() if loss.isfinite()}

    def _not_finite(self, name: str, loss: Tensor, inputs: dict[str, Any]) -> str:
        own = [i for i, tasks in enumerate(self.sources.values()) if name in tasks]
        rows = inputs["rows"][torch.isin(inputs["sources"], inputs["sources"].new_tensor(own))]
        shown = ", ".join(map(str, rows[:ROWS_SHOWN].tolist()))
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        return (
            f"the loss of task {name} is {loss.item()} in step {self.state.global_step + 1} (epoch "
            f"{self.state.epoch or 0:.2f}); its rows of train there: {shown}{more}. Look at these "
            "rows, lower training.learning_rate, or write nan_loss: skip to leave such batches out"
        )

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """As HF's; after the last micro-batch the step's gradients are balanced and compared."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._end_of_backward()
            self.unfreezing.clear_frozen()
        return loss

    def _end_of_backward(self) -> None:
        step = self._step
        if step.gradients is not None:
            step.gradients.reduce(self.accelerator)
        if self.balancer.needs == "gradients" and step.gradients is not None and step.present:
            total = step.gradients.total
            combined = self.balancer.combine(total, step.present, self.state.global_step)
            step.gradients.write(combined)
        if step.compared is not None:
            step.compared.reduce(self.accelerator)
        compared = step.gradients if self.balancer.needs == "gradients" else step.compared
        if compared is not None and self.comparison.missing:
            self.comparison.take(compared)

    def _end_of_step(self) -> None:
        """After the optimizer's step: what balancing learns from it."""
        step, needs = self._step, self.balancer.needs
        if needs in ("nothing", "gradients"):
            return
        own = step.gradients.total if needs == "last_layer" and step.gradients else None
        self.balancer.after_step(
            self.state.global_step,
            self._totals(),
            losses_after=self._losses_of_step() if needs == "losses_after" else None,
            gradients=own,
            epoch=int(self.state.epoch or 0),
        )
