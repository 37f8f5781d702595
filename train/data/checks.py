"""What is wrong with texts and labels of rows; nothing is changed here.

Tags of words are checked in `loading.py`.
"""

from typing import Any

import numpy as np

from ..recipe.schema import TaskRecipe
from .label_values import number_of, reads_numbers

SHOWN = 3  # rows named in a fault
BLANK = "a label with letters is wanted (name a mark of a missing one in data.missing_label)"


def rows_named(numbers: list[int]) -> str:
    """`row 1, 5, 7 and 12 more`."""
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"row {', '.join(map(str, numbers[:SHOWN]))}{more}"


def is_text(value: Any) -> bool:
    """A string that has a form in UTF-8: without half a surrogate pair."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_faults(task: TaskRecipe, name: str, split: str, batch: dict[str, list]) -> list[str]:
    """Rows without a text in a column of texts."""
    faults = []
    for key in ("text", "text_pair", "negative"):
        column = getattr(task.data, key)
        if column is None:
            continue
        bad = [i for i, text in enumerate(batch[column]) if not is_text(text)]
        if bad:
            faults.append(
                f"tasks.{name}.data.{key}: {split}, column {column!r}: no text in "
                f"{rows_named(bad)}, but {batch[column][bad[0]]!r:.60}"
            )
    return faults


def label_faults(task: TaskRecipe, place: str, split: str, values: list) -> list[str]:
    """Labels that are not of the kind that the head reads."""
    if task.head == "embedding" and task.loss == "mse":
        return _vector_faults(task, place, split, values)
    if reads_numbers(task):
        return _number_faults(task, place, split, values)
    multi = task.problem_type == "multi_label_classification"
    where = f"{place}.label: {split}, column {task.data.label!r}"
    why = _list_fault if multi else _class_fault
    bad = [i for i, value in enumerate(values) if value is not None and why(value)]
    if bad:
        value = values[bad[0]]
        return [f"{where}: {why(value)}, but {rows_named(bad)} holds {value!r:.60}"]
    return _mixed_faults(where, values)


def _class_fault(value: Any) -> str | None:
    """What is wanted instead of this label."""
    if isinstance(value, list):
        return (
            "a label (string or id) is wanted; for lists of them write problem_type: "
            "multi_label_classification"
        )
    if _is_blank(value):
        return BLANK
    return None if isinstance(value, (str, int, bool)) else "a label (string or id) is wanted"


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _list_fault(value: Any) -> str | None:
    """What is wanted instead of this list of labels."""
    if not isinstance(value, list):
        cells = isinstance(value, str) and value.lstrip().startswith("[")
        return "a list of labels is wanted" + (" (CSV has none; use JSON Lines)" if cells else "")
    if not all(isinstance(label, (str, int)) and not isinstance(label, bool) for label in value):
        return "a list of strings or ids is wanted"
    if any(map(_is_blank, value)):
        return BLANK
    ids = [label for label in value if isinstance(label, int)]
    return "each id once in a list is wanted" if len(set(ids)) < len(ids) else None


def _mixed_faults(where: str, values: list) -> list[str]:
    """Strings beside numbers in one column: "1" and 1 would be one class."""
    first: dict[type, tuple[int, Any]] = {}
    for row, value in enumerate(values):
        for label in value if isinstance(value, list) else [value]:
            if label is not None:
                first.setdefault(type(label), (row, label))
    if len(first) < 2:
        return []
    (a, one), (b, other) = list(first.values())[:2]
    return [
        f"{where}: labels are strings or ids, not both, but row {a} holds {one!r:.60} and row {b} "
        f"{other!r:.60}"
    ]


def _vector_faults(task: TaskRecipe, place: str, split: str, values: list) -> list[str]:
    """Labels that are no vectors, or vectors of another width than the first."""
    width = len(values[0]) if values and isinstance(values[0], list) else 0

    def fits(value: Any) -> bool:
        own = isinstance(value, list) and len(value) == width > 0
        return own and all(isinstance(x, (int, float)) and np.isfinite(x) for x in value)

    bad = [i for i, value in enumerate(values) if not fits(value)]
    if not bad:
        return []
    return [
        f"{place}.label: {split}, column {task.data.label!r}: a list of {width or 'some'} numbers "
        f"is wanted, but {rows_named(bad)} holds {values[bad[0]]!r:.60}"
    ]


def _number_faults(task: TaskRecipe, place: str, split: str, values: list) -> list[str]:
    """Labels that are no numbers, or outside of their range."""
    where = f"{place}.label: {split}, column {task.data.label!r}"
    bad = [i for i, value in enumerate(values) if value is not None and not _is_finite(value)]
    if bad:
        return [
            f"{where}: a number is wanted, but {rows_named(bad)} holds {values[bad[0]]!r:.60}; if "
            "that marks a missing label, name it in data.missing_label"
        ]
    low, high = task.data.label_range or (-np.inf, np.inf)
    if task.head == "embedding" and task.loss == "cosine_mse" and not task.data.label_range:
        low, high = -1.0, 1.0  # a cosine
    bad = [i for i, v in enumerate(values) if v is not None and not (low <= float(v) <= high)]
    bad = [i for i in bad if not np.isnan(float(values[i]))]
    if not bad:
        return []
    return [
        f"{place}.label: {split}: {values[bad[0]]} in {rows_named(bad)} lies outside "
        f"[{low:g}, {high:g}]; set data.label_range to the lowest and highest score"
    ]


def _is_finite(value: Any) -> bool:
    """A number that a float can hold, or NaN; in a column that has classes too, its text.

    True and False are no numbers: that they mean 1 and 0 would be a guess.
    """
    if isinstance(value, str):
        value = number_of(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return not np.isinf(float(value))
    except OverflowError:
        return False
