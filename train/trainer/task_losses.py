"""The losses of micro-batches by task, before they are weighed: of labels and of teachers.

Each is over the task's labelled units in the whole optimizer step, so that those of micro-batches
and ranks add up. A loss that compares texts does so over all ranks and, where it is cached, over
all micro-batches (`gradcache.py`).
"""

from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ...modeling.modeling_polyhead import PolyheadModel, PolyheadOutput
from ..batches.collator import model_inputs
from ..recipe.schema import in_batch
from .distill import Distillation
from .gradcache import CachedBatch, cache_step, loss_over_ranks
from .step_counts import StepCounts

Batch = dict[str, Any]


class TaskLosses:
    """The losses of a step's micro-batches, in their order.

    Args:
        model: the model, without what accelerate wraps around it.
        accelerator: knows the ranks.
        cached: the tasks that are compared over all micro-batches of a step.
        prepare: moves a batch to the device.
        autocast: Trainer's context around a forward pass.

    Attributes:
        in_batch: the tasks whose loss compares the groups of a batch.
        distillation: what tasks learn from teachers; a part of their losses.
    """

    def __init__(
        self,
        model: PolyheadModel,
        accelerator: Accelerator,
        *,
        cached: Set[str] = frozenset(),
        prepare: Callable[[Batch], Batch],
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.cached = cached
        self.prepare = prepare
        self.autocast = autocast
        self.in_batch = {name for name, task in model.config.tasks.items() if in_batch(task)}
        self.distillation: Distillation | None = None
        self._counts = StepCounts()
        self._progress = 0.0
        self._cache: list[CachedBatch] = []  # of each micro-batch, where a loss compares all
        self._position = 0  # the micro-batch that comes next
        self._of_pass: list[str] | None = None  # tasks of the pass under way

    def learn_from(self, distillation: Distillation) -> None:
        """Hold tasks to their teachers' answers from now on."""
        self.distillation = distillation

    def begin(self, counts: StepCounts, progress: float) -> None:
        """A new optimizer step.

        Args:
            counts: what it has.
            progress: share of the training that is over.
        """
        self._counts, self._progress = counts, progress
        self._cache, self._position, self._of_pass = [], 0, None

    def begin_pass(self, tasks: list[str]) -> None:
        """The pass of one source: its tasks alone have losses until the next one."""
        self._of_pass = tasks

    def embed_all(self, batches: list[Batch]) -> None:
        """Take the gradients of tasks that are compared over all these micro-batches."""
        names = [name for name in self._counts.present if name in self.cached]
        if not names:
            return

        def forward(batch: Batch) -> PolyheadOutput:
            with self.autocast():
                return self.model(**model_inputs(self.prepare(batch)))

        self.model.train()
        heads: Any = {name: self.model.heads[name] for name in names}
        num_items = self._counts.num_items
        self._cache = cache_step(batches, forward, heads, num_items, self.accelerator)

    def replay(self) -> None:
        """Before a forward pass: where the micro-batch is cached, the dropout of its first one."""
        if self._cache:
            self._cache[self._position].replay()

    def take(self, outputs: PolyheadOutput, batch: Batch) -> dict[str, Tensor]:
        """The losses of the next micro-batch, as `of` gives them."""
        losses = self.of(outputs, batch)
        self._position += 1
        return losses

    def of(self, outputs: PolyheadOutput, batch: Batch) -> dict[str, Tensor]:
        """The losses of a micro-batch, those of labels and of teachers: scalars.

        Args:
            outputs: the model's, for the step's `num_items`.
            batch: the micro-batch, on the device.
        """
        losses = self._of_labels(outputs, batch["labels"])
        if self.distillation is None:
            return losses
        num_items = self._counts.num_items
        return self.distillation.mixed(losses, outputs, batch, num_items, self._progress)

    def of_step(self, batches: list[Batch]) -> dict[str, float]:
        """The losses of a step's batches under the weights of now; dropout as in training."""
        counts, device = self._counts, self.accelerator.device
        total = torch.zeros(len(counts.present), dtype=torch.float64, device=device)
        with torch.random.fork_rng(), torch.no_grad(), self.autocast():
            self.model.train()
            for batch in batches:
                inputs = model_inputs(self.prepare(batch))
                outputs = self.model(**inputs, num_items=counts.num_items)
                losses = self.of(outputs, {**batch, **inputs})
                for number, name in enumerate(counts.present):
                    total[number] += losses.get(name, 0.0)
        total: Any = self.accelerator.reduce(total, "sum")
        return dict(zip(counts.present, total.tolist(), strict=True))

    def groups_compared(self, name: str, groups: Tensor) -> Tensor:
        """How many groups of texts a task's loss compares, a scalar.

        Args:
            name: one of `in_batch`.
            groups: those of the micro-batch.
        """
        if self._cache and name in self.cached:
            return self._counts.num_items[name]
        return groups * self.accelerator.num_processes

    def join_ranks(self) -> None:
        """Take part in what other ranks compare in this pass, without rows of one's own."""
        if self.accelerator.num_processes > 1:
            self._over_ranks({}, {})

    def _of_labels(self, outputs: PolyheadOutput, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's losses; those that compare texts over all ranks, or over the whole step.

        A rank without rows of such a task takes part all the same.
        """
        losses, embeddings = dict(outputs.losses or {}), outputs.embeddings or {}
        if self._cache:
            losses |= self._cache[self._position].losses(embeddings)
        if self.accelerator.num_processes == 1:
            return losses
        return losses | self._over_ranks(embeddings, labels)

    def _over_ranks(
        self, embeddings: dict[str, Tensor], labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The losses that compare texts over the ranks, all of which have to call this."""
        counts, losses = self._counts, {}
        names = counts.present if self._of_pass is None else self._of_pass
        comparing = [name for name in names if name in counts.present and name in self.in_batch]
        for name in comparing:
            if self._cache and name in self.cached:
                continue
            empty = torch.zeros(0, 0, device=self.accelerator.device)
            vectors, scores = embeddings.get(name, empty), labels.get(name, empty.flatten())
            head: Any = self.model.heads[name]
            num_items = counts.num_items[name]
            loss = loss_over_ranks(head, vectors, scores, num_items, self.accelerator)
            if loss is not None:
                losses[name] = loss
        return losses
