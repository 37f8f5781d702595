"""How many rows of each source an epoch takes, and in which order tasks take turns.

The expected numbers are worked out by hand. Steps are of 8 rows; with pure batches the strategies
over weights share out whole steps.
"""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhead.train.batches.sampler import MultiTaskBatchSampler
from polyhead.train.batches.strategies import (
    apportion,
    by_source,
    passes_by_source,
    rows_of_epoch,
    sampling_faults,
    sources_of,
)
from polyhead.train.recipe.data_config import DataConfig
from polyhead.train.recipe.schema import Recipe, TaskRecipe
from polyhead.train.recipe.sections import Sampling, SchedulePoint

KINDS = pytest.mark.parametrize("kind", ["mixed", "pure"])
fast = settings(deadline=None, max_examples=100, derandomize=True)


def sampler_of(a, b, c, *, size=8, passes=None, **sampling):
    """Sources a, b and c of so many rows."""
    ranges = {"a": range(a), "b": range(a, a + b), "c": range(a + b, a + b + c)}
    return MultiTaskBatchSampler(ranges, Sampling(**sampling), batch_size=size, passes=passes)


def draws(*sizes, epoch=0, **options):
    return sampler_of(*sizes, **options).draws(epoch)


def turns(sampler):
    """The sources in the order of the batches; several letters for a batch of several."""
    return [
        "".join(name for name, own in sampler.ranges.items() if set(batch) & set(own))
        for batch in sampler
    ]


def points(*given):
    return [SchedulePoint(epoch=epoch, weights=weights) for epoch, weights in given]


class TestProportional:
    @KINDS
    def test_each_row_once(self, kind):
        assert draws(60, 30, 10, batches=kind) == {"a": 60, "b": 30, "c": 10}

    @KINDS
    def test_epochs_of_a_task_draw_its_rows_more_or_less_often(self, kind):
        found = draws(60, 30, 10, batches=kind, passes={"a": 0.5, "c": 3})
        assert found == {"a": 30, "b": 30, "c": 30}

    @KINDS
    def test_half_an_epoch_draws_the_other_half_next_time(self, kind):
        sampler, halves = sampler_of(60, 30, 10, batches=kind, passes={"a": 0.5}), []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            halves.append({row for batch in sampler for row in batch if row < 60})
        assert [len(half) for half in halves] == [30, 30]
        assert halves[0] | halves[1] == set(range(60))

    def test_at_least_one_row(self):
        assert draws(60, 30, 10, passes={"c": 0.01}) == {"a": 60, "b": 30, "c": 1}

    def test_pure_steps_are_as_even_as_can_be(self):
        # 60 = 4 x 8 + 4 x 7, 30 = 2 x 8 + 2 x 7, 10 = 2 x 5
        sampler = sampler_of(60, 30, 10, batches="pure")
        assert sorted(map(len, sampler)) == [5] * 2 + [7] * 6 + [8] * 6
        assert sorted(turns(sampler)) == ["a"] * 8 + ["b"] * 4 + ["c"] * 2


class TestUniform:
    def test_as_many_rows_of_each(self):
        # 100 / 3 = 33.3; the row that is left goes to the first name
        assert draws(60, 30, 10, strategy="uniform") == {"a": 34, "b": 33, "c": 33}

    def test_as_many_steps_of_each(self):
        # 100 rows are 12.5 steps, so 13: 5 + 4 + 4
        found = draws(60, 30, 10, strategy="uniform", batches="pure")
        assert found == {"a": 40, "b": 32, "c": 32}

    def test_rows_per_epoch(self):
        found = draws(60, 30, 10, strategy="uniform", rows_per_epoch=30)
        assert found == {"a": 10, "b": 10, "c": 10}

    def test_rows_per_epoch_rise_to_whole_steps(self):
        # 30 rows are 3.75 steps, so 4: 2 + 1 + 1
        found = draws(60, 30, 10, strategy="uniform", batches="pure", rows_per_epoch=30)
        assert found == {"a": 16, "b": 8, "c": 8}

    def test_each_has_a_step_however_few_rows_are_asked_for(self):
        found = draws(60, 30, 10, strategy="uniform", batches="pure", rows_per_epoch=1)
        assert found == {"a": 8, "b": 8, "c": 8}


class TestTemperature:
    """Shares go as rows ** (1 / temperature), of 400 + 100 + 25 = 525 rows."""

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"temperature": 2.0}, (300, 150, 75)),  # roots 20 : 10 : 5
            ({}, (300, 150, 75)),  # 2 is the default
            ({"temperature": 1.0}, (400, 100, 25)),  # proportional
            ({"temperature": 1e9}, (175, 175, 175)),  # uniform
            ({"temperature": 0.5, "rows_per_epoch": 273}, (256, 16, 1)),  # squares 256 : 16 : 1
            ({"size_cap": 100}, (210, 210, 105)),  # roots 10 : 10 : 5
            ({"size_cap": 25}, (175, 175, 175)),  # all are capped
            ({"size_cap": 1000}, (300, 150, 75)),  # none is
            ({"size_cap": 100, "temperature": 1.0, "rows_per_epoch": 225}, (100, 100, 25)),
        ],
    )
    def test_rows(self, options, expected):
        found = draws(400, 100, 25, strategy="temperature", **options)
        assert tuple(found.values()) == expected

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            # 525 rows are 65.6 steps, so 66: 37.7, 18.9 and 9.4
            ({"temperature": 2.0}, (38 * 8, 19 * 8, 9 * 8)),
            # 26.4, 26.4 and 13.2: the step that is left goes to the first of the largest rests
            ({"size_cap": 100}, (27 * 8, 26 * 8, 13 * 8)),
        ],
    )
    def test_steps(self, options, expected):
        found = draws(400, 100, 25, strategy="temperature", batches="pure", **options)
        assert tuple(found.values()) == expected


class TestWeights:
    WEIGHTS = {"c": 0, "b": 1, "a": 3}

    def test_rows_in_proportion_and_none_of_weight_zero(self):
        found = draws(60, 30, 10, strategy="weights", weights=self.WEIGHTS)
        assert found == {"a": 75, "b": 25}

    def test_steps_in_proportion_and_none_of_weight_zero(self):
        # 13 steps: 9.75 and 3.25
        found = draws(60, 30, 10, strategy="weights", weights=self.WEIGHTS, batches="pure")
        assert found == {"a": 10 * 8, "b": 3 * 8}

    @KINDS
    def test_no_batch_has_a_row_of_weight_zero(self, kind):
        sampler = sampler_of(60, 30, 10, strategy="weights", weights=self.WEIGHTS, batches=kind)
        assert max(row for batch in sampler for row in batch) < 90

    def test_a_small_weight_is_not_lost(self):
        # 99.8, 0.1 and 0.1
        found = draws(60, 30, 10, strategy="weights", weights={"a": 1000, "b": 1, "c": 1})
        assert found == {"a": 98, "b": 1, "c": 1}

    def test_rows_per_epoch(self):
        options = {"weights": self.WEIGHTS, "rows_per_epoch": 1000}
        assert draws(60, 30, 10, strategy="weights", **options) == {"a": 750, "b": 250}


class TestSchedule:
    ANNEALED = {"strategy": "schedule", "schedule": points((0, "uniform"), (5, "proportional"))}

    def test_from_uniform_to_proportional_row_by_row(self):
        # of 120 rows 40 + 8e, 40 - 2e and 40 - 6e at epoch e; then as at the last point
        found = [tuple(draws(80, 30, 10, epoch=e, **self.ANNEALED).values()) for e in range(8)]
        assert found == [
            (40, 40, 40),
            (48, 38, 34),
            (56, 36, 28),
            (64, 34, 22),
            (72, 32, 16),
            (80, 30, 10),
            (80, 30, 10),
            (80, 30, 10),
        ]

    def test_from_uniform_to_proportional_step_by_step(self):
        # of 15 steps 5 + e, 5 - e / 4 and 5 - 3e / 4
        sampler = sampler_of(80, 30, 10, batches="pure", **self.ANNEALED)
        found = [tuple(sampler.draws(epoch).values()) for epoch in (0, 1, 3, 4, 5, 6)]
        steps = [(5, 5, 5), (6, 5, 4), (8, 4, 3), (9, 4, 2), (10, 4, 1), (10, 4, 1)]
        assert found == [(a * 8, b * 8, c * 8) for a, b, c in steps]

    def test_weights_are_shares_before_they_change(self):
        # a: 1 then 1/4; at epoch 1, half way, 5/8. 30 : 10 is the same as 3 : 1
        schedule = points((0, {"a": 7, "b": 0, "c": 0}), (2, {"c": 30, "b": 0, "a": 10}))
        found = [
            draws(80, 40, 40, strategy="schedule", schedule=schedule, epoch=e) for e in (0, 1, 2)
        ]
        assert found == [{"a": 160}, {"a": 100, "c": 60}, {"a": 40, "c": 120}]

    @pytest.mark.parametrize("order", list(permutations("abc")))
    def test_the_order_of_the_weights_does_not_matter(self, order):
        # quotas 15.5, 31 and 108.5 of 155 rows; of equal rests the first name wins
        shares = {"a": 0.1, "b": 0.2, "c": 0.7}
        schedule = points((0, {name: shares[name] for name in order}))
        found = draws(100, 45, 10, strategy="schedule", schedule=schedule)
        assert found == {"a": 16, "b": 31, "c": 108}

    def test_before_the_first_point_it_is_as_at_the_first(self):
        schedule = points((2, "proportional"), (4, "uniform"))
        found = draws(80, 30, 10, strategy="schedule", schedule=schedule)
        assert found == {"a": 80, "b": 30, "c": 10}

    def test_rows_per_epoch(self):
        found = draws(80, 30, 10, epoch=5, rows_per_epoch=12, **self.ANNEALED)
        assert found == {"a": 8, "b": 3, "c": 1}


class TestRoundRobin:
    @KINDS
    @pytest.mark.parametrize(("until", "rows"), [("shortest", 10), (None, 10), ("longest", 24)])
    def test_as_many_rows_of_each_as_the_shortest_or_longest_has(self, until, rows, kind):
        found = draws(24, 16, 10, strategy="round_robin", until=until, batches=kind)
        assert found == {"a": rows, "b": rows, "c": rows}

    def test_the_longest_is_drawn_once_and_the_others_begin_anew(self):
        # 24 rows: each of a's once; b's 16 once or twice; c's 10 twice or three times
        sampler = sampler_of(24, 16, 10, strategy="round_robin", until="longest", batches="pure")
        rows = [row for batch in sampler for row in batch]
        counts = [rows.count(row) for row in range(50)]
        assert counts[:24] == [1] * 24
        assert sorted(counts[24:40]) == [1] * 8 + [2] * 8
        assert sorted(counts[40:]) == [2] * 6 + [3] * 4

    @pytest.mark.parametrize(("until", "rounds"), [("shortest", 2), ("longest", 3)])
    def test_pure_steps_take_turns(self, until, rounds):
        sampler = sampler_of(24, 16, 10, strategy="round_robin", until=until, batches="pure")
        for epoch in range(3):
            sampler.set_epoch(epoch)
            assert turns(sampler) == ["a", "b", "c"] * rounds

    def test_each_mixed_step_has_as_many_rows_of_each(self):
        sampler = sampler_of(24, 16, 10, size=6, strategy="round_robin")
        own = [
            [sum(row in rows for row in batch) for rows in sampler.ranges.values()]
            for batch in sampler
        ]
        assert own == [[2, 2, 2]] * 5

    def test_those_that_are_left_take_turns(self):
        # nine steps for two: five for a, four for c
        sampler = sampler_of(24, 16, 10, strategy="round_robin", until="longest", batches="pure")
        sampler.stop("b", 0)
        assert turns(sampler) == ["a", "c"] * 4 + ["a"]
        assert sampler.draws(0) == {"a": 24, "c": 24}


class TestSequential:
    OPTIONS = {"strategy": "sequential", "batches": "pure", "order_of_tasks": ["c", "a", "b"]}

    def test_each_row_once_one_task_after_the_other(self):
        sampler = sampler_of(24, 16, 10, **self.OPTIONS)
        assert sampler.draws(0) == {"a": 24, "b": 16, "c": 10}
        for epoch in range(3):
            sampler.set_epoch(epoch)
            assert turns(sampler) == ["c"] * 2 + ["a"] * 3 + ["b"] * 2

    def test_epochs_of_a_task_make_its_turn_longer_or_shorter(self):
        sampler = sampler_of(24, 16, 10, passes={"a": 0.5, "c": 2}, **self.OPTIONS)
        assert sampler.draws(0) == {"a": 12, "b": 16, "c": 20}
        assert turns(sampler) == ["c"] * 3 + ["a"] * 2 + ["b"] * 2

    def test_a_stopped_task_leaves_its_turn_to_the_others(self):
        # seven steps for c and b, who had two each
        sampler = sampler_of(24, 16, 10, **self.OPTIONS)
        sampler.stop("a", 0)
        assert turns(sampler) == ["c"] * 3 + ["b"] * 4

    def test_a_step_short_of_micro_batches_comes_last(self):
        ranges = {"a": range(3), "b": range(3, 35)}
        sampling = Sampling(strategy="sequential", batches="pure", order_of_tasks=["a", "b"])
        sampler = MultiTaskBatchSampler(ranges, sampling, batch_size=4, accumulation=4)
        assert turns(sampler) == ["b"] * 8 + ["a"] * 3

    @pytest.mark.parametrize(
        "order", [None, ["a", "b"], ["a", "b", "c", "d"], ["a", "a", "b", "c"]]
    )
    def test_each_source_must_be_named_once(self, order):
        with pytest.raises(ValueError, match="order_of_tasks"):
            sampler_of(24, 16, 10, **(self.OPTIONS | {"order_of_tasks": order}))


class TestRowsOfEpoch:
    def test_a_unit_is_the_rows_of_a_step(self):
        # 100 rows are 1.6 steps of 64, so 2; yet each of three has one
        sizes = {"a": 60, "b": 30, "c": 10}
        found = rows_of_epoch(Sampling(strategy="uniform"), sizes, 0, passes={}, unit=64)
        assert found == {"a": 64, "b": 64, "c": 64}

    @pytest.mark.parametrize("strategy", ["proportional", "round_robin", "sequential"])
    def test_rows_as_they_are_know_no_unit(self, strategy):
        sizes = {"a": 60, "b": 60}
        assert rows_of_epoch(Sampling(strategy=strategy), sizes, 0, passes={}, unit=64) == sizes


class TestApportion:
    def test_the_largest_remainders_win(self):
        # Hamilton's method: quotas 47.0, 16.0, 15.8, 12.0, 6.1 and 3.1 of 100 seats
        votes = {"y": 47, "w": 16, "r": 15.8, "g": 12, "b": 6.1, "p": 3.1}
        assert apportion(100, votes) == {"b": 6, "g": 12, "p": 3, "r": 16, "w": 16, "y": 47}

    def test_of_equal_remainders_the_first_name_wins(self):
        assert apportion(5, {"c": 1, "b": 1, "a": 1}) == {"a": 2, "b": 2, "c": 1}

    def test_at_least_one_each_and_none_for_zero(self):
        assert apportion(4, {"a": 99, "b": 1, "c": 0, "d": 1}) == {"a": 2, "b": 1, "d": 1}

    def test_fewer_rows_than_weights_are_refused(self):
        with pytest.raises(ValueError, match="2 rows cannot be shared by 3 tasks"):
            apportion(2, {"a": 1, "b": 1, "c": 1})

    def test_no_weight_is_refused(self):
        with pytest.raises(ValueError, match="2 rows cannot be shared by 0 tasks"):
            apportion(2, {"a": 0})

    @fast
    @given(
        st.integers(6, 500),
        st.lists(
            st.floats(0, 1e6).filter(lambda w: w == 0 or w > 1e-6), min_size=1, max_size=6
        ).filter(any),
    )
    def test_everything_is_shared_to_within_one_of_the_quota(self, total, values):
        weights = dict(zip("abcdef", values, strict=False))
        found = apportion(total, weights)
        quotas = {name: total * w / sum(values) for name, w in weights.items() if w}
        assert sum(found.values()) == total
        assert found.keys() == quotas.keys()
        assert min(found.values()) >= 1
        if min(quotas.values()) >= 1:
            assert all(abs(found[name] - quota) < 1 for name, quota in quotas.items())
        order = sorted(found, key=lambda name: quotas[name])  # more weight, no less rows
        for small, large in zip(order, order[1:], strict=False):
            assert found[small] <= found[large] or quotas[small] == quotas[large]

    @fast
    @given(
        st.integers(4, 99),
        st.permutations("abcd"),
        st.lists(st.integers(1, 50), min_size=4, max_size=4),
    )
    def test_the_order_of_the_names_does_not_matter(self, total, order, values):
        weights = dict(zip("abcd", values, strict=True))
        assert apportion(total, {name: weights[name] for name in order}) == apportion(
            total, weights
        )


# ---- from a recipe ----


def recipe_of(epochs=None, **sampling):
    """Tasks intent and topic share their rows; same and near have rows of their own."""

    def task(name, files, label):
        data = DataConfig(data_files=files, text="text", label=label)
        given = (epochs or {}).get(name)
        return TaskRecipe(head="sequence_classification", data=data, epochs=given)

    return Recipe(
        encoder="-",
        output_dir="-",
        tasks={
            "topic": task("topic", "m.jsonl", "topic"),
            "same": task("same", "p.jsonl", "same"),
            "near": task("near", "n.jsonl", "near"),
            "intent": task("intent", "m.jsonl", "intent"),
        },
        sampling=Sampling(**sampling),
    )


SOURCES = {"intent+topic": ["intent", "topic"], "near": ["near"], "same": ["same"]}
ALL = {"intent": 1, "near": 2, "same": 3}


class TestNames:
    def test_tasks_that_share_their_rows_are_one_source(self):
        assert list(sources_of(recipe_of()).items()) == list(SOURCES.items())

    def test_options_by_source(self):
        sampling = Sampling(
            strategy="schedule",
            weights={"topic": 1, "same": 2, "near": 0},
            schedule=points((0, "uniform"), (2, {"intent": 3, "same": 4, "near": 5})),
            order_of_tasks=["same", "topic", "near"],
            batches="pure",
        )
        assert by_source(sampling, SOURCES) == Sampling(
            strategy="schedule",
            weights={"intent+topic": 1, "same": 2, "near": 0},
            schedule=points((0, "uniform"), (2, {"intent+topic": 3, "same": 4, "near": 5})),
            order_of_tasks=["same", "intent+topic", "near"],
            batches="pure",
        )

    def test_options_that_name_no_task_stay(self):
        sampling = Sampling(strategy="temperature", temperature=3.0, size_cap=7, rows_per_epoch=9)
        assert by_source(sampling, SOURCES) == sampling

    def test_epochs_by_source(self):
        recipe = recipe_of(epochs={"topic": 0.5, "same": 2})
        assert passes_by_source(recipe, SOURCES) == {"intent+topic": 0.5, "same": 2}


class TestFaults:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"strategy": "uniform", "rows_per_epoch": 5},
            {"strategy": "temperature", "temperature": 3, "size_cap": 5, "rows_per_epoch": 5},
            {"strategy": "weights", "weights": {"topic": 1, "near": 0, "same": 3}},
            {"strategy": "schedule", "schedule": points((0, ALL), (0.5, "uniform"))},
            {"strategy": "round_robin", "until": "longest", "batches": "pure"},
            {
                "strategy": "sequential",
                "batches": "pure",
                "order_of_tasks": ["same", "intent", "near"],
            },
        ],
        ids=lambda options: options.get("strategy", "proportional"),
    )
    def test_every_strategy_has_a_recipe_without_any(self, options):
        assert sampling_faults(recipe_of(**options)) == []

    @pytest.mark.parametrize("strategy", ["proportional", "sequential"])
    def test_epochs_of_tasks_without_any(self, strategy):
        order = ["same", "intent", "near"] if strategy == "sequential" else None
        recipe = recipe_of(
            {"intent": 0.5, "topic": 0.5, "same": 2},
            strategy=strategy,
            batches="pure",
            order_of_tasks=order,
        )
        assert sampling_faults(recipe) == []

    @pytest.mark.parametrize(
        ("key", "value", "strategies"),
        [
            ("order_of_tasks", ["intent", "near", "same"], "sequential"),
            ("rows_per_epoch", 5, "uniform or temperature or weights or schedule"),
            ("schedule", points((0, "uniform")), "schedule"),
            ("size_cap", 5, "temperature"),
            ("temperature", 2.0, "temperature"),
            ("until", "longest", "round_robin"),
            ("weights", ALL, "weights"),
        ],
    )
    def test_an_option_of_another_strategy(self, key, value, strategies):
        assert sampling_faults(recipe_of(**{key: value})) == [
            f"sampling.{key}: for strategy {strategies}, not proportional"
        ]

    @pytest.mark.parametrize(
        ("strategy", "key"),
        [("weights", "weights"), ("schedule", "schedule"), ("sequential", "order_of_tasks")],
    )
    def test_an_option_that_is_needed(self, strategy, key):
        assert sampling_faults(recipe_of(strategy=strategy, batches="pure")) == [
            f"sampling.{key}: missing; strategy {strategy} needs it"
        ]

    def test_sequential_in_mixed_batches(self):
        recipe = recipe_of(strategy="sequential", order_of_tasks=["intent", "near", "same"])
        assert sampling_faults(recipe) == [
            "sampling.batches: sequential takes one task at a time; write batches: pure"
        ]

    KNOWN = "tasks: intent, near, same, topic"

    @pytest.mark.parametrize(
        ("weights", "expected"),
        [
            (ALL | {"slots": 1}, [f"no task 'slots'; {KNOWN}"]),
            ({"near": 1, "same": 1}, ["intent or topic is missing"]),
            ({"intent": 1, "near": 1}, ["same is missing"]),
            (ALL | {"topic": 1}, ["intent and topic: share their rows; name one of them"]),
            ({"intent": 0, "near": 0, "same": 0}, ["one weight must be more than 0"]),
        ],
    )
    def test_weights(self, weights, expected):
        faults = sampling_faults(recipe_of(strategy="weights", weights=weights))
        assert faults == [f"sampling.weights: {fault}" for fault in expected]

    def test_a_weight(self):
        recipe = recipe_of(strategy="weights", weights=ALL | {"near": -1.0})
        assert sampling_faults(recipe) == ["sampling.weights.near: -1.0; write a number, 0 or more"]

    @pytest.mark.parametrize("weight", [float("nan"), float("inf")])
    def test_a_weight_that_is_no_number(self, weight):
        with pytest.raises(ValueError, match="weights.near"):
            recipe_of(strategy="weights", weights=ALL | {"near": weight})

    def test_weights_of_a_point(self):
        schedule = points((0, "uniform"), (1, {"intent": 1, "near": -2.0, "same": 3}), (2, {}))
        assert sampling_faults(recipe_of(strategy="schedule", schedule=schedule)) == [
            "sampling.schedule.1.weights.near: -2.0; write a number, 0 or more",
            "sampling.schedule.2.weights: intent or topic is missing",
            "sampling.schedule.2.weights: near is missing",
            "sampling.schedule.2.weights: same is missing",
            "sampling.schedule.2.weights: one weight must be more than 0",
        ]

    @pytest.mark.parametrize("epochs", [(0, 0), (2, 1)])
    def test_points_that_do_not_rise(self, epochs):
        schedule = points(*((epoch, "uniform") for epoch in epochs))
        assert sampling_faults(recipe_of(strategy="schedule", schedule=schedule)) == [
            "sampling.schedule: the epochs of its points must rise"
        ]

    @pytest.mark.parametrize(
        ("order", "expected"),
        [
            (["same", "near"], ["intent or topic is missing"]),
            (["same", "near", "topic", "same"], ["same: named twice"]),
            (
                ["same", "near", "topic", "intent"],
                ["intent and topic: share their rows; name one of them"],
            ),
            (["same", "near", "topic", "slots"], [f"no task 'slots'; {KNOWN}"]),
        ],
    )
    def test_the_order_of_the_tasks(self, order, expected):
        recipe = recipe_of(strategy="sequential", batches="pure", order_of_tasks=order)
        assert sampling_faults(recipe) == [f"sampling.order_of_tasks: {f}" for f in expected]

    def test_epochs_of_a_task_where_the_strategy_says_how_many_rows(self):
        assert sampling_faults(recipe_of({"same": 2}, strategy="uniform")) == [
            "tasks.same.epochs: for strategy proportional or sequential, not uniform"
        ]

    def test_epochs_of_tasks_that_share_their_rows(self):
        assert sampling_faults(recipe_of({"intent": 1, "topic": 2})) == [
            "tasks.intent.epochs: intent, topic share their rows; one only"
        ]

    def test_all_at_once(self):
        recipe = recipe_of(
            {"near": 2, "intent": 1, "topic": 3},
            strategy="weights",
            temperature=2.0,
            weights={"intent": -1.0, "topic": 1, "slots": 1, "near": 1},
            schedule=points((1, {"same": 1, "near": 1}), (0, "uniform")),
            order_of_tasks=["same", "same"],
        )
        assert sampling_faults(recipe) == [
            "sampling.order_of_tasks: for strategy sequential, not weights",
            "sampling.schedule: for strategy schedule, not weights",
            "sampling.temperature: for strategy temperature, not weights",
            f"sampling.weights: no task 'slots'; {self.KNOWN}",
            "sampling.weights: intent and topic: share their rows; name one of them",
            "sampling.weights: same is missing",
            "sampling.weights.intent: -1.0; write a number, 0 or more",
            "sampling.schedule.0.weights: intent or topic is missing",
            "sampling.schedule: the epochs of its points must rise",
            "sampling.order_of_tasks: intent or topic is missing",
            "sampling.order_of_tasks: near is missing",
            "sampling.order_of_tasks: same: named twice",
            "tasks.intent.epochs: for strategy proportional or sequential, not weights",
            "tasks.intent.epochs: intent, topic share their rows; one only",
            "tasks.near.epochs: for strategy proportional or sequential, not weights",
        ]
