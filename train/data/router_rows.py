"""Rows of a router: texts of the other tasks, each labelled with the tasks that it is for.

As many of each source as of the others, so that no task is likely because it has many rows; and few
of them, as each is encoded once more in an epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import datasets
import numpy as np

from ..recipe.data_config import ROUTER_LABELS, ROUTER_TEXT, SPLITS

MOST_ROWS = 500  # of a source and split
FEATURES = datasets.Features(
    {ROUTER_TEXT: datasets.Value("string"), ROUTER_LABELS: datasets.List(datasets.Value("string"))}
)


class TextSource(Protocol):
    """What is asked of a `Source`, which stands on this file."""

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The tasks over its rows, by name."""
        ...

    @property
    def splits(self) -> Mapping[str, datasets.Dataset]:
        """Its rows."""
        ...

    def texts_of(self, batch: dict[str, list]) -> list[list[Any]]:
        """By column, the texts of rows."""
        ...


def router_rows(sources: Sequence[TextSource], names: list[str]) -> dict[str, datasets.Dataset]:
    """Rows by split, with a text and its tasks.

    A text that several sources have, in whatever split, is for the tasks of all of them.

    Args:
        sources: checked rows of the other tasks; those of none of `names` are left out.
        names: the tasks that texts can be for.
    """
    read = [source for source in sources if not set(names).isdisjoint(source.tasks)]
    drawn: dict[str, dict[str, set[str]]] = {}  # by split, the tasks of each text
    for split in SPLITS:
        texts = [text for s in read if split in s.splits for text in _draw(_texts(s, split))]
        if texts:
            drawn[split] = {text: set() for text in texts}
    for source in read:
        tasks = set(names).intersection(source.tasks)
        for split in source.splits:
            for text in _texts(source, split):
                for labels in drawn.values():
                    if text in labels:
                        labels[text] |= tasks
    return {split: _rows(labels) for split, labels in drawn.items()}


def _rows(labels: dict[str, set[str]]) -> datasets.Dataset:
    columns = {ROUTER_TEXT: list(labels), ROUTER_LABELS: list(map(sorted, labels.values()))}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _texts(source: TextSource, split: str) -> Iterator[str]:
    """All texts of a split that say something, of each text column in turn."""
    for column in source.texts_of(source.splits[split][:]):
        yield from (text for text in column if text.strip())


def _draw(texts: Iterator[str]) -> list[str]:
    """Different ones of these, `MOST_ROWS` at most; the same each time."""
    different = list(dict.fromkeys(texts))
    chosen = np.random.default_rng(0).permutation(len(different))[:MOST_ROWS]
    return [different[number] for number in np.sort(chosen)]
