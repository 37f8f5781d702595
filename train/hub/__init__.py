"""The folder that users load, its card and its proof, and the way to the Hub.

Names are loaded when they are asked for: `python -m polyhead.train.hub.proof` is a process of its
own, which needs none of the others.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .folder import save_folder, write_card
    from .sentence_transformers import save_sentence_transformers

__all__ = [
    "save_folder",
    "save_sentence_transformers",
    "write_card",
]
__getattr__ = lazy(
    __name__,
    {
        "save_folder": "folder",
        "save_sentence_transformers": "sentence_transformers",
        "write_card": "folder",
    },
)
