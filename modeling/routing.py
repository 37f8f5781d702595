# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Each row through its own PEFT adapter, in one encoder pass, in training too.

PEFT's layers own the weights; their class is exchanged for a subclass that reads a plan: which
stretch of the batch goes through which adapter. The base layer runs once on everything, then each
stretch gets its own low-rank update. PEFT itself mixes adapters in evaluation only and by gathering
rows in every layer; here rows are sorted once, before the first adapted layer, which is also where
a text wanted by several adapters is copied: the layers below see it once.

A layer that stretches of LoRA cannot split (DoRA, IA3) runs its own forward stretch by stretch. An
encoder that applies an adapted layer to something else than the batch's tokens (DeBERTa's relative
positions) is run once per adapter.

Shapes: `N` texts of the caller, `M` texts after sorting and copying, `P` and `Q` their tokens.
"""

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .packing import Texts, cumulative

try:
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import save_file
except ImportError:
    peft = None


class NotRoutable(RuntimeError):
    """An adapted layer was applied to something else than the tokens of the batch."""


@dataclass
class Plan:
    """Which stretch of the tokens goes through which adapter, and which texts move for that.

    Args:
        stretches: (adapter or None, first token, last token + 1), over (rows x tokens) flattened.
            One stretch stands for everything, whatever its length.
        source: (M,) the caller's text that each text is, or None when nothing moves.
        tokens: packed: (Q,) the caller's token that each token is.
        cu_seq_lens: packed: (M + 1,).
        first: layer before which texts are sorted and copied; None: before the encoder.
        size: texts of the caller (padded) or tokens (packed): what tells a batch's tensors.
        places: where (adapter, the caller's text) stands; None when nothing moves.
    """

    stretches: list[tuple[str | None, int, int]]
    source: Tensor | None = None
    tokens: Tensor | None = None
    cu_seq_lens: Tensor | None = None
    first: int | None = None
    size: int = 0
    places: dict[tuple[str | None, int], int] | None = None


_state: dict[str, Plan | None] = {"plan": None}


@contextmanager
def routed(plan: Plan | None) -> Iterator[None]:
    """Adapted layers follow `plan` inside."""
    before, _state["plan"] = _state["plan"], plan
    try:
        yield
    finally:
        _state["plan"] = before


def checkpoint_contexts() -> tuple[Any, Any]:
    """For torch's checkpointing: the recomputation in backward follows the plan of its forward."""
    return routed(_state["plan"]), routed(_state["plan"])


class Routed:
    """Goes before a PEFT layer class: follows the plan, or is that layer where there is none."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out); ids for an embedding layer."""
        plan = _state["plan"]
        layer: Any = self
        if plan is None:
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if layer.merged:
            raise ValueError(f"adapters {layer.merged_adapters} are merged; unmerge them to route")
        shape = x.shape if not x.is_floating_point() else x.shape[:-1]
        stretches = plan.stretches
        if len(stretches) == 1:
            stretches = [(stretches[0][0], 0, shape.numel())]
        elif stretches[-1][2] != shape.numel():
            raise NotRoutable(f"{shape.numel()} tokens, planned for {stretches[-1][2]}")
        if any(name is not None and not _is_plain(layer, name) for name, _, _ in stretches):
            return self._each(x, shape, stretches, *args, **kwargs)
        return _update(layer, x, layer.base_layer(x, *args, **kwargs), stretches)

    def _each(
        self, x: Tensor, shape: torch.Size, stretches: list, *args: Any, **kwargs: Any
    ) -> Tensor:
        """PEFT's own forward for each stretch: any kind of adapter, one call each."""
        flat = x.reshape(1, -1) if not x.is_floating_point() else x.reshape(1, -1, x.shape[-1])
        layer: Any = self
        before, parts = layer._active_adapter, []
        try:
            for name, start, stop in stretches:
                layer._active_adapter = [] if name is None else [name]
                part = flat[:, start:stop]
                parts.append(super().forward(part, *args, **kwargs))  # pyright: ignore
        finally:
            layer._active_adapter = before
        return torch.cat(parts, dim=1).view(*shape, -1)


def _is_plain(layer: Any, name: str) -> bool:
    """Plain LoRA on a linear layer, or no adapter of this name here."""
    if name not in getattr(layer, "lora_A", {}):
        held = [getattr(layer, part) for part in layer.adapter_layer_names]
        return not any(name in part for part in held)
    linear = isinstance(layer.get_base_layer(), nn.Linear)
    return linear and name not in layer.lora_variant


def _update(layer: Any, x: Tensor, result: Tensor, stretches: list) -> Tensor:
    """Result + B A dropout(x) * scaling, each stretch with its own A and B (arXiv:2106.09685)."""
    flat, out = x.reshape(-1, x.shape[-1]), result.reshape(-1, result.shape[-1])
    held = getattr(layer, "lora_A", {})
    parts = []
    for name, start, stop in stretches:
        part = out[start:stop]
        if name in held:
            a, b, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
            inner = layer.lora_dropout[name](flat[start:stop].to(a.weight.dtype))
            if not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):
                part.addmm_(a(inner), b.weight.T, alpha=scaling)  # in place: `result` is ours
                if b.bias is not None:
                    part.add_(b.bias, alpha=scaling)
                continue
            part = part + (b(a(inner)) * scaling).to(part.dtype)
        parts.append(part)
    if not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):
        return result
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(result.shape)


@cache
def _routed_class(kind: type) -> type:
    return type(f"Routed{kind.__name__}", (Routed, kind), {})


# ---- plans ----


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
    sizes = texts.lengths.tolist() if packed else [width] * len(adapters)
    stretches: list[tuple[str | None, int, int]] = []
    end = 0
    for name, row in pairs:
        start, end = end, end + sizes[row]
        if stretches and stretches[-1][0] == name:
            start = stretches.pop()[1]
        stretches.append((name, start, end))
    plan = Plan(stretches, places={pair: place for place, pair in enumerate(pairs)})
    rows = [row for _, row in pairs]
    if rows != list(range(len(adapters))):
        _moves(plan, rows, texts, width)
        plan.first = first
    return plan


def _moves(plan: Plan, rows: list[int], texts: Texts, width: int) -> None:
    """Fill in where the plan's texts come from."""
    given = texts.mask if texts.cu_seq_lens is None else texts.cu_seq_lens
    assert given is not None
    plan.source = torch.tensor(rows, device=given.device)
    plan.size = len(given)
    if texts.cu_seq_lens is not None:
        plan.size = width
        lengths = texts.lengths.long()
        moved = lengths[plan.source]
        starts = texts.cu_seq_lens[:-1].long()[plan.source]
        ends = moved.cumsum(0)
        inner = torch.arange(int(ends[-1]), device=given.device)
        inner = inner - torch.repeat_interleave(ends - moved, moved)
        plan.tokens = torch.repeat_interleave(starts, moved) + inner
        plan.cu_seq_lens = cumulative(moved)


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


def move(value: Any, plan: Plan) -> Any:
    """Sort and copy the texts of a tensor (or of those in a tuple, list or dict).

    What has no dimension of texts (rotary tables, a window's reach) is left as it is.
    """
    if isinstance(value, (tuple, list)):
        return type(value)(move(v, plan) for v in value)
    if isinstance(value, dict):
        return {key: move(v, plan) for key, v in value.items()}
    if not isinstance(value, Tensor) or plan.source is None:
        return value
    if plan.tokens is not None:
        by_token = value.dim() >= 2 and value.shape[:2] == (1, plan.size)
        return value.index_select(1, plan.tokens) if by_token else value
    by_text = value.dim() >= 3 or (value.dim() == 2 and not value.is_floating_point())
    return value.index_select(0, plan.source) if by_text and len(value) == plan.size else value


def layers_of(encoder: nn.Module, count: int) -> nn.ModuleList | None:
    """The encoder's layers: the list of `count` modules with the shortest path; None if none is."""
    found = [
        (name.count("."), name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return min(found, key=lambda entry: entry[:2])[2] if found else None


def first_adapted_layer(encoder: PreTrainedModel) -> int | None:
    """Number of the first layer with an adapter; None if something before the layers has one."""
    layers = layers_of(encoder, encoder.config.num_hidden_layers)
    if layers is None:
        return None
    numbers = {id(m): i for i, layer in enumerate(layers) for m in layer.modules()}
    adapted = [numbers.get(id(m)) for m in encoder.modules() if isinstance(m, Routed)]
    return None if None in adapted else min(adapted)  # pyright: ignore


def watch_layers(encoder: PreTrainedModel) -> None:
    """Let the layers move their texts as the plan says; once per encoder."""
    layers = layers_of(encoder, encoder.config.num_hidden_layers)
    for number, layer in enumerate(layers or []):
        if not getattr(layer, "_polyhead_watched", False):
            layer.register_forward_pre_hook(_mover(number), with_kwargs=True)
            layer._polyhead_watched = True  # pyright: ignore


def _mover(number: int) -> Callable:
    def move_inputs(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Move the states once, before the first adapted layer, and all else before every one."""
        plan = _state["plan"]
        if plan is None or plan.source is None or plan.first is None or number < plan.first:
            return None
        moved = {k: v if k == "hidden_states" else move(v, plan) for k, v in kwargs.items()}
        if plan.cu_seq_lens is not None:
            moved |= {k: plan.cu_seq_lens for k in kwargs if k.startswith("cu_seq_lens")}
        states = args[0] if args else kwargs["hidden_states"]
        if number == plan.first:
            states = move(states, plan)
        if args:
            return (states, *move(args[1:], plan)), moved
        return (), {**moved, "hidden_states": states}

    return move_inputs


# ---- adapters in and out of an encoder ----


def require_peft() -> None:
    """Raise ImportError with what to type when peft is missing."""
    if peft is None:
        raise ImportError("this model has adapters; type: pip install peft")


def inject(encoder: PreTrainedModel, name: str, config: Any, state: dict | None = None) -> None:
    """Put an adapter into the encoder's layers.

    Args:
        encoder: the encoder; its own weights stay as they are.
        name: name of the adapter.
        config: a peft config.
        state: weights in PEFT's file format, or None for new ones.

    Raises:
        ImportError: peft is missing.
        ValueError: the name is taken, another kind of adapter is there, or weights do not fit;
            the encoder is left as it was.
    """
    require_peft()
    held = getattr(encoder, "peft_config", {})
    if name in held:
        raise ValueError(f"adapter {name!r} exists already; the encoder has: {', '.join(held)}")
    kinds = {other.peft_type for other in held.values()}
    if kinds and config.peft_type not in kinds:
        raise ValueError(f"adapter {name!r} is {config.peft_type}; those here are {kinds.pop()}")
    trainable = {n for n, p in encoder.named_parameters() if p.requires_grad}
    with warnings.catch_warnings():  # that there are several adapters is the point
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        peft.inject_adapter_in_model(config, encoder, adapter_name=name)  # pyright: ignore
    for module in encoder.modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, Routed):
            module.__class__ = _routed_class(type(module))
    for key, parameter in encoder.named_parameters():
        new = f".{name}." in key or key.endswith(f".{name}")
        parameter.requires_grad_(
            new or key.replace(".base_layer.", ".") in trainable or key in trainable
        )
    watch_layers(encoder)
    if state is not None:
        try:
            found = peft.set_peft_model_state_dict(encoder, state, adapter_name=name)  # pyright: ignore
        except RuntimeError as error:
            remove(encoder, name)
            raise ValueError(f"adapter {name!r} does not fit this encoder: {error}") from error
        missing = [k for k in found.missing_keys if f".{name}." in k or k.endswith(f".{name}")]
        if found.unexpected_keys or missing:
            remove(encoder, name)
            odd = [*found.unexpected_keys, *missing][:3]
            raise ValueError(f"adapter {name!r} does not fit this encoder: {', '.join(odd)}")


def remove(encoder: PreTrainedModel, name: str) -> None:
    """Take an adapter out; the last one takes PEFT's layers with it."""
    for path, module in list(encoder.named_modules()):
        if not isinstance(module, Routed):
            continue
        layer: Any = module
        layer.delete_adapter(name)
        if not any(len(getattr(layer, part)) for part in layer.adapter_layer_names):
            parent, _, child = path.rpartition(".")
            setattr(encoder.get_submodule(parent), child, layer.get_base_layer())
    del encoder.peft_config[name]


def adapter_state(encoder: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """An adapter's weights with the keys of PEFT's files, relative to the plain encoder."""
    state = peft.get_peft_model_state_dict(encoder, adapter_name=name)  # pyright: ignore
    return {f"base_model.model.{key}": value.contiguous() for key, value in state.items()}


def plain_state(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A state dict as if there were no adapters: their weights out, base layers under own names."""
    layers = [f"{n}." for n, m in model.named_modules() if isinstance(m, Routed)]
    plain = {}
    for key, value in state.items():
        owner = next((path for path in layers if key.startswith(path)), None)
        if owner is None:
            plain[key] = value
        elif key.startswith(f"{owner}base_layer."):
            plain[owner + key.removeprefix(f"{owner}base_layer.")] = value
    return plain


def load_plain(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook of load_state_dict: weights saved without adapters into a model that has them."""
    for path, module in model.named_modules():
        if isinstance(module, Routed):
            for key in [k for k in state if k.startswith(f"{prefix}{path}.")]:
                rest = key.removeprefix(f"{prefix}{path}.")
                if rest in ("weight", "bias"):
                    state[f"{prefix}{path}.base_layer.{rest}"] = state.pop(key)


def save_adapter(encoder: PreTrainedModel, name: str, folder: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as PEFT does."""
    os.makedirs(folder, exist_ok=True)
    state = {k: v.detach().cpu() for k, v in adapter_state(encoder, name).items()}
    save_file(state, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    config = copy.copy(encoder.peft_config[name])
    config.inference_mode = True
    config.base_model_name_or_path = encoder.config.name_or_path or None
    config.save_pretrained(folder)


def load_adapter(encoder: PreTrainedModel, name: str, repo: str, **hub: Any) -> None:
    """Read `adapters/<name>` of a folder or Hub repository into the encoder.

    Raises:
        ImportError: peft is missing.
        ValueError: the adapter does not fit the encoder.
    """
    require_peft()
    place = f"adapters/{name}"
    config = peft.PeftConfig.from_pretrained(repo, subfolder=place, **hub)  # pyright: ignore
    state = peft.load_peft_weights(repo, device="cpu", subfolder=place, **hub)  # pyright: ignore
    if name in getattr(encoder, "peft_config", {}):
        peft.set_peft_model_state_dict(encoder, state, adapter_name=name)  # pyright: ignore
    else:
        inject(encoder, name, config, state)
