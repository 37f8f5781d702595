"""The tokenized rows of all sources as one dataset."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Any

import datasets
import numpy as np
import torch


class MultiTaskDataset(torch.utils.data.Dataset):
    """Tokenized rows of several sources, one after the other.

    Args:
        parts: tokenized rows by source name.
    """

    def __init__(self, parts: dict[str, datasets.Dataset]) -> None:
        self.parts = parts
        self.names = list(parts)
        self.ends = list(accumulate(len(part) for part in parts.values()))

    @property
    def ranges(self) -> dict[str, range]:
        """Row numbers of each source."""
        starts = [0, *self.ends[:-1]]
        return {n: range(s, e) for n, s, e in zip(self.names, starts, self.ends, strict=True)}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row's longest text, in its windows; of a block, of all texts."""
        lengths: list[int] = []
        for part in self.parts.values():
            measure = sum if "block" in part.column_names else max
            texts = ([sum(map(len, windows)) for windows in row] for row in _texts_of(part))
            lengths += list(map(measure, texts))
        return lengths

    @property
    def texts(self) -> list[frozenset[int]]:
        """The texts of each row as numbers, where it is a group of texts; else nothing."""
        rows = (
            [tuple(map(tuple, windows)) for windows in row]
            for part in self.parts.values()
            for row in _texts_of(part)
        )
        return [frozenset(map(hash, row)) if len(row) > 1 else frozenset() for row in rows]

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows by number, in the order asked for, each with the name of its `source`."""
        places = np.searchsorted(self.ends, indices, side="right")
        rows: dict[int, dict[str, Any]] = {}
        for part in np.unique(places):
            name = self.names[part]
            start = self.ranges[name].start
            chosen = [i for i, p in zip(indices, places, strict=True) if p == part]
            batch = self.parts[name][[i - start for i in chosen]]
            for k, i in enumerate(chosen):
                rows[i] = {"source": name, **{key: batch[key][k] for key in batch}}
        return [rows[i] for i in indices]


def _texts_of(part: datasets.Dataset) -> Iterator[list[list[list[int]]]]:
    """Of each row the texts, of each text the windows that are pooled."""
    columns = part[:]
    counts = columns.get("window_counts")
    for number, row in enumerate(columns["input_ids"]):
        windows = iter(row)
        of_text = [1] * len(row) if counts is None else counts[number]
        yield [list(islice(windows, count)) for count in of_text]
