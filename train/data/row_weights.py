"""Columns beside the label that say how a row of train counts: its weight, its distribution."""

import math
from typing import Any

import datasets

from ..kinds.values import is_real, number_of, rows_named
from ..recipe.data_config import TEXT_COLUMNS
from ..recipe.schema import TaskRecipe
from .source import with_column

NEAR = 1e-3  # that a distribution may be off 1


def read_row_weights(
    tasks: dict[str, TaskRecipe], splits: dict[str, datasets.Dataset]
) -> list[str]:
    """Bring the columns of weights and distributions to numbers; `splits` is changed.

    Args:
        tasks: over the same rows, by name.
        splits: their rows.

    Returns:
        faults.
    """
    faults = []
    keys = (*TEXT_COLUMNS, "label")
    others = {str(getattr(task.data, key)) for task in tasks.values() for key in keys}
    for name, task in tasks.items():
        for key, read in (("weight", _weights), ("soft_label", _distributions)):
            column = getattr(task.data, key)
            if column is None:
                continue
            if column in others:
                fault = f"column {column!r} is read as text or label too; give it one of its own"
            else:
                fault = read(task, column, splits)
            faults += [] if fault is None else [f"tasks.{name}.data.{key}: {fault}"]
    return faults


def _weights(task: TaskRecipe, column: str, splits: dict[str, datasets.Dataset]) -> str | None:
    """A fault, or None where each row of train has a number from 0."""
    values = [number_of(value) for value in splits["train"][column][:]]
    bad = [i for i, x in enumerate(values) if not is_real(x) or not 0 <= x < math.inf]
    if bad:
        odd = f"{rows_named(bad)} holds {values[bad[0]]!r:.60}"
        return f"train, column {column!r}: a number from 0 is wanted, but {odd}"
    if not any(values):
        return f"train, column {column!r}: all weights are 0, no row would train"
    number: Any = datasets.Value("float64")
    splits["train"] = with_column(splits["train"], column, list(map(float, values)), number)
    return None


def _distributions(
    task: TaskRecipe, column: str, splits: dict[str, datasets.Dataset]
) -> str | None:
    """A fault, or None where each row of train has null or a distribution over the labels."""
    count, values = len(task.labels or []), splits["train"][column][:]

    def fits(value: Any) -> bool:
        if not isinstance(value, list) or len(value) != count or not all(map(is_real, value)):
            return False
        return min(value) >= 0 and abs(sum(value) - 1) <= NEAR

    bad = [i for i, value in enumerate(values) if value is not None and not fits(value)]
    if bad:
        odd = f"{rows_named(bad)} holds {values[bad[0]]!r:.80}"
        wanted = f"a list of {count} numbers from 0 that sum to 1 is wanted"
        return f"train, column {column!r}: {wanted}, but {odd}"
    numbers: Any = datasets.List(datasets.Value("float64"))
    splits["train"] = with_column(splits["train"], column, values, numbers)
    return None
