# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Options of a task that its kind of head does not read: set, they would be without effect."""

from collections.abc import Iterator
from dataclasses import fields

from .heads import HEADS
from .options import ONCE_ALLOWED, HeadTask

ALWAYS_READ = ("head", "loss_weight", "adapter")  # by every task, whatever its head
NO_DROPOUT = {"dropout": 0.0}  # holds for heads without dropout too
NONE_OF_OURS = "heads of your own whose `options` name it"


def check_read(task: HeadTask) -> None:
    """Raise ValueError for an option that was set and that such a task does not read."""
    for option in _unread(task):
        if option in ONCE_ALLOWED or option == "labels":
            continue
        conditions = HEADS[task.head].only_with()
        if option not in conditions:
            raise ValueError(f"{option} belongs to {_readers(option)}, not to {task.head}")
        like = [o for o in conditions if conditions[o] == conditions[option]]
        like = sorted(like, key=[field.name for field in fields(task)].index)
        belong = "belongs" if len(like) == 1 else "belong"
        raise ValueError(f"{' and '.join(like)} {belong} to {_readers(option)}")


def options_without_effect(task: HeadTask) -> list[str]:
    """A fault for each option without effect that a saved model may have, but no new task."""
    return [
        f"{option}: only for {_readers(option)}; take it out"
        for option in _unread(task)
        if option in ONCE_ALLOWED
    ]


def _unread(task: HeadTask) -> Iterator[str]:
    """The options that were set and that such a task does not read."""
    head = HEADS[task.head]
    conditions = head.only_with()
    for option in fields(task):
        value, name = getattr(task, option.name), option.name
        if name in ALWAYS_READ or value == option.default:
            continue
        if name not in head.options:
            if value != NO_DROPOUT.get(name, option.default):
                yield name
        elif name in conditions:
            other, values = conditions[name]
            if getattr(task, other) not in values:
                yield name


def _readers(option: str) -> str:
    """Who reads an option, in words: kinds of head, or what such a task says of another option."""
    readers = []
    for name, head in HEADS.items():
        if option in head.options:
            other, values = head.only_with().get(option, ("", ()))
            readers.append(f"{other}: {' or '.join(map(str, values))}" if other else name)
    *first, last = readers or [NONE_OF_OURS]
    return f"{', '.join(first)} and {last}" if first else last
