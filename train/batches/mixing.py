"""Rows of several sources spread evenly over the steps of an epoch."""

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
