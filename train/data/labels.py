"""Labels of a task from its data; those of token tasks are read by `tags.py`."""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import datasets

from ...modeling.hierarchy import leaves_under, nodes_of
from ...modeling.task_config import TaskConfig
from ..kinds import CLOSED, kind_of
from ..kinds.values import is_missing, labels_in
from ..recipe.schema import TaskRecipe
from .corpora import partial_sets
from .label_values import INTEGER, ids_to_names
from .tags import TagSet, find_tags


def find_labels(
    name: str,
    task: TaskRecipe,
    splits: dict[str, datasets.Dataset],
    text: str | None = None,
) -> tuple[TaskConfig | None, list[str], list[str]]:
    """A task's labels and tag scheme from the train split.

    Columns of class ids with names (ClassLabel) are turned to names in `splits`.

    Args:
        name: of the task.
        task: as the recipe has it.
        splits: checked rows.
        text: for token tasks, column of the text; None where the words are joined by spaces.

    Returns:
        the task's config, notes on how its labels were read, and no faults; or None and the faults.
    """
    column, labels, tags = str(task.data.label), None, TagSet()
    counts: Counter[str] = Counter()
    faults: list[str] = []
    if kind_of(task).label_type in CLOSED:
        for split, rows in splits.items():
            splits[split] = ids_to_names(rows, column)
        if kind_of(task).label_type == "tags":
            tags = find_tags(name, task, splits, text)
            counts, faults = tags.counts, tags.faults
        else:
            counts = Counter(x for value in splits["train"][:][column] for x in labels_in(value))
        counts.pop(task.data.unmarked or "", None)
        leaves = _order(set(counts) - _inner_nodes(task, set(counts)))
        labels, more = _agree(name, task, leaves, tags.renamed)
        faults += more
        faults += _unordered(name, task, labels)
        faults += _unlabelled(name, task, splits)
        if tags.scheme is None and "entity_f1" in (task.metrics or []):
            faults.append(
                f"tasks.{name}.metrics: entity_f1 does not fit, the tags in {column!r} have no "
                "B-, I-, E- or S-; allowed: token_accuracy"
            )
    elif task.data.label is not None and all(map(is_missing, splits["train"][:][column])):
        what = "number" if kind_of(task).label_type == "number" else "label"
        faults = [f"tasks.{name}.data.label: no row of train has a {what} in {column!r}"]
    elif kind_of(task).label_type == "index":
        faults = _unlabelled(name, task, splits)
    partial = None
    if not faults:
        partial, faults = _allowed_sets(name, task, labels or [], tags.scheme, splits["train"])
    if faults:
        return None, [], faults
    try:
        weights = _class_weights(task, labels or [], counts, splits["train"])
        config = task.task_config(labels, tags.scheme, tags.signs, weights)
        return replace(config, partial=partial), tags.notes, []
    except ValueError as error:
        return None, [], [f"tasks.{name}: {error} (labels found in column {column!r} of train)"]


def _class_weights(
    task: TaskRecipe, labels: list[str], counts: Counter[str], rows: datasets.Dataset
) -> dict[str, float] | None:
    """The weights of a task's classes; `balanced` ones by their number, 1 where there is none.

    Args:
        task: the task.
        labels: all of it.
        counts: rows (words) of each label in train.
        rows: of train.
    """
    if not isinstance(task.class_weight, str):
        return task.class_weight
    there = [label for label in labels if counts[label]]
    if kind_of(task).label_type == "classes":
        total = sum(value is not None for value in rows[str(task.data.label)][:])
        return {label: (total - counts[label]) / counts[label] or 1.0 for label in there}
    total = sum(counts[label] for label in there)
    return {label: total / (len(there) * counts[label]) for label in there}


def _unlabelled(name: str, task: TaskRecipe, splits: dict[str, datasets.Dataset]) -> list[str]:
    """Splits in which no row has a label."""
    column = str(task.data.label)
    return [
        f"tasks.{name}.data.label: no row of {split} has a label in {column!r}"
        + ("; leave that split out with data.splits or data_files" if split != "train" else "")
        for split, rows in splits.items()
        if not any(value is not None for value in rows[:][column])
    ]


def _agree(
    name: str, task: TaskRecipe, labels: list[str], renamed: dict[str, str]
) -> tuple[list[str], list[str]]:
    """The labels in the recipe's order where it gives them; a fault where it leaves some out."""
    if task.labels is None:
        return labels, []
    listed = list(dict.fromkeys(renamed.get(str(x), str(x)) for x in task.labels))
    extra = [label for label in labels if label not in listed]
    if extra:
        return listed, [
            f"tasks.{name}.labels: train has {', '.join(map(repr, extra[:5]))}, which the recipe "
            "does not list; add it, or leave `labels` out to find them in the data"
        ]
    return listed, []


def _unordered(name: str, task: TaskRecipe, labels: list[str]) -> list[str]:
    """Labels whose order the data does not tell, of a task that needs one."""
    if not kind_of(task).ordered or task.labels is not None or _are_numbers(labels):
        return []
    return [
        f"tasks.{name}.labels: missing; name the labels in their order, the lowest first: train "
        f"has {', '.join(map(repr, labels[:5]))}"
    ]


def _inner_nodes(task: TaskRecipe, labels: set[str]) -> set[str]:
    """Of the labels of a tree those that others lie under."""
    if not kind_of(task).tree:
        return set()
    paths = labels | {str(label) for label in task.labels or []}
    return labels & {node for label in paths for node in nodes_of(label)[:-1]}


def _allowed_sets(
    name: str, task: TaskRecipe, labels: list[str], scheme: str | None, rows: datasets.Dataset
) -> tuple[list[list[str]] | None, list[str]]:
    """What units may be that do not say one label: sets, None without any; and faults."""
    if not kind_of(task).tree:
        if task.data.marks is None:
            return None, []
        sets, faults = partial_sets(task, labels, scheme, rows[:])
        return sets, [f"tasks.{name}.data.{fault}" for fault in faults]
    if task.data.marks is not None:
        why = "a row of a hierarchy says how much it knows by an inner node; take it out"
        return None, [f"tasks.{name}.data.marks: {why}"]
    values = {x for value in rows[:][str(task.data.label)] for x in labels_in(value)}
    inner = [leaves_under(node, labels) for node in sorted(_inner_nodes(task, values))]
    return [leaves for leaves in inner if len(leaves) > 1] or None, []


def _order(labels: set[str]) -> list[str]:
    """O first, then by number where all are numbers, else by name."""
    numbers = _are_numbers(labels)
    return sorted(labels, key=lambda x: (x != "O", int(x) if numbers else 0, x))


def _are_numbers(labels: Collection[str]) -> bool:
    return all(INTEGER.fullmatch(label) for label in labels)
