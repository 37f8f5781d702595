# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Low-rank weights of a layer's adapters, one after the other in memory: a product without a copy.

The parameters stay PEFT's own, only where their numbers lie changes: what trains or loads them in
place is in the stack at once, so nothing here can be out of date. Weights that were put elsewhere
since (`weight.data = ...`, another device) are told by their addresses, once a pass; that pass then
copies weights together as it needs them.

Shapes: `K` adapters of a stack, `G` of a group, `n` tokens, `r` rank.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .attention import no_compile
from .segments import Plan, SegmentGroup

# a group, its stack, the rows of its adapters there, as a tensor where they are no neighbours
Place = tuple[list[str], int, int, int, slice, Tensor | None]
# first and last token (0: all), adapters, (K, r, in), (K, r, out), rows to gather, scaling
Product = tuple[int, int, int, Tensor, Tensor, Tensor | None, float | Tensor]
ALIGNMENT = 64  # bytes, as torch aligns what it allocates
STACKS = "_polyhead_stacks"  # in a layer its own, in an encoder the layers that have some


@dataclass(frozen=True, eq=False)
class StackLayout:
    """Where a layer's adapters are; layers that have the same in the same order share one.

    Args:
        key: the adapters of each stack.
    """

    key: tuple[tuple[str, ...], ...]

    @cached_property
    def place_of(self) -> dict[str, tuple[int, int]]:
        """(stack, row) by adapter."""
        return {n: (k, row) for k, names in enumerate(self.key) for row, n in enumerate(names)}

    def find(self, group: SegmentGroup, tokens: int, device: torch.device) -> Place:
        """Where the adapters of a group are: neighbours, or rows to be gathered."""
        stack, first = self.place_of[group[0][0]]
        rows = [self.place_of[name][1] for name in group[0]]
        near = rows == list(range(first, first + len(rows)))
        gathered = None if near else torch.tensor(rows, device=device)
        names, start, stop = group
        stop = 0 if stop - start == tokens else stop
        return (names, start, stop, stack, slice(first, first + len(rows)), gathered)


@dataclass(frozen=True, eq=False)
class LoraStacks:
    """The adapters of a layer, those of one rank in one stack.

    Args:
        layout: which is where.
        downs: (K, r, in) by stack.
        ups: (K, r, out) by stack, each adapter's as PEFT has it, (out, r), transposed.
        addresses: of each adapter's A, and of its B.
    """

    layout: StackLayout
    downs: list[Tensor] = field(default_factory=list)
    ups: list[Tensor] = field(default_factory=list)
    addresses: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> "LoraStacks":
        """Itself: a copy of the model that has the same parameters has the same stacks."""
        return self

    def __reduce__(self) -> tuple:
        """A pickle has none: the parameters read from it lie where they are read to."""
        return _no_stacks, ()

    def hold(self, layer: Any, names: list[str]) -> bool:
        """The weights of these adapters, of those that the layer has, lie in the stacks."""
        for part, known in zip(("lora_A", "lora_B"), self.addresses, strict=True):
            table = layer._modules[part]._modules  # getattr would cost more
            for name in names:
                if name in table:
                    weight = table[name]._parameters["weight"]
                    if weight.data_ptr() != known.get(name):
                        return False
        return True

    def products(self, layer: Any, places: list[Place]) -> list[Product]:
        """What the groups of a plan multiply with in this layer."""
        made: list[Product] = []
        for names, start, stop, stack, rows, gathered in places:
            down, up = self.downs[stack], self.ups[stack]
            if len(names) < len(down) and gathered is None:
                down, up = down[rows], up[rows]
            factors = [layer.scaling[name] for name in names]
            factor: float | Tensor = factors[0]
            if factors.count(factor) < len(factors):
                factor = torch.tensor(factors, dtype=down.dtype, device=down.device).view(-1, 1, 1)
            made.append((start, stop, len(names), down, up, gathered, factor))
        return made


@no_compile
def stack_products(encoder: nn.Module, plan: Plan) -> None:
    """Fill in the plan's products: one loop over all layers, since what is cold costs the most."""
    segments = plan.segments if plan.count else [(plan.segments[0][0], 0, 0)]
    places: dict[StackLayout, list[Place]] = {}
    for layer in encoder.__dict__.get(STACKS, ()):
        stacks: LoraStacks | None = layer.__dict__.get(STACKS)
        if stacks is None or layer.training or layer.merged or layer.disable_adapters:
            continue
        dtype, layout = stacks.downs[0].dtype, stacks.layout
        if layer._modules["base_layer"].weight.dtype != dtype or not stacks.hold(layer, plan.names):
            continue
        if layout not in places:
            ranks = tuple(layer.r.get(name) for name, _, _ in segments)
            groups = plan.groups((ranks, False), segments)
            places[layout] = [
                layout.find(group, plan.count, stacks.downs[0].device) for group in groups
            ]
        if places[layout]:
            plan.products[layer] = stacks.products(layer, places[layout])


def add_products(x: Tensor, result: Tensor, products: list[Product]) -> Tensor:
    """Result + B A x * scaling, in place; (..., in), (..., out) -> (..., out).

    A x^T takes half the time of x A^T: few rows suit a matrix product better than few columns.
    """
    x, result = x.contiguous(), result.contiguous()
    width, outer = x.shape[-1], result.shape[-1]
    first, first_out = x.storage_offset(), result.storage_offset()
    for start, stop, count, down, up, rows, factor in products:
        n = ((stop - start) or x.numel() // width) // count
        # one view each, by strides: between two large products every call is cold
        at, at_out = first + start * width, first_out + start * outer
        part = x.as_strided((count, width, n), (n * width, 1, width), at)
        sums = result.as_strided((count, n, outer), (n * outer, outer, 1), at_out)
        if rows is not None:
            down, up = down.index_select(0, rows), up.mT.index_select(0, rows).mT
        inner = torch.bmm(down, part)
        if isinstance(factor, Tensor):
            inner, factor = inner * factor, 1.0
        sums.baddbmm_(inner.transpose(1, 2), up, alpha=factor)
    return result


def _no_stacks() -> None:
    return None


def line_up(encoder: nn.Module) -> None:
    """Let each layer's adapters lie one after the other in memory, in the order of their names.

    Where they do already nothing is written: another thread may be training them. Left where they
    are: weights whose size would shift the alignment of the next, since the last bit of a product
    depends on it; those that lie in memory of others (processes, FSDP); and layers of other kinds
    than LoRA without biases.
    """
    layouts: dict[tuple, StackLayout] = {}
    layers: list[nn.Module] = []
    for module in encoder.modules():
        before: LoraStacks | None = module.__dict__.get(STACKS)
        by_rank = _by_rank(module, before)
        if not by_rank:
            module.__dict__.pop(STACKS, None)
            continue
        key = tuple(map(tuple, by_rank))
        layers.append(module)
        if (
            before is not None
            and before.layout.key == key
            and before.hold(module, sum(by_rank, []))
        ):
            layouts.setdefault(key, before.layout)
        else:
            module.__dict__[STACKS] = _stack(module, layouts.setdefault(key, StackLayout(key)))
    encoder.__dict__[STACKS] = layers


def _by_rank(layer: Any, before: LoraStacks | None) -> list[list[str]]:
    """The adapters that can be stacked, those of one rank together."""
    if not isinstance(getattr(layer, "base_layer", None), nn.Linear):
        return []
    by_rank: dict[int, list[str]] = {}
    kinds = set()
    for name in sorted(getattr(layer, "lora_A", ())):
        weights = layer.lora_A[name].weight, layer.lora_B[name].weight
        plain = name not in layer.lora_variant and not layer.lora_bias[name]
        if plain and all(_movable(weight, before) for weight in weights):
            by_rank.setdefault(layer.r[name], []).append(name)
            kinds |= {(weight.dtype, weight.device) for weight in weights}
    return list(by_rank.values()) if len(kinds) == 1 else []


def _movable(weight: Tensor, before: LoraStacks | None) -> bool:
    """It may lie anywhere: its memory is its own, or that of the layer's stacks before."""
    if type(weight) is not nn.Parameter or weight.is_meta or not weight.is_contiguous():
        return False
    memory, stacks = weight.untyped_storage(), [] if before is None else before.downs + before.ups
    ours = {stack.untyped_storage().data_ptr() for stack in stacks}
    own = memory.nbytes() == weight.nbytes or memory.data_ptr() in ours
    shared = weight.device.type == "cpu" and weight.is_shared()
    return own and not shared and weight.nbytes % ALIGNMENT == 0


def _stack(layer: Any, layout: StackLayout) -> LoraStacks:
    """The layer's adapters put one after the other."""
    stacks = LoraStacks(layout)
    for names in layout.key:
        downs, ups = ([part[n].weight for n in names] for part in (layer.lora_A, layer.lora_B))
        stacks.downs.append(_in_a_row(downs))
        stacks.ups.append(_in_a_row(ups).mT)
        for weights, known in zip((downs, ups), stacks.addresses, strict=True):
            known |= {name: w.data_ptr() for name, w in zip(names, weights, strict=True)}
    return stacks


def _in_a_row(weights: list[Tensor]) -> Tensor:
    """(K, ...): the memory in which the weights lie from now on."""
    memory = torch.stack(weights).detach()
    for weight, part in zip(weights, memory, strict=True):
        weight.data = part
    return memory
