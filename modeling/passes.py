# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Windows of the pipeline's calls to encoder passes: which go together, and what a pass gives.

Shapes: `T` tokens, `L` labels, `D` embedding width.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .attention import has_kernel
from .calls import Entry
from .encodings import Encodings
from .packing import cumulative

BATCH_TOKENS = {"cpu": 1024}  # of one encoder pass, by kind of device
MORE_TOKENS = 32_768  # of other kinds


def packs(model: Any) -> bool:
    """Passes hold no padding: their cost is their tokens, not windows times the longest."""
    dtype = torch.bfloat16 if model.compute.runs_bf16 else model.dtype
    # on a GPU without the kernel packing would cost more than the padding of sorted batches
    return model.can_pack and (model.device.type == "cpu" or has_kernel(model.device, dtype))


def cut_into_passes(
    lengths: list[int], *, packed: bool, batch_tokens: int, batch_size: int | None = None
) -> Iterator[slice]:
    """Cuts of windows into encoder passes.

    Args:
        lengths: tokens of the windows, falling.
        packed: a pass holds no padding.
        batch_tokens: tokens of a pass, padding counted.
        batch_size: windows of a pass, instead of a number of tokens.
    """
    start = total = 0
    for position, length in enumerate(lengths):
        count = position - start
        cost = total + length if packed else (count + 1) * lengths[start]
        if count and (count == batch_size if batch_size else cost > batch_tokens):
            yield slice(start, position)
            start, total = position, 0
        total += length
    yield slice(start, len(lengths))


@torch.no_grad()
def encode_entries(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    entries: list[Entry],
    encodings: Encodings | None = None,
) -> list[dict[str, Tensor]]:
    """One encoder pass: what its tasks give for each window, (L,) or (D,), or (its tokens, L).

    Args:
        model: the model, without dropout.
        tokenizer: pads.
        entries: the windows.
        encodings: the last ones, which are not made anew.
    """
    lengths, rows = [entry.length for entry in entries], _rows_of_tasks(entries)
    task_ids = None
    if any(len(numbers) < len(entries) for numbers in rows.values()):
        names = model.task_names
        task_ids = torch.full((len(entries), len(rows)), -1)
        for column, (name, numbers) in enumerate(rows.items()):
            task_ids[numbers, column] = names.index(name)
    if encodings is None:
        packed = packs(model)
        batch = _batch_of(model, tokenizer, entries, packed=packed)
        more = {} if task_ids is None else {"task_ids": task_ids}
        output = model(**batch, **more, tasks=list(rows))
    else:
        packed = True
        output = encodings.outputs(model, entries, list(rows), task_ids)
    outputs: list[dict[str, Tensor]] = [{} for _ in entries]
    for name, values in {**(output.logits or {}), **(output.embeddings or {})}.items():
        values, tokens = values.float().cpu(), [lengths[row] for row in rows[name]]
        if values.dim() == 3:
            parts = values[0].split(tokens) if packed else values
            values = [part[:n] for part, n in zip(parts, tokens, strict=True)]
        for row, value in zip(rows[name], values, strict=True):
            outputs[row][name] = value
    return outputs


def _batch_of(
    model: Any, tokenizer: PreTrainedTokenizerBase, entries: list[Entry], *, packed: bool
) -> Any:
    """The windows as the encoder reads them, on its device."""
    features: dict[str, list] = {"input_ids": [entry.window.input_ids for entry in entries]}
    if entries[0].window.token_type_ids is not None:
        features["token_type_ids"] = [entry.window.token_type_ids for entry in entries]
    if not packed:
        batch = tokenizer.pad(features, padding_side="right", return_tensors="pt")
        return batch.to(model.device)
    lengths = [entry.length for entry in entries]
    laid: Any = {k: torch.tensor([list(chain(*rows))]) for k, rows in features.items()}
    laid["cu_seq_lens_q"] = cumulative(torch.tensor(lengths))
    laid = {key: value.to(model.device) for key, value in laid.items()}
    return {**laid, "max_length_q": max(lengths)}


def _rows_of_tasks(entries: list[Entry]) -> dict[str, list[int]]:
    """By task, the numbers of the windows that it reads."""
    rows: dict[str, list[int]] = {}
    for row, entry in enumerate(entries):
        for name in entry.tasks:
            rows.setdefault(name, []).append(row)
    return rows
