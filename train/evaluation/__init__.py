"""Metrics of a task, and the scores that a model gets on its rows."""

from .metrics import compute
from .scoring import score

__all__ = ["compute", "score"]
