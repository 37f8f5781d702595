"""The formats by name; their files as rows, and which columns a task reads of them."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import datasets

from ...kinds import kind_of
from ...recipe.schema import TaskRecipe
from ..jsonlines import json_values, typed_table
from ..source import ENDINGS, ending, open_files, rows_of_table
from .base import Format, Row
from .brat import BRAT
from .conll import CONLL
from .spacy import SAVE_JSON, SPACY
from .spans import SPANS
from .tools import ANSWERED, ARGILLA, DOCCANO, LABEL_STUDIO, PRODIGY

FORMATS: dict[str, Format] = {
    "conll": CONLL,
    "spans": SPANS,
    "doccano": DOCCANO,
    "label_studio": LABEL_STUDIO,
    "prodigy": PRODIGY,
    "spacy": SPACY,
    "argilla": ARGILLA,
    "brat": BRAT,
}


def named_columns(task: TaskRecipe) -> TaskRecipe:
    """The task with the columns that its format has by default; the same one without a format."""
    if task.data.format is None:
        return task
    kind, fmt = kind_of(task), FORMATS[task.data.format]
    task, data = copy(task), copy(task.data)
    if data.text is None and data.tokens is None:
        data.text, data.tokens = fmt.text, fmt.tokens
    elif data.tokens is None and kind.label_type == "tags" and not fmt.spans:
        data.tokens = fmt.tokens
    if data.label is None and kind.label_type in ("tags", "class", "classes"):
        data.label = fmt.tags if kind.label_type == "tags" else fmt.label
    task.data = data
    return task


def open_format(name: str, files: Sequence[Path]) -> datasets.Dataset:
    """The rows of files in a format.

    Args:
        name: key of `FORMATS`.
        files: one or more.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not in this format; with file and line.
    """
    fmt = FORMATS[name]
    if fmt.read_files is not None:
        return rows_of_table(*typed_table(fmt.read_files(files)))
    if docbin := [file for file in files if ending(file) == ".spacy"]:
        raise ValueError(f"{docbin[0].name}: {SAVE_JSON}")
    kinds = [ENDINGS.get(ending(file)) for file in files]
    if fmt.read_value is None or not all(kind == "json" for kind in kinds):
        if None in kinds:
            odd = files[kinds.index(None)]
            raise ValueError(
                f"{odd.name}: ending {ending(odd)}; format: {name} is read from "
                f"{', '.join(ENDINGS)}"
            )
        return read_rows(name, open_files(files, [str(kind) for kind in kinds]))
    places = (
        (f"{file.name}, {where}", value) for file in files for where, value in json_values(file)
    )
    return _from_values(fmt, places)


def read_rows(name: str, rows: datasets.Dataset) -> datasets.Dataset:
    """Rows of a table as those of a format."""
    fmt = FORMATS[name]
    if fmt.read_files is not None:
        raise ValueError(f"format: {name} is read from files; name them in data_files")
    if fmt.read_value is None:
        return rows
    return _from_values(fmt, ((f"row {n}", dict(rows[n])) for n in range(len(rows))))


def _from_values(fmt: Format, values: Iterable[tuple[str, Any]]) -> datasets.Dataset:
    rows = list(_rows(fmt, values))
    names = dict.fromkeys(str(key) for row in rows for key in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    if answered := columns.pop(ANSWERED, None):
        for column in columns.values():
            if any(_is_spans(value) for value in column):
                column[:] = [
                    [] if value is None and done else value
                    for value, done in zip(column, answered, strict=True)
                ]
    return rows_of_table(*typed_table(columns))


def _rows(fmt: Format, values: Iterable[tuple[str, Any]]) -> Iterator[Row]:
    assert fmt.read_value is not None
    for where, value in values:
        try:
            yield from fmt.read_value(value)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{where}: is not in this format ({why})") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _is_spans(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)
