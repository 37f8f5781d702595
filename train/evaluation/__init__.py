"""Metrics of a task, and the scores that a model gets on its rows."""

from .metrics import compute, register_metric
from .scoring import score

__all__ = ["compute", "register_metric", "score"]
