# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What a config may say, checked before anything is made of it: a config.json may be anyone's."""

import re
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from torch import nn

TASK_NAME = re.compile(r"[a-z][a-z0-9_]*")
LARGEST_WIDTH = 1 << 20  # of a layer made by a number in the config alone
# What no encoder has; a config that asks for more would fill the memory before any weight is read.
LARGEST = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 12,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 24,
    "embedding_size": 1 << 17,
}


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


def check_fields(what: str, kind: type, given: Any) -> None:
    """Raise ValueError unless `given` is a dict with known keys and values of the right types.

    Args:
        what: names it in the message.
        kind: a dataclass, whose annotations tell the types.
        given: what a file holds.
    """
    if not isinstance(given, dict):
        raise ValueError(f"{what} is {given!r}; it must be a dict")
    names = [field.name for field in fields(kind)]
    unknown = [str(key) for key in given if key not in names]
    if unknown:
        raise ValueError(f"{what}: unknown key {', '.join(unknown)}; allowed: {', '.join(names)}")
    hints = get_type_hints(kind)
    for key, value in given.items():
        if not _fits(value, hints[key]):
            wanted = str(getattr(hints[key], "__name__", hints[key]))
            raise ValueError(f"{what}: {key} is {value!r}; it must be {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    """The value is of an annotated type: a plain class, a list of one, or a union."""
    parts = get_args(hint)
    if hint in (list, list[str], list[int]):
        return isinstance(value, list) and all(_fits(part, parts[0]) for part in value)
    if parts:
        return any(_fits(value, part) for part in parts)
    if isinstance(value, bool) and hint is not bool:
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def check_sizes(config: Any) -> None:
    """Raise ValueError when an encoder's config asks for sizes that no encoder has.

    Args:
        config: its config, or what a file holds of it.
    """
    given = config if isinstance(config, dict) else getattr(config, "__dict__", {})
    for key, most in LARGEST.items():
        value = given.get(key)
        if value is not None and (not isinstance(value, int) or value > most):
            raise ValueError(
                f"encoder_config: {key} is {value!r}; a number up to {most} is allowed"
            )
