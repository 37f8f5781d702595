# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""States below the last layer, for tasks with `layer`; the layers that nothing reads are skipped.

A hook before each layer takes what the layer is about to read, where the call wants it; before the
first layer that no task needs it ends the pass. What a call wants lies in a ContextVar: calls in
other threads pass the same hooks, and the model stays as it is.

Such states are what transformers calls `hidden_states[k]`: what layer k gave. An encoder with a
norm after its last layer (ModernBERT, Llama) applies it to the last states alone, so these are
without it. An encoder whose layers cannot be watched so (ALBERT, which has one) runs to its end and
gives the same states.

Shapes: `N` rows, `T` tokens, `P` tokens of a packed batch, `H` hidden.
"""

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .attention import no_compile, no_trace
from .base_head import Head
from .first_use import FIRST_USE
from .routing import layers_of

WATCHED = "_polyhead_states_watched"  # noted on an encoder: its layers can be watched, or not


class LayersDone(Exception):
    """All layers that a call needs have run."""


@dataclass(frozen=True)
class LayersRead:
    """What a call reads of the layers below the last.

    Args:
        layers: numbers of these layers, from 1.
        exits: nothing above the highest of them is read.
        whole: the encoder is asked for all its hidden states, and watched nowhere.
    """

    layers: frozenset[int] = frozenset()
    exits: bool = False
    whole: bool = False

    @classmethod
    def of(
        cls, encoder: PreTrainedModel, heads: Sequence[Head], *, whole: bool, attentions: bool
    ) -> "LayersRead":
        """What the heads of a call read.

        Args:
            encoder: the encoder.
            heads: those that run.
            whole: the call's output has all hidden states.
            attentions: it has all attentions.
        """
        layers = frozenset(head.layer for head in heads if head.layer is not None)
        whole = whole or any(head.states_needed > 1 for head in heads)
        if whole or (layers and not can_watch(encoder)):
            return cls(whole=True)
        return cls(layers, exits=not attentions and all(head.layer for head in heads))

    @no_trace
    def run(self, encoder: Callable[[], Any]) -> Any:
        """The output of `encoder`, a call, with the states that are read in `hidden_states`.

        They stand there by number, None where a layer is not read. Where the pass ends before the
        last layer there is no `last_hidden_state`.
        """
        return self._run(encoder, max(self.layers, default=None) if self.exits else None)

    def exported(self, encoder: Callable[[], Any]) -> Any:
        """As `run`, for torch.export: it follows a pass to its end, and leaves out what is idle."""
        return self._run(encoder, None)

    def _run(self, encoder: Callable[[], Any], last: int | None) -> Any:
        if not self.layers:
            return encoder()
        taken = _Taken(self.layers, last)
        token = _TAKEN.set(taken)
        try:
            output = encoder()
        except LayersDone:
            output = BaseModelOutput()
        finally:
            _TAKEN.reset(token)
        missed = sorted(self.layers - set(taken.states))
        assert not missed, f"layers {missed} of {sorted(self.layers)} were not seen"
        output["hidden_states"] = tuple(map(taken.states.get, range(max(self.layers) + 1)))
        return output


@dataclass
class _Taken:
    """What hooks take in one call: the states of some layers; after `last` the pass ends."""

    layers: Iterable[int]
    last: int | None
    states: dict[int, Any] = field(default_factory=dict)


_TAKEN: ContextVar[_Taken | None] = ContextVar("polyhead_layers_read", default=None)


class LayerWatcher:
    """Hook before a layer of the encoder: takes the states of the layer below.

    Args:
        number: of the layer below, from 1.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    @no_compile
    def __call__(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        """Take the states if the call wants them, and end the pass if it wants no others.

        Raises:
            LayersDone: it wants no others.
        """
        taken = _TAKEN.get()
        if taken is None or self.number not in taken.layers:
            return
        taken.states[self.number] = args[0] if args else kwargs.get("hidden_states")
        if self.number == taken.last:
            raise LayersDone


def can_watch(encoder: PreTrainedModel) -> bool:
    """Hooks before the encoder's layers meet the states that it gives as hidden states.

    Found by a call at first use, and noted on the encoder.
    """
    if WATCHED not in encoder.__dict__:
        with FIRST_USE:
            if WATCHED not in encoder.__dict__:
                encoder.__dict__[WATCHED] = _watch(encoder)
    return encoder.__dict__[WATCHED]


def _watch(encoder: PreTrainedModel) -> bool:
    """Set the hooks; take them out again where they meet something else than hidden states."""
    count = encoder.config.num_hidden_layers
    layers = layers_of(encoder, count)
    if layers is None:
        return False
    hooks = [
        layer.register_forward_pre_hook(LayerWatcher(number), with_kwargs=True)
        for number, layer in enumerate(layers)
        if number
    ]
    if _meets_hidden_states(encoder, range(1, count)):
        return True
    for hook in hooks:
        hook.remove()
    return False


@torch.no_grad()
def _meets_hidden_states(encoder: PreTrainedModel, layers: range) -> bool:
    ids = torch.zeros(1, 3, dtype=torch.long, device=encoder.device)
    training = [module for module in encoder.modules() if module.training]
    for module in training:
        module.training = False
    taken = _Taken(layers, None)
    token = _TAKEN.set(taken)
    try:
        options: Any = {"attention_mask": torch.ones_like(ids), "return_dict": True}
        output = encoder(input_ids=ids, output_hidden_states=True, **options)
    finally:
        _TAKEN.reset(token)
        for module in training:
            module.training = True
    states = [taken.states.get(number) for number in layers]
    expected = output.hidden_states[1:-1]
    return len(expected) == len(states) and all(
        state is not None and torch.equal(state, other)
        for state, other in zip(states, expected, strict=True)
    )
