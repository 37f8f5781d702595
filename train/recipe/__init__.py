"""A YAML recipe: its keys, reading it, and every fault of it at once.

Names are loaded when they are asked for: below `schema`, which all rooms read, `reader` needs most
of them.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .arguments import training_arguments
    from .code import allow_code
    from .reader import load_recipe
    from .schema import Recipe

__all__ = ["Recipe", "allow_code", "load_recipe", "training_arguments"]
__getattr__ = lazy(
    __name__,
    {
        "Recipe": "schema",
        "allow_code": "code",
        "load_recipe": "reader",
        "training_arguments": "arguments",
    },
)
