"""What a training says of itself: `training.json` and the trainer's log."""

from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from .names import STRICT, Count, TaskName
from .scores import Decision


@with_config(STRICT)
class TaskData(TypedDict):
    """What a training says of a task's data."""

    data: str | None
    license: str | None
    rows: dict[str, Count]
    scored_on: str | None


@with_config(STRICT)
class CardWords(TypedDict):
    """`card` of a recipe."""

    language: list[str]
    license: str | None
    limits: str | None


@with_config(STRICT)
class PairOfTasks(TypedDict):
    """How the gradients of two tasks agreed."""

    tasks: Annotated[list[str], Field(min_length=2, max_length=2)]
    mean: float
    standard_error: NotRequired[float | None]
    negative: float
    compared: Count
    own: NotRequired[float | None]


@with_config(STRICT)
class AverageTrial(TypedDict):
    """Scores on validation with a share of the start's weights."""

    share: float
    macro: float
    tasks: dict[TaskName, float]


@with_config(STRICT)
class Averaged(TypedDict):
    """How much of the start's weights the encoder has, and what was tried."""

    share: float
    trials: list[AverageTrial]


@with_config(STRICT)
class SideBySide(TypedDict):
    """A task trained alone and jointly."""

    metric: str
    rows: Count
    single: float | None
    joint: float | None
    gain: float | None
    standard_error: float | None
    split: str


@with_config(STRICT)
class Training(TypedDict):
    """An entry of training.json, as `about_run` makes it."""

    encoder: str | None
    tasks: dict[TaskName, TaskData]
    card: CardWords
    recipe: dict[str, Any]
    steps: Count
    epochs: float
    seconds: float
    resumed: bool
    processes: Count
    device: str
    threads: Count
    machine: str
    versions: dict[str, str]
    gradient_cosines: list[PairOfTasks]
    average: NotRequired[Averaged]
    decisions: NotRequired[dict[TaskName, Decision]]
    alone: NotRequired[dict[TaskName, SideBySide]]


@with_config(STRICT)
class LogLine(TypedDict):
    """A line of the trainer's log; the rest of it is checked where it is read."""

    step: Count


@with_config(STRICT)
class TrainerLog(TypedDict):
    """trainer_state.json."""

    log_history: list[LogLine]


TRAININGS = TypeAdapter(list[Training])
LOG = TypeAdapter(list[LogLine])
TRAINER_LOG = TypeAdapter(TrainerLog)
