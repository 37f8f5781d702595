# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Token states to one vector per text, counting real tokens only, padded on either side or packed.

Shapes: `N` texts, `T` tokens of the longest, `P` tokens of all, `H` hidden.
"""

import torch
from torch import Tensor

from .attention import no_compile
from .packing import TextLayout


def mean_pooling(states: Tensor, texts: TextLayout) -> Tensor:
    """(N, T, H) or (1, P, H) -> (N, H): mean over the text's tokens."""
    if texts.mask is not None:
        weight = texts.mask.unsqueeze(-1).to(states.dtype)  # (N, T, 1)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
    lengths = texts.lengths
    owner = torch.repeat_interleave(lengths, output_size=states.shape[1])  # (P,)
    sums = states.new_zeros(len(lengths), states.shape[-1]).index_add(0, owner, states[0])
    return sums / lengths.clamp(min=1).unsqueeze(-1)


@no_compile
def max_pooling(states: Tensor, texts: TextLayout) -> Tensor:
    """(N, T, H) or (1, P, H) -> (N, H): maximum over the text's tokens."""
    if texts.mask is not None:
        hidden = ~texts.mask.unsqueeze(-1).bool()
        return states.masked_fill(hidden, torch.finfo(states.dtype).min).amax(1)
    parts = states[0].split(texts.host_lengths.tolist())
    return torch.stack([part.amax(0) for part in parts])


def cls_pooling(states: Tensor, texts: TextLayout) -> Tensor:
    """(N, T, H) or (1, P, H) -> (N, H): the text's first token."""
    if texts.cu_seq_lens is not None:
        return states[0, texts.cu_seq_lens[:-1].long()]
    assert texts.mask is not None
    first = texts.mask.long().argmax(1)  # argmax gives the first of equal values
    return states[torch.arange(states.shape[0], device=states.device), first]


def last_token_pooling(states: Tensor, texts: TextLayout) -> Tensor:
    """(N, T, H) or (1, P, H) -> (N, H): the text's last token."""
    if texts.cu_seq_lens is not None:
        return states[0, texts.cu_seq_lens[1:].long() - 1]
    assert texts.mask is not None
    last = texts.mask.shape[1] - 1 - texts.mask.long().flip(1).argmax(1)
    return states[torch.arange(states.shape[0], device=states.device), last]


POOL = {
    "mean": mean_pooling,
    "max": max_pooling,
    "cls": cls_pooling,
    "last_token": last_token_pooling,
}


def layers_needed(pooling: str) -> int:
    """How many of the last hidden states `pooling` reads."""
    return 4 if pooling == "mean_last_4" else 1


def pool(states: tuple[Tensor, ...], texts: TextLayout, pooling: str) -> Tensor:
    """One vector per text.

    Args:
        states: the last hidden states, each (N, T, H) or packed (1, P, H), the final layer last;
            `mean_last_4` reads four of them, the others the final one.
        texts: layout of the texts.
        pooling: one of `POOLINGS`.

    Returns:
        (N, H), or (N, 4 * H) for `mean_last_4` (mean of each layer, concatenated; the feature-based
        setting that did best in the BERT paper, arXiv:1810.04805, table 7).
    """
    if pooling == "mean_last_4":
        return torch.cat([mean_pooling(layer, texts) for layer in states[-4:]], dim=-1)
    return POOL[pooling](states[-1], texts)
