"""Label columns brought to what their tasks mean, before anything counts, trains or scores them.

Marks of a missing label become null, ids of a ClassLabel their names, 0/1 vectors the labels that
they point at, cells of CSV the numbers that a task needs. What cannot be read stays as it is, for
`checks.py` to refuse. Tags of words are read in `labels.py`.
"""

import math
import re
from collections import Counter
from decimal import Decimal
from typing import Any

import datasets

from ...modeling.heads import IGNORE
from ..kinds import CLOSED, kind_of
from ..kinds.values import NUMBER, is_real, number_of
from ..recipe.data_config import TEXT_COLUMNS
from ..recipe.schema import TaskRecipe
from .jsonlines import JsonText
from .source import with_column
from .tags import MARKED

INTEGER = re.compile(r"-?[0-9]{1,18}")
BITS = (0, 1, "0", "1")  # floats and booleans compare equal to the first two
SHOWN = 5


def read_labels(
    tasks: dict[str, TaskRecipe], splits: dict[str, datasets.Dataset]
) -> tuple[list[str], list[str]]:
    """Bring the label columns of tasks to null, names and numbers; `splits` is changed.

    Args:
        tasks: over the same rows, by name.
        splits: their rows.

    Returns:
        notes on how labels were read, and faults.
    """
    notes, faults = [], []
    by_column: dict[str, dict[str, TaskRecipe]] = {}
    for name, task in tasks.items():
        if task.data.label is not None:
            by_column.setdefault(str(task.data.label), {})[name] = task
    texts = {getattr(task.data, key) for task in tasks.values() for key in TEXT_COLUMNS}
    for column, readers in by_column.items():
        if column in texts:  # a text too: it stays as it is
            faults += [
                f"tasks.{name}.data.missing_label: column {column!r} is read as text too"
                for name, task in readers.items()
                if task.data.missing_label is not None
            ]
            continue
        if more := _marks_at_odds(readers, column):
            faults += more
            continue
        more, wrong = _read_splits(splits, column, readers)
        notes += more
        faults += wrong
        more, wrong = _read_vectors(readers, splits)
        notes += more
        faults += wrong
    return notes, faults


def _marks_at_odds(readers: dict[str, TaskRecipe], column: str) -> list[str]:
    """Marks of one column that are not the same for all tasks that read it."""
    faults = []
    for key in ("missing_label", "ignore_labels"):
        marks = {repr(getattr(task.data, key)) for task in readers.values()}
        if len(marks) > 1:
            faults.append(
                f"tasks.{next(iter(readers))}.data.{key}: {' and '.join(sorted(marks))} "
                f"for one column {column!r}; write the same in {', '.join(readers)}"
            )
    return faults


def missing_notes(name: str, task: TaskRecipe, splits: dict[str, datasets.Dataset]) -> list[str]:
    """How many rows of each split have no label for this task."""
    column = str(task.data.label)
    lines = []
    for split, rows in splits.items():
        count = sum(value is None or value != value for value in rows[column][:])
        if count:
            lines.append(
                f"{name}: {count} of {len(rows)} rows of {split} have no label in {column!r}; "
                "the task skips them"
            )
    return lines


def class_notes(name: str, task: TaskRecipe, labels: list[str], counts: Counter[str]) -> list[str]:
    """Labels of the recipe without a row, and ids that look like marks of a missing label."""
    lines = []
    without = [label for label in labels if not counts[label]] if task.labels else []
    if without:
        more = f" and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
        names = ", ".join(map(repr, without[:SHOWN]))
        lines.append(f"{name}: no row of train has the label {names}{more}")
    if not task.labels and all(INTEGER.fullmatch(label) for label in labels):
        lines += [
            f"{name}: {label} is a class, of {counts[label]} rows of train; if it marks a missing "
            f"label, write data.missing_label: {label}"
            for label in ("-1", str(IGNORE))
            if label in labels
        ]
    return lines + _alike(name, labels)


def _alike(name: str, labels: list[str]) -> list[str]:
    """Labels that differ by what is hard to see: spaces, case, how a number is written."""
    first: dict[Any, str] = {}
    pairs = []
    for label in labels:
        key: Any = " ".join(label.split()).casefold()
        if NUMBER.fullmatch(label) and key.strip("+-") != "nan":
            key = Decimal(key)
        other = first.setdefault(key, label)
        if other != label:
            pairs.append(f"{other!r} and {label!r}")
    if not pairs:
        return []
    more = f" and {len(pairs) - SHOWN} more pairs" if len(pairs) > SHOWN else ""
    return [f"{name}: classes of their own, though alike: {', '.join(pairs[:SHOWN])}{more}"]


# ---- one column ----


def _read_splits(
    splits: dict[str, datasets.Dataset], column: str, readers: dict[str, TaskRecipe]
) -> tuple[list[str], list[str]]:
    """Notes and faults; `splits` is changed."""
    data = next(iter(readers.values())).data
    marks = _Marks(data.missing_label, _kind(readers), data.ignore_labels or [])
    for split, rows in splits.items():
        try:
            splits[split] = _read_column(rows, column, readers, marks)
        except ValueError as error:
            return [], [f"tasks.{next(iter(readers))}.data.label: {split}, {error}"]
    notes = []
    if unseen := marks.unseen():
        named = ", ".join(map(repr, unseen[:SHOWN]))
        notes.append(f"{', '.join(readers)}: no row holds the missing_label {named} in {column!r}")
    if unseen := sorted(marks.ignored - marks.ignored_seen):
        named = ", ".join(map(repr, unseen[:SHOWN]))
        notes.append(f"{', '.join(readers)}: no row holds the ignore_labels {named} in {column!r}")
    return notes, []


def _read_column(
    rows: datasets.Dataset, column: str, readers: dict[str, TaskRecipe], marks: "_Marks"
) -> datasets.Dataset:
    kind = marks.kind
    if any(kind_of(task).label_type in CLOSED for task in readers.values()):
        rows = ids_to_names(rows, column)
    old = rows[column][:]
    new = [marks.without(value) for value in old]
    if kind == "numbers":
        numbers = [number_of(value) for value in new]
        new = numbers if all(value is None or is_real(value) for value in numbers) else new
    elif kind == "classes":
        new = _ids(new)
    as_json = isinstance(rows.features[column], JsonText)
    if not as_json and all(a is b for a, b in zip(old, new, strict=True)):
        return rows
    feature = _feature(new, mixed=kind == "numbers")
    if feature is None:  # a mixture, which the checks refuse
        return rows
    return with_column(rows, column, new, feature)


def _kind(readers: dict[str, TaskRecipe]) -> str:
    """What all tasks that read a column take its values for."""
    types = {kind_of(task).label_type for task in readers.values()}
    if "tags" in types:
        return "tags"
    if types == {"number"}:
        return "numbers"
    return "classes" if types <= {"class", "classes", "index"} else "several"


def _feature(values: list, *, mixed: bool) -> Any:
    """The type of a column of strings, ids, numbers or lists of them; None where there is none.

    Integers stand beside fractions only where `mixed` allows it.
    """
    types = {type(value) for value in values if value is not None}
    if mixed and types == {int, float}:
        types = {float}
    if len(types) > 1:
        return None
    (kind,) = types or {str}
    if kind is list:
        inner = _feature([x for v in values if v is not None for x in v], mixed=mixed)
        return None if inner is None else datasets.List(inner)
    if kind is int and any(abs(value) >= 2**63 for value in values if value is not None):
        return None
    names = {str: "string", bool: "bool", int: "int64", float: "float64"}
    return datasets.Value(names[kind]) if kind in names else None


class _Marks:
    """Which values of a column stand for no label."""

    def __init__(self, marks: Any, kind: str, ignored: list[str]) -> None:
        marks = marks if isinstance(marks, list) else [] if marks is None else [marks]
        self.texts = {str(mark) for mark in marks}
        numbers = map(number_of, marks) if kind in ("numbers", "several") else ()
        self.numbers = {float(number) for number in numbers if is_real(number)}
        self.kind = kind
        self.marks = marks
        self.seen: set[Any] = set()  # of texts and numbers
        self.ignored = set(ignored)  # tags, or types of entities
        self.ignored_seen: set[str] = set()

    def unseen(self) -> list[Any]:
        """Marks that no value so far was."""
        return [m for m in self.marks if not {str(m), number_of(m)} & self.seen]

    def without(self, value: Any) -> Any:
        """The value, or None where it is a mark; a list without its marks, of tags with None."""
        if isinstance(value, list):
            may_have = self.texts or self.ignored or self.kind == "classes"
            if not may_have or not any(map(self._is_mark, value)):
                return value
            if self.kind == "tags":
                return [None if self._is_mark(x) else x for x in value]
            return [x for x in value if not self._is_mark(x)] or None
        return None if _is_nan(value) or self._is_mark(value) else value

    def _is_mark(self, value: Any) -> bool:
        if value is None or isinstance(value, (list, dict)):
            return False
        if self.kind == "classes" and type(value) is int and value == IGNORE:
            return True
        if self.kind == "tags" and self.ignored:
            tag = str(value)
            ignored = {tag, tag[2:] if MARKED.fullmatch(tag) else tag} & self.ignored
            self.ignored_seen |= ignored
            if ignored:
                return True
        if not self.texts:
            return False
        number = number_of(value) if self.numbers else None
        is_number = is_real(number) and float(number) in self.numbers
        is_text = str(value) in self.texts
        self.seen |= ({str(value)} if is_text else set()) | ({number} if is_number else set())
        return is_text or is_number


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _ids(values: list) -> list:
    """Ids that pandas wrote as 0.0, 1.0 because a row had none; as strings where they are large."""
    real = [value for value in values if isinstance(value, float)]
    gaps = any(value is None for value in values)
    if gaps and real and all(value.is_integer() for value in real):
        values = [int(value) if isinstance(value, float) else value for value in values]
    if any(type(value) is int and abs(value) >= 2**63 for value in values):
        values = [str(value) if type(value) is int else value for value in values]
    return values


def ids_to_names(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """A ClassLabel column (plain or in lists) as strings; others as they are.

    Raises:
        ValueError: an id has no name.
    """
    kind = rows.features[column]
    inner = getattr(kind, "feature", kind)
    if not isinstance(inner, datasets.ClassLabel):
        return rows

    def name_of(value: Any) -> Any:
        if isinstance(value, list):
            return [name_of(v) for v in value]
        return None if value is None or value < 0 else inner.int2str(value)

    for number, value in enumerate(rows[column][:]):
        ids = value if isinstance(value, list) else [value]
        if any(i is not None and i >= len(inner.names) for i in ids):
            raise ValueError(
                f"column {column!r}: row {number} holds {value!r:.60}, but the names of its "
                f"ClassLabel are those of 0 to {len(inner.names) - 1}"
            )
    text = datasets.Value("string")
    values = [name_of(value) for value in rows[column][:]]
    feature = text if inner is kind else datasets.List(text)
    return with_column(rows, column, values, feature)


# ---- 0/1 vectors ----


def _read_vectors(
    readers: dict[str, TaskRecipe], splits: dict[str, datasets.Dataset]
) -> tuple[list[str], list[str]]:
    """0/1 vectors of a column, whose places have one meaning for all tasks that read it."""
    tasks = {n: task for n, task in readers.items() if kind_of(task).label_type == "classes"}
    if not tasks:
        return [], []
    first, task = next(iter(tasks.items()))
    notes, faults = _read_indicators(first, task, splits)
    if notes:
        faults += [
            f"tasks.{name}.labels: {first} reads 0/1 vectors of the same column "
            f"{task.data.label!r}, whose places are {', '.join(map(str, task.labels or []))}; "
            "write the same labels, in this order"
            for name, other in tasks.items()
            if list(map(str, other.labels or [])) != list(map(str, task.labels or []))
        ]
    return notes, faults


def _read_indicators(
    name: str, task: TaskRecipe, splits: dict[str, datasets.Dataset]
) -> tuple[list[str], list[str]]:
    """0/1 vectors of a multi-label task to the labels that they point at."""
    column, labels = str(task.data.label), [str(label) for label in task.labels or []]
    values = {split: rows[column][:] for split, rows in splits.items()}
    lists = [(s, i, v) for s, part in values.items() for i, v in enumerate(part) if v is not None]
    if not lists or not all(_is_vector(value) for _, _, value in lists):
        return [], []
    where = f"tasks.{name}.data.label: column {column!r} holds 0/1 vectors"
    width = Counter(len(value) for _, _, value in lists).most_common(1)[0][0]
    odd = [(split, i, value) for split, i, value in lists if len(value) != width]
    named = len(labels) == width and not odd
    if not named and _may_be_ids([value for _, _, value in lists], labels):
        return [], []
    if odd:
        split, row, value = odd[0]
        return [], [f"{where} of {width}, but row {row} of {split} holds {value!r:.60}"]
    if len(labels) != width:
        others = f", but labels names {len(labels)}" if labels else ""
        example = ", ".join(f"name{i + 1}" for i in range(min(width, 3)))
        more = ", ..." if width > 3 else ""
        return [], [f"{where} of {width}{others}; name the labels: labels: [{example}{more}]"]
    for split, rows in splits.items():
        names = [
            None if v is None else [x for x, bit in zip(labels, v, strict=True) if float(bit)]
            for v in values[split]
        ]
        feature: Any = datasets.List(datasets.Value("string"))
        splits[split] = with_column(rows, column, names, feature)
    return [f"{name}: 0/1 vectors of {width} are read as the labels {', '.join(labels)}"], []


def _may_be_ids(lists: list[list], labels: list[str]) -> bool:
    """Lists of 0 and 1 that may as well be lists of the classes with these ids."""
    if any(isinstance(x, (bool, float)) for value in lists for x in value):
        return False
    if any(len(set(map(str, value))) < len(value) for value in lists):
        return False  # a class stands once in a list
    if labels:
        return {"0", "1"} <= set(labels)
    return len(set(map(len, lists))) > 1 or len(lists[0]) < 2


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and all(not isinstance(x, list) and x in BITS for x in value)
