"""Gradients of single tasks on the weights they share: what balancing and comparing tasks need.

A task's gradient costs a backward pass through what is shared; K tasks cost K of them and a
(K, P) buffer, P the number of shared weights. Shapes: `K` tasks, `P` shared weights.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.modeling_polyhead import PolyheadModel
from ..modeling.routing import layers_of


def shared_parameters(model: PolyheadModel) -> list[nn.Parameter]:
    """The encoder's trainable weights that more than one task reads.

    An adapter that one task alone reads is that task's own, as its head is.
    """
    readers = Counter(task.adapter for task in model.config.tasks.values() if task.adapter)
    own = {name for name, count in readers.items() if count == 1}
    return [
        parameter
        for name, parameter in model.encoder.named_parameters()
        if parameter.requires_grad and not own & set(name.split("."))
    ]


def task_gradients(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradient of each loss, flat; the graph stays for a later backward pass.

    Args:
        losses: K scalars of one forward pass.
        parameters: the weights to derive by.

    Returns:
        (K, P) float32; zero where a loss does not depend on a weight.
    """
    sizes = [parameter.numel() for parameter in parameters]
    rows = torch.zeros(len(losses), sum(sizes), device=parameters[0].device)  # written in place
    for row, loss in zip(rows, losses, strict=True):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for place, gradient in zip(row.split(sizes), found, strict=True):
            if gradient is not None:
                place.copy_(gradient.flatten())
    return rows


def cosines(gradients: Tensor) -> Tensor:
    """(K, P) gradients -> (K, K) float64 cosines; NaN in the rows of a zero gradient.

    Summed in parts: over millions of weights one float32 sum is off by some 0.004.
    """
    products = [(part @ part.T).double() for part in gradients.split(2**16, dim=1)]
    total = torch.stack(products).sum(0)
    norms = total.diagonal().sqrt()
    return total / norms / norms[:, None]


def last_layer_of(model: PolyheadModel, shared: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the shared weights that lie in the last encoder layer with any."""
    own = {id(parameter) for parameter in shared}
    layers = layers_of(model.encoder, model.encoder.config.num_hidden_layers)
    for layer in reversed(layers or []):
        found = [parameter for parameter in layer.parameters() if id(parameter) in own]
        if found:
            return found
    return shared


class StepGradients:
    """The tasks' gradients, summed over the micro-batches of an optimizer step and over ranks.

    Args:
        names: the tasks of the step.
        parameters: the weights to derive by.
    """

    def __init__(self, names: list[str], parameters: list[nn.Parameter]) -> None:
        self.names = names
        self.parameters = parameters
        size = sum(parameter.numel() for parameter in parameters)
        device = parameters[0].device if parameters else None
        self.total = torch.zeros(len(names), size, device=device)  # (K, P)

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the gradients of the losses of a micro-batch."""
        own = [name for name in self.names if name in losses]
        for name in own:
            found = task_gradients([losses[name]], self.parameters)
            self.total[self.names.index(name)] += found[0]

    def reduce(self, accelerator: Any) -> None:
        """Sum over ranks; each loss is over the units of all ranks already."""
        self.total = accelerator.reduce(self.total, "sum")

    def write(self, combined: Tensor) -> None:
        """Set the weights' gradients to (P,) `combined`."""
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, part in zip(self.parameters, combined.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype).clone()


class GradientComparison:
    """Norms and pairwise cosines of the tasks' gradients, every so many steps.

    Where a step has not all tasks (pure batches), those that are missing are taken from the steps
    that follow; the weights move little meanwhile.

    Args:
        every: optimizer steps from one comparison to the next; 0 for never.
        tasks: names of all tasks.
    """

    def __init__(self, every: int, tasks: list[str]) -> None:
        self.every = every
        self.tasks = tasks
        self.missing: set[str] = set()
        self.found: dict[str, Tensor] = {}
        self.values: dict[str, float] = {}

    def wanted(self, step: int, present: list[str]) -> bool:
        """Whether gradients of this step are to be handed to `take`."""
        if self.every and step % self.every == 0:
            self._finish()
            self.missing = set(self.tasks)
        return bool(self.missing & set(present))

    def take(self, gradients: StepGradients) -> None:
        """Keep the gradients that were missing; compare them when all are there."""
        for name, row in zip(gradients.names, gradients.total, strict=True):
            if name in self.missing:
                self.found[name] = row
                self.missing.discard(name)
        if not self.missing:
            self._finish()

    def _finish(self) -> None:
        names = sorted(self.found)
        if len(names) > 1:
            rows = torch.stack([self.found[name] for name in names])
            norms, matrix = rows.norm(dim=1).tolist(), cosines(rows).tolist()
            self.values = {f"grad_norm_{n}": norm for n, norm in zip(names, norms, strict=True)}
            for i, j in combinations(range(len(names)), 2):
                self.values[f"cosine_{names[i]}-{names[j]}"] = matrix[i][j]
        self.found, self.missing = {}, set()

    def log(self) -> dict[str, float]:
        """`grad_norm_<task>` and `cosine_<task>-<task>`, once after each comparison."""
        values, self.values = self.values, {}
        return values
