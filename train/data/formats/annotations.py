"""The columns that each task reads, made of those that its data have."""

from copy import copy
from typing import Any

import datasets

from ...kinds import kind_of
from ...kinds.values import rows_named
from ...recipe.schema import TaskRecipe
from ..source import with_column
from .base import shown
from .columns import Marks, read_one_hot, read_separated, read_single
from .conll import CONLL, CONLLU, column_name
from .spans import SpanReader
from .table import FORMATS, named_columns

Splits = dict[str, datasets.Dataset]
STRING = datasets.Value("string")
STRINGS = datasets.List(STRING)


def read_annotations(
    tasks: dict[str, TaskRecipe], splits: Splits
) -> tuple[dict[str, TaskRecipe], list[str], list[str]]:
    """Make the columns of tasks; `splits` gets new ones.

    Args:
        tasks: over the same rows, by name.
        splits: their rows.

    Returns:
        the tasks over these columns, notes on how they were made, and faults.
    """
    made, notes, faults = {}, [], []
    for name, task in tasks.items():
        made[name] = named_columns(task)
        try:
            made[name], more = _with_labels(name, made[name], splits)
            notes += more
        except _Unreadable as error:
            faults.append(f"tasks.{name}.data.{error}")
    return made, notes, faults


class _Unreadable(ValueError):
    """A column is not what a task reads of it."""


def _numbered(task: TaskRecipe, splits: Splits) -> TaskRecipe:
    """The task with names of columns for their numbers."""
    rows, data = splits["train"], task.data
    lists = [name for name, kind in rows.features.items() if isinstance(kind, datasets.List)]
    if lists == CONLLU and data.label == CONLL.tags:
        raise _Unreadable(f"label: name the column, one of {', '.join(lists)}")
    named = {
        key: column_name(lists, value)
        for key in ("tokens", "label")
        if isinstance(value := getattr(data, key), str)
    }
    tokens = named.get("tokens", "")
    if tokens == named.get("label"):
        raise _Unreadable(
            f"label: column {tokens!r} is that of the words; there are: "
            f"{', '.join(rows.column_names)}"
        )
    if tokens in lists and all(map(_counts_up, rows[tokens][:])):
        after = lists[min(lists.index(tokens) + 1, len(lists) - 1)]
        raise _Unreadable(
            f"tokens: column {tokens!r} counts the words (1, 2, ...); name that of the words, as "
            f"tokens: {after}"
        )
    return _reading(task, **named)


def _counts_up(cells: list[str]) -> bool:
    return cells == [str(number) for number in range(1, len(cells) + 1)]


def _with_labels(name: str, task: TaskRecipe, splits: Splits) -> tuple[TaskRecipe, list[str]]:
    kind, fmt = kind_of(task).label_type, FORMATS.get(task.data.format or "")
    if fmt is CONLL:
        task = _numbered(task, splits)
    if task.data.separator is not None:
        task = _split_strings(task, splits)
    label = task.data.label
    if isinstance(label, list):
        return _one_hot(name, task, label, splits), []
    if label is None or fmt is None or _lacks(splits, label):
        return task, []  # a column that is not there is told by the checks of columns
    if kind == "tags" and fmt.spans and task.data.tokens is None:
        return _tagged(name, task, splits)
    if kind in ("class", "classes") and fmt.unwraps:
        return _unwrapped(name, task, label, splits), []
    return task, []


def _unwrapped(name: str, task: TaskRecipe, label: str, splits: Splits) -> TaskRecipe:
    """One class, or a list of several, as the task wants it."""
    lists = [
        isinstance(value, list) for rows in splits.values() for value in rows[label][:] if value
    ]
    one = kind_of(task).label_type == "class"
    if (one and not any(lists)) or (not one and all(lists)):
        return task
    column = f"{label} (of {name})"
    for split, rows in splits.items():
        values = rows[label][:]
        odd = [n for n, value in enumerate(values) if not _is_class(value)]
        if odd:
            raise _Unreadable(
                f"label: {split}, column {label!r}: a class, or a list of them, is wanted, but "
                f"{rows_named(odd)} holds {shown(values[odd[0]])}"
            )
        if one:
            values = _checked("label", split, label, read_single, values, "classes")
        else:
            values = [[value] if isinstance(value, str) else value for value in values]
        splits[split] = with_column(rows, column, values, STRING if one else STRINGS)
    return _reading(task, label=column)


def _is_class(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(part, str) for part in values)


def _one_hot(name: str, task: TaskRecipe, labels: list[str], splits: Splits) -> TaskRecipe:
    """The labels whose columns hold a 1."""
    one = kind_of(task).label_type == "class"
    column, marks = f"{', '.join(labels)} (of {name})", Marks(task.data)
    for split, rows in splits.items():
        if absent := [label for label in labels if label not in rows.column_names]:
            raise _Unreadable(
                f"label: split {split} has no column {absent[0]!r}; it has: "
                f"{', '.join(rows.column_names)}"
            )
        cells = {label: rows[label][:] for label in labels}
        try:
            lists: list = read_one_hot(cells, marks)
        except ValueError as error:
            raise _Unreadable(f"label: {split}, {error}") from error
        if one:
            lists = _checked(
                "label", split, ", ".join(labels), read_single, lists, "columns with 1"
            )
        splits[split] = with_column(rows, column, lists, STRING if one else STRINGS)
    task = _reading(task, label=column, missing_label=None)
    if task.labels is None:
        task.labels = list(labels)
    return task


def _split_strings(task: TaskRecipe, splits: Splits) -> TaskRecipe:
    """Words, and labels or tags, that are one string."""
    data, several = task.data, kind_of(task).label_type in ("classes", "tags")
    named = {"tokens": data.tokens, "label": data.label if several else None}
    for key, column in named.items():
        if not isinstance(column, str) or _lacks(splits, column):
            continue
        for split, rows in splits.items():
            arguments = (rows[column][:], str(data.separator))
            lists = _checked(key, split, column, read_separated, *arguments)
            splits[split] = with_column(rows, f"{column} (by {data.separator!r})", lists, STRINGS)
        task = _reading(task, **{key: f"{column} (by {data.separator!r})"})
    return task


def _tagged(name: str, task: TaskRecipe, splits: Splits) -> tuple[TaskRecipe, list[str]]:
    """Spans as words and tags."""
    data, notes = task.data, []
    text, label = str(data.text), str(data.label)
    words_column, tags_column = f"{label} (words of {name})", f"{label} (tags of {name})"
    for split, rows in splits.items():
        if text not in rows.column_names:
            return task, []
        reader = SpanReader(
            offsets=data.offsets or "characters",
            overlap=data.overlap or "error",
            scheme=task.scheme if task.scheme is not None else "iob2",
        )
        pairs = zip(rows[text][:], rows[label][:], strict=True)
        read = [reader.read(number, *pair) for number, pair in enumerate(pairs)]
        if reader.faults.count:
            raise _Unreadable(f"label: {split}, column {label!r}: {reader.faults}")
        for column, values in (
            (words_column, [w for w, _ in read]),
            (tags_column, [t for _, t in read]),
        ):
            rows = with_column(rows, column, values, STRINGS)
        splits[split] = rows
        notes += [
            f"{name}: spans of {split} {what}, {told.count:,}: {told}"
            for told, what in (
                (reader.left_out, "left out by overlap: longest"),
                (reader.blank, "read without the white space at their ends"),
                (reader.inside, "that begin or end inside a word, where no answer can"),
            )
            if told.count
        ]
    return _reading(task, tokens=words_column, label=tags_column), notes


def _checked(key: str, split: str, column: str, read: Any, *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except ValueError as error:
        raise _Unreadable(f"{key}: {split}, column {column!r}: {error}") from error


def _lacks(splits: Splits, column: str) -> bool:
    return any(column not in rows.column_names for rows in splits.values())


def _reading(task: TaskRecipe, **columns: Any) -> TaskRecipe:
    task, data = copy(task), copy(task.data)
    for key, column in columns.items():
        setattr(data, key, column)
    task.data = data
    return task
