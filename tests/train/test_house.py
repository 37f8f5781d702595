"""Imports of `train` run downwards, from the command line to the base, and never in a circle."""

import pytest
from house import arrows_of, circles_of, modules_here, room_of

# Highest floor first. A module may import its own floor and all below.
FLOORS = [
    ["cli", "__main__", "__init__"],
    ["serving", "page"],
    ["commands"],
    ["affinity", "export", "inference", "hub", "reports", "trainer", "mteb"],
    ["recipe"],
    ["evaluation", "batches", "balancing", "optimization"],
    ["data"],
    ["kinds"],
    ["recipe.schema"],
    ["errors", "artifacts", "records", "escape", "outputs", "distributed", "adapters", "lazy"],
]
FLOOR = {f"train.{room}": number for number, rooms in enumerate(FLOORS) for room in rooms}
FLOOR["modeling"] = len(FLOORS)
# Upward arrows, and why they stand.
KNOWN = {
    ("train.affinity.measure", "train.commands.setup"): "a short run starts as a training does",
    ("train.affinity.side_by_side", "train.commands.setup"): "the type of what setup made",
    ("train.affinity.side_by_side", "train.commands.training"): "trains each task, and all",
    ("train.export.int8", "train.commands.scoring"): "scores a model before and after",
}
MODULES = modules_here()
ARROWS = arrows_of(MODULES)


def test_each_room_has_its_floor():
    assert {room_of(module) for module in MODULES} <= set(FLOOR)


def test_imports_run_downwards():
    upward = {(a, b) for a, b in ARROWS if FLOOR[room_of(a)] > FLOOR[room_of(b)]}
    assert upward == set(KNOWN)


def test_nothing_imports_what_runs_on_a_cluster():
    assert "train.serving.ray" in MODULES
    assert not [a for a, b in ARROWS if b == "train.serving.ray"]


def test_no_modules_import_each_other():
    within = {(a, b) for a, b in ARROWS if a.startswith("train.")}
    assert circles_of(within) == []


def test_no_rooms_import_each_other():
    between = {(room_of(a), room_of(b)) for a, b in ARROWS}
    assert circles_of((a, b) for a, b in between if a != b) == []


@pytest.mark.parametrize(
    ("arrows", "circles"),
    [
        ({("a", "b"), ("b", "c"), ("a", "c")}, []),
        ({("a", "b"), ("b", "a"), ("b", "c")}, [["a", "b"]]),
        ({("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")}, [["a", "b", "c"]]),
    ],
)
def test_circles_are_found(arrows, circles):
    assert circles_of(arrows) == circles
