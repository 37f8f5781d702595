"""Pictures of what `task_report.py` counts: confusions, calibration, entity types, numbers.

Figures are made without pyplot, which keeps every figure it opened and asks for a window system. A
picture costs some 0.4 s, one of 77 labels 2 s. Names of labels are drawn as they are (a `$` is
no formula), in the first installed font that has their letters.
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.stats import rankdata

from ...modeling.checks import TASK_NAME
from ..artifacts import write_aside
from ..escape import drawn
from .projection import Projection
from .text_map import map_figure, marks_of

Maker = Callable[[dict[str, Any]], Figure]

NUMBERED = 40  # a confusion matrix of more labels has no numbers
DRAWN = 120  # labels in one picture; of more, those with the most errors
NAME = 32  # characters of a label; the JSON has all of it
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Microsoft YaHei",
    "PingFang SC",
    "Arial Unicode MS",
)
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "font.size": 8,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "savefig.dpi": 110,
}


def draw_report(report: dict[str, Any], folder: Path) -> list[Path]:
    """The pictures of one task, `<task>_<section>.png`.

    Args:
        report: what `task_report.task_report` gave; its sections in `SECTIONS` have pictures.
        folder: folder to write into; exists.

    Returns:
        paths of the pictures.

    Raises:
        ValueError: the name of the task is none, and may lead out of the folder.
    """
    task = report["task"]
    check_task_file(task)
    makers = {f"{task}_{name}": make for name, make in SECTIONS.items()}
    names = [f"{task}_{name}" for name in SECTIONS if _can_be_drawn(report, name)]
    return draw(folder, makers, names, report)


def check_task_file(task: str) -> None:
    """Raise ValueError for a task whose name cannot be part of a file's name."""
    if not TASK_NAME.fullmatch(task):
        raise ValueError(f"task {task!r}: a task is named by a-z, 0-9 and _")


def _can_be_drawn(report: dict[str, Any], name: str) -> bool:
    """There is such a section, and it has something to show."""
    if name == "map":
        return len(report.get(name, {}).get("points", [])) > 1
    if not report.get(name) or not report["labelled"]:
        return False
    needs = {"reliability": "count", "numbers": "points"}
    return name not in needs or bool(report[name][needs[name]])


def draw(
    folder: Path, makers: dict[str, Maker], names: Collection[str], values: dict[str, Any]
) -> list[Path]:
    """Write pictures in our style; those of a run before are replaced or removed.

    Args:
        folder: folder to write into; exists.
        makers: name of a picture, `<name>.png`, to what draws it.
        names: names of the pictures to draw this time.
        values: what they are drawn from.

    Returns:
        paths of the pictures.
    """
    paths = []
    with _style():
        for name, make in makers.items():
            path = folder / f"{name}.png"
            path.unlink(missing_ok=True)
            if name in names:
                with write_aside(path) as aside:
                    make(values).savefig(aside)
                paths.append(path)
    return paths


@contextmanager
def _style() -> Iterator[None]:
    """Our style, whatever the user's matplotlibrc says; letters that no font has are boxes."""
    installed = set(font_manager.get_font_names())
    fonts = {"font.family": [name for name in FONTS if name in installed]}
    with matplotlib.style.context(["default", STYLE | fonts]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _short(name: str) -> str:
    return drawn(name, NAME)


def _heading(report: dict[str, Any], what: str) -> str:
    split, unit = _short(report["split"]), _short(report["unit"])
    return f"{report['task']}: {what}\n{split}, {report['labelled']:,} {unit}"


# ---- one task ----


def _confusion(report: dict[str, Any]) -> Figure:
    confusion = report["confusion"]
    counts = np.array(confusion["matrix"], dtype=float)  # (true labels, known labels)
    rows, columns = _most_wrong(counts)
    counts = counts[np.ix_(rows, columns)]
    names = [_short(confusion["labels"][i]) for i in rows]
    names = [
        f"{name} (not in train)" if i >= len(confusion["known"]) else name
        for i, name in zip(rows, names, strict=True)
    ]
    few = max(counts.shape) <= NUMBERED
    cell, size = (0.4, 8) if few else (0.15, 6)
    room = 0.011 * size * max(map(len, names))  # inches that the longest name takes
    width, height = counts.shape[1] * cell + room, counts.shape[0] * cell + room
    figure = Figure(figsize=(max(4.5, width + 1.6), max(3.5, height + 1)), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    bar = figure.colorbar(image, ax=axes, shrink=min(1, 3 / height), aspect=12)
    bar.set_label(f"share of the {_short(report['unit'])} of a true label")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xticks(range(len(columns)), [_short(confusion["known"][i]) for i in columns])
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(labelsize=size, length=2)
    axes.grid(visible=not few)
    axes.set(xlabel="predicted", ylabel="true")
    if few:
        for i, j in np.argwhere(counts > 0):
            color = "white" if shares[i, j] > 0.3 else "black"
            style = {"ha": "center", "va": "center", "fontsize": 7, "color": color}
            axes.text(j, i, _count(float(counts[i, j])), **style)
    part = "" if len(rows) == len(confusion["labels"]) else f", the {DRAWN} labels with most errors"
    axes.set_title(_heading(report, f"confusion{part}"))
    return figure


def _most_wrong(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns to draw, in their order: all, or those with the most errors."""
    known = counts.shape[1]
    right = np.zeros(len(counts))
    right[:known] = counts.diagonal()
    errors = counts.sum(1) - right
    errors[:known] += counts.sum(0) - right[:known]
    chosen = np.sort(np.argsort(-errors, kind="stable")[:DRAWN])
    return chosen, chosen[chosen < known]


def _count(value: float) -> str:
    return f"{value:.0f}" if value < 10_000 else f"{value / 1000:.0f}k"


def _reliability(report: dict[str, Any]) -> Figure:
    reliability = report["reliability"]
    bins = [part for part in reliability["bins"] if part["count"]]
    edges, counts, means, right = (
        [part[key] for part in bins] for key in ("low", "count", "confidence", "accuracy")
    )
    several = reliability["unit"] == "labels"
    style: dict[str, Any] = {"width": reliability["bins"][0]["high"], "align": "edge"}
    style |= {"edgecolor": "white"}
    figure = Figure(figsize=(4.5, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    top.bar(edges, right, color="lightsteelblue", label="share", **style)
    top.plot([0, 1], [0, 1], "--", color="grey", label="probability = share")
    top.plot(means, right, "o", color="tab:red", markersize=3, label="mean probability of a bin")
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    top.set_ylabel(
        "share of labels that are true" if several else "share of answers that are right"
    )
    top.set_title(_heading(report, f"expected calibration error {reliability['ece']:.3f}"))
    bottom.bar(edges, counts, color="grey", **style)
    bottom.set(xlabel=f"probability of {'a label' if several else 'the answer'}", yscale="log")
    bottom.set(ylabel=_short(reliability["unit"]), ylim=(0.7, max(12, 2 * max(counts))))
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _entities(report: dict[str, Any]) -> Figure:
    return _bars(report, report["entities"], "entities by type")


def _labels(report: dict[str, Any]) -> Figure:
    return _bars(report, report["labels"]["per_label"], "labels")


def _bars(report: dict[str, Any], table: dict[str, dict[str, float]], what: str) -> Figure:
    """F1, precision and recall of each name, those that occur most often first."""
    names = sorted(table, key=lambda name: -table[name]["support"])
    part = f", the {DRAWN} most frequent" if len(names) > DRAWN else ""
    names = names[:DRAWN]
    positions = np.arange(len(names))
    figure = Figure(figsize=(6, 1.5 + 0.2 * len(names)), layout="constrained")
    axes = figure.subplots()
    values = {key: [table[name][key] for name in names] for key in ("f1", "precision", "recall")}
    axes.barh(positions, values["f1"], height=0.7, color="lightsteelblue", label="F1")
    axes.plot(
        values["precision"], positions, ">", color="tab:blue", markersize=4, label="precision"
    )
    axes.plot(values["recall"], positions, "d", color="tab:red", markersize=4, label="recall")
    axes.set_yticks(positions, [f"{_short(name)} ({table[name]['support']:,})" for name in names])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.4, -0.6), xlabel="score")
    axes.grid(visible=False, axis="y")
    axes.set_title(_heading(report, f"{what} (how many there are){part}"))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _numbers(report: dict[str, Any]) -> Figure:
    """Predicted against true; then residuals, or the ranks where only the order is learned."""
    numbers = report["numbers"]
    true, predicted = np.array(numbers["points"]).T
    points: dict[str, Any] = {"markersize": 3, "alpha": 0.3, "markeredgewidth": 0}
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(true, predicted, "o", **points)
    left.set(xlabel="true", ylabel="predicted")
    if "residuals" in numbers:
        ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
        left.plot(ends, ends, "--", color="grey")
        left.set_title("dashed: predicted = true")
        right.hist(predicted - true, bins=30, color="lightsteelblue")
        right.axvline(0, color="grey", linestyle="--")
        mean, root = (numbers["residuals"][key] for key in ("mean", "root_mean_square"))
        right.set(xlabel="residual: predicted - true", ylabel="rows")
        right.set_title(f"mean {mean:+.3f}, root mean square {root:.3f}")
    else:
        left.set(ylabel="predicted: cosine", title="values")
        ranks = [rankdata(values) / len(values) for values in (true, predicted)]
        right.plot(*ranks, "o", **points)
        right.set(xlabel="true: rank", ylabel="predicted: rank", title="ranks, as shares of all")
    shown = f", {len(predicted):,} of them drawn" if len(predicted) < report["labelled"] else ""
    figure.suptitle(_heading(report, "predicted and true numbers") + shown)
    return figure


def _map(report: dict[str, Any]) -> Figure:
    section = report["map"]
    points = np.array(section["points"], dtype=float)
    labels = None if all(label is None for label in section["labels"]) else section["labels"]
    marks = marks_of(labels, len(points), section["column"])
    shown = Projection("pca", points, heading=_short(section["title"]))
    title = f"{report['task']}: {section['split']} rows as the head sees them"
    return map_figure([shown], marks, title)


# The sections of a report that have a picture.
SECTIONS: dict[str, Maker] = {
    "confusion": _confusion,
    "labels": _labels,
    "reliability": _reliability,
    "entities": _entities,
    "numbers": _numbers,
    "map": _map,
}
