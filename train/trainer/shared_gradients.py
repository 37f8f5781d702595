"""The tasks' gradients on the weights that they share, in a step: to balance and to compare them.

Without a method over gradients, and in steps that compare none, nothing is gathered.
"""

from accelerate import Accelerator
from torch import Tensor

from ...modeling.modeling_polyhead import PolyheadModel
from ..balancing.base import Balancer
from ..balancing.halves import HalfGradient
from ..balancing.task_gradients import (
    SKETCH,
    GradientComparison,
    StepGradients,
    last_layer_of,
    shared_parameters,
)
from ..optimization.freezing import Unfreezing
from ..recipe.retain import NAME as RETAIN
from .step_counts import StepCounts


class SharedGradients:
    """Gathers the gradients of single tasks over the micro-batches of a step.

    Args:
        model: the model, without what accelerate wraps around it.
        accelerator: knows the ranks.
        balancer: combines the tasks' gradients, or reads those of the last layer, or none.
        comparison: comparison of the tasks' gradients.
        unfreezing: knows the layers that wait.
    """

    def __init__(
        self,
        model: PolyheadModel,
        accelerator: Accelerator,
        *,
        balancer: Balancer,
        comparison: GradientComparison,
        unfreezing: Unfreezing,
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.balancer = balancer
        self.comparison = comparison
        self.unfreezing = unfreezing
        self.clear()

    def clear(self) -> None:
        """Forget those of the step before."""
        self._gradients: StepGradients | None = None  # for balancing
        self._sketches: StepGradients | None = None  # to compare, where balancing reads others
        self._retained: StepGradients | None = None  # of `retain`, which balancing leaves as it is
        self._half: HalfGradient | None = None  # of half of a task's rows: the comparison's noise

    def begin(self, number: int, counts: StepCounts) -> None:
        """A new optimizer step: decide what is gathered in it.

        Args:
            number: optimizer steps done before.
            counts: what the step has.
        """
        self.clear()
        balancer, present = self.balancer, counts.present
        waiting = {id(weight) for weight in self.unfreezing.frozen_weights}
        shared = [w for w in shared_parameters(self.model) if id(w) not in waiting]
        is_compared = self.comparison.is_due(number, present) and bool(shared)
        if balancer.reads_last_layer:
            self._gradients = StepGradients(present, last_layer_of(self.model, shared))
        elif balancer.reads_gradients and shared:
            self._gradients = StepGradients(present, shared)
            self._retained = StepGradients([RETAIN], shared) if counts.retained else None
        if is_compared and not balancer.reads_gradients:
            self._sketches = StepGradients(present, shared, SKETCH)
        halved = self.comparison.halved(present) if is_compared else None
        if halved is not None:
            like = self._sketches if self._sketches is not None else self._gradients
            self._half = HalfGradient(halved, self.model.heads[halved], shared, like)

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the gradients of the losses of a micro-batch; the graph stays."""
        for gradients in (self._gradients, self._sketches):
            if gradients is not None:
                gradients.add(losses)
        if self._half is not None:
            self._half.add(losses)

    def add_retained(self, loss: Tensor) -> None:
        """Add the gradient of the loss of `retain`, where balancing sets all of them."""
        if self._retained is not None:
            self._retained.add({RETAIN: loss})

    def end(self, number: int, present: list[str]) -> None:
        """After the last backward pass: combine the tasks' gradients, and compare them.

        Args:
            number: optimizer steps done before.
            present: the tasks with labelled units, on all ranks.
        """
        for gradients in (self._gradients, self._sketches, self._retained):
            if gradients is not None:
                gradients.reduce(self.accelerator)
        compared = self._sketches
        if self.balancer.reads_gradients:
            compared = self._gradients
            if compared is not None and present:
                combined = self.balancer.combine(compared.total, present, number)
                kept = self._retained
                compared.write(combined if kept is None else combined + kept.total[0])
        if self._half is not None:
            self._half.end()
            self._half.gradients.reduce(self.accelerator)
        if compared is not None and self.comparison.missing:
            self.comparison.take(compared, self._half)

    @property
    def total(self) -> Tensor | None:
        """(K, P) what balancing reads of the tasks' gradients, after `end`; None for nothing."""
        return None if self._gradients is None else self._gradients.total
