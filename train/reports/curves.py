"""The course of a run by task, from the trainer's log: numbers and pictures.

Losses of tasks are of different sizes, so each task has a panel of its own; what can be compared
(weights, norms of gradients) shares one.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from ..artifacts import REPORTS
from ..balancing.agreement import agreement_with_itself, own_agreement, standard_error, verdict
from ..escape import drawn
from ..evaluation.metrics import METRICS
from .experts import expert_loads, experts_figure
from .figures import draw
from .heat_map import heat_map

# The pictures of a run, and what of its curves each shows.
NEEDS = {
    "losses": ("losses", "weights", "rows", "tokens"),
    "scores": ("scores",),
    "gradients": ("gradient_norms",),
    "cosines": ("cosines",),
    "layers": ("layers",),
    "rates": ("rates",),
    "experts": ("experts",),
}
ON_TRAIN = "train rows"


def training_curves(log_history: list[dict[str, Any]], task_names: Sequence[str]) -> dict[str, Any]:
    """The trainer's log by task.

    Args:
        log_history: `trainer.state.log_history`.
        task_names: the tasks.

    Returns:
        JSON-ready; lists of [step, value], value None where it was no number:
        `losses` by task: train, evaluation; `scores` by task and metric, `macro` among the tasks;
        `weights`, `rows`, `tokens`, `skipped`, `gradient_norms` by task; and `cosines`, one entry
        per pair of tasks: tasks, mean and its `standard_error`, share of comparisons below 0
        (`negative`), `compared`, and `own`, what tasks have with themselves (`agreement.py`); the
        lowest first. `layers`, norms of the gradient by part of the encoder, from the bottom up;
        `rates`, learning rates by part of the model. `experts`, by task and expert the mean weight
        over the second half of the log. Scores of training rows are named as
        `accuracy, train rows`, their losses `train rows`.

    Raises:
        ValueError: the log holds no number where one is due.
    """
    names = sorted(task_names)

    def by_task(prefix: str) -> dict[str, list]:
        series = {name: _series(log_history, f"{prefix}_{name}") for name in names}
        return {name: points for name, points in series.items() if points}

    losses = {"train": by_task("loss")}
    losses[ON_TRAIN] = {
        name: points for name in names if (points := _series(log_history, f"on_train_{name}_loss"))
    }
    losses["evaluation"] = {
        name: points for name in names if (points := _series(log_history, f"eval_{name}_loss"))
    }
    return {
        "losses": {
            name: {kind: lines[name] for kind, lines in losses.items() if name in lines}
            for name in names
            if any(name in lines for lines in losses.values())
        },
        "scores": _score_series(log_history, names),
        "weights": by_task("weight"),
        "rows": by_task("rows"),
        "tokens": by_task("tokens"),
        "skipped": by_task("skipped"),
        "gradient_norms": by_task("grad_norm"),
        "cosines": _cosines(log_history, names),
        "layers": _by_part(log_history, "gradient_"),
        "rates": _by_part(log_history, "lr_") or _one_rate(log_history),
        "experts": expert_loads(log_history, names),
    }


def _score_series(
    log_history: list[dict[str, Any]], names: list[str]
) -> dict[str, dict[str, list]]:
    """Series by task and metric, `macro` among the tasks; without those that have no points."""
    keys = (*METRICS, "precision", "recall")
    scores: dict[str, dict[str, list]] = {name: {} for name in names}
    for prefix, suffix in (("eval", ""), ("on_train", f", {ON_TRAIN}")):
        for name in names:
            series = {f"{m}{suffix}": _series(log_history, f"{prefix}_{name}_{m}") for m in keys}
            scores[name] |= series
        macro = _series(log_history, f"{prefix}_macro")
        scores.setdefault("macro", {})[f"macro{suffix}"] = macro
    return {
        name: {metric: points for metric, points in metrics.items() if points}
        for name, metrics in scores.items()
        if any(metrics.values())
    }


def _by_part(log_history: list[dict[str, Any]], prefix: str) -> dict[str, list[list]]:
    """Series of the parts of a model, in the order of the model."""
    keys = dict.fromkeys(k for line in log_history for k in line if k.startswith(prefix))
    return {
        key.removeprefix(prefix).replace("_", " ", 1): _series(log_history, key) for key in keys
    }


def _one_rate(log_history: list[dict[str, Any]]) -> dict[str, list[list]]:
    points = _series(log_history, "learning_rate")
    return {"all parts": points} if points else {}


def _series(log_history: list[dict[str, Any]], key: str) -> list[list]:
    points = []
    for line in log_history:
        value = line.get(key, math.nan)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"step {line['step']}: {key} is {value!r}, not a number")
        if key in line:
            points.append([line["step"], value if math.isfinite(value) else None])
    return points


def _cosines(log_history: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Pairs of tasks by the mean cosine of their gradients; a gradient of 0 has none."""
    own = {name: agreement_with_itself(_values(log_history, f"halves_{name}")) for name in names}
    pairs = []
    for one, other in combinations(names, 2):
        values = _values(log_history, f"cosine_{one}-{other}")
        if values:
            pairs.append(
                {
                    "tasks": [one, other],
                    "mean": sum(values) / len(values),
                    "standard_error": standard_error(values),
                    "negative": sum(value < 0 for value in values) / len(values),
                    "compared": len(values),
                    "own": own_agreement(own[one], own[other]),
                }
            )
    return sorted(pairs, key=lambda pair: pair["mean"])


def _values(log_history: list[dict[str, Any]], key: str) -> list[float]:
    return [value for _, value in _series(log_history, key) if value is not None]


def training_plots(
    log_history: list[dict[str, Any]], task_names: Sequence[str], folder: str | Path
) -> list[Path]:
    """Draw `reports/losses.png` and the others of `NEEDS`, those with something to show.

    Args:
        log_history: `trainer.state.log_history`.
        task_names: the tasks.
        folder: folder of the run.

    Returns:
        paths of the pictures.
    """
    reports = Path(folder) / REPORTS
    reports.mkdir(parents=True, exist_ok=True)
    return draw_training(training_curves(log_history, task_names), reports)


def draw_training(curves: dict[str, Any], folder: Path) -> list[Path]:
    """`losses.png` and the others of `NEEDS`, those for which something was logged.

    Args:
        curves: what `training_curves` gave.
        folder: folder to write into; exists.

    Returns:
        paths of the pictures.
    """
    names = [name for name, keys in NEEDS.items() if any(curves[key] for key in keys)]
    makers = {"losses": _losses, "scores": _scores, "gradients": _gradients}
    makers |= {
        "experts": experts_figure,
        "cosines": _cosine_map,
        "layers": _layers,
        "rates": _rates,
    }
    return draw(folder, makers, names, curves)


def _losses(curves: dict[str, Any]) -> Figure:
    """A panel for each task, whose losses are of different sizes; then weights, rows and tokens."""
    losses, weights = curves["losses"], curves["weights"]
    totals = [key for key in ("rows", "tokens") if curves[key]]
    figure, panels = _grid(len(losses) + bool(weights) + len(totals), "losses by task")
    left = iter(panels)
    for task, lines in losses.items():
        axes = next(left)
        axes.set(title=drawn(task), ylabel="loss", xlabel="optimizer step")
        if "train" in lines:
            _line(axes, _smooth(axes, lines["train"]), "tab:blue", "train")
        if "evaluation" in lines:
            _line(axes, lines["evaluation"], "tab:red", "evaluation", marked=True)
        if ON_TRAIN in lines:
            _line(axes, lines[ON_TRAIN], "tab:cyan", f"{ON_TRAIN}, without dropout", marked=True)
        axes.legend(fontsize=7)
    if weights:
        axes = next(left)
        axes.set(title="weight of the loss", ylabel="weight", xlabel="optimizer step")
        _by_task(figure, axes, weights)
    for key, axes in zip(totals, left, strict=True):
        last = {task: points[-1][1] for task, points in curves[key].items()}
        axes.barh(list(map(drawn, last)), list(last.values()), color="lightsteelblue")
        axes.invert_yaxis()
        axes.set(title=f"{key} seen", xlabel=key)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    return figure


def _scores(curves: dict[str, Any]) -> Figure:
    figure, panels = _grid(len(curves["scores"]), "scores by task, at each evaluation")
    for axes, (task, metrics) in zip(panels, curves["scores"].items(), strict=True):
        colours: dict[str, str] = {}
        for metric, points in metrics.items():
            name, _, of_train = metric.partition(",")
            color = colours.setdefault(name, f"C{len(colours)}")
            label = "" if of_train else metric
            _line(axes, points, color, label, marked=True, dashed=bool(of_train))
        if any(ON_TRAIN in metric for metric in metrics):
            axes.plot([], [], color="grey", linestyle="--", linewidth=1.2, label=ON_TRAIN)
        axes.set(title=drawn(task), ylabel="score", xlabel="optimizer step")
        axes.legend(fontsize=7)
    return figure


def _gradients(curves: dict[str, Any]) -> Figure:
    """Norms by task, on a log scale."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(title="gradients of the tasks", ylabel="norm", yscale="log")
    axes.set_xlabel("optimizer step")
    _by_task(figure, axes, curves["gradient_norms"])
    return figure


def _layers(curves: dict[str, Any]) -> Figure:
    """A line for each layer, from dark at the bottom to light at the top; the scale is a log."""
    layers = curves["layers"]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for (name, points), color in zip(layers.items(), colours, strict=True):
        _line(axes, points, color, drawn(name), marked=len(points) < 25)
    axes.set(title="gradient by layer, before clipping", ylabel="norm", yscale="log")
    axes.set_xlabel("optimizer step")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center", title="from the top")
    return figure


def _rates(curves: dict[str, Any]) -> Figure:
    """A line for each learning rate; parts that have the same one share it."""
    lines: dict[str, list[str]] = {}
    for name, points in curves["rates"].items():
        lines.setdefault(str(points), []).append(name)
    figure = Figure(figsize=(6.4, 3.2 + 0.16 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for number, names in enumerate(lines.values()):
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        _line(axes, curves["rates"][names[0]], f"C{number}", drawn(shown, 60))
    axes.set(title="learning rate", ylabel="rate", xlabel="optimizer step")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    figure.legend(loc="outside lower center", ncols=1 if len(lines) > 1 else 2)
    return figure


def _cosine_map(curves: dict[str, Any]) -> Figure:
    """The mean cosine of each pair; bold where two tasks pull apart or alike."""
    pairs = curves["cosines"]
    names = sorted({name for pair in pairs for name in pair["tasks"]})
    matrix = np.full((len(names), len(names)), np.nan)
    clear = set()
    for pair in pairs:
        i, j = (names.index(name) for name in pair["tasks"])
        matrix[i, j] = matrix[j, i] = pair["mean"]
        if verdict(pair) != "unclear":
            clear |= {(i, j), (j, i)}
    side = 2.8 + 0.45 * len(names)
    figure = Figure(figsize=(max(5.2, side + 0.6), max(4.2, side - 0.4)), layout="constrained")
    axes = figure.subplots()
    image = heat_map(axes, matrix, names, names, bold=lambda i, j: (i, j) in clear)
    figure.colorbar(image, ax=axes, shrink=0.8).set_label("mean cosine (red: apart, blue: alike)")
    axes.set_title("cosine of the gradients of two tasks\nbold: more than noise")
    return figure


def _grid(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Panels in rows of three or four, whichever leaves less room empty."""
    columns = min(3, count) if count < 4 else min((3, 4), key=lambda c: -count % c)
    rows = -(-count // columns)
    width = max(4.5, (3.6 if columns < 4 else 3.2) * columns)
    figure = Figure(figsize=(width, 0.6 + 2.5 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    figure.suptitle(title)
    return figure, panels[:count]


def _by_task(figure: Figure, axes: Axes, series: dict[str, list]) -> None:
    """A line for each task; their names under the figure."""
    palette = colormaps["tab10" if len(series) <= 10 else "tab20"]
    for number, (task, points) in enumerate(series.items()):
        _line(axes, points, palette(number % palette.N), drawn(task))
    handles, names = axes.get_legend_handles_labels()
    title = axes.get_title()
    figure.legend(handles, names, loc="outside lower center", ncols=5, title=title)


def _smooth(axes: Axes, points: list) -> list:
    """The running mean of a long noisy line, which itself is drawn thin."""
    window = len(points) // 25
    if window < 3:
        return points
    steps, values = np.array(points, dtype=float).T
    axes.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=0.6)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    middle = steps[(window - 1) // 2 :][: len(means)]
    return np.stack([middle, means], axis=1).tolist()


def _line(
    axes: Axes, points: list, color: Any, label: str, *, marked: bool = False, dashed: bool = False
) -> None:
    """Points [step, value]; None is a gap."""
    steps, values = np.array(points, dtype=float).T
    marker = "o" if marked or len(points) == 1 else None
    style: dict[str, Any] = {"color": color, "label": label, "linewidth": 1.2}
    style["linestyle"] = "--" if dashed else "-"
    axes.plot(steps, values, marker=marker, markersize=3, **style)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
