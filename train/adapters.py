"""From a recipe's `adapter:` to PEFT adapters on the encoder, one per task or shared.

Targets are written out as full module names: PEFT's `layers_to_transform` finds layers by a pattern
that some encoders' names do not fit, and a list of names in adapter_config.json says what it means.
"""

from collections.abc import Iterator
from typing import Any

import peft
from torch import nn

from ..modeling.modeling_polyhead import PolyheadModel
from ..modeling.routing import Routed, layers_of

KINDS = {"lora": peft.LoraConfig, "ia3": peft.IA3Config}
OWN_KEYS = ("name", "type", "layers")  # of `adapter:` beside the fields of the peft config


def adapter_name(task: str, adapter: dict[str, Any] | str | None) -> str | None:
    """The adapter that a task's rows go through: its own, a named one, or none."""
    return adapter.get("name", task) if isinstance(adapter, dict) else adapter


def adapter_faults(adapters: dict[str, dict[str, Any] | str | None]) -> list[str]:
    """What is wrong with the `adapter:` sections, by task.

    Args:
        adapters: task to its section.
    """
    faults = []
    defined: dict[str, tuple[str, dict[str, Any]]] = {}
    for task, section in adapters.items():
        key = f"tasks.{task}.adapter"
        if not isinstance(section, dict):
            continue
        name, rest = (
            str(adapter_name(task, section)),
            {k: v for k, v in section.items() if k != "name"},
        )
        if name in defined and defined[name][1] != rest:
            faults.append(
                f"{key}: {name!r} is defined by {defined[name][0]} with other options; "
                "write the name alone to share it"
            )
        defined.setdefault(name, (task, rest))
        faults += [f"{key}{fault}" for fault in _section_faults(section)]
    for task, section in adapters.items():
        if isinstance(section, str) and section not in defined:
            known = ", ".join(defined) or "none"
            faults.append(
                f"tasks.{task}.adapter: there is no adapter {section!r}; defined: {known}"
            )
    kinds = {
        section.get("type", "lora") for section in adapters.values() if isinstance(section, dict)
    }
    if len(kinds) > 1:
        faults.append(f"tasks: adapters of several types ({', '.join(sorted(kinds))}); take one")
    return faults


def _section_faults(section: dict[str, Any]) -> list[str]:
    kind = section.get("type", "lora")
    if kind not in KINDS:
        return [f".type: {kind!r}; allowed: {', '.join(KINDS)}"]
    faults = []
    layers = section.get("layers")
    if layers is not None and _layer_numbers(layers, 1000) is None:
        faults.append(f".layers: {layers!r}; write 'top 2' or a list of layer numbers")
    try:
        KINDS[kind](**{k: v for k, v in section.items() if k not in OWN_KEYS})
    except (TypeError, ValueError) as error:
        faults.append(f": {error}")
    return faults


def _layer_numbers(layers: Any, count: int) -> list[int] | None:
    """`top 2` -> the last two of `count` layers; a list of numbers as it is; None: not valid."""
    if isinstance(layers, str):
        word, _, number = layers.partition(" ")
        valid = word == "top" and number.isdigit() and int(number) > 0
        return list(range(count))[-int(number) :] if valid else None
    whole = isinstance(layers, list) and all(isinstance(i, int) for i in layers)
    return layers if whole and all(0 <= i < count for i in layers) else None


def attach_adapters(model: PolyheadModel, adapters: dict[str, dict[str, Any] | str | None]) -> None:
    """Put the adapters of a recipe on a model, named as their task unless shared.

    Args:
        model: the model; its tasks are the keys of `adapters`.
        adapters: task to its section; see `adapter_faults`.

    Raises:
        ValueError: a section does not fit the encoder (layers, target modules).
    """
    readers: dict[str, list[str]] = {}
    for task, section in adapters.items():
        name = adapter_name(task, section)
        if name is not None:
            readers.setdefault(name, []).append(task)
    sections = {adapter_name(t, s): s for t, s in adapters.items() if isinstance(s, dict)}
    for name, tasks in sorted(readers.items()):
        model.attach_adapter(name, peft_config(model, sections[name]), tasks)


def is_adapter_weight(model: PolyheadModel, name: str) -> bool:
    """Whether a parameter of the encoder, by name, belongs to an adapter."""
    parts = name.split(".")
    return any(adapter in parts for adapter in model.loaded_adapters)


def _linears(encoder: nn.Module) -> Iterator[tuple[str, Any]]:
    """Linear layers by the name they have in the plain encoder, adapted already or not."""
    adapted = ""
    for name, module in encoder.named_modules():
        if adapted and name.startswith(adapted):
            continue  # what PEFT put inside
        adapted = f"{name}." if isinstance(module, Routed) else ""
        if isinstance(module, (nn.Linear, Routed)):
            yield name, module


def peft_config(model: PolyheadModel, section: dict[str, Any]) -> Any:
    """A peft config whose targets are full names of modules in the encoder's layers.

    Raises:
        ValueError: there are no such layers or modules.
    """
    encoder, count = model.encoder, model.encoder.config.num_hidden_layers
    options = {k: v for k, v in section.items() if k not in OWN_KEYS}
    layers = layers_of(encoder, count)
    if layers is None:
        if "layers" in section:
            raise ValueError(f"adapter layers: {encoder.config.model_type} has no list of layers")
        return KINDS[section.get("type", "lora")](**{"target_modules": "all-linear", **options})
    numbers = _layer_numbers(section.get("layers", list(range(count))), count)
    if numbers is None:
        raise ValueError(
            f"adapter layers: {section['layers']!r}; the encoder has layers 0-{count - 1}"
        )
    inside = {id(m) for i in numbers for m in layers[i].modules()}
    linear = [name for name, m in _linears(encoder) if id(m) in inside]
    wanted = options.pop("target_modules", None)
    if isinstance(wanted, (list, tuple)):
        targets = [n for n in linear if any(n == w or n.endswith(f".{w}") for w in wanted)]
    elif wanted in (None, "all-linear"):
        targets = linear
    else:
        raise ValueError("adapter target_modules: write a list of module names")
    if not targets:
        names = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(f"adapter target_modules: {wanted}; the layers have: {', '.join(names)}")
    return KINDS[section.get("type", "lora")](target_modules=targets, **options)
