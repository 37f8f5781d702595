"""Files in, files out: `polyhead predict --input` over parquet, CSV or JSONL."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import datasets.exceptions
import numpy as np

from ..modeling.pipeline_polyhead import PolyheadPipeline
from .data import reason
from .errors import RecipeError

READERS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json"}
CHUNK = 1024  # rows read, predicted and handed on together


def predict_file(
    pipe: PolyheadPipeline,
    source: Path,
    target: Path,
    *,
    tasks: list[str] | None,
    text: str = "text",
    text_pair: str | None = None,
    batch_size: int = 32,
    document: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Predict for every row of a file; the output holds its columns and one per task.

    Args:
        pipe: the model and its tokenizer.
        source: .parquet, .csv or .jsonl.
        target: the same kinds; in CSV lists and dicts are written as JSON. Appears when complete.
        tasks: names; None for every task that reads what is given.
        text: column with the texts.
        text_pair: column with the second texts, for pair tasks.
        batch_size: texts in one encoder pass.
        document: the texts are documents, not queries; see `PolyheadPipeline`.
        progress: called with rows done and rows in all.

    Returns:
        number of rows.

    Raises:
        RecipeError: a file kind or a column is wrong, a text is missing; nothing is written then.
    """
    rows = _read(source, target, text, text_pair)
    taken = [name for name in tasks or pipe.model.task_names if name in rows.column_names]
    if taken:
        raise RecipeError(
            str(source),
            [
                f"column {name!r} has the name of a task, whose answers would replace it; rename "
                "the column, or choose other --tasks"
                for name in taken
            ],
        )

    def results() -> Iterator[dict[str, Any]]:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            texts = chunk[text]
            if text_pair is not None:
                texts = list(zip(texts, chunk[text_pair], strict=True))
            answers = pipe(texts, tasks, batch_size=batch_size, document=document)
            for i, answer in enumerate(answers):
                yield {**{key: chunk[key][i] for key in chunk}, **plain(answer)}
            progress(min(start + CHUNK, len(rows)), len(rows))

    aside = target.with_name(f".{target.name}.part{target.suffix}")
    found = list(results())
    if target.suffix == ".parquet":
        datasets.Dataset.from_list(found).to_parquet(aside)
    elif target.suffix == ".csv":
        flat = [{k: _cell(v) for k, v in row.items()} for row in found]
        datasets.Dataset.from_list(flat).to_csv(aside, index=False)
    else:
        lines = (json.dumps(row, ensure_ascii=False) for row in found)
        aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    aside.replace(target)
    return len(found)


def _read(source: Path, target: Path, text: str, text_pair: str | None) -> datasets.Dataset:
    faults = []
    for what, path in (("--input", source), ("--output", target)):
        if path.suffix not in READERS:
            faults.append(f"{what}: {path.name}: allowed endings: {', '.join(READERS)}")
    if not source.is_file():
        faults.append(f"--input: there is no file {source}")
    if not target.parent.is_dir():
        faults.append(f"--output: there is no folder {target.parent}")
    if faults:
        raise RecipeError("predict", faults)
    try:
        rows = datasets.load_dataset(READERS[source.suffix], data_files=str(source), split="train")
    except (datasets.exceptions.DatasetsError, ValueError, OSError, StopIteration) as error:
        raise RecipeError(str(source), [f"cannot be read: {reason(error)}"]) from error
    assert isinstance(rows, datasets.Dataset)
    faults = _column_faults(rows, text, "--text")
    if text_pair is not None:
        faults += _column_faults(rows, text_pair, "--text-pair")
    if faults:
        raise RecipeError(str(source), faults)
    return rows


def _column_faults(rows: datasets.Dataset, column: str, option: str) -> list[str]:
    if column not in rows.column_names:
        names = ", ".join(rows.column_names)
        return [f"{option}: no column {column!r}; the file has: {names}"]
    bad = [i for i, value in enumerate(rows[:][column]) if not isinstance(value, str)]
    if bad:
        return [f"{option}: column {column!r}: no text in row {bad[0]} ({len(bad)} rows)"]
    return []


def plain(value: Any) -> Any:
    """Vectors as lists, for JSON and parquet."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
