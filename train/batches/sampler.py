"""Which rows make which batch: a pure function of (seed, epoch, step).

A strategy says how many rows of each source an epoch takes (`strategies.py`); the rest is the same
for all. Each source is an endless stream of its rows, shuffled anew for each pass, and an epoch
goes on where the last one ended: whatever the strategy, an epoch draws no row of a source a second
time before it has drawn all that the epochs before it left over.

A loss that compares the rows of a batch with each other needs them at once: a source of `together`
comes into a mixed step with so many of its rows, or not at all.

An optimizer step takes `batch_size * accumulation * replicas` rows; the sampler draws the steps
first and then cuts each into micro-batches. So 1 x 32, 4 x 8 accumulated, and 2 ranks x 16 see the
same rows at the same step. The rows of an epoch are spread evenly over its steps, and each mixed
step has each source's share of them, or of the room that `together` leaves, to within a row. All
epochs have the same number of steps.

Under accelerate rank r takes batches r, r + replicas, ...; `batch_size` is None, because its
sharding drops batches of varying size from a sampler that states one.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np
from transformers import TrainingArguments

from ..recipe.sections import MultiTaskArguments, Sampling
from .by_class import balanced_stream
from .mixing import even, fill, gather, interleave
from .strategies import (
    apportion,
    by_source,
    can_gather,
    option_faults,
    rows_of_epoch,
    spread_duplicates,
)

BUCKET = 16  # optimizer steps whose rows are sorted by length together


class MultiTaskBatchSampler:
    """Batches of row numbers over several sources.

    Args:
        ranges: row numbers of each source.
        sampling: the strategy. Weights, schedule and order_of_tasks name sources here; see
            `strategies.by_source`.
        batch_size: rows in a micro-batch.
        replicas: number of ranks.
        accumulation: micro-batches of a rank in an optimizer step.
        seed: together with the epoch it decides everything.
        passes: passes over a source's rows in an epoch, for proportional and sequential; default 1.
        lengths: tokens of each row, for `sampling.batch_tokens` (the steps of an epoch, of a source
            where batches are pure, then get equal shares of its tokens) and for order by length.
        texts: the texts of each row, as numbers; rows with a text in common then share no step, as
            far as there are other rows to put between them.
        classes: by source whose rows are drawn by class, the class of each row, negative for none.
        together: by source, how many of its rows come into a mixed step, or none. They stand at its
            beginning, so that as many as fit share a micro-batch. Not where rows are sorted by
            length or `batch_tokens` are counted: both say themselves which rows share a step.

    Raises:
        ValueError: there are fewer rows than ranks.
    """

    batch_size = None
    drop_last = False

    def __init__(
        self,
        ranges: dict[str, range],
        sampling: Sampling | None = None,
        *,
        batch_size: int,
        replicas: int = 1,
        accumulation: int = 1,
        seed: int = 0,
        passes: dict[str, float] | None = None,
        lengths: Sequence[int] | None = None,
        texts: Sequence[frozenset[int]] | None = None,
        together: Mapping[str, int] | None = None,
        classes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.ranges = dict(sorted(ranges.items()))
        self.sampling = sampling or Sampling()
        self.rows_per_batch = batch_size
        self.replicas = replicas
        self.accumulation = accumulation
        self.seed = seed
        self.passes = passes or {}
        self.batch_tokens = self.sampling.batch_tokens
        self.lengths = np.asarray([] if lengths is None else lengths)
        self.texts = texts
        self.together = dict(together or {}) if can_gather(self.sampling) else {}
        self.classes = dict(classes or {})
        self.epoch = 0
        self.stopped: dict[str, int] = {}  # source to the first epoch without it
        if faults := option_faults(self.sampling, {name: [name] for name in self.ranges}):
            raise ValueError("; ".join(faults))
        for name, sizes in self._plan(0).items():
            if sum(sizes) < replicas:
                raise ValueError(
                    f"{name or 'the data'} has {sum(sizes)} rows for {replicas} ranks; "
                    "each needs one a step"
                )

    @property
    def pure(self) -> bool:
        """A step has rows of one source."""
        return self.sampling.batches == "pure"

    def set_epoch(self, epoch: int) -> None:
        """Draw for this epoch."""
        self.epoch = epoch

    def stop(self, source: str, epoch: int) -> None:
        """Draw no rows of a source from `epoch` on; the steps of an epoch get fewer rows."""
        self.stopped.setdefault(source, epoch)

    # ---- how many rows ----

    def draws(self, epoch: int) -> dict[str, int]:
        """Rows of each source in an epoch."""
        sizes = self._plan(epoch)
        if self.pure:
            return {name: sum(steps) for name, steps in sizes.items()}
        total = sum(sizes[""])
        rows = self._rows_by_source(epoch) or self._rows_by_source(epoch, every=True)
        return rows if sum(rows.values()) == total else apportion(total, rows)

    def summary(self, epochs: float) -> list[str]:
        """How many rows of each source a training of so many epochs draws, a line for each."""
        whole = max(1, math.ceil(epochs))
        parts = [min(1.0, epochs - epoch) for epoch in range(whole)]  # of each epoch
        drawn = [self.draws(epoch) for epoch in range(whole)]
        lines = []
        for name, rows in self.ranges.items():
            counts = [rows_of.get(name, 0) for rows_of in drawn]
            total = sum(part * count for part, count in zip(parts, counts, strict=True))
            low, high = min(counts), max(counts)
            each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            alike = ", of each class as many" if name in self.classes else ""
            lines.append(
                f"{name}: draws {each} of its {len(rows):,} rows an epoch, "
                f"{total:,.0f} in {epochs:g} epochs ({total / len(rows):.2f} passes){alike}"
            )
        return lines

    def _rows_by_source(self, epoch: int, *, every: bool = False) -> dict[str, int]:
        """Rows of each source that still trains (or of `every` one), as the strategy has it."""
        sizes = {name: len(rows) for name, rows in self.ranges.items()}
        unit = self._full_step if self.pure and self.batch_tokens is None else 1
        rows = rows_of_epoch(self.sampling, sizes, epoch, passes=self.passes, unit=unit)
        last = {} if every else self.stopped
        return {n: c for n, c in rows.items() if c and epoch < last.get(n, math.inf)}

    def _plan(self, epoch: int) -> dict[str, list[int]]:
        """Sizes of the steps of each source, or of the mixed ones, under the name ''.

        Steps of a stopped source go to the others, whose rows are spread over more of them.
        """
        every = self._rows_by_source(epoch, every=True)
        groups = {name: {name: rows} for name, rows in every.items()} if self.pure else {"": every}
        steps = {name: self._step_sizes(rows) for name, rows in groups.items()}
        if epoch and self.batch_tokens is not None:
            steps = self._as_many_steps(steps)
        left = self._rows_by_source(epoch)
        if left == every or not left:
            return steps
        if self.pure:
            counts = apportion(sum(map(len, steps.values())), {n: len(steps[n]) for n in left})
        else:
            left, counts = {"": sum(left.values())}, {"": len(steps[""])}
        least = self.micro_batches_per_step
        return {n: even(max(left[n], counts[n] * least), counts[n]) for n in left}

    def _as_many_steps(self, steps: dict[str, list[int]]) -> dict[str, list[int]]:
        """The same rows in as many steps as the first epoch has: shares change its tokens."""
        total, least = sum(map(len, self._plan(0).values())), self.micro_batches_per_step
        if len(steps) > total:
            return steps
        rows = {name: sum(sizes) for name, sizes in steps.items()}
        counts = apportion(total, {name: len(sizes) for name, sizes in steps.items()})
        return {n: even(rows[n], max(1, min(counts[n], rows[n] // least))) for n in steps}

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a step over all ranks, the least number of rows in a full step."""
        return self.accumulation * self.replicas

    @property
    def _full_step(self) -> int:
        """Rows of a full step over all ranks, where rows are counted."""
        return self.rows_per_batch * self.micro_batches_per_step

    def _step_sizes(self, drawn: dict[str, int]) -> list[int]:
        """Sizes of the steps of rows: nearly equal, each with a row for every micro-batch.

        With `batch_tokens` only their number counts, which all epochs have in common.
        """
        rows, least = sum(drawn.values()), self.micro_batches_per_step
        if self.batch_tokens is not None:
            tokens = sum(count * self._mean_length(name) for name, count in drawn.items())
            steps = math.ceil(tokens / (self.batch_tokens * least))
            return even(rows, max(1, min(steps, rows // least)))
        steps = math.ceil(rows / self._full_step)
        if steps == 1 or rows // steps >= least:
            return even(rows, steps)
        last = rows - self._full_step * (steps - 1)
        if self.pure or last < self.replicas:  # short steps would mix sources, or idle a rank
            return even(rows, steps - 1)
        return [*even(rows - last, steps - 1), last]

    def _mean_length(self, source: str) -> float:
        rows = self.ranges[source]
        return float(self.lengths[rows.start : rows.stop].mean())

    @property
    def has_short_steps(self) -> bool:
        """Some step has fewer micro-batches than the others; then no source can stop."""
        return min(min(sizes) for sizes in self._plan(0).values()) < self.micro_batches_per_step

    # ---- which rows ----

    def __len__(self) -> int:
        return sum(
            self._micro_batches(n) for sizes in self._plan(self.epoch).values() for n in sizes
        )

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn, least = self._rows_of_epoch(), self.micro_batches_per_step
        steps: dict[str, list[np.ndarray]] = {}
        plan = self._plan(self.epoch)
        gathered = {} if self.pure else gather(drawn, self.together, plan[""])
        if self.texts is not None:
            for name, rows in drawn.items():
                sizes = plan[name if self.pure else ""]
                most = max(sizes) if self.pure else math.ceil(len(rows) / len(sizes)) + 1
                if name in gathered:
                    most = max(gathered[name])
                drawn[name] = spread_duplicates(rows, self.texts, most)
        for name, sizes in plan.items():
            if gathered:
                steps[name] = fill(drawn, gathered, sizes)
                continue
            rows = drawn[name] if self.pure else interleave(list(drawn.values()), len(sizes))
            steps[name] = self._split(self._bucket(rows), sizes, least)
        # A step with fewer micro-batches than the others would shift all that follow it.
        for step in sorted(self._in_turn(steps, rng), key=lambda step: len(step) < least):
            for batch in self._split(step, even(len(step), self._micro_batches(len(step))), 1):
                yield batch.tolist()

    def _split(self, rows: np.ndarray, sizes: list[int], least: int) -> list[np.ndarray]:
        """Parts of these sizes; with `batch_tokens` as many of equal tokens, `least` rows each."""
        if self.batch_tokens is None:
            return np.split(rows, np.cumsum(sizes)[:-1])
        tokens, parts = self.lengths[rows].cumsum(), len(sizes)
        even = np.arange(1, parts) * tokens[-1] / parts
        cuts = np.searchsorted(tokens, even, side="right")
        first = least * np.arange(1, parts)  # each part has its least rows, and leaves room
        cuts = np.maximum.accumulate(np.maximum(cuts - first, 0)) + first
        return np.split(rows, np.minimum(cuts, len(rows) - first[::-1]))

    def _in_turn(
        self, steps: dict[str, list[np.ndarray]], rng: np.random.Generator
    ) -> list[np.ndarray]:
        """The steps of all sources in the order to take."""
        if self.pure and self.sampling.strategy == "sequential":
            names = self.sampling.order_of_tasks or []
            return [step for name in names for step in steps.get(name, [])]
        if self.pure and self.sampling.strategy == "round_robin":
            turns = zip_longest(*steps.values())
            return [step for turn in turns for step in turn if step is not None]
        every = [step for of_source in steps.values() for step in of_source]
        return [every[number] for number in rng.permutation(len(every))]

    def _rows_of_epoch(self) -> dict[str, np.ndarray]:
        """Row numbers of each source in this epoch; a source's stream does not know the others."""
        before: dict[str, int] = dict.fromkeys(self.ranges, 0)
        for epoch in range(self.epoch):
            for name, count in self.draws(epoch).items():
                before[name] += count
        return {
            name: self._stream(name, before[name], count)
            for name, count in self.draws(self.epoch).items()
        }

    def _stream(self, name: str, start: int, count: int) -> np.ndarray:
        """Rows `start` to `start + count` of a source's endless stream."""
        rows = self.ranges[name]
        if name in self.classes:
            seed = [self.seed, zlib.crc32(name.encode())]
            return rows.start + balanced_stream(self.classes[name], start, count, seed)
        first, last = start // len(rows), (start + count - 1) // len(rows)
        seeds = [
            [self.seed, zlib.crc32(name.encode()), number] for number in range(first, last + 1)
        ]
        passes = [np.random.default_rng(seed).permutation(len(rows)) for seed in seeds]
        begin = start - first * len(rows)
        return rows.start + np.concatenate(passes)[begin : begin + count]

    def _bucket(self, rows: np.ndarray) -> np.ndarray:
        """Sort by length within stretches of `BUCKET` steps; between stretches chance remains."""
        if self.sampling.order != "length":
            return rows
        stretch = BUCKET * self._rows_per_step
        parts = np.split(rows, range(stretch, len(rows), stretch))
        return np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in parts])

    @property
    def _rows_per_step(self) -> int:
        if self.batch_tokens is None:
            return self._full_step
        tokens = self.batch_tokens * self.micro_batches_per_step
        return max(1, round(tokens / float(self.lengths.mean())))

    def _micro_batches(self, rows: int) -> int:
        """Micro-batches of a step over all ranks: as many for each rank, none without a row."""
        return self.replicas * max(1, min(self.accumulation, rows // self.replicas))


def make_sampler(
    ranges: dict[str, range],
    sources: dict[str, list[str]],
    multitask: MultiTaskArguments,
    args: TrainingArguments,
    lengths: Sequence[int] | None = None,
    texts: Sequence[frozenset[int]] | None = None,
    together: Mapping[str, int] | None = None,
    classes: Mapping[str, np.ndarray] | None = None,
) -> MultiTaskBatchSampler:
    """The sampler of a training.

    Args:
        ranges: row numbers of each source.
        sources: source name to its tasks.
        multitask: sampling, by task.
        args: batch size, accumulation, ranks and seed.
        lengths: tokens of each row, where tokens are counted or rows sorted by them.
        texts: the texts of each row, to be kept apart.
        together: by source, how many of its rows come into a mixed step, or none.
        classes: by source, the class of each row, where rows are drawn by class.

    Raises:
        ValueError: there are fewer rows than ranks.
    """
    return MultiTaskBatchSampler(
        ranges,
        by_source(multitask.sampling, sources),
        batch_size=args.per_device_train_batch_size,
        replicas=args.world_size,
        accumulation=args.gradient_accumulation_steps,
        seed=args.seed if args.data_seed is None else args.data_seed,
        passes=multitask.passes,
        lengths=lengths,
        texts=texts,
        together=together,
        classes=classes,
    )


def epochs_of(args: TrainingArguments, sampler: MultiTaskBatchSampler) -> float:
    """Epochs that a training lasts, where `max_steps` decides too."""
    if args.max_steps <= 0:
        return args.num_train_epochs
    return args.max_steps * sampler.micro_batches_per_step / len(sampler)
