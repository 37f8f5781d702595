"""The `polyhead` command. Exit codes: 0 done, 2 the user's mistake (one message), 1 our bug.

Commands import what they need themselves: `polyhead --help` answers without loading torch.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.text import Text

from .errors import Left, RecipeError
from .printing import (
    err,
    out,
    print_affinity,
    print_answer,
    print_export,
    print_json,
    print_model,
    print_push,
    print_recipe,
    print_scores,
)

if TYPE_CHECKING:
    from ..modeling.pipeline_polyhead import PolyheadPipeline

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(help="Recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, as tasks.intent.loss_weight=2")
]
ModelPath = Annotated[str, typer.Argument(help="Folder or Hub id of a Polyhead.")]
InputPath = Annotated[
    Path | None, typer.Option("--input", help="parquet, CSV, JSONL, or folder of parquet files.")
]
OutputPath = Annotated[Path | None, typer.Option("--output", help="parquet, CSV or JSONL.")]
BatchTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens in one pass; 1024 on a CPU.", show_default=False)
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Texts in one pass, instead.")]
ComputeMode = Annotated[str, typer.Option(help="How to compute: auto, exact or bf16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def quiet() -> None:
    """One transformer encoder, many tasks."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading and saving; training and tokenizing show theirs


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train a recipe; the finished model is saved in output_dir/model."""
    from .run import train as run

    scores = run(recipe, overrides, notify=_note)
    _show_run(scores, as_json=as_json)
    _leave_ranks()


@app.command("add-task")
def add_task(
    model: ModelPath, recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Train new tasks onto a finished model; prove that the others stay the same."""
    from .tasks import add_task as run

    scores = run(model, recipe, overrides, notify=_note)
    _show_run(scores, as_json=as_json)
    if _is_first_rank() and not as_json:
        out.print("proven: the encoder and all other tasks are the same to the bit")


@app.command("remove-task")
def remove_task(
    model: ModelPath,
    tasks: Annotated[list[str], typer.Argument(help="Tasks to remove.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Save a model without some tasks; prove that the others are the same."""
    from .tasks import remove_task as run

    run(model, tasks, output)
    err.print(f"{output}: proven, the encoder and all other tasks are the same to the bit")


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
    as_json: AsJson = False,
) -> None:
    """Write tasks for ONNX Runtime or OpenVINO, or one as a plain transformers model."""
    from .export import export_hf
    from .graph import export_graph
    from .preparation import load_model
    from .quantization import export_int8

    faults = []
    if kind not in ("onnx", "openvino", "hf"):
        faults.append(f"{kind!r}; allowed: onnx, openvino, hf")
    if kind == "hf" and task is None:
        faults.append("hf writes one task: name it by --task")
    if kind == "hf" and int8 is not None:
        faults.append("--int8 is for onnx and openvino")
    if overrides and int8 is None:
        faults.append(f"{overrides[0]!r} is for the recipe of --int8, and there is none")
    if faults:
        raise RecipeError("export", faults)
    loaded, tokenizer = load_model(model)
    if kind == "hf":
        name = export_hf(loaded, tokenizer, task=str(task), folder=output)
        err.print(f"{output}: {name}, the same logits as task {task}")
        return
    tasks = loaded.task_names if task is None else task.split(",")
    if int8 is None:
        about = export_graph(loaded, tokenizer, kind, tasks=tasks, folder=output)
    else:
        about = export_int8(
            loaded, tokenizer, kind, tasks=tasks, folder=output, recipe=int8, overrides=overrides
        )
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
    as_json: AsJson = False,
) -> None:
    """Upload a model to the Hub in one commit."""
    from .hub import HUB_ERRORS
    from .hub import push as run

    options: dict[str, Any] = {"revision": revision, "message": message, "dry_run": dry_run}
    try:
        found = run(model, repo, private=private, **options)
    except HUB_ERRORS as error:
        raise RecipeError("push", [str(error).strip().splitlines()[0]]) from error
    if as_json:
        print_json(found)
    else:
        print_push(found)


@app.command()
def evaluate(
    model: ModelPath,
    recipe: RecipePath,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    as_json: AsJson = False,
) -> None:
    """Score a model on the data of a recipe."""
    from .run import evaluate as run

    scores = run(model, recipe, overrides, split=split)
    if not _is_first_rank():
        return
    if as_json:
        print_json(scores)
    else:
        print_scores(scores, f"Scores ({split})")


@app.command()
def predict(  # noqa: PLR0913 - each is an option of the command line
    model: ModelPath,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to read.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Task names, joined by commas.")] = None,
    source: InputPath = None,
    target: OutputPath = None,
    text: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column with the second texts.")] = None,
    pair: Annotated[bool, typer.Option("--pair", help="The two texts given are a pair.")] = False,
    batch_tokens: BatchTokens = None,
    batch_size: BatchSize = None,
    compute: ComputeMode = "auto",
    as_json: AsJson = False,
) -> None:
    """Predict for texts, or for every row of a file."""
    from .prediction import plain

    if (source is None) != (target is None) or (source is None) == (not texts):
        raise RecipeError("predict", ["give texts, or both --input and --output"])
    if pair and (not texts or len(texts) != 2):
        raise RecipeError("predict", ["--pair takes two texts"])
    chosen = tasks.split(",") if tasks else None
    options = _sizes("predict", batch_tokens, batch_size)
    if texts:
        pipe = _pipeline(model, compute)
        given: list = [tuple(texts)] if pair else list(texts)
        chosen = _choose(pipe, given, chosen)
        answers = pipe(given, chosen, **options)
        if as_json:
            print_json(plain(answers))
        else:
            for one, answer in zip(given, answers, strict=True):
                print_answer(one, answer)  # pyright: ignore[reportArgumentType]
        return
    assert source is not None
    assert target is not None
    example = ("", "") if text_pair else ""
    _predict_rows(
        model,
        lambda pipe: _choose(pipe, [example], chosen),
        files=(source, target),
        columns=(text, text_pair),
        compute=compute,
        options=options,
    )


@app.command()
def embed(  # noqa: PLR0913 - each is an option of the command line
    model: ModelPath,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to read.")] = None,
    task: Annotated[str | None, typer.Option(help="Embedding task; needed if several.")] = None,
    source: InputPath = None,
    target: OutputPath = None,
    text: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    document: Annotated[bool, typer.Option("--document", help="Documents, not queries.")] = False,
    batch_tokens: BatchTokens = None,
    batch_size: BatchSize = None,
    compute: ComputeMode = "auto",
) -> None:
    """Vectors of an embedding task, for texts (JSON) or for every row of a file."""
    from .exported import embedding_task
    from .prediction import plain

    if (source is None) != (target is None) or (source is None) == (not texts):
        raise RecipeError("embed", ["give texts, or both --input and --output"])

    def choose(pipe: "PolyheadPipeline") -> list[str]:
        try:
            return [embedding_task(pipe.model, task)]
        except ValueError as error:
            raise RecipeError("embed", [f"--task: {error}"]) from error

    options = {**_sizes("embed", batch_tokens, batch_size), "document": document}
    if texts:
        pipe = _pipeline(model, compute)
        (name,) = choose(pipe)
        answers: Any = pipe(list(texts), [name], **options)
        print_json([plain(answer[name]) for answer in answers])
        return
    assert source is not None
    assert target is not None
    files, columns = (source, target), (text, None)
    _predict_rows(model, choose, files=files, columns=columns, compute=compute, options=options)


@app.command()
def inspect(
    what: Annotated[str, typer.Argument(help="Recipe (YAML), or folder of a model.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
    check: Annotated[bool, typer.Option("--verify", help="Recompute a model's proof.")] = False,
) -> None:
    """Show what a recipe trains on, or what a model can do."""
    from .inspection import inspect_model, inspect_recipe
    from .preparation import load_model, prepare
    from .tasks import verify

    if check:
        found = verify(what)
        if as_json:
            print_json(found)
            return
        out.print(f"{', '.join(found['tasks'])}: weights as the proof says")
        same = found["logits_compared"]
        out.print(f"logits: {'as the proof says' if same else 'made elsewhere, not compared'}")
        return
    if what.endswith((".yaml", ".yml")):
        report = inspect_recipe(prepare(what, overrides), what)
        show = print_recipe
    else:
        report = inspect_model(load_model(what)[0])
        show = print_model
    if as_json:
        print_json(report)
    else:
        show(report)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, the recipe's output_dir.")],
    as_json: AsJson = False,
) -> None:
    """Show a run: scores, confusions, entity types, calibration, which tasks fight; one page."""
    from .run_report import report as make

    found = make(run)
    if as_json:
        print_json(found)
        return
    if found["scores"]:
        print_scores(found["scores"], "Scores")
    out.print(Text(f"page with pictures: {found['page']}"), soft_wrap=True)


@app.command()
def affinity(
    recipe: RecipePath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of the short run.")] = 120,
    full: Annotated[bool, typer.Option("--full", help="Train each task alone, and all.")] = False,
    as_json: AsJson = False,
) -> None:
    """Should these tasks share a model? A short joint run compares them."""
    from .affinity import affinity as run

    result = run(recipe, overrides, steps=steps, full=full, notify=_note)
    if as_json:
        print_json(result)
    else:
        print_affinity(result)


def _show_run(scores: dict[str, Any], *, as_json: bool) -> None:
    """The scores of a training, once; none where no task has rows to score."""
    if not _is_first_rank():
        return
    if as_json:
        print_json(scores)
    elif scores:
        print_scores(scores, f"Scores ({', '.join(sorted(set(scores['splits'].values())))})")


def _note(line: str) -> None:
    if _is_first_rank():
        err.print(Text(f"note: {line}", style="yellow"), soft_wrap=True)


def _sizes(command: str, batch_tokens: int | None, batch_size: int | None) -> dict[str, Any]:
    if batch_tokens is not None and batch_size is not None:
        raise RecipeError(command, ["give --batch-tokens or --batch-size, not both"])
    return {"batch_tokens": batch_tokens, "batch_size": batch_size}


def _pipeline(model: str, compute: str, device: Any = None) -> "PolyheadPipeline":
    from ..modeling.pipeline_polyhead import PolyheadPipeline
    from .exported import ExportedModel, load_any

    loaded, tokenizer = load_any(model)
    parts: Any = {"model": loaded, "tokenizer": tokenizer}
    try:
        loaded.set_compute(compute)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise RecipeError("--compute", [str(error)]) from error
    if isinstance(loaded, ExportedModel):
        device = -1  # its engine knows where it runs
    elif device is not None:
        loaded.to(device)  # beside other processes a Pipeline takes the model's device
    return PolyheadPipeline(**parts, device=device, compute=compute)  # pyright: ignore


def _predict_rows(
    model: str,
    choose: Callable[["PolyheadPipeline"], list[str]],
    *,
    files: tuple[Path, Path],
    columns: tuple[str, str | None],
    compute: str,
    options: dict[str, Any],
) -> None:
    """`predict_file` on all ranks, with a bar of rows on the first."""
    import datasets

    # oneDNN keeps what it compiled for each shape, 1024 of them, and packed batches have ever new
    # shapes: among buffers of all sizes these let the heap grow by some MiB a shard
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")

    from .prediction import FileJob, predict_file
    from .ranks import Ranks

    ranks = Ranks(_show_fault)
    if not ranks.is_first:
        datasets.disable_progress_bars()

    def load() -> tuple["PolyheadPipeline", list[str]]:
        pipe = _pipeline(model, compute, ranks.device)
        return pipe, list(dict.fromkeys(choose(pipe)))

    pipe, tasks = ranks.together(load)
    (source, target), (text, text_pair) = files, columns
    places: dict[str, Any] = {"model": model, "source": source, "target": target}
    job = FileJob(**places, tasks=tasks, text=text, text_pair=text_pair, options=options)
    shown = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress("rows", *shown, console=err, disable=not ranks.is_first)
    task = bar.add_task("rows")

    def progress(done: int, total: int) -> None:
        bar.start()  # not before the file has been read and found good
        bar.update(task, completed=done, total=total)

    try:
        rows = predict_file(pipe, job, ranks=ranks, notify=_note, progress=progress)
    finally:
        bar.stop()
    if ranks.is_first:
        err.print(f"{rows} rows written to {target}")
    ranks.leave()


def _choose(pipe: "PolyheadPipeline", texts: list, tasks: list[str] | None) -> list[str]:
    try:
        return pipe.choose_tasks(texts, tasks)
    except ValueError as error:
        raise RecipeError("predict", [str(error)]) from error


def _show_fault(message: str) -> None:
    err.print(Text(message, style="red"), soft_wrap=True)


def _leave_ranks() -> None:
    """End the process group, where there is one: its threads abort an interpreter that ends."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def _is_first_rank() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a mistake of the user ends in one message and exit code 2."""
    try:
        app(arguments)
    except RecipeError as error:
        _show_fault(str(error))
        sys.exit(2)
    except Left as left:
        _note(str(left))
        sys.exit(left.exit_code)


if __name__ == "__main__":  # `torchrun -m polyhead.train.cli predict ...`
    main()
