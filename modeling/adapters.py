# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""PEFT adapters in and out of an encoder, and to and from files in PEFT's format.

The encoder keeps its class and its own weights: PEFT's layers take the place of some of its layers,
and a state dict without them is always at hand. How rows find their adapter is `routing.py`.
"""

import copy
import os
import warnings
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .routing import Routed, route

try:
    import peft
    from safetensors.torch import save_file
except ImportError:
    peft = None


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
        raise ValueError(
            f"adapter {name!r} is {config.peft_type.value}; those here are {kinds.pop().value}"
        )
    modules = {part for path, _ in encoder.named_modules() for part in path.split(".")}
    if name in modules:  # its parameters could not be told from the encoder's
        raise ValueError(f"adapter name {name!r} is that of a module in the encoder; take another")
    trainable = {n for n, p in encoder.named_parameters() if p.requires_grad}
    with warnings.catch_warnings():  # that there are several adapters is the point
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        peft.inject_adapter_in_model(config, encoder, adapter_name=name)  # pyright: ignore
    route(encoder)
    for key, parameter in encoder.named_parameters():
        new = f".{name}." in key or key.endswith(f".{name}")
        parameter.requires_grad_(
            new or key.replace(".base_layer.", ".") in trainable or key in trainable
        )
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
    encoder.__dict__.get("_polyhead_first", {}).pop(name, None)


def adapter_state(
    encoder: PreTrainedModel, name: str, state: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """An adapter's weights with the keys of PEFT's files, relative to the plain encoder.

    Args:
        encoder: the encoder.
        name: name of the adapter.
        state: the encoder's weights where they are not its own (gathered from several ranks).
    """
    state = peft.get_peft_model_state_dict(encoder, state, adapter_name=name)  # pyright: ignore
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


def save_adapter(
    encoder: PreTrainedModel, name: str, folder: str, state: dict[str, Tensor] | None = None
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as PEFT does."""
    os.makedirs(folder, exist_ok=True)
    weights = {k: v.detach().cpu() for k, v in adapter_state(encoder, name, state).items()}
    save_file(weights, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    config = copy.copy(encoder.peft_config[name])
    config.inference_mode = True
    config.base_model_name_or_path = encoder.config.name_or_path or None
    config.save_pretrained(folder)


def load_adapter(encoder: PreTrainedModel, name: str, repo: str, **hub: Any) -> None:
    """Read `adapters/<name>` of a folder or Hub repository into the encoder.

    Args:
        encoder: the encoder.
        name: name of the adapter.
        repo: folder or Hub id.
        hub: `revision`, `subfolder` of the model in the repository, and the like.

    Raises:
        ImportError: peft is missing.
        ValueError: the adapter does not fit the encoder.
    """
    require_peft()
    place = "/".join(part for part in (hub.pop("subfolder", ""), "adapters", name) if part)
    config = peft.PeftConfig.from_pretrained(repo, subfolder=place, **hub)  # pyright: ignore
    state = peft.load_peft_weights(repo, device="cpu", subfolder=place, **hub)  # pyright: ignore
    if name in getattr(encoder, "peft_config", {}):
        peft.set_peft_model_state_dict(encoder, state, adapter_name=name)  # pyright: ignore
    else:
        inject(encoder, name, config, state)
