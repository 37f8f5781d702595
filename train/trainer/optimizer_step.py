"""An optimizer step over several tasks: exact normalisers, weights, gradients by task.

Each task's loss is divided by its own labelled units in the whole step, over micro-batches and
ranks, so that the losses of micro-batches and ranks just add up. On these sums `balancing`
works: methods that weigh losses cost nothing, or a forward pass; those over gradients cost a
backward pass for each task, and the shared weights' gradients are set after the last micro-batch.

The Trainer calls, in this order: `begin` with all micro-batches; for each of them `replay`, its own
forward pass and `loss`; `end_backward` after the last backward pass; `end_step` after the
optimizer's step. What these do is done by parts: `StepCounter`, `TaskLosses`, `NanLosses`,
`SharedGradients`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ...modeling.experts import expert_names
from ...modeling.modeling_polyhead import PolyheadModel, PolyheadOutput
from ..balancing.base import Balancer
from ..balancing.output_gradients import OutputGradients
from ..optimization.freezing import Unfreezing
from ..optimization.source_gradients import SourceGradients
from .layer_norms import LayerNorms
from .meters import ExpertLoads, GroupSizes, LossMeter, TaskCounters
from .nan_losses import NanLosses
from .retain import Retention
from .shared_gradients import SharedGradients
from .step_counts import StepCounter, StepCounts
from .task_losses import TaskLosses


@dataclass
class StepState:
    """What an optimizer step knows of itself.

    Args:
        number: optimizer steps done before.
        epoch: epoch of the training, fractions included.
        counts: what it has, over micro-batches and ranks.
        batches: its micro-batches, where balancing reads them again.
        weights: weights of the losses; None until the losses are known.
        sums: losses of this rank's micro-batches so far.
    """

    number: int = 0
    epoch: float = 0.0
    counts: StepCounts = field(default_factory=StepCounts)
    batches: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, float] | None = None
    sums: dict[str, Any] = field(default_factory=dict)

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of a micro-batch, scalars."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss.detach().double()


@dataclass(kw_only=True, eq=False)
class OptimizerStep:
    """The losses of an optimizer step, their weights, and what is learned from them.

    Args:
        model: the model, without what accelerate wraps around it.
        accelerator: knows the ranks.
        balancer: weighs the tasks, or combines their gradients.
        counter: counts what a step has.
        counters: counters of rows, tokens and skipped losses.
        losses: losses of micro-batches by task.
        nan: what becomes of those that are not finite.
        shared: gradients of the tasks on the weights that they share.
        layers: norms of the gradient by layer.
        unfreezing: knows the layers that wait.
        sources: source name to its tasks, as the collator counts them.
        gradients: gathers the gradients of the sources apart; None for their sum alone.
        retention: what the encoder keeps of itself; a loss beside the tasks', not balanced.
    """

    model: PolyheadModel
    accelerator: Accelerator
    balancer: Balancer
    counter: StepCounter
    counters: TaskCounters
    losses: TaskLosses
    nan: NanLosses
    shared: SharedGradients
    layers: LayerNorms
    unfreezing: Unfreezing
    sources: dict[str, list[str]]
    gradients: SourceGradients | None
    retention: Retention | None = None

    def __post_init__(self) -> None:
        self.meter = LossMeter(self.model.task_names)
        self.group_sizes = GroupSizes()
        options = self.model.config.experts
        experts = [] if options is None else expert_names(options)
        self.expert_loads = ExpertLoads(self.model.task_names, experts if len(experts) > 1 else [])
        self._state = StepState()
        reads_output = self.balancer.reads_output
        self.output_gradients = OutputGradients(self.model) if reads_output else None

    # ---- before the first micro-batch ----

    def begin(
        self,
        batches: list[dict[str, Any]],
        number: int,
        epoch: float,
        progress: float = 0.0,
        *,
        micro_batches: int | None = None,
    ) -> dict[str, Tensor]:
        """Count what the step has, and get what balancing and comparing gradients need in it.

        Args:
            batches: this rank's micro-batches, as the collator made them; or their passes.
            number: optimizer steps done before.
            epoch: epoch of the training, fractions included.
            progress: share of the training that is over.
            micro_batches: how many of them all ranks have; default one for each batch.

        Returns:
            Labelled units by task, over micro-batches and ranks: scalars, on the CPU.
        """
        counts = self.counter.count(batches)
        state = self._state = StepState(number, epoch, counts)
        self.losses.begin(counts, progress)
        self.shared.clear()
        if not batches:
            return counts.num_items
        if (len(batches) if micro_batches is None else micro_batches) > 1:
            self.losses.embed_all(batches)
        if not self.balancer.reads_losses:
            state.weights = self.balancer.weights(number, None)
        else:
            state.batches = batches
            if len(batches) > 1:  # weights depend on losses of micro-batches still to come
                state.weights = self.balancer.weights(number, self.losses.of_step(batches))
        self.shared.begin(number, counts)
        return counts.num_items

    # ---- each micro-batch ----

    def replay(self) -> None:
        """Before a forward pass: where the micro-batch is cached, the dropout of its first one."""
        if self.output_gradients is not None:
            self.output_gradients.begin_forward()
        self.losses.replay()

    def loss(self, outputs: PolyheadOutput, batch: dict[str, Any]) -> Tensor:
        """Weighted sum of the tasks' losses, each over its units in the whole optimizer step.

        Args:
            outputs: the model's outputs for the next micro-batch and the step's `num_items`.
            batch: the micro-batch, on the device.

        Returns:
            A scalar; times the number of ranks, because DDP averages gradients over them and
            `num_items` already counts all of them.

        Raises:
            UserError: a loss is not finite, and `nan_loss` is stop.
        """
        state, num_items = self._state, self._state.counts.num_items
        losses = self.losses.take(outputs, batch)
        losses = self.nan.finite(losses, batch, state.number, state.epoch)
        counts = self.model.count_items(batch["labels"], batch.get("label_weights"))
        for name, loss in losses.items():
            self.meter.add(name, loss.detach() * num_items[name], counts[name])
            if name in self.losses.in_batch:
                groups = self.losses.groups_compared(name, counts[name].detach())
                self.group_sizes.add(name, groups)
        self.expert_loads.add(outputs.expert_loads or {})
        loss = self._weigh(losses)
        if self.retention is not None and state.counts.retained:
            retained = self.retention.weighted_loss(
                outputs, batch, texts=state.counts.retained, skips=self.nan.skips
            )
            self.shared.add_retained(retained)
            loss = loss + retained
        if self.output_gradients is not None:
            self.output_gradients.begin_backward()
        if torch.is_grad_enabled() and not loss.requires_grad:  # what its tasks read waits to join
            loss = loss.detach().requires_grad_()
        return loss * self.accelerator.num_processes

    def each_source(
        self, passes: list[dict[str, Any]], train: Callable[[dict[str, Any]], Tensor]
    ) -> Tensor:
        """A forward and a backward pass for each source; its gradients are moved aside.

        Args:
            passes: a micro-batch of this rank, cut by source.
            train: trains on a batch, and gives its loss.

        Returns:
            The sum of the losses.
        """
        assert self.gradients is not None
        batches = {int(batch["sources"][0]): batch for batch in passes}
        total = torch.zeros((), device=self.accelerator.device)
        for number, tasks in enumerate(self.sources.values()):
            self.losses.begin_pass(tasks)
            if number in batches:
                with self.gradients.passes():
                    total += train(batches[number])
                self.gradients.take(number)
            else:
                self.losses.join_ranks()
        return total

    def _weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """The total loss of a micro-batch; keeps what the end of the step needs."""
        state, tasks = self._state, self.model.config.tasks
        state.add(losses)
        scaled = {name: tasks[name].loss_weight * loss for name, loss in losses.items()}
        self.shared.add(scaled)
        if state.weights is None:
            state.weights = self.balancer.weights(state.number, self._totals())
        if not scaled:  # every loss was skipped: nothing changes
            weight = next(p for p in self.model.parameters() if p.requires_grad)
            return weight.sum() * 0.0
        return torch.stack([state.weights.get(n, 1.0) * loss for n, loss in scaled.items()]).sum()

    def _totals(self) -> dict[str, float]:
        """Losses of the step so far, over all ranks."""
        present = self._state.counts.present
        if not present:  # on no rank
            return {}
        values: Any = self.accelerator.reduce(self._sums(), "sum")
        return dict(zip(present, values.tolist(), strict=True))

    def _sums(self) -> Tensor:
        """(K,) float64: losses of this rank's micro-batches so far."""
        state = self._state
        zero = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        sums = [torch.as_tensor(state.sums.get(n, zero)) for n in state.counts.present]
        return torch.stack(sums) if sums else zero.new_zeros(0)

    # ---- after the last micro-batch ----

    def end_backward(self) -> None:
        """After the last backward pass: balance and compare the tasks' gradients."""
        state, counts = self._state, self._state.counts
        if self.output_gradients is not None:
            self.output_gradients.end_backward()
        if self.gradients is not None:
            numbers = enumerate(self.sources.values())
            present = [n for n, tasks in numbers if not set(tasks) <= set(counts.idle)]
            self.gradients.drop(self.unfreezing.frozen_weights)
            self.gradients.reduce(self.accelerator, present)
            self.gradients.clip()
        self.shared.end(state.number, counts.present)
        self.unfreezing.clear_frozen()
        self.layers.take(state.number, self.accelerator)

    def end_step(self) -> None:
        """After the optimizer's step: what balancing learns from it."""
        state, balancer = self._state, self.balancer
        if not balancer.learns:
            return
        losses, gradients = self._totals_and_gradients()
        after = self.losses.of_step(state.batches) if balancer.reads_losses_after else None
        balancer.after_step(
            state.number,
            losses,
            losses_after=after,
            gradients=gradients,
            epoch=int(state.epoch),
        )

    def _totals_and_gradients(self) -> tuple[dict[str, float], Tensor | None]:
        """Losses of the step, and what the balancer reads of their gradients."""
        state, present = self._state, self._state.counts.present
        if self.balancer.reads_last_layer:
            return self._totals(), self.shared.total
        if self.output_gradients is None:
            return self._totals(), None
        values = torch.stack([self._sums(), self.output_gradients.squares(present)])
        values: Any = self.accelerator.reduce(values, "sum")
        losses, squares = values.tolist()
        scaler = self.accelerator.scaler
        scale = self.accelerator.num_processes * (1.0 if scaler is None else scaler.get_scale())
        weights = [(state.weights or {}).get(name, 1.0) * scale for name in present]
        lengths = torch.tensor(squares).sqrt() / torch.tensor(weights)
        return dict(zip(present, losses, strict=True)), lengths.unsqueeze(1)

    # ---- what is known of the tasks ----

    def idle_tasks(self) -> list[str]:
        """Tasks without rows in the step, on all ranks."""
        return self._state.counts.idle

    def compared(self) -> dict[str, int]:
        """Of tasks whose loss compares groups of texts, how many it did on average, so far."""
        return self.group_sizes.means()

    def log(self) -> dict[str, float]:
        """What there is to know of each task since the last log; see `MultiTaskTrainer.log`."""
        losses = self.meter.means(self.accelerator)
        logs = {f"loss_{name}": value for name, value in losses.items()}
        for part in (self.retention, self.losses.distillation):
            if part is not None:
                logs |= part.log(self.accelerator)
        norms = {} if self.gradients is None else self.gradients.log()
        logs |= self.counters.log() | self.balancer.log() | self.shared.comparison.log()
        logs |= self.expert_loads.log(self.accelerator)
        return logs | self.layers.log() | norms
