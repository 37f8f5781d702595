"""The verbs: what the command line and notebooks call."""

from .convert import convert
from .edit_tasks import add_task, remove_task, verify
from .inspection import inspect_model, inspect_recipe
from .scoring import evaluate
from .setup import prepare
from .training import train
from .versions import diff, log, rollback

__all__ = [
    "add_task",
    "convert",
    "diff",
    "evaluate",
    "inspect_model",
    "inspect_recipe",
    "log",
    "prepare",
    "remove_task",
    "rollback",
    "train",
    "verify",
]
