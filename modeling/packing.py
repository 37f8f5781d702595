# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Padding-free batches: N texts end to end in one row, (1, total tokens), with `cu_seq_lens`.

On mixed-length text most of a padded batch is padding, and every layer pays for it. Packed, the
linear layers see real tokens only, and attention (`attention.py`) stays within each text. No model
code is changed: the attention comes in through transformers' AttentionInterface, so it works where
an encoder takes its attention from there, and an encoder that does not (mpnet, deberta) is found by
asking and is given padded rows instead.

Shapes: `N` texts, `T` tokens of the longest, `P` tokens of all.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention import NAME, no_compile, positions_of


@dataclass
class TextLayout:
    """Where the texts of a batch lie.

    Args:
        mask: padded: (N, T), 1 for real tokens.
        cu_seq_lens: packed: (N + 1,), text n is tokens [n] to [n + 1]. One of the two is given.
        host: packed: the same on the CPU, where what the host decides by is read: to read a
            GPU's tensor it would have to wait until the GPU has done all that it was given.
    """

    mask: Tensor | None = None
    cu_seq_lens: Tensor | None = None
    host: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens of each text."""
        if self.cu_seq_lens is not None:
            return self.cu_seq_lens.diff()
        assert self.mask is not None
        return self.mask.sum(1).long()

    @no_compile
    def of_rows(self, rows: Tensor) -> "TextLayout":
        """Layout of some texts only, as `select` gives their states; `rows` on the CPU."""
        if self.cu_seq_lens is None:
            assert self.mask is not None
            return TextLayout(mask=self.mask[moved_to(rows, self.mask)])
        host = cumulative(self.host_lengths[rows])
        return TextLayout(cu_seq_lens=moved_to(host, self.cu_seq_lens), host=host)

    @property
    def host_lengths(self) -> Tensor:
        """(N,) `lengths` on the CPU, of a packed batch."""
        starts = self.cu_seq_lens if self.host is None else self.host
        assert starts is not None
        return starts.diff().cpu()

    @no_compile
    def select(self, states: Tensor, rows: Tensor) -> Tensor:
        """States of some texts only, in ascending order; `rows` on the CPU."""
        if self.cu_seq_lens is None:
            return states[moved_to(rows, states)]
        lengths = self.host_lengths
        selected = torch.zeros_like(lengths, dtype=torch.bool)
        selected[rows] = True
        tokens = torch.repeat_interleave(selected, lengths).nonzero()[:, 0]
        return states.index_select(1, moved_to(tokens, states))


def moved_to(values: Tensor, other: Tensor) -> Tensor:
    """A tensor of the host where another is; nothing is waited for."""
    return values.to(other.device, non_blocking=True)


def cumulative(lengths: Tensor) -> Tensor:
    """(N,) lengths -> (N + 1,) int32 starts and end, as flash attention wants them."""
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def position_embeddings(encoder: PreTrainedModel) -> nn.Embedding | None:
    """The encoder's learned absolute positions; None for rotary and relative ones."""
    tables = (
        module
        for name, module in encoder.named_modules()
        if "position" in name and isinstance(module, nn.Embedding)
    )
    return next(tables, None)


def position_offset(encoder: PreTrainedModel) -> int:
    """The position of a text's first token: RoBERTa and its kin count from padding_idx + 1."""
    table = position_embeddings(encoder)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def restarting_positions(cu_seq_lens: Tensor, total: int, offset: int = 0) -> Tensor:
    """(N + 1,) -> (1, P), P = `total`: positions that begin anew with each text."""
    return positions_of(cu_seq_lens, total)[1].unsqueeze(0) + offset


def can_pack(encoder: PreTrainedModel) -> bool:
    """The encoder takes attention from AttentionInterface and positions from its caller.

    What it declares is checked by a call: some accept the name of an attention and ignore it.
    """
    if not encoder._supports_attention_backend:  # noqa: SLF001 - transformers' own flag
        return False
    before = encoder.config._attn_implementation  # noqa: SLF001
    if before not in (NAME, "sdpa"):  # eager was asked for (attentions), or a kernel of its own
        return False
    encoder.set_attn_implementation(NAME)
    device = encoder.device
    starts = torch.tensor([0, 1, 3], dtype=torch.int32, device=device)
    ids = torch.zeros(1, 3, dtype=torch.long, device=device)
    layers_reached: list[nn.Module] = []
    training = [module for module in encoder.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            inputs = {"input_ids": ids, "layers_reached": layers_reached}
            encode_packed(encoder, inputs, starts)
    except TypeError:  # does not take position_ids, passes nothing on to attention, masks tokens
        pass
    for module in training:
        module.training = True
    if len(layers_reached) < encoder.config.num_hidden_layers:
        encoder.set_attn_implementation(before)
        return False
    return True


def encode_packed(encoder: PreTrainedModel, inputs: dict[str, Any], cu_seq_lens: Tensor) -> Any:
    """One encoder pass over a packed batch.

    Args:
        encoder: one for which `can_pack` holds.
        inputs: the encoder's arguments, (1, P); perhaps `max_length_q`, the longest text's tokens,
            which is found otherwise.
        cu_seq_lens: (N + 1,), int32.
    """
    longest = inputs.pop("max_length_q", None) or int(cu_seq_lens.diff().max())
    if inputs.get("position_ids") is None:
        tokens = inputs["input_ids" if inputs.get("input_ids") is not None else "inputs_embeds"]
        offset = position_offset(encoder)
        inputs["position_ids"] = restarting_positions(cu_seq_lens, tokens.shape[1], offset)
    return encoder(
        **inputs,
        cu_seq_lens_q=cu_seq_lens,
        cu_seq_lens_k=cu_seq_lens,
        max_length_q=longest,
        max_length_k=longest,
    )


def pad_inputs(inputs: dict[str, Any], cu_seq_lens: Tensor) -> dict[str, Any]:
    """An encoder's packed arguments as padded rows, for encoders that cannot read packed ones."""
    dropped = ("position_ids", "max_length_q")  # rows count by themselves
    padded = {key: value for key, value in inputs.items() if key not in dropped}
    for key in ("input_ids", "token_type_ids", "inputs_embeds"):
        if padded.get(key) is not None:
            padded[key] = pad(padded[key], cu_seq_lens)
    lengths = cu_seq_lens.diff()
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    return {**padded, "attention_mask": mask.long()}


def unpad_output(output: Any, cu_seq_lens: Tensor) -> Any:
    """The states of padded rows packed again."""
    if output.last_hidden_state is not None:
        output.last_hidden_state = unpad(output.last_hidden_state, cu_seq_lens)
    if output.hidden_states is not None:
        output.hidden_states = tuple(
            None if s is None else unpad(s, cu_seq_lens) for s in output.hidden_states
        )
    return output


def pad(values: Tensor, cu_seq_lens: Tensor, fill: float = 0) -> Tensor:
    """(1, P, ...) -> (N, T, ...), filled on the right."""
    parts = values[0].split(cu_seq_lens.diff().tolist())
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=fill)


def unpad(values: Tensor, cu_seq_lens: Tensor) -> Tensor:
    """(N, T, ...) -> (1, P, ...): `pad` undone."""
    lengths = cu_seq_lens.diff()
    real = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
    return values[real].unsqueeze(0)
