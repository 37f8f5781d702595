"""What is counted of answers beside references: confusions, calibration, distances of numbers.

Everything is plain Python, ready for JSON.

Shapes: `N` rows, `L` labels of the model, `U` labels that only the references have.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sklearn_metrics
from sklearn.preprocessing import MultiLabelBinarizer

BINS = 15
CONFUSED = 20  # pairs of labels
POINTS = 1000  # of a scatter plot


def confusion(
    labels: Sequence[str], predictions: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
    """Which label is taken for which.

    Args:
        labels: those that the model knows.
        predictions: the model's answers.
        references: true labels; one that is not among `labels` gets a row of its own.

    Returns:
        `matrix`, L + U rows of L counts: true labels (`labels`) by predicted ones (`known`);
        `per_label` with precision, recall, f1, support; `confused`, the pairs with most errors.
    """
    known = list(labels)
    names = known + sorted(set(references) - set(known))
    matrix = np.zeros((len(names), len(names)), dtype=int)
    if len(references):  # scikit-learn refuses empty lists
        matrix = sklearn_metrics.confusion_matrix(references, predictions, labels=names)
    support = matrix.sum(1)
    errors = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-errors, axis=None, kind="stable")[:CONFUSED]
    pairs = [np.unravel_index(position, errors.shape) for position in order]
    return {
        "labels": names,
        "known": known,
        "matrix": matrix[:, : len(known)].tolist(),
        "per_label": _per_label(names, references, predictions, names),
        "confused": [
            {
                "true": names[i],
                "predicted": names[j],
                "count": int(errors[i, j]),
                "share": float(errors[i, j] / support[i]),
            }
            for i, j in pairs
            if errors[i, j]
        ],
    }


def multi_label_confusion(
    labels: Sequence[str], predictions: Sequence[list[str]], references: Sequence[list[str]]
) -> dict[str, Any]:
    """How often each label is rightly and wrongly set and left out.

    Args:
        labels: those that the model knows.
        predictions: the labels that the model set, for each row.
        references: the true ones; one that is not among `labels` is counted as missed.

    Returns:
        `labels`, `known`, and `per_label` with precision, recall, f1, support and the counts
        true_positive, false_positive, false_negative, true_negative.
    """
    known = list(labels)
    names = known + sorted({label for row in references for label in row} - set(known))
    binary = MultiLabelBinarizer(classes=names)
    true, predicted = binary.fit_transform(references), binary.fit_transform(predictions)
    per_label = _per_label(names, true, predicted, list(range(len(names))))
    counts = np.zeros((len(names), 2, 2), dtype=int)
    if len(references):
        counts = sklearn_metrics.multilabel_confusion_matrix(true, predicted)
    kinds = ("true_negative", "false_positive", "false_negative", "true_positive")
    for name, table in zip(names, counts, strict=True):
        per_label[name] |= dict(zip(kinds, table.flatten().tolist(), strict=True))
    return {"labels": names, "known": known, "per_label": per_label}


def _per_label(
    names: list[str], references: Any, predictions: Any, labels: list
) -> dict[str, dict[str, float]]:
    """Precision, recall, f1 and support by name, of what stands for it in `labels`."""
    values: Any = np.zeros((4, len(names)))
    if len(references):
        values = sklearn_metrics.precision_recall_fscore_support(
            references,
            predictions,
            labels=labels,
            zero_division=0.0,  # pyright: ignore[reportArgumentType]
        )
    *parts, support = (row.tolist() for row in values)
    return {
        name: {"precision": p, "recall": r, "f1": f, "support": int(count)}
        for name, p, r, f, count in zip(names, *parts, support, strict=True)
    }


def reliability(probabilities: np.ndarray, references: Any) -> dict[str, Any]:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599).

    The mean, over all answers, of the distance between the confidence of their bin and the share
    of them that is right.

    Args:
        probabilities: (N, L).
        references: (N,) ids, -1 for a label that the model does not know: the answer is wrong,
            confidence is the top probability. Or (N, L) of 0 and 1 for several labels a row: each
            label of each row counts, whatever the threshold; confidence is its probability, and
            accuracy the share of them that is true.

    Returns:
        `ece` (None without rows), `unit` (answers or labels), `count`, `not_finite` (rows left out,
        whose probabilities are no numbers), and `bins` with low, high, count, confidence, accuracy.
    """
    probabilities, references = (
        np.asarray(probabilities, dtype=float),
        np.asarray(references, dtype=int),
    )
    several = references.ndim == 2
    finite = np.isfinite(probabilities).all(1)
    probabilities, references = probabilities[finite], references[finite]
    if several:
        confidence, right = probabilities.flatten(), references.flatten()
    else:
        confidence = probabilities.max(1, initial=0.0)
        right = (probabilities.argmax(1) == references) if len(references) else references
    edges = np.linspace(0, 1, BINS + 1)
    places = np.digitize(confidence, edges[1:-1], right=True)  # bins (low, high], as in the paper
    bins, error = [], 0.0
    for number in range(BINS):
        inside = places == number
        part = {"low": float(edges[number]), "high": float(edges[number + 1])}
        part |= {"count": int(inside.sum()), "confidence": None, "accuracy": None}
        if part["count"]:
            part["confidence"] = float(confidence[inside].mean())
            part["accuracy"] = float(right[inside].mean())
            error += part["count"] * abs(part["confidence"] - part["accuracy"])
        bins.append(part)
    return {
        "ece": error / len(confidence) if len(confidence) else None,
        "unit": "labels" if several else "answers",
        "count": len(confidence),
        "not_finite": int((~finite).sum()),
        "bins": bins,
    }


def compare_numbers(
    predictions: Sequence[float], references: Sequence[float], *, same_scale: bool = True
) -> dict[str, Any]:
    """Predicted numbers against true ones.

    Args:
        predictions: predictions, or cosines of pairs.
        references: true numbers, scaled as the model learns them.
        same_scale: a prediction is meant to equal the true number; False where only their order is
            learned, as CoSENT does.

    Returns:
        `points`, [true, predicted] of at most 1,000 rows spread evenly; `not_finite`, rows left
        out, whose predictions are no numbers; and on the same scale `residuals` of predicted -
        true: mean, mean_absolute, root_mean_square, and percentiles.
    """
    pairs = np.array([references, predictions], dtype=float).T
    finite = np.isfinite(pairs).all(1)
    pairs = pairs[finite]
    shown = np.unique(np.linspace(0, len(pairs) - 1, min(POINTS, len(pairs))).astype(int))
    numbers: dict[str, Any] = {
        "points": pairs[shown].tolist(),
        "not_finite": int((~finite).sum()),
    }
    if same_scale and len(pairs):
        error = pairs[:, 1] - pairs[:, 0]
        numbers["residuals"] = {
            "mean": float(error.mean()),
            "mean_absolute": float(np.abs(error).mean()),
            "root_mean_square": float(np.sqrt((error**2).mean())),
            "percentiles": {str(q): float(np.percentile(error, q)) for q in (5, 25, 50, 75, 95)},
        }
    return numbers
