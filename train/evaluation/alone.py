"""What a task scores alone and jointly."""

import math
from typing import Any

from .metrics import LOWER_IS_BETTER, main_metric

CORRELATIONS = ("pearson", "spearman", "mcc", "quadratic_kappa")


def side_by_side(
    single: dict[str, Any], joint: dict[str, Any], rows: int, split: str
) -> dict[str, Any]:
    """The main metric of a task trained alone and jointly; `gain` is positive where joint wins.

    Args:
        single: metrics of the task trained alone.
        joint: its metrics from the joint training, the main one first.
        rows: how many were scored.
        split: theirs.

    Returns:
        `metric`, `rows`, `single`, `joint`, `gain`, `standard_error` of the gain over these rows,
        `split`; None for what is not finite or not known.
    """
    metric = main_metric(list(joint))
    values = (single[metric], joint[metric])
    gain = (values[0] - values[1]) if metric in LOWER_IS_BETTER else (values[1] - values[0])
    errors = [_score_error(metric, value, rows) for value in values]
    known = None not in errors and math.isfinite(gain)
    return {
        "metric": metric,
        "rows": rows,
        "single": values[0] if math.isfinite(values[0]) else None,
        "joint": values[1] if math.isfinite(values[1]) else None,
        "gain": gain if math.isfinite(gain) else None,
        "standard_error": math.hypot(*errors) if known else None,  # pyright: ignore
        "split": split,
    }


def in_words(numbers: dict[str, Any]) -> str:
    """What `side_by_side` gives, as `accuracy alone 0.8510, jointly 0.8620; +0.0110 ± ...`."""
    if numbers["gain"] is None:
        return f"no {numbers['metric']} to compare"
    text = f"{numbers['metric']} alone {numbers['single']:.4f}, jointly {numbers['joint']:.4f}"
    if numbers["standard_error"] is None:
        return text
    difference = f"{numbers['gain']:+.4f} ± {numbers['standard_error']:.4f}"
    return f"{text}; {difference} over {numbers['rows']} rows of {numbers['split']}"


def _score_error(metric: str, value: float, rows: int) -> float | None:
    """The usual standard error of a share, or of a correlation, over so many rows.

    A share gets two rows that are right and two that are wrong (Agresti and Coull, 1998), so that
    all of a few is not taken for certain.
    """
    if metric in LOWER_IS_BETTER or not math.isfinite(value):
        return None
    if metric in CORRELATIONS:
        return (1 - value**2) / math.sqrt(rows)
    share = (value * rows + 2) / (rows + 4)
    return math.sqrt(share * (1 - share) / (rows + 4))
