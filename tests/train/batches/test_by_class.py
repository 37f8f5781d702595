"""`sampling.balance: label`: classes take turns, and batches stay a function of seed and step."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from polyhead.train.batches.by_class import balanced_stream, balanced_tasks
from polyhead.train.batches.sampler import MultiTaskBatchSampler
from polyhead.train.recipe.sections import Sampling
from train_helpers import task

CLASSES = np.array([0] * 10 + [1] * 3 + [-1] * 2 + [4])
SEQUENCE = "sequence_classification"


def test_classes_take_turns_and_rows_of_a_class_too():
    rows = balanced_stream(CLASSES, 0, 90, [3])
    for turn in rows.reshape(30, 3):
        assert sorted(CLASSES[turn]) == [0, 1, 4]
    often = rows[CLASSES[rows] == 0]
    rare = rows[CLASSES[rows] == 1]
    assert [sorted(part) for part in often.reshape(3, 10)] == [list(range(10))] * 3
    assert [sorted(part) for part in rare.reshape(10, 3)] == [[10, 11, 12]] * 10
    assert len({tuple(part) for part in rare.reshape(10, 3)}) > 1
    assert not {13, 14} & set(rows)


@pytest.mark.parametrize("start", [0, 1, 17, 44])
def test_a_part_of_the_stream_is_that_of_the_whole(start):
    whole = balanced_stream(CLASSES, 0, 90, [3])
    part = balanced_stream(CLASSES, start, 23, [3])
    assert part.tolist() == whole[start : start + 23].tolist()
    assert balanced_stream(CLASSES, start, 23, [4]).tolist() != part.tolist()


@pytest.mark.parametrize("layout", [(8, 1, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2)])
@pytest.mark.parametrize("batches", ["mixed", "pure"])
def test_a_step_has_the_same_rows_on_any_number_of_ranks(layout, batches):
    steps_of = []
    for size, accumulation, replicas in ((8, 1, 1), layout):
        sampler = MultiTaskBatchSampler(
            {"a": range(16), "b": range(16, 40)},
            Sampling(balance="label", batches=batches),
            batch_size=size,
            accumulation=accumulation,
            replicas=replicas,
            classes={"a": CLASSES},
        )
        together, drawn = accumulation * replicas, []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            each = list(sampler)
            cuts = range(0, len(each), together)
            drawn += [sorted(chain(*each[i : i + together])) for i in cuts]
        steps_of.append(drawn)
        counts = Counter(CLASSES[row] for step in drawn for row in step if row < 16)
        assert set(counts.values()) == {16}  # 3 x 16 rows of three classes
    assert steps_of[0] == steps_of[1]


def test_a_task_without_classes_and_two_over_the_same_rows_are_told():
    place = {"data_files": {"train": __file__}, "text": "text", "label": "label"}
    one, number = task(SEQUENCE, **place), task(SEQUENCE, problem_type="regression", **place)
    tasks = {"one": one, "other": one, "number": number}
    assert balanced_tasks({"one+number": ["one", "number"]}, tasks) == ({"one+number": "one"}, [])
    assert balanced_tasks({"number": ["number"]}, tasks)[1] == [
        "sampling.balance: no task has one label for each text; take it out"
    ]
    [fault] = balanced_tasks({"one+other": ["one", "other"]}, tasks)[1]
    assert fault.startswith("sampling.balance: one and other read the same rows")
