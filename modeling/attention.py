# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Attention within each text of a packed batch, through transformers' AttentionInterface.

On a CPU it runs text by text, texts of equal length that stand together as one call; on a GPU in
half precision by flash attention's kernel for packed texts (torch's `varlen_attn`), else, or with
dropout in it, on rows padded for attention alone.

Shapes: `N` texts, `T` tokens of the longest, `P` tokens of all, `A` heads, `K` key heads,
`d` head size.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

# Of our attention in AttentionInterface. Each copy of this file (the installed one, that of a
# repository) has a state of its own and must not take another's place there.
NAME = __name__.replace(".", "_")
# packed: set while a packed batch's masks are made; probing: calls are counted
state = {"packed": False, "probing": False, "calls": 0}


Function = TypeVar("Function", bound=Callable)


def eager(function: Function) -> Function:
    """Decorator: torch.compile leaves the function as it is.

    For what a batch's lengths or mix of tasks decide: compiled, it would be so for each batch anew.
    """
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def places_of(cu_seq_lens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """(P,) the text of each token, and its place in it; the device is not waited for."""
    count = torch.arange(len(cu_seq_lens) - 1, device=cu_seq_lens.device)
    text = torch.repeat_interleave(count, cu_seq_lens.diff(), output_size=total)
    return text, torch.arange(total, device=text.device) - cu_seq_lens[text]


def _mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> Tensor | None:
    """Packed: no mask, or the reach of a sliding window; padded: what sdpa takes."""
    if not state["packed"]:
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
    if state["probing"]:
        state["calls"] += 1
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
    text, place = places_of(cu_seq_lens, total)
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
    runs = _runs(cu_seq_lens.tolist())
    # split, not sliced: the backward of each slice would fill a gradient of all tokens with zeros
    sizes = [count * length for count, length in runs]
    cut = (x[0].split(sizes, dim=1) for x in (query, key, value))
    for (count, length), *own in zip(runs, *cut, strict=True):
        parts = (x.view(heads, count, length, -1).transpose(0, 1) for x in own)
        near = None
        if reach is not None and length > reach + 1:
            place = torch.arange(length, device=query.device)
            near = (place[:, None] - place[None]).abs() <= reach
        out = F.scaled_dot_product_attention(
            *parts, attn_mask=near, dropout_p=dropout, scale=scaling
        )  # (count, A, length, d)
        found.append(out.transpose(1, 2).reshape(count * length, heads, -1))
    return torch.cat(found).unsqueeze(0)


def _runs(starts: list[int]) -> list[tuple[int, int]]:
    """(texts, tokens of each) for runs of neighbours of equal length."""
    lengths = [end - start for start, end in zip(starts[:-1], starts[1:], strict=True)]
    return [(len(list(run)), length) for length, run in groupby(lengths) if length]


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
