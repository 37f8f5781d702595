"""From a recipe's `adapter:` to PEFT adapters on the encoder, one per task or shared.

Targets are written out as full module names: PEFT's `layers_to_transform` finds layers by a pattern
that some encoders' names do not fit, and a list of names in adapter_config.json says what it means.
"""

import copy
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import peft
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..modeling.adapter_options import (
    NOT_READ,
    adapter_option_faults,
    check_adapter_options,
    make_peft_config,
)
from ..modeling.adapters import check_not_merged, read_adapter_files, remove, resolved_options
from ..modeling.checks import check_task_name
from ..modeling.modeling_polyhead import PolyheadModel
from ..modeling.routing import Routed, layers_of

logger = logging.getLogger(__name__)
KINDS = {"lora": peft.LoraConfig, "ia3": peft.IA3Config}
ALL_LINEAR = "all-linear"  # PEFT's word
LIST_OF_NAMES = "write a list of module names"
OWN_KEYS = ("name", "type", "layers", "path")  # of `adapter:` beside the fields of the peft config


def adapter_name(task: str, adapter: dict[str, Any] | str | None) -> str | None:
    """The adapter that a task's rows go through: its own, a named one, or none."""
    return adapter.get("name", task) if isinstance(adapter, dict) else adapter


def adapter_faults(
    adapters: dict[str, dict[str, Any] | str | None], known: Iterable[str] = ()
) -> list[str]:
    """What is wrong with the `adapter:` sections, by task.

    Args:
        adapters: task to its section.
        known: adapters that the model has already.
    """
    faults = []
    known = list(known)
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
        if name in known:
            faults.append(f"{key}: the model has an adapter {name!r}; write the name alone for it")
        faults += [f"{key}{fault}" for fault in _section_faults(section)]
    for task, section in adapters.items():
        if isinstance(section, str) and section not in {*defined, *known}:
            there = ", ".join([*defined, *known]) or "none"
            faults.append(
                f"tasks.{task}.adapter: there is no adapter {section!r}; defined: {there}"
            )
    kinds = {
        str(section.get("type", "lora"))
        for section in adapters.values()
        if isinstance(section, dict)
    }
    if len(kinds) > 1:
        faults.append(f"tasks: adapters of several types ({', '.join(sorted(kinds))}); take one")
    return faults


def _section_faults(section: dict[str, Any]) -> list[str]:
    try:
        if "name" in section:
            check_task_name(section["name"], "adapter name")
    except ValueError as error:
        return [f".name: {error}"]
    if "path" in section:
        if not isinstance(section["path"], str):
            return [f".path: {section['path']!r:.80}; write a folder or a Hub id"]
        more = sorted(set(section) - {"name", "path"})
        return [f".{', '.join(more)}: the adapter at path has its own; take it out"] if more else []
    kind = section.get("type", "lora")
    if not isinstance(kind, str) or kind not in KINDS:
        return [f".type: {kind!r}; allowed: {', '.join(KINDS)}"]
    faults = []
    layers = section.get("layers")
    if layers is not None and _layer_numbers(layers, 1000) is None:
        faults.append(f".layers: {layers!r}; write 'top 2' or a list of layer numbers")
    return faults + _option_faults(kind, {k: v for k, v in section.items() if k not in OWN_KEYS})


def _option_faults(kind: str, options: dict[str, Any]) -> list[str]:
    """What is wrong with the fields of the peft config."""
    faults = []
    idle = sorted(set(options) & set(NOT_READ))
    if idle:
        faults.append(f".{', '.join(idle)}: has no effect here; leave it out")
    options = {k: v for k, v in options.items() if k not in NOT_READ}
    if isinstance(options.get("target_modules"), str) and options["target_modules"] != ALL_LINEAR:
        faults.append(f".target_modules: {options['target_modules']!r:.80}; {LIST_OF_NAMES}")
        del options["target_modules"]
    wrong = adapter_option_faults({**options, "peft_type": kind.upper()})
    faults += [f": {fault}" for fault in wrong]
    if not wrong:
        try:
            KINDS[kind](**{k: v for k, v in options.items() if k != "feedforward_modules"})
        except (ImportError, TypeError, ValueError) as error:  # options that exclude each other
            faults.append(f": {error}")
    return faults


def _layer_numbers(layers: Any, count: int) -> list[int] | None:
    """`top 2` -> the last two of `count` layers; a list of numbers as it is; None: not valid."""
    if isinstance(layers, str):
        word, _, number = layers.partition(" ")
        valid = word == "top" and re.fullmatch("[1-9][0-9]{0,8}", number) is not None
        return list(range(count))[-int(number) :] if valid else None
    whole = isinstance(layers, list) and all(type(i) is int for i in layers)
    return layers if whole and layers and all(0 <= i < count for i in layers) else None


def attach_adapters(model: PolyheadModel, adapters: dict[str, dict[str, Any] | str | None]) -> None:
    """Put the adapters of a recipe on a model, named as their task unless shared.

    Args:
        model: the model; its tasks are the keys of `adapters`.
        adapters: task to its section; see `adapter_faults`.

    Raises:
        ValueError: a section does not fit the encoder (layers, target modules), or a task reads
            none of its adapter's layers.
    """
    readers: dict[str, list[str]] = {}
    for task, section in adapters.items():
        name = adapter_name(task, section)
        if name is not None:
            readers.setdefault(name, []).append(task)
    sections = {adapter_name(t, s): s for t, s in adapters.items() if isinstance(s, dict)}
    for name, tasks in sorted(readers.items()):
        if name not in sections:  # the model has it
            model.check_reach(name, tasks)
            for task in tasks:
                model.config.tasks[task].adapter = name
        elif "path" in sections[name]:
            config, state = read_adapter(model.encoder, sections[name]["path"])
            model.attach_adapter(name, config, tasks, state=state)
        else:
            model.attach_adapter(name, peft_config(model, sections[name]), tasks)


def read_adapter(encoder: PreTrainedModel, path: str) -> tuple[Any, dict[str, Tensor]]:
    """An adapter that PEFT saved, by whatever model it was trained on, for a plain encoder.

    Trained on `AutoModelFor...`, its keys begin with the encoder's place in that model (`bert.`);
    they are made relative to the encoder. A head saved with it (`modules_to_save`) is left out,
    with a warning: heads are not part of adapters here.

    Args:
        encoder: the encoder that it is for.
        path: folder or Hub id with adapter_config.json.

    Returns:
        its config, with the targets' full names, and its weights.

    Raises:
        ValueError: there is no adapter, or it is of a kind or for modules that are not here.
    """
    try:
        files = read_adapter_files(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"adapter path {path}: {str(error).splitlines()[0]}") from error
    kind = str(files.options.get("peft_type")).lower()
    if kind not in KINDS:
        raise ValueError(f"adapter path {path}: its type is {kind}; allowed: {', '.join(KINDS)}")
    weights = _adapter_weights(encoder, files.state, kind, path)
    state = {key: value for key, (_, value) in weights.items()}
    options = _fitted(encoder, files.options, state)
    check_adapter_options(f"adapter path {path}", options)
    return make_peft_config(options), state


def _adapter_weights(
    encoder: PreTrainedModel, state: dict[str, Tensor], kind: str, path: str
) -> dict[str, tuple[str, Tensor]]:
    """An adapter's weights by their key on the plain encoder, each with its module's name."""
    prefix = f"{encoder.base_model_prefix}."
    here, weights, odd = dict(_linears(encoder)), {}, []
    for key, value in state.items():
        module, sign, rest = key.removeprefix("base_model.model.").partition(f".{kind}_")
        name = module if module in here else module.removeprefix(prefix)
        if not sign:
            odd.append(module.replace(".base_layer.", ".").removeprefix(prefix))
        elif name not in here:
            raise ValueError(f"adapter path {path}: the encoder has no linear layer {module}")
        else:
            weights[f"base_model.model.{name}{sign}{rest}"] = (name, value)
    names = {name.replace(".base_layer.", ".") for name, _ in encoder.named_parameters()}
    clashing = [name for name in odd if name in names]
    if clashing:
        raise ValueError(
            f"adapter path {path}: it brings weights of the encoder itself (bias or "
            f"modules_to_save), which stays as it is here: {', '.join(clashing[:3])}"
        )
    if odd:
        logger.warning(f"{path}: left out what is no adapter: {', '.join(odd)}")
    return weights


def _fitted(
    encoder: PreTrainedModel, options: dict[str, Any], state: dict[str, Tensor]
) -> dict[str, Any]:
    """The options with full names of the encoder's modules, and nothing of another model."""
    of_another = ("modules_to_save", "task_type", "layers_to_transform", "layers_pattern")
    options = {k: v for k, v in options.items() if k not in (*of_another, "target_modules")}
    options = resolved_options(encoder, options, state) | {"inference_mode": False}
    prefix = f"{encoder.base_model_prefix}."
    for field in ("rank_pattern", "alpha_pattern"):
        if isinstance(options.get(field), dict):
            pattern = {re.sub(rf"^\^?{prefix}", "", str(k)): v for k, v in options[field].items()}
            options[field] = pattern
    return options


def _named(modules: list[str], endings: Iterable[str]) -> list[str]:
    """The modules whose name is, or ends with, one of `endings`."""
    return [n for n in modules if any(n == w or n.endswith(f".{w}") for w in endings)]


def blend_adapters(
    model: PolyheadModel,
    name: str,
    weights: dict[str, float],
    tasks: Iterable[str],
    *,
    combination_type: str = "linear",
) -> None:
    """A new LoRA adapter out of several, by PEFT's `add_weighted_adapter`, for the rows of `tasks`.

    Args:
        model: the model.
        name: name of the new adapter; it does not train.
        weights: adapter to its weight.
        tasks: the tasks whose rows go through it.
        combination_type: PEFT's; linear wants adapters of one rank.

    Raises:
        ValueError: a name is unknown or taken, or the adapters do not fit each other.
    """
    check_task_name(name)
    tasks, adapters = list(tasks), model.loaded_adapters
    unknown = sorted(set(weights) - set(adapters)) + sorted(set(tasks) - set(model.task_names))
    if unknown or name in adapters:
        raise ValueError(
            f"unknown: {', '.join(unknown)}" if unknown else f"adapter {name!r} exists already"
        )
    trains = {id(p) for p in model.encoder.parameters() if p.requires_grad}
    tuner = peft.LoraModel.__new__(peft.LoraModel)  # PEFT makes one only by injecting anew
    nn.Module.__init__(tuner)
    tuner.model, tuner.active_adapter = model.encoder, next(iter(weights))
    tuner.targeted_module_names, tuner.targeted_parameter_names = [], []
    tuner.add_weighted_adapter(
        list(weights),
        list(weights.values()),
        name,
        combination_type=combination_type,  # pyright: ignore[reportArgumentType]
    )
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(id(parameter) in trains)
    model.config.adapters = [*(model.config.adapters or []), name]
    for task in tasks:
        model.config.tasks[task].adapter = name


def merged_encoder(model: PolyheadModel, adapter: str | None) -> PreTrainedModel:
    """A copy of the encoder without PEFT's layers, one adapter added to its weights.

    Args:
        model: the model; it stays as it is.
        adapter: the adapter to merge; None for the bare encoder.

    Raises:
        ValueError: an adapter is merged already.
    """
    check_not_merged(model.encoder)
    encoder = copy.deepcopy(model.encoder)
    if adapter is not None:
        for module in encoder.modules():
            if isinstance(module, Routed):
                module.merge(safe_merge=True, adapter_names=[adapter])  # pyright: ignore
    for name in list(getattr(encoder, "peft_config", {})):
        remove(encoder, name)
    return encoder


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
        return KINDS[section.get("type", "lora")](**{"target_modules": ALL_LINEAR, **options})
    numbers = _layer_numbers(section.get("layers", list(range(count))), count)
    if numbers is None:
        raise ValueError(
            f"adapter layers: {section['layers']!r}; the encoder has layers 0-{count - 1}"
        )
    inside = {id(m) for i in numbers for m in layers[i].modules()}
    linear = [name for name, m in _linears(encoder) if id(m) in inside]
    modules = options.pop("target_modules", None)
    if isinstance(modules, (list, tuple)):
        targets = _named(linear, modules)
    elif modules in (None, ALL_LINEAR):
        targets = linear
    else:
        raise ValueError(f"adapter target_modules: {LIST_OF_NAMES}")
    if not targets:
        names = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(f"adapter target_modules: {modules}; the layers have: {', '.join(names)}")
    if options.get("feedforward_modules"):  # IA3 wants full names here too
        options["feedforward_modules"] = _named(targets, options["feedforward_modules"])
    return KINDS[section.get("type", "lora")](target_modules=targets, **options)
