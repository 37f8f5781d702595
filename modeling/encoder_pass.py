# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What one pass through the encoder gave, and where each text stands in it.

Shapes: `N` texts of the caller, `M` after sorting and copying, `T` tokens, `P` tokens of a packed
batch, `H` hidden.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from .attention import no_compile
from .packing import TextLayout
from .pooling import layers_needed, pool
from .segments import Plan

Vectors = tuple[str, int | None]  # how states are pooled; those of which layer, None for the last


@dataclass
class EncoderPass:
    """What one encoder pass gave, and where each text stands in it.

    Args:
        output: the encoder's output, its texts sorted and copied for their adapters. Where layers
            were skipped it has no last states; `hidden_states` has None for layers not read.
        texts: layout of the texts in it.
        caller_texts: layout of the texts as the caller gave them.
        plan: how they were moved; None without adapters.
        vectors: by pooling and layer, what `pooled` has made.
        expert_parts: what the experts of all tasks made of the states.
    """

    output: BaseModelOutput
    texts: TextLayout
    caller_texts: TextLayout
    plan: Plan | None = None
    vectors: dict[Vectors, Tensor] = field(default_factory=dict)
    expert_parts: tuple[Tensor, ...] = ()

    def states(self, layer: int | None = None) -> Tensor:
        """(M, T, H) or packed (1, P, H) that a layer gave; None for the last one."""
        if layer is None:
            return self.output.last_hidden_state  # pyright: ignore[reportReturnType]
        return (self.output.hidden_states or ())[layer]

    def pooled(self, pooling: str, layer: int | None = None) -> Tensor:
        """(M, H), or (M, 4 H) for mean_last_4: one vector per text, made once for all heads."""
        key = pooling, layer
        if key not in self.vectors:
            count = layers_needed(pooling)
            states: Any = (self.states(layer),)
            if count > 1:
                states = (self.output.hidden_states or ())[-count:]
            self.vectors[key] = pool(states, self.texts, pooling)
        return self.vectors[key]

    @no_compile
    def rows_of(self, adapter: str | None, rows: Tensor | None) -> Tensor | None:
        """Where, on the CPU, the caller's `rows` (None: all) stand, encoded through `adapter`."""
        if self.plan is None or self.plan.source is None or self.plan.position_of is None:
            return rows
        chosen = range(len(self.caller_texts.lengths)) if rows is None else rows.tolist()
        positions = [self.plan.position_of[adapter, row] for row in chosen]
        return torch.tensor(positions, dtype=torch.long)

    @no_compile
    def select_labels(self, labels: Tensor, rows: Tensor) -> Tensor:
        """Packed token labels of all texts, cut down to those of `rows`."""
        if self.caller_texts.cu_seq_lens is None:
            return labels
        tokens = int(self.caller_texts.host_lengths.sum())
        if labels.shape != (1, tokens):
            return labels
        return self.caller_texts.select(labels.unsqueeze(-1), rows).squeeze(-1)

    def in_order(self, states: Tensor | None) -> Tensor | None:
        """States in the caller's order; None when texts were copied for several adapters."""
        if states is None or self.plan is None or self.plan.source is None:
            return states
        if len(self.plan.source) != len(self.caller_texts.lengths):
            return None
        moved = self.plan.source if self.plan.tokens is None else self.plan.tokens
        return states.index_select(0 if self.plan.tokens is None else 1, moved.argsort())

    @property
    def hidden_states(self) -> tuple[Tensor, ...] | None:
        """The encoder's hidden states in the caller's order."""
        if self.plan is None:
            return self.output.hidden_states
        states = [self.in_order(state) for state in self.output.hidden_states or ()]
        return None if None in states or not states else tuple(states)  # pyright: ignore


def joined(parts: list[BaseModelOutput], dim: int) -> BaseModelOutput:
    """Outputs of several passes as one."""

    def join(states: tuple[Any, ...]) -> Any:  # of a layer that is not read, None
        return None if states[0] is None else torch.cat(states, dim)

    deep = zip(*(part.hidden_states or () for part in parts), strict=True)
    return BaseModelOutput(
        last_hidden_state=join(tuple(part.last_hidden_state for part in parts)),
        hidden_states=tuple(map(join, deep)) or None,
    )
