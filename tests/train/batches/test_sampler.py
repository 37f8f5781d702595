"""Batches are a function of (seed, epoch, step): the same on any number of ranks, whatever the
strategy.

An optimizer step is what HF's Trainer makes of the batches: `accumulation` of them on each rank,
fewer only in the last step of an epoch. How many rows each strategy draws: `test_strategies.py`.
"""

from collections import Counter
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from polyhead.train.batches.sampler import BUCKET, MultiTaskBatchSampler, make_sampler
from polyhead.train.batches.strategies import spread_duplicates
from polyhead.train.recipe.sections import MultiTaskArguments, Sampling, SchedulePoint
from torch.utils.data import DataLoader
from transformers import TrainingArguments

settings.register_profile("unit", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("unit")

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


def sampler_of(
    sizes,
    *,
    layout=(8, 1, 1),
    seed=0,
    epoch=0,
    passes=None,
    lengths=None,
    texts=None,
    together=None,
    **sampling,
):
    size, accumulation, replicas = layout
    sampler = MultiTaskBatchSampler(
        ranges_of(sizes),
        Sampling(**sampling),
        batch_size=size,
        accumulation=accumulation,
        replicas=replicas,
        seed=seed,
        passes=passes,
        lengths=lengths,
        texts=texts,
        together=together,
    )
    sampler.set_epoch(epoch)
    return sampler


def rows_of(sampler):
    return [row for batch in sampler for row in batch]


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


def drawn_of(sampler, rows):
    """How many of these rows are of each source, none left out."""
    counts = Counter(name for row in rows for name, own in sampler.ranges.items() if row in own)
    return dict(sorted(counts.items()))


layouts = st.tuples(st.integers(1, 9), st.integers(1, 4), st.sampled_from([1, 2, 4]))
larger = layouts.filter(lambda layout: layout[0] > 1)  # micro-batches of one row allow for less
seeds = st.integers(0, 2**32 - 1)
epochs = st.integers(0, 3)
kinds = st.sampled_from(["mixed", "pure"])
any_sizes = st.lists(st.integers(4, 70), min_size=1, max_size=5)
strategies = st.sampled_from(
    ["proportional", "uniform", "temperature", "weights", "schedule", "round_robin", "sequential"]
)


@st.composite
def mixes(draw, kinds=kinds, sources=1):
    """Sizes and options of `sampler_of`: any strategy over up to five sources of 8 to 70 rows."""
    sizes = draw(st.lists(st.integers(8, 70), min_size=sources, max_size=5))
    names, count = list(ranges_of(sizes)), len(sizes)
    strategy, kind = draw(strategies), draw(kinds)
    assume(strategy != "sequential" or kind == "pure")
    weights = (
        st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0]), min_size=count, max_size=count)
        .filter(any)
        .map(lambda values: dict(zip(names, values, strict=True)))
    )
    options: dict = {"sizes": sizes, "strategy": strategy, "batches": kind}
    if strategy in ("proportional", "sequential"):
        options["passes"] = {name: draw(st.sampled_from([0.5, 1, 2.3])) for name in names}
    elif strategy != "round_robin":
        options["rows_per_epoch"] = draw(st.none() | st.integers(20, 200))
    if strategy == "temperature":
        options["temperature"] = draw(st.sampled_from([0.5, 1.0, 3.0]))
        options["size_cap"] = draw(st.none() | st.integers(5, 80))
    elif strategy == "weights":
        options["weights"] = draw(weights)
    elif strategy == "schedule":
        shares = st.sampled_from(["uniform", "proportional"]) | weights
        options["schedule"] = [
            SchedulePoint(epoch=epoch, weights=draw(shares)) for epoch in (0, 2.5)
        ]
    elif strategy == "round_robin":
        options["until"] = draw(st.sampled_from([None, "shortest", "longest"]))
    elif strategy == "sequential":
        options["order_of_tasks"] = draw(st.permutations(names))
    return options


mixed_only, pure_only = mixes(st.just("mixed")), mixes(st.just("pure"))


class TestCoverage:
    @given(any_sizes, layouts, kinds, seeds)
    def test_proportional_draws_every_row_exactly_once_an_epoch(self, sizes, layout, kind, seed):
        for epoch in range(2):
            sampler = sampler_of(sizes, layout=layout, batches=kind, seed=seed, epoch=epoch)
            assert sorted(rows_of(sampler)) == list(range(sum(sizes)))

    @given(mixes(), layouts, seeds)
    def test_no_row_is_drawn_again_before_all_of_its_source_were(self, mix, layout, seed):
        sampler = sampler_of(**mix, layout=layout, seed=seed)
        counts = np.zeros(sum(mix["sizes"]), int)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            np.add.at(counts, rows_of(sampler), 1)
            for own in sampler.ranges.values():
                assert np.ptp(counts[own]) <= 1

    @given(mixes(), layouts, seeds)
    def test_an_epoch_has_the_rows_that_draws_tells(self, mix, layout, seed):
        for epoch in (0, 1, 4):
            sampler = sampler_of(**mix, layout=layout, seed=seed, epoch=epoch)
            assert drawn_of(sampler, rows_of(sampler)) == sampler.draws(epoch)

    @given(mixes(), layouts, seeds)
    def test_accelerate_deals_every_batch_to_exactly_one_rank(self, mix, layout, seed):
        sampler = sampler_of(**mix, layout=layout, seed=seed)
        shards = shards_of(sampler)
        dealt = [batch for together in zip(*shards, strict=True) for batch in together]
        assert dealt == list(sampler)

    @given(mixes(), layouts)
    def test_its_length_is_the_number_of_batches_and_the_same_in_all_epochs(self, mix, layout):
        sampler = sampler_of(**mix, layout=layout)
        lengths = []
        for epoch in range(4):
            sampler.set_epoch(epoch)
            assert len(sampler) == len(list(sampler))
            lengths.append(len(sampler))
        assert len(set(lengths)) == 1

    @given(mixes(), layouts, epochs)
    def test_no_batch_is_empty(self, mix, layout, epoch):
        assert min(map(len, sampler_of(**mix, layout=layout, epoch=epoch))) > 0

    @given(mixes(), layouts, epochs)
    def test_a_batch_is_no_larger_than_asked_for(self, mix, layout, epoch):
        # one row for each batch: odd ones out join another, so that no rank and no step is short
        alone = layout[0] == 1 and (mix["batches"] == "pure" or layout[2] > 1)
        largest = max(map(len, sampler_of(**mix, layout=layout, epoch=epoch)))
        assert largest <= (2 if alone else layout[0])

    def test_a_stream_goes_on_where_the_last_epoch_ended(self):
        # 2 of 5 rows an epoch: two passes in five epochs, the second begins within the third
        sampler, epochs = sampler_of([5], passes={"a": 0.4}), []
        for epoch in range(5):
            sampler.set_epoch(epoch)
            epochs.append(rows_of(sampler))
        assert list(map(len, epochs)) == [2] * 5
        assert set(epochs[0] + epochs[1] + epochs[2]) == set(range(5))
        assert set(epochs[2] + epochs[3] + epochs[4]) == set(range(5))
        assert Counter(sum(epochs, [])) == dict.fromkeys(range(5), 2)

    @given(seeds)
    def test_a_stream_does_not_know_the_other_sources(self, seed):
        alone = sampler_of([40], seed=seed, passes={"a": 0.5})
        among = sampler_of([40, 9, 30], seed=seed, passes={"a": 0.5})
        assert set(rows_of(alone)) == {row for row in rows_of(among) if row < 40}

    def test_each_stream_has_an_order_of_its_own(self):
        rows = rows_of(sampler_of([40, 40], passes={"a": 0.5, "b": 0.5}))
        assert {row for row in rows if row < 40} != {row - 40 for row in rows if row >= 40}


class TestSteps:
    @given(mixes(), seeds, epochs)
    def test_a_step_has_the_same_rows_however_it_is_cut(self, mix, seed, epoch):
        found = []
        for layout in LAYOUTS.values():
            sampler = sampler_of(**mix, layout=layout, seed=seed, epoch=epoch)
            found.append([sorted(step) for step in steps_of(sampler)])
        assert all(steps == found[0] for steps in found)

    @given(mixed_only, larger)
    def test_the_rows_of_mixed_batches_are_spread_evenly_over_the_steps(self, mix, layout):
        steps = steps_of(sampler_of(**mix, layout=layout))
        assert max(map(len, steps)) - min(map(len, steps)) <= 1

    @given(mixed_only, larger, seeds, epochs)
    def test_two_mixed_steps_differ_by_one_row_of_a_source_at_most(self, mix, layout, seed, epoch):
        sampler = sampler_of(**mix, layout=layout, seed=seed, epoch=epoch)
        drawn = [drawn_of(sampler, step) for step in steps_of(sampler)]
        for name in sampler.ranges:
            assert np.ptp([counts.get(name, 0) for counts in drawn]) <= 1

    def test_many_small_sources_do_not_meet_in_one_step(self):
        # 100 rows in ten steps: nine and a tenth of `a`, one of the nine other rows
        for seed in range(20):
            sampler = sampler_of([91, *[1] * 9], layout=(10, 1, 1), seed=seed)
            of_a = sorted(drawn_of(sampler, step)["a"] for step in steps_of(sampler))
            assert of_a == [9] * 9 + [10]

    @given(pure_only, layouts, seeds)
    def test_a_step_of_pure_batches_reads_one_source_on_all_ranks(self, mix, layout, seed):
        sampler = sampler_of(**mix, layout=layout, seed=seed)
        steps = [set(drawn_of(sampler, step)) for step in steps_of(sampler)]
        # sources that fill less than one step share the last ones
        share = layout[1] * layout[2]
        short = {name for name, rows in sampler.draws(0).items() if rows < share}
        assert all(len(sources) == 1 or sources <= short for sources in steps)
        order = [sources <= short for sources in steps]
        assert order == sorted(order)
        assert sampler.has_short_steps == bool(short)

    @given(pure_only, layouts, seeds)
    def test_micro_batches_at_one_place_of_all_ranks_are_of_one_source(self, mix, layout, seed):
        sampler = sampler_of(**mix, layout=layout, seed=seed)
        for together in zip(*shards_of(sampler), strict=True):
            assert len(drawn_of(sampler, [row for batch in together for row in batch])) == 1

    def test_a_sum_that_is_no_multiple_makes_no_short_batch(self):
        lengths = [len(batch) for batch in sampler_of([33], layout=(8, 1, 1))]
        assert sorted(lengths) == [6, 6, 7, 7, 7]

    def test_pure_steps_of_the_sources_are_shuffled_among_each_other(self):
        sampler = sampler_of([64, 64], layout=(8, 1, 1), batches="pure")
        order = [min(drawn_of(sampler, step)) for step in steps_of(sampler)]
        assert sorted(order) == ["a"] * 8 + ["b"] * 8
        assert order not in (["a"] * 8 + ["b"] * 8, ["b"] * 8 + ["a"] * 8)

    def test_mixed_steps_hold_rows_of_several_sources(self):
        sampler = sampler_of([64, 32], layout=(12, 1, 1))
        assert [drawn_of(sampler, step) for step in steps_of(sampler)] == [{"a": 8, "b": 4}] * 8


class TestDeterminism:
    @given(mixes(), layouts, seeds, st.integers(0, 20))
    def test_seed_and_epoch_decide_everything(self, mix, layout, seed, epoch):
        one = sampler_of(**mix, layout=layout, seed=seed, epoch=epoch)
        other = sampler_of(**mix, layout=layout, seed=seed)
        list(other)  # what was read before does not matter
        other.set_epoch(epoch)
        assert list(one) == list(other) == list(one)

    @pytest.mark.parametrize("kind", ["mixed", "pure"])
    def test_another_epoch_or_seed_is_another_order(self, kind):
        orders = [
            tuple(rows_of(sampler_of([40, 40], batches=kind, seed=seed, epoch=epoch)))
            for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
        ]
        assert len(set(orders)) == 4

    def test_another_epoch_or_seed_is_another_order_of_the_sources(self):
        orders = [
            tuple(row < 80 for row in rows_of(sampler))
            for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
            for sampler in [sampler_of([80, 80], batches="pure", seed=seed, epoch=epoch)]
        ]
        assert len(set(orders)) == 4

    @given(mixes(), seeds, epochs)
    def test_the_order_of_the_sources_does_not_matter(self, mix, seed, epoch):
        def turned(named):
            return dict(reversed(named.items())) if isinstance(named, dict) else named

        one = sampler_of(**mix, seed=seed, epoch=epoch)
        points = [replace(p, weights=turned(p.weights)) for p in one.sampling.schedule or []]
        sampling = replace(
            one.sampling, weights=turned(one.sampling.weights), schedule=points or None
        )
        ranges, passes = turned(one.ranges), turned(one.passes)
        other = MultiTaskBatchSampler(ranges, sampling, batch_size=8, seed=seed, passes=passes)
        other.set_epoch(epoch)
        assert list(one) == list(other)


class TestMaking:
    """A recipe names tasks, the sampler sources; the rest is of TrainingArguments."""

    @pytest.mark.parametrize(("data_seed", "seed"), [({}, 1), ({"data_seed": 2}, 2)])
    def test_options_of_a_training(self, tmp_path, data_seed, seed):
        args = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            seed=1,
            use_cpu=True,
            **data_seed,
        )
        weights = Sampling(strategy="weights", weights={"slots": 3.0, "same": 1.0})
        ranges = {"intent+slots": range(30), "same": range(30, 50)}
        made = make_sampler(
            ranges,
            {"intent+slots": ["intent", "slots"], "same": ["same"]},
            MultiTaskArguments(sampling=weights),
            args,
        )
        expected = MultiTaskBatchSampler(
            ranges,
            Sampling(strategy="weights", weights={"intent+slots": 3.0, "same": 1.0}),
            batch_size=4,
            accumulation=2,
            seed=seed,
        )
        assert made.draws(0) == {"intent+slots": 38, "same": 12}  # of 50 rows 37.5 and 12.5
        assert list(made) == list(expected)

    def test_passes_and_lengths(self, tmp_path):
        args = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, use_cpu=True)
        passes, lengths = {"a": 0.5}, list(range(64))
        multitask = MultiTaskArguments(passes=passes, sampling=Sampling(order="length"))
        made = make_sampler({"a": range(64)}, {"a": ["a"]}, multitask, args, lengths)
        expected = sampler_of(
            [64], layout=(4, 1, 1), seed=42, passes=passes, lengths=lengths, order="length"
        )
        assert made.draws(0) == {"a": 32}
        assert list(made) == list(expected)


class TestResuming:
    """After a kill at any step the rest of the epoch is what it would have been."""

    @given(mixes(), layouts, seeds, epochs, st.floats(0, 1))
    def test_a_rank_gets_the_batches_that_were_left(self, mix, layout, seed, epoch, part):
        def loader(sampler, rank):
            shard = BatchSamplerShard(sampler, num_processes=sampler.replicas, process_index=rank)
            return DataLoader(range(sum(mix["sizes"])), batch_sampler=shard, collate_fn=list)

        rank = seed % layout[2]
        killed = sampler_of(**mix, layout=layout, seed=seed)
        list(loader(killed, rank))
        killed.set_epoch(epoch)
        anew = sampler_of(**mix, layout=layout, seed=seed, epoch=epoch)
        done = round(part * len(anew) / layout[2])
        left = skip_first_batches(loader(anew, rank), done)
        assert list(left) == list(loader(killed, rank))[done:]


@st.composite
def stops(draw):
    """Options of a sampler, a source that stops beside others, and its first epoch without."""
    options = draw(mixes(sources=2)) | {"layout": draw(layouts), "seed": draw(seeds)}
    name = draw(st.sampled_from(list(ranges_of(options["sizes"]))))
    sampler = sampler_of(**options)
    assume(not sampler.has_short_steps)
    assume(all(set(sampler.draws(epoch)) != {name} for epoch in range(7)))
    return options, name, draw(epochs)


class TestStopping:
    """A stopped source draws nothing from an epoch on; the epoch keeps its steps."""

    def test_mixed_steps_get_fewer_rows(self):
        # 96 rows in 12 steps of 8; from epoch 2 on the 64 of `a` in 12 steps: 4 x 6 + 8 x 5
        sampler = sampler_of([64, 32])
        sampler.stop("b", 2)
        assert [sampler.draws(epoch) for epoch in (1, 2)] == [{"a": 64, "b": 32}, {"a": 64}]
        sampler.set_epoch(2)
        assert sorted(map(len, sampler)) == [5] * 8 + [6] * 4
        assert sorted(rows_of(sampler)) == list(range(64))

    def test_mixed_steps_keep_a_row_for_every_micro_batch(self):
        # 64 rows in 4 steps of 2 x 8; the 4 rows of `a` are drawn twice to fill 4 steps of 2 x 1
        sampler = sampler_of([4, 60], layout=(8, 2, 1))
        sampler.stop("b", 0)
        assert sampler.draws(0) == {"a": 8}
        assert list(map(len, sampler)) == [1] * 8

    def test_pure_steps_go_to_the_others(self):
        # 8 + 4 + 4 steps of 8; then 16 steps for two sources of 32 rows: 8 each, of 4 rows
        sampler = sampler_of([64, 32, 32], batches="pure")
        sampler.stop("a", 1)
        assert sampler.draws(1) == {"b": 32, "c": 32}
        sampler.set_epoch(1)
        assert [len(batch) for batch in sampler] == [4] * 16

    def test_pure_steps_keep_a_row_for_every_micro_batch(self):
        # 1 + 8 steps of 4 x 2; then the 5 rows of `a` fill 9 steps of 4 x 1
        sampler = sampler_of([5, 64], layout=(2, 4, 1), batches="pure")
        sampler.stop("b", 0)
        assert sampler.draws(0) == {"a": 36}
        assert list(map(len, sampler)) == [1] * 36

    def test_the_first_word_counts(self):
        sampler = sampler_of([16, 16])
        sampler.stop("b", 1)
        sampler.stop("b", 3)
        assert [set(sampler.draws(epoch)) for epoch in (0, 1, 3)] == [{"a", "b"}, {"a"}, {"a"}]

    @pytest.mark.parametrize("kind", ["mixed", "pure"])
    def test_with_no_source_left_it_draws_as_before_so_that_the_epoch_can_end(self, kind):
        sampler = sampler_of([16, 24], batches=kind)
        for name in "ab":
            sampler.stop(name, 0)
        assert sampler.draws(0) == {"a": 16, "b": 24}
        assert sorted(rows_of(sampler)) == list(range(40))

    @given(stops())
    def test_the_epochs_before_are_as_without(self, stop):
        options, name, first = stop
        whole, sampler = sampler_of(**options), sampler_of(**options)
        sampler.stop(name, first)
        for epoch in range(first):
            whole.set_epoch(epoch)
            sampler.set_epoch(epoch)
            assert list(sampler) == list(whole)

    @given(stops())
    def test_it_draws_nothing_and_the_others_no_less_than_before(self, stop):
        options, name, first = stop
        whole, sampler = sampler_of(**options), sampler_of(**options)
        sampler.stop(name, first)
        for epoch in range(first, first + 3):
            sampler.set_epoch(epoch)
            others = {n: count for n, count in whole.draws(epoch).items() if n != name}
            found = sampler.draws(epoch)
            assert drawn_of(sampler, rows_of(sampler)) == found
            assert found.keys() == others.keys()
            assert all(found[n] >= count for n, count in others.items())
            if min(others.values()) >= len(whole):  # enough rows for every micro-batch
                assert found == others

    @given(stops())
    def test_every_epoch_has_as_many_batches_and_none_is_empty(self, stop):
        options, name, first = stop
        whole, sampler = sampler_of(**options), sampler_of(**options)
        sampler.stop(name, first)
        for epoch in range(first + 2):
            sampler.set_epoch(epoch)
            assert [bool(batch) for batch in sampler] == [True] * len(whole)
            assert len(sampler) == len(whole)

    @given(stops())
    def test_the_streams_of_the_others_go_on(self, stop):
        options, name, first = stop
        sampler, counts = sampler_of(**options), np.zeros(sum(options["sizes"]), int)
        sampler.stop(name, first)
        for epoch in range(first + 3):
            sampler.set_epoch(epoch)
            np.add.at(counts, rows_of(sampler), 1)
            assert all(np.ptp(counts[own]) <= 1 for own in sampler.ranges.values())

    @given(stops())
    def test_a_resumed_run_that_is_told_at_once_gets_the_same_batches(self, stop):
        options, name, first = stop
        told, resumed = sampler_of(**options), sampler_of(**options)
        resumed.stop(name, first)
        for epoch in range(first + 2):
            if epoch == first:
                told.stop(name, first)
            told.set_epoch(epoch)
            batches = list(told)
        resumed.set_epoch(first + 1)
        assert list(resumed) == batches

    @pytest.mark.parametrize(
        ("sizes", "layout", "kind", "short"),
        [
            ([3, 40], (8, 4, 1), "pure", True),  # 3 rows for 4 micro-batches
            ([3, 40], (8, 4, 1), "mixed", False),
            ([4, 40], (8, 2, 2), "pure", False),
            ([7], (8, 4, 2), "mixed", True),
            ([9], (1, 4, 1), "mixed", True),  # 4 + 4 + 1
            ([9], (1, 4, 1), "pure", False),  # 5 + 4
        ],
    )
    def test_a_step_is_short_with_fewer_rows_than_micro_batches(self, sizes, layout, kind, short):
        assert sampler_of(sizes, layout=layout, batches=kind).has_short_steps is short


class TestLengths:
    """Rows of like length share a step; chance remains between stretches of `BUCKET` steps."""

    @given(mixes(), layouts, seeds)
    def test_the_same_rows_are_drawn(self, mix, layout, seed):
        lengths = np.random.default_rng(seed).integers(3, 64, sum(mix["sizes"]))
        sampler = sampler_of(**mix, layout=layout, seed=seed, lengths=lengths, order="length")
        shuffled = sampler_of(**mix, layout=layout, seed=seed)
        assert sorted(rows_of(sampler)) == sorted(rows_of(shuffled))
        assert len(sampler) == len(list(sampler)) == len(shuffled)

    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
    def test_steps_of_a_stretch_do_not_overlap_in_length(self, layout):
        lengths = np.random.default_rng(0).permutation(BUCKET * 32)
        sampler = sampler_of([BUCKET * 32], layout=layout, lengths=lengths, order="length")
        spans = sorted((lengths[step].min(), lengths[step].max()) for step in steps_of(sampler))
        assert spans == [(32 * i, 32 * i + 31) for i in range(BUCKET)]

    def test_steps_come_in_no_order_of_length(self):
        lengths = np.arange(BUCKET * 8)
        means = [
            lengths[batch].mean()
            for batch in sampler_of([BUCKET * 8], lengths=lengths, order="length")
        ]
        assert means != sorted(means)
        assert means != sorted(means, reverse=True)


class TestBatchesOfTokens:
    """`batch_tokens`: equal tokens instead of equal rows."""

    @given(mixes(), layouts, seeds, epochs, st.integers(8, 400))
    def test_every_row_of_the_epoch_comes_and_no_batch_is_empty(
        self, mix, layout, seed, epoch, tokens
    ):
        lengths = np.random.default_rng(seed).integers(3, 64, sum(mix["sizes"]))
        options = {"layout": layout, "seed": seed, "epoch": epoch}
        try:
            sampler = sampler_of(**mix, **options, lengths=lengths, batch_tokens=tokens)
        except ValueError:  # a weight gives a source fewer rows than there are ranks
            reject()
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(batches)
        assert drawn_of(sampler, rows_of(sampler)) == {
            name: count for name, count in sampler.draws(epoch).items() if count
        }
        first = sampler_of(**mix, layout=layout, seed=seed, lengths=lengths, batch_tokens=tokens)
        assert len(first) == len(sampler)  # the steps of an epoch do not depend on its rows

    @pytest.mark.parametrize("order", ["shuffled", "length"])
    @pytest.mark.parametrize("kind", ["mixed", "pure"])
    def test_tokens_of_steps_differ_by_a_row_at_most(self, kind, order):
        lengths = np.random.default_rng(0).integers(3, 100, 900)
        sampler = sampler_of(
            [500, 400],
            layout=(1, 2, 2),
            lengths=lengths,
            batch_tokens=512,
            batches=kind,
            order=order,
        )
        found = [lengths[step].sum() for step in steps_of(sampler)]
        assert max(found) <= 4 * 512 + 100
        assert min(found) >= 4 * 512 - 4 * 100
        batches = [lengths[batch].sum() for batch in sampler]
        assert max(batches) <= 512 + 200

    def test_long_rows_come_in_small_batches(self):
        lengths = np.array([10] * 8 + [40] * 2)
        sampler = sampler_of([10], lengths=lengths, batch_tokens=80, order="length")
        assert sorted(map(sorted, sampler)) == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]

    def test_the_same_rows_a_step_on_any_number_of_ranks(self):
        lengths = np.random.default_rng(0).integers(3, 60, 400)
        options = {"lengths": lengths, "sizes": [250, 150]}
        one = sampler_of(**options, layout=(1, 1, 1), batch_tokens=512)
        expected = steps_of(one)
        for replicas, accumulation in ((2, 1), (1, 2), (2, 2), (4, 1)):
            layout = (1, accumulation, replicas)
            share = 512 // (replicas * accumulation)
            sampler = sampler_of(**options, layout=layout, batch_tokens=share)
            assert list(map(sorted, steps_of(sampler))) == list(map(sorted, expected))


class TestDuplicates:
    """`order: no_duplicates`; text n % 7 of row n is that of other rows too."""

    @staticmethod
    def sampler(batches="mixed", layout=(4, 1, 1), epoch=0, repeated=7):
        texts = [frozenset({number, 1000 + number % repeated}) for number in range(60)]
        texts += [frozenset()] * 40  # rows of one text
        size, replicas, accumulation = layout
        found = MultiTaskBatchSampler(
            {"pairs": range(60), "other": range(60, 100)},
            Sampling(batches=batches),
            batch_size=size,
            replicas=replicas,
            accumulation=accumulation,
            texts=texts,
        )
        found.set_epoch(epoch)
        return found, texts

    @pytest.mark.parametrize("batches", ["mixed", "pure"])
    @pytest.mark.parametrize("layout", [(4, 1, 1), (2, 2, 1), (2, 1, 2)])
    def test_no_step_has_a_text_twice_and_every_row_comes_once(self, batches, layout):
        for epoch in range(3):
            sampler, texts = self.sampler(batches, layout, epoch)
            steps = steps_of(sampler)
            assert sorted(row for step in steps for row in step) == list(range(100))
            for step in steps:
                found = [text for row in step for text in texts[row]]
                assert len(found) == len(set(found)), step

    def test_seed_and_epoch_decide_everything(self):
        one, two, other = (list(self.sampler(epoch=epoch)[0]) for epoch in (1, 1, 2))
        assert one == two
        assert one != other

    def test_where_all_rows_have_one_text_none_is_lost(self):
        sampler, _ = self.sampler("pure", repeated=1)
        assert sorted(row for batch in sampler for row in batch) == list(range(100))

    def test_the_order_stays_where_there_are_no_duplicates(self):
        rows = np.random.default_rng(0).permutation(50)
        texts = [frozenset({number}) for number in range(50)]
        assert spread_duplicates(rows, texts, 8).tolist() == rows.tolist()


class TestFewRows:
    @pytest.mark.parametrize("kind", ["mixed", "pure"])
    def test_one_row_is_one_batch(self, kind):
        assert list(sampler_of([1], layout=(8, 4, 1), batches=kind)) == [[0]]

    @pytest.mark.parametrize(
        ("sizes", "options", "message"),
        [
            ([8, 3], {"batches": "pure"}, "b has 3 rows for 4 ranks"),
            ([2, 1], {}, "the data has 3 rows for 4 ranks"),
            # fewer rows than there are
            ([8, 20], {"batches": "pure", "passes": {"b": 0.1}}, "b has 2 rows for 4 ranks"),
            ([1, 9], {"strategy": "round_robin"}, "the data has 2 rows for 4 ranks"),
            ([9, 9], {"strategy": "uniform", "rows_per_epoch": 3}, "the data has 3 rows for 4"),
        ],
    )
    def test_an_epoch_of_fewer_rows_than_ranks_is_refused(self, sizes, options, message):
        with pytest.raises(ValueError, match=message):
            sampler_of(sizes, layout=(8, 1, 4), **options)

    def test_an_epoch_of_fewer_rows_than_sources_is_refused(self):
        with pytest.raises(ValueError, match="2 rows cannot be shared by 3 tasks"):
            sampler_of([9, 9, 9], strategy="uniform", rows_per_epoch=2)

    @pytest.mark.parametrize("replicas", [1, 2, 4])
    def test_a_source_of_as_many_rows_as_ranks_gives_each_one(self, replicas):
        sampler = sampler_of([replicas], layout=(8, 4, replicas), batches="pure")
        assert sorted(map(tuple, sampler)) == [(row,) for row in range(replicas)]

    @pytest.mark.parametrize("kind", ["mixed", "pure"])
    @pytest.mark.parametrize("rows", range(4, 21))
    def test_every_rank_has_a_row_in_micro_batches_of_one(self, kind, rows):
        for layout in ((1, 1, 4), (1, 2, 4), (1, 3, 2), (1, 2, 2)):
            sampler = sampler_of([rows], layout=layout, batches=kind)
            assert sorted(rows_of(sampler)) == list(range(rows))
            assert {len(batch) for batch in sampler} <= {1, 2}


class TestSummary:
    def test_a_line_for_each_source(self):
        sampler = sampler_of(
            [1500, 10, 500],
            passes={"a": 0.5, "b": 3},
        )
        assert sampler.summary(2.5) == [
            "a: draws 750 of its 1,500 rows an epoch, 1,875 in 2.5 epochs (1.25 passes)",
            "b: draws 30 of its 10 rows an epoch, 75 in 2.5 epochs (7.50 passes)",
            "c: draws 500 of its 500 rows an epoch, 1,250 in 2.5 epochs (2.50 passes)",
        ]

    def test_draws_that_change_from_epoch_to_epoch(self):
        points = [(0, {"a": 1, "b": 0}), (2, {"a": 1, "b": 3})]
        schedule = [SchedulePoint(epoch=epoch, weights=weights) for epoch, weights in points]
        sampler = sampler_of([40, 40], strategy="schedule", schedule=schedule)
        # shares of b: 0, 3/8, 3/4 of 80
        assert sampler.summary(3) == [
            "a: draws 20 to 80 of its 40 rows an epoch, 150 in 3 epochs (3.75 passes)",
            "b: draws 0 to 60 of its 40 rows an epoch, 90 in 3 epochs (2.25 passes)",
        ]

    def test_of_no_epochs(self):
        assert sampler_of([8]).summary(0) == [
            "a: draws 8 of its 8 rows an epoch, 0 in 0 epochs (0.00 passes)"
        ]


# ---- rows that a loss compares come together ----


def gathered_of(sampler, name):
    """How many rows of a source each step has."""
    rows = set(sampler.ranges[name])
    return [sum(row in rows for row in step) for step in steps_of(sampler)]


def test_rows_that_are_compared_come_in_such_numbers_or_not_at_all():
    sizes = (100, 300, 240)
    sampler = sampler_of(sizes, layout=(32, 1, 1), together={"a": 16})
    plain = sampler_of(sizes, layout=(32, 1, 1))
    counts = gathered_of(sampler, "a")
    assert Counter(counts) == {17: 4, 16: 2, 0: 14}
    assert [len(step) for step in steps_of(sampler)] == [32] * 20
    assert sorted(rows_of(sampler)) == sorted(rows_of(plain)) == list(range(640))
    others = [b / (32 - a) for a, b in zip(counts, gathered_of(sampler, "b"), strict=True)]
    assert max(others) - min(others) < 0.1  # of the room that is left: evenly


def test_steps_smaller_than_the_rows_together_are_of_one_source():
    sampler = sampler_of((31, 81), layout=(8, 1, 1), together={"a": 16})
    assert Counter(gathered_of(sampler, "a")) == {8: 3, 7: 1, 0: 10}
    assert sorted(rows_of(sampler)) == list(range(112))


def test_few_rows_come_in_one_step():
    counts = gathered_of(sampler_of((5, 123), layout=(32, 1, 1), together={"a": 16}), "a")
    assert Counter(counts) == {5: 1, 0: 3}


def test_two_sources_do_not_share_a_step_while_there_are_others():
    sampler = sampler_of((64, 64, 256), layout=(32, 1, 1), together={"a": 16, "b": 16})
    pairs = list(zip(gathered_of(sampler, "a"), gathered_of(sampler, "b"), strict=True))
    assert Counter(pairs) == {(16, 0): 4, (0, 16): 4, (0, 0): 4}


def test_a_source_for_which_there_is_no_room_is_spread_as_others():
    sampler = sampler_of((60, 60, 8), layout=(32, 1, 1), together={"a": 30, "b": 32})
    assert Counter(gathered_of(sampler, "a")) == {30: 2, 0: 2}
    assert sorted(rows_of(sampler)) == list(range(128))
    everything = sampler_of((128,), layout=(32, 1, 1), together={"a": 16})
    assert sorted(rows_of(everything)) == list(range(128))


@pytest.mark.parametrize("options", [{"batches": "pure"}, {"order": "length"}])
def test_where_something_else_says_which_rows_share_a_step_nothing_changes(options):
    lengths = [row % 7 + 1 for row in range(200)]
    found = sampler_of((80, 120), together={"a": 16}, lengths=lengths, **options)
    assert list(found) == list(sampler_of((80, 120), lengths=lengths, **options))


@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    rows=st.integers(2, 40),
    layout=st.sampled_from(list(LAYOUTS.values())),
    epoch=st.integers(0, 2),
)
def test_together_on_any_ranks(sizes, rows, layout, epoch):
    assume(sum(sizes) >= layout[1] * layout[2])
    together = {"a": rows, "c": rows}
    sampler = sampler_of(sizes, layout=layout, epoch=epoch, together=together)
    one = sampler_of(sizes, layout=(32, 1, 1), epoch=epoch, together=together)
    plain = sampler_of(sizes, layout=layout, epoch=epoch)
    assert sorted(rows_of(sampler)) == sorted(rows_of(plain))
    assert len(list(sampler)) == len(sampler)
    if sum(sizes) % 32 == 0:
        assert [sorted(s) for s in steps_of(sampler)] == [sorted(s) for s in steps_of(one)]


def test_duplicates_are_kept_apart_between_the_steps_of_rows_together():
    texts = [frozenset([row % 32]) if row < 64 else frozenset([row]) for row in range(192)]
    sampler = sampler_of(
        (64, 128), layout=(32, 1, 1), order="no_duplicates", texts=texts, together={"a": 16}
    )
    for step in steps_of(sampler):
        seen = Counter(text for row in step for text in texts[row])
        assert max(seen.values()) == 1
