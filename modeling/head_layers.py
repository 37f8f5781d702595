# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What a head reads of the encoder's layers, and what stands before its output layer."""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .options import HeadTask

LARGEST_LAYERS = 8  # of a head; deeper ones belong into the encoder
USUAL_ACTIVATION = "gelu"  # of `layers` without `activation`


def dense_layer(task: HeadTask, size: int) -> tuple[nn.Linear | None, nn.Module | None]:
    """The one dense layer of a task with `activation`, and that; with `layers` it has others."""
    if task.activation is None or task.layers:
        return None, None
    return nn.Linear(size, size), ACT2FN[task.activation]


class ResidualLayers(nn.Module):
    """The hidden layers of a task with `layers: n`, each with a residual connection.

        n times:  x = x + act(W dropout(x) + b)

    Each works on one token or pooled vector alone, so that no row or token sees another.

    Args:
        task: `layers`, `activation` (default gelu) and `dropout`; without `layers` there are none.
        size: width of the vectors.
    """

    def __init__(self, *, task: HeadTask, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(task.layers or 0))
        self.act = ACT2FN[task.activation or USUAL_ACTIVATION]
        self.dropout = nn.Dropout(task.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        for layer in self.layers:
            x = x + self.act(layer(self.dropout(x)))
        return x


class LayerMix(nn.Module):
    """A learned mean of the encoder's layers, of a task with `layer_mix` (arXiv:1802.05365).

        x = scale sum_j softmax(weights)_j h_j

    It begins with equal weights.

    Args:
        count: layers of the encoder, and one for what they read.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(count))
        self.scale = nn.Parameter(torch.ones(1))

    def reset(self) -> None:
        """Equal weights, and none of them scaled."""
        nn.init.zeros_(self.weights)
        nn.init.ones_(self.scale)

    def forward(self, states: tuple[Tensor, ...]) -> Tensor:
        """The states of all layers, each (..., H), from the bottom up -> (..., H)."""
        shares = self.weights.softmax(0)
        mixed = shares[0] * states[0]
        for share, state in zip(shares[1:], states[1:], strict=True):
            mixed = mixed + share * state
        return self.scale * mixed
