"""What the page shows of a task: `reports/<task>.json`."""

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from .names import STRICT, Count, TaskName
from .scores import ClassScores, Decision


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


TASK_REPORT: TypeAdapter = TypeAdapter(Annotated[TaskReport, AfterValidator(_shape)])
