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
    tasks = list(result["rows"])
    header = ("encoder", *tasks, "macro", "±", "ms a text", "texts/s", "MB", "parameters")
    rows = []
    for one in result["encoders"]:
        values = [*(one["tasks"][name] for name in tasks), one["macro"], one["standard_error"]]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        rows.append(
            (
                one["encoder"],
                *cells,
                f"{one['latency_ms']:.1f}",
                f"{one['texts_per_second']:.0f}",
                str(one["memory_mb"]),
                f"{one['parameters'] / 1e6:.1f} M",
                "any" if one["length"] is None else str(one["length"]),
                one["licence"],
            )
        )
    device = f"{result['device']}, {result['threads']} threads"
    title = f"Heads on frozen encoders, scored on validation; times on {device}"
    out.print(table_of((*header, "tokens", "licence"), rows, title=title))
    for line in result["sentences"]:
        say(f"  {line}")
