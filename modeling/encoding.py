# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""The encoder: how it is made, what is asked of it, and what one pass through it gave.

Shapes: `N` texts, `T` tokens, `H` hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .attention import eager
from .packing import Texts, position_embeddings, position_offset
from .plans import Plan
from .pooling import layers_needed, pool

BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def auto_class(encoder_config: Any) -> Any:
    """AutoModel, or for encoder-decoder models (T5) the class that holds their encoder."""
    return AutoModelForTextEncoding if encoder_config.is_encoder_decoder else AutoModel


def without_pooler(load: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Load an encoder without its pooler, whose parameters would never get a gradient."""
    try:
        return load(add_pooling_layer=False)
    except TypeError:  # this encoder has no pooler to leave out
        return load()


def build_encoder(encoder_config: Any) -> PreTrainedModel:
    """A new encoder with random weights, from its config.

    Raises:
        ValueError: the config makes no encoder, or none that reads texts.
    """
    auto = auto_class(encoder_config)
    try:
        encoder = without_pooler(lambda **more: auto.from_config(encoder_config, **more))
    except BUILD_ERRORS as error:  # an activation that is unknown, sizes that do not divide, ...
        raise ValueError(
            f"encoder_config makes no {encoder_config.model_type}: {type(error).__name__}: {error}"
        ) from error
    check_reads_texts(encoder)
    return encoder


def check_reads_texts(encoder: PreTrainedModel) -> None:
    """Raise ValueError for a model that reads no token ids, or has not one size and one depth."""
    config = encoder.config
    sizes = (getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None))
    if encoder.main_input_name != "input_ids" or not all(isinstance(n, int) for n in sizes):
        raise ValueError(
            f"a {config.model_type} model is no text encoder; give an encoder that AutoModel loads "
            "and that reads token ids (bert, roberta, deberta-v2, modernbert, ...)"
        )


def usable_length(encoder: PreTrainedModel) -> int | None:
    """Number of tokens that the encoder accepts; None where it has no limit.

    Learned position embeddings with a padding index (RoBERTa and its kin) count positions from
    padding_idx + 1, so they hold that many tokens fewer than rows.
    """
    table = position_embeddings(encoder)
    if table is not None:
        return table.num_embeddings - position_offset(encoder)
    limit = getattr(encoder.config, "max_position_embeddings", None)
    return limit if limit is not None and limit > 0 else None


@dataclass
class Encoded:
    """What one encoder pass gave, and where each text stands in it.

    Args:
        output: the encoder's output, its texts sorted and copied for their adapters.
        texts: where they are.
        given: where the caller's were.
        plan: how they were moved; None without adapters.
    """

    output: BaseModelOutput
    texts: Texts
    given: Texts
    plan: Plan | None = None
    _pooled: dict[str, Tensor] = field(default_factory=dict)

    def pooled(self, pooling: str) -> Tensor:
        """(M, H), or (M, 4 H) for mean_last_4: one vector per text, made once for all heads."""
        if pooling not in self._pooled:
            count = layers_needed(pooling)
            states: Any = (self.output.last_hidden_state,)
            if count > 1:
                states = (self.output.hidden_states or ())[-count:]
            self._pooled[pooling] = pool(states, self.texts, pooling)
        return self._pooled[pooling]

    @eager
    def rows_of(self, adapter: str | None, rows: Tensor | None) -> Tensor | None:
        """Where, on the CPU, the caller's `rows` (None: all) stand, encoded through `adapter`."""
        if self.plan is None or self.plan.source is None or self.plan.places is None:
            return rows
        chosen = range(len(self.given.lengths)) if rows is None else rows.tolist()
        places = [self.plan.places[adapter, row] for row in chosen]
        return torch.tensor(places, dtype=torch.long)

    @eager
    def own_labels(self, labels: Tensor, rows: Tensor) -> Tensor:
        """Packed token labels of all texts, cut down to those of `rows`."""
        if self.given.cu_seq_lens is None:
            return labels
        tokens = int(self.given.host_lengths.sum())
        if labels.shape != (1, tokens):
            return labels
        return self.given.select(labels.unsqueeze(-1), rows).squeeze(-1)

    def in_order(self, states: Tensor | None) -> Tensor | None:
        """States in the caller's order; None when texts were copied for several adapters."""
        if states is None or self.plan is None or self.plan.source is None:
            return states
        if len(self.plan.source) != len(self.given.lengths):
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


def moved_texts(plan: Plan | None, texts: Texts) -> Texts:
    """Where the texts are once moved as planned."""
    if plan is None or plan.source is None:
        return texts
    if plan.cu_seq_lens is not None:
        return Texts(cu_seq_lens=plan.cu_seq_lens, host=plan.host)
    assert texts.mask is not None
    return Texts(mask=texts.mask[plan.source])


def joined(parts: list[BaseModelOutput], dim: int) -> BaseModelOutput:
    """Outputs of several passes as one."""
    deep = zip(*(part.hidden_states or () for part in parts), strict=True)
    return BaseModelOutput(
        last_hidden_state=torch.cat([p.last_hidden_state for p in parts], dim),  # pyright: ignore
        hidden_states=tuple(torch.cat(states, dim) for states in deep) or None,
    )
