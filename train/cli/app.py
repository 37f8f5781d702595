"""The `polyhead` command. Exit codes: 0 done, 2 the user's mistake (one message), 1 our bug.

Commands import what they need themselves: `polyhead --help` answers without loading torch.
"""

import io
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import Interrupted, UserError
from .console import (
    err,
    is_first_rank,
    note,
    notes_shown,
    print_affinity,
    print_export,
    print_json,
    print_model,
    print_plan,
    print_push,
    print_recipe,
    print_scores,
    say,
    show_fault,
    show_run,
)
from .demo import demo
from .edit import Overrides, RecipePath, add_task, extend_task, remove_task
from .encoders import compare_encoders
from .looking import map_texts, similarity
from .predict import AllowCode, AsJson, ModelPath, Overwrite, embed, predict, run_code
from .serve import serve
from .versions import diff, log, rollback

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(show: bool) -> None:
    if show:
        say(f"polyhead {metadata.version('polyhead')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version),
]


@app.callback()
def quiet(version: Version = False) -> None:
    """One transformer encoder, many tasks."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading and saving; training and tokenizing show theirs


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe; the finished model is saved in output_dir/model."""
    run_code(allow_code, recipe)
    from ..commands.training import train as run

    scores = run(recipe, overrides, overwrite=overwrite)
    show_run(scores, as_json=as_json)
    _leave_ranks()


app.command("add-task")(add_task)
app.command("extend-task")(extend_task)
app.command("remove-task")(remove_task)


@app.command()
def export(
    model: ModelPath,
    kind: Annotated[str, typer.Argument(help="onnx, openvino, or hf: a plain transformers model.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value for --int8.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Tasks, joined by commas; default all. hf takes one.")
    ] = None,
    int8: Annotated[
        Path | None, typer.Option(help="Quantise to int8; a recipe with rows to calibrate, score.")
    ] = None,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="onnx: add runners that need no torch (docs/use.md).")
    ] = False,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Write tasks for ONNX Runtime or OpenVINO, or one as a plain transformers model."""
    run_code(allow_code, model, int8)
    from ..export.graph import export_graph
    from ..export.int8 import export_int8
    from ..export.plain import export_hf
    from ..inference.load import load_model
    from ..outputs import source_fault

    faults = []
    if kind not in ("onnx", "openvino", "hf"):
        faults.append(f"{kind!r}; allowed: onnx, openvino, hf")
    if kind == "hf" and task is None:
        faults.append("hf writes one task: name it by --task")
    if kind == "hf" and (int8 is not None or bundle):
        faults.append("--int8 is for onnx and openvino, --bundle for onnx")
    if overrides and int8 is None:
        faults.append(f"{overrides[0]!r} is for the recipe of --int8, and there is none")
    if fault := source_fault(model, output, may_lie_inside=True):
        faults.append(fault)
    if faults:
        raise UserError("export", faults)
    loaded, tokenizer = load_model(model)
    if kind == "hf":
        name = export_hf(loaded, tokenizer, task=str(task), folder=output, overwrite=overwrite)
        say(f"{output}: {name}, the same logits as task {task}", console=err)
        return
    tasks = loaded.task_names if task is None else task.split(",")
    target: dict[str, Any] = {"tasks": tasks, "folder": output, "overwrite": overwrite}
    target["bundle"] = bundle
    if int8 is None:
        about = export_graph(loaded, tokenizer, kind, **target)
    else:
        about = export_int8(loaded, tokenizer, kind, **target, recipe=int8, overrides=overrides)
    if as_json:
        print_json(about)
    else:
        print_export(about, output)


@app.command()
def push(
    model: Annotated[Path, typer.Argument(help="Folder of a saved Polyhead.")],
    repo: Annotated[str, typer.Argument(help="user/model on the Hub; made when it is not there.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Of a new one.")] = True,
    revision: Annotated[str | None, typer.Option(help="Branch; made when not there.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload model",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files, upload nothing.")] = False,
    space: Annotated[str | None, typer.Option(help="user/space that shows the page.")] = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Upload a model to the Hub in one commit."""
    run_code(allow_code, model)
    from ..hub.push import HUB_ERRORS
    from ..hub.push import push as run

    options: dict[str, Any] = {"revision": revision, "message": message, "dry_run": dry_run}
    options["space"] = space
    try:
        upload = run(model, repo, private=private, **options)
    except HUB_ERRORS as error:
        raise UserError("push", [str(error).strip().splitlines()[0]]) from error
    if as_json:
        print_json(upload)
    else:
        print_push(upload)


@app.command()
def evaluate(
    model: ModelPath,
    recipe: RecipePath,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Score a model on the data of a recipe."""
    run_code(allow_code, model, recipe)
    from ..commands.scoring import evaluate as run

    scores = run(model, recipe, overrides, split=split)
    if not is_first_rank():
        return
    if as_json:
        print_json(scores)
    else:
        print_scores(scores, f"Scores ({split})")


app.command()(predict)
app.command()(embed)
app.command()(serve)
app.command()(demo)
app.command("map")(map_texts)
app.command("compare-encoders")(compare_encoders)
app.command()(similarity)
app.command()(log)
app.command()(diff)
app.command()(rollback)


@app.command()
def inspect(
    what: Annotated[str, typer.Argument(help="Recipe (YAML), or folder of a model.")],
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    check: Annotated[bool, typer.Option("--verify", help="Recompute a model's proof.")] = False,
) -> None:
    """Show what a recipe trains on, or what a model can do."""
    run_code(allow_code, what)
    from ..commands.edit_tasks import verify
    from ..commands.inspection import inspect_model, inspect_recipe
    from ..commands.setup import prepare
    from ..inference.load import load_model

    if check:
        proof = verify(what)
        if as_json:
            print_json(proof)
            return
        say(f"{', '.join(proof['tasks'])}: weights as the proof says")
        same = proof["logits_compared"]
        say(f"logits: {'as the proof says' if same else 'made elsewhere, not compared'}")
        return
    if what.endswith((".yaml", ".yml")):
        report = inspect_recipe(prepare(what, overrides))
        show = print_recipe
    else:
        report = inspect_model(load_model(what)[0])
        show = print_model
    if as_json:
        print_json(report)
    else:
        show(report)


@app.command()
def convert(  # noqa: PLR0913 - each is an option of the command line
    what: Annotated[str, typer.Argument(help="Recipe (YAML), or a file or folder of data.")],
    output: Annotated[Path, typer.Option(help="File to write, .jsonl.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value; beside a file keys of data, as label=entities."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--format", help="Of the file: conll, spans, doccano, ...")
    ] = None,
    to: Annotated[str, typer.Option(help="tokens (and tags), or spans.")] = "tokens",
    task: Annotated[str | None, typer.Option(help="Of the recipe; needed if several.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "train",
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Write the rows of a task, of any format, as JSON Lines of ours."""
    run_code(allow_code, what)
    from ..commands.convert import convert as run

    options: Any = {"format": kind, "to": to, "task": task, "split": split}
    summary = run(what, output, overrides, **options, overwrite=overwrite)
    if as_json:
        print_json(summary)
        return
    for line in summary["notes"]:
        note(line)
    say(f"{output}: {summary['rows']} rows of {', '.join(summary['columns'])}", console=err)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, the recipe's output_dir.")],
    as_json: AsJson = False,
) -> None:
    """Show a run: scores, confusions, entity types, calibration, which tasks fight; one page."""
    from ..reports.page import report as make

    summary = make(run)
    if as_json:
        print_json(summary)
        return
    if summary["scores"]:
        print_scores(summary["scores"], "Scores")
    say(f"page with pictures: {summary['page']}")


@app.command()
def affinity(
    recipe: RecipePath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of the short run.")] = 120,
    full: Annotated[bool, typer.Option("--full", help="Train each task alone, and all.")] = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Should these tasks share a model? A short joint run compares them."""
    run_code(allow_code, recipe)
    from ..affinity.measure import affinity as run

    result = run(recipe, overrides, steps=steps, full=full)
    if as_json:
        print_json(result)
    else:
        print_affinity(result)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    minutes: Annotated[float, typer.Option(help="That the trials may take, about.")] = 20,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Choose rate, rows of a step and who shares, by short runs; write the recipe."""
    run_code(allow_code, recipe)
    from ..commands.plan import plan as run

    result = run(recipe, overrides, minutes=minutes, overwrite=overwrite)
    if as_json:
        print_json(result)
    else:
        print_plan(result)


def _leave_ranks() -> None:
    """End the process group, where there is one: its threads abort an interpreter that ends."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a mistake of the user ends in one message and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that the terminal lacks is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with notes_shown():
            app(arguments)
    except UserError as error:
        show_fault(str(error))
        sys.exit(2)
    except OSError as error:  # a full disk, a folder in the way: where no one has explained it
        from ..artifacts import refusal

        reason = refusal(error)
        if reason is None:
            raise
        show_fault(f"{error.filename or 'a file'}: {reason}")
        sys.exit(2)
    except Interrupted as error:
        note(str(error))
        sys.exit(error.exit_code)
