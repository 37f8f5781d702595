"""Labels of a task from its data: the label list, the tag scheme, tags of parts of words."""

from collections import Counter
from typing import Any

import datasets

from ...modeling.configuration_polyhead import TaskConfig, scheme_of
from ...modeling.decoding import legal_transitions, refine, split_tag
from ..recipe.schema import TaskRecipe
from .label_values import INTEGER, has_classes, ids_to_names


def labels_in(value: Any) -> list[str]:
    """The labels of one row: none, one, or a list of them."""
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def find_labels(
    name: str, task: TaskRecipe, splits: dict[str, datasets.Dataset]
) -> tuple[TaskConfig | None, list[str]]:
    """A task's labels and tag scheme from the train split.

    Columns of class ids with names (ClassLabel) are turned to names in `splits`.

    Returns:
        the task's config and no faults, or None and the faults.
    """
    column, labels, scheme = str(task.data.label), None, None
    faults: list[str] = []
    if has_classes(task):
        for split, rows in splits.items():
            splits[split] = ids_to_names(rows, column)
        counts = Counter(x for value in splits["train"][:][column] for x in labels_in(value))
        if task.head == "token_classification":
            scheme, faults = _find_scheme(name, task, splits, set(counts))
            counts.update(_split_word_tags(splits["train"], task, scheme))
        labels, more = _agree(name, task, _order(set(counts)))
        faults += more
        faults += _unlabelled(name, task, splits)
        if scheme is None and "entity_f1" in (task.metrics or []):
            faults.append(
                f"tasks.{name}.metrics: entity_f1 does not fit, the tags in {column!r} have no "
                "B-, I-, E- or S-; allowed: token_accuracy"
            )
    elif task.data.label is not None:
        known = [v for v in splits["train"][:][column] if v is not None and v == v]
        if not known:
            faults = [f"tasks.{name}.data.label: no row of train has a number in {column!r}"]
    if faults:
        return None, faults
    try:
        return task.task_config(labels, scheme), []
    except ValueError as error:
        return None, [f"tasks.{name}: {error} (labels found in column {column!r} of train)"]


def _unlabelled(name: str, task: TaskRecipe, splits: dict[str, datasets.Dataset]) -> list[str]:
    """Splits to evaluate on in which no row has a label."""
    column = str(task.data.label)
    return [
        f"tasks.{name}.data.label: no row of {split} has a label in {column!r}; leave that split "
        "out with data.splits or data_files"
        for split, rows in splits.items()
        if split != "train" and not any(value is not None for value in rows[:][column])
    ]


def _agree(name: str, task: TaskRecipe, found: list[str]) -> tuple[list[str], list[str]]:
    """The labels in the recipe's order where it gives them; a fault where it leaves some out."""
    if task.labels is None:
        return found, []
    given = [str(label) for label in task.labels]
    extra = [label for label in found if label not in given]
    if extra:
        return given, [
            f"tasks.{name}.labels: train has {', '.join(map(repr, extra[:5]))}, which the recipe "
            "does not list; add it, or leave `labels` out to find them in the data"
        ]
    return given, []


def _order(labels: set[str]) -> list[str]:
    """O first, then by number where all are numbers, else by name."""
    numbers = all(INTEGER.fullmatch(label) for label in labels)
    return sorted(labels, key=lambda x: (x != "O", int(x) if numbers else 0, x))


def _find_scheme(
    name: str, task: TaskRecipe, splits: dict[str, datasets.Dataset], tags: set[str]
) -> tuple[str | None, list[str]]:
    """The tag scheme that all rows follow, or the first row that breaks the nearest one."""
    place = f"tasks.{name}.data.label"
    marked = {tag for tag in tags if tag[:2] in ("B-", "I-", "E-", "S-")}
    if scheme_of(sorted(tags)) is None:
        odd = sorted(tags - marked - {"O"})
        if marked and task.scheme is None and len(marked) > len(odd):
            return None, [
                f"{place}: tags {', '.join(odd[:5])} stand beside {', '.join(sorted(marked)[:5])}; "
                "a tag is O or begins with B-, I-, E- or S-"
            ]
        return None, []
    broken = {}
    marks = {tag[:2] for tag in marked}
    possible = ("bioes",) if marks & {"E-", "S-"} else ("iob1", "iob2")
    for scheme in [task.scheme] if task.scheme else possible:
        broken[scheme] = _first_break(splits, str(task.data.label), scheme)
        if broken[scheme] is None:
            return scheme, []
    scheme = task.scheme or possible[-1]
    split, row, word, before, after = broken[scheme]  # pyright: ignore[reportGeneralTypeIssues]
    return None, [
        f"{place}: {split} breaks the tag scheme {scheme}: row {row}, word {word}: "
        f"{after!r} cannot follow {before!r}"
    ]


def _first_break(
    splits: dict[str, datasets.Dataset], column: str, scheme: str
) -> tuple[str, int, int, str, str] | None:
    """(split, row, word, tag before, tag) of the first tag that may not stand where it does."""
    for split, rows in splits.items():
        tags = [[str(tag) for tag in row] for row in rows[:][column]]
        labels = sorted({tag for row in tags for tag in row})
        index = {label: i for i, label in enumerate(labels)}
        starts, pairs, ends = (part.tolist() for part in legal_transitions(labels, scheme))
        for number, row in enumerate(tags):
            ids = [index[tag] for tag in row]
            if ids and not starts[ids[0]]:
                return split, number, 0, "the start", row[0]
            for word in range(1, len(ids)):
                if not pairs[ids[word - 1]][ids[word]]:
                    return split, number, word, row[word - 1], row[word]
            if ids and not ends[ids[-1]]:
                return split, number, len(row), row[-1], "the end"
    return None


def part_tags(tag: str, parts: int, scheme: str | None) -> list[str]:
    """Tags of the parts of a word that `split_words` cuts: B-x -> B-x, I-x, ..."""
    prefix, kind = split_tag(tag)
    if parts == 1 or scheme is None or prefix == "O":
        return [tag] * parts
    first = {"S": "B", "E": "I"}.get(prefix, prefix)
    last = "E" if prefix in "SE" else "I"
    return [f"{first}-{kind}", *[f"I-{kind}"] * (parts - 2), f"{last}-{kind}"]


def _split_word_tags(rows: datasets.Dataset, task: TaskRecipe, scheme: str | None) -> Counter[str]:
    """Tags that only appear once words are cut into parts; the model must know them too."""
    found: Counter[str] = Counter()
    batch = rows[:]
    for words, tags in zip(batch[task.data.tokens], batch[task.data.label], strict=True):
        for word, tag in zip(words, tags, strict=True):
            if tag != "O" and not word.isalnum():
                parts = len(refine(word, [(0, len(word))])[0])
                found.update(part_tags(str(tag), parts, scheme))
    return found
