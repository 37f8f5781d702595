"""Many texts at once, as HTML: a heat map of how alike they are, and a map of them by label."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...modeling.pipeline_polyhead import PolyheadPipeline
from ..errors import UserError
from ..inference.files import read_texts
from ..inference.vectors import text_vectors
from ..reports.projection import project
from ..reports.text_map import map_page, marks_of
from .markup import escaped, framed, heat_table, section, table

MOST_COMPARED = 40
MOST_ON_A_MAP = 2000
LABELS_SHOWN = 20


def compare(pipe: PolyheadPipeline, lines: str, task: str) -> str:
    """Cosines of texts with each other, as a heat map.

    Args:
        pipe: the model.
        lines: a text on each line; empty lines are left out.
        task: an embedding task.

    Raises:
        ValueError: there are fewer than two texts, or too many.
    """
    texts = texts_of(lines)
    if not 2 <= len(texts) <= MOST_COMPARED:
        raise ValueError(f"{len(texts)} texts; type 2 to {MOST_COMPARED}, each on a line")
    matrix = pipe.similarity(texts, task=task).numpy()
    best = np.where(np.eye(len(texts), dtype=bool), -2, matrix)
    one, other = sorted(divmod(int(best.argmax()), len(texts)))
    said = (
        f"<p>Most alike, {matrix[one, other]:.3f}: <q>{escaped(texts[one])}</q> and "
        f"<q>{escaped(texts[other])}</q></p>"
    )
    return section(task, "cosine of the embeddings", heat_table(matrix, texts) + said)


def draw_map(
    pipe: PolyheadPipeline,
    lines: str,
    file: str | None,
    *,
    column: str = "text",
    task: str | None = None,
    color: str | None = None,
    method: str = "pca",
) -> str:
    """Texts on a plane, near where they mean the same, coloured by what a task says of them.

    Args:
        pipe: the model.
        lines: a text on each line; empty lines are left out.
        file: .csv, .tsv, .jsonl, .parquet, or .txt with a text on each line; instead of `lines`.
        column: of the file, with the texts.
        task: embedding task; None where the model has none: the encoder's own vectors.
        color: task over whole texts whose answers colour the points; None for one colour.
        method: of `projection.METHODS`.

    Raises:
        ValueError: both or none of the two are there, the file has no such column, or there are too
            few texts or too many.
    """
    if file is not None and lines.strip():
        raise ValueError("there are texts and a file; take one of them out")
    texts = texts_of(lines) if file is None else _texts_in(Path(file), column)
    if not texts:
        raise ValueError("there are no texts; type some, each on a line, or upload a file")
    if len(texts) > MOST_ON_A_MAP:
        raise ValueError(
            f"{len(texts):,} texts; the page draws {MOST_ON_A_MAP:,} at most, polyhead map more"
        )
    shown = project(text_vectors(pipe, texts, task), method)
    labels = None if color is None else _labels(pipe, texts, color)
    marks = marks_of(labels, len(texts), color or "")
    page = map_page([shown], marks, texts, "Map of the texts")
    return framed(page, "Map of the texts") + _counted(labels, color)


def texts_of(lines: str) -> list[str]:
    """The lines that are not empty."""
    return [line.strip() for line in lines.splitlines() if line.strip()]


def _texts_in(file: Path, column: str) -> list[str]:
    if file.suffix.lower() == ".txt":
        try:
            return texts_of(file.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError("file", ["is not UTF-8; save it as UTF-8"]) from error
    return list(read_texts(file, {"column": column}, {})[column])


def _labels(pipe: PolyheadPipeline, texts: list[str], task: str) -> list[Any]:
    """What a task says of each text, as one value."""
    answers: Any = pipe(texts, [task])
    return [_label(answer[task]) for answer in answers]


def _label(answer: Any) -> Any:
    if isinstance(answer, list):
        return ", ".join(sorted(entry["label"] for entry in answer)) or None
    return answer.get("label", answer["score"])


def _counted(labels: Sequence[Any] | None, color: str | None) -> str:
    """How many texts have each label; the numbers of a regression are not counted."""
    if labels is None or color is None or any(isinstance(label, float) for label in labels):
        return ""
    counts = Counter("no label" if label is None else str(label) for label in labels)
    rows = [(escaped(label), f"{count:,}") for label, count in counts.most_common(LABELS_SHOWN)]
    about = f"{len(labels):,} texts, {len(counts)} labels"
    return section(color, about, table(("label", "texts"), rows))
