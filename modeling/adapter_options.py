# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What the config of a PEFT adapter may say: in a recipe, in Python, in adapter_config.json.

PEFT has some fifty options. Allowed here are those of which a test says that an adapter trains with
them, is saved, and loaded again gives the same logits to the bit. The others must stand at PEFT's
default: they write into the encoder that all tasks share (`pissa`, `bias`), train parts of it
(`modules_to_save`), load code by name (`megatron_core`) or run in PEFT's own trainer only.

Names of modules that a config gives as regular expressions are matched by backtracking; here a
pattern may have no group that repeats, few groups and few repeats, so that none can hang.
"""

import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any

try:
    import peft
except ImportError:
    peft = None

TYPES = ("LORA", "IA3")
INITIAL_WEIGHTS = (True, False, "gaussian", "orthogonal")
LARGEST_RANK = 1 << 13
LARGEST_ALPHA = 1 << 20
MOST_NAMES = 1 << 16
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,512}")
REPEATED_GROUP = re.compile(r"\)\s*[*+?{]|\(\?")
REPEAT = re.compile(r"[*+?]|\{\d*,\d*\}")
LONGEST_PATTERN, MOST_GROUPS = 512, 3
MOST_REPEATS = 4  # the time grows with the name's length to the power of this
MOST_PATTERNS, MOST_REPEATS_OF_MANY = 16, 2  # PEFT matches each against each module's name
# Of PeftConfig: told about the adapter, or read by PEFT's own classes for models alone.
NOT_READ = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
)


def check_adapter_options(what: str, options: Any) -> None:
    """Raise ValueError with every fault of an adapter's config.

    Args:
        what: names it in the message: the file or the adapter.
        options: PEFT's fields by name, `peft_type` with them.

    Raises:
        ImportError: peft is missing.
        ValueError: the type is unknown, an option is not allowed, or is out of bounds.
    """
    faults = adapter_option_faults(options)
    if faults:
        raise ValueError(f"{what}: " + "; ".join(faults))


def adapter_option_faults(options: Any) -> list[str]:
    """What is wrong with an adapter's config; see `check_adapter_options`."""
    if peft is None:
        raise ImportError("this model has adapters; type: pip install peft")
    if not isinstance(options, dict):
        return [f"it is {_short(options)}; it must be an object with peft_type"]
    kind = options.get("peft_type")
    kind = getattr(kind, "value", kind)
    if kind not in TYPES:
        return [f"peft_type is {_short(kind)}; allowed: {', '.join(TYPES)}"]
    defaults = peft_config_class(kind)().to_dict()
    faults = [
        _fault(CHECKS[kind], defaults, name, value)
        for name, value in options.items()
        if name not in NOT_READ
    ]
    rank = options.get("r", 8)
    if options.get("init_lora_weights") == "orthogonal" and isinstance(rank, int) and rank % 2:
        faults.append(f"r is {rank}; init_lora_weights: orthogonal takes an even number")
    return [fault for fault in faults if fault]


def _fault(checks: dict[str, Any], defaults: dict[str, Any], name: str, value: Any) -> str | None:
    """What is wrong with one option."""
    if name in checks:
        fault = checks[name](value)
        return f"{name} is {_short(value)}; {fault}" if fault else None
    if _is_off(value) or (name in defaults and value == defaults[name]):
        return None
    if name in defaults:
        return f"{name} is not allowed: {REASONS.get(name, OTHER_REASON)}"
    return f"unknown option {_short(name)}; allowed: {', '.join(checks)}"


def peft_config_class(kind: str) -> Any:
    """PEFT's config class of a type, `LORA` or `IA3`."""
    assert peft is not None
    return {"LORA": peft.LoraConfig, "IA3": peft.IA3Config}[kind]


def make_peft_config(options: dict[str, Any]) -> Any:
    """The config object of checked options; what says nothing about the weights is left out."""
    kind = peft_config_class(options["peft_type"])
    names = {field.name for field in fields(kind)}
    drop = {"auto_mapping", "peft_type", "runtime_config"}
    return kind(**{k: v for k, v in options.items() if k in names - drop})


# ---- one option ----


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _is_off(value: Any) -> bool:
    """None, False and what is empty: an option of another release of PEFT that is not used."""
    return value is None or value is False or value in ([], {}, "")


def _whole(least: int, most: int) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        fits = type(value) is int and least <= value <= most
        return None if fits else f"a whole number from {least} to {most} is allowed"

    return check


def _number(least: float, most: float, words: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if number and least <= value <= most else f"{words} is allowed"

    return check


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false is allowed"


def _one_of(*allowed: Any) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        fits = any(type(value) is type(one) and value == one for one in allowed)
        return None if fits else f"allowed: {', '.join(map(str, allowed))}"

    return check


def _names(value: Any) -> str | None:
    """A list of module names, or one pattern."""
    if value is None or value == "all-linear":
        return None
    if isinstance(value, str):
        return pattern_fault(value)
    if not isinstance(value, (list, tuple, set, frozenset)) or len(value) > MOST_NAMES:
        return "a list of module names is allowed"
    odd = [name for name in value if not isinstance(name, str) or not NAME.fullmatch(name)]
    return f"{_short(odd[0])} is no module name" if odd else None


def _numbers_of_layers(value: Any) -> str | None:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    fits = all(n is None or (type(n) is int and 0 <= n < 1 << 12) for n in numbers)
    return None if fits else "a layer number or a list of them is allowed"


def _literal_names(value: Any) -> str | None:
    names = [value] if isinstance(value, str) else value
    if isinstance(names, str) or value is None:
        return None
    fits = isinstance(names, (list, tuple)) and all(
        isinstance(n, str) and NAME.fullmatch(n) for n in names
    )
    return None if fits else "a name or a list of names is allowed"


def _pattern(check: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    """Of rank_pattern and alpha_pattern: module names, or patterns of them, to numbers."""

    def check_all(value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, dict) or len(value) > MOST_NAMES:
            return "a mapping from module names to numbers is allowed"
        patterns = 0
        for key, number in value.items():
            if not isinstance(key, str):
                return f"{_short(key)} is no module name"
            literal = NAME.fullmatch(key.removeprefix("^"))
            patterns += not literal
            fault = None if literal else pattern_fault(key, MOST_REPEATS_OF_MANY)
            fault = fault or check(number)
            if fault or patterns > MOST_PATTERNS:
                return f"{_short(key)}: {fault or f'{MOST_PATTERNS} patterns are allowed'}"
        return None

    return check_all


def pattern_fault(pattern: str, most_repeats: int = MOST_REPEATS) -> str | None:
    """Why a regular expression over module names is refused; None if it is not.

    What is allowed ends after a number of steps that is a power of the name's length.
    """
    advice = "write a list of module names"
    if len(pattern) > LONGEST_PATTERN:
        return f"a pattern has up to {LONGEST_PATTERN} characters; {advice}"
    if REPEATED_GROUP.search(pattern) or pattern.count("(") > MOST_GROUPS:
        return f"up to {MOST_GROUPS} groups in a pattern, none repeated, are sure to end; {advice}"
    if len(REPEAT.findall(pattern)) > most_repeats:
        return f"up to {most_repeats} repeats in a pattern are sure to end soon; {advice}"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"it is no regular expression: {error}; {advice}"
    return None


_alpha = _number(math.ulp(0.0), LARGEST_ALPHA, f"a number above 0, up to {LARGEST_ALPHA},")
_rank = _whole(1, LARGEST_RANK)
CHECKS: dict[str, dict[str, Callable[[Any], str | None]]] = {
    "LORA": {
        "r": _rank,
        "lora_alpha": _alpha,
        "lora_dropout": _number(0.0, 1 - 2**-24, "a number in [0, 1)"),
        "target_modules": _names,
        "exclude_modules": _names,
        "layers_to_transform": _numbers_of_layers,
        "layers_pattern": _literal_names,
        "rank_pattern": _pattern(_rank),
        "alpha_pattern": _pattern(_alpha),
        "init_lora_weights": _one_of(*INITIAL_WEIGHTS),
        "use_rslora": _flag,
        "use_dora": _flag,
        "lora_bias": _flag,
        "fan_in_fan_out": _flag,
        "bias": _one_of("none"),
    },
    "IA3": {
        "target_modules": _names,
        "exclude_modules": _names,
        "feedforward_modules": _names,
        "fan_in_fan_out": _flag,
        "init_ia3_weights": _flag,
    },
}
_TRAINS = "it trains parts of the encoder, which all tasks share"
REASONS = {
    "modules_to_save": f"{_TRAINS}; heads are trained without it",
    "trainable_token_indices": _TRAINS,
    "layer_replication": "it changes the encoder, which all tasks share",
    "loftq_config": "it changes the encoder's weights, which all tasks share",
    "eva_config": "it begins from data that PEFT wants to be given",
    "corda_config": "it changes the encoder's weights, which all tasks share",
    "lora_ga_config": "it changes the encoder's weights, which all tasks share",
    "megatron_config": "it loads other code",
    "megatron_core": "it loads other code",
    "target_parameters": "name linear or embedding layers in target_modules",
}
OTHER_REASON = "no test says that it can be trained, saved and loaded; leave it out"
