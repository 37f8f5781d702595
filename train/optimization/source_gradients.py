"""Gradients by source of rows on the weights that sources share, in an optimizer step.

Tasks that share their rows are one source: they share one pass, hence one gradient. Each source has
a forward and a backward pass over its own rows, so that a step reads its tokens once; what the pass
left on a shared weight is moved aside before the next source's comes. Weights that one source alone
trains (heads, an adapter of its own) keep their gradient where it is.

It costs memory: a copy of the shared weights for each source with rows in the step, where else
there is one for all of them. On a CPU the gradient of the table of embeddings, half of a small
encoder, is kept as the rows of the tokens that were there: to fill a table for each source with
zeros, and to read them all, would cost more than all else here.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...modeling.modeling_polyhead import PolyheadModel

many: Any = torch  # its functions over lists of tensors, which it exports by no other name


def readers_of(
    model: PolyheadModel, sources: dict[str, list[str]]
) -> list[tuple[nn.Parameter, set[int]]]:
    """Each weight that trains, with the numbers of the sources that train it.

    Args:
        model: the model, with what never trains frozen.
        sources: source name to its tasks.
    """
    adapters = {name: _sources_with(model, sources, name) for name in model.loaded_adapters}
    heads = {task: number for number, tasks in enumerate(sources.values()) for task in tasks}
    readers: dict[nn.Parameter, set[int]] = {}
    for name, weight in model.encoder.named_parameters():
        named = set(adapters).intersection(name.split("."))
        readers[weight] = adapters[named.pop()] if named else set(range(len(sources)))
    if model.experts is not None:
        readers |= {weight: set(range(len(sources))) for weight in model.experts.parameters()}
    for task, number in heads.items():
        for weight in model.heads[task].parameters():  # one tied to the encoder has all of them
            readers.setdefault(weight, {number})
    return [(w, numbers) for w, numbers in readers.items() if w.requires_grad and numbers]


def sparse_table(model: PolyheadModel) -> nn.Embedding | None:
    """The table of embeddings, where its gradient may be sparse: on a CPU, and read by it alone."""
    table = model.encoder.get_input_embeddings()
    if type(table) is not nn.Embedding or table.weight.device.type != "cpu":
        return None
    names = [n for n, w in model.named_parameters(remove_duplicate=False) if w is table.weight]
    return table if len(names) == 1 and not table.scale_grad_by_freq else None


def _sources_with(model: PolyheadModel, sources: dict[str, list[str]], adapter: str) -> set[int]:
    tasks = model.config.tasks
    return {
        number
        for number, names in enumerate(sources.values())
        if any(tasks[name].adapter == adapter for name in names)
    }


class SourceGradients:
    """What each source's backward passes left, over the micro-batches of a step and over ranks.

    Args:
        names: the sources.
        readers: each weight that trains, with the numbers of the sources that train it.
        max_norm: each source's gradient, on all weights that it trains, is scaled down to this
            norm; 0 for never. The sum is not clipped: one task with large gradients then takes
            nothing from the others, which is what one norm for all of them does.
        table: a table of embeddings whose gradient may be sparse.

    Attributes:
        shared: the weights that several sources train.
        alone: by source, the weights that it alone trains.
        values: by source, its gradient on shared weights; weights without one are left out. That of
            `table` is sparse in one process, with each row once after `clip`.
        norm: of all gradients of the step before they were clipped, each source for itself.
    """

    def __init__(
        self,
        names: list[str],
        readers: list[tuple[nn.Parameter, set[int]]],
        *,
        max_norm: float = 0.0,
        table: nn.Embedding | None = None,
    ) -> None:
        self.names = names
        self.max_norm = max_norm
        self.table = table
        self.shared = [weight for weight, numbers in readers if len(numbers) > 1]
        self.alone: list[list[nn.Parameter]] = [[] for _ in names]
        for weight, numbers in readers:
            if len(numbers) == 1:
                self.alone[min(numbers)].append(weight)
        self.values: list[dict[nn.Parameter, Tensor]] = [{} for _ in names]
        self.norm = torch.zeros(())
        self._norms: dict[str, Tensor] = {}  # sums since the last log
        self._steps: Counter[str] = Counter()

    @contextmanager
    def passes(self) -> Iterator[None]:
        """For forward and backward passes: the gradient of `table` is sparse within."""
        if self.table is None:
            yield
            return
        before, self.table.sparse = self.table.sparse, True
        try:
            yield
        finally:
            self.table.sparse = before

    def take(self, number: int) -> None:
        """Move aside what a backward pass of this source left on the shared weights."""
        values, sums, more = self.values[number], [], []
        for weight in self.shared:
            if weight.grad is None:
                continue
            if weight.grad.is_sparse:
                gradient = weight.grad
                values[weight] = values[weight] + gradient if weight in values else gradient
            elif weight in values:
                sums.append(values[weight])
                more.append(weight.grad)
            else:
                values[weight] = weight.grad
            weight.grad = None
        if sums:
            many._foreach_add_(sums, more)

    def drop(self, weights: list[nn.Parameter]) -> None:
        """Throw away the gradients on these weights."""
        for weight in weights:
            for values in self.values:
                values.pop(weight, None)

    def reduce(self, accelerator: Any, present: list[int]) -> None:
        """Take the mean over ranks, as DDP does; all ranks have to call this.

        Args:
            accelerator: knows the ranks.
            present: the sources with rows in the step on any rank.
        """
        if accelerator.num_processes == 1 or not present:
            return
        slots = [(n, weight) for n in present for weight in [*self.shared, *self.alone[n]]]
        has = [weight in self.values[n] or weight.grad is not None for n, weight in slots]
        somewhere: Any = torch.tensor(has, dtype=torch.float32, device=accelerator.device)
        somewhere = (accelerator.reduce(somewhere, "sum") > 0).tolist()
        for number in present:
            weights = [
                w
                for (n, w), is_there in zip(slots, somewhere, strict=True)
                if is_there and n == number
            ]
            self._reduce_source(accelerator, number, weights)

    def _reduce_source(self, accelerator: Any, number: int, weights: list[nn.Parameter]) -> None:
        """The mean of one source's gradient on these weights; zeros where this rank has none."""
        if not weights:
            return
        values, alone = self.values[number], set(self.alone[number])
        parts = []
        for weight in weights:
            gradient = weight.grad if weight in alone else values.get(weight)
            gradient = torch.zeros_like(weight) if gradient is None else gradient
            parts.append(gradient.to_dense() if gradient.is_sparse else gradient)
        flat: Any = accelerator.reduce(torch.cat([part.flatten() for part in parts]), "mean")
        sizes = [weight.numel() for weight in weights]
        for weight, part in zip(weights, flat.split(sizes), strict=True):
            if weight in alone:
                weight.grad = part.view_as(weight)
            else:
                values[weight] = part.view_as(weight)

    def clip(self) -> None:
        """Scale each source's gradient down to `max_norm`, and note the norms before."""
        squares = []
        for number, name in enumerate(self.names):
            gradients = [self._whole(number, weight) for weight in self.values[number]]
            gradients += [w.grad for w in self.alone[number] if w.grad is not None]
            if not gradients:
                continue
            norm = torch.nn.utils.get_total_norm(gradients)
            if self.max_norm > 0:
                scale = torch.clamp(self.max_norm / (norm + 1e-6), max=1.0)  # as torch clips
                many._foreach_mul_(gradients, scale)
            squares.append(norm.square())
            self._norms[name] = self._norms.get(name, 0.0) + norm
            self._steps[name] += 1
        self.norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros(())

    def _whole(self, number: int, weight: nn.Parameter) -> Tensor:
        """A gradient as one tensor of numbers to measure and to scale."""
        gradient = self.values[number][weight]
        if not gradient.is_sparse:
            return gradient
        self.values[number][weight] = gradient = gradient.coalesce()
        return gradient.values()

    def clear(self) -> None:
        """Forget the step's gradients."""
        for values in self.values:
            values.clear()

    def log(self) -> dict[str, float]:
        """`norm_<source>`, the mean since the last log of its norm before it was clipped."""
        means = {f"norm_{n}": (total / self._steps[n]).item() for n, total in self._norms.items()}
        self._norms, self._steps = {}, Counter()
        return means
