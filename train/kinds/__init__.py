"""What training, scoring and files must know of each kind of task: one class each, one table.

`kind_of(task)` makes the kind of a task of a recipe or of a model.
"""

from collections.abc import Callable
from typing import Any

from ...modeling.configuration_polyhead import TaskConfig
from ..recipe.schema import TaskRecipe
from .base import CLOSED, Answers, BatchLayout, SplitRows, TaskKind
from .classification import MultiLabel, SingleLabel
from .embedding import embedding_kind
from .masked_lm import MaskedLM
from .numbers import Regression
from .tokens import Tokens

BY_PROBLEM: dict[str | None, type[TaskKind]] = {
    "multi_label_classification": MultiLabel,
    "regression": Regression,
}


def _sequence_kind(task: Any) -> TaskKind:
    """By what the labels are; a single one where the task does not say."""
    return BY_PROBLEM.get(task.problem_type, SingleLabel)(task)


KINDS: dict[str, Callable[[Any], TaskKind]] = {
    "sequence_classification": _sequence_kind,
    "token_classification": Tokens,
    "embedding": embedding_kind,
    "masked_lm": MaskedLM,
}


def kind_of(task: TaskConfig | TaskRecipe) -> TaskKind:
    """The kind of a task of a recipe or of a model."""
    return KINDS[task.head](task)


__all__ = [
    "CLOSED",
    "KINDS",
    "Answers",
    "BatchLayout",
    "SplitRows",
    "TaskKind",
    "kind_of",
]
