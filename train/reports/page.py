"""A run on one page: scores, what went wrong by task, how training went, which tasks pull apart.

Made from files that a run leaves: `scores.json`, `reports/<task>.json`, and the log of the trainer
(`log_history.json`, or the state in the latest checkpoint). The page holds its pictures, so it can
be sent as one file; it loads nothing and runs no script.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts import HISTORY, REPORTS, SCORES, write_text
from ..balancing.agreement import noise_of, summary
from ..errors import RESUME, UserError
from ..escape import in_html
from ..records import LOG, OBJECT, RUN_SCORES, TASK_REPORT, TRAINER_LOG, read_record
from .curves import NEEDS, draw_training, training_curves
from .figures import draw_report

PAGE = "report.html"
SHOWN = 10  # rows of a table of the worst


def report(run_folder: str | Path) -> dict[str, Any]:
    """Draw all pictures of a run anew and write `reports/report.html`.

    Args:
        run_folder: `output_dir` of a recipe that was trained.

    Returns:
        JSON-ready: `scores` as in scores.json, `tasks` (their reports), `training` (see
        `training_curves`), `page` (path of the page).

    Raises:
        UserError: `run_folder` is no folder of a finished run, or a file in it cannot be read.
    """
    run = Path(run_folder)
    scores = _read_scores(run)
    reports_folder = run / REPORTS
    tasks = scores.get("tasks", {})
    paths = {task: reports_folder / f"{task}.json" for task in tasks}
    reports = {task: _read_report(path) for task, path in paths.items() if path.is_file()}
    history = _read_history(run)
    losses = {key for line in history for key in line if key.startswith("loss_")}
    logged = {key.removeprefix("loss_") for key in losses}
    try:
        curves = training_curves(history, sorted(logged | set(tasks)))
    except ValueError as error:
        raise UserError(str(run / HISTORY), [str(error)]) from error
    reports_folder.mkdir(exist_ok=True)
    pictures = {
        task: draw_report(task_report, reports_folder) for task, task_report in reports.items()
    }
    if history:
        drawn = draw_training(curves, reports_folder)
    else:  # those that were drawn right after training
        drawn = [path for name in NEEDS if (path := reports_folder / f"{name}.png").is_file()]
    parts = [
        _scores_part(scores),
        "".join(f'<a href="#{in_html(task)}">{in_html(task)}</a> ' for task in reports),
        _training_part(curves, drawn),
        *(_task_part(task_report, pictures[task]) for task, task_report in reports.items()),
    ]
    name = in_html(run.resolve().name)
    page = PAGE_FRAME.format(title=name, body="\n".join(parts))
    write_text(reports_folder / PAGE, page)
    return {
        "scores": scores,
        "tasks": reports,
        "training": curves,
        "page": str(reports_folder / PAGE),
    }


def _read_report(path: Path) -> dict[str, Any]:
    report = read_record(path, TASK_REPORT)
    if report["task"] != path.stem:  # it names the pictures
        raise UserError(str(path), [f"is a report of task {report['task']!r}"])
    return report


def _read_scores(run: Path) -> dict[str, Any]:
    usage = "type: polyhead report RUN, where RUN is the output_dir of a recipe that was trained"
    if not run.is_dir():
        raise UserError(str(run), [f"there is no such folder; {usage}"])
    if not (run / SCORES).is_file():
        if any(run.glob("checkpoint-*")):
            usage = f"its training has not ended; type: polyhead train RECIPE {RESUME}"
        raise UserError(str(run), [f"has no {SCORES}, which a finished run leaves; {usage}"])
    scores = read_record(run / SCORES, OBJECT)
    if scores and not {"tasks", "macro"} <= set(scores):  # those of a model, by task
        fault = f"is the folder of a model, not of a run; {usage}"
        if (run.parent / SCORES).is_file():
            fault = f"is the folder of a model; type: polyhead report {run.parent}"
        raise UserError(str(run), [fault])
    if scores:
        read_record(run / SCORES, RUN_SCORES)
    return scores


def _read_history(run: Path) -> list[dict[str, Any]]:
    """The trainer's log; empty where the run left none."""
    if (run / HISTORY).is_file():
        return read_record(run / HISTORY, LOG)
    states = run.glob("checkpoint-*/trainer_state.json")
    steps = {path.parent.name.removeprefix("checkpoint-"): path for path in states}
    latest = max(filter(str.isdigit, steps), key=int, default=None)
    return [] if latest is None else read_record(steps[latest], TRAINER_LOG)["log_history"]


PAGE_FRAME = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem }}
table {{ border-collapse: collapse; margin: .5rem 2rem 1rem 0; display: inline-table;
  vertical-align: top }}
caption {{ font-weight: 600; text-align: left; padding: .3rem 0 }}
td, th {{ padding: .15rem .8rem .15rem 0; text-align: left; border-bottom: 1px solid #ddd }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
img {{ max-width: 100%; vertical-align: top }}
h2 {{ border-top: 2px solid #888; padding-top: .6rem }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def _scores_part(scores: dict[str, Any]) -> str:
    if not scores:
        return "<p>No task has rows to score.</p>"
    rows = [
        (task, scores["splits"][task], metric, value)
        for task, values in scores["tasks"].items()
        for metric, value in values.items()
        if not isinstance(value, dict)
    ]
    rows.append(("macro", "", "mean of the tasks", scores["macro"]))
    return _table("Scores", ("task", "split", "metric", "score"), rows)


def _training_part(curves: dict[str, Any], pictures: list[Path]) -> str:
    pairs = curves["cosines"]
    parts = ["<h2>Training</h2>" if pictures else ""]
    if pairs:
        parts.append(f"<p>{in_html(summary(pairs))}</p>")
        rows = [
            (*pair["tasks"], pair["mean"], noise_of(pair), pair["compared"])
            for pair in pairs[:SHOWN]
        ]
        header = ("task", "task", "mean cosine", "noise ±", "comparisons")
        parts.append(_table("Gradients that agree least", header, rows))
    return "\n".join([*parts, *map(_picture, pictures)])


def _task_part(task_report: dict[str, Any], pictures: list[Path]) -> str:
    task = in_html(task_report["task"])
    parts = [f'<h2 id="{task}">{task}</h2>']
    facts = [task_report["kind"], f"{task_report['rows']:,} rows of {task_report['split']}"]
    if "labelled" in task_report:
        facts.append(f"{task_report['labelled']:,} {task_report['unit']} with a label")
    if task_report.get("reliability", {}).get("ece") is not None:
        facts.append(f"expected calibration error {task_report['reliability']['ece']:.4f}")
    parts.append(f"<p>{in_html('; '.join(facts))}</p>")
    names = ("precision", "recall", "f1", "support")
    tables = {
        "Entities by type": task_report.get("entities", {}),
        "Labels": task_report.get("labels", task_report.get("confusion", {})).get("per_label", {}),
    }
    for title, table in tables.items():
        worst = sorted(table, key=lambda name: table[name]["f1"])
        rows = [(name, *(table[name][key] for key in names)) for name in worst]
        if title == "Labels" and len(rows) > SHOWN:
            title, rows = f"The {SHOWN} labels with the lowest F1 of {len(rows)}", rows[:SHOWN]
        parts.append(_table(title, ("name", *names), rows))
    keys = ("true", "predicted", "count", "share")
    confused = task_report.get("confusion", {}).get("confused", [])
    rows = [(*(pair[key] for key in keys[:3]), f"{pair['share']:.0%}") for pair in confused]
    header = ("true", "predicted", "rows", "of the true")
    parts.append(_table("Worst confusions", header, rows[:SHOWN]))
    return "\n".join([*parts, "<br>", *map(_picture, pictures)])


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table, or nothing where it has no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{in_html(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return f"<table><caption>{in_html(title)}</caption>\n<tr>{head}</tr>\n{body}</table>"


def _cell(value: Any) -> str:
    value = "-" if value is None else value
    if isinstance(value, str):
        return f"<td>{in_html(value)}</td>"
    shown = f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
    return f'<td class="number">{shown}</td>'


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{in_html(path.stem)}" src="data:image/png;base64,{data}">'
