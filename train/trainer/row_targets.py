"""Targets of training rows: computed once by a model, kept on the host, found again by row.

Shapes: `E` texts with a target, `n` of them in a batch, `D` width of a vector.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..data.dataset import MultiTaskDataset
from .gradcache import from_all_ranks

TOKENS = 2**14  # of a batch while targets are computed


class TextNumbers:
    """The texts of some sources, numbered in the order of the dataset's rows.

    Args:
        dataset: tokenized rows of all sources.
        sources: all sources, as the collator counts them.
        chosen: those of them whose texts get a number.
    """

    def __init__(
        self, dataset: MultiTaskDataset, sources: Sequence[str], chosen: Sequence[str]
    ) -> None:
        texts, longest, chosen_rows, first_rows, row_numbers = [], [], [], [], []
        for name, part in dataset.parts.items():
            table: Any = part.with_format("arrow")[:]
            rows: Any = pa.concat_arrays(table.column("input_ids").chunks)
            counts = np.asarray(rows.value_lengths()).astype(int)
            lengths = np.asarray(rows.flatten().value_lengths()).astype(int)
            texts.append(counts)
            longest.append(np.maximum.reduceat(lengths, counts.cumsum() - counts))
            chosen_rows.append(np.full(len(counts), name in chosen))
            windows = table.column("window").to_numpy()
            numbers = np.flatnonzero(windows == 0) + dataset.ranges[name].start
            first_rows.append((name, sum(map(len, row_numbers))))
            row_numbers.append(numbers)
        self._texts = np.concatenate(texts)  # of each row of the dataset
        self._longest = np.concatenate(longest)
        self._chosen = np.concatenate(chosen_rows)
        targets = np.where(self._chosen, self._texts, 0)
        self._first = targets.cumsum() - targets
        self._row_numbers = np.concatenate(row_numbers)  # of the first window of each row
        self._source_starts = np.array([dict(first_rows)[name] for name in sources])
        self.count = int(targets.sum())

    def rows_of(self, batch: dict[str, Any]) -> np.ndarray:
        """(examples,): number in the dataset of each example of a batch."""
        first = self._source_starts[batch["sources"].numpy()] + batch["rows"].numpy()
        return self._row_numbers[first] + batch["windows"].numpy()

    def count_in(self, batch: dict[str, Any]) -> int:
        """How many texts of a batch have a number."""
        rows = self.rows_of(batch)
        return int(self._texts[rows][self._chosen[rows]].sum())

    def texts_in(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(n,) positions in a batch of the texts with a number, and (n,) the numbers."""
        rows = self.rows_of(batch)
        counts = self._texts[rows]
        examples = np.repeat(np.arange(len(rows)), counts)
        inside = np.arange(len(examples)) - np.repeat(counts.cumsum() - counts, counts)
        numbers = self._first[rows][examples] + inside
        positions = np.flatnonzero(self._chosen[rows][examples])
        return torch.from_numpy(positions), torch.from_numpy(numbers[positions])

    def batches(self, tokens: int = TOKENS) -> list[list[int]]:
        """The chosen rows of the dataset in batches of about so many tokens, longest rows first."""
        rows = np.flatnonzero(self._chosen)
        rows = rows[np.argsort(-self._longest[rows], kind="stable")]
        batches: list[list[int]] = [[]]
        used = 0
        for row, size in zip(rows.tolist(), (self._longest * self._texts)[rows], strict=True):
            if batches[-1] and used + size > tokens:
                batches.append([])
                used = 0
            batches[-1].append(row)
            used += int(size)
        return batches


def compute_targets(
    dataset: MultiTaskDataset,
    numbers: TextNumbers,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    forward: Callable[[dict[str, Any]], Tensor],
    *,
    accelerator: Accelerator,
    title: str,
    progress: bool = True,
) -> Tensor:
    """The targets of all numbered texts, the same on all ranks, each of which computes a share.

    Batches do not depend on the number of ranks, so neither do the targets.

    Args:
        dataset: tokenized rows of all sources.
        numbers: which texts.
        collate: rows to a batch.
        forward: a batch to (N, D), a target of each of its texts, of any type.
        accelerator: knows the ranks. All of them have to call this.
        title: of the progress bar.
        progress: show one, on the first rank.

    Returns:
        (E, D) on the host.
    """
    batches = numbers.batches()
    ranks, rank = accelerator.num_processes, accelerator.process_index
    shown = progress and accelerator.is_main_process
    rounds = [batches[first : first + ranks] for first in range(0, len(batches), ranks)]
    targets: Tensor | None = None
    for members in tqdm(rounds, desc=title, disable=not shown):
        rows = members[min(rank, len(members) - 1)]  # one rank more often than needed at the end
        batch = collate(dataset.__getitems__(rows))
        positions, found = numbers.texts_in(batch)
        vectors = forward(batch)
        vectors = vectors[positions.to(vectors.device)]
        for entries, values in _of_all_ranks(found, vectors, accelerator):
            if targets is None:
                targets = values.new_empty(numbers.count, values.shape[1], device="cpu")
            targets[entries.cpu()] = values.cpu()
    assert targets is not None
    return targets


def _of_all_ranks(
    numbers: Tensor, vectors: Tensor, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    if accelerator.num_processes == 1:
        yield numbers, vectors
        return
    numbers = numbers.to(vectors.device)
    yield from zip(
        from_all_ranks(numbers, accelerator),
        from_all_ranks(vectors, accelerator),
        strict=True,
    )
