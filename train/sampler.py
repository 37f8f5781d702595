"""Which rows make which batch: a pure function of (seed, epoch).

An optimizer step takes `batch_size * accumulation * replicas` rows; the sampler draws the steps
first and then cuts each into micro-batches. So 1 x 32, 4 x 8 accumulated, and 2 ranks x 16 see the
same rows at the same step. The rows of an epoch are spread evenly over its steps: no short batch at
the end.

Under accelerate rank r takes batches r, r + replicas, ...; `batch_size` is None, because its
sharding drops batches of varying size from a sampler that states one.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

BUCKET = 16  # optimizer steps whose rows are sorted by length together


class MultiTaskBatchSampler:
    """Batches of row numbers over several sources, each row exactly once an epoch.

    Args:
        ranges: row numbers of each source.
        batch_size: rows in a micro-batch.
        batches: mixed draws a step's rows from all sources; pure from one, the same on all ranks.
        replicas: number of ranks.
        accumulation: micro-batches of a rank in an optimizer step.
        seed: together with the epoch it decides everything.
        lengths: tokens of each row; rows of like length then share a step, which saves padding.

    Raises:
        ValueError: there are fewer rows than ranks.
    """

    batch_size = None
    drop_last = False

    def __init__(
        self,
        ranges: dict[str, range],
        *,
        batch_size: int,
        batches: Literal["mixed", "pure"] = "mixed",
        replicas: int = 1,
        accumulation: int = 1,
        seed: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.ranges = dict(sorted(ranges.items()))
        self.micro = batch_size
        self.batches = batches
        self.replicas = replicas
        self.accumulation = accumulation
        self.seed = seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0
        for name, rows in self.ranges.items():
            if len(rows) < replicas:
                raise ValueError(
                    f"{name} has {len(rows)} rows for {replicas} ranks; each needs one a step"
                )

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for this epoch."""
        self.epoch = epoch

    @property
    def pools(self) -> dict[str, list[range]]:
        """Sources that share a step: all of them, or each alone."""
        if self.batches == "pure":
            return {name: [rows] for name, rows in self.ranges.items()}
        return {"": list(self.ranges.values())}

    def __len__(self) -> int:
        return sum(
            self._micro_batches(len(step))
            for parts in self.pools.values()
            for step in self._cut(np.arange(sum(map(len, parts))))
        )

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        steps = []
        for parts in self.pools.values():
            rows = np.concatenate([np.arange(p.start, p.stop) for p in parts])
            steps += self._cut(self._bucket(rng.permutation(rows)))
        order = rng.permutation(len(steps))
        # A step with fewer micro-batches than the others would shift all that follow it.
        for number in sorted(order, key=lambda i: self._is_short(steps[i])):
            step = steps[number]
            for batch in np.array_split(step, self._micro_batches(len(step))):
                yield batch.tolist()

    def _bucket(self, rows: np.ndarray) -> np.ndarray:
        """Sort by length within stretches of `BUCKET` steps; between stretches chance remains."""
        if self.lengths is None:
            return rows
        stretch = BUCKET * self.micro * self.accumulation * self.replicas
        parts = np.split(rows, range(stretch, len(rows), stretch))
        return np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in parts])

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows to steps of nearly equal size, each with a row for every micro-batch."""
        full = self.micro * self.accumulation * self.replicas
        steps = math.ceil(len(rows) / full)
        if steps == 1 or len(rows) // steps >= self.accumulation * self.replicas:
            return np.array_split(rows, steps)
        if self.batches == "pure":  # a short step of each source would mix them
            return np.array_split(rows, max(1, len(rows) // full))
        last = max(len(rows) - full * (steps - 1), self.replicas)
        return [*np.array_split(rows[:-last], steps - 1), rows[-last:]]

    def _is_short(self, step: np.ndarray) -> bool:
        return len(step) < self.accumulation * self.replicas

    def _micro_batches(self, rows: int) -> int:
        """Micro-batches of a step over all ranks: as many for each rank, none without a row."""
        return self.replicas * max(1, min(self.accumulation, rows // self.replicas))
