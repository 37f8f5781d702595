"""Targets of training rows: computed once by a model, kept on the host, found again by row.

Shapes: `E` units with a target (texts, or words), `n` of them in a batch, `D` width of a target.
"""

from collections.abc import Callable, Sequence
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
# Rows of the dataset -> the numbers (n,) and targets (n, D) of their units.
Compute = Callable[[list[int]], tuple[Tensor, Tensor]]


class RowNumbers:
    """The rows of a batch by their number in the dataset, and what texts they hold.

    Args:
        dataset: tokenized rows of all sources.
        sources: all sources, as the collator counts them.
    """

    def __init__(self, dataset: MultiTaskDataset, sources: Sequence[str]) -> None:
        texts, longest, first_windows, starts, total = [], [], [], {}, 0
        for name, part in dataset.parts.items():
            table: Any = part.select_columns(["input_ids", "window"]).with_format("arrow")[:]
            rows: Any = pa.concat_arrays(table.column("input_ids").chunks)
            counts = np.asarray(rows.value_lengths()).astype(int)
            lengths = np.asarray(rows.flatten().value_lengths()).astype(int)
            texts.append(counts)
            longest.append(np.maximum.reduceat(lengths, counts.cumsum() - counts))
            first = np.flatnonzero(table.column("window").to_numpy() == 0)
            first_windows.append(first + dataset.ranges[name].start)
            starts[name] = total
            total += len(first)
        self.texts = np.concatenate(texts)  # of each row of the dataset
        self.longest = np.concatenate(longest)  # tokens of its longest text
        self._first_windows = np.concatenate(first_windows)
        self._starts = np.array([starts[name] for name in sources])

    def rows_of(self, batch: dict[str, Any]) -> np.ndarray:
        """(examples,): number in the dataset of each example of a batch."""
        first = self._starts[batch["sources"].numpy()] + batch["rows"].numpy()
        return self._first_windows[first] + batch["windows"].numpy()

    def batches(self, rows: np.ndarray, tokens: int = TOKENS) -> list[list[int]]:
        """These rows in batches of about so many tokens, the longest first."""
        rows = rows[np.argsort(-self.longest[rows], kind="stable")]
        batches: list[list[int]] = [[]]
        used = 0
        for row, size in zip(rows.tolist(), (self.longest * self.texts)[rows], strict=True):
            if batches[-1] and used + size > tokens:
                batches.append([])
                used = 0
            batches[-1].append(row)
            used += int(size)
        return batches


class TextNumbers:
    """The texts of some rows, numbered in the order of the dataset.

    Args:
        rows: all rows of the dataset.
        chosen: for each of them, whether its texts get a number.
    """

    def __init__(self, rows: RowNumbers, chosen: np.ndarray) -> None:
        self.rows = rows
        self._chosen = chosen
        targets = np.where(chosen, rows.texts, 0)
        self._first = targets.cumsum() - targets
        self.count = int(targets.sum())

    def count_in(self, batch: dict[str, Any]) -> int:
        """How many texts of a batch have a number."""
        rows = self.rows.rows_of(batch)
        return int(self.rows.texts[rows][self._chosen[rows]].sum())

    def texts_in(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(n,) positions in a batch of the texts with a number, and (n,) the numbers."""
        rows = self.rows.rows_of(batch)
        examples, inside = spread(self.rows.texts[rows])
        numbers = self._first[rows][examples] + inside
        positions = np.flatnonzero(self._chosen[rows][examples])
        return torch.from_numpy(positions), torch.from_numpy(numbers[positions])

    def batches(self, tokens: int = TOKENS) -> list[list[int]]:
        """The chosen rows in batches of about so many tokens, longest rows first."""
        return self.rows.batches(np.flatnonzero(self._chosen), tokens)


def spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[2, 1] -> [0, 0, 1] and [0, 1, 0]: whose each unit is, and its place there."""
    owners = np.repeat(np.arange(len(counts)), counts)
    return owners, np.arange(len(owners)) - np.repeat(counts.cumsum() - counts, counts)


def rows_of_sources(dataset: MultiTaskDataset, names: Sequence[str]) -> np.ndarray:
    """For each row of a dataset, whether it is of one of these sources."""
    return np.concatenate(
        [np.full(len(part), name in names) for name, part in dataset.parts.items()]
    )


def compute_targets(
    batches: list[list[int]],
    count: int,
    compute: Compute,
    *,
    accelerator: Accelerator,
    title: str,
    progress: bool = True,
) -> Tensor:
    """The targets of all units, the same on all ranks, each of which computes a share.

    Batches do not depend on the number of ranks, so neither do the targets.

    Args:
        batches: rows of the dataset.
        count: E, units in all.
        compute: rows to their units' numbers and targets, of a floating type.
        accelerator: knows the ranks. All of them have to call this.
        title: of the progress bar.
        progress: show one, on the first rank.

    Returns:
        (E, D) on the host; NaN where no batch had the unit.
    """
    ranks, rank = accelerator.num_processes, accelerator.process_index
    rounds = [batches[first : first + ranks] for first in range(0, len(batches), ranks)]
    targets = torch.empty(0)
    for members in tqdm(rounds, desc=title, disable=not (progress and accelerator.is_main_process)):
        # at the end a rank may compute what another does too
        numbers, values = compute(members[min(rank, len(members) - 1)])
        if not targets.numel():
            options: Any = {"dtype": values.dtype}
            targets = torch.full((count, values.shape[1]), float("nan"), **options)
        for units, computed in _of_all_ranks(numbers, values, accelerator):
            targets[units.cpu()] = computed.cpu()
    return targets


def _of_all_ranks(
    numbers: Tensor, values: Tensor, accelerator: Accelerator
) -> list[tuple[Tensor, Tensor]]:
    if accelerator.num_processes == 1:
        return [(numbers, values)]
    shared = (from_all_ranks(part.to(values.device), accelerator) for part in (numbers, values))
    return list(zip(*shared, strict=True))
