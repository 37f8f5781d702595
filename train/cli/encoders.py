"""The command `compare-encoders`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import err, out, print_json, say, table_of
from .edit import RecipePath
from .predict import AllowCode, AsJson, Overwrite, run_code


def compare_encoders(
    recipe: RecipePath,
    encoders: Annotated[
        list[str],
        typer.Argument(help="Two or more: folders, Hub ids, package:NAME/FOLDER; and key=value."),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Picture to draw, .png: scores against time.")
    ] = None,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Which encoder? Probe and time some for the tasks of a recipe; nothing is trained whole."""
    names = [name for name in encoders if "=" not in name]
    overrides = [name for name in encoders if "=" in name]
    run_code(allow_code, recipe)
    from ..commands.compare_encoders import compare_encoders as run

    result = run(recipe, names, overrides, output=output, overwrite=overwrite)
    if as_json:
        print_json(result)
        return
    _print(result)
    if output is not None:
        say(f"{output}: scores against time", console=err)


def _print(result: dict[str, Any]) -> None:
    """Encoders by number, one a line; then a column of the table for each."""
    encoders = result["encoders"]
    for number, one in enumerate(encoders, 1):
        say(f"{number}  {one['encoder']} (licence: {one['licence']})")
    rows = [(task, *(_score(one["tasks"][task]) for one in encoders)) for task in result["rows"]]
    rows += [
        ("macro", *(_score(one["macro"]) for one in encoders)),
        ("± standard error", *(_score(one["standard_error"]) for one in encoders)),
        ("ms for a text", *(f"{one['latency_ms']:.1f}" for one in encoders)),
        ("texts a second", *(f"{one['texts_per_second']:.0f}" for one in encoders)),
        ("MB of memory", *(str(one["memory_mb"]) for one in encoders)),
        ("parameters", *(f"{one['parameters']:,}" for one in encoders)),
        ("tokens", *("any" if one["length"] is None else str(one["length"]) for one in encoders)),
    ]
    title = f"Heads on frozen encoders; {result['device']}, threads: {result['threads']}"
    header = ("", *(str(number) for number in range(1, len(encoders) + 1)))
    out.print(table_of(header, rows, title=title))
    for line in result["sentences"]:
        say(f"  {line}")


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
