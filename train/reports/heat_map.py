"""A table of numbers as colours: cosines of tasks, affinities, similarities of texts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from ..escape import drawn

NUMBERED = 20  # a heat map of more rows or columns has no numbers
NAME = 28  # characters of a name


def heat_map(
    axes: Axes,
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limit: float = 1.0,
    shown: Callable[[int, int], str] | None = None,
    bold: Callable[[int, int], bool] = lambda i, j: False,
) -> AxesImage:
    """Draw a matrix from red, -limit, over white, 0, to blue, +limit; what is no number is grey.

    Args:
        axes: to draw in.
        matrix: (R, C).
        rows: R names.
        columns: C names.
        limit: end of the colours. That of cosines is 1, so that two pictures can be compared.
        shown: row and column to the number that is written there; default two decimals.
        bold: whether it stands out.

    Returns:
        the image, for a colour bar.
    """
    axes.set_facecolor("0.85")
    image = axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(columns)), [drawn(name, NAME) for name in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [drawn(name, NAME) for name in rows])
    axes.grid(visible=False)
    if max(matrix.shape) > NUMBERED:
        return image
    for i, j in np.argwhere(np.isfinite(matrix)):
        text = f"{matrix[i, j]:+.2f}" if shown is None else shown(i, j)
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
        style["color"] = "white" if abs(matrix[i, j]) > 0.6 * limit else "black"
        axes.text(j, i, text, weight="bold" if bold(i, j) else "normal", **style)
    return image
