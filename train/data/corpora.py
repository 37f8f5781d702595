"""Rows of several places that train one head, and what each of them marks.

A corpus that marks genes says nothing about diseases: its O means "no gene". Such rows are partly
annotated. `marked_types` says what a row marks; a word with O may then have any other label, and
the loss sums over what is allowed (`modeling/problem_types.py`).
"""

from dataclasses import replace

import datasets

from ..kinds.partial import allowed_labels, row_marks, type_of
from ..kinds.tokens import tags_in
from ..kinds.values import labels_in, rows_named
from ..recipe.schema import TaskRecipe
from .formats import read_annotations
from .label_values import ids_to_names
from .splits import load_splits

Splits = dict[str, datasets.Dataset]
MARKS = "marks"  # column of joined rows
STRINGS = datasets.List(datasets.Value("string"))


def join_corpora(name: str, task: TaskRecipe) -> tuple[dict[str, TaskRecipe], Splits]:
    """The rows of all places of a token task's data, one after the other.

    Args:
        name: of the task.
        task: its data has `more`.

    Returns:
        the task as it reads the joined rows, and these.

    Raises:
        OSError: as `load_splits`.
        ValueError: a place cannot be read, or has no words or tags where they are named.
    """
    joined: dict[str, list[datasets.Dataset]] = {}
    places = [task.data, *(task.data.more or [])]
    for number, data in enumerate(places):
        alone = replace(task, data=replace(data, more=None))
        named = [data.text, data.tokens, data.label, data.marks]
        columns = {column for column in named if isinstance(column, str)}
        splits = load_splits(alone, columns)
        made, _, faults = read_annotations({name: alone}, splits)
        if faults:
            raise ValueError(f"{number}: {'; '.join(faults)}")
        for split, rows in splits.items():
            try:
                joined.setdefault(split, []).append(_plain_rows(made[name], rows))
            except ValueError as error:
                raise ValueError(f"{number}: {split}: {error}") from error
    whole = {split: datasets.concatenate_datasets(parts) for split, parts in joined.items()}
    one = replace(task.data, more=None, format=None, text=None, tokens="tokens", label="label")
    return {name: replace(task, data=replace(one, marks=MARKS))}, whole


def _plain_rows(task: TaskRecipe, rows: datasets.Dataset) -> datasets.Dataset:
    """Words, tags as strings, and the types that each row marks."""
    data = task.data
    named = {"tokens": data.tokens, "label": data.label}
    named |= {"marks": data.marks} if isinstance(data.marks, str) else {}
    for key, column in named.items():
        if column not in rows.column_names:
            raise ValueError(f"{key}: no column {column!r}; it has: {', '.join(rows.column_names)}")
    rows = ids_to_names(rows, str(data.label))
    raw: dict[str, list] = {str(column): rows[column][:] for column in named.values()}
    words, tags = raw[str(data.tokens)], raw[str(data.label)]
    for key, column in (("tokens", words), ("label", tags)):
        bad = [row for row, value in enumerate(column) if not isinstance(value, (list, type(None)))]
        if bad:
            raise ValueError(f"{key}: no list in {rows_named(bad)}, but {column[bad[0]]!r:.60}")
    columns = {
        "tokens": words,
        "label": [tags_in(row) for row in tags],
        MARKS: row_marks(data, raw) or [None] * len(words),
    }
    features = {"tokens": STRINGS, "label": STRINGS, MARKS: STRINGS}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def partial_sets(
    task: TaskRecipe, labels: list[str], scheme: str | None, raw: dict[str, list]
) -> tuple[list[list[str]] | None, list[str]]:
    """The sets of labels that units of partly annotated rows may have.

    Args:
        task: its data names what is marked.
        labels: all labels of the task.
        scheme: of its tags.
        raw: columns of the train rows.

    Returns:
        sets, in an order that depends on nothing else, None without any; and faults.
    """
    values, unmarked = raw[str(task.data.label)], task.data.unmarked or "O"
    marks = row_marks(task.data, raw) or [None] * len(values)
    types = sorted({type_of(label, scheme) for label in labels} - {unmarked})
    sets = set()
    for row, (marked, value) in enumerate(zip(marks, values, strict=True)):
        if marked is None:
            continue
        if unknown := sorted(set(marked) - set(types)):
            known = ", ".join(map(repr, types))
            return None, [f"marks: row {row} names {unknown[0]!r}; those of train are: {known}"]
        others = {type_of(label, scheme) for label in labels_in(value)} - {unmarked} - set(marked)
        if others:
            says = ", ".join(map(repr, marked)) or "nothing"
            fault = f"marks: row {row} has the label {min(others)!r}, but marks only {says}"
            return None, [fault]
        sets.add(tuple(allowed_labels(labels, marked, unmarked, scheme)))
    if () in sets:
        return None, [f"marks: names all labels; no row may be {unmarked!r} then"]
    return [list(part) for part in sorted(sets) if len(part) > 1] or None, []
