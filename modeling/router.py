# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""`tasks="auto"`: which tasks a text is for, as the model's router says.

The router is a multi-label task whose labels are names of tasks; `router` of the config names it. A
text is for each task whose probability reaches the label's threshold, so it may be for several or
for none. Which those are it has learned from the texts of the tasks' training data alone: a task
that was added later is never among them.

Shapes: `L` labels.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import Tensor

from .decoding import decode_classes
from .options import HeadTask

AUTO = "auto"  # in the place of names of tasks
REMOVED = "{} (removed)"  # the label of a task that was taken out; no task can have such a name


class Route(TypedDict):
    """What the router says of a text.

    Args:
        tasks: those that it is for, the likeliest first; empty: it is for none.
        scores: probability of each task that the router knows, the likeliest first.
    """

    tasks: list[str]
    scores: dict[str, float]


def is_auto(tasks: Any) -> bool:
    """The tasks of a call are to be found from the texts."""
    return isinstance(tasks, str) and tasks == AUTO


def route_of(
    router: HeadTask, configs: Mapping[str, Any], logits: Tensor, threshold: float | None
) -> Route:
    """The tasks that a text is for.

    Args:
        router: the router's task.
        configs: the model's tasks; labels of others are left out.
        logits: (L,).
        threshold: probability from which a task is named; None for the router's own.
    """
    labels = router.labels or []
    ranked: Any = decode_classes(logits, labels, multi_label=True, top_k=None, threshold=0.0)
    scores = {entry["label"]: entry["score"] for entry in ranked if entry["label"] in configs}
    least = dict.fromkeys(labels, threshold) if threshold is not None else router.label_thresholds
    return {"tasks": [n for n, score in scores.items() if score >= least[n]], "scores": scores}


def check_router(name: str | None, tasks: Mapping[str, Any]) -> None:
    """Raise ValueError unless `name`, the config's `router`, is a task that can find others."""
    if name is None:
        return
    task = tasks.get(name)
    multi_label = "multi_label_classification"
    if task is None or task.problem_type != multi_label or task.reads != "text":
        known = ", ".join(tasks) or "none"
        raise ValueError(
            f"router is {name!r}; it must be a {multi_label} task over single texts, whose labels "
            f"are names of tasks; tasks: {known}"
        )
    if name in (task.labels or []):
        raise ValueError(f"router {name!r} has a label of its own name; it finds other tasks")


def without_label(task: Any, name: str) -> None:
    """Mark a task as taken out; its texts are then for none, and logits stay as they are.

    Args:
        task: the router's, changed.
        name: of the task.
    """
    gone = REMOVED.format(name)

    def renamed(values: dict[str, float] | None) -> dict[str, float] | None:
        return values and {gone if label == name else label: x for label, x in values.items()}

    task.labels = [gone if label == name else label for label in task.labels or []]
    task.class_weight, task.thresholds = renamed(task.class_weight), renamed(task.thresholds)
