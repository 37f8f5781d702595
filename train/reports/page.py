"""A run on one page: scores, what went wrong by task, how training went, which tasks pull apart.

Made from files that a run leaves: `scores.json`, `reports/<task>.json`, and the log of the trainer
(`log_history.json`, or the state in the latest checkpoint). The page holds its pictures, so it can
be sent as one file; it loads nothing and runs no script.
"""

import base64
import math
import re
import struct
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from ..artifacts import HISTORY, REPORTS, RUNS, SCORES, write_text
from ..balancing.agreement import noise_of, summary
from ..errors import RESUME, UserError
from ..escape import in_html
from ..evaluation.decisions import decision_words
from ..evaluation.metrics import LOWER_IS_BETTER, main_metric
from ..outputs import MODEL
from ..records import LOG, OBJECT, RUN_SCORES, TASK_REPORT, TRAINER_LOG, TRAININGS, read_record
from .curves import NEEDS, draw_training, training_curves
from .figures import draw_report

PAGE = "report.html"
SHOWN = 10  # rows of a table of the worst
WIDE = 800  # pixels; wider pictures take the whole width of the page
SHARE = re.compile(r"\d+%|-")
NUMBER = ' class="number"'


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
        _glance(scores, reports),
        *(_task_part(task_report, pictures[task]) for task, task_report in reports.items()),
        _training_part(curves, drawn),
    ]
    frame = resources.files("polyhead.train.reports").joinpath("page.html")
    page = Template(frame.read_text(encoding="utf-8")).substitute(
        title=in_html(run.resolve().name), facts=in_html(_facts(run)), body="\n".join(parts)
    )
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


def _facts(run: Path) -> str:
    """What the training says of itself, where the model lies beside the scores."""
    trainings = read_record(run / MODEL / RUNS, TRAININGS, [])
    if not trainings:
        return ""
    last = trainings[-1]
    minutes = f"{last['seconds'] / 60:.1f} minutes on {last['device']}"
    return f"{last['steps']:,} steps, {last['epochs']:g} epochs, {minutes}"


# ---- scores at a glance ----


def _glance(scores: dict[str, Any], reports: dict[str, Any]) -> str:
    """A card for all tasks together, and one for each."""
    if not scores:
        return "<p>No task has rows to score.</p>"
    count = len(scores["tasks"])
    macro = _card_of_scores("macro", f"mean of {count} tasks", {"macro": scores["macro"]})
    cards = [
        _card_of_scores(
            f'<a href="#{in_html(task)}">{in_html(task)}</a>' if task in reports else in_html(task),
            ", ".join(filter(None, (_kind(reports.get(task, {})), scores["splits"][task]))),
            {name: v for name, v in values.items() if not isinstance(v, dict)},
        )
        for task, values in scores["tasks"].items()
        if values
    ]
    return f'<div class="glance">{"".join([macro, *cards])}</div>'


def _card_of_scores(title: str, about: str, metrics: dict[str, float | None]) -> str:
    """The main metric large, the others below it.

    Args:
        title: HTML.
        about: kind of the task, split.
        metrics: the scores.
    """
    names = list(metrics)
    main = names[0] if names == ["macro"] else main_metric(names)
    value = metrics[main]
    shown = "-" if value is None else f"{value:.4f}"
    bar = ""
    if value is not None and 0 <= value <= 1 and main not in LOWER_IS_BETTER:
        bar = f'<div class="bar"><div style="width:{value:.1%}"></div></div>'
    others = "".join(
        f"<dt>{in_html(name)}</dt><dd>{'-' if other is None else f'{other:.4f}'}</dd>"
        for name, other in metrics.items()
        if name != main
    )
    return (
        f'<div class="card"><h3>{title}</h3><strong>{shown}</strong> '
        f'<span class="soft">{in_html(main) if main != "macro" else ""}</span>{bar}'
        f'<div class="soft">{in_html(about)}</div>{f"<dl>{others}</dl>" if others else ""}</div>\n'
    )


def _kind(task_report: dict[str, Any]) -> str:
    return task_report.get("kind", "").replace("_", " ")


# ---- sections ----


def _training_part(curves: dict[str, Any], pictures: list[Path]) -> str:
    if not pictures:
        return ""
    pairs, tables = curves["cosines"], {}
    said = in_html(summary(pairs)) if pairs else ""
    rows = [
        (*pair["tasks"], pair["mean"], noise_of(pair), pair["compared"]) for pair in pairs[:SHOWN]
    ]
    header = ("task", "task", "mean cosine", "noise ±", "comparisons")
    title = "Gradients that agree least" if len(pairs) > SHOWN else "How gradients agree"
    tables["cosines"] = [_table(title, header, rows)]
    return _section("Training", "training", said, pictures, tables)


def _task_part(task_report: dict[str, Any], pictures: list[Path]) -> str:
    facts = [_kind(task_report), f"{task_report['rows']:,} rows of {task_report['split']}"]
    if "labelled" in task_report:
        facts.append(f"{task_report['labelled']:,} {task_report['unit']} with a label")
    if task_report.get("reliability", {}).get("ece") is not None:
        facts.append(f"expected calibration error {task_report['reliability']['ece']:.4f}")
    if decision := task_report.get("decision"):
        facts += decision_words(decision)
    names = ("precision", "recall", "f1", "support")
    per_label = task_report.get("labels", task_report.get("confusion", {})).get("per_label", {})
    by_name = {"Entities by type": task_report.get("entities", {}), "Labels": per_label}
    made = {}
    for title, table in by_name.items():
        worst = sorted(table, key=lambda name: table[name]["f1"])
        rows = [(name, *(table[name][key] for key in names)) for name in worst]
        key, title = title, f"{title}, lowest F1 first"
        if key == "Labels" and len(rows) > SHOWN:
            title, rows = f"The {SHOWN} labels with the lowest F1 of {len(rows)}", rows[:SHOWN]
        made[key] = _table(title, ("name", *names), rows)
    keys = ("true", "predicted", "count", "share")
    confused = task_report.get("confusion", {}).get("confused", [])
    rows = [(*(pair[key] for key in keys[:3]), f"{pair['share']:.0%}") for pair in confused]
    header = ("true", "predicted", "rows", "of the true")
    worst = _table("Worst confusions", header, rows[:SHOWN])
    tables = {
        "groups": [_groups(task_report.get("groups", {}))],
        "confusion": [worst, made["Labels"]],
        "labels": [] if "confusion" in task_report else [made["Labels"]],
        "entities": [made["Entities by type"]],
    }
    name = task_report["task"]
    return _section(name, name, in_html("; ".join(facts)), pictures, tables, prefix=f"{name}_")


def _groups(groups: dict[str, dict[str, Any]]) -> str:
    """A table of the main metric by value of `data.group_by`, the worst first."""
    if not groups:
        return ""
    metric = main_metric(list(next(iter(groups.values()))["scores"]))
    rows = [(value, group["rows"], group["scores"][metric]) for value, group in groups.items()]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    rows.sort(key=lambda row: math.inf if row[2] is None else sign * row[2])
    title = "Groups, the worst first"
    if len(rows) > SHOWN:
        title, rows = f"The {SHOWN} worst groups of {len(rows)}", rows[:SHOWN]
    return _table(title, ("group", "rows", metric), rows)


def _section(
    title: str,
    anchor: str,
    about: str,
    pictures: list[Path],
    tables: dict[str, list[str]],
    *,
    prefix: str = "",
) -> str:
    """A heading, wide pictures over the whole width, then columns of pictures and their tables.

    Args:
        title: text.
        anchor: the section's id.
        about: HTML of a line below it.
        pictures: files.
        tables: by name of a picture, less `prefix`, tables that stand after it; those without a
            picture come last.
        prefix: of the pictures' names.
    """
    wide, narrow, left = [], [], dict(tables)
    for path in pictures:
        is_wide = _is_wide(path)
        (wide if is_wide else narrow).append(_picture(path, wide=is_wide))
        narrow += map(_boxed, left.pop(path.stem.removeprefix(prefix), []))
    narrow += map(_boxed, [table for rest in left.values() for table in rest])
    narrow = list(filter(None, narrow))
    if len(narrow) == 1 and wide:  # it would stand beside nothing
        narrow = [wide.pop(), *narrow]
    columns = "\n".join(narrow)
    return "\n".join(
        [
            f'<h2 id="{in_html(anchor)}">{in_html(title)}</h2>',
            f'<p class="soft">{about}</p>' if about else "",
            *wide,
            f'<div class="columns">{columns}</div>' if columns else "",
        ]
    )


def _boxed(table: str) -> str:
    return f'<div class="card">{table}</div>' if table else ""


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table, or nothing where it has no rows."""
    if not rows:
        return ""
    head = "".join(
        f"<th{'' if isinstance(value, str) and not SHARE.fullmatch(value) else NUMBER}>"
        f"{in_html(name)}</th>"
        for name, value in zip(header, rows[0], strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return f"<table><caption>{in_html(title)}</caption>\n<tr>{head}</tr>\n{body}</table>"


def _cell(value: Any) -> str:
    value = "-" if value is None else value
    if isinstance(value, str) and not SHARE.fullmatch(value):
        return f"<td>{in_html(value)}</td>"
    shown = f"{value:.4f}" if isinstance(value, float) else value
    shown = f"{shown:,}" if isinstance(shown, int) else in_html(shown)
    return f'<td class="number">{shown}</td>'


def _is_wide(path: Path) -> bool:
    """By its own header: width and height stand at bytes 16 to 24 of a PNG."""
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width > WIDE and width > 1.3 * height


def _picture(path: Path, *, wide: bool) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    kind = "card picture wide" if wide else "card picture"
    image = f'<img alt="{in_html(path.stem)}" src="data:image/png;base64,{data}">'
    return f'<div class="{kind}">{image}</div>'
