"""Rows of several sources spread evenly over the steps of an epoch."""

import math
from collections.abc import Mapping

import numpy as np


def even(rows: int, parts: int) -> list[int]:
    """Sizes of `parts` nearly equal parts."""
    return [rows // parts + (part < rows % parts) for part in range(parts)]


def interleave(sources: list[np.ndarray], steps: int) -> np.ndarray:
    """One sequence of `steps` stretches; two of them differ by a row of a source at most."""
    ends = np.cumsum([len(rows) for rows in sources])
    dealt = np.split(np.arange(ends[-1]) % steps, ends[:-1])  # as cards: one source, then the next
    order = np.argsort(np.concatenate([*map(np.sort, dealt)]), kind="stable")
    return np.concatenate(sources)[order]


def gather(
    drawn: Mapping[str, np.ndarray], together: Mapping[str, int], sizes: list[int]
) -> dict[str, list[int]]:
    """By source of `together`, its rows in each of the mixed steps: 0 in most of them.

    Its steps are evenly spaced among those with the most room, so that two sources share a step
    only where there are too few. One whose rows fit nowhere in such numbers is left out.

    Args:
        drawn: row numbers of each source in an epoch.
        together: by source, how many of its rows come into a step.
        sizes: rows in each step.
    """
    room = np.array(sizes)
    by_source = {}
    for name in sorted(together.keys() & drawn.keys()):
        rows = len(drawn[name])
        least = max(rows // together[name], math.ceil(rows / max(room.max(), 1)), 1)
        for count in range(least, len(sizes) + 1):
            free = np.flatnonzero(room >= math.ceil(rows / count))
            if len(free) >= count:
                break
        else:
            continue
        roomiest = free[room[free] == room.max()]
        free = roomiest if len(roomiest) >= count else free
        chosen = free[np.arange(count) * len(free) // count]
        counts = np.zeros(len(sizes), dtype=int)
        counts[chosen] = even(rows, count)
        room -= counts
        by_source[name] = counts.tolist()
    return by_source


def fill(
    drawn: dict[str, np.ndarray], gathered: dict[str, list[int]], sizes: list[int]
) -> list[np.ndarray]:
    """Steps of these sizes: the rows that come together, then an even mixture of the others."""
    parts = [np.split(drawn[name], np.cumsum(counts)[:-1]) for name, counts in gathered.items()]
    others = [rows for name, rows in drawn.items() if name not in gathered]
    if others:
        room = np.array(sizes) - np.sum([*gathered.values()], axis=0)
        places = np.concatenate([(np.arange(len(rows)) + 0.5) / len(rows) for rows in others])
        mixture = np.concatenate(others)[np.argsort(places, kind="stable")]
        parts.append(np.split(mixture, np.cumsum(room)[:-1]))
    return [np.concatenate(step) for step in zip(*parts, strict=True)]
