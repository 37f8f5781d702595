"""Files in, files out: `polyhead predict --input` over parquet, CSV or JSONL of any size.

Rows are cut in shards of `SHARD`; each is read from a memory-mapped Arrow file, predicted by one
call of the pipeline and kept by `OutputParts`, so memory does not grow with the number of rows, a
call goes on after the shards that an earlier one has finished, and several processes share them.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute

from ...modeling.pipeline_polyhead import PolyheadPipeline
from ...modeling.router import AUTO
from ..data.jsonlines import JsonText
from ..data.loading import reason
from ..data.source import ENDINGS, ending, open_files
from ..distributed import Ranks
from ..errors import UserError
from ..kinds import kind_of
from ..kinds.values import is_text
from .shards import JSON_TEXT, OutputParts, holds_json

logger = logging.getLogger(__name__)
pc: Any = pyarrow.compute  # its functions are made at import, unseen by a type checker
SHARD = 2048  # rows
SIZES = ("batch_tokens", "batch_size")  # smaller ones may go on where memory was short
LISTS = (datasets.List, datasets.LargeList)
FORMAT = 2  # of a shard; another one cannot go on with it
WEIGHTS = (".safetensors", ".json", ".onnx", ".data", ".xml", ".bin")


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """What to predict.

    Args:
        model: folder or Hub id that the pipeline's model was loaded from.
        source: .parquet, .csv, .tsv or .jsonl; or a folder whose .parquet files are read in name
            order. Its values come out as they are in the file; cells of CSV are text.
        target: a file of the same kinds; in CSV lists and dicts are written as JSON. Appears when
            complete.
        tasks: names; of the columns that are written.
        text: column with the texts.
        text_pair: column with the second texts, for pair tasks; with lists of them, for tasks that
            choose.
        options: further arguments of the pipeline's call.
        auto: the router finds which of the tasks a text is for; the other columns are null then.
    """

    model: str
    source: Path
    target: Path
    tasks: list[str]
    text: str
    text_pair: str | None
    options: dict[str, Any]
    auto: bool = False


def predict_file(
    pipe: PolyheadPipeline,
    job: FileJob,
    *,
    ranks: Ranks,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Predict for every row of a file; the output holds its columns and one per task.

    Args:
        pipe: the model and its tokenizer.
        job: what to predict.
        ranks: the processes that share the work.
        progress: called with rows done, as far as this process knows, and rows in all.

    Returns:
        number of rows.

    Raises:
        UserError: a file kind or a column is wrong, a text is missing, or shards of another call
            are there, and nothing is written; or the disk is full.
    """
    reads = pipe.model.config.tasks[job.tasks[0]].reads
    rows = ranks.together(lambda: _read(job, choices=reads == "choices"))
    schema = _schema(rows, answer_features(pipe, job.tasks, auto=job.auto))
    parts = OutputParts(job.target, _plan(pipe, job, rows), schema)
    ranks.together(parts.claim if ranks.is_first else parts.find)
    logger.info(f"compute: {pipe.model.compute.reason}")
    shards = parts.finished()
    if shards:
        logger.info(f"{len(shards)} of {parts.count} shards were there")
    progress(parts.finished_rows(), len(rows))
    table = rows.with_format("arrow")
    for number in range(ranks.rank, parts.count, ranks.count):
        if number not in shards:
            rows_of_shard: Any = table[number * SHARD : (number + 1) * SHARD]
            parts.write(number, _answered(pipe, job, rows_of_shard, schema))
            progress(parts.finished_rows(), len(rows))
    ranks.wait()
    if ranks.is_first:
        parts.join()
    return len(rows)


def _schema(rows: datasets.Dataset, answers: datasets.Features) -> pa.Schema:
    """Of the output; columns that hold JSON texts are strings to all other readers."""
    texts = {name for name, kind in rows.features.items() if isinstance(kind, JsonText)}
    columns = {n: datasets.Value("string") if n in texts else f for n, f in rows.features.items()}
    schema = datasets.Features({**columns, **answers}).arrow_schema
    for name in texts:
        number = schema.get_field_index(name)
        schema = schema.set(number, schema.field(number).with_metadata(JSON_TEXT))
    return schema


def answer_features(
    pipe: PolyheadPipeline, tasks: Sequence[str], *, auto: bool = False
) -> datasets.Features:
    """The columns that the pipeline's answers make: the same for every shard, even an empty one.

    Args:
        pipe: the model and its tokenizer.
        tasks: names.
        auto: the first of them is the router, which finds the others.
    """
    features = {n: kind_of(pipe.model.config.tasks[n]).feature() for n in tasks}
    if auto:
        router, *others = tasks
        scores = {name: datasets.Value("float64") for name in others}
        features[router] = {"tasks": datasets.List(datasets.Value("string")), "scores": scores}
    return datasets.Features(features)


def _answered(pipe: PolyheadPipeline, job: FileJob, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows of one shard with their answers."""
    texts = _texts(rows, job.text, schema)
    if job.text_pair is not None:
        texts = list(zip(texts, _texts(rows, job.text_pair, schema), strict=True))
    answers: Any = pipe(texts, AUTO if job.auto else job.tasks, **job.options)
    columns = answer_columns(answers, [schema.field(name) for name in job.tasks])
    return pa.Table.from_arrays([*rows.columns, *columns], schema=schema)


def answer_columns(answers: list[dict[str, Any]], fields: Iterable[pa.Field]) -> list[pa.Array]:
    """The pipeline's answers as columns, one for each of these fields of `answer_features`."""
    return [
        pa.array([answer.get(field.name) for answer in answers], field.type) for field in fields
    ]


def _texts(rows: pa.Table, column: str, schema: pa.Schema) -> list[str]:
    texts = rows.column(column).to_pylist()
    return list(map(json.loads, texts)) if holds_json(schema.field(column)) else texts


def _plan(pipe: PolyheadPipeline, job: FileJob, rows: datasets.Dataset) -> dict[str, Any]:
    """All that decides what a shard holds but for rounding, as JSON keeps it."""
    folder = Path(job.model)
    if folder.is_dir():
        model = _stamps(p for p in sorted(folder.rglob("*")) if p.suffix in WEIGHTS)
    else:
        model = {job.model: pipe.model.config._commit_hash}
    return {
        "format": FORMAT,
        "model": model,
        "input": _stamps(_files(job.source)),
        "rows": len(rows),
        "columns": rows.column_names,
        "tasks": job.tasks,
        **({"auto": True} if job.auto else {}),
        "text": job.text,
        "text_pair": job.text_pair,
        "compute": pipe.model.compute.mode,
        **{key: value for key, value in job.options.items() if key not in SIZES},
        "shard": SHARD,
    }


def _stamps(paths: Iterable[Path]) -> dict[str, str]:
    """What tells a changed file; a time stamp may stay when a file is replaced."""
    stamps = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:16]
        stat = path.stat()
        stamps[str(path.resolve())] = (
            f"{stat.st_size} bytes of {datetime.fromtimestamp(stat.st_mtime, UTC)}, {digest}"
        )
    return stamps


# ---- reading ----


def _files(source: Path) -> list[Path]:
    return sorted(source.glob("[!.]*.parquet")) if source.is_dir() else [source]


def _read(job: FileJob, *, choices: bool) -> datasets.Dataset:
    faults = path_faults(job.source, job.target)
    if faults:
        raise UserError("predict", faults)
    rows = _load(job.source)
    faults = table_faults(
        rows, job.tasks, job.text, job.text_pair, choices=choices, option="--{}".format
    )
    if job.target.suffix != ".parquet":
        faults += [
            f"--output: column {part.name!r} holds bytes ({part.type}), which {job.target.suffix} "
            "cannot hold; write .parquet"
            for part in rows.data.schema
            if "binary" in str(part.type)
        ]
    if faults:
        raise UserError(str(job.source), faults)
    return rows


def table_faults(
    rows: datasets.Dataset,
    tasks: list[str],
    text: str,
    text_pair: str | None,
    *,
    choices: bool,
    option: Callable[[str], str] = str,
) -> list[str]:
    """What keeps the tasks from reading these columns, or their answers from standing beside them.

    Args:
        rows: their columns are looked at.
        tasks: names.
        text: column with the texts.
        text_pair: column with the second texts, or None.
        choices: the second texts are lists to choose from.
        option: name of an argument -> how the user types it.
    """
    faults = _column_faults(rows, text, option("text"))
    if text_pair is not None:
        check = _choice_faults if choices else _column_faults
        faults += check(rows, text_pair, option("text-pair"))
    return faults + [
        f"column {name!r} has the name of a task, whose answers would replace it; rename the "
        f"column, or choose other {option('tasks')}"
        for name in tasks
        if name in rows.column_names
    ]


def source_faults(source: Path) -> list[str]:
    """What is wrong with the name of a file to read, before it is opened."""
    if source.is_dir():
        there = bool(_files(source))
        return [] if there else [f"--input: there is no .parquet file in folder {source}"]
    if ending(source) not in ENDINGS:
        allowed = f"allowed endings: {', '.join(ENDINGS)}"
        return [f"--input: {source.name}: {allowed}; or give a folder of .parquet files"]
    return [] if source.is_file() else [f"--input: there is no file {source}"]


def path_faults(source: Path, target: Path) -> list[str]:
    """What is wrong with the names of a file to read and one to write, before either is opened."""
    faults, allowed = source_faults(source), f"allowed endings: {', '.join(ENDINGS)}"
    if target.suffix not in ENDINGS:
        faults.append(f"--output: {target.name}: {allowed}")
    if not target.parent.is_dir():
        faults.append(f"--output: there is no folder {target.parent}")
    if target.is_dir():
        faults.append(f"--output: {target} is a folder")
    if source.resolve() in (target.resolve(), target.resolve().parent):
        faults.append(f"--output: {target} would change what --input names; write it elsewhere")
    return faults


def read_texts(source: Path, texts: dict[str, str], others: dict[str, str]) -> datasets.Dataset:
    """The rows of a file that holds texts to look at, none of them empty.

    Args:
        source: .parquet, .csv, .tsv, .jsonl, or a folder of parquet files.
        texts: option of the command line to the column with texts that it names.
        others: the same of columns with anything else.

    Raises:
        UserError: there is no such file or column, or a text is missing or empty.
    """
    if faults := source_faults(source):
        raise UserError(str(source), faults)
    rows = _load(source)
    faults = []
    for option, column in texts.items():
        faults += _column_faults(rows, column, option) or _empty_faults(rows, column, option)
    names = ", ".join(rows.column_names)
    faults += [
        f"{option}: no column {column!r}; the file has: {names}"
        for option, column in others.items()
        if column not in rows.column_names
    ]
    if faults:
        raise UserError(str(source), faults)
    return rows


def _empty_faults(rows: datasets.Dataset, column: str, option: str) -> list[str]:
    empty = [row for row, text in enumerate(rows[column]) if not text.strip()]
    if not empty:
        return []
    return [f"{option}: column {column!r}: the text of row {empty[0]} is empty ({len(empty)} rows)"]


def _load(source: Path) -> datasets.Dataset:
    """Rows of all files, in order, mapped into memory."""
    files = _files(source)
    kind = "parquet" if source.is_dir() else ENDINGS[ending(source)]
    try:
        return open_files(files, [kind] * len(files))
    except (ValueError, OSError) as error:
        raise UserError(str(source), [f"cannot be read: {reason(error)}"]) from error


def _column_faults(rows: datasets.Dataset, column: str, option: str) -> list[str]:
    if column not in rows.column_names:
        names = ", ".join(rows.column_names)
        return [f"{option}: no column {column!r}; the file has: {names}"]
    first, count = 0, len(rows)
    if isinstance(rows.features[column], JsonText):  # texts beside other things
        bad = [row for row, value in enumerate(rows[column]) if not is_text(value)]
        first, count = (bad or [0])[0], len(bad)
    elif pa.types.is_string(kind := rows.data.column(column).type) or pa.types.is_large_string(
        kind
    ):
        values = rows.data.column(column)
        count = values.null_count
        if count:
            first = pc.index(pc.is_null(values), True).as_py()
    if not count:
        return []
    fault = f"{option}: column {column!r}: no text in row {first} ({count} rows)"
    if isinstance(rows.features[column], LISTS):
        fault += ", but a list; name with --tasks those that choose between texts"
    return [fault]


def _choice_faults(rows: datasets.Dataset, column: str, option: str) -> list[str]:
    """Rows without a list of texts to choose from."""
    if column not in rows.column_names:
        return _column_faults(rows, column, option)
    feature = rows.features[column]
    if not isinstance(feature, (JsonText, *LISTS)):
        return [
            f"{option}: column {column!r} has no lists of texts to choose from (CSV has none; use "
            "JSON Lines or parquet)"
        ]
    bad, first = 0, 0
    for start in range(0, len(rows), SHARD):
        for row, value in enumerate(rows[start : start + SHARD][column], start):
            if not (isinstance(value, list) and value and all(map(is_text, value))):
                bad, first = bad + 1, first if bad else row
    if not bad:
        return []
    return [f"{option}: column {column!r}: no list of texts in row {first} ({bad} rows)"]


def plain(value: Any) -> Any:
    """Vectors as lists, for JSON."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
