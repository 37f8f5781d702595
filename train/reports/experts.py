"""How much each task reads of each expert, from the trainer's log, and how alike tasks choose."""

import math
import re
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..escape import drawn
from .heat_map import heat_map

EXPERT = re.compile(r"(shared|own)_(\d+)")
Loads = dict[str, dict[str, float]]


def expert_loads(log_history: list[dict[str, Any]], names: list[str]) -> Loads:
    """By task and expert, the mean weight over the second half of the log, when gates have settled.

    Args:
        log_history: `trainer.state.log_history`.
        names: the tasks.
    """
    loads: Loads = {}
    for name in names:
        lines = [_of_task(line, f"load_{name}_") for line in log_history]
        lines = [line for line in lines if line]
        lines = lines[len(lines) // 2 :]
        if lines:
            loads[name] = {k: math.fsum(x[k] for x in lines) / len(lines) for k in lines[0]}
    return loads


def _of_task(line: dict[str, Any], prefix: str) -> dict[str, float]:
    keys = [key for key in line if key.startswith(prefix)]
    names = {key: key.removeprefix(prefix) for key in keys}
    return {name: line[key] for key, name in names.items() if EXPERT.fullmatch(name)}


def overlap(one: dict[str, float], other: dict[str, float]) -> float:
    """Share of what two tasks read that is read of the same shared experts alike, 0 to 1.

    sum_i min(p_i, q_i), with p and q their weights of shared experts as shares of 1.
    """
    weights = [[v for k, v in loads.items() if k.startswith("shared")] for loads in (one, other)]
    shares = [np.array(values) / max(sum(values), 1e-12) for values in weights]
    return float(np.minimum(*shares).sum())


def experts_figure(curves: dict[str, Any]) -> Figure:
    """Left the weights, a row for each task; right how much two tasks share of their choice."""
    loads: Loads = curves["experts"]
    tasks, experts = list(loads), list(next(iter(loads.values())))
    matrix = np.array([[loads[task][expert] for expert in experts] for task in tasks])
    alike = np.array([[overlap(loads[a], loads[b]) for b in tasks] for a in tasks])
    side = 0.48
    width = 3.4 + side * (len(experts) + len(tasks)) + 0.14 * max(map(len, map(drawn, tasks)))
    figure = Figure(figsize=(max(7.2, width), 2.2 + side * len(tasks)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(len(experts), len(tasks)))
    columns = [expert.replace("_", " ") for expert in experts]
    limit = float(matrix.max())
    image = heat_map(
        left, matrix, tasks, columns, limit=limit, shown=lambda i, j: f"{matrix[i, j]:.2f}"
    )
    image.set(cmap="Blues", clim=(0, limit))
    left.set_title("mean weight of each expert")
    image = heat_map(right, alike, tasks, tasks, shown=lambda i, j: f"{alike[i, j]:.2f}")
    image.set(cmap="Blues", clim=(0, 1))
    right.set_title("overlap of two tasks' shared experts")
    figure.suptitle("experts by task, second half of training")
    return figure
