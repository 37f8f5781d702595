"""Rows of sources spread over steps, of exact numbers."""

import numpy as np
from polyhead.train.batches.mixing import even, fill, interleave


def test_parts_are_as_equal_as_can_be():
    assert even(7, 3) == [3, 2, 2]
    assert even(6, 3) == [2, 2, 2]


def test_each_stretch_has_its_share_of_each_source():
    mixed = interleave([np.arange(6), np.arange(10, 13)], 3)
    assert sorted(mixed.tolist()) == [0, 1, 2, 3, 4, 5, 10, 11, 12]
    assert [(step >= 10).sum() for step in np.split(mixed, 3)] == [1, 1, 1]


def test_rows_that_come_together_stand_first():
    drawn = {"pairs": np.arange(4), "texts": np.arange(10, 14)}
    steps = fill(drawn, {"pairs": [4, 0]}, [5, 3])
    assert [step.tolist() for step in steps] == [[0, 1, 2, 3, 10], [11, 12, 13]]
