# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Each row through its own PEFT adapter, in one encoder pass, in training too.

PEFT's layers own the weights; their class is exchanged for a subclass that reads a plan: which
segment of the batch goes through which adapter. The base layer runs once on everything, then each
segment gets its own low-rank update. PEFT itself mixes adapters in evaluation only and by gathering
rows in every layer; here rows are sorted once, before the first adapted layer, which is also where
a text wanted by several adapters is copied: the layers below see it once. Plans are made in
`segments.py`.

A layer that segments of LoRA cannot split (DoRA, IA3) runs its own forward segment by segment. An
encoder that applies an adapted layer to something else than the batch's tokens (DeBERTa's relative
positions) is run once per adapter.

A plan belongs to one call: it lies in a ContextVar, so that calls in other threads, or of other
models, do not see it. Without a plan (`model.encoder(...)` called by itself) a layer is its base
layer: the bare encoder.
"""

from collections.abc import Iterable
from contextvars import ContextVar, Token
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention import no_compile
from .segments import LayerSignature, Plan, Segment, SegmentGroup, move
from .stacks import add_products

try:
    from peft.tuners.tuners_utils import BaseTunerLayer
except ImportError:
    BaseTunerLayer = None


class NotRoutable(RuntimeError):
    """An adapted layer was applied to something else than the tokens of the batch."""


_PLAN: ContextVar[Plan | None] = ContextVar("polyhead_plan", default=None)
# What a PEFT layer that runs its own forward takes for its active adapters.
_ACTIVE: ContextVar[list[str] | None] = ContextVar("polyhead_active_adapters", default=None)


class Routing:
    """Adapted layers follow `plan` inside; entered again at each recomputation in backward."""

    def __init__(self, plan: Plan | None) -> None:
        self.plan = plan
        self.tokens: list[Token] = []

    def __enter__(self) -> None:
        self.tokens.append(_PLAN.set(self.plan))

    def __exit__(self, *_: object) -> None:
        _PLAN.reset(self.tokens.pop())


def checkpoint_contexts() -> tuple[Routing, Routing]:
    """For torch's checkpointing: the recomputation in backward follows the plan of its forward."""
    return Routing(_PLAN.get()), Routing(_PLAN.get())


class Routed:
    """Goes before a PEFT layer class: follows the plan; without one, it is its base layer."""

    def __reduce__(self) -> tuple:
        return _unpickled, (type(self).__bases__[1],), self.__dict__

    @property
    def active_adapter(self) -> Any:
        """The adapters that PEFT's own forward takes; in a call, those of the plan."""
        active = _ACTIVE.get()
        return super().active_adapter if active is None else active  # pyright: ignore

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out); ids for an embedding layer."""
        if torch.compiler.is_compiling():
            return self._uncompiled(x, *args, **kwargs)
        plan = _PLAN.get()
        layer: Any = self
        products = None if plan is None else plan.products.get(layer)
        if plan is None or products is None:
            return self._follow(plan, x, *args, **kwargs)
        if plan.count and x.numel() != plan.count * x.shape[-1]:
            raise NotRoutable(f"{tuple(x.shape)}, planned for {plan.count} tokens")
        return add_products(x, layer._modules["base_layer"](x, *args, **kwargs), products)

    @no_compile
    def _uncompiled(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._follow(_PLAN.get(), x, *args, **kwargs)

    def _follow(self, plan: Plan | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Weights gathered for this call, of whatever kind the adapters are."""
        layer: Any = self
        if plan is None:
            return layer.base_layer(x, *args, **kwargs)
        if layer.merged:
            raise ValueError(f"adapters {layer.merged_adapters} are merged; unmerge them to route")
        if layer.disable_adapters:  # PEFT's own switch
            return layer.base_layer(x, *args, **kwargs)
        if not any(has_adapter(layer, name) for name in plan.names):
            return layer.base_layer(x, *args, **kwargs)  # below the layers where texts are copied
        segments = _segments_of(plan, x)
        signature = _signature(layer, segments)
        if signature is None:
            return self._each(x, segments, *args, **kwargs)
        return _update(
            layer, x, layer.base_layer(x, *args, **kwargs), plan.groups(signature, segments)
        )

    def _each(self, x: Tensor, segments: list[Segment], *args: Any, **kwargs: Any) -> Tensor:
        """PEFT's own forward for each segment: any kind of adapter, one call each."""
        shape = _token_shape(x)
        flat = x.reshape(1, -1, *x.shape[len(shape) :])
        parts = []
        for name, start, stop in segments:
            active = _ACTIVE.set([] if name is None else [name])
            try:
                part = flat[:, start:stop]
                parts.append(super().forward(part, *args, **kwargs))  # pyright: ignore
            finally:
                _ACTIVE.reset(active)
        return torch.cat(parts, dim=1).view(*shape, -1)


def _token_shape(x: Tensor) -> torch.Size:
    """Shape without the features; an embedding layer is given ids, which have none."""
    return x.shape[:-1] if x.is_floating_point() else x.shape


def _segments_of(plan: Plan, x: Tensor) -> list[Segment]:
    """The plan's segments of these tokens."""
    count = _token_shape(x).numel()
    if not plan.count:
        return [(plan.segments[0][0], 0, count)]
    if plan.count != count:
        raise NotRoutable(f"{count} tokens, planned for {plan.count}")
    return plan.segments


def _signature(layer: Any, segments: list[Segment]) -> LayerSignature | None:
    """What decides the groups: each adapter's rank (None: not here); None for no plain LoRA."""
    ranks = tuple(getattr(layer, "r", {}).get(name) for name, _, _ in segments)
    if not any(ranks):  # IA3
        return None
    variants, linear = layer.lora_variant, isinstance(layer.base_layer, nn.Linear)
    if not linear or (variants and any(name in variants for name, _, _ in segments)):
        return None
    return ranks, any(layer.lora_bias.values())


def _update(layer: Any, x: Tensor, result: Tensor, groups: list[SegmentGroup]) -> Tensor:
    """Result + B A dropout(x) * scaling, each group with its own A and B (arXiv:2106.09685)."""
    if not groups:
        return result
    flat, out = x.reshape(-1, x.shape[-1]), result.reshape(-1, result.shape[-1])
    if len(groups) == 1 and groups[0][2] - groups[0][1] == len(flat):
        return _add_low_rank(layer, groups[0][0], flat, out).view(result.shape)
    parts: list[tuple[list[str], int]] = []
    end = 0
    for names, start, stop in groups:
        parts += [([], start - end), (names, stop - start)]
        end = stop
    parts = [part for part in (*parts, ([], len(flat) - end)) if part[1]]
    sizes = [size for _, size in parts]
    # split, not slices: the gradient of a slice is as large as the whole
    updated = [
        _add_low_rank(layer, names, x_part, part) if names else part
        for (names, _), x_part, part in zip(parts, flat.split(sizes), out.split(sizes), strict=True)
    ]
    if adds_in_place(x.device.type):
        return out.view(result.shape)
    return (updated[0] if len(updated) == 1 else torch.cat(updated)).view(result.shape)


def adds_in_place(device: str) -> bool:
    """Nothing needs what the base layer gave: the update may be added to it where it lies."""
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled(device)


def _add_low_rank(layer: Any, names: list[str], x: Tensor, out: Tensor) -> Tensor:
    """(n, out) + B A dropout(x) * scaling for n / K rows of each of K adapters."""
    inner, up, scaling = _factors(layer, names, x)
    grouped = out.view(len(names), -1, out.shape[-1])
    bias = layer.lora_B[names[0]].bias  # never in a group of several
    if adds_in_place(x.device.type):
        if bias is not None:
            grouped.add_(bias, alpha=scaling)
        if grouped.dtype == inner.dtype:
            return grouped.baddbmm_(inner.mT, up.mT, alpha=scaling)
        return grouped.add_(inner.mT @ up.mT, alpha=scaling)
    if bias is not None:
        grouped = grouped + bias * scaling
    if grouped.dtype == inner.dtype:
        return torch.baddbmm(grouped, inner.mT, up.mT, alpha=scaling).flatten(0, 1)
    return (grouped + (inner.mT @ up.mT).to(grouped.dtype) * scaling).flatten(0, 1)


def _factors(layer: Any, names: list[str], x: Tensor) -> tuple[Tensor, Tensor, float]:
    """A x^T (K, r, n / K) of equal parts of x, B (K, out, r), and the scaling of their product.

    A x^T takes half the time of x A^T: few rows are kinder to a matrix product than few columns.
    """
    # Lookups of modules cost as much as a small product; their tables do not.
    downs, ups = layer.lora_A._modules, layer.lora_B._modules
    down = torch.stack([downs[name]._parameters["weight"] for name in names])
    up = torch.stack([ups[name]._parameters["weight"] for name in names])
    parts = x.to(down.dtype).view(len(names), -1, x.shape[-1])
    if layer.training:
        drops = [layer.lora_dropout[name] for name in names]
        dropped = [drop(part) for drop, part in zip(drops, parts, strict=True)]
        parts = torch.stack(dropped) if len(dropped) > 1 else dropped[0].unsqueeze(0)
    scalings = [layer.scaling[name] for name in names]
    if scalings.count(scalings[0]) == len(scalings):
        return down @ parts.mT, up, scalings[0]
    scaling = torch.tensor(scalings, dtype=down.dtype, device=x.device).view(-1, 1, 1)
    return down @ parts.mT * scaling, up, 1.0


def layers_of(encoder: nn.Module, count: int) -> nn.ModuleList | None:
    """The encoder's layers: the list of `count` modules with the shortest path; None if none is."""
    lists = [
        (name.count("."), name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return min(lists, key=lambda entry: entry[:2])[2] if lists else None


def first_adapted_layer(encoder: PreTrainedModel, adapters: Iterable[str | None]) -> int | None:
    """Number of the first layer with one of these adapters; None if one lies before the layers."""
    known = encoder.__dict__.setdefault("_polyhead_first", {})
    for name in adapters:
        if name is not None and name not in known:
            known[name] = _first_layer(encoder, name)
    first = [known[name] for name in adapters if name is not None]
    return None if None in first or not first else min(first)


def _first_layer(encoder: PreTrainedModel, name: str) -> int | None:
    layers = layers_of(encoder, encoder.config.num_hidden_layers)
    numbers = {id(m): i for i, layer in enumerate(layers or []) for m in layer.modules()}
    adapted = [numbers.get(id(m)) for m in encoder.modules() if has_adapter(m, name)]
    return None if None in adapted or not adapted else min(adapted)  # pyright: ignore


def has_adapter(module: nn.Module, name: str) -> bool:
    """The module is a layer of this adapter."""
    parts: Any = module.adapter_layer_names if isinstance(module, Routed) else ()
    tables: Any = module._modules  # getattr would cost more
    return any(name in tables[part] for part in parts)


@cache
def _routed_class(kind: type) -> type:
    return type(f"Routed{kind.__name__}", (Routed, kind), {})


def _unpickled(kind: type) -> nn.Module:
    """An empty layer of a class that is made, and so cannot be named in a pickle."""
    return object.__new__(_routed_class(kind))


def route(encoder: PreTrainedModel) -> None:
    """Make the encoder's PEFT layers and its list of layers follow plans; may be called again."""
    for module in encoder.modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, Routed):  # pyright: ignore
            module.__class__ = _routed_class(type(module))
    layers = layers_of(encoder, encoder.config.num_hidden_layers)
    for number, layer in enumerate(layers or []):
        if not getattr(layer, "_polyhead_watched", False):
            # before what takes a layer's states: they are then in the order of the plan
            layer.register_forward_pre_hook(TextMover(number), prepend=True, with_kwargs=True)
            layer._polyhead_watched = True  # pyright: ignore


class TextMover:
    """Hook before a layer of the encoder: texts are sorted and copied as planned.

    Args:
        number: number of the layer, from 0.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    @no_compile
    def __call__(self, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Move the states once, before the first adapted layer, and all else before every one."""
        plan = _PLAN.get()
        if plan is None or plan.source is None or plan.first is None or self.number < plan.first:
            return None
        moved = {
            key: value if key == "hidden_states" else move(value, plan, beside=True)
            for key, value in kwargs.items()
        }
        if plan.cu_seq_lens is not None:
            moved |= {k: plan.cu_seq_lens for k in kwargs if k.startswith("cu_seq_lens")}
        states = args[0] if args else kwargs["hidden_states"]
        if self.number == plan.first:
            states = move(states, plan)
        if args:
            return (states, *move(args[1:], plan, beside=True)), moved
        return (), {**moved, "hidden_states": states}
