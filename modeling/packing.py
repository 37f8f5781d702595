# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Padding-free batches: N texts end to end in one row, (1, total tokens), with `cu_seq_lens`.

On mixed-length text most of a padded batch is padding, and every layer pays for it. Packed, the
linear layers see real tokens only. Attention on a CPU runs text by text, texts of equal length that
stand together as one call; on a GPU in half precision by flash attention's kernel for packed texts
(torch's `varlen_attn`), else, or with dropout in it, on rows padded for attention alone. No model
code is changed: the attention comes in through transformers' AttentionInterface, so it works where
an encoder takes its attention from there, and an encoder that does not (mpnet, deberta) is found by
asking and is given padded rows instead.

Shapes: `N` texts, `T` tokens of the longest, `P` tokens of all, `A` heads, `K` key heads,
`d` head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

# Of our attention in AttentionInterface. Each copy of this file (the installed one, that of a
# repository) has a state of its own and must not take another's place there.
NAME = __name__.replace(".", "_")
# packed: set while a packed batch's masks are made; probing: calls are counted
_state = {"packed": False, "probing": False, "calls": 0}


Function = TypeVar("Function", bound=Callable)


def eager(function: Function) -> Function:
    """Decorator: torch.compile leaves the function as it is.

    For what a batch's lengths or mix of tasks decide: compiled, it would be so for each batch anew.
    """
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


@dataclass
class Texts:
    """Where the texts of a batch are.

    Args:
        mask: padded: (N, T), 1 for real tokens.
        cu_seq_lens: packed: (N + 1,), text n is tokens [n] to [n + 1]. One of the two is given.
    """

    mask: Tensor | None = None
    cu_seq_lens: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens of each text."""
        if self.cu_seq_lens is not None:
            return self.cu_seq_lens.diff()
        assert self.mask is not None
        return self.mask.sum(1).long()

    def select(self, states: Tensor, rows: Tensor) -> Tensor:
        """States of some texts only, in ascending order."""
        if self.cu_seq_lens is None:
            return states[rows]
        lengths = self.lengths
        wanted = torch.zeros_like(lengths, dtype=torch.bool)
        wanted[rows] = True
        tokens = torch.repeat_interleave(wanted, lengths)
        return states[:, tokens]


def cumulative(lengths: Tensor) -> Tensor:
    """(N,) lengths -> (N + 1,) int32 starts and end, as flash attention wants them."""
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def position_embeddings(encoder: PreTrainedModel) -> nn.Embedding | None:
    """The encoder's learned absolute positions; None for rotary and relative ones."""
    found = (
        module
        for name, module in encoder.named_modules()
        if "position" in name and isinstance(module, nn.Embedding)
    )
    return next(found, None)


def position_offset(encoder: PreTrainedModel) -> int:
    """The position of a text's first token: RoBERTa and its kin count from padding_idx + 1."""
    table = position_embeddings(encoder)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def restarting_positions(cu_seq_lens: Tensor, total: int, offset: int = 0) -> Tensor:
    """(N + 1,) -> (1, P), P = `total`: positions that begin anew with each text."""
    return _places(cu_seq_lens, total)[1].unsqueeze(0) + offset


def _places(cu_seq_lens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """(P,) the text of each token, and its place in it; the device is not waited for."""
    count = torch.arange(len(cu_seq_lens) - 1, device=cu_seq_lens.device)
    text = torch.repeat_interleave(count, cu_seq_lens.diff(), output_size=total)
    return text, torch.arange(total, device=text.device) - cu_seq_lens[text]


# ---- attention ----


def _mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> Tensor | None:
    """Packed: no mask, or the reach of a sliding window; padded: what sdpa takes."""
    if not _state["packed"]:
        return AttentionMaskInterface()["sdpa"](*args, local_size=local_size, **kwargs)
    return None if local_size is None else torch.tensor(local_size)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a packed batch; without `cu_seq_lens_q`, sdpa.

    Args:
        module: the attention layer.
        query: (1, A, P, d).
        key: (1, K, P, d).
        value: (1, K, P, d).
        attention_mask: the reach of a sliding window, inclusive, as a scalar; or None.
        dropout: on the attention weights, in training.
        scaling: of the scores.
        cu_seq_lens_q: (N + 1,).
        max_length_q: tokens of the longest text.
        kwargs: what else the layer passes; read by sdpa only.

    Returns:
        (1, P, A, d), and no weights.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    parts = (query, repeat_kv(key, groups), repeat_kv(value, groups))
    reach = None if attention_mask is None else int(attention_mask)
    if _state["probing"]:
        _state["calls"] += 1
    if query.device.type == "cpu":
        return _by_runs(*parts, reach, dropout, scaling, cu_seq_lens_q), None
    longest = int(cu_seq_lens_q.diff().max()) if max_length_q is None else max_length_q
    if dropout == 0 and has_kernel(query.device, query.dtype):
        return _by_kernel(*parts, reach, scaling, cu_seq_lens_q, longest), None
    return _by_rows(*parts, reach, dropout, scaling, cu_seq_lens_q, longest), None


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Flash attention's kernel for packed texts runs on this device in this precision."""
    if varlen_attn is None or device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reach: int | None,
    scaling: float | None,
    cu_seq_lens: Tensor,
    longest: int,
) -> Tensor:
    """(1, A, P, d) -> (1, P, A, d), all texts in one kernel."""
    assert varlen_attn is not None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (P, A, d)
    near = (-1, -1) if reach is None else (reach, reach)
    starts = cu_seq_lens
    found: Any = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scaling, window_size=near
    )
    return found.unsqueeze(0)


def _by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reach: int | None,
    dropout: float,
    scaling: float | None,
    cu_seq_lens: Tensor,
    longest: int,
) -> Tensor:
    """(1, A, P, d) -> (1, P, A, d), the texts padded for attention alone."""
    heads, total, size = query.shape[1:]
    count = len(cu_seq_lens) - 1
    text, place = _places(cu_seq_lens, total)
    flat = text * longest + place
    rows = []
    for x in (query, key, value):
        empty = x.new_zeros(count * longest, heads, size)
        padded = empty.index_copy(0, flat, x[0].transpose(0, 1))
        rows.append(padded.view(count, longest, heads, size).transpose(1, 2))
    places = torch.arange(longest, device=query.device)
    mask = (places < cu_seq_lens.diff()[:, None])[:, None, None]  # (N, 1, 1, T)
    if reach is not None:
        mask = mask & ((places[:, None] - places).abs() <= reach)
        mask = mask | (places[:, None] == places)  # padding sees itself, else it were NaN
    out = F.scaled_dot_product_attention(*rows, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2).reshape(count * longest, heads, size)[flat].unsqueeze(0)


@eager
def _by_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reach: int | None,
    dropout: float,
    scaling: float | None,
    cu_seq_lens: Tensor,
) -> Tensor:
    """(1, A, P, d) -> (1, P, A, d), runs of texts of one length together."""
    heads, found = query.shape[1], []
    for start, count, length in _runs(cu_seq_lens.tolist()):
        stop = start + count * length
        parts = (
            x[0, :, start:stop].view(heads, count, length, -1).transpose(0, 1)
            for x in (query, key, value)
        )
        near = None
        if reach is not None and length > reach + 1:
            place = torch.arange(length, device=query.device)
            near = (place[:, None] - place[None]).abs() <= reach
        out = F.scaled_dot_product_attention(
            *parts, attn_mask=near, dropout_p=dropout, scale=scaling
        )  # (count, A, length, d)
        found.append(out.transpose(1, 2).reshape(count * length, heads, -1))
    return torch.cat(found).unsqueeze(0)


def _runs(starts: list[int]) -> list[tuple[int, int, int]]:
    """(first token, texts, tokens of each) for runs of neighbours of equal length."""
    runs: list[tuple[int, int, int]] = []
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        length = end - start
        if runs and runs[-1][2] == length:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, length)
        elif length:
            runs.append((start, 1, length))
    return runs


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)


# ---- encoding ----


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
    _state.update(probing=True, calls=0)
    device = encoder.device
    starts = torch.tensor([0, 1, 3], dtype=torch.int32, device=device)
    ids = torch.zeros(1, 3, dtype=torch.long, device=device)
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            encode_packed(encoder, {"input_ids": ids}, starts)
    except TypeError:  # does not take position_ids or passes nothing on to attention
        pass
    encoder.train(training)
    _state["probing"] = False
    if _state["calls"] < encoder.config.num_hidden_layers:
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
        given = inputs["input_ids" if inputs.get("input_ids") is not None else "inputs_embeds"]
        offset = position_offset(encoder)
        inputs["position_ids"] = restarting_positions(cu_seq_lens, given.shape[1], offset)
    _state["packed"] = True
    try:
        return encoder(
            **inputs,
            cu_seq_lens_q=cu_seq_lens,
            cu_seq_lens_k=cu_seq_lens,
            max_length_q=longest,
            max_length_k=longest,
        )
    finally:
        _state["packed"] = False


def pad_inputs(inputs: dict[str, Any], cu_seq_lens: Tensor) -> dict[str, Any]:
    """An encoder's packed arguments as padded rows, for encoders that cannot read packed ones."""
    own = ("position_ids", "max_length_q")  # rows count by themselves
    padded = {key: value for key, value in inputs.items() if key not in own}
    for key in ("input_ids", "token_type_ids", "inputs_embeds"):
        if padded.get(key) is not None:
            padded[key] = pad(padded[key], cu_seq_lens)
    lengths = cu_seq_lens.diff()
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    return {**padded, "attention_mask": mask.long()}


def unpad_output(output: Any, cu_seq_lens: Tensor) -> Any:
    """The states of padded rows packed again."""
    output.last_hidden_state = unpad(output.last_hidden_state, cu_seq_lens)
    if output.hidden_states is not None:
        output.hidden_states = tuple(unpad(s, cu_seq_lens) for s in output.hidden_states)
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
