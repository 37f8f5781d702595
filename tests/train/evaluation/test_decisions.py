"""Temperatures, thresholds and shares against brute force and hand calculations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from polyhead.modeling import TaskConfig
from polyhead.train.evaluation.decisions import (
    NEVER,
    best_threshold,
    decision_scores,
    precise_threshold,
    share_of,
    share_text,
    temperature_of,
)
from polyhead.train.kinds import Answers, kind_of
from polyhead.train.kinds.counting import reliability
from scipy.stats import binomtest
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

SINGLE = TaskConfig(head="sequence_classification", labels=["a", "b", "c"])
MULTI = TaskConfig(
    head="sequence_classification",
    labels=["a", "b"],
    problem_type="multi_label_classification",
)


def lbfgs(logits, truth, loss) -> float:
    """Guo et al.'s way: a parameter T, trained."""
    temperature = torch.ones((), dtype=torch.float64, requires_grad=True)
    options = {"max_iter": 500, "tolerance_grad": 1e-12, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS([temperature], line_search_fn="strong_wolfe", **options)

    def step():
        optimizer.zero_grad()
        value = loss(logits.double() / temperature, truth)
        value.backward()
        return value

    optimizer.step(step)
    return float(temperature.detach())


def noisy(rows: int, labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits three times as large as the chances by which labels are drawn."""
    chance = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, labels, generator=chance) * 1.5
    truth = torch.multinomial(logits.softmax(-1), 1, generator=chance)[:, 0]
    return 3 * logits, truth


class TestTemperature:
    def test_it_is_that_of_lbfgs_and_near_the_one_that_was_put_in(self):
        logits, truth = noisy(4000, 5)
        found = temperature_of(logits, truth)
        assert found == pytest.approx(lbfgs(logits, truth, cross_entropy), rel=1e-4)
        assert found == pytest.approx(3, rel=0.1)

    def test_of_several_labels_a_row_too(self):
        chance = torch.Generator().manual_seed(2)
        logits = torch.randn(3000, 4, generator=chance)
        truth = torch.bernoulli(logits.sigmoid(), generator=chance).long()
        found = temperature_of(logits / 2, truth)

        def loss(values, target):
            return binary_cross_entropy_with_logits(values, target.double())

        assert found == pytest.approx(lbfgs(logits / 2, truth, loss), rel=1e-4)
        assert found == pytest.approx(0.5, rel=0.1)

    def test_two_classes_by_hand(self):
        # margins of 2, right 3 times of 4: sigmoid(2 / T) = 3 / 4, T = 2 / log 3
        logits, truth = torch.tensor([[2.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
        assert temperature_of(logits, truth) == pytest.approx(2 / math.log(3), rel=1e-6)

    def test_unknown_labels_and_rows_that_are_no_numbers_are_left_out(self):
        logits = torch.tensor([[2.0, 0.0]] * 6)
        logits[4, 1] = math.nan
        truth = torch.tensor([0, 0, 0, 1, 1, -1])
        assert temperature_of(logits, truth) == pytest.approx(2 / math.log(3), rel=1e-6)
        wide = torch.tensor([[2.0, -math.inf]] * 4)
        several = torch.tensor([[1, 1], [1, 0], [1, 0], [0, 0]])
        assert temperature_of(wide, several) == pytest.approx(2 / math.log(3), rel=1e-6)

    def test_there_is_none_where_all_or_nothing_is_right(self):
        logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        assert temperature_of(logits, torch.tensor([0, 1])) is None
        assert temperature_of(logits, torch.tensor([1, 0])) is None
        assert temperature_of(logits, torch.tensor([-1, -1])) is None

    def test_the_loss_is_least_there(self):
        logits, truth = noisy(500, 3)
        best = temperature_of(logits, truth)
        losses = [float(cross_entropy(logits / t, truth)) for t in (best * 0.99, best, best * 1.01)]
        assert losses[1] == min(losses)


def scored_rows(rows: int) -> list[tuple[float, bool]]:
    """Random scores of two digits, so that some are equal."""
    chance = np.random.default_rng(rows)
    scores = chance.integers(1, 60, rows) / 60
    return [(float(s), bool(chance.random() < s)) for s in scores]


def brute(scored, total, value):
    """(value, threshold) of each distinct threshold: midway, and halfway to 0 at the end."""
    scores = sorted({s for s, _ in scored})
    cuts = [(a + b) / 2 for a, b in zip([0.0, *scores], scores, strict=False)]
    return [(value([hit for s, hit in scored if s >= cut], total), cut) for cut in cuts]


class TestThresholds:
    @pytest.mark.parametrize("rows", range(2, 40, 3))
    def test_the_largest_f1_of_all_thresholds(self, rows):
        scored = scored_rows(rows)
        total = sum(hit for _, hit in scored) + rows % 2

        def f1(hits, total):
            return 2 * sum(hits) / (len(hits) + total) if total else 0.0

        best = max(brute(scored, total, f1))
        expected = best[1] if best[0] else 0.5
        assert best_threshold(scored, total) == pytest.approx(expected)

    @pytest.mark.parametrize("rows", range(2, 40, 3))
    @pytest.mark.parametrize("wish", [0.3, 0.75, 0.9, 1.0])
    def test_the_lowest_threshold_that_is_precise_enough(self, rows, wish):
        scored = scored_rows(rows)
        fit = [cut for p, cut in brute(scored, 0, lambda h, _: sum(h) / len(h)) if p >= wish]
        assert precise_threshold(scored, wish) == pytest.approx(min(fit, default=NEVER))

    def test_by_hand(self):
        rows = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False), (0.5, False)]
        assert best_threshold(rows, 3) == pytest.approx(0.55)  # F1 6/7; from 0.75 on 4/5
        assert best_threshold(rows, 2) == pytest.approx(0.75)
        assert precise_threshold(rows, 0.75) == pytest.approx(0.55)
        assert precise_threshold(rows, 0.8) == pytest.approx(0.75)
        assert precise_threshold(rows, 0.5) == pytest.approx(0.25)

    def test_what_the_rows_do_not_show_is_not_guessed(self):
        assert best_threshold([(0.9, False)], 2) == best_threshold([(0.9, True)], 0) == 0.5
        assert best_threshold([], 0) == 0.5
        assert precise_threshold([], 0.5) == precise_threshold([(1.0, False)], 0.5) == NEVER > 1

    def test_a_share_is_not_missed_by_the_last_bit(self):
        hits = [(1 - i / 200, i < 7) for i in range(100)]
        assert precise_threshold(hits, 0.07) == pytest.approx((1 - 99 / 200) / 2)


class TestShares:
    @pytest.mark.parametrize(("part", "whole"), [(0, 7), (3, 4), (50, 50), (881, 1000)])
    def test_the_interval_is_wilsons(self, part, whole):
        share = share_of(part, whole)
        expected = binomtest(part, whole).proportion_ci(0.95, method="wilson")
        assert share["share"] == part / whole
        assert share["low"] == pytest.approx(expected.low, abs=1e-7)
        assert share["high"] == pytest.approx(expected.high, abs=1e-7)

    def test_the_interval_of_none_begins_at_zero_and_of_all_ends_at_one(self):
        for whole in range(1, 2000):
            assert share_of(0, whole)["low"] >= 0
            assert share_of(whole, whole)["high"] <= 1
        assert share_text(share_of(0, 336)) == "0.000 (0.000-0.011) of 336"

    def test_of_nothing_there_is_none(self):
        assert share_of(0, 0) == {"share": None, "low": None, "high": None, "of": 0}


class TestWorth:
    def test_errors_before_and_after_and_what_is_kept_by_hand(self):
        # raw margins of 4, right 3 times of 4; halved by the head
        raw = torch.tensor([[4.0, 0.0, -50.0]] * 4)
        task = replace(SINGLE, calibration=2.0, abstain=0.85)
        values = torch.cat([raw / 2, torch.tensor([[0.0, 0.5, 0.0]])])
        answers = Answers(["a", "a", "a", "a", "b"], ["a", "a", "a", "b", "b"], values)
        found = decision_scores(kind_of(task), task, answers)
        high, low = 1 / (1 + math.exp(-2)), math.exp(0.5) / (2 + math.exp(0.5))
        after = (4 * abs(0.75 - high) + (1 - low)) / 5
        higher, lower = 1 / (1 + math.exp(-4)), math.e / (2 + math.e)
        before = (4 * abs(0.75 - higher) + (1 - lower)) / 5
        assert found["ece"] == pytest.approx(after, abs=1e-6)
        assert found["ece_before"] == pytest.approx(before, abs=1e-6)
        assert found["kept"] == share_of(4, 5)
        assert found["precision"] == share_of(3, 4)
        assert (found["calibration"], found["abstain"]) == (2.0, 0.85)

    def test_the_error_after_is_that_of_the_reliability_section(self):
        logits, truth = noisy(300, 3)
        task = replace(SINGLE, calibration=3.0)
        answers = Answers([], ["abc"[i] for i in truth], logits / 3)
        found = decision_scores(kind_of(task), task, replace_scored(answers))
        assert found["ece"] == kind_of(task).reliability(answers)["ece"]
        expected = reliability(logits.softmax(-1).numpy(), truth)["ece"]
        assert found["ece_before"] == pytest.approx(expected, abs=1e-6)
        assert found["ece"] < found["ece_before"]

    def test_labels_of_a_multi_label_task(self):
        task = replace(MULTI, thresholds={"a": 0.8, "b": 0.2})
        values = torch.tensor([[0.7, 0.3], [0.9, 0.1], [0.1, 0.1]]).logit()
        kind = kind_of(task)
        answers = Answers(kind.read(values), [["b"], ["b", "new"], []], values)
        assert answers.predictions == [["b"], ["a"], []]
        found = decision_scores(kind, task, answers)
        assert found["kept"] == share_of(2, 3)
        assert found["precision"] == share_of(1, 2)
        assert "ece" not in found

    def test_nothing_of_a_task_without_decisions(self):
        answers = Answers(["a"], ["a"], torch.zeros(1, 3))
        assert decision_scores(kind_of(SINGLE), SINGLE, answers) == {}


def replace_scored(answers: Answers) -> Answers:
    """With the label of the largest logit."""
    return replace(answers, predictions=["abc"[i] for i in answers.values.argmax(-1)])
