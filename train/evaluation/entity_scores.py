"""Precision, recall and F1 of sets of entities, of all and by type."""

from typing import Any


def entity_scores(predicted: set[tuple], true: set[tuple]) -> dict[str, Any]:
    """`entity_f1`, `precision`, `recall` and `per_type` of entities (row, kind, start, end)."""
    per_type = {
        kind: _f1(*({span for span in spans if span[1] == kind} for spans in (predicted, true)))
        for kind in sorted({span[1] for span in predicted | true})
    }
    total = _f1(predicted, true)
    return {
        "entity_f1": total["f1"],
        "precision": total["precision"],
        "recall": total["recall"],
        "per_type": per_type,
    }


def _f1(predicted: set, true: set) -> dict[str, float]:
    hits = len(predicted & true)
    precision = hits / len(predicted) if predicted else 0.0
    recall = hits / len(true) if true else 0.0
    f1 = 2 * hits / (len(predicted) + len(true)) if predicted or true else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": len(true)}
