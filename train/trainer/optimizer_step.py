"""An optimizer step over several tasks: exact normalisers, weights, gradients by task.

Each task's loss is divided by its own labelled units in the whole step, over micro-batches and
ranks, so that the losses of micro-batches and ranks just add up. On these sums `balancing`
works: methods that weigh losses cost nothing, or a forward pass; those over gradients cost a
backward pass for each task, and the shared weights' gradients are set after the last micro-batch.

The Trainer calls, in this order: `begin` with all micro-batches; for each of them `replay`, its own
forward pass and `loss`; `end_backward` after the last backward pass; `end_step` after the
optimizer's step.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ...modeling.modeling_polyhead import PolyheadModel, PolyheadOutput
from ..balancing.base import Balancer
from ..balancing.halves import HalfGradient
from ..balancing.output_gradients import OutputGradients
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
from ..optimization.source_gradients import SourceGradients
from ..recipe.retain import NAME as RETAIN
from ..recipe.schema import in_batch
from ..recipe.sections import MultiTaskArguments
from .distill import Distillation
from .gradcache import CachedBatch, cache_step, loss_over_ranks
from .layer_norms import LayerNorms
from .meters import LossMeter, TaskCounters
from .retain import Retention
from .sigterm import SigtermCallback

ROWS_SHOWN = 20


@dataclass
class StepState:
    """What an optimizer step knows of itself.

    Args:
        number: optimizer steps done before.
        epoch: epoch of the training, fractions included.
        num_items: labelled units by task, over micro-batches and ranks.
        present: the tasks with any, on all ranks.
        idle: the tasks without rows, on all ranks.
        batches: its micro-batches, where balancing reads them again.
        weights: weights of the losses; None until the losses are known.
        sums: losses of this rank's micro-batches so far.
        gradients: gradients of the tasks, for balancing.
        sketches: sketches of the tasks' gradients, to compare where balancing reads none or others.
        half: that of half of a task's rows, for the noise of the comparison.
        cached: what is cached of each micro-batch, where a loss compares all of them.
        position: the micro-batch that comes next.
        progress: share of the training that is over.
        retained: texts whose vectors are retained, over micro-batches and ranks.
        pull: gradient of that loss, where balancing sets those of the shared weights.
        of_pass: the tasks of the pass under way, where each source has its own; else None.
    """

    number: int
    epoch: float
    num_items: dict[str, Tensor]
    present: list[str]
    idle: list[str]
    batches: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, float] | None = None
    sums: dict[str, Any] = field(default_factory=dict)
    gradients: StepGradients | None = None
    sketches: StepGradients | None = None
    half: HalfGradient | None = None
    cached: list[CachedBatch] = field(default_factory=list)
    position: int = 0
    progress: float = 0.0
    retained: float = 0.0
    pull: StepGradients | None = None
    of_pass: list[str] | None = None


@dataclass(kw_only=True, eq=False)
class OptimizerStep:
    """The losses of an optimizer step, their weights, and what is learned from them.

    Args:
        model: the model, without what accelerate wraps around it.
        accelerator: knows the ranks.
        balancer: weighs the tasks, or combines their gradients.
        comparison: comparison of the tasks' gradients.
        layers: norms of the gradient by layer.
        unfreezing: knows the layers that wait.
        counters: counters of rows, tokens and skipped losses.
        sigterm: is told whether a rank has got the signal.
        multitask: which tasks are cached, what a loss that is not finite does.
        sources: source name to its tasks, as the collator counts them.
        gradients: gathers the gradients of the sources apart; None for their sum alone.
        prepare: moves a batch to the device.
        autocast: Trainer's context around a forward pass.
        retention: what the encoder keeps of itself; a loss beside the tasks', not balanced.
        distillation: what tasks learn from teachers; a part of their losses.
    """

    model: PolyheadModel
    accelerator: Accelerator
    balancer: Balancer
    comparison: GradientComparison
    layers: LayerNorms
    unfreezing: Unfreezing
    counters: TaskCounters
    sigterm: SigtermCallback
    multitask: MultiTaskArguments
    sources: dict[str, list[str]]
    gradients: SourceGradients | None
    prepare: Callable[[dict[str, Any]], dict[str, Any]]
    autocast: Callable[[], AbstractContextManager]
    retention: Retention | None = None
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        self.meter = LossMeter(self.model.task_names)
        self._in_batch = {n for n, task in self.model.config.tasks.items() if in_batch(task)}
        self._sizes: dict[str, Tensor] = {}  # groups that were compared, and how often
        self._state = StepState(0, 0.0, {}, [], [])
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
        num_items, idle, retained = self._count(batches)
        present = [name for name, count in num_items.items() if count]
        step = self._state = StepState(number, epoch, num_items, present, idle)
        step.progress, step.retained = progress, retained
        if not batches:
            return num_items
        if (len(batches) if micro_batches is None else micro_batches) > 1:
            self._cache(batches)
        if not self.balancer.reads_losses:
            step.weights = self.balancer.weights(number, None)
        else:
            step.batches = batches
            if len(batches) > 1:  # weights depend on losses of micro-batches still to come
                step.weights = self.balancer.weights(number, self._losses_of_step())
        self._begin_gradients()
        return num_items

    def _count(self, batches: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[str], float]:
        """Labelled units by task, the tasks without rows, and retained texts, over all ranks.

        The same exchange tells all ranks of a SIGTERM, so that they leave after the same step.
        """
        names = self.model.task_names
        total = torch.zeros(len(names), 3, dtype=torch.float64)  # units, rows, tokens
        for batch in batches:
            total[:, 1:] += batch["counts"]
            for name, count in self.model.count_items(batch["labels"]).items():
                total[names.index(name), 0] += count
        retained = 0
        if self.retention is not None:
            retained = sum(map(self.retention.numbers.count_in, batches))
        others = total.new_tensor([retained, self.sigterm.requested])
        flat = torch.cat([total.flatten(), others]).float()
        if self.accelerator.num_processes > 1:  # else the host would wait for its own numbers
            flat = flat.to(self.accelerator.device)
        summed: Any = self.accelerator.reduce(flat, "sum")
        flat = summed.cpu()
        self.sigterm.agree(bool(flat[-1]))
        counts = flat[:-2].view(len(names), 3)
        self.counters.add(counts[:, 1:])
        rows = dict(zip(names, counts[:, 1].tolist(), strict=True))
        idle = [name for name, number in rows.items() if not number]
        return dict(zip(names, counts[:, 0], strict=True)), idle, float(flat[-2])

    def _cache(self, batches: list[dict[str, Any]]) -> None:
        """The gradients of tasks that are compared over all micro-batches of the step."""
        step, model = self._state, self.model
        names = [name for name in step.present if name in self.multitask.cached]
        if not names:
            return

        def forward(batch: dict[str, Any]) -> PolyheadOutput:
            with self.autocast():
                return model(**model_inputs(self.prepare(batch)))

        model.train()
        heads: Any = {name: model.heads[name] for name in names}
        step.cached = cache_step(batches, forward, heads, step.num_items, self.accelerator)

    def _begin_gradients(self) -> None:
        step, balancer = self._state, self.balancer
        waiting = {id(weight) for weight in self.unfreezing.frozen_weights}
        shared = [w for w in shared_parameters(self.model) if id(w) not in waiting]
        is_compared = self.comparison.is_due(step.number, step.present) and bool(shared)
        if balancer.reads_last_layer:
            step.gradients = StepGradients(step.present, last_layer_of(self.model, shared))
        elif balancer.reads_gradients and shared:
            step.gradients = StepGradients(step.present, shared)
            step.pull = StepGradients([RETAIN], shared) if step.retained else None
        if is_compared and not balancer.reads_gradients:
            step.sketches = StepGradients(step.present, shared, SKETCH)
        halved = self.comparison.halved(step.present) if is_compared else None
        if halved is not None:
            like = step.sketches if step.sketches is not None else step.gradients
            step.half = HalfGradient(halved, self.model.heads[halved], shared, like)

    def _losses_of_step(self) -> dict[str, float]:
        """The losses of the step's batches under the weights of now; dropout as in training."""
        step, device = self._state, self.accelerator.device
        total = torch.zeros(len(step.present), dtype=torch.float64, device=device)
        with torch.random.fork_rng(), torch.no_grad(), self.autocast():
            self.model.train()
            for batch in step.batches:
                inputs = model_inputs(self.prepare(batch))
                outputs = self.model(**inputs, num_items=step.num_items)
                losses = self._task_losses(outputs, {**batch, **inputs})
                for number, name in enumerate(step.present):
                    total[number] += losses.get(name, 0.0)
        total: Any = self.accelerator.reduce(total, "sum")
        return dict(zip(step.present, total.tolist(), strict=True))

    # ---- each micro-batch ----

    def replay(self) -> None:
        """Before a forward pass: where the micro-batch is cached, the dropout of its first one."""
        if self.output_gradients is not None:
            self.output_gradients.begin_forward()
        if self._state.cached:
            self._state.cached[self._state.position].replay()

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
        step = self._state
        losses = self._finite(self._task_losses(outputs, batch), batch)
        step.position += 1
        counts = self.model.count_items(batch["labels"])
        for name, loss in losses.items():
            self.meter.add(name, loss.detach() * step.num_items[name], counts[name])
            if name in self._in_batch:
                self._count_compared(name, counts[name].detach())
        loss = self._weigh(losses)
        if self.retention is not None and step.retained:
            skips = self.multitask.nan_loss == "skip"
            retained = self.retention.weighted_loss(
                outputs, batch, texts=step.retained, skips=skips
            )
            if step.pull is not None:
                step.pull.add({RETAIN: retained})
            loss = loss + retained
        if self.output_gradients is not None:
            self.output_gradients.begin_backward()
        return loss * self.accelerator.num_processes

    def _count_compared(self, name: str, groups: Tensor) -> None:
        """Keep how many groups of texts a loss has just compared; the host does not wait for it."""
        step = self._state
        cached = step.cached and name in self.multitask.cached
        groups = step.num_items[name] if cached else groups * self.accelerator.num_processes
        new = torch.stack([groups, groups > 0]).float()
        self._sizes[name] = self._sizes[name] + new if name in self._sizes else new

    def compared(self) -> dict[str, int]:
        """Of tasks whose loss compares groups of texts, how many it did on average, so far."""
        counts = {name: count.tolist() for name, count in self._sizes.items()}
        return {name: round(total / times) for name, (total, times) in counts.items() if times}

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
        step = self._state
        batches = {int(batch["sources"][0]): batch for batch in passes}
        total = torch.zeros((), device=self.accelerator.device)
        for number, tasks in enumerate(self.sources.values()):
            step.of_pass = tasks
            if number in batches:
                with self.gradients.passes():
                    total += train(batches[number])
                self.gradients.take(number)
            elif self.accelerator.num_processes > 1:
                self._losses_over_ranks({}, {})
        return total

    def _task_losses(self, outputs: PolyheadOutput, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of a batch on the device, those of labels and of teachers."""
        losses, step = self._label_losses(outputs, batch["labels"]), self._state
        if self.distillation is None:
            return losses
        return self.distillation.mixed(losses, outputs, batch, step.num_items, step.progress)

    def _label_losses(
        self, outputs: PolyheadOutput, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The model's losses; those that compare texts over all ranks, or over the whole step.

        A rank without rows of such a task takes part all the same.
        """
        step = self._state
        losses, embeddings = dict(outputs.losses or {}), outputs.embeddings or {}
        if step.cached:
            losses |= step.cached[step.position].losses(embeddings)
        if self.accelerator.num_processes == 1:
            return losses
        return losses | self._losses_over_ranks(embeddings, labels)

    def _losses_over_ranks(
        self, embeddings: dict[str, Tensor], labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The losses that compare texts over the ranks, all of which have to call this."""
        step, model, losses = self._state, self.model, {}
        names = step.present if step.of_pass is None else step.of_pass
        comparing = [n for n in names if n in step.present and in_batch(model.config.tasks[n])]
        for name in [n for n in comparing if not (step.cached and n in self.multitask.cached)]:
            empty = torch.zeros(0, 0, device=self.accelerator.device)
            vectors, scores = embeddings.get(name, empty), labels.get(name, empty.flatten())
            head: Any = model.heads[name]
            loss = loss_over_ranks(head, vectors, scores, step.num_items[name], self.accelerator)
            if loss is not None:
                losses[name] = loss
        return losses

    def _weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """The total loss of a micro-batch; keeps what the end of the step needs."""
        step, tasks = self._state, self.model.config.tasks
        detached = {name: loss.detach().double() for name, loss in losses.items()}
        for name, value in detached.items():
            step.sums[name] = step.sums.get(name, 0.0) + value
        scaled = {name: tasks[name].loss_weight * loss for name, loss in losses.items()}
        for gradients in (step.gradients, step.sketches):
            if gradients is not None:
                gradients.add(scaled)
        if step.half is not None:
            step.half.add(scaled)
        if step.weights is None:
            step.weights = self.balancer.weights(step.number, self._totals())
        if not scaled:  # every loss was skipped: nothing changes
            weight = next(p for p in self.model.parameters() if p.requires_grad)
            return weight.sum() * 0.0
        return torch.stack([step.weights.get(n, 1.0) * loss for n, loss in scaled.items()]).sum()

    def _totals(self) -> dict[str, float]:
        """Losses of the step so far, over all ranks."""
        step = self._state
        if not step.present:  # on no rank
            return {}
        values: Any = self.accelerator.reduce(self._sums(), "sum")
        return dict(zip(step.present, values.tolist(), strict=True))

    def _sums(self) -> Tensor:
        """(K,) float64: losses of this rank's micro-batches so far."""
        zero = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        sums = [torch.as_tensor(self._state.sums.get(n, zero)) for n in self._state.present]
        return torch.stack(sums) if sums else zero.new_zeros(0)

    def _finite(self, losses: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The losses that are finite; see `loss`."""
        if not losses or bool(torch.stack(list(losses.values())).isfinite().all()):
            return losses
        for name, loss in losses.items():
            if not loss.isfinite():
                if self.multitask.nan_loss == "stop":
                    raise UserError("training", [self._not_finite(name, loss, batch)])
                self.counters.skip(name)
        return {name: loss for name, loss in losses.items() if loss.isfinite()}

    def _not_finite(self, name: str, loss: Tensor, batch: dict[str, Any]) -> str:
        numbers = [i for i, tasks in enumerate(self.sources.values()) if name in tasks]
        rows = batch["rows"][torch.isin(batch["sources"], batch["sources"].new_tensor(numbers))]
        shown = ", ".join(map(str, rows[:ROWS_SHOWN].tolist()))
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        return (
            f"the loss of task {name} is {loss.item()} in step {self._state.number + 1} (epoch "
            f"{self._state.epoch:.2f}); its rows of train there: {shown}{more}. Look at these "
            "rows, lower training.learning_rate, or write nan_loss: skip to leave such batches out"
        )

    # ---- after the last micro-batch ----

    def end_backward(self) -> None:
        """After the last backward pass: balance and compare the tasks' gradients."""
        step, balancer, comparison = self._state, self.balancer, self.comparison
        if self.output_gradients is not None:
            self.output_gradients.end_backward()
        for gradients in (step.gradients, step.sketches, step.pull):
            if gradients is not None:
                gradients.reduce(self.accelerator)
        if self.gradients is not None:
            numbers = enumerate(self.sources.values())
            present = [n for n, tasks in numbers if not set(tasks) <= set(step.idle)]
            self.gradients.drop(self.unfreezing.frozen_weights)
            self.gradients.reduce(self.accelerator, present)
            self.gradients.clip()
        compared = step.sketches
        if balancer.reads_gradients:
            compared = step.gradients
            if compared is not None and step.present:
                combined = balancer.combine(compared.total, step.present, step.number)
                compared.write(combined if step.pull is None else combined + step.pull.total[0])
        if step.half is not None:
            step.half.end()
            step.half.gradients.reduce(self.accelerator)
        if compared is not None and comparison.missing:
            comparison.take(compared, step.half)
        self.unfreezing.clear_frozen()
        self.layers.take(step.number, self.accelerator)

    def end_step(self) -> None:
        """After the optimizer's step: what balancing learns from it."""
        step, balancer = self._state, self.balancer
        if not balancer.learns:
            return
        losses, gradients = self._totals_and_gradients()
        balancer.after_step(
            step.number,
            losses,
            losses_after=self._losses_of_step() if balancer.reads_losses_after else None,
            gradients=gradients,
            epoch=int(step.epoch),
        )

    def _totals_and_gradients(self) -> tuple[dict[str, float], Tensor | None]:
        """Losses of the step, and what the balancer reads of their gradients."""
        step, balancer = self._state, self.balancer
        if balancer.reads_last_layer:
            gradients = None if step.gradients is None else step.gradients.total
            return self._totals(), gradients
        if self.output_gradients is None:
            return self._totals(), None
        values = torch.stack([self._sums(), self.output_gradients.squares(step.present)])
        values: Any = self.accelerator.reduce(values, "sum")
        losses, squares = values.tolist()
        scaler = self.accelerator.scaler
        scale = self.accelerator.num_processes * (1.0 if scaler is None else scaler.get_scale())
        weights = [(step.weights or {}).get(name, 1.0) * scale for name in step.present]
        lengths = torch.tensor(squares).sqrt() / torch.tensor(weights)
        return dict(zip(step.present, losses, strict=True)), lengths.unsqueeze(1)

    # ---- what is known of the tasks ----

    def idle_tasks(self) -> list[str]:
        """Tasks without rows in the step, on all ranks."""
        return self._state.idle

    def log(self) -> dict[str, float]:
        """What there is to know of each task since the last log; see `MultiTaskTrainer.log`."""
        losses = self.meter.means(self.accelerator)
        logs = {f"loss_{name}": value for name, value in losses.items()}
        for part in (self.retention, self.distillation):
            if part is not None:
                logs |= part.log(self.accelerator)
        norms = {} if self.gradients is None else self.gradients.log()
        logs |= self.counters.log() | self.balancer.log() | self.comparison.log()
        return logs | self.layers.log() | norms
