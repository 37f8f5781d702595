# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Token states to one vector per row, counting real tokens only, whichever side is padded.

Shapes: `N` rows, `T` tokens, `H` hidden.
"""

import torch
from torch import Tensor


def mean_pooling(states: Tensor, mask: Tensor) -> Tensor:
    """(N, T, H), (N, T) -> (N, H): mean over the tokens with mask 1."""
    weight = mask.unsqueeze(-1).to(states.dtype)  # (N, T, 1)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


def max_pooling(states: Tensor, mask: Tensor) -> Tensor:
    """(N, T, H), (N, T) -> (N, H): maximum over the tokens with mask 1."""
    hidden = ~mask.unsqueeze(-1).bool()
    return states.masked_fill(hidden, torch.finfo(states.dtype).min).amax(1)


def cls_pooling(states: Tensor, mask: Tensor) -> Tensor:
    """(N, T, H), (N, T) -> (N, H): the first real token."""
    first = mask.long().argmax(1)  # argmax gives the first of equal values
    return states[torch.arange(len(states), device=states.device), first]


def last_token_pooling(states: Tensor, mask: Tensor) -> Tensor:
    """(N, T, H), (N, T) -> (N, H): the last real token."""
    last = mask.shape[1] - 1 - mask.long().flip(1).argmax(1)
    return states[torch.arange(len(states), device=states.device), last]


POOL = {
    "mean": mean_pooling,
    "max": max_pooling,
    "cls": cls_pooling,
    "last_token": last_token_pooling,
}


def layers_needed(pooling: str) -> int:
    """How many of the last hidden states `pooling` reads."""
    return 4 if pooling == "mean_last_4" else 1


def pool(states: tuple[Tensor, ...], mask: Tensor, pooling: str) -> Tensor:
    """One vector per row.

    Args:
        states: the last hidden states, each (N, T, H), the final layer last; `mean_last_4` reads
            four of them, the others the final one.
        mask: (N, T), 1 for real tokens.
        pooling: one of `POOLINGS`.

    Returns:
        (N, H), or (N, 4 * H) for `mean_last_4` (mean of each layer, concatenated; the feature-based
        setting that did best in the BERT paper, arXiv:1810.04805, table 7).
    """
    if pooling == "mean_last_4":
        return torch.cat([mean_pooling(layer, mask) for layer in states[-4:]], dim=-1)
    return POOL[pooling](states[-1], mask)
