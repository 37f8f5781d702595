"""Batches are a function of (seed, epoch): each row once, the same steps on any number of ranks.

An optimizer step is what HF's Trainer makes of the batches: `accumulation` of them on each rank,
fewer only in the last step of an epoch.
"""

from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhead.train.sampler import BUCKET, MultiTaskBatchSampler

settings.register_profile("unit", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("unit")

SIZES = st.lists(st.integers(4, 70), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**32 - 1)
LAYOUTS = {  # the same 32 rows a step: (rows in a micro-batch, accumulation, replicas)
    "1x32": (32, 1, 1),
    "4x8": (8, 4, 1),
    "2 ranks x 16": (16, 1, 2),
    "2 ranks x 2 x 8": (8, 2, 2),
    "4 ranks x 8": (8, 1, 4),
}


def ranges_of(sizes):
    """Sources named by letters, one after the other, as `MultiTaskDataset` has them."""
    ends = list(accumulate(sizes))
    return {chr(97 + i): range(end - sizes[i], end) for i, end in enumerate(ends)}


def sampler_of(sizes, *, layout=(8, 1, 1), **options):
    size, accumulation, replicas = layout
    return MultiTaskBatchSampler(
        ranges_of(sizes),
        batch_size=size,
        accumulation=accumulation,
        replicas=replicas,
        **options,
    )


def shards_of(sampler):
    """The batches of each rank, as accelerate deals them."""
    count = sampler.replicas
    return [
        list(BatchSamplerShard(sampler, num_processes=count, process_index=rank))
        for rank in range(count)
    ]


def steps_of(sampler):
    """The rows of each optimizer step, over its micro-batches and ranks."""
    shards = shards_of(sampler)
    group = sampler.accumulation
    return [
        [row for shard in shards for batch in shard[start : start + group] for row in batch]
        for start in range(0, len(shards[0]), group)
    ]


def sources_in(rows, sampler):
    return {name for name, own in sampler.ranges.items() if set(rows) & set(own)}


layouts = st.tuples(st.integers(1, 9), st.integers(1, 4), st.sampled_from([1, 2, 4]))
kinds = st.sampled_from(["mixed", "pure"])


class TestCoverage:
    @given(SIZES, layouts, kinds, SEEDS)
    def test_every_row_comes_exactly_once_an_epoch(self, sizes, layout, kind, seed):
        sampler = sampler_of(sizes, layout=layout, batches=kind, seed=seed)
        rows = [row for batch in sampler for row in batch]
        assert sorted(rows) == list(range(sum(sizes)))

    @given(SIZES, layouts, kinds, SEEDS)
    def test_accelerate_deals_every_row_to_exactly_one_rank(self, sizes, layout, kind, seed):
        shards = shards_of(sampler_of(sizes, layout=layout, batches=kind, seed=seed))
        assert Counter(row for shard in shards for batch in shard for row in batch) == Counter(
            range(sum(sizes))
        )
        assert len({len(shard) for shard in shards}) == 1

    @given(SIZES, layouts, kinds, SEEDS)
    def test_its_length_is_the_number_of_batches(self, sizes, layout, kind, seed):
        sampler = sampler_of(sizes, layout=layout, batches=kind, seed=seed)
        assert len(sampler) == len(list(sampler))

    @given(SIZES, layouts, kinds)
    def test_no_batch_is_empty(self, sizes, layout, kind):
        assert min(map(len, sampler_of(sizes, layout=layout, batches=kind))) > 0

    @given(SIZES, layouts)
    def test_a_batch_is_no_larger_than_asked_for(self, sizes, layout):
        assert max(map(len, sampler_of(sizes, layout=layout))) <= layout[0]

    @given(SIZES, layouts)
    def test_a_pure_batch_of_single_rows_may_hold_two(self, sizes, layout):
        sampler = sampler_of(sizes, layout=layout, batches="pure")
        assert max(map(len, sampler)) <= max(2, layout[0])

    @given(SIZES, layouts.filter(lambda layout: layout[0] > 1))
    def test_the_rows_of_an_epoch_are_spread_evenly_over_its_steps(self, sizes, layout):
        lengths = [len(step) for step in steps_of(sampler_of(sizes, layout=layout))]
        assert max(lengths) - min(lengths) <= 1

    def test_a_sum_that_is_no_multiple_makes_no_short_batch(self):
        lengths = [len(batch) for batch in sampler_of([33], layout=(8, 1, 1))]
        assert sorted(lengths) == [6, 6, 7, 7, 7]


class TestSteps:
    @given(st.lists(st.integers(8, 90), min_size=1, max_size=4), kinds, SEEDS)
    def test_a_step_has_the_same_rows_however_it_is_cut(self, sizes, kind, seed):
        found = []
        for layout in LAYOUTS.values():
            sampler = sampler_of(sizes, layout=layout, batches=kind, seed=seed)
            found.append([sorted(step) for step in steps_of(sampler)])
        assert all(steps == found[0] for steps in found)

    @given(st.lists(st.integers(4, 40), min_size=1, max_size=5), layouts, SEEDS)
    def test_a_step_of_pure_batches_reads_one_source_on_all_ranks(self, sizes, layout, seed):
        sampler = sampler_of(sizes, layout=layout, batches="pure", seed=seed)
        steps = [sources_in(step, sampler) for step in steps_of(sampler)]
        # sources that fill less than one step share the last ones
        short = {n for n, rows in sampler.ranges.items() if len(rows) < layout[1] * layout[2]}
        assert all(len(sources) == 1 or sources <= short for sources in steps)
        order = [sources <= short for sources in steps]
        assert order == sorted(order)

    @given(SIZES, layouts, SEEDS)
    def test_micro_batches_at_one_place_of_all_ranks_are_of_one_source(self, sizes, layout, seed):
        sampler = sampler_of(sizes, layout=layout, batches="pure", seed=seed)
        for together in zip(*shards_of(sampler), strict=True):
            assert len(sources_in([row for batch in together for row in batch], sampler)) == 1

    def test_pure_steps_of_the_sources_are_shuffled_among_each_other(self):
        sampler = sampler_of([64, 64], layout=(8, 1, 1), batches="pure")
        order = [min(sources_in(step, sampler)) for step in steps_of(sampler)]
        assert sorted(order) == ["a"] * 8 + ["b"] * 8
        assert order not in (["a"] * 8 + ["b"] * 8, ["b"] * 8 + ["a"] * 8)

    def test_mixed_steps_hold_rows_of_several_sources(self):
        sampler = sampler_of([64, 64], layout=(32, 1, 1))
        assert [len(sources_in(step, sampler)) for step in steps_of(sampler)] == [2] * 4


class TestDeterminism:
    @given(SIZES, layouts, kinds, SEEDS, st.integers(0, 20))
    def test_seed_and_epoch_decide_everything(self, sizes, layout, kind, seed, epoch):
        one, other = (sampler_of(sizes, layout=layout, batches=kind, seed=seed) for _ in range(2))
        one.set_epoch(epoch)
        list(other)  # what was read before does not matter
        other.set_epoch(epoch)
        assert list(one) == list(other) == list(one)

    @pytest.mark.parametrize("kind", ["mixed", "pure"])
    def test_another_epoch_or_seed_is_another_order(self, kind):
        orders = []
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
            sampler = sampler_of([40, 40], batches=kind, seed=seed)
            sampler.set_epoch(epoch)
            orders.append([row for batch in sampler for row in batch])
        assert len({tuple(order) for order in orders}) == 4

    @given(SIZES, kinds, SEEDS)
    def test_the_order_of_the_sources_does_not_matter(self, sizes, kind, seed):
        ranges = ranges_of(sizes)
        one, other = (
            MultiTaskBatchSampler(dict(given), batch_size=8, batches=kind, seed=seed)
            for given in (ranges.items(), reversed(ranges.items()))
        )
        assert list(one) == list(other)


class TestLengths:
    """Rows of like length share a step; chance remains between stretches of `BUCKET` steps."""

    @given(SIZES, layouts, kinds, SEEDS)
    def test_every_row_still_comes_exactly_once(self, sizes, layout, kind, seed):
        lengths = np.random.default_rng(seed).integers(3, 64, sum(sizes))
        sampler = sampler_of(sizes, layout=layout, batches=kind, seed=seed, lengths=lengths)
        shards = shards_of(sampler)
        assert Counter(row for shard in shards for batch in shard for row in batch) == Counter(
            range(sum(sizes))
        )
        assert len(sampler) == len(list(sampler))

    def test_steps_of_a_stretch_do_not_overlap_in_length(self):
        lengths = np.random.default_rng(0).permutation(BUCKET * 8)
        sampler = sampler_of([BUCKET * 8], lengths=lengths)
        spans = sorted((lengths[batch].min(), lengths[batch].max()) for batch in sampler)
        assert spans == [(8 * i, 8 * i + 7) for i in range(BUCKET)]

    def test_steps_come_in_no_order_of_length(self):
        lengths = np.arange(BUCKET * 8)
        means = [lengths[batch].mean() for batch in sampler_of([BUCKET * 8], lengths=lengths)]
        assert means != sorted(means)
        assert means != sorted(means, reverse=True)


class TestFewRows:
    @pytest.mark.parametrize("kind", ["mixed", "pure"])
    def test_one_row_is_one_batch(self, kind):
        assert list(sampler_of([1], layout=(8, 4, 1), batches=kind)) == [[0]]

    def test_fewer_rows_than_ranks_are_refused(self):
        with pytest.raises(ValueError, match="b has 3 rows for 4 ranks"):
            sampler_of([8, 3], layout=(8, 1, 4))

    @pytest.mark.parametrize("replicas", [1, 2, 4])
    def test_a_source_of_as_many_rows_as_ranks_gives_each_one(self, replicas):
        sampler = sampler_of([replicas], layout=(8, 4, replicas), batches="pure")
        assert sorted(map(tuple, sampler)) == [(row,) for row in range(replicas)]
