"""Gradients of single tasks on the weights they share: what balancing and comparing tasks need.

A task's gradient costs a backward pass through what is shared; K tasks cost K of them. Balancing
needs them whole, in a (K, P) buffer; to compare them a sketch of each will do.
Shapes: `K` tasks, `P` shared weights, `W` numbers of a sketch.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.routing import layers_of

SKETCH = 2**20 - 3  # numbers, a prime: weights of one column of a matrix do not meet in one place


def shared_parameters(model: PolyheadModel) -> list[nn.Parameter]:
    """The trainable weights of encoder and shared experts that more than one task reads.

    An adapter that one task alone reads is that task's own, as its head is; so are layers above
    all others that tasks read (`layer`).
    """
    readers = Counter(task.adapter for task in model.config.tasks.values() if task.adapter)
    private = {name for name, count in readers.items() if count == 1}
    above = _above_second(model)
    encoder = [
        parameter
        for name, parameter in model.encoder.named_parameters()
        if parameter.requires_grad and not private & set(name.split("."))
        if id(parameter) not in above
    ]
    experts = [] if model.experts is None else list(model.experts.parameters())
    return [*encoder, *(parameter for parameter in experts if parameter.requires_grad)]


def _above_second(model: PolyheadModel) -> set[int]:
    """Ids of the weights of layers that one task at most reads; of a model with several."""
    count = model.encoder.config.num_hidden_layers
    depths = sorted(task.layer or count for task in model.config.tasks.values())
    layers = layers_of(model.encoder, count)
    if len(depths) < 2 or layers is None:
        return set()
    return {id(parameter) for layer in layers[depths[-2] :] for parameter in layer.parameters()}


def task_gradients(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradient of each loss, flat; the graph stays for a later backward pass.

    Args:
        losses: K scalars of one forward pass.
        parameters: the weights to derive by.

    Returns:
        (K, P) float32; zero where a loss does not depend on a weight.
    """
    names = [str(number) for number in range(len(losses))]
    gradients = StepGradients(names, list(parameters))
    gradients.add(dict(zip(names, losses, strict=True)))
    return gradients.total


def cosines(gradients: Tensor | Sequence[Tensor]) -> Tensor:
    """(K, P) gradients -> (K, K) float64 cosines; NaN in the rows of a zero gradient.

    Summed in parts: over millions of weights one float32 sum is off by some 0.004.
    """
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for parts in zip(*(row.split(2**16) for row in gradients), strict=True):
        part = torch.stack(parts)
        total += (part @ part.T).double().cpu()
    norms = total.diagonal().sqrt()
    return total / norms / norms[:, None]


def last_layer_of(model: PolyheadModel, shared: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the shared weights that lie in the last encoder layer with any."""
    shared_ids = {id(parameter) for parameter in shared}
    layers = layers_of(model.encoder, model.encoder.config.num_hidden_layers)
    for layer in reversed(layers or []):
        weights = [parameter for parameter in layer.parameters() if id(parameter) in shared_ids]
        if weights:
            return weights
    return shared


class StepGradients:
    """The tasks' gradients, summed over the micro-batches of an optimizer step and over ranks.

    Args:
        names: the tasks of the step.
        parameters: the weights to derive by.
        width: keep no more numbers than this for each task: weight i goes, with a random sign, to
            place i modulo `width` (a count sketch, arXiv:0902.2206). Inner products, so norms and
            cosines, stay what they are on average; their error falls with the root of `width`. The
            signs are a byte for each weight.
    """

    def __init__(
        self, names: list[str], parameters: list[nn.Parameter], width: int | None = None
    ) -> None:
        self.names = names
        self.parameters = parameters
        self.width = width
        size = sum(parameter.numel() for parameter in parameters)
        device = parameters[0].device if parameters else None
        self.folded = width is not None and width < size
        self._signs: dict[int, Tensor] = {}  # int8, of weights from a number on
        columns = min(size, width or size)
        self.total = torch.zeros(len(names), columns, device=device)  # (K, P) or (K, W)

    def alone(self, name: str) -> "StepGradients":
        """An empty one for one task, with the same places and signs."""
        one = StepGradients([name], self.parameters, self.width)
        one._signs = self._signs
        return one

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the gradients of the losses of a micro-batch; the graph stays."""
        for row, name in zip(self.total, self.names, strict=True):
            if name in losses:
                options: Any = {"retain_graph": True, "allow_unused": True}
                self._add_to(row, torch.autograd.grad(losses[name], self.parameters, **options))

    def add_outputs(self, name: str, outputs: Tensor, back: Tensor) -> None:
        """Add what a gradient on the outputs of the encoder gives a task; the graph stays.

        Args:
            name: the task.
            outputs: of the encoder, as a head reads them.
            back: the gradient on them, of the same shape.
        """
        options: Any = {"grad_outputs": [back], "retain_graph": True, "allow_unused": True}
        gradients = torch.autograd.grad([outputs], self.parameters, **options)
        self._add_to(self.total[self.names.index(name)], gradients)

    def _add_to(self, row: Tensor, gradients: tuple[Tensor | None, ...]) -> None:
        """Add a task's gradients to its (P,) or (W,) row, without a copy of them all."""
        first = 0
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None and gradient.is_sparse:  # of embeddings, on a CPU
                gradient = gradient.to_dense()
            flat = None if gradient is None else gradient.flatten()
            last = first + parameter.numel()
            while flat is not None and first < last:
                column = first % len(row)
                part = flat[first - last :][: len(row) - column]
                places = row[column : column + len(part)]
                if self.folded:
                    places += part * self._signs_at(first, part)
                else:
                    places += part
                first += len(part)
            first = last

    def _signs_at(self, first: int, like: Tensor) -> Tensor:
        """Those of some weights, drawn once: the same for each task."""
        if first not in self._signs:
            self._signs[first] = _signs(first, like)
        return self._signs[first]

    def reduce(self, accelerator: Any) -> None:
        """Sum over ranks; each loss is over the units of all ranks already."""
        self.total = accelerator.reduce(self.total, "sum")

    def write(self, combined: Tensor) -> None:
        """Set the weights' gradients to (P,) `combined`."""
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, part in zip(self.parameters, combined.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype).clone()


def _signs(seed: int, like: Tensor) -> Tensor:
    """-1 and 1 at random, as many as in a vector; the same for each task and rank."""
    generator = torch.Generator(like.device).manual_seed(seed)
    drawn = torch.empty(len(like), dtype=torch.int8, device=like.device)
    return drawn.random_(0, 2, generator=generator) * 2 - 1


class Half(Protocol):
    """What `halves.HalfGradient` has."""

    name: str

    def cosine(self, whole: Tensor) -> float:
        """Of the two halves of a task's gradient."""
        ...


class GradientComparison:
    """Norms and pairwise cosines of the tasks' gradients, every so many steps.

    Each time it also asks for two halves of one task's own gradient, of the tasks in turn, which
    tell the noise (`agreement.py`).

    Where a step has not all tasks (pure batches), those that are missing are taken from the steps
    that follow; the weights move little meanwhile. Begun anew when more weights join (unfreezing).

    Args:
        every: optimizer steps from one comparison to the next; 0 for never.
        tasks: names of all tasks.
    """

    def __init__(self, every: int, tasks: list[str]) -> None:
        self.every = every
        self.tasks = tasks
        self.missing: set[str] = set()
        self.rows: dict[str, Tensor] = {}
        self.size = 0
        self.turn = 0
        self.halves: dict[str, float] = {}
        self.values: dict[str, float] = {}

    def is_due(self, step: int, present: list[str]) -> bool:
        """Whether gradients of this step are to be handed to `take`."""
        if self.every and step % self.every == 0:
            self._finish()
            self.missing, self.turn = set(self.tasks), step // self.every
        return bool(self.missing & set(present))

    def halved(self, present: list[str]) -> str | None:
        """The task whose gradient is wanted in halves, where it is one of this step's."""
        task = self.tasks[self.turn % len(self.tasks)]
        wanted = task in self.missing and task in present and task not in self.halves
        return task if wanted else None

    def take(self, gradients: StepGradients, half: Half | None = None) -> None:
        """Keep the gradients that were missing; compare them when all are there.

        Args:
            gradients: of the tasks of a step.
            half: of the first half of the rows of one of them.
        """
        if half is not None:
            cosine = half.cosine(gradients.total[gradients.names.index(half.name)])
            if math.isfinite(cosine):  # else one half has no gradient
                self.halves[half.name] = cosine
        size = sum(parameter.numel() for parameter in gradients.parameters)
        if size != self.size:
            self.rows, self.missing, self.size = {}, set(self.tasks), size
        for name, row in zip(gradients.names, gradients.total, strict=True):
            if name in self.missing:
                self.rows[name] = row
                self.missing.discard(name)
        if not self.missing:
            self._finish()

    def _finish(self) -> None:
        names = sorted(self.rows)
        if len(names) > 1:
            matrix = cosines([self.rows[name] for name in names]).tolist()
            kept = {key: value for key, value in self.values.items() if key.startswith("halves_")}
            norms = {f"grad_norm_{name}": self.rows[name].norm().item() for name in names}
            self.values = {**kept, **norms}
            self.values |= {f"halves_{name}": value for name, value in self.halves.items()}
            for i, j in combinations(range(len(names)), 2):
                self.values[f"cosine_{names[i]}-{names[j]}"] = matrix[i][j]
        self.rows, self.missing, self.halves = {}, set(), {}

    def log(self) -> dict[str, float]:
        """`grad_norm_<task>`, `cosine_<task>-<task>` and, of one task, `halves_<task>`.

        Once after each comparison.
        """
        values, self.values = self.values, {}
        return values
