"""What training, scoring and files must know of each kind of task: one class each, one table.

`kind_of(task)` makes the kind of a task of a recipe or of a model.
"""

from collections.abc import Callable
from typing import Any

from ...modeling.heads import HEADS
from ...modeling.tables import Table
from ...modeling.task_config import TaskConfig
from ..recipe.schema import TaskRecipe
from .base import CLOSED, Answers, BatchLayout, SplitRows, TaskKind
from .causal_lm import CausalLM
from .classification import MultiLabel, Ordinal, SingleLabel, Tree
from .embedding import embedding_kind
from .language_model import LanguageModel
from .masked_lm import MaskedLM
from .multiple_choice import MultipleChoice
from .numbers import Regression
from .tokens import Tokens

BY_PROBLEM: dict[str | None, type[TaskKind]] = {
    "multi_label_classification": MultiLabel,
    "ordinal": Ordinal,
    "regression": Regression,
}


def _sequence_kind(task: Any) -> TaskKind:
    """By what the labels are; a single one where the task does not say."""
    return (Tree if task.hierarchy else BY_PROBLEM.get(task.problem_type, SingleLabel))(task)


KINDS: Table[Callable[[Any], TaskKind]] = Table(
    "kind",
    {
        "sequence_classification": _sequence_kind,
        "token_classification": Tokens,
        "embedding": embedding_kind,
        "masked_lm": MaskedLM,
        "causal_lm": CausalLM,
        "multiple_choice": MultipleChoice,
    },
)


def register_kind(head: str, kind: type[TaskKind]) -> None:
    """Say how tasks with a head of one's own are trained, scored and written.

    A head that is a subclass of one of ours needs none: its tasks are of the same kind.

    Args:
        head: the name that `register_head` was given.
        kind: a subclass of `TaskKind`.

    Raises:
        ValueError: there is no such head, it has a kind already, or `kind` is no such class.
    """
    if head not in HEADS:
        raise ValueError(HEADS.fault("kind", head))
    if not (isinstance(kind, type) and issubclass(kind, TaskKind)):
        raise ValueError(f"kind {head!r} is {kind!r}; give a subclass of TaskKind")
    KINDS.add(head, kind, kind)


def kind_of(task: TaskConfig | TaskRecipe) -> TaskKind:
    """The kind of a task of a recipe or of a model.

    Raises:
        ValueError: the head is a user's that neither has a kind nor is a subclass of one of ours.
    """
    if task.head in KINDS:
        return KINDS[task.head](task)
    head = HEADS[task.head]
    for name, kind in KINDS.items():  # the head that it is a subclass of
        if issubclass(head, HEADS[name]):
            return kind(task)
    raise ValueError(
        f"head {task.head!r} is of no kind that is known here; say how its tasks are trained and "
        "scored by register_kind(head, kind), or make it a subclass of one of Polyhead's heads"
    )


__all__ = [
    "CLOSED",
    "KINDS",
    "Answers",
    "BatchLayout",
    "LanguageModel",
    "SplitRows",
    "TaskKind",
    "kind_of",
    "register_kind",
]
