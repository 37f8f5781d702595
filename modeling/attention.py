# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Attention within each text of a packed batch, through transformers' AttentionInterface.

An encoder whose config says `is_causal` attends to earlier tokens only, whatever its own code does:
the mask is made here, packed or padded.

On a CPU it runs text by text, texts of equal length that stand together as one call; on a GPU in
half precision by flash attention's kernel for packed texts (torch's `varlen_attn`), else, or with
dropout in it, on rows padded for attention alone.

Whether a batch is packed is told by what the call passes along (`cu_seq_lens_q`), never by a flag:
one process may run packed and padded batches at the same time, in several threads.

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
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
)

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

# Of our attention in AttentionInterface. A copy of this file (the installed one, that of a
# repository) must not take another's place there.
NAME = __name__.replace(".", "_")


Function = TypeVar("Function", bound=Callable)


def no_compile(function: Function) -> Function:
    """Decorator: torch.compile leaves the function as it is.

    For what a batch's lengths or mix of tasks decide: compiled, it would be so for each batch anew.
    """
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def no_trace(function: Function) -> Function:
    """Decorator: torch.compile leaves the function itself, compiles what it calls.

    For what sets a ContextVar, which torch.compile cannot follow.
    """
    return torch.compiler.disable(function, recursive=False)  # pyright: ignore[reportReturnType]


def positions_of(cu_seq_lens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """(P,) the text of each token, and its position in it; the device is not waited for."""
    count = torch.arange(len(cu_seq_lens) - 1, device=cu_seq_lens.device)
    text = torch.repeat_interleave(count, cu_seq_lens.diff(), output_size=total)
    return text, torch.arange(total, device=text.device) - cu_seq_lens[text]


def _mask(
    *,
    attention_mask: Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    local_size: int | None = None,
    config: Any = None,
    mask_function: Callable = causal_mask_function,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """What sdpa takes; of a batch without padding no mask, or the size of a sliding window.

    A packed batch has no `attention_mask`; nor has a batch that needs none, whose mask is then made
    by `_attend`.

    Args:
        attention_mask: (N, T), false for padding; None where there is none.
        allow_is_bidirectional_skip: tokens see each other in both directions, without exceptions
            of the encoder's own.
        local_size: tokens that a sliding window shows on each side; of a decoder's own causal
            window, those that it shows with the token itself.
        config: the encoder's.
        mask_function: which tokens see which, as the encoder would have it.
        use_vmap: there are exceptions of the encoder's own.
        kwargs: what else `sdpa_mask` takes.

    Returns:
        None, the window as a scalar, or (N, 1, T, T).
    """
    causal = bool(getattr(config, "is_causal", False))
    own_window = causal and not allow_is_bidirectional_skip
    plain = allow_is_bidirectional_skip or (
        own_window
        and not use_vmap
        and local_size in (None, getattr(config, "sliding_window", None))
    )
    if attention_mask is None and plain:
        return None if local_size is None else torch.tensor(local_size - own_window)
    if causal:
        mask_function = and_masks(mask_function, causal_mask_function)
    return sdpa_mask(
        attention_mask=attention_mask,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        local_size=local_size,
        mask_function=mask_function,
        use_vmap=use_vmap,
        **kwargs,
    )


def _window(states: Tensor, window: int, *, causal: bool) -> Tensor | None:
    """(N, 1, T, T), true where a token of (N, A, T, d) sees another; None where all do."""
    length = states.shape[2]
    function = sliding_window_bidirectional_mask_function(window)
    return sdpa_mask(
        batch_size=len(states),
        q_length=length,
        kv_length=length,
        mask_function=and_masks(function, causal_mask_function) if causal else function,
        local_size=window,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=not causal,
        device=states.device,
    )


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    layers_reached: list[nn.Module] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a packed batch; without `cu_seq_lens_q`, sdpa.

    Args:
        module: the attention layer.
        query: (1, A, P, d).
        key: (1, K, P, d).
        value: (1, K, P, d).
        attention_mask: the mask that `_mask` gives.
        dropout: share of the attention weights that is dropped, in training.
        scaling: factor of the scores.
        is_causal: tokens see earlier ones only; None where the encoder's config does not say.
        cu_seq_lens_q: (N + 1,).
        max_length_q: tokens of the longest text.
        layers_reached: gets each layer that calls; how `can_pack` counts them.
        kwargs: what else the layer passes; read by sdpa only.

    Returns:
        (1, P, A, d), and no weights.

    Raises:
        TypeError: the encoder masks tokens of a packed batch in a way of its own.
    """
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if cu_seq_lens_q is None:
        if attention_mask is not None and attention_mask.dim() == 0:
            attention_mask = _window(query, int(attention_mask), causal=causal)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    parts = (query, repeat_kv(key, groups), repeat_kv(value, groups))
    if attention_mask is not None and attention_mask.dim() > 0:
        raise TypeError(f"{type(module).__name__} masks tokens of packed texts in its own way")
    window = None if attention_mask is None else int(attention_mask)
    if layers_reached is not None:
        layers_reached.append(module)
    if query.device.type == "cpu":
        return _by_runs(*parts, window, dropout, scaling, cu_seq_lens_q, causal=causal), None
    longest = int(cu_seq_lens_q.diff().max()) if max_length_q is None else max_length_q
    if dropout == 0 and has_kernel(query.device, query.dtype):
        return _by_kernel(*parts, window, scaling, cu_seq_lens_q, longest, causal=causal), None
    return _by_rows(*parts, window, dropout, scaling, cu_seq_lens_q, longest, causal=causal), None


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Flash attention's kernel for packed texts runs on this device in this precision."""
    if varlen_attn is None or device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    scaling: float | None,
    cu_seq_lens: Tensor,
    longest: int,
    *,
    causal: bool = False,
) -> Tensor:
    """(1, A, P, d) -> (1, P, A, d), all texts in one kernel."""
    assert varlen_attn is not None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (P, A, d)
    side = -1 if window is None else window
    window_size = (side, 0 if causal else side)
    starts = cu_seq_lens
    out: Any = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scaling, window_size=window_size
    )
    return out.unsqueeze(0)


def _by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    dropout: float,
    scaling: float | None,
    cu_seq_lens: Tensor,
    longest: int,
    *,
    causal: bool = False,
) -> Tensor:
    """(1, A, P, d) -> (1, P, A, d), the texts padded for attention alone."""
    heads, total, size = query.shape[1:]
    count = len(cu_seq_lens) - 1
    text, position = positions_of(cu_seq_lens, total)
    flat = text * longest + position
    rows = []
    for x in (query, key, value):
        empty = x.new_zeros(count * longest, heads, size)
        padded = empty.index_copy(0, flat, x[0].transpose(0, 1))
        rows.append(padded.view(count, longest, heads, size).transpose(1, 2))
    positions = torch.arange(longest, device=query.device)
    mask = (positions < cu_seq_lens.diff()[:, None])[:, None, None]  # (N, 1, 1, T)
    back = positions[:, None] - positions  # how far back a token lies that is seen
    if window is not None:
        mask = mask & (back.abs() <= window)
        mask = mask | (back == 0)  # padding sees itself, else it were NaN
    if causal:
        mask = mask & (back >= 0)
    out = F.scaled_dot_product_attention(*rows, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2).reshape(count * longest, heads, size)[flat].unsqueeze(0)


@no_compile
def _by_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    dropout: float,
    scaling: float | None,
    cu_seq_lens: Tensor,
    *,
    causal: bool = False,
) -> Tensor:
    """(1, A, P, d) -> (1, P, A, d), runs of texts of one length together."""
    heads, outputs = query.shape[1], []
    runs = _runs(cu_seq_lens.tolist())
    # split, not sliced: the backward of each slice would fill a gradient of all tokens with zeros
    sizes = [count * length for count, length in runs]
    cut = (x[0].split(sizes, dim=1) for x in (query, key, value))
    for (count, length), *run_tensors in zip(runs, *cut, strict=True):
        parts = (x.view(heads, count, length, -1).transpose(0, 1) for x in run_tensors)
        mask = None
        if window is not None and length > window + 1:
            positions = torch.arange(length, device=query.device)
            back = positions[:, None] - positions[None]
            mask = (back <= window) & (back >= (0 if causal else -window))
        out = F.scaled_dot_product_attention(
            *parts,
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=causal and mask is None,
        )  # (count, A, length, d)
        outputs.append(out.transpose(1, 2).reshape(count * length, heads, -1))
    return torch.cat(outputs).unsqueeze(0)


def _runs(starts: list[int]) -> list[tuple[int, int]]:
    """(texts, tokens of each) for runs of neighbours of equal length."""
    lengths = [end - start for start, end in zip(starts[:-1], starts[1:], strict=True)]
    return [(len(list(texts)), length) for length, texts in groupby(lengths) if length]


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
