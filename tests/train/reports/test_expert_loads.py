"""What a run's log says of experts."""

import pytest
from polyhead.train.reports.experts import expert_loads, overlap


def test_the_second_half_of_the_log_counts_by_task_and_expert():
    log = [
        {"step": 1, "load_a_shared_0": 0.9, "load_a_own_0": 0.1},
        {"step": 2, "load_a_shared_0": 0.5, "load_a_own_0": 0.5, "load_a_b_shared_0": 1.0},
        {"step": 3, "eval_loss": 1.0},
        {"step": 4, "load_a_shared_0": 0.3, "load_a_own_0": 0.7},
    ]
    assert expert_loads(log, ["a", "a_b", "c"]) == {
        "a": {"shared_0": pytest.approx(0.4), "own_0": pytest.approx(0.6)},
        "a_b": {"shared_0": 1.0},
    }


def test_overlap_is_what_two_tasks_read_alike_of_shared_experts():
    one = {"shared_0": 0.4, "shared_1": 0.1, "own_0": 0.5}
    other = {"shared_0": 0.2, "shared_1": 0.2, "own_0": 0.6}
    assert overlap(one, other) == pytest.approx(0.5 + 0.2)
    assert overlap(one, one) == pytest.approx(1)
