"""Scores of a model and of a run, and what was decided for its tasks."""

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, TypeAdapter, with_config
from typing_extensions import TypedDict

from .names import STRICT, Count, TaskName


@with_config(STRICT)
class ClassScores(TypedDict):
    """Of one label or entity type."""

    precision: float
    recall: float
    f1: float
    support: Count


@with_config(STRICT)
class Share(TypedDict):
    """A share of answers with its interval; None of none."""

    share: float | None
    low: float | None
    high: float | None
    of: Count


@with_config(STRICT)
class Decision(TypedDict):
    """What was decided for a task, and what it is worth on rows."""

    calibration: NotRequired[float]
    thresholds: NotRequired[dict[str, float]]
    abstain: NotRequired[float]
    ece_before: NotRequired[float | None]
    ece: NotRequired[float | None]
    kept: NotRequired[Share]
    precision: NotRequired[Share]


Metrics = dict[str, float | None | dict[str, ClassScores]]
ModelScores = dict[TaskName, Metrics]  # scores.json of a model


@with_config(STRICT)
class RunScores(TypedDict):
    """scores.json of a run that had rows to score."""

    tasks: ModelScores
    macro: float | None
    splits: dict[TaskName, str]
    decisions: NotRequired[dict[TaskName, Decision]]


def _splits(scores: dict[str, Any]) -> dict[str, Any]:
    scored = {task for task, metrics in scores["tasks"].items() if metrics}
    missing = sorted(scored - set(scores["splits"]))
    if missing:
        raise ValueError(f"splits has no {', '.join(missing)}")
    return scores


MODEL_SCORES = TypeAdapter(ModelScores)
RUN_SCORES: TypeAdapter = TypeAdapter(Annotated[RunScores, AfterValidator(_splits)])
