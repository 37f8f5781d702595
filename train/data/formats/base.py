"""What a format of annotations says of itself: how its files become columns, and their names."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the rows of a format are read, and which of their columns a task reads by default.

    Args:
        read_files: files to columns, where they are no JSON.
        read_value: a value of a JSON file, or a row of a table, to rows; None where it is one.
        text: column with the text.
        tokens: column with lists of words, where rows have no text.
        tags: label column of token tasks.
        label: label column of tasks that give classes.
        spans: labels of token tasks are lists of spans.
        unwraps: a list of one class is that class, where a task wants one.
    """

    read_files: Callable[[Sequence[Path]], dict[str, list]] | None = None
    read_value: Callable[[Any], Iterator[Row]] | None = None
    text: str | None = "text"
    tokens: str | None = None
    tags: str | None = "label"
    label: str | None = "label"
    spans: bool = True
    unwraps: bool = True


def shown(value: Any, width: int = 60) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"
