# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Which stretch of a batch goes through which adapter, and which texts move for that.

A plan is made once for a forward; `routing.py` has the layers that follow it.

Shapes: `N` texts of the caller, `M` texts after sorting and copying, `P` and `Q` their tokens.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .packing import Texts, cumulative, moved_to

Stretch = tuple[str | None, int, int]  # adapter, first token, last token + 1
Tile = tuple[list[str], int, int]  # adapters of equal parts, first token, last token + 1
Kind = tuple[tuple[int | None, ...], bool]  # by stretch: rank of its adapter in a layer; bias
ROWS_PER_ADAPTER = 4  # with more, one product for each adapter is faster than one for each row


@dataclass
class Plan:
    """Which stretch of the tokens goes through which adapter, and which texts move for that.

    Args:
        stretches: (adapter or None, first token, last token + 1), over (rows x tokens) flattened.
            One stretch stands for everything, whatever its length.
        source: (M,) the caller's text that each text is, or None when nothing moves.
        tokens: packed: (Q,) the caller's token that each token is.
        cu_seq_lens: packed: (M + 1,).
        host: packed: the same on the CPU.
        first: layer before which texts are sorted and copied; None: before the encoder.
        size: texts of the caller (padded) or tokens (packed): what tells a batch's tensors.
        places: where (adapter, the caller's text) stands; None when nothing moves.
        width: tokens of every text, where they are padded; 0 where they are packed.
    """

    stretches: list[Stretch]
    source: Tensor | None = None
    tokens: Tensor | None = None
    cu_seq_lens: Tensor | None = None
    host: Tensor | None = None
    first: int | None = None
    size: int = 0
    places: dict[tuple[str | None, int], int] | None = None
    width: int = 0
    _tiles: dict[Kind, list[Tile]] = field(default_factory=dict)

    @cached_property
    def names(self) -> list[str]:
        """The adapters of the stretches."""
        return [name for name, _, _ in self.stretches if name is not None]

    def tiles(self, kind: Kind, stretches: list[Stretch]) -> list[Tile]:
        """Stretches with an adapter in a layer, joined where one batched product can do several.

        Many small products cost more than their arithmetic. Where all stretches are of one length
        they are the parts; else the rows of a padded batch are, unless few adapters have many.
        """
        if kind in self._tiles:
            return self._tiles[kind]
        ranks, biased = kind
        held = [s for s, rank in zip(stretches, ranks, strict=True) if rank]
        sizes = [stop - start for _, start, stop in held]
        tiles: list[Tile] = [([str(name)], start, stop) for name, start, stop in held]
        if len(held) > 1 and len({r for r in ranks if r}) == 1 and not biased:
            first, last = held[0][1], held[-1][2]
            unit = sizes[0] if len(set(sizes)) == 1 else self.width
            count = (last - first) // unit if unit else 0
            if sum(sizes) == last - first and 0 < count <= ROWS_PER_ADAPTER * len(held):
                counts = [size // unit for size in sizes]
                names = [n for (n, *_), c in zip(held, counts, strict=True) for n in [str(n)] * c]
                tiles = [(names, first, last)]
        if len(self.stretches) > 1:  # else the lengths are those of one layer's input
            self._tiles[kind] = tiles
        return tiles


def make_plan(
    adapters: list[list[str | None]], texts: Texts, *, width: int, first: int | None
) -> Plan:
    """Sort texts by adapter, copying those wanted by several.

    Args:
        adapters: the adapters that each text is wanted through; None for the bare encoder.
        texts: where the texts are.
        width: tokens in a row: of a padded text, or all tokens of a packed batch.
        first: first adapted layer, or None to move texts before the encoder.
    """
    order = sorted({name for names in adapters for name in names}, key=lambda n: n or "")
    pairs = [(name, row) for name in order for row, names in enumerate(adapters) if name in names]
    packed = texts.cu_seq_lens is not None
    sizes = texts.host_lengths.tolist() if packed else [width] * len(adapters)
    stretches: list[Stretch] = []
    end = 0
    for name, row in pairs:
        start, end = end, end + sizes[row]
        if stretches and stretches[-1][0] == name:
            start = stretches.pop()[1]
        stretches.append((name, start, end))
    places = {pair: place for place, pair in enumerate(pairs)}
    plan = Plan(stretches, places=places, width=0 if packed else width)
    rows = [row for _, row in pairs]
    if rows != list(range(len(adapters))):
        _moves(plan, rows, texts, width)
        plan.first = first
    return plan


def _moves(plan: Plan, rows: list[int], texts: Texts, width: int) -> None:
    """Fill in where the plan's texts come from: found on the host, used where the texts are."""
    given = texts.mask if texts.cu_seq_lens is None else texts.cu_seq_lens
    assert given is not None
    source = torch.tensor(rows)
    plan.source = moved_to(source, given)
    plan.size = len(given)
    if texts.cu_seq_lens is not None:
        plan.size = width
        lengths = texts.host_lengths.long()
        moved = lengths[source]
        starts = (lengths.cumsum(0) - lengths)[source]
        ends = moved.cumsum(0)
        inner = torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - moved, moved)
        plan.tokens = moved_to(torch.repeat_interleave(starts, moved) + inner, given)
        plan.host = cumulative(moved)
        plan.cu_seq_lens = moved_to(plan.host, given)


def parts_of(plan: Plan, texts: Texts, width: int) -> list[Plan]:
    """The plan as one plan for each adapter, for encoders that cannot take several at once."""
    assert plan.places is not None
    rows: dict[str | None, list[int]] = {}
    for name, row in plan.places:
        rows.setdefault(name, []).append(row)
    parts = []
    for name, own in rows.items():
        part = Plan([(name, 0, 0)])
        _moves(part, own, texts, width)
        parts.append(part)
    return parts


def move(value: Any, plan: Plan, *, beside: bool = False) -> Any:
    """Sort and copy the texts of a tensor (or of those in a tuple, list or dict).

    What has no dimension of texts (rotary tables, a window's reach) is left as it is.

    Args:
        value: the tensor.
        plan: where its texts go.
        beside: it goes to a layer beside the states. For a single text (1, T, T) may then be one
            for all texts (DeBERTa's relative positions): it is left, since copies of that text
            share it either way.
    """
    if isinstance(value, (tuple, list)):
        return type(value)(move(v, plan, beside=beside) for v in value)
    if isinstance(value, dict):
        return {key: move(v, plan, beside=beside) for key, v in value.items()}
    if not isinstance(value, Tensor) or plan.source is None:
        return value
    if plan.tokens is not None:
        by_token = value.dim() >= 2 and value.shape[:2] == (1, plan.size)
        return value.index_select(1, plan.tokens) if by_token else value
    if beside and plan.size == 1 and value.dim() >= 3:
        return value
    by_text = value.dim() >= 3 or (value.dim() == 2 and not value.is_floating_point())
    return value.index_select(0, plan.source) if by_text and len(value) == plan.size else value
