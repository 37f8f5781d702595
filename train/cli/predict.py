"""The commands `predict` and `embed`: answers for a few texts, or for every row of a file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ..errors import UserError
from .console import err, print_answer, print_json, say, show_fault

if TYPE_CHECKING:
    from ...modeling.pipeline_polyhead import PolyheadPipeline

ModelPath = Annotated[str, typer.Argument(help="Folder or Hub id of a Polyhead.")]
InputPath = Annotated[
    Path | None,
    typer.Option("--input", help="parquet, CSV, TSV, JSONL, or folder of parquet."),
]
OutputPath = Annotated[Path | None, typer.Option("--output", help="parquet, CSV, TSV or JSONL.")]
BatchTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens in one pass; 1024 on a CPU.", show_default=False)
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Texts in one pass, instead.")]
ComputeMode = Annotated[str, typer.Option(help="How to compute: auto, exact or bf16.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Run files with heads, metrics, ... that these name."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run_code(allowed: bool, *paths: str | Path | None) -> None:
    """Import the files that recipes and models name, where the user allows it."""
    if allowed:
        from ..recipe.code import allow_code

        allow_code(*filter(None, paths))


def predict(  # noqa: PLR0913 - each is an option of the command line
    model: ModelPath,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to read.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Task names, joined by commas; or auto: the router finds them."),
    ] = None,
    source: InputPath = None,
    target: OutputPath = None,
    text: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column with the second texts.")] = None,
    pair: Annotated[bool, typer.Option("--pair", help="The two texts given are a pair.")] = False,
    batch_tokens: BatchTokens = None,
    batch_size: BatchSize = None,
    compute: ComputeMode = "auto",
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Predict for texts, or for every row of a file."""
    run_code(allow_code, model)
    from ...modeling.router import AUTO, is_auto
    from ..inference.files import plain
    from ..inference.predictor import tasks_reading

    files = _files("predict", texts, source, target, overwrite=overwrite)
    if pair and (not texts or len(texts) != 2):
        raise UserError("predict", ["--pair takes two texts"])
    auto, chosen = is_auto(tasks), tasks.split(",") if tasks else None
    options = _sizes("predict", batch_tokens, batch_size)
    if files is None:
        pipe = pipeline_of(model, compute)
        inputs: list = [tuple(texts or [])] if pair else list(texts or [])
        chosen = _choose(pipe, inputs, AUTO if auto else chosen)
        answers = pipe(inputs, AUTO if auto else chosen, **options)
        if as_json:
            print_json(plain(answers))
        else:
            for one, answer in zip(inputs, answers, strict=True):
                print_answer(one, answer)  # pyright: ignore[reportArgumentType]
        return
    _predict_rows(
        model,
        lambda pipe: tasks_reading(pipe, AUTO if auto else chosen, pairs=bool(text_pair)),
        files=files,
        columns=(text, text_pair),
        compute=compute,
        options=options,
        auto=auto,
    )


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
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
) -> None:
    """Vectors of an embedding task, for texts (JSON) or for every row of a file."""
    run_code(allow_code, model)
    from ..inference.files import plain

    files = _files("embed", texts, source, target, overwrite=overwrite)

    def choose(pipe: "PolyheadPipeline") -> list[str]:
        try:
            return [pipe.model.config.embedding_task(task)]
        except ValueError as error:
            raise UserError("embed", [f"--task: {error}"]) from error

    options = {**_sizes("embed", batch_tokens, batch_size), "document": document}
    if files is None:
        pipe = pipeline_of(model, compute)
        (name,) = choose(pipe)
        answers: Any = pipe(list(texts or []), [name], **options)
        print_json([plain(answer[name]) for answer in answers])
        return
    columns = (text, None)
    _predict_rows(model, choose, files=files, columns=columns, compute=compute, options=options)


def _files(
    command: str,
    texts: list[str] | None,
    source: Path | None,
    target: Path | None,
    *,
    overwrite: bool,
) -> tuple[Path, Path] | None:
    """The files to read and to write; None where texts are given."""
    if (source is None) != (target is None) or (source is None) == (not texts):
        raise UserError(command, ["give texts, or both --input and --output"])
    if source is None or target is None:
        return None
    from ..inference.files import path_faults
    from ..outputs import target_faults

    faults = path_faults(source, target)
    faults = faults or target_faults(target, overwrite=overwrite, is_file=True)
    if faults:
        raise UserError(command, faults)
    return source, target


def _sizes(command: str, batch_tokens: int | None, batch_size: int | None) -> dict[str, Any]:
    if batch_tokens is not None and batch_size is not None:
        raise UserError(command, ["give --batch-tokens or --batch-size, not both"])
    return {"batch_tokens": batch_tokens, "batch_size": batch_size}


def pipeline_of(model: str, compute: str, device: Any = None) -> "PolyheadPipeline":
    """See `inference.pipeline.load_pipeline`, which is loaded when it is needed."""
    from ..inference.pipeline import load_pipeline

    return load_pipeline(model, compute, device)


def _predict_rows(
    model: str,
    choose: Callable[["PolyheadPipeline"], list[str]],
    *,
    files: tuple[Path, Path],
    columns: tuple[str, str | None],
    compute: str,
    options: dict[str, Any],
    auto: bool = False,
) -> None:
    """`predict_file` on all ranks, with a bar of rows on the first."""
    import datasets

    # oneDNN keeps what it compiled for each shape, 1024 of them, and packed batches have ever new
    # shapes: among buffers of all sizes these let the heap grow by some MiB a shard
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")

    from ..distributed import Ranks
    from ..inference.files import FileJob, predict_file

    ranks = Ranks(show_fault)
    if not ranks.is_first:
        datasets.disable_progress_bars()

    def load() -> tuple["PolyheadPipeline", list[str]]:
        pipe = pipeline_of(model, compute, ranks.device)
        return pipe, list(dict.fromkeys(choose(pipe)))

    pipe, tasks = ranks.together(load)
    (source, target), (text, text_pair) = files, columns
    places: dict[str, Any] = {"model": model, "source": source, "target": target}
    job = FileJob(**places, tasks=tasks, text=text, text_pair=text_pair, options=options, auto=auto)
    shown = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress("rows", *shown, console=err, disable=not ranks.is_first)
    task = bar.add_task("rows")

    def progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        bar.start()  # not before the file has been read and found good

    try:
        rows = predict_file(pipe, job, ranks=ranks, progress=progress)
    finally:
        bar.stop()
    if ranks.is_first:
        say(f"{rows} rows written to {target}", console=err)
    ranks.leave()


def _choose(pipe: "PolyheadPipeline", texts: list, tasks: list[str] | str | None) -> list[str]:
    try:
        return pipe.choose_tasks(texts, tasks)
    except ValueError as error:
        raise UserError("predict", [str(error)]) from error
