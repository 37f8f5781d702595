"""What the JSON files of a run and of a model hold, checked before anything is made of them.

A folder may be anyone's, or half of it lost: a file that does not hold what its name says is one
message, and what it holds becomes no path.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from ..modeling import reading
from ..modeling.checks import TASK_NAME
from .errors import UserError

TOLD = 3  # faults of one file
LONGEST = 200  # name of a task; file systems take 255 bytes


def _task_name(name: str) -> str:
    if not TASK_NAME.fullmatch(name) or len(name) > LONGEST:  # it becomes a file's name
        raise ValueError(f"a task is named by at most {LONGEST} of a-z, 0-9 and _")
    return name


TaskName = Annotated[str, AfterValidator(_task_name)]
Count = Annotated[int, Field(ge=0)]
HALVES = re.compile(r"\\ud[89a-f][0-9a-f]{2}", re.IGNORECASE)  # of a pair; pydantic reads none
STRICT = ConfigDict(strict=True)


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


@with_config(STRICT)
class Confused(TypedDict):
    """A pair of labels, and how often one was taken for the other."""

    true: str
    predicted: str
    count: Count
    share: float


@with_config(STRICT)
class LabelCounts(TypedDict):
    """`confusion` or `labels` of a report; a matrix is (labels, known)."""

    labels: list[str]
    known: list[str]
    per_label: dict[str, ClassScores]
    matrix: NotRequired[list[list[Count]]]
    confused: NotRequired[list[Confused]]


@with_config(STRICT)
class Bin(TypedDict):
    """Of a reliability diagram."""

    low: float
    high: float
    count: Count
    confidence: float | None
    accuracy: float | None


@with_config(STRICT)
class Reliability(TypedDict):
    """`reliability` of a report."""

    ece: float | None
    unit: str
    count: Count
    bins: list[Bin]


@with_config(STRICT)
class Residuals(TypedDict):
    """Of predicted - true."""

    mean: float
    root_mean_square: float


@with_config(STRICT)
class Numbers(TypedDict):
    """`numbers` of a report."""

    points: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    residuals: NotRequired[Residuals]


@with_config(STRICT)
class RowMap(TypedDict):
    """`map` of a report."""

    title: str
    column: str
    split: str
    points: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    labels: list[str | float | int | bool | None]


def _shape(report: dict[str, Any]) -> dict[str, Any]:
    """What the sections of a report must have of each other."""
    shown = report.get("map")
    if shown and len(shown["points"]) != len(shown["labels"]):
        raise ValueError("map has not as many labels as points")
    sections = [report[name] for name in ("confusion", "labels") if report.get(name)]
    drawn = [*sections, *(report.get(n) for n in ("reliability", "entities", "numbers"))]
    if any(drawn) and not {"labelled", "unit"} <= set(report):
        raise ValueError("labelled and unit are missing")
    if "confusion" in report and report["confusion"].get("matrix") is None:
        raise ValueError("confusion has no matrix")
    for section in sections:
        names, known = section["labels"], section["known"]
        if names[: len(known)] != known or set(names) - set(section["per_label"]):
            raise ValueError("labels, known and per_label do not name the same labels")
        matrix = section.get("matrix")
        if matrix is not None and (
            len(matrix) != len(names) or any(len(row) != len(known) for row in matrix)
        ):
            raise ValueError(f"matrix is not {len(names)} rows of {len(known)} counts")
    reliability = report.get("reliability")
    if reliability and reliability["count"]:
        bins = [part for part in reliability["bins"] if part["count"]]
        missing = any(part["confidence"] is None or part["accuracy"] is None for part in bins)
        if reliability["ece"] is None or not bins or missing:
            raise ValueError("reliability has rows and no ece, confidence or accuracy")
    return report


@with_config(STRICT)
class GroupScores(TypedDict):
    """Scores of the rows that have the same value of `data.group_by`."""

    rows: Count
    scores: dict[str, float | None]


@with_config(STRICT)
class TaskReport(TypedDict):
    """reports/<task>.json, as `task_report` makes it."""

    task: TaskName
    kind: str
    split: str
    rows: Count
    scores: NotRequired[dict[str, float | None]]
    groups: NotRequired[dict[str, GroupScores]]
    labelled: NotRequired[Count]
    unit: NotRequired[str]
    confusion: NotRequired[LabelCounts]
    labels: NotRequired[LabelCounts]
    reliability: NotRequired[Reliability]
    decision: NotRequired[Decision]
    entities: NotRequired[dict[str, ClassScores]]
    numbers: NotRequired[Numbers]
    map: NotRequired[RowMap]


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
class Hashes(TypedDict):
    """Of a task."""

    weights: str
    logits: str


@with_config(STRICT)
class Proof(TypedDict):
    """An entry of proof.json."""

    change: str
    changed: list[str]
    encoder: str
    tasks: dict[TaskName, Hashes]
    made_with: dict[str, Any]


Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@with_config(STRICT)
class TaskVersion(TypedDict):
    """Hashes of a task in a version."""

    weights: Hash
    options: Hash


@with_config(STRICT)
class Version(TypedDict):
    """An entry of history.json."""

    version: Hash
    change: str
    changed: list[TaskName]
    time: str
    encoder: Hash
    tasks: dict[TaskName, TaskVersion]
    scores: dict[TaskName, dict[str, float | None]]
    files: dict[str, Hash]
    folder: NotRequired[str]


@with_config(STRICT)
class Exported(TypedDict):
    """export.json, as `export_graph` makes it."""

    kind: str
    inputs: list[str]
    tasks: list[TaskName]
    adapters: dict[TaskName, str | None]
    usable_length: int | None


@with_config(STRICT)
class Module(TypedDict):
    """An entry of modules.json, of sentence-transformers."""

    type: str
    path: str


@with_config(STRICT)
class LogLine(TypedDict):
    """A line of the trainer's log; the rest of it is checked where it is read."""

    step: Count


@with_config(STRICT)
class TrainerLog(TypedDict):
    """trainer_state.json."""

    log_history: list[LogLine]


OBJECT = TypeAdapter(dict[str, Any])
MODEL_SCORES = TypeAdapter(ModelScores)
RUN_SCORES: TypeAdapter = TypeAdapter(Annotated[RunScores, AfterValidator(_splits)])
TASK_REPORT: TypeAdapter = TypeAdapter(Annotated[TaskReport, AfterValidator(_shape)])
TRAININGS = TypeAdapter(list[Training])
PROOFS = TypeAdapter(list[Proof])
VERSIONS = TypeAdapter(list[Version])
MODULES = TypeAdapter(list[Module])
EXPORTED = TypeAdapter(Exported)
LOG = TypeAdapter(list[LogLine])
TRAINER_LOG = TypeAdapter(TrainerLog)


def read_record(path: str | Path, kind: TypeAdapter, default: Any = None) -> Any:
    """What a JSON file holds, all of it, once it is known to be of a kind.

    Args:
        path: the file.
        kind: what it must hold; keys beyond it are left alone.
        default: where there is no file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if not Path(path).is_file():
        return default
    try:
        value = reading.read_json(path, object, finite=False)
        kind.validate_json(HALVES.sub("?", json.dumps(value)), strict=True)
    except ValidationError as error:
        faults = {_where(one): _fault(one) for one in reversed(error.errors())}
        lines = list(faults.values())[::-1]
        more = [f"and {len(lines) - TOLD} more"] if len(lines) > TOLD else []
        raise UserError(str(path), [*lines[:TOLD], *more]) from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        raise UserError(str(path), [f"cannot be read as JSON: {reason}"]) from error
    return value


def _where(error: Any) -> str:
    """Dotted key; pydantic names the key itself and the members of a union too."""
    parts = [str(part) for part in error["loc"]]
    union = ("float", "[key]", "dict[")
    return ".".join(part for part in parts if not part.startswith(union))


def _fault(error: Any) -> str:
    """`tasks.intent.f1: None; input should be a valid number`."""
    where = _where(error)
    value = repr(error["input"])
    value = value if len(value) <= 60 else f"{value[:59]}…"
    says = error["msg"].removeprefix("Value error, ")
    says = f"{says[:1].lower()}{says[1:]}"
    return f"{where}: {value}; {says}" if where else f"{says}; got {value}"
