"""Labels in columns of another form: one column for each label, and lists in one string."""

from typing import Any

from ...kinds.values import number_of, rows_named
from ...recipe.data_config import DataConfig
from .base import shown

BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


class Marks:
    """Values that stand for no label, by `missing_label`."""

    def __init__(self, data: DataConfig) -> None:
        marks = data.missing_label
        marks = marks if isinstance(marks, list) else [] if marks is None else [marks]
        self.texts = {str(mark) for mark in marks}
        self.numbers = {number_of(mark) for mark in marks}

    def __contains__(self, value: Any) -> bool:
        return str(value) in self.texts or number_of(value) in self.numbers


def read_one_hot(columns: dict[str, list], marks: Marks) -> list[list[str] | None]:
    """The labels of each row whose column holds a 1; None for a row that has none at all.

    Args:
        columns: of 0 and 1, by label.
        marks: what stands for no label.

    Raises:
        ValueError: a cell holds something else, or a row has some of its cells only.
    """
    rows: list[list[str] | None] = []
    for number, cells in enumerate(zip(*columns.values(), strict=True)):
        bits = [None if cell is None or cell in marks else _bit(cell) for cell in cells]
        if all(bit is None for bit in bits):
            rows.append(None)
            continue
        for name, cell, bit in zip(columns, cells, bits, strict=True):
            if bit is None:
                raise ValueError(
                    f"column {name!r}: row {number} has no 0 or 1 ({shown(cell)}) there, but in "
                    "others; a row has all of them or none"
                )
            if bit < 0:
                raise ValueError(
                    f"column {name!r}: row {number} holds {shown(cell)}; 0 or 1 is wanted"
                )
        rows.append([name for name, bit in zip(columns, bits, strict=True) if bit])
    return rows


def _bit(cell: Any) -> int:
    return BITS.get(str(cell).strip().lower(), -1)


def read_separated(values: list, separator: str) -> list[Any]:
    """Strings to lists of their parts, without white space around them; other values as they are.

    Raises:
        ValueError: a part is empty.
    """
    lists, empty = [], []
    for number, value in enumerate(values):
        if not isinstance(value, str):
            lists.append(value)
            continue
        parts = value.split() if separator == " " else [x.strip() for x in value.split(separator)]
        if not value.strip():
            parts = []
        elif "" in parts:
            empty.append(number)
        lists.append(parts)
    if empty:
        raise ValueError(
            f"nothing between two separators {separator!r} in {rows_named(empty)}: "
            f"{shown(values[empty[0]])}"
        )
    return lists


def read_single(values: list, what: str) -> list[Any]:
    """Lists of one class to it, empty ones to None.

    Raises:
        ValueError: a list has several.
    """
    several = [n for n, value in enumerate(values) if isinstance(value, list) and len(value) > 1]
    if several:
        raise ValueError(
            f"{rows_named(several)} has several {what}, {shown(values[several[0]])}; a class is "
            "one of them, or write problem_type: multi_label_classification"
        )
    return [next(iter(v), None) if isinstance(v, list) else v for v in values]
