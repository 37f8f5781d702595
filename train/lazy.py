"""Names of a room that are loaded when they are first asked for."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(room: str, modules: dict[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` (PEP 562).

    Args:
        room: `__name__` of the package.
        modules: public name to the module of the package that has it.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(import_module(f"{room}.{modules[name]}"), name)

    return get
