"""What the numbers of `measure.py` say, in sentences and as a picture."""

import math
from itertools import combinations, permutations
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..balancing.agreement import verdict
from ..evaluation.alone import in_words
from ..reports.heat_map import heat_map

FEWEST = 8  # measurements; from fewer, nothing is concluded of gains
SIDES = {"apart": -1, "alike": 1, "unclear": 0}


def conclude(result: dict[str, Any]) -> dict[str, Any]:
    """What the numbers say, in sentences.

    A finding is a gain beyond 2 standard errors of 0, or a cosine beyond its noise
    (`agreement.py`).

    Args:
        result: from `measure`, with `scores`.

    Returns:
        `pairs`: tasks, verdict (help, fight, mixed, unclear, separate) and a sentence for each
        pair; `advice`: verdict (share, divided, apart, either, separate) and a sentence for each
        task; `cautions`: sentences.
    """
    cosine = {frozenset(numbers["tasks"]): numbers for numbers in result["cosines"]}
    gains = {(numbers["follows"], numbers["gains"]): numbers for numbers in result["affinities"]}
    names = result["tasks"]
    pairs = [
        _pair(one, other, cosine.get(frozenset((one, other))), gains)
        for one, other in combinations(names, 2)
    ]
    if result["scores"] is not None:
        advice = {name: _by_scores(name, numbers) for name, numbers in result["scores"].items()}
    else:
        advice = {name: _by_run(name, names, cosine, gains) for name in names}
    return {"pairs": pairs, "advice": advice, "cautions": _cautions(result, cosine, gains)}


def _sign(numbers: dict[str, Any] | None) -> int:
    """-1 or 1 for a gain beyond 2 standard errors of 0, else 0."""
    if numbers is None or numbers["compared"] < FEWEST:
        return 0
    mean = numbers["mean"]
    return (mean > 0) - (mean < 0) if abs(mean) > 2 * numbers["standard_error"] else 0


def _side(cosine: dict[str, Any] | None) -> int:
    """-1 for two tasks that pull apart, 1 for two that pull alike, else 0; see `agreement.py`."""
    return 0 if cosine is None else SIDES[verdict(cosine)]


def _said(numbers: dict[str, Any], *, percent: bool = False) -> str:
    if numbers["mean"] is None:
        return "not measured"
    scale, sign = (100, " %") if percent else (1, "")
    mean, error = numbers["mean"], numbers["standard_error"]
    spread = "" if error is None else f" ± {_digits(scale * error)}"
    return f"{'-' if mean < 0 else '+'}{_digits(abs(scale * mean))}{spread}{sign}"


def _digits(value: float) -> str:
    """Two digits that tell, as 0.0012, 1.2, 120."""
    places = 1 - math.floor(math.log10(value)) if value else 0
    return f"{round(value, places):.{max(0, places)}f}"


def _pair(
    one: str, other: str, cosine: dict[str, Any] | None, gains: dict[Any, dict[str, Any]]
) -> dict[str, Any]:
    if cosine is None:
        text = f"{one} and {other} share no weights that train."
        return {"tasks": [one, other], "verdict": "separate", "sentence": text}
    to, back = gains[one, other], gains[other, one]
    signs = [_side(cosine), _sign(to), _sign(back)]
    numbers = (
        f"cosine {_said(cosine)}, negative in {cosine['negative'] or 0:.0%}; a step of {one} takes "
        f"{_said(to, percent=True)} off the loss of {other}, one of {other} "
        f"{_said(back, percent=True)} off that of {one}"
    )
    if -1 in signs and 1 in signs:
        verdict, text = "mixed", "the evidence is divided"
    elif -1 in signs:
        verdict, text = "fight", "they fight"
        if signs in ([0, -1, 0], [0, 0, -1]):
            text = f"{one} harms {other}" if signs[1] else f"{other} harms {one}"
    elif signs[1:] == [1, 1]:
        verdict, text = "help", "they help each other"
    elif 1 in signs[1:]:
        helper, helped = (one, other) if signs[1] == 1 else (other, one)
        verdict, text = "help", f"{helper} helps {helped}"
    elif signs[0] == 1:
        verdict, text = "help", "they pull the same way"
    else:
        verdict, text = "unclear", "nothing beyond 2 standard errors"
    sentence = f"{one} and {other}: {text} ({numbers})."
    return {"tasks": [one, other], "verdict": verdict, "sentence": sentence}


def _by_run(
    name: str, names: list[str], cosine: dict[Any, dict], gains: dict[Any, dict]
) -> dict[str, str]:
    """What the short run says of a task."""
    others = [other for other in names if frozenset((name, other)) in cosine]
    if not others:
        text = f"{name}: it shares no weights that train with another task."
        return {"verdict": "separate", "sentence": text}
    helped = [other for other in others if _sign(gains.get((other, name))) == 1]
    fought = [
        other
        for other in others
        if _sign(gains.get((other, name))) == -1
        or (_side(cosine.get(frozenset((name, other)))) == -1 and other not in helped)
    ]
    helpers, rivals = ", ".join(helped), ", ".join(fought)
    if helped and fought:
        verdict = "divided"
        text = f"it gains from {helpers} and fights with {rivals}; share with the former, and let "
        text += "--full decide about the latter"
    elif fought:
        verdict = "apart"
        text = f"it fights with {rivals} and gains from no task; an adapter of its own on a frozen "
        text += "encoder, or a model of its own, may serve it better; --full tells"
    elif helped:
        verdict, text = "share", f"share; it gains from {helpers} and fights with none"
    else:
        verdict = "either"
        text = "nothing beyond 2 standard errors for or against sharing; sharing is cheaper"
    return {"verdict": verdict, "sentence": f"{name}: {text}."}


def _by_scores(name: str, scores: dict[str, Any]) -> dict[str, str]:
    """What training both ways says of a task."""
    gain, error, numbers = scores["gain"], scores["standard_error"], in_words(scores)
    if gain is None:
        return {"verdict": "either", "sentence": f"{name}: {numbers}."}
    if error is None:
        text = f"{numbers}; how far rows of {scores['split']} can tell this is not known"
        return {"verdict": "either", "sentence": f"{name}: {text}."}
    if abs(gain) <= 2 * error:
        verdict, text = "either", "no difference beyond 2 standard errors; sharing is cheaper"
    elif gain > 0:
        verdict, text = "share", "share; it scores higher jointly"
    else:
        verdict = "apart"
        text = "an adapter of its own on a frozen encoder, or a model of its own; it scores higher "
        text += "alone"
    return {"verdict": verdict, "sentence": f"{name}: {text} ({numbers})."}


def _cautions(result: dict[str, Any], cosine: dict[Any, dict], gains: dict[Any, dict]) -> list[str]:
    signs = [_side(numbers) for numbers in cosine.values()]
    signs += [_sign(numbers) for (one, other), numbers in gains.items() if one != other]
    lines = []
    if result["measurements"] < FEWEST:
        lines.append(
            f"{result['measurements']} measurements are too few for a finding on gains; {FEWEST} "
            "or more need more --steps."
        )
    elif not any(signs):
        lines.append(
            "Nothing in the short run is beyond 2 standard errors: it gives no reason to part the "
            "tasks, and does not show that they help each other."
        )
    else:
        lines.append(
            f"Of {len(signs)} numbers about {math.ceil(0.05 * len(signs))} may lie beyond 2 "
            "standard errors by chance alone."
        )
    weak = [one for one, other in gains if one == other and _sign(gains[one, one]) < 1]
    if weak and result["measurements"] >= FEWEST:
        lines.append(
            f"A step of {', '.join(weak)} does not surely lower its own loss: what it does to "
            "others tells little."
        )
    if result["scores"] is None:
        lines.append(
            f"{result['steps']} steps show the beginning of training only, and tasks that fight "
            "there may score as high in the end; --full trains each task alone and all jointly, "
            "and compares scores."
        )
    else:
        lines.append(
            "The scores decide, not the short run. They are of one seed; ± counts the scored rows "
            "alone."
        )
    return lines


# ---- the picture ----


def draw(result: dict[str, Any]) -> Figure:
    """Heat maps of cosines, from -1 to 1, and of affinities; bold: more than noise.

    Args:
        result: from `measure`.
    """
    names = result["tasks"]
    cosine = {pair: f for f in result["cosines"] for pair in permutations(f["tasks"])}
    gains = {(f["follows"], f["gains"]): f for f in result["affinities"]}
    side = max(2.2, 0.55 * len(names)) + 0.08 * max(map(len, names)) + 0.5
    figure = Figure(figsize=(2 * side + 0.3, side + 1), layout="constrained")
    left, right = figure.subplots(1, 2)
    matrix = _matrix(names, cosine)
    heat_map(
        left,
        matrix,
        names,
        names,
        shown=lambda i, j: _said({**cosine[names[i], names[j]], "standard_error": None}),
        bold=lambda i, j: bool(_side(cosine[names[i], names[j]])),
    )
    left.set_title("cosine of the gradients\n(red: they pull apart)")
    matrix = _matrix(names, gains)
    heat_map(
        right,
        matrix,
        names,
        names,
        limit=_limit(matrix),
        shown=lambda i, j: _said(
            {**gains[names[i], names[j]], "standard_error": None}, percent=True
        ).removesuffix(" %"),
        bold=lambda i, j: bool(_sign(gains[names[i], names[j]])),
    )
    right.set(ylabel="a step of", xlabel="takes off the loss of")
    right.set_title("affinity, % of the loss\n(red: it rises)")
    count, steps = result["measurements"], result["steps"]
    figure.suptitle(f"{count} measurements in {steps} steps; bold: more than noise")
    return figure


def _matrix(names: list[str], numbers: dict[tuple[str, ...], dict[str, Any]]) -> np.ndarray:
    """(K, K) means by (row, column), NaN for none."""
    matrix = np.full((len(names), len(names)), np.nan)
    for (row, column), values in numbers.items():
        if values["mean"] is not None:
            matrix[names.index(row), names.index(column)] = values["mean"]
    return matrix


def _limit(matrix: np.ndarray) -> float:
    """The largest off the diagonal; no less than a tenth of the largest gain from a task's own."""
    diagonal = np.eye(len(matrix), dtype=bool)
    size = np.abs(np.nan_to_num(matrix))
    return max(size[~diagonal].max(), 0.1 * (size[diagonal].max() or 1))
