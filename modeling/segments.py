# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Which segment of a batch goes through which adapter, and which texts move for that.

A plan is made once for a forward; `routing.py` has the layers that follow it.

Shapes: `N` texts of the caller, `M` texts after sorting and copying, `P` and `Q` their tokens.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .packing import TextLayout, cumulative, moved_to

Segment = tuple[str | None, int, int]  # adapter, first token, last token + 1
SegmentGroup = tuple[list[str], int, int]  # adapters of equal parts, first token, last token + 1
LayerSignature = tuple[tuple[int | None, ...], bool]  # by segment: its adapter's rank; bias
ROWS_PER_ADAPTER = 4  # with more, one product for each adapter is faster than one for each row
FEW_RUNS = 2  # products of which are faster than one that reads the weights of each row


@dataclass
class Plan:
    """Which segment of the tokens goes through which adapter, and which texts move for that.

    Args:
        segments: (adapter or None, first token, last token + 1), over (rows x tokens) flattened.
            One segment stands for everything, whatever its length.
        source: (M,) the caller's text that each text is, or None when nothing moves.
        tokens: packed: (Q,) the caller's token that each token is.
        cu_seq_lens: packed: (M + 1,).
        host: packed: the same on the CPU.
        first: layer before which texts are sorted and copied; None: before the encoder.
        size: texts of the caller (padded) or tokens (packed): what tells a batch's tensors.
        position_of: where (adapter, the caller's text) stands; None when nothing moves.
        width: tokens of every text, where they are padded; 0 where they are packed.
        products: by layer, what `stacks.py` has ready for it; without, weights are gathered.
    """

    segments: list[Segment]
    source: Tensor | None = None
    tokens: Tensor | None = None
    cu_seq_lens: Tensor | None = None
    host: Tensor | None = None
    first: int | None = None
    size: int = 0
    position_of: dict[tuple[str | None, int], int] | None = None
    width: int = 0
    products: dict[nn.Module, list] = field(default_factory=dict)
    _groups: dict[LayerSignature, list[SegmentGroup]] = field(default_factory=dict)

    @cached_property
    def count(self) -> int:
        """Tokens of all segments; 0 where one stands for everything."""
        return self.segments[-1][2] if len(self.segments) > 1 else 0

    @cached_property
    def names(self) -> list[str]:
        """The adapters of the segments."""
        return [name for name, _, _ in self.segments if name is not None]

    def groups(self, signature: LayerSignature, segments: list[Segment]) -> list[SegmentGroup]:
        """Segments with an adapter in a layer, joined where one batched product can do several.

        Many small products cost more than their arithmetic. Neighbours of one length are the equal
        parts of one product; where that leaves several, the rows of a padded batch are, unless few
        adapters have many.
        """
        if signature in self._groups:
            return self._groups[signature]
        ranks, biased = signature
        adapted = [(*s, r) for s, r in zip(segments, ranks, strict=True) if r]
        groups: list[SegmentGroup] = []
        before = None
        for name, start, stop, rank in adapted:
            if not biased and before == (start, stop - start, rank):
                names, first, _ = groups.pop()
                groups.append(([*names, str(name)], first, stop))
            else:
                groups.append(([str(name)], start, stop))
            before = (stop, stop - start, rank)
        if len(groups) > FEW_RUNS and len({r for r in ranks if r}) == 1 and not biased:
            groups = self._by_row(adapted) or groups
        if self.count:  # else the lengths are those of one layer's input
            self._groups[signature] = groups
        return groups

    def _by_row(self, adapted: list[tuple[str | None, int, int, int]]) -> list[SegmentGroup]:
        """One group of the rows of a padded batch; none where they are too many, or not all."""
        first, last = adapted[0][1], adapted[-1][2]
        unit = self.width or last - first + 1  # of packed texts there is none
        counts = [(stop - start) // unit for _, start, stop, _ in adapted]
        whole = sum(counts) * unit == last - first
        if not whole or sum(counts) > ROWS_PER_ADAPTER * len(adapted):
            return []
        names = [str(n) for (n, *_), c in zip(adapted, counts, strict=True) for _ in range(c)]
        return [(names, first, last)]


def make_plan(
    adapters: list[list[str | None]], texts: TextLayout, *, width: int, first: int | None
) -> Plan:
    """Sort texts by adapter, copying those wanted by several.

    Args:
        adapters: the adapters that each text is wanted through; None for the bare encoder.
        texts: layout of the texts.
        width: tokens in a row: of a padded text, or all tokens of a packed batch.
        first: first adapted layer, or None to move texts before the encoder.
    """
    order = sorted({name for names in adapters for name in names}, key=lambda n: n or "")
    pairs = [(name, row) for name in order for row, names in enumerate(adapters) if name in names]
    packed = texts.cu_seq_lens is not None
    sizes = texts.host_lengths.tolist() if packed else [width] * len(adapters)
    segments: list[Segment] = []
    end = 0
    for name, row in pairs:
        start, end = end, end + sizes[row]
        if segments and segments[-1][0] == name:
            start = segments.pop()[1]
        segments.append((name, start, end))
    position_of = {pair: number for number, pair in enumerate(pairs)}
    plan = Plan(segments, position_of=position_of, width=0 if packed else width)
    rows = [row for _, row in pairs]
    if rows != list(range(len(adapters))):
        _moves(plan, rows, texts, width)
        plan.first = first
    return plan


def _moves(plan: Plan, rows: list[int], texts: TextLayout, width: int) -> None:
    """Fill in where the plan's texts come from: found on the host, used where the texts are."""
    layout = texts.mask if texts.cu_seq_lens is None else texts.cu_seq_lens
    assert layout is not None
    source = torch.tensor(rows)
    plan.source = moved_to(source, layout)
    plan.size = len(layout)
    if texts.cu_seq_lens is not None:
        plan.size = width
        lengths = texts.host_lengths.long()
        moved = lengths[source]
        starts = (lengths.cumsum(0) - lengths)[source]
        ends = moved.cumsum(0)
        inner = torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - moved, moved)
        plan.tokens = moved_to(torch.repeat_interleave(starts, moved) + inner, layout)
        plan.host = cumulative(moved)
        plan.cu_seq_lens = moved_to(plan.host, layout)


def parts_of(plan: Plan, texts: TextLayout, width: int) -> list[Plan]:
    """The plan as one plan for each adapter, for encoders that cannot take several at once."""
    assert plan.position_of is not None
    rows_of: dict[str | None, list[int]] = {}
    for name, row in plan.position_of:
        rows_of.setdefault(name, []).append(row)
    parts = []
    for name, rows in rows_of.items():
        part = Plan([(name, 0, 0)])
        _moves(part, rows, texts, width)
        parts.append(part)
    return parts


def moved_texts(plan: Plan | None, texts: TextLayout) -> TextLayout:
    """Where the texts are once moved as planned."""
    if plan is None or plan.source is None:
        return texts
    if plan.cu_seq_lens is not None:
        return TextLayout(cu_seq_lens=plan.cu_seq_lens, host=plan.host)
    assert texts.mask is not None
    return TextLayout(mask=texts.mask[plan.source])


def move(value: Any, plan: Plan, *, beside: bool = False) -> Any:
    """Sort and copy the texts of a tensor (or of those in a tuple, list or dict).

    What has no dimension of texts (rotary tables, the size of a window) is left as it is.

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
