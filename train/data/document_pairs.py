"""Pairs of sentences made from documents, for pretraining on what goes with what.

next_sentence (arXiv:1810.04805): two neighbours, or in half of the pairs the second is a sentence
of another document. sentence_order (arXiv:1909.11942): two neighbours, in half of the pairs
swapped. Each sentence but the last of a document begins one pair. What is drawn depends on split
and pair alone, so every run makes the same pairs.
"""

import re
from copy import copy

import datasets
import numpy as np

from ..recipe.data_config import SPLITS
from ..recipe.schema import TaskRecipe

END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9])")  # of a sentence
FIRST, SECOND, RELATION = "sentence", "other_sentence", "relation"
LABELS = {"next_sentence": ("next", "random"), "sentence_order": ("in_order", "swapped")}
SEED = 0


def sentences_of(text: str) -> list[str]:
    """The sentences of a text: cut behind . ! ? and closing quotes, before a capital or number."""
    ends = [0, *(match.end() for match in END.finditer(text)), len(text)]
    parts = (text[start:end].strip() for start, end in zip(ends[:-1], ends[1:], strict=True))
    return [part for part in parts if part]


def make_pairs(
    tasks: dict[str, TaskRecipe], splits: dict[str, datasets.Dataset]
) -> tuple[dict[str, TaskRecipe], dict[str, datasets.Dataset]]:
    """The tasks that read pairs, and the pairs of each split instead of its documents.

    Args:
        tasks: over the same documents; their `data.pairs` says which pairs, `data.text` the column.
        splits: raw rows.

    Raises:
        ValueError: a split has no two sentences in a row, or none of another document.
    """
    data = next(iter(tasks.values())).data
    column, kind = str(data.text), str(data.pairs)
    for split, rows in splits.items():
        if column not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise ValueError(f"text: {split} has no column {column!r}; it has: {there}")
    made = {split: _pairs(kind, split, rows[column]) for split, rows in splits.items()}
    return {name: with_columns(task) for name, task in tasks.items()}, made


def with_columns(task: TaskRecipe) -> TaskRecipe:
    """The task with the columns of its pairs; the same one where it makes none."""
    if task.data.pairs is None:
        return task
    task, data = copy(task), copy(task.data)
    data.text, data.text_pair, data.label = FIRST, SECOND, RELATION
    task.data = data
    return task


def _pairs(kind: str, split: str, documents: list) -> datasets.Dataset:
    parts = [sentences_of(text) if isinstance(text, str) else [] for text in documents[:]]
    flat = [(number, sentence) for number, part in enumerate(parts) for sentence in part]
    begins = [i for i in range(len(flat) - 1) if flat[i][0] == flat[i + 1][0]]
    if not begins:
        raise ValueError(f"pairs: {split} has no document of two sentences")
    if kind == "next_sentence" and len({number for number, _ in flat}) < 2:
        raise ValueError(f"pairs: {split} has one document; a random sentence is one of another")
    rng = np.random.default_rng((SEED, SPLITS.index(split)))
    other = rng.random(len(begins)) < 0.5
    rows: dict[str, list[str]] = {FIRST: [], SECOND: [], RELATION: []}
    for begin, changed in zip(begins, other, strict=True):
        one, two = flat[begin][1], flat[begin + 1][1]
        if changed and kind == "sentence_order":
            one, two = two, one
        elif changed:
            while flat[drawn := int(rng.integers(len(flat)))][0] == flat[begin][0]:
                pass
            two = flat[drawn][1]
        rows[FIRST].append(one)
        rows[SECOND].append(two)
        rows[RELATION].append(LABELS[kind][int(changed)])
    return datasets.Dataset.from_dict(rows)
