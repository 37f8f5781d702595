"""What a person wants to know of a task after a run.

Which labels are confused, how far its probabilities can be trusted, which entity types are found,
how far its numbers are off.

Everything is counted from what scoring sees anyway: no second pass over the data. A report is JSON
(`RUN/reports/<task>.json`), and its pictures are drawn from that JSON alone: `page.py` draws
them anew without model or data.

"""

from pathlib import Path
from typing import Any

import numpy as np

from ...modeling.task_config import TaskConfig
from ..artifacts import REPORTS, write_json
from ..evaluation.decisions import decision_scores
from ..evaluation.scoring import EvalSplit, as_tensor, scores_by_group
from .figures import check_task_file, draw_report


def task_report(
    task: str,
    config: TaskConfig,
    part: EvalSplit,
    predictions: np.ndarray,
    scores: dict[str, Any],
) -> dict[str, Any]:
    """All that is to be known of one task on one split.

    Args:
        task: name of the task.
        config: the task as the model knows it.
        part: the split.
        predictions: what `scoring.score` got.
        scores: what it gave.

    Returns:
        JSON-ready: the scores, how many rows or words have a label, and, as the task has them, the
        sections `groups` (`data.group_by`), `confusion`, `labels` (multi-label), `reliability`,
        `entities`, `numbers`, and `decision` of a task with decisions, see `decision_scores`.
    """
    kind, rows = part.of_task(task, config)
    report: dict[str, Any] = {
        "task": task,
        "kind": config.problem_type or config.head,
        "split": part.split,
        "rows": len(part.source.splits[part.split]),
        "scores": {name: value for name, value in scores.items() if name != "per_type"},
    }
    if groups := scores_by_group(task, config, part, predictions):
        report["groups"] = groups
    if kind.scores_itself:
        return report
    answers = kind.answers(rows, as_tensor(predictions))
    report |= {"labelled": len(answers.references), "unit": "rows"}
    report |= kind.report(answers, scores)
    decision = decision_scores(kind, config, answers) if kind.decides else {}
    return report | ({"decision": decision} if decision else {})


def decisions_in(reports: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sections `decision` of reports, by task."""
    named = {task: report["decision"] for task, report in reports.items() if "decision" in report}
    return dict(sorted(named.items()))


def write_reports(folder: str | Path, reports: dict[str, dict[str, Any]]) -> list[Path]:
    """Write `reports/<task>.json` and the pictures beside it.

    Args:
        folder: of the run.
        reports: task to its report.

    Returns:
        the pictures.

    Raises:
        ValueError: the name of a task is none; nothing is written.
    """
    target, pictures = Path(folder) / REPORTS, []
    for task in (*reports, *(report["task"] for report in reports.values())):
        check_task_file(task)
    for task, report in reports.items():
        write_json(target / f"{task}.json", report)
        pictures += draw_report(report, target)
    return pictures
