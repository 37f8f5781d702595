# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Token states to one vector per text, counting real tokens only, padded on either side or packed.

Shapes: `N` texts, `T` tokens of the longest, `P` tokens of all, `H` hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import isfunction

import torch
from torch import Tensor

from .attention import no_compile
from .packing import TextLayout
from .tables import Table


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


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """One way to pool: a row of `POOL`.

    Args:
        function: from (N, T, H) or packed (1, P, H) states, and where the texts are, to (N, H).
        layers: how many of the last hidden states are pooled so, each for itself, end to end.
    """

    function: Callable[[Tensor, TextLayout], Tensor]
    layers: int = 1


POOL: Table[Pooling] = Table(
    "pooling",
    {
        "mean": Pooling(function=mean_pooling),
        "cls": Pooling(function=cls_pooling),
        "max": Pooling(function=max_pooling),
        "last_token": Pooling(function=last_token_pooling),
        # the feature-based setting that did best in the BERT paper, arXiv:1810.04805, table 7
        "mean_last_4": Pooling(function=mean_pooling, layers=4),
    },
)
POOLINGS = POOL.keys()  # the names, as they are at the time of looking


def layers_needed(pooling: str) -> int:
    """How many of the last hidden states `pooling` reads."""
    return POOL[pooling].layers


def pool(states: tuple[Tensor, ...], texts: TextLayout, pooling: str) -> Tensor:
    """One vector per text.

    Args:
        states: the last hidden states, each (N, T, H) or packed (1, P, H), the final layer last;
            as many as `layers_needed` says, or more.
        texts: layout of the texts.
        pooling: one of `POOLINGS`.

    Returns:
        (N, H); (N, 4 * H) for `mean_last_4`.
    """
    way = POOL[pooling]
    vectors = [way.function(layer, texts) for layer in states[-way.layers :]]
    return vectors[0] if way.layers == 1 else torch.cat(vectors, dim=-1)


def register_pooling(
    name: str, function: Callable[[Tensor, TextLayout], Tensor], *, layers: int = 1
) -> None:
    """Add a pooling that tasks and models can name.

    Args:
        name: for the task's `pooling`.
        function: from states, (N, T, H) or packed (1, P, H), and `TextLayout` to (N, H). Its file
            travels with models that use it.
        layers: how many of the last hidden states it pools, each for itself, end to end.

    Raises:
        ValueError: `function` is none; the name is taken or has other characters than lower-case
            letters, digits and _; `layers` is below 1.
    """
    if not isfunction(function):
        raise ValueError(f"pooling {name!r} is {function!r}; give a function of (states, texts)")
    if layers < 1:
        raise ValueError(f"pooling {name!r}: layers is {layers}; it must be 1 or more")
    POOL.add(name, Pooling(function=function, layers=layers), function)
