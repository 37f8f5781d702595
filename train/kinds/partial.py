"""Rows that mark some of a task's labels only, and what their units may then be."""

from collections.abc import Sequence
from typing import Any

from ...modeling.heads import IGNORE
from ...modeling.options import HeadTask
from ...modeling.tags import split_tag
from ..recipe.data_config import DataConfig


def row_marks(data: DataConfig, raw: dict[str, list]) -> Sequence[list[str] | None] | None:
    """For each row the labels that it marks, None for all of them; None where all rows mark all.

    Args:
        data: of the task.
        raw: columns of the data.
    """
    if data.marks is None:
        return None
    if isinstance(data.marks, str):
        return raw[data.marks]
    return [list(map(str, data.marks))] * len(raw[str(data.label)])


def type_of(label: str, scheme: str | None) -> str:
    """The type of entity of a tag; of labels that stand alone the label itself."""
    return split_tag(label)[1] or label if scheme else label


def allowed_labels(
    labels: Sequence[str], marked: Sequence[str], unmarked: str, scheme: str | None
) -> list[str]:
    """What a unit may be that has none of the marked labels.

    Args:
        labels: of the task.
        marked: types of entities, or labels.
        unmarked: the label that stands for none of those; it may be one of the task's.
        scheme: of the tags.
    """
    return [x for x in labels if x == unmarked or type_of(x, scheme) not in marked]


def allowed_id(task: Any, marked: Sequence[str] | None, unmarked: str) -> int:
    """The id of a unit with the label `unmarked` in a row; `IGNORE` where nothing is known of it.

    Args:
        task: of the model.
        marked: what the row marks; None for all labels.
        unmarked: as of `allowed_labels`.
    """
    labels: list[str] = task.labels or []
    if marked is None:
        return labels.index(unmarked) if unmarked in labels else IGNORE
    allowed = allowed_labels(labels, marked, unmarked, task.scheme)
    if len(allowed) == 1:
        return labels.index(allowed[0])
    partial = task.partial or [] if isinstance(task, HeadTask) else []
    return len(labels) + partial.index(allowed) if allowed in partial else IGNORE


def shown_id(labels: list[str], task: Any, number: int) -> str:
    """The label of an id; of one that stands for several labels those, joined by |."""
    if number < len(labels):
        return labels[number]
    return "|".join(task.partial[number - len(labels)])
