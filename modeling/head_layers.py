# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What stands between what a head reads and its output layer: nothing, one layer or several."""

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
