# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What a config may say, checked before anything is made of it: a config.json may be anyone's."""

import json
import math
import re
from dataclasses import fields
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints

from torch import nn

TASK_NAME = re.compile(r"[a-z][a-z0-9_]*")
LARGEST_NUMBER = 1e9  # of an option that is a number
LARGEST_WIDTH = 1 << 20  # of a layer made by a number in the config alone
# What no encoder has; a config that asks for more would fill the memory before any weight is read.
# Several names for one thing: each family of encoders has its own.
LARGEST = {
    **dict.fromkeys(("hidden_size", "embedding_size", "dim", "d_model"), 1 << 17),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff"), 1 << 20),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers", "encoder_layers"), 1 << 12),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_heads"), 1 << 12),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "d_kv"), 1 << 14),
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 24,
    "type_vocab_size": 1 << 20,
}
MAY_BE_NONE_AT_ALL = ("max_position_embeddings", "type_vocab_size")  # 0 or -1 in some encoders
# transformers' configs are checked dataclasses of huggingface_hub; their errors are no ValueErrors
STRICT_ERROR: type[Exception] = import_module("huggingface_hub.errors").StrictDataclassError
CONFIG_ERRORS = (AttributeError, IndexError, KeyError, OverflowError, TypeError, STRICT_ERROR)
FORMAT_VERSION = 1  # of a saved folder; counted up when older code would read a new one wrongly
TYPES = {  # of the options of a PolyheadConfig
    **dict.fromkeys(("tasks", "adapter_hashes", "custom_pipelines", "auto_map", "experts"), dict),
    **dict.fromkeys(("id2label", "label2id"), dict),
    **dict.fromkeys(("task_names", "adapters", "architectures"), list),
    **dict.fromkeys(("tie_word_embeddings", "return_dict", "is_encoder_decoder"), bool),
    **dict.fromkeys(("trained_causal",), bool),
    "router": str,
    "initializer_range": float,
}
DTYPES = ("float32", "float16", "bfloat16", "float64")


def check_choice(what: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}; allowed: {', '.join(filter(None, allowed))}")


def check_task_name(name: str, what: str = "task name") -> None:
    """Raise ValueError unless `name` can be a task: a module name, an adapter name and a column.

    Names that are part of `lora_` are refused because PEFT finds an adapter's tensors by substring.
    """
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r}: use lower-case letters, digits and _, starting with a letter"
        )
    if name in "lora_":
        raise ValueError(f"{what} {name!r} is part of 'lora_', which names PEFT's parameters")
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"{what} {name!r} is an attribute of torch's ModuleDict; take another")


def check_fields(what: str, kind: type, values: Any) -> None:
    """Raise ValueError unless `values` is a dict with known keys and values of the right types.

    Args:
        what: names it in the message.
        kind: a dataclass, whose annotations tell the types.
        values: what a file holds.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{what} is {values!r}; it must be a dict")
    names = [field.name for field in fields(kind)]
    unknown = [str(key) for key in values if key not in names]
    if unknown:
        raise ValueError(f"{what}: unknown key {', '.join(unknown)}; allowed: {', '.join(names)}")
    hints = get_type_hints(kind)
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise ValueError(f"{what}: {key} is {value!r}; it must be {_named(hints[key])}")


def _named(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint)) if not get_args(hint) else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    """The value is of an annotated type: a plain class, a list of one, or a union."""
    parts = get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(part, parts[0]) for part in value)
    if get_origin(hint) is dict:
        parts, hint = (), dict
    if parts:
        return any(_fits(value, part) for part in parts)
    if isinstance(value, bool) and hint is not bool:
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def check_types(what: str, options: Any) -> None:
    """Raise ValueError unless each field of a dataclass is of its annotated type."""
    hints = get_type_hints(type(options))
    for field in fields(options):
        value = getattr(options, field.name)
        if not _fits(value, hints[field.name]):
            raise ValueError(
                f"{what}{field.name} is {value!r}; it must be {_named(hints[field.name])}"
            )


def check_finite(what: str, value: float) -> None:
    """Raise ValueError for NaN, infinity and what is next to it."""
    if not abs(value) <= LARGEST_NUMBER:
        raise ValueError(f"{what} is {value}; it must be a number up to {LARGEST_NUMBER:g}")


def check_json(what: str, value: Any) -> None:
    """Raise ValueError for a value that does not come out of a JSON file as it went in."""
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"{what} is {value!r:.200}; it must be what JSON has: strings, finite numbers, true, "
            "false, null, lists, and dicts by strings"
        )


def check_tokenizer(tokenizer: Any, rows: int | None = None) -> None:
    """Raise ValueError when there is no tokenizer, one without words, or another model's.

    Args:
        tokenizer: the model's tokenizer.
        rows: number of rows of the encoder's token embedding; None where it has none.
    """
    if tokenizer is None:
        raise ValueError(
            "the tokenizer is missing: the folder has no tokenizer files. Save it there by "
            "tokenizer.save_pretrained(folder), or give one: PolyheadPipeline(model=, tokenizer=)"
        )
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        raise ValueError(
            "the tokenizer has no words: its file (tokenizer.json) is missing. Copy or download "
            "the folder again, or save the tokenizer there by tokenizer.save_pretrained(folder)"
        )
    if rows is not None and max(vocabulary.values()) >= rows:
        token = max(vocabulary, key=vocabulary.__getitem__)
        raise ValueError(
            f"the tokenizer is not this model's: {token!r:.40} has the id {vocabulary[token]}, and "
            f"the encoder knows {rows} tokens. Save the model's own there by "
            "tokenizer.save_pretrained(folder)"
        )


def check_sizes(config: Any) -> None:
    """Raise ValueError when an encoder's config asks for sizes or numbers that no encoder has.

    Args:
        config: its config, or what a file holds of it.
    """
    options = config if isinstance(config, dict) else getattr(config, "__dict__", {})
    for key, most in LARGEST.items():
        value = options.get(key)
        least = -1 if key in MAY_BE_NONE_AT_ALL else 1
        if value is None or (type(value) is int and least <= value <= most):
            continue
        raise ValueError(f"encoder_config: {key} is {value!r}; a number up to {most} is allowed")
    for key, value in options.items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"encoder_config: {key} is NaN; a number is allowed")
    check_dtype("encoder_config: dtype", options.get("dtype"))


def check_dtype(what: str, dtype: Any) -> None:
    """Raise ValueError unless it is None or a type that weights can have, by name or itself."""
    if dtype is not None:
        check_choice(what, str(dtype).removeprefix("torch."), DTYPES)


def check_options(config: Any) -> None:
    """Raise ValueError unless this code knows a PolyheadConfig's format and its options' types."""
    version = config.format_version
    if type(version) is not int or version < 1:
        raise ValueError(f"format_version is {version!r}; it must be a number")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format_version is {version}; this code reads up to {FORMAT_VERSION}. The folder was "
            "saved by a newer release: upgrade polyhead, or load it with trust_remote_code=True, "
            "by the code that it brings"
        )
    for name, kind in TYPES.items():
        value = getattr(config, name, None)
        if value is not None and not isinstance(value, kind):
            allowed = {dict: "a dict by name", list: "a list"}.get(kind, kind.__name__)
            raise ValueError(f"{name} is {value!r}; it must be {allowed}")
    odd = [x for x in config.task_names or [] if not isinstance(x, str)]
    if odd:
        raise ValueError(f"task_names holds {odd[0]!r}; a name is a string")
    check_finite("initializer_range", config.initializer_range)
    check_dtype("dtype", config.dtype)
