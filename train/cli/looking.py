"""The commands `map` and `similarity`: embeddings to look at."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .console import err, note, print_json, print_similarity, say
from .predict import (
    AllowCode,
    AsJson,
    InputPath,
    ModelPath,
    OutputPath,
    Overwrite,
    pipeline_of,
    run_code,
)

SHOWN = 50  # pairs of a table; --output has all
Task = Annotated[str | None, typer.Option(help="Embedding task; needed if several.")]


def map_texts(  # noqa: PLR0913 - each is an option of the command line
    model: ModelPath,
    source: Annotated[
        Path, typer.Option("--input", help="parquet, CSV, TSV, JSONL, or folder of parquet.")
    ],
    text: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    color: Annotated[str | None, typer.Option(help="Column with labels or numbers.")] = None,
    task: Task = None,
    method: Annotated[str, typer.Option(help="pca, tsne, umap, joined by commas.")] = "pca,tsne",
    rows: Annotated[int, typer.Option(min=2, help="Most rows; of more so many by chance.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of that choice, of t-SNE and UMAP.")] = 0,
    output: Annotated[
        Path, typer.Option(help="Page to write; the picture lies beside it as .png.")
    ] = Path("map.html"),
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Draw the texts of a file on a plane: a picture, and a page that shows the text pointed at."""
    run_code(allow_code, model)
    from ..commands.looking import map_faults
    from ..commands.looking import map_texts as run

    methods = list(dict.fromkeys(method.split(",")))
    if faults := map_faults(methods, output, overwrite=overwrite):
        raise UserError("map", faults)
    drawn = run(
        lambda: pipeline_of(model, "auto"),
        source,
        output=output,
        text=text,
        color=color,
        task=task,
        methods=methods,
        limit=rows,
        seed=seed,
    )
    if as_json:
        print_json(drawn)
        return
    say(f"{drawn['rows']:,} texts: {drawn['page']}, {drawn['picture']}", console=err)


def similarity(  # noqa: PLR0913 - each is an option of the command line
    model: ModelPath,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to compare.")] = None,
    task: Task = None,
    source: InputPath = None,
    text: Annotated[str, typer.Option(help="Column with the first texts.")] = "text",
    text_pair: Annotated[str, typer.Option(help="Column with the second texts.")] = "text_pair",
    target: OutputPath = None,
    plot: Annotated[Path | None, typer.Option(help="Heat map to draw, .png.")] = None,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """How alike texts are: each with each, or the two texts of each row of a file."""
    run_code(allow_code, model)
    from ..commands import looking

    typed = list(texts or [])
    if faults := looking.similarity_faults(typed, source, target, plot, overwrite=overwrite):
        raise UserError("similarity", faults)
    if source is None:
        compared = looking.similarity(pipeline_of(model, "auto"), typed, task=task, plot=plot)
        rows = compared["similarity"]
    else:
        compared = looking.pair_similarity(
            lambda: pipeline_of(model, "auto"),
            source,
            text=text,
            text_pair=text_pair,
            task=task,
            output=target,
            plot=plot,
        )
        rows = compared["pairs"]
    if as_json:
        print_json(compared)
        return
    print_similarity(compared, SHOWN)
    if source is not None and len(rows) > SHOWN:
        note(f"{SHOWN} of {len(rows)} pairs are shown; --output writes all, --json prints them")
