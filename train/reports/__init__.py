"""What a person wants to know after a run: reports by task, curves, pictures, one page."""

from .curves import training_curves
from .page import report
from .task_report import write_reports

__all__ = ["report", "training_curves", "write_reports"]
