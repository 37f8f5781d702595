"""HTML of the page's answers: bars, marked texts, tables. Texts reach it escaped.

Colours are in `page.css`, which knows light and dark; here is only what depends on the answers.
"""

import html
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ..escape import lines, visible
from ..inference.files import plain

HUES = 9  # that entity types take in turn
NAME = 32  # characters of a text at the side of a table
DARK = 0.55  # cosine from which the number on its colour is white


def escaped(text: str) -> str:
    """A text in a page, with its line breaks."""
    return html.escape(lines(text))


def section(title: str, about: str, body: str) -> str:
    """A card of the page.

    Args:
        title: text.
        about: text.
        body: HTML.
    """
    head = f"<h3>{escaped(title)} <small>{escaped(about)}</small></h3>"
    return f'<section class="answer">{head}{body}</section>'


def refused(message: str) -> str:
    """What cannot be done, and what to type; read out at once by screen readers."""
    return f'<section class="answer" role="alert"><p class="text">{escaped(message)}</p></section>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells under headings of text."""
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def bars(
    ranked: Sequence[Mapping[str, Any]],
    chosen: Collection[str],
    thresholds: Mapping[str, float | None] | None = None,
) -> str:
    """Labels with their probabilities.

    Args:
        ranked: `{"label", "score"}`, in their order.
        chosen: labels that are the answer.
        thresholds: by label, from which probability it is put.
    """
    rows = []
    for entry in ranked:
        label, score = entry["label"], entry["score"]
        threshold, mark = (thresholds or {}).get(label), ""
        if threshold is not None:
            place = f'style="left:{min(threshold, 1):.1%}"'
            mark = f'<i class="threshold" {place} title="threshold {threshold:g}"></i>'
        tick = '<b title="answer">✓</b>' if label in chosen else ""
        bar = f'<div class="bar"><i style="width:{score:.1%}"></i>{mark}</div>'
        value = f"{score:.3f}" + ("" if threshold is None else f" <small>≥ {threshold:g}</small>")
        rows.append(
            f'<tr class="{"chosen" if label in chosen else "other"}"><td class="tick">{tick}</td>'
            f'<th scope="row">{escaped(label)}</th><td class="long">{bar}</td>'
            f'<td class="number">{value}</td></tr>'
        )
    return f'<table class="bars">{"".join(rows)}</table>'


def entities(text: str, answers: Sequence[Mapping[str, Any]]) -> str:
    """The text with its entities marked where they stand, and a list of them."""
    hues: dict[str, int] = {}
    marked, position = [], 0
    for entity in sorted(answers, key=lambda entity: entity["start"]):
        group, first, last = entity["entity_group"], entity["start"], entity["end"]
        if first < position:  # inside another
            continue
        hue = hues.setdefault(group, len(hues) % HUES)
        marked.append(escaped(text[position:first]))
        marked.append(
            f'<mark class="hue{hue}" title="{entity["score"]:.3f}">{escaped(text[first:last])}'
            f"<small>{escaped(group)}</small></mark>"
        )
        position = last
    marked.append(escaped(text[position:]))
    told = "" if answers else '<p class="soft">Nothing is marked.</p>'
    return f'<p class="text">{"".join(marked)}</p>{told}'


def number(value: float) -> str:
    """The answer of a regression."""
    return f'<p class="value">{value:.3f}</p>'


def numbers(value: Any) -> str:
    """Any other answer, as JSON."""
    shown = json.dumps(plain(value), ensure_ascii=False, indent=1, default=str)
    return f"<pre>{escaped(shown)}</pre>"


def heat_table(matrix: np.ndarray, texts: Sequence[str]) -> str:
    """Cosines of texts with each other, from red, -1, over white, 0, to blue, +1.

    Args:
        matrix: (N, N).
        texts: N.
    """
    ramp = colormaps["RdBu"]
    names = [html.escape(_cut(visible(" ".join(text.split())))) for text in texts]
    head = "".join(f'<th scope="col" title="{name}">{i}</th>' for i, name in enumerate(names, 1))
    rows = []
    for i, (name, values) in enumerate(zip(names, matrix, strict=True), 1):
        cells = "".join(
            f'<td style="background:{to_hex(ramp((value + 1) / 2))};'
            f'color:{"#fff" if abs(value) > DARK else "#111"}">{value:.2f}</td>'
            for value in np.clip(values, -1, 1)
        )
        rows.append(f'<tr><th scope="row">{i} {name}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="heat"><tr><th>cosine</th>{head}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _cut(text: str) -> str:
    return text if len(text) <= NAME else f"{text[: NAME - 1]}…"


def framed(page: str, title: str) -> str:
    """A whole page within the page: it may run its scripts, and reach nothing."""
    source = html.escape(page)
    return (
        f'<iframe class="map" sandbox="allow-scripts" title="{title}" srcdoc="{source}"></iframe>'
    )
