"""The commands `add-task`, `extend-task` and `remove-task`: other tasks of a finished model."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .console import err, is_first_rank, say, show_run
from .predict import AllowCode, AsJson, ModelPath, Overwrite, run_code

RecipePath = Annotated[Path, typer.Argument(help="Recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, as tasks.intent.loss_weight=2")
]


def add_task(
    model: ModelPath,
    recipe: RecipePath,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Train new tasks onto a finished model; prove that the others stay the same."""
    run_code(allow_code, model, recipe)
    from ..commands.edit_tasks import add_task as run

    scores = run(model, recipe, overrides, overwrite=overwrite)
    show_run(scores, as_json=as_json)
    if is_first_rank() and not as_json:
        say("proven: the encoder and all other tasks are the same to the bit")


def extend_task(
    model: ModelPath,
    recipe: RecipePath,
    overrides: Overrides = None,
    keep: Annotated[
        str, typer.Option(help="weights; or strict: old answers stay but where a new label is.")
    ] = "weights",
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Give old tasks new labels, from rows that mark the new ones only."""
    if keep not in ("weights", "strict"):
        raise UserError("extend-task", [f"--keep: {keep!r}; allowed: weights, strict"])
    run_code(allow_code, model, recipe)
    from ..commands.extend_task import extend_task as run

    scores = run(model, recipe, overrides, keep=keep, overwrite=overwrite)  # pyright: ignore
    show_run(scores, as_json=as_json)
    if not is_first_rank() or as_json:
        return
    for task, changed in scores["extended"].items():
        say(
            f"{task}: of {changed['rows']:,} rows that did not train {changed['changed']:,} are "
            f"answered otherwise, {changed['elsewhere']:,} elsewhere than where a new label is put"
        )
    say("listed in extension.json; proven: encoder and all other tasks are the same to the bit")


def remove_task(
    model: ModelPath,
    tasks: Annotated[list[str], typer.Argument(help="Tasks to remove.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
) -> None:
    """Save a model without some tasks; prove that the others are the same."""
    run_code(allow_code, model)
    from ..commands.edit_tasks import remove_task as run

    run(model, tasks, output, overwrite=overwrite)
    line = f"{output}: proven, the encoder and all other tasks are the same to the bit"
    say(line, console=err)
