"""What the `polyhead` command prints."""

import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..escape import in_json, lines, visible

# What is printed is users' text: nothing in it is markup or an emoji.
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
out = Console(**PLAIN)
err = Console(stderr=True, **PLAIN)
READS = {"text": "texts", "pair": "pairs", "choices": "choices"}
VERDICTS = {"help": "green", "share": "green", "fight": "red", "apart": "red"}


def say(line: str, style: str = "", *, console: Console = out) -> None:
    """Print a line or more; what in them would move the cursor is shown instead."""
    console.print(Text(lines(line), style=style), soft_wrap=True)


def table_of(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None
) -> Table:
    """A table of texts, each on one line."""
    table = Table(*header, title=None if title is None else Text(visible(title), "table.title"))
    for row in rows:
        table.add_row(*map(visible, row))
    return table


def is_first_rank() -> bool:
    """Of several processes the first, which prints; true where there is one."""
    from accelerate import PartialState

    return PartialState().is_main_process


def note(line: str) -> None:
    """Tell something beside the answer, once."""
    if is_first_rank():
        _say_note(line)


def _say_note(line: str) -> None:
    """On a line of its own, above the bars that are drawn on stderr."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        say(f"note: {line}", "yellow", console=err)


class NoteHandler(logging.Handler):
    """Shows what is logged as notes, of several processes the first one's.

    The launcher's `RANK` tells which that is: asking accelerate would settle on a backend before
    the recipe has named one.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it beside the answer."""
        if os.environ.get("RANK", "0") == "0":
            _say_note(record.getMessage())


@contextmanager
def notes_shown() -> Iterator[None]:
    """Within the block what `polyhead` logs is told on stderr, from INFO on."""
    logger, handler = logging.getLogger("polyhead"), NoteHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def show_fault(message: str) -> None:
    """Tell a mistake of the user."""
    say(message, "red", console=err)


def print_json(value: Any) -> None:
    """Print a value as JSON, alone on stdout."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(in_json(json.dumps(value, indent=2, ensure_ascii=not unicode)) + "\n")


def show_run(scores: dict[str, Any], *, as_json: bool) -> None:
    """The scores of a training, once; none where no task has rows to score."""
    if not is_first_rank():
        return
    if as_json:
        print_json(scores)
    elif scores:
        print_scores(scores, f"Scores ({', '.join(sorted(set(scores['splits'].values())))})")


def print_scores(scores: dict[str, Any], title: str) -> None:
    """Print a table of scores, and one by entity type."""
    rows = [
        (task, metric, f"{value:.4f}")
        for task, values in scores["tasks"].items()
        for metric, value in values.items()
        if isinstance(value, float)
    ]
    table = table_of(("task", "metric", "score"), rows, title=title)
    table.add_section()
    macro = scores["macro"]
    table.add_row("macro", "", "-" if macro is None else f"{macro:.4f}")
    out.print(table)
    header = ("type", "precision", "recall", "f1", "entities")
    for task, values in scores["tasks"].items():
        if "per_type" in values:
            rows = [
                (kind, *(f"{row[key]:.4f}" for key in header[1:4]), str(row["support"]))
                for kind, row in values["per_type"].items()
            ]
            out.print(table_of(header, rows, title=f"{task} by type"))
    _print_decisions(scores.get("decisions", {}), "Decisions, with 95 % intervals")


def _print_decisions(decisions: dict[str, dict[str, Any]], title: str) -> None:
    """Print what was decided, by task; nothing where nothing was."""
    if not decisions:
        return
    from ..evaluation.decisions import decision_words  # with torch, as by now all is

    say(title, "bold")
    for task, decision in decisions.items():
        say(f"  {task}: {'; '.join(decision_words(decision))}")


def print_affinity(result: dict[str, Any]) -> None:
    """Print what `polyhead affinity` found."""
    scores, seconds = result["scores"], result["wall_seconds"]
    if scores:
        columns = ("task", "metric", "alone", "jointly", "gain", "std. error", "seconds alone")
        rows = []
        for task, comparison in scores.items():
            values = [comparison[key] for key in ("single", "joint", "gain", "standard_error")]
            cells = ["-" if value is None else f"{value:.4f}" for value in values]
            rows.append((task, comparison["metric"], *cells, f"{seconds[task] or math.nan:.0f}"))
        out.print(table_of(columns, rows, title="Each task alone, and all jointly"))
        joint = seconds["all-tasks"] or math.nan
        alone = sum(seconds[task] or math.nan for task in scores)
        say(f"{alone:.0f} s for all alone, {joint:.0f} s jointly")
    title = f"Pairs of tasks: {result['measurements']} measurements in {result['steps']} steps"
    for heading, sentences in ((title, result["pairs"]), ("Advice", result["advice"].values())):
        say(heading, "bold")
        for line in sentences:
            say(f"  {line['sentence']}", VERDICTS.get(line["verdict"], ""))
    for line in result["cautions"]:
        say(f"note: {line}", "yellow")


def print_similarity(compared: dict[str, Any], limit: int) -> None:
    """Print what `polyhead similarity` found: a table of texts with texts, or of pairs."""
    if "pairs" not in compared:
        texts = compared["texts"]
        rows = [
            (f"{number}  {_cut(text)}", *(f"{value:.3f}" for value in values))
            for number, (text, values) in enumerate(
                zip(texts, compared["similarity"], strict=True), 1
            )
        ]
        out.print(table_of(("text", *map(str, range(1, len(texts) + 1))), rows))
        return
    rows = [
        [_cut(value) if isinstance(value, str) else f"{value:.3f}" for value in pair.values()]
        for pair in compared["pairs"][:limit]
    ]
    out.print(table_of(list(compared["pairs"][0]), rows))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def print_plan(result: dict[str, Any]) -> None:
    """Print the trials of `polyhead plan` and what was chosen."""
    tasks = list(result["tasks"])
    columns = ("trial", "rows in a step", *tasks, "macro", "seconds")
    rows = []
    for trial in result["trials"]:
        values = [*(trial["tasks"].get(name) for name in tasks), trial["macro"]]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        rows.append(
            (trial["trial"], str(trial["rows_per_step"]), *cells, f"{trial['seconds']:.0f}")
        )
    title = f"Trials on {result['share']:.2g} of the rows, scored on validation"
    out.print(table_of(columns, rows, title=title))
    for line in result["sentences"]:
        say(f"  {line}")
    for name in result["recipes"]:
        say(f"polyhead train {os.path.join(result['folder'], name)}", "bold")


def print_answer(text: Any, answer: dict[str, Any]) -> None:
    """Print what the tasks say of a text."""
    say(" | ".join(text) if isinstance(text, tuple) else text, "bold")
    for task, value in answer.items():
        if isinstance(value, list) and value and "start" in value[0]:
            shown = _marked(str(text), value)
        elif isinstance(value, list):
            shown = Text(visible(", ".join(map(_short, value))) or "-")
        elif isinstance(value, dict) and "tasks" in value:  # of the router
            scores = ", ".join(f"{name} {score:.3f}" for name, score in value["scores"].items())
            shown = Text(
                visible(f"{', '.join(value['tasks']) or 'for none of the tasks'} ({scores})")
            )
        elif isinstance(value, dict):
            shown = Text(visible(_short(value)))
        else:
            shown = Text(f"{len(value)} numbers, first: {', '.join(f'{v:.4f}' for v in value[:4])}")
        out.print(Text(f"  {task}: ", style="cyan") + shown, soft_wrap=True)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_short, value))
    label = f"{value['label']} " if "label" in value else ""
    return f"{label}{value['score']:.3f}"


def _marked(text: str, entities: list[dict[str, Any]]) -> Text:
    """The text with its entities in place."""
    marked, position = Text(), 0
    for entity in entities:
        marked.append(lines(text[position : entity["start"]]))
        marked.append(lines(f"[{entity['word']}]"), style="bold green")
        marked.append(visible(f"({entity['entity_group']})"), style="green")
        position = entity["end"]
    return marked.append(lines(text[position:]))


def print_recipe(report: dict[str, Any]) -> None:
    """Print what a recipe trains."""
    for name, task in report["tasks"].items():
        rows = ", ".join(f"{split} {count}" for split, count in task["rows"].items())
        tokens = ", ".join(f"{key} {value}" for key, value in task["tokens"].items())
        out.print(Text(name, "bold") + Text(visible(f"  {task['head']}, rows of {task['source']}")))
        say(f"  rows: {rows}; windows {task['windows']}")
        share = f"{task['cut']} ({task['cut_share']:.1%})"
        say(f"  texts longer than {task['max_length']} tokens, cut: {share} of train")
        say(f"  tokens: {tokens}")
        if task["labels"]:
            labels = ", ".join(f"{label} {count}" for label, count in task["labels"].items())
            say(visible(f"  labels: {labels}"))
        for sample in task["samples"]:
            say(f"  row {sample['row']}: {sample['text']}\n    -> {sample['label']}")
    for line in report["draws"]:
        say(line)
    header, rows = ("weights", "layers", "trainable", "frozen", "learning rate", "from epoch"), []
    for row in report["parameters"]:
        rate = "-" if row["learning_rate"] is None else f"{row['learning_rate']:.2e}"
        start = "never" if row["from_epoch"] is None else f"{row['from_epoch']:g}"
        layers = _span(row["layers"])
        numbers = (f"{row['trainable']:,}", f"{row['frozen']:,}")
        rows.append((row["name"], layers, *numbers, rate, start))
    out.print(table_of(header, rows))
    for note in report["notes"]:
        say(f"note: {note}", "yellow")


def _span(numbers: list[int]) -> str:
    """Numbers of layers, those in a row as first-last."""
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def print_model(report: dict[str, Any]) -> None:
    """Print what a model holds."""
    encoder = report["encoder"]
    before = encoder["trained_with"]
    say(
        f"{encoder['model_type']}: {encoder['layers']} layers, hidden size "
        f"{encoder['hidden_size']}, {encoder['parameters']:,} parameters; mask: {encoder['mask']}"
        + (f", trained with: {before}" if before != encoder["mask"] else "")
    )
    rows = []
    for name, task in report["tasks"].items():
        kind = task["problem_type"] or task["head"]
        labels = ", ".join(task["labels"][:12]) + (" ..." if len(task["labels"]) > 12 else "")
        rows.append((name, kind, READS[task["reads"]], f"{task['parameters']:,}", labels))
    out.print(table_of(("task", "head", "reads", "parameters", "labels"), rows))
    tasks = report["tasks"].items()
    decided = {name: task["decisions"] for name, task in tasks if task["decisions"]}
    _print_decisions(decided, "Decisions")
    say(f"{report['parameters']:,} parameters in all")


def print_export(about: dict[str, Any], folder: Any) -> None:
    """Print what was exported, and what int8 cost."""
    outputs = ", ".join(about["tasks"])
    inputs = ", ".join(about["inputs"])
    say(f"{folder}: {about['kind']} {about['precision']}, {inputs} -> {outputs}", console=err)
    say(f"fp32 outputs as torch's within {about['difference']:.1g}", console=err)
    if "int8" not in about:
        return
    split = about["int8"]["scored_on"]
    header, rows = ("task", "metric", "fp32", "int8", "change"), []
    for name, row in about["int8"]["tasks"].items():
        values = (f"{row['fp32']:.4f}", f"{row['int8']:.4f}", f"{row['int8'] - row['fp32']:+.4f}")
        rows.append((name, row["metric"], *values))
    out.print(table_of(header, rows, title=f"Cost of int8 ({split})"))


def print_push(upload: dict[str, Any]) -> None:
    """Print what was uploaded, or would be."""
    rows = [(name, f"{size / 1e6:.2f}") for name, size in upload["files"].items()]
    out.print(table_of(("file", "MB"), rows))
    total = f"{len(upload['files'])} files, {sum(upload['files'].values()) / 1e6:.1f} MB"
    space = upload.get("space")
    if space is not None:
        commit = "" if space["commit"] is None else f" at {space['commit']}"
        say(f"Space {space['repo']}{commit}: {', '.join(space['files'])}")
    if upload["commit"] is None:
        say(f"{total}: nothing was uploaded")
        return
    say(f"{total}: {upload['repo']} at {upload['commit']}")
    say(f'load it with revision="{upload["commit"]}"')
