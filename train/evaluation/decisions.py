"""What is decided on validation rows after training, and what it is worth on others.

A temperature, so that probabilities are as often right as they say; from which probability a label
is set; below which score there is no answer. Each is the best one on the rows by its own measure,
found by going through all that there are; nothing is guessed for what the rows do not show.

Shapes: `n` answers, `L` labels.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from ...modeling.task_config import TaskConfig
from ..kinds import Answers, TaskKind
from ..kinds.counting import reliability

UNSURE = 0.5  # threshold where there is nothing to be found
NEVER = 2.0  # threshold where none is precise enough; no probability reaches it
COLDEST, HOTTEST = 0.02, 50.0  # temperatures that are tried
Z = 1.959964  # of a 95 % interval
HEADER = ("task", "decided", "ECE before", "ECE", "kept", "precision")


def temperature_of(logits: Tensor, truth: Tensor) -> float | None:
    """What logits are to be divided by for the least negative log-likelihood (arXiv:1706.04599).

        T = argmin sum_i -log p(truth_i | logits_i / T)

    The loss is convex in 1 / T.

    Args:
        logits: (n, L); a label that the model does not know has -inf.
        truth: (n,) ids, or (n, L) of 0 and 1; a negative id is left out.

    Returns:
        T; None where no temperature is best, as where all answers are right.
    """
    several = truth.dim() == 2
    known = logits.isfinite() if several else logits.isfinite().all(1) & (truth >= 0)
    logits, truth = logits[known].double(), truth[known]
    if not len(logits):
        return None

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        if several:
            return float(F.binary_cross_entropy_with_logits(scaled, truth.double()))
        return float(F.cross_entropy(scaled, truth.long()))

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    found: Any = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return math.exp(found.x) if found.fun < min(map(loss, bounds)) else None


def _cuts(scored: Iterable[tuple[float, bool]]) -> Iterator[tuple[float, int, int]]:
    """For each place between two scores, from the top: threshold, answers above it, those right."""
    ranked = sorted(scored, reverse=True)
    right = 0
    for number, (score, hit) in enumerate(ranked, 1):
        right += hit
        after = ranked[number][0] if number < len(ranked) else 0.0
        if after < score:
            yield (score + after) / 2, number, right


def best_threshold(
    scored: Iterable[tuple[float, bool]], total: int, unsure: float = UNSURE
) -> float:
    """The threshold by which the answers' F1 is largest, midway between two scores.

    Args:
        scored: each answer's score, and whether it is right.
        total: how many there are to be found.
        unsure: what is given where there is nothing to be found, or nothing right.

    Returns:
        the highest such threshold.
    """
    best, threshold = 0.0, unsure
    for cut, taken, right in _cuts(scored):
        f1 = 2 * right / (taken + total) if total else 0.0
        if f1 > best:
            best, threshold = f1, cut
    return threshold


def precise_threshold(scored: Iterable[tuple[float, bool]], precision: float) -> float:
    """The lowest threshold by which the share of right answers is large enough; else `NEVER`.

    Args:
        scored: each answer's score, and whether it is right.
        precision: least share of those above the threshold that are right.
    """
    enough = [cut for cut, taken, right in _cuts(scored) if right / taken >= precision]
    return enough[-1] if enough else NEVER


def share_of(part: int, whole: int) -> dict[str, Any]:
    """A share with its 95 % interval (Wilson 1927), which counts answers as independent.

    Returns:
        `share`, `low`, `high`, `of`; None for the first three where there is nothing.
    """
    if not whole:
        return {"share": None, "low": None, "high": None, "of": 0}
    share, z = part / whole, Z * Z / whole
    middle = (share + z / 2) / (1 + z)
    half = Z / (1 + z) * math.sqrt(share * (1 - share) / whole + z / (4 * whole))
    low, high = max(0.0, middle - half), min(1.0, middle + half)  # rounding leaves [0, 1]
    return {"share": share, "low": low, "high": high, "of": whole}


def decision_scores(kind: TaskKind, task: TaskConfig, answers: Answers) -> dict[str, Any]:
    """What a task's decisions are worth on rows.

    Args:
        kind: of the task.
        task: as the model has it.
        answers: to the rows, as the model gives them with these decisions.

    Returns:
        nothing where nothing is decided; else `calibration`, `thresholds` and `abstain`, those that
        there are; beside the first `ece_before` and `ece` (15 bins); beside one of the others
        `kept`, the share of answers that are given (of multi-label rows: of rows with a label),
        and `precision`, the share of these (of labels set) that is right, as `share_of` gives them.
    """
    scores: dict[str, Any] = task.decisions
    if task.calibration is not None:
        logits, truth = kind.truth(answers)
        for name, factor in (("ece_before", task.calibration), ("ece", 1.0)):
            chances = kind.chances(logits * factor).numpy()
            scores[name] = reliability(chances, truth.numpy())["ece"]
    scored = kind.scored(answers)
    if task.thresholds is not None:
        scores["kept"] = share_of(sum(map(bool, answers.predictions)), len(answers.predictions))
        scores["precision"] = share_of(sum(right for _, right in scored), len(scored))
    elif task.abstain is not None:
        given = [right for score, right in scored if score >= task.abstain]
        scores["kept"] = share_of(len(given), len(scored))
        scores["precision"] = share_of(sum(given), len(given))
    return scores


def decision_row(name: str, decision: dict[str, Any]) -> tuple[str, ...]:
    """What `decision_scores` gives, as a row of a table under `HEADER`."""
    parts = [
        f"{word} {decision[key]:.4g}"
        for word, key in (("temperature", "calibration"), ("no answer below", "abstain"))
        if key in decision
    ]
    if thresholds := decision.get("thresholds"):
        parts.append(f"thresholds {min(thresholds.values()):.3g} to {max(thresholds.values()):.3g}")
    errors = [decision.get(key) for key in ("ece_before", "ece")]
    shares = [decision.get(key) for key in ("kept", "precision")]
    return (
        name,
        ", ".join(parts),
        *("-" if value is None else f"{value:.4f}" for value in errors),
        *("-" if share is None else share_text(share) for share in shares),
    )


def decision_words(decision: dict[str, Any]) -> list[str]:
    """The same in words."""
    cells = list(zip(HEADER, decision_row("", decision), strict=True))[1:]
    told = [(title, cell) for title, cell in cells if cell != "-"]
    return [cell if title == "decided" else f"{title} {cell}" for title, cell in told]


def share_text(share: dict[str, Any]) -> str:
    """`share_of` as `0.881 (0.860-0.900) of 872`."""
    if not share["of"]:
        return "- of 0"
    return f"{share['share']:.3f} ({share['low']:.3f}-{share['high']:.3f}) of {share['of']:,}"
