# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Many windows through the encoder, some at a time, as if it were one pass.

A text of 100,000 tokens is 260 windows: together they would fill the memory. In training each part
is computed again for its backward pass (arXiv:1604.06174), so that the activations of one part are
held at a time. Token states are held where tokens are read; else only the vectors of the rows.

Shapes: `N` rows, `T` tokens, `P` tokens of a packed batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .attention import no_trace
from .encoder import EncoderInputs, encode
from .encoder_pass import EncoderPass, Vectors, joined
from .packing import TextLayout, cumulative, moved_to
from .segments import Plan

Adapters = list[list[str | None]] | str | None


@dataclass(frozen=True)
class Parts:
    """How rows go through the encoder.

    Args:
        rows: that go through at a time.
        poolings: all that is read of the states, which are not kept then; None keeps them.
    """

    rows: int
    poolings: frozenset[Vectors] | None = None


@no_trace
def encode_in_parts(
    encoder: PreTrainedModel,
    inputs: EncoderInputs,
    parts: Parts,
    *,
    cu_seq_lens: Tensor | None,
    adapters: Adapters,
    **options: Any,
) -> EncoderPass:
    """What `encode` gives, a part of the rows at a time.

    Args:
        encoder: the encoder.
        inputs: what it reads.
        parts: how many rows at a time, and what to keep.
        cu_seq_lens: (N + 1,) on the CPU: the batch is packed.
        adapters: adapters of each row; or one for all rows; None for the bare encoder.
        options: others of `encode`.
    """
    count = len(inputs.tokens) if cu_seq_lens is None else len(cu_seq_lens) - 1
    if count <= parts.rows:
        return encode(encoder, inputs, cu_seq_lens=cu_seq_lens, adapters=adapters, **options)
    passes = []
    for first in range(0, count, parts.rows):
        last = min(first + parts.rows, count)
        rows, starts = _rows_of(inputs, cu_seq_lens, first, last)
        of_rows = adapters[first:last] if isinstance(adapters, list) else adapters
        run = partial(
            _encode_part, encoder, rows, parts, cu_seq_lens=starts, adapters=of_rows, **options
        )
        encoded: Any = checkpoint(run, use_reentrant=False) if torch.is_grad_enabled() else run()
        passes.append(encoded)
    return _joined(passes, parts.poolings or ())


def _encode_part(
    encoder: PreTrainedModel, inputs: EncoderInputs, parts: Parts, **options: Any
) -> EncoderPass:
    """One part, with its states or with what is read of them."""
    encoded = encode(encoder, inputs, **options)
    if parts.poolings is not None:
        for pooling in parts.poolings:
            encoded.pooled(*pooling)
        encoded.output = BaseModelOutput()
    return encoded


def _rows_of(
    inputs: EncoderInputs, cu_seq_lens: Tensor | None, first: int, last: int
) -> tuple[EncoderInputs, Tensor | None]:
    """The rows `first` to `last` of what the encoder reads, and where they lie if packed."""
    values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if cu_seq_lens is None:
        cut = {n: v[first:last] if len(v) == len(inputs.tokens) else v for n, v in tensors.items()}
        return EncoderInputs(**{**values, **cut}), None
    begin, end = int(cu_seq_lens[first]), int(cu_seq_lens[last])
    starts = cu_seq_lens[first : last + 1] - begin
    cut = {name: value[:, begin:end] for name, value in tensors.items()}
    return EncoderInputs(**{**values, **cut, "max_length_q": int(starts.diff().max())}), starts


def _joined(passes: list[EncoderPass], poolings: Iterable[Vectors]) -> EncoderPass:
    """Passes over consecutive rows as one."""
    packed = passes[0].texts.cu_seq_lens is not None
    output = BaseModelOutput()
    if passes[0].output:
        output = joined([part.output for part in passes], dim=1 if packed else 0)
    texts = _joined_layouts([part.texts for part in passes])
    caller_texts = _joined_layouts([part.caller_texts for part in passes])
    whole = EncoderPass(output, texts, caller_texts, _joined_plan(passes))
    for pooling in poolings:
        whole.vectors[pooling] = torch.cat([part.vectors[pooling] for part in passes])
    return whole


def _joined_layouts(layouts: list[TextLayout]) -> TextLayout:
    if layouts[0].mask is not None:
        return TextLayout(mask=torch.cat([layout.mask for layout in layouts]))  # pyright: ignore
    host = cumulative(torch.cat([layout.host_lengths for layout in layouts]))
    starts = layouts[0].cu_seq_lens
    assert starts is not None
    return TextLayout(cu_seq_lens=moved_to(host, starts), host=host)


def _joined_plan(passes: list[EncoderPass]) -> Plan | None:
    """Where the rows of all passes stand, for what is read after them."""
    plans = [part.plan for part in passes]
    if all(plan is None or plan.source is None for plan in plans):
        return plans[0]
    sources, tokens, position_of = [], [], {}
    rows = moved = tokens_before = 0
    for part in passes:
        plan, layout = part.plan, part.caller_texts
        assert plan is not None
        count = len(layout.lengths)
        source = torch.arange(count) if plan.source is None else plan.source.cpu()
        sources.append(source + rows)
        for (adapter, row), position in (plan.position_of or {}).items():
            position_of[adapter, row + rows] = position + moved
        if layout.cu_seq_lens is not None:
            total = int(layout.host_lengths.sum())
            of_part = torch.arange(total) if plan.tokens is None else plan.tokens.cpu()
            tokens.append(of_part + tokens_before)
            tokens_before += total
        rows, moved = rows + count, moved + len(source)
    layout = passes[0].texts
    near: Any = layout.mask if layout.cu_seq_lens is None else layout.cu_seq_lens
    return Plan(
        [],
        source=moved_to(torch.cat(sources), near),
        tokens=moved_to(torch.cat(tokens), near) if tokens else None,
        position_of=position_of,
    )
