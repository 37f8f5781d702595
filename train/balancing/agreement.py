"""When two tasks pull apart: one rule, for reports, cards and `polyhead affinity`.

Cosines of two tasks' gradients are small numbers with much noise: a batch of 16 rows gives a
gradient of which the rows' own chance is the larger part, and two halves of one task's batch agree
by 0.3, not by 1. So a mean cosine says that two tasks pull apart where it lies below 0

- by more than its own noise: the 95 % interval of the mean over the comparisons (Student's t), and
- by more than a tenth (`SMALL`) of what the tasks have with themselves. That is measured by two
  halves of a task's own gradient, whose mean cosine r is scaled to the whole batch, 2r / (1 + r)
  (Spearman and Brown); of two tasks the geometric mean counts.

Where halves were not measured a tenth of 1 counts. From fewer than 3 comparisons nothing follows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scipy.stats import t as student

SMALL = 0.1
FEWEST = 3  # comparisons
Verdict = Literal["apart", "alike", "unclear"]


def agreement_with_itself(halves: Sequence[float]) -> float | None:
    """From cosines of two halves of a task's gradient to what whole batches would have, 0 to 1."""
    if not halves:
        return None
    mean = sum(halves) / len(halves)
    return max(0.0, 2 * mean / (1 + mean)) if mean > -1 else 0.0


def own_agreement(one: float | None, other: float | None) -> float | None:
    """Of two tasks the geometric mean; None where one is not known."""
    return None if one is None or other is None else math.sqrt(one * other)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None of fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    mean = sum(values) / count
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)


def noise_of(pair: Mapping[str, Any]) -> float | None:
    """How far from 0 a pair's mean cosine may lie by chance, or without meaning anything.

    Args:
        pair: `standard_error` and `own`, which may be None or missing; `compared`.

    Returns:
        None where there are too few comparisons to tell.
    """
    error, count = pair.get("standard_error"), pair["compared"]
    if error is None or count < FEWEST:
        return None
    own = pair.get("own")
    return max(float(student.ppf(0.975, count - 1)) * error, SMALL * (1.0 if own is None else own))


def verdict(pair: Mapping[str, Any]) -> Verdict:
    """Whether two tasks pull apart, or alike; see above.

    Args:
        pair: `mean` and what `noise_of` reads.
    """
    noise, mean = noise_of(pair), pair["mean"]
    if noise is None or mean is None or abs(mean) <= noise:
        return "unclear"
    return "apart" if mean < 0 else "alike"


def summary(pairs: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on all pairs of tasks."""
    apart = [" and ".join(pair["tasks"]) for pair in pairs if verdict(pair) == "apart"]
    if apart:
        return f"Pulling apart: {', '.join(apart)}."
    if all(noise_of(pair) is None for pair in pairs):
        return f"Fewer than {FEWEST} comparisons: whether tasks pull apart cannot be told."
    return "No two tasks pull apart."
