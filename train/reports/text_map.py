"""Texts on a plane as a picture and as a page that shows each text under the pointer.

The page is one file: it loads nothing, and texts reach it as data, never as tags.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..escape import drawn, in_html, in_json, lines
from .projection import Projection

COLOURS = [to_hex(color) for color in colormaps["tab10"].colors]  # pyright: ignore
MORE_COLOURS = [to_hex(color) for color in colormaps["tab20"].colors]  # pyright: ignore
OTHERS, NOTHING = "others", "no label"
GREY = "#9a9a9a"
SCALE = "viridis"
LONGEST = 1000  # characters of a text on the page
NAME = 24  # characters of a label in the picture's legend


@dataclass(frozen=True)
class Marks:
    """What colours the points: labels, of which the most frequent have a colour, or numbers.

    Args:
        title: name of the column; empty where all points are alike.
        shown: (N,) each text's label or number as text.
        names: the labels with a colour, the most frequent first; then `others` and `no label`.
        groups: (N,) place in `names`.
        colours: one for each of `names`.
        numbers: (N,) where the labels are numbers; NaN for none. Then there are no names.
    """

    title: str
    shown: list[str]
    names: list[str]
    groups: np.ndarray
    colours: list[str]
    numbers: np.ndarray | None = None


def marks_of(values: Sequence[Any] | None, count: int, title: str = "") -> Marks:
    """Colours for the values of a column.

    Args:
        values: one for each text, None for no label; or None for points that are all alike.
        count: of texts.
        title: name of the column.
    """
    if values is None:
        return Marks(title, [""] * count, [], np.zeros(count, dtype=int), [])
    missing = [_is_missing(value) for value in values]
    shown = [NOTHING if none else str(v) for v, none in zip(values, missing, strict=True)]
    numbers = _numbers([None if none else v for v, none in zip(values, missing, strict=True)])
    if numbers is not None:
        return Marks(title, shown, [], np.zeros(count, dtype=int), [], numbers)
    labels = Counter(text for text, none in zip(shown, missing, strict=True) if not none)
    names = [name for name, _ in labels.most_common(len(MORE_COLOURS))]
    colours = list(COLOURS if len(names) <= len(COLOURS) else MORE_COLOURS)[: len(names)]
    place = {name: number for number, name in enumerate(names)}
    for name, used in ((OTHERS, len(labels) > len(names)), (NOTHING, any(missing))):
        if used:
            names.append(f"{name} ({len(labels) - len(place)} labels)" if name == OTHERS else name)
            colours.append(GREY if name == OTHERS else "#c9c9c9")
    others = len(place)
    groups = [
        len(names) - 1 if none else place.get(text, others)
        for text, none in zip(shown, missing, strict=True)
    ]
    return Marks(title, shown, names, np.array(groups), colours)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and bool(np.isnan(value)))


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    """The values as numbers, where all are and there are too many to be labels."""
    if any(isinstance(value, bool) for value in values):
        return None
    try:
        numbers = np.array([np.nan if value is None else float(value) for value in values])
    except (TypeError, ValueError):
        return None
    known = numbers[np.isfinite(numbers)]
    return numbers if len(np.unique(known)) > len(COLOURS) else None


# ---- the picture ----


def map_figure(maps: Sequence[Projection], marks: Marks, title: str) -> Figure:
    """A panel for each projection, and one legend.

    Args:
        maps: of the same texts.
        marks: their colours.
        title: of the figure.
    """
    figure = Figure(figsize=(4.6 * len(maps) + 0.2, 5.2), layout="constrained")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    size = float(np.clip(6000 / max(1, len(marks.shown)), 5, 28))
    for axes, shown in zip(panels, maps, strict=True):
        colours, extra = _point_colours(marks)
        x, y = shown.points.T
        axes.scatter(x, y, c=colours, s=size, alpha=0.75, linewidths=0, **extra)
        axes.set(title=shown.title, xticks=[], yticks=[])
        axes.set_aspect("equal", "datalim")
        axes.set_frame_on(False)
    figure.suptitle(drawn(title))
    if marks.numbers is not None:
        known = marks.numbers[np.isfinite(marks.numbers)]
        scale = ScalarMappable(Normalize(known.min(), known.max()), SCALE)
        bar = figure.colorbar(scale, ax=list(panels), location="bottom", shrink=0.5, aspect=30)
        bar.set_label(drawn(marks.title))
    elif marks.names:
        counts = np.bincount(marks.groups, minlength=len(marks.names))
        handles = [
            Line2D([], [], marker="o", linestyle="", markersize=5, color=color, label=label)
            for color, label in zip(marks.colours, _legend(marks, counts), strict=True)
        ]
        columns = 3 if len(maps) == 1 else 4
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(columns, len(handles)),
            title=drawn(marks.title),
            fontsize=7,
        )
    return figure


def _legend(marks: Marks, counts: np.ndarray) -> list[str]:
    return [
        f"{drawn(name, NAME)} ({count:,})"
        for name, count in zip(marks.names, counts.tolist(), strict=True)
    ]


def _point_colours(marks: Marks) -> tuple[Any, dict[str, Any]]:
    if marks.numbers is not None:
        return marks.numbers, {"cmap": SCALE, "plotnonfinite": True}
    if not marks.names:
        return COLOURS[0], {}
    return [marks.colours[group] for group in marks.groups], {}


# ---- the page ----


def map_page(maps: Sequence[Projection], marks: Marks, texts: Sequence[str], title: str) -> str:
    """A page of HTML that shows the text under the pointer; it loads nothing.

    Args:
        maps: of the same texts.
        marks: their colours.
        texts: N.
        title: of the page.
    """
    ramp = colormaps[SCALE]
    data = {
        "maps": [{"title": m.title, "points": _rounded(m.points)} for m in maps],
        "texts": [lines(t if len(t) <= LONGEST else f"{t[: LONGEST - 1]}…") for t in texts],
        "labels": [lines(text) for text in marks.shown],
        "title": lines(marks.title),
        "names": [lines(name) for name in marks.names],
        "colours": marks.colours or [COLOURS[0]],
        "groups": marks.groups.tolist(),
        "numbers": None if marks.numbers is None else _finite(marks.numbers),
        "ramp": [to_hex(ramp(0.15 + 0.85 * step / 32)) for step in range(33)],  # none is black
    }
    text = in_json(json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    for sign in "<>&\u2028\u2029":  # nothing of it ends the script that holds it
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    frame = resources.files("polyhead.train.reports").joinpath("text_map.html")
    cut = sum(len(text) > LONGEST for text in texts)
    note = f"{len(texts):,} texts"
    note += f"; {cut:,} of them are cut at {LONGEST:,} characters" if cut else ""
    page = Template(frame.read_text(encoding="utf-8"))
    return page.substitute(title=in_html(title), note=in_html(note), data=text)


def _rounded(points: np.ndarray) -> list[list[float]]:
    """Points between 0 and 1 in both directions, on one scale."""
    low, span = points.min(0), float(np.ptp(points, axis=0).max())
    return np.round((points - low + (span - np.ptp(points, axis=0)) / 2) / span, 4).tolist()


def _finite(numbers: np.ndarray) -> list[float | None]:
    return [float(number) if np.isfinite(number) else None for number in numbers]
