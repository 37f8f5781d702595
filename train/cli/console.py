"""What the `polyhead` command prints."""

import json
import math
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
VERDICTS = {"help": "green", "share": "green", "fight": "red", "apart": "red"}


def is_first_rank() -> bool:
    """Of several processes the first, which prints; true where there is one."""
    from accelerate import PartialState

    return PartialState().is_main_process


def note(line: str) -> None:
    """Tell something beside the answer, once."""
    if is_first_rank():
        err.print(Text(f"note: {line}", style="yellow"), soft_wrap=True)


def show_fault(message: str) -> None:
    """Tell a mistake of the user."""
    shown = message.encode(errors="backslashreplace").decode()  # half a surrogate of an argument
    err.print(Text(shown, style="red"), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON, alone on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_scores(scores: dict[str, Any], title: str) -> None:
    """Print a table of scores, and one by entity type."""
    table = Table("task", "metric", "score", title=title)
    for task, values in scores["tasks"].items():
        for metric, value in values.items():
            if isinstance(value, float):
                table.add_row(task, metric, f"{value:.4f}")
    table.add_section()
    table.add_row("macro", "", f"{scores['macro']:.4f}")
    out.print(table)
    for task, values in scores["tasks"].items():
        if "per_type" in values:
            types = Table("type", "precision", "recall", "f1", "entities", title=f"{task} by type")
            for kind, row in values["per_type"].items():
                cells = [f"{row[key]:.4f}" for key in ("precision", "recall", "f1")]
                types.add_row(kind, *cells, str(row["support"]))
            out.print(types)


def print_affinity(result: dict[str, Any]) -> None:
    """Print what `polyhead affinity` found."""
    scores, seconds = result["scores"], result["wall_seconds"]
    if scores:
        columns = ("task", "metric", "alone", "jointly", "gain", "std. error", "seconds alone")
        table = Table(*columns, title="Each task alone, and all jointly")
        for task, found in scores.items():
            values = [found[key] for key in ("single", "joint", "gain", "standard_error")]
            cells = ["-" if value is None else f"{value:.4f}" for value in values]
            table.add_row(task, found["metric"], *cells, f"{seconds[task] or math.nan:.0f}")
        out.print(table)
        joint = seconds["all-tasks"] or math.nan
        alone = sum(seconds[task] or math.nan for task in scores)
        out.print(f"{alone:.0f} s for all alone, {joint:.0f} s jointly")
    title = f"Pairs of tasks: {result['measurements']} measurements in {result['steps']} steps"
    for heading, lines in ((title, result["pairs"]), ("Advice", result["advice"].values())):
        out.print(Text(heading, style="bold"))
        for line in lines:
            out.print(Text(f"  {line['sentence']}", style=VERDICTS.get(line["verdict"], "")))
    for line in result["cautions"]:
        out.print(Text(f"note: {line}", style="yellow"))


def print_answer(text: Any, answer: dict[str, Any]) -> None:
    """Print what the tasks say of a text."""
    out.print(Text(" | ".join(text) if isinstance(text, tuple) else text, style="bold"))
    for task, value in answer.items():
        if isinstance(value, list) and value and "start" in value[0]:
            shown = _marked(str(text), value)
        elif isinstance(value, list):
            shown = Text(", ".join(map(_short, value)) or "-")
        elif isinstance(value, dict):
            shown = Text(_short(value))
        else:
            shown = Text(f"{len(value)} numbers, first: {', '.join(f'{v:.4f}' for v in value[:4])}")
        out.print(Text(f"  {task}: ", style="cyan") + shown)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_short, value))
    label = f"{value['label']} " if "label" in value else ""
    return f"{label}{value['score']:.3f}"


def _marked(text: str, entities: list[dict[str, Any]]) -> Text:
    """The text with its entities in place."""
    marked, position = Text(), 0
    for entity in entities:
        marked.append(text[position : entity["start"]])
        marked.append(f"[{entity['word']}]", style="bold green")
        marked.append(f"({entity['entity_group']})", style="green")
        position = entity["end"]
    return marked.append(text[position:])


def print_recipe(report: dict[str, Any]) -> None:
    """Print what a recipe trains."""
    for name, task in report["tasks"].items():
        rows = ", ".join(f"{split} {count}" for split, count in task["rows"].items())
        tokens = ", ".join(f"{key} {value}" for key, value in task["tokens"].items())
        out.print(
            Text(f"{name}", style="bold") + Text(f"  {task['head']}, rows of {task['source']}")
        )
        out.print(f"  rows: {rows}; windows {task['windows']}; {task['cut']} texts at full length")
        out.print(f"  tokens: {tokens}")
        if task["labels"]:
            labels = ", ".join(f"{label} {count}" for label, count in task["labels"].items())
            out.print(Text(f"  labels: {labels}"))
        for sample in task["samples"]:
            out.print(Text(f"  row {sample['row']}: {sample['text']}\n    -> {sample['label']}"))
    for line in report["draws"]:
        out.print(Text(line))
    table = Table("weights", "layers", "trainable", "frozen", "learning rate", "from epoch")
    for row in report["parameters"]:
        rate = "-" if row["learning_rate"] is None else f"{row['learning_rate']:.2e}"
        start = "never" if row["from_epoch"] is None else f"{row['from_epoch']:g}"
        layers = _span(row["layers"])
        numbers = (f"{row['trainable']:,}", f"{row['frozen']:,}")
        table.add_row(row["name"], layers, *numbers, rate, start)
    out.print(table)
    for note in report["notes"]:
        out.print(Text(f"note: {note}", style="yellow"))


def _span(numbers: list[int]) -> str:
    """Numbers of layers, those in a row as first-last."""
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def print_model(report: dict[str, Any]) -> None:
    """Print what a model holds."""
    encoder = report["encoder"]
    out.print(
        f"{encoder['model_type']}: {encoder['layers']} layers, hidden size "
        f"{encoder['hidden_size']}, {encoder['parameters']:,} parameters"
    )
    table = Table("task", "head", "reads", "parameters", "labels")
    for name, task in report["tasks"].items():
        kind = task["problem_type"] or task["head"]
        labels = ", ".join(task["labels"][:12]) + (" ..." if len(task["labels"]) > 12 else "")
        reads = "pairs" if task["pair"] else "texts"
        table.add_row(name, kind, reads, f"{task['parameters']:,}", Text(labels))
    out.print(table)
    out.print(f"{report['parameters']:,} parameters in all")


def print_export(about: dict[str, Any], folder: Any) -> None:
    """Print what was exported, and what int8 cost."""
    outputs = ", ".join(about["tasks"])
    inputs = ", ".join(about["inputs"])
    err.print(
        Text(f"{folder}: {about['kind']} {about['precision']}, {inputs} -> {outputs}"),
        soft_wrap=True,
    )
    err.print(f"fp32 outputs as torch's within {about['difference']:.1g}")
    if "int8" not in about:
        return
    split = about["int8"]["scored_on"]
    table = Table("task", "metric", "fp32", "int8", "change", title=f"Cost of int8 ({split})")
    for name, row in about["int8"]["tasks"].items():
        values = (f"{row['fp32']:.4f}", f"{row['int8']:.4f}", f"{row['int8'] - row['fp32']:+.4f}")
        table.add_row(name, row["metric"], *values)
    out.print(table)


def print_push(found: dict[str, Any]) -> None:
    """Print what was uploaded, or would be."""
    table = Table("file", "MB")
    for name, size in found["files"].items():
        table.add_row(name, f"{size / 1e6:.2f}")
    out.print(table)
    total = f"{len(found['files'])} files, {sum(found['files'].values()) / 1e6:.1f} MB"
    if found["commit"] is None:
        out.print(Text(f"{total}: nothing was uploaded"))
        return
    out.print(Text(f"{total}: {found['repo']} at {found['commit']}"), soft_wrap=True)
    out.print(Text(f'load it with revision="{found["commit"]}"'), soft_wrap=True)
