"""Embedding losses that compare texts: over all ranks, and over all micro-batches of a step.

Contrastive, CoSENT and AnglE compare the groups of a batch with each other, so that their loss over
a large batch is not the sum of those over its parts. Ranks therefore exchange the embeddings of a
task, never those of two tasks with each other, and each computes the whole loss. A `cached` task is
compared over the micro-batches too: GradCache (arXiv:2101.06983) embeds all texts without a graph,
takes the gradient of the loss with respect to the embeddings, and hands each micro-batch its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from ...modeling.heads import Head
from ...modeling.modeling_polyhead import PolyheadOutput


def loss_over_ranks(
    head: Head, embeddings: Tensor, labels: Tensor, num_items: Tensor, accelerator: Accelerator
) -> Tensor | None:
    """The task's loss over the rows of all ranks; these ranks' values add up to it.

    Args:
        head: head of the task.
        embeddings: (N, D) of this rank; (0, 0) where it has none.
        labels: (G,) of this rank.
        num_items: groups in the whole optimizer step.
        accelerator: knows the ranks. All of them have to call this.

    Returns:
        A scalar whose gradient with respect to `embeddings` is that of the whole loss; None on a
        rank without rows.
    """
    if accelerator.num_processes == 1:
        return head.loss(embeddings, labels, num_items) if len(labels) else None
    others = from_all_ranks(embeddings.detach().float(), accelerator)
    scores = from_all_ranks(labels, accelerator)
    if not len(labels):
        return None
    others[accelerator.process_index] = embeddings.float()
    by_rank = [values for values in others if len(values)]
    loss = head.loss(torch.cat(by_rank), torch.cat([s for s in scores if len(s)]), num_items)
    return loss - loss.detach() * (1 - 1 / len(by_rank))


def from_all_ranks(values: Tensor, accelerator: Accelerator) -> list[Tensor]:
    """The tensor of each rank, whatever its sizes; as many dimensions on all ranks."""
    shapes: Any = accelerator.gather(torch.tensor([values.shape], device=values.device))
    sizes = shapes.prod(1)
    flat = F.pad(values.flatten(), (0, int(sizes.max()) - values.numel()))
    rows: Any = accelerator.gather(flat[None])
    return [
        row[:size].view(shape)
        for row, size, shape in zip(rows, sizes.tolist(), shapes.tolist(), strict=True)
    ]


@dataclass
class CachedBatch:
    """What a micro-batch needs to train on the loss of the whole step.

    Args:
        random: state of the random numbers before its forward pass, for the same dropout again.
        gradients: (N, D) by task, of the step's loss with respect to its embeddings.
        values: share of that loss by task.
    """

    random: tuple[Tensor, tuple[list[int], list[Tensor]]]
    gradients: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def replay(self) -> None:
        """Go back to the random numbers of its first forward pass."""
        torch.set_rng_state(self.random[0])
        set_device_states(*self.random[1])

    def losses(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """By task: the share of the loss, with the gradient of the whole."""
        losses = {}
        for name, gradient in self.gradients.items():
            product = (embeddings[name] * gradient.to(embeddings[name])).sum()
            losses[name] = self.values[name] + product - product.detach()
        return losses


def cache_step(
    batches: list[dict[str, Any]],
    forward: Callable[[dict[str, Any]], PolyheadOutput],
    heads: dict[str, Head],
    num_items: dict[str, Tensor],
    accelerator: Accelerator,
) -> list[CachedBatch]:
    """Embed all micro-batches of a step, one at a time, and take the gradients of the losses.

    Args:
        batches: the micro-batches, with their `labels`.
        forward: a micro-batch to the model's output, in training mode; no graph is kept.
        heads: heads of the cached tasks that have rows in the step, on any rank.
        num_items: groups of each in the whole step.
        accelerator: knows the ranks. All of them have to call this.
    """
    cached: list[CachedBatch] = []
    embeddings: dict[str, list[Tensor]] = {name: [] for name in heads}
    labels: dict[str, list[Tensor]] = {name: [] for name in heads}
    for batch in batches:
        device = accelerator.device
        states = get_device_states(torch.empty(0, device=device))
        cached.append(CachedBatch((torch.get_rng_state(), states)))
        with torch.no_grad():
            vectors = forward(batch).embeddings or {}
        for name in heads:
            embeddings[name].append(vectors.get(name, torch.zeros(0, 0)).to(device))
            labels[name].append(batch["labels"].get(name, torch.zeros(0)).to(device))
    for name, head in heads.items():
        _take_gradients(name, head, cached, embeddings[name], labels[name], num_items, accelerator)
    return cached


def _take_gradients(
    name: str,
    head: Head,
    cached: list[CachedBatch],
    embeddings: list[Tensor],
    labels: list[Tensor],
    num_items: dict[str, Tensor],
    accelerator: Accelerator,
) -> None:
    numbers = [number for number, values in enumerate(labels) if len(values)]
    whole = torch.cat([embeddings[n] for n in numbers]) if numbers else embeddings[0]
    scores = torch.cat([labels[n] for n in numbers]) if numbers else labels[0]
    whole = whole.detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_over_ranks(head, whole, scores, num_items[name], accelerator)
    if loss is None:
        return
    (gradient,) = torch.autograd.grad(loss, whole)
    pieces = gradient.split([len(embeddings[n]) for n in numbers])
    for number, piece in zip(numbers, pieces, strict=True):
        cached[number].gradients[name] = piece
        cached[number].values[name] = loss.detach() * (len(labels[number]) / len(scores))
