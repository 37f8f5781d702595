"""Rows drawn by class, `sampling.balance: label`: each class as often as any other.

The classes of a source take turns, in an order drawn anew for each turn; within a class each row
comes once before any comes again. Rows without a label are not drawn where no other task reads
them, else they are a class of their own.
"""

from collections.abc import Mapping

import numpy as np

from ...modeling.task_config import TaskConfig
from ..data.dataset import MultiTaskDataset
from ..kinds import kind_of
from ..recipe.schema import TaskRecipe


def balanced_tasks(
    sources: dict[str, list[str]], tasks: Mapping[str, TaskRecipe] | Mapping[str, TaskConfig]
) -> tuple[dict[str, str], list[str]]:
    """Source to the task by whose labels its rows are drawn, and why they cannot be.

    Args:
        sources: source name to its tasks.
        tasks: by name.
    """
    chosen, faults = {}, []
    for source, names in sources.items():
        with_class = [name for name in names if kind_of(tasks[name]).label_type == "class"]
        if len(with_class) > 1:
            both = " and ".join(with_class)
            faults.append(
                f"sampling.balance: {both} read the same rows, which cannot be drawn by the labels "
                "of each; take it out, or write class_weight in the tasks"
            )
        elif with_class:
            chosen[source] = with_class[0]
    if not chosen and not faults:
        faults.append("sampling.balance: no task has one label for each text; take it out")
    return chosen, faults


def classes_by_source(
    dataset: MultiTaskDataset, sources: dict[str, list[str]], tasks: Mapping[str, TaskConfig]
) -> dict[str, np.ndarray]:
    """By source whose rows are drawn by class: (rows,) class ids, negative for rows left out.

    Args:
        dataset: tokenized rows of all sources.
        sources: source name to its tasks.
        tasks: the model's, by name.

    Raises:
        ValueError: rows that cannot be drawn by class.
    """
    chosen, faults = balanced_tasks(sources, tasks)
    if faults:
        raise ValueError("; ".join(faults))
    classes = {}
    for source, task in chosen.items():
        labels = dataset.parts[source][f"labels_{task}"][:]
        if any(isinstance(label, list) for label in labels):
            raise ValueError(f"sampling.balance: rows of {task} have distributions, not one label")
        ids = np.array(labels)
        unlabelled = -1 if len(sources[source]) == 1 else ids.max() + 1
        classes[source] = np.where(ids < 0, unlabelled, ids)
    return classes


def balanced_stream(classes: np.ndarray, start: int, count: int, seed: list[int]) -> np.ndarray:
    """(count,) rows from number `start` on of an endless stream in which classes take turns.

    Args:
        classes: (rows,) class ids, negative for rows left out.
        start: rows of the stream that were drawn before.
        count: how many to draw.
        seed: decides everything, with these.
    """
    names = np.unique(classes[classes >= 0])
    members = [np.flatnonzero(classes == name) for name in names]
    first, last = start // len(names), (start + count - 1) // len(names)
    turns = np.arange(first, last + 1)
    rows = np.empty((len(names), len(turns)), dtype=int)  # of each class at each turn
    for number, of_class in enumerate(members):
        passes = turns // len(of_class)
        for one in np.unique(passes):
            order = np.random.default_rng([*seed, 1, number, int(one)]).permutation(of_class)
            rows[number, passes == one] = order[turns[passes == one] % len(of_class)]
    orders = [
        np.random.default_rng([*seed, 2, int(turn)]).permutation(len(names)) for turn in turns
    ]
    drawn = np.concatenate([rows[order, column] for column, order in enumerate(orders)])
    begin = start - first * len(names)
    return drawn[begin : begin + count]
