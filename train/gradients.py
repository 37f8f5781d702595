"""Gradients of single tasks on the weights they share: what balancing and comparing tasks need.

A task's gradient costs a backward pass through what is shared; K tasks cost K of them and a
(K, P) buffer, P the number of shared weights. Shapes: `K` tasks, `P` shared weights.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..modeling.modeling_polyhead import PolyheadModel


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
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        parts = [
            parameter.new_zeros(parameter.numel()) if gradient is None else gradient.flatten()
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
        rows.append(torch.cat(parts).float())
    return torch.stack(rows)


def cosines(gradients: Tensor) -> Tensor:
    """(K, P) gradients -> (K, K) cosines between them; NaN in the rows of a zero gradient."""
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    return unit @ unit.T
