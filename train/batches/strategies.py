"""How many rows of each source an epoch takes: `STRATEGIES`, those that `sampling` can name.

Tasks that share their rows form one source and count as one. Sources are named by their tasks,
joined by +; a recipe names tasks, and `by_source` turns one into the other.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import isfunction
from typing import Any

import numpy as np

from ...modeling.tables import Table
from ...modeling.task_config import TaskConfig
from ..data.loading import group_tasks
from ..kinds import kind_of
from ..kinds.values import is_real
from ..recipe.schema import IN_BATCH_LOSSES, Recipe, TaskRecipe, in_batch
from ..recipe.sections import Sampling
from .by_class import balanced_tasks

TEMPERATURE = 2.0  # of the strategy with this name
ROWS_TOGETHER = 16  # of a loss that compares the rows of a batch; 120 pairs of them
Counts = dict[str, int]


def rows_of_epoch(
    sampling: Sampling, sizes: Counts, epoch: int, *, passes: dict[str, float], unit: int = 1
) -> Counts:
    """Rows of each source in an epoch, if none has stopped.

    Args:
        sampling: strategy and its options, by source.
        sizes: rows that each source has.
        epoch: counted from 0.
        passes: passes over a source's rows in an epoch, for proportional and sequential; default 1.
        unit: strategies over weights give multiples of this: the rows of a step for pure batches,
            so that every epoch has as many steps.

    Raises:
        ValueError: there are more sources than steps or rows.
    """
    if sampling.strategy in ("proportional", "sequential"):
        return {n: max(1, round(size * passes.get(n, 1))) for n, size in sizes.items()}
    if sampling.strategy == "round_robin":
        longest = sampling.until == "longest"
        return dict.fromkeys(sizes, max(sizes.values()) if longest else min(sizes.values()))
    weigh = STRATEGIES[sampling.strategy].weights
    assert weigh is not None
    weights = _checked_weights(sampling.strategy, weigh(sampling, sizes, epoch), sizes)
    rows = sampling.rows_per_epoch or sum(sizes.values())
    units = max(len(sizes) if unit > 1 else 1, math.ceil(rows / unit))
    return {name: count * unit for name, count in apportion(units, weights).items()}


def _checked_weights(strategy: str, weights: Any, sizes: Counts) -> dict[str, float]:
    """Raise ValueError for what is no weight of 0 or more, finite, for each source."""
    named = isinstance(weights, dict) and set(weights) == set(sizes)
    if not named or not all(is_real(w) and 0 <= w < math.inf for w in weights.values()):
        raise ValueError(
            f"strategy {strategy} gave {weights!r:.200}; it must give a number, 0 or more, for "
            f"each of {', '.join(sizes)}"
        )
    return weights


def apportion(total: int, weights: dict[str, float] | Counts) -> Counts:
    """Shares of `total` in proportion to the weights, at least one for each positive weight.

    Largest remainders (Hamilton's method); of equal ones the first name wins.

    Raises:
        ValueError: there are more positive weights than `total`, or none.
    """
    positive = {name: weight for name, weight in sorted(weights.items()) if weight > 0}
    if not 0 < len(positive) <= total:
        raise ValueError(f"{total} rows cannot be shared by {len(positive)} tasks")
    whole = sum(positive.values())
    exact = {name: total * weight / whole for name, weight in positive.items()}
    counts = {name: max(1, int(value)) for name, value in exact.items()}
    while (gap := total - sum(counts.values())) != 0:
        movable = counts if gap > 0 else [name for name in counts if counts[name] > 1]
        most = max(movable, key=lambda name: (exact[name] - counts[name]) * gap)
        counts[most] += 1 if gap > 0 else -1
    return counts


# ---- weights ----


def _uniform(sampling: Sampling, sizes: Counts, epoch: int) -> dict[str, float]:
    return dict.fromkeys(sizes, 1.0)


def _temperature(sampling: Sampling, sizes: Counts, epoch: int) -> dict[str, float]:
    """min(size, size_cap)^(1 / temperature): arXiv:1910.10683, section 3.5.2."""
    cap, power = sampling.size_cap or max(sizes.values()), sampling.temperature or TEMPERATURE
    return {name: min(size, cap) ** (1 / power) for name, size in sizes.items()}


def _weights_given(sampling: Sampling, sizes: Counts, epoch: int) -> dict[str, float]:
    return sampling.weights or {}


def _scheduled(sampling: Sampling, sizes: Counts, epoch: int) -> dict[str, float]:
    """Shares at an epoch, on the straight line between the points around it."""
    points = sampling.schedule or []
    shares = []
    for point in points:
        named = {"uniform": dict.fromkeys(sizes, 1.0), "proportional": sizes}
        weights = named[point.weights] if isinstance(point.weights, str) else point.weights
        shares.append([weights[name] / math.fsum(weights.values()) for name in sizes])
    epochs = [point.epoch for point in points]
    columns = [np.interp(epoch, epochs, column) for column in zip(*shares, strict=True)]
    return dict(zip(sizes, map(float, columns), strict=True))


Weights = Callable[[Sampling, Counts, int], dict[str, float]]


@dataclass(frozen=True)
class Strategy:
    """One way to share an epoch: a row of `STRATEGIES`.

    Args:
        options: of `sampling`, that it reads.
        weights: from the options, the rows of each source and the number of the epoch to the
            sources' weights; None for what `rows_of_epoch` does itself.
    """

    options: tuple[str, ...] = ()
    weights: Weights | None = None


STRATEGIES: Table[Strategy] = Table(
    "strategy",
    {
        "proportional": Strategy(),
        "uniform": Strategy(("rows_per_epoch",), _uniform),
        "temperature": Strategy(("temperature", "size_cap", "rows_per_epoch"), _temperature),
        "weights": Strategy(("weights", "rows_per_epoch"), _weights_given),
        "schedule": Strategy(("schedule", "rows_per_epoch"), _scheduled),
        "round_robin": Strategy(("until",)),
        "sequential": Strategy(("order_of_tasks",)),
    },
)


def register_strategy(
    name: str, weights: Weights, *, options: Sequence[str] = ("rows_per_epoch",)
) -> None:
    """Add a strategy that `sampling` can name.

    Args:
        name: for `sampling.strategy`.
        weights: called as `weights(sampling, sizes, epoch)` with the recipe's `Sampling`, the rows
            of each source (a task, or tasks that share rows, joined by +) and the number of the
            epoch from 0; gives a weight of 0 or more for each source. It must give the same for the
            same arguments: all ranks, and a run that resumes, ask it.
        options: keys of `sampling` that it reads; the others are refused.

    Raises:
        ValueError: the name is taken or has other characters than lower-case letters, digits and _;
            `weights` is no function, or an option is none.
    """
    if not isfunction(weights):
        raise ValueError(f"strategy {name!r} is {weights!r}; give a function")
    known = {option for strategy in STRATEGIES.values() for option in strategy.options}
    if unknown := sorted(set(options) - known):
        raise ValueError(
            f"strategy {name!r}: no option {', '.join(unknown)}; there are: "
            f"{', '.join(sorted(known))}"
        )
    STRATEGIES.add(name, Strategy(tuple(options), weights), weights)


# ---- from a recipe ----

# What a strategy that reads it cannot do without.
NEEDED = ("weights", "schedule", "order_of_tasks")


def sampling_faults(recipe: Recipe) -> list[str]:
    """What is wrong with `sampling`, and with the `epochs` of the tasks."""
    sources = sources_of(recipe)
    faults = option_faults(recipe.sampling, sources) + _epochs_faults(recipe, sources)
    size = "per_device_train_batch_size"
    if recipe.sampling.batch_tokens is not None and size in recipe.training:
        faults.append(f"sampling.batch_tokens: training.{size} is given too; take one of them out")
    if recipe.sampling.balance is not None:
        faults += balanced_tasks(sources, recipe.tasks)[1] + [
            f"sampling.balance: rows of {name} have distributions (soft_label), not one label"
            for name, task in recipe.tasks.items()
            if task.data.soft_label is not None
        ]
    if recipe.sampling.rows_together is not None:
        faults += _together_faults(recipe, sources)
    return faults


def can_gather(sampling: Sampling) -> bool:
    """Rows of a source can be kept together: nothing else says which rows share a step."""
    by_size = sampling.order == "length" or sampling.batch_tokens is not None
    return sampling.batches == "mixed" and not by_size


def together_by_source(
    sampling: Sampling, sources: dict[str, list[str]], tasks: Mapping[str, TaskConfig]
) -> dict[str, int]:
    """How many rows come into a step, of the sources that have a loss that compares them."""
    rows = sampling.rows_together or ROWS_TOGETHER
    comparing = [name for name, names in sources.items() if any(in_batch(tasks[t]) for t in names)]
    return dict.fromkeys(comparing, rows) if rows > 1 else {}


def _together_faults(recipe: Recipe, sources: dict[str, list[str]]) -> list[str]:
    key, sampling = "sampling.rows_together", recipe.sampling
    if not any(map(_compares, recipe.tasks.values())):
        losses = ", ".join(IN_BATCH_LOSSES)
        return [f"{key}: no task has a loss that compares rows ({losses}); take it out"]
    if sampling.batches == "pure" or len(sources) == 1:
        return [f"{key}: all rows of a step are of one source; take it out"]
    if not can_gather(sampling):
        other = "batch_tokens" if sampling.batch_tokens is not None else "order: length"
        return [f"{key}: sampling.{other} says which rows share a step; take one of them out"]
    return []


def _compares(task: TaskRecipe) -> bool:
    """Its loss compares rows; a task that makes no config is told of elsewhere."""
    try:
        return in_batch(task.task_config(task.labels or kind_of(task).stand_in_labels()))
    except ValueError:
        return True


def option_faults(sampling: Sampling, sources: dict[str, list[str]]) -> list[str]:
    """What is wrong with the options of a strategy over these sources and their tasks."""
    if sampling.strategy not in STRATEGIES:
        return [STRATEGIES.fault("sampling.strategy", sampling.strategy)]
    faults = []
    reads = STRATEGIES[sampling.strategy].options
    for key in sorted({option for strategy in STRATEGIES.values() for option in strategy.options}):
        is_set = getattr(sampling, key) is not None
        if is_set and key not in reads:
            fitting = " or ".join(n for n, one in STRATEGIES.items() if key in one.options)
            faults.append(f"sampling.{key}: for strategy {fitting}, not {sampling.strategy}")
        if not is_set and key in reads and key in NEEDED:
            faults.append(f"sampling.{key}: missing; strategy {sampling.strategy} needs it")
    if sampling.strategy == "sequential" and sampling.batches == "mixed":
        faults.append("sampling.batches: sequential takes one task at a time; write batches: pure")
    faults += _weight_faults("sampling.weights", sampling.weights, sources)
    points = sampling.schedule or []
    for number, point in enumerate(points):
        if isinstance(point.weights, dict):
            key = f"sampling.schedule.{number}.weights"
            faults += _weight_faults(key, point.weights, sources)
    if [p.epoch for p in points] != sorted({p.epoch for p in points}):
        faults.append("sampling.schedule: the epochs of its points must rise")
    if sampling.order_of_tasks is not None:
        faults += _naming_faults("sampling.order_of_tasks", sampling.order_of_tasks, sources)
    return faults


def sources_of(recipe: Recipe) -> dict[str, list[str]]:
    """Source name to its tasks, in the order of names."""
    groups = [list(tasks) for tasks in group_tasks(recipe.tasks)]
    return {"+".join(tasks): tasks for tasks in sorted(groups)}


def _weight_faults(
    key: str, weights: dict[str, float] | None, sources: dict[str, list[str]]
) -> list[str]:
    if weights is None:
        return []
    faults = _naming_faults(key, list(weights), sources)
    bad = {name: w for name, w in weights.items() if not 0 <= w < math.inf}
    faults += [f"{key}.{name}: {weight}; write a number, 0 or more" for name, weight in bad.items()]
    if not bad and sum(weights.values()) <= 0:
        faults.append(f"{key}: one weight must be more than 0")
    return faults


def _naming_faults(key: str, names: list[str], sources: dict[str, list[str]]) -> list[str]:
    """Each source must be named by exactly one of its tasks."""
    known = sorted(task for tasks in sources.values() for task in tasks)
    faults = [f"{key}: no task {n!r}; tasks: {', '.join(known)}" for n in names if n not in known]
    for tasks in sources.values():
        named = [name for name in names if name in tasks]
        if not named:
            faults.append(f"{key}: {' or '.join(tasks)} is missing")
        elif len(named) > 1:
            one = "named twice" if len(set(named)) == 1 else "share their rows; name one of them"
            faults.append(f"{key}: {' and '.join(sorted(set(named)))}: {one}")
    return faults


def _epochs_faults(recipe: Recipe, sources: dict[str, list[str]]) -> list[str]:
    strategy, faults = recipe.sampling.strategy, []
    for tasks in sources.values():
        epochs_by_task = {name: recipe.tasks[name].epochs for name in tasks}
        if any(epochs_by_task.values()) and strategy not in ("proportional", "sequential"):
            name = next(name for name in tasks if epochs_by_task[name])
            fitting = "proportional or sequential"
            faults.append(f"tasks.{name}.epochs: for strategy {fitting}, not {strategy}")
        if len({epochs for epochs in epochs_by_task.values() if epochs is not None}) > 1:
            faults.append(f"tasks.{tasks[0]}.epochs: {', '.join(tasks)} share their rows; one only")
    return faults


def by_source(sampling: Sampling, sources: dict[str, list[str]]) -> Sampling:
    """The same options with the names of sources where those of tasks stood.

    Args:
        sampling: options of a recipe without faults.
        sources: source name to its tasks.
    """
    name = {task: source for source, tasks in sources.items() for task in tasks}
    renamed = {name[task]: weight for task, weight in (sampling.weights or {}).items()}
    points = [
        point
        if isinstance(point.weights, str)
        else replace(point, weights={name[t]: w for t, w in point.weights.items()})
        for point in sampling.schedule or []
    ]
    return replace(
        sampling,
        weights=renamed or None,
        schedule=points or None,
        order_of_tasks=[name[task] for task in sampling.order_of_tasks or []] or None,
    )


def passes_by_source(recipe: Recipe, sources: dict[str, list[str]]) -> dict[str, float]:
    """`epochs` of the tasks, by source, where one is given."""
    return {
        source: epochs
        for source, tasks in sources.items()
        for task in tasks
        if (epochs := recipe.tasks[task].epochs) is not None
    }


def spread_duplicates(
    rows: np.ndarray, texts: Sequence[frozenset[int]], distance: int
) -> np.ndarray:
    """The rows in the same order, but rows with a text in common `distance` apart.

    A row that comes too early waits; those that wait go first as soon as they may. What still waits
    at the end goes between earlier rows where there is a place, and else stays at the end.

    Args:
        rows: row numbers.
        texts: the texts of each row, as numbers; by row number.
        distance: rows from one to the next with the same text, at least.
    """
    spread: list[int] = []
    last: dict[int, int] = {}  # text to the place after which it may come again
    waiting: deque[int] = deque()

    def may_come(row: int) -> bool:
        return all(last.get(text, 0) <= len(spread) for text in texts[row])

    def put(row: int) -> None:
        last.update(dict.fromkeys(texts[row], len(spread) + distance))
        spread.append(row)

    for row in rows.tolist():
        while (first := next((r for r in waiting if may_come(r)), None)) is not None:
            waiting.remove(first)
            put(first)
        if may_come(row):
            put(row)
        else:
            waiting.append(row)
    for row in waiting:
        near = (
            (position, spread[max(0, position - distance + 1) : position + distance - 1])
            for position in range(len(spread), -1, -1)
        )
        free = (
            position
            for position, rows_near in near
            if not any(texts[row] & texts[r] for r in rows_near)
        )
        spread.insert(next(free, len(spread)), row)
    return np.array(spread, dtype=rows.dtype)
