# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Tables of what a task may name (heads, poolings, losses), to which users add their own."""

from typing import Any, TypeVar

from .checks import TASK_NAME

Entry = TypeVar("Entry")


class Table(dict[str, Entry]):
    """Names to what they stand for.

    Args:
        what: one entry, in the words of messages: "head".
        entries: ours.
    """

    def __init__(self, what: str, entries: dict[str, Entry]) -> None:
        super().__init__(entries)
        self.what = what
        self.sources: dict[str, Any] = {}  # of what users added: the class or function itself

    def fault(self, where: str, name: Any) -> str:
        """Message for a name that is not here.

        Args:
            where: it was given, as `tasks.intent.head`.
            name: what was given.
        """
        return f"{where}: {name!r:.80} is unknown; allowed: {', '.join(self)}"

    def add(self, name: str, entry: Entry, source: Any) -> None:
        """Add an entry of a user's; the same one again, as its module is imported anew, replaces.

        Args:
            name: as tasks will name it.
            entry: what the name stands for.
            source: the class or function, whose file travels with models that use it.

        Raises:
            ValueError: the name has other characters than lower-case letters, digits and _, or is
                taken.
        """
        if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
            raise ValueError(
                f"{self.what} {name!r}: use lower-case letters, digits and _, starting with a "
                "letter"
            )
        known = self.sources.get(name)
        if name in self and (known is None or _path(known) != _path(source)):
            owner = "Polyhead's own" if known is None else f"that of {_path(known)}"
            raise ValueError(f"{self.what} {name!r} is {owner}; take another name")
        self[name] = entry
        self.sources[name] = source


def _path(source: Any) -> str:
    return f"{source.__module__}.{source.__qualname__}"
