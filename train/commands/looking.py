"""Looking at embeddings: texts on a plane, and how alike texts are."""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from ...modeling.pipeline_polyhead import PolyheadPipeline
from ..artifacts import write_text
from ..errors import UserError
from ..escape import drawn
from ..inference.files import path_faults, read_texts
from ..inference.shards import write_rows
from ..inference.vectors import text_vectors
from ..outputs import target_faults
from ..reports import figures
from ..reports.heat_map import heat_map
from ..reports.projection import FEWEST, METHODS, TITLES, project
from ..reports.text_map import map_figure, map_page, marks_of

logger = logging.getLogger(__name__)
SIMILARITY = "similarity"
NOT_SO_MANY = 40  # texts on a side of a heat map


def map_faults(methods: Sequence[str], output: Path, *, overwrite: bool) -> list[str]:
    """What keeps a map from being drawn or written, before a model is loaded."""
    faults = [
        f"--method: {name!r}; allowed, one or more joined by commas: {', '.join(METHODS)}"
        for name in methods
        if name not in METHODS
    ]
    if output.suffix != ".html":
        return [
            *faults,
            f"--output: {output.name}; its ending is .html, the picture's will be .png",
        ]
    for path in (output, output.with_suffix(".png")):
        faults += target_faults(path, overwrite=overwrite, is_file=True)
    return faults


def map_texts(
    load: Callable[[], PolyheadPipeline],
    source: Path,
    *,
    output: Path,
    text: str = "text",
    color: str | None = None,
    task: str | None = None,
    methods: Sequence[str] = ("pca", "tsne"),
    limit: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw the texts of a file on a plane, near where they mean the same.

    Args:
        load: gives the model and its tokenizer, once the file is known to be good.
        source: the file; see `read_texts`.
        output: .html, the page; the picture lies beside it as .png.
        text: column with the texts.
        color: column with labels or numbers.
        task: embedding task; see `text_vectors`.
        methods: of `projection.METHODS`.
        limit: most rows; of a longer file so many by chance.
        seed: of that, and of t-SNE and UMAP.

    Returns:
        JSON-ready: `page`, `picture`, `rows` drawn, `of` how many, `methods`.

    Raises:
        UserError: the file, a column or a task is wrong, or there is nothing to show.
    """
    rows = read_texts(source, {"--text": text}, {} if color is None else {"--color": color})
    most = max(methods, key=FEWEST.__getitem__)
    if len(rows) < FEWEST[most]:
        fault = f"has {len(rows)} rows; {TITLES[most]} needs {FEWEST[most]} or more"
        raise UserError(str(source), [fault])
    total, chosen = len(rows), rows
    if total > limit:
        chosen = rows.select(sorted(random.Random(seed).sample(range(total), limit)))
        logger.info(f"{limit:,} of {total:,} rows, by chance; --rows takes more")
    texts = list(chosen[text])
    marks = marks_of(None if color is None else list(chosen[color]), len(texts), color or "")
    try:
        vectors = text_vectors(load(), texts, task)
    except ValueError as error:
        raise UserError("--task", [str(error)]) from error
    maps = [project(vectors, name, seed=seed) for name in methods]
    picture = output.with_suffix(".png")
    title = f"{source.name}, {len(texts):,} texts"
    makers = {picture.stem: lambda _: map_figure(maps, marks, title)}
    figures.draw(output.parent, makers, [picture.stem], {})
    write_text(output, map_page(maps, marks, texts, source.name))
    return {
        "page": str(output),
        "picture": str(picture),
        "rows": len(texts),
        "of": total,
        "methods": list(methods),
    }


def similarity_faults(
    texts: Sequence[str],
    source: Path | None,
    output: Path | None,
    plot: Path | None,
    *,
    overwrite: bool,
) -> list[str]:
    """What does not fit of a call, before a model is loaded."""
    if (source is None) == (not texts):
        return ["give two texts or more, or a file of pairs by --input"]
    faults = []
    if source is None and len(texts) < 2:
        faults.append("1 text; give two or more to compare")
    faults += [f"text {number} is empty" for number, t in enumerate(texts, 1) if not t.strip()]
    if output is not None and source is None:
        faults.append("--output is for the pairs of --input")
    elif output is not None and source is not None:
        faults += path_faults(source, output)
    if plot is not None and plot.suffix != ".png":
        faults.append(f"--plot: {plot.name}; its ending is .png")
    if plot is not None and len(texts) > NOT_SO_MANY:
        faults.append(f"--plot: {len(texts)} texts; a heat map takes {NOT_SO_MANY} at most")
    if not faults:
        for option, path in (("--output", output), ("--plot", plot)):
            if path is not None:
                faults += target_faults(path, option=option, overwrite=overwrite, is_file=True)
    return faults


def similarity(
    pipe: PolyheadPipeline, texts: Sequence[str], *, task: str | None = None, plot: Path | None
) -> dict[str, Any]:
    """Cosines of texts with each other.

    Args:
        pipe: the model and its tokenizer.
        texts: N, two or more.
        task: embedding task; may be left out where there is one.
        plot: .png to draw a heat map in.

    Returns:
        JSON-ready: `texts` and `similarity`, (N, N).

    Raises:
        UserError: there is no such embedding task.
    """
    matrix = _cosines(pipe, texts, None, task)
    if plot is not None:
        _draw(plot, matrix, texts, texts, "cosine of the embeddings")
    return {"texts": list(texts), SIMILARITY: np.round(matrix.astype(float), 6).tolist()}


def pair_similarity(
    load: Callable[[], PolyheadPipeline],
    source: Path,
    *,
    text: str = "text",
    text_pair: str = "text_pair",
    task: str | None = None,
    output: Path | None = None,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Cosine of the two texts of each row of a file.

    Args:
        load: gives the model and its tokenizer, once the file is known to be good.
        source: the file; see `read_texts`.
        text: column with the first texts.
        text_pair: column with the second texts; documents, where the task has two prompts.
        task: embedding task; may be left out where there is one.
        output: .csv, .tsv, .jsonl or .parquet for the pairs with a column `similarity`.
        plot: .png to draw every first text against every second one in.

    Returns:
        JSON-ready: `pairs`, a list of the two texts and their `similarity`.

    Raises:
        UserError: the file, a column or a task is wrong, or there are no rows.
    """
    rows = read_texts(source, {"--text": text, "--text-pair": text_pair}, {})
    if not len(rows):
        raise UserError(str(source), ["has no rows"])
    if plot is not None and len(rows) > NOT_SO_MANY:
        fault = f"--plot: {len(rows)} pairs; a heat map takes {NOT_SO_MANY} at most"
        raise UserError(str(source), [fault])
    if output is not None and SIMILARITY in (text, text_pair):
        raise UserError(
            str(source), [f"--output would have two columns {SIMILARITY!r}; rename one"]
        )
    firsts, seconds, pipe = list(rows[text]), list(rows[text_pair]), load()
    if plot is not None:
        matrix = _cosines(pipe, firsts, seconds, task)
        values = matrix.diagonal()
        _draw(plot, matrix, firsts, seconds, "cosine of first (rows) and second texts")
    else:
        values = _pair_cosines(pipe, firsts, seconds, task)
    if output is not None:
        columns = {text: firsts, text_pair: seconds, SIMILARITY: pa.array(values, pa.float32())}
        write_rows(output, pa.table(columns))
    return {
        "pairs": [
            {text: one, text_pair: other, SIMILARITY: round(float(value), 6)}
            for one, other, value in zip(firsts, seconds, values, strict=True)
        ]
    }


def _cosines(
    pipe: PolyheadPipeline, texts: Sequence[str], others: Sequence[str] | None, task: str | None
) -> np.ndarray:
    try:
        return pipe.similarity(texts, others, task=task).numpy()
    except ValueError as error:
        raise UserError("--task", [str(error)]) from error


def _pair_cosines(
    pipe: PolyheadPipeline, firsts: Sequence[str], seconds: Sequence[str], task: str | None
) -> np.ndarray:
    """(N,) without the (N, N) of all with all: stretches of pairs, one after the other."""
    size = 256
    parts = [
        _cosines(pipe, firsts[first : first + size], seconds[first : first + size], task).diagonal()
        for first in range(0, len(firsts), size)
    ]
    return np.concatenate(parts)


def _draw(
    plot: Path, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str
) -> None:
    def make(_: dict[str, Any]) -> Figure:
        sides = [0.42 * count + 2.6 for count in matrix.shape]
        figure = Figure(
            figsize=(max(4.0, sides[1] + 0.8), max(3.6, sides[0])), layout="constrained"
        )
        axes = figure.subplots()
        image = heat_map(axes, matrix, rows, columns)
        figure.colorbar(image, ax=axes, shrink=0.7).set_label("cosine")
        figure.suptitle(drawn(title))
        return figure

    figures.draw(plot.parent, {plot.stem: make}, [plot.stem], {})
