"""Any data file as rows: parquet, CSV, TSV, JSON Lines; the one reader of all commands.

What is in a file comes out as it was: cells of CSV are text (`delimited.py`), values of JSON what
Python's `json` makes of them (`jsonlines.py`), parquet has types of its own. Rows go through an
Arrow file that is mapped into memory and has no name any more once it is: memory does not grow with
the file, and no later call reads what an earlier one has made of another file.
"""

import glob
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import datasets.table
import pyarrow as pa
import pyarrow.parquet as pq

from .delimited import delimited_tables
from .jsonlines import JSON, JsonText, KindsChanged, json_tables
from .text_files import PACKED_ENDINGS

ENDINGS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json", ".tsv": "tsv"}
PARQUET_ROWS = 2048  # in memory at once


def ending(name: str | Path) -> str:
    """The ending that tells what a file holds: `.csv` of `rows.csv.gz` too."""
    text = str(name)
    for packed in PACKED_ENDINGS:
        text = text.removesuffix(packed)
    return Path(text).suffix


def find_files(name: str) -> list[Path]:
    """The file of exactly this name, or else those that it is a pattern of, in order.

    Raises:
        ValueError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        raise ValueError(f"{name} is a folder; name its files, as {path / '*.csv'}")
    files = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(f"there is no file {name}")
    return files


def open_files(files: Sequence[Path], kinds: Sequence[str]) -> datasets.Dataset:
    """The rows of some files, one after the other.

    Args:
        files: one or more.
        kinds: values of `ENDINGS`, one for each.

    Raises:
        OSError: a file cannot be read.
        ValueError: its rows cannot be read as they are, or files have other columns than the first;
            with file and line.
    """
    types: dict[str, pa.DataType] = {}
    if set(kinds) == {"json"}:
        tables: Callable[[], Iterable[pa.Table]] = partial(json_tables, files, types)
    elif set(kinds) == {"parquet"}:
        tables = partial(_parquet_tables, files)
    elif "json" in kinds or "parquet" in kinds:
        raise ValueError(f"{files[0]} and others are of several kinds; give one kind")
    else:
        tables = partial(_cell_tables, files, kinds)
    while True:
        try:
            table = _through_file(tables())
            break
        except KindsChanged:
            continue
    return rows_of_table(table, {name for name, kind in types.items() if kind == JSON})


def rows_of_table(table: pa.Table, json_columns: set[str]) -> datasets.Dataset:
    """A table as rows, of which some columns hold JSON text."""
    features: Any = datasets.Features.from_arrow_schema(table.schema)
    for name in json_columns:
        features[name] = JsonText()
    rows = datasets.table.InMemoryTable(table)
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(rows, info=info, fingerprint=os.urandom(8).hex())


def with_column(
    rows: datasets.Dataset, column: str, values: list, feature: Any
) -> datasets.Dataset:
    """The rows with one more column, or another one of the name; values are not hashed.

    Args:
        rows: the rows.
        column: name of the column.
        values: of it, one for each row.
        feature: its type, of `datasets`.
    """
    if rows.column_names == [column]:  # nothing else would say how many rows there are
        features = datasets.Features({column: feature})
        return datasets.Dataset.from_dict({column: values}, features=features)
    if column in rows.column_names:
        rows = rows.remove_columns(column)
    return rows.add_column(column, values, new_fingerprint=os.urandom(8).hex(), feature=feature)


def _through_file(tables: Iterable[pa.Table]) -> pa.Table:
    """All tables as one, mapped from a file without a name."""
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(".arrow", "polyhead-", folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            rest = iter(tables)
            first = next(rest)
            with pa.ipc.new_stream(file, first.schema) as writer:
                writer.write_table(first)
                for table in rest:
                    writer.write_table(table)
        return pa.ipc.open_stream(pa.memory_map(name)).read_all()
    finally:
        os.unlink(name)


def _cell_tables(files: Sequence[Path], kinds: Sequence[str]) -> Iterator[pa.Table]:
    names = None
    for file, kind in zip(files, kinds, strict=True):
        for table in delimited_tables(file, "\t" if kind == "tsv" else ","):
            names = names or table.column_names
            _check_columns(files[0], names, file, table.column_names)
            yield table.select(names)


def _parquet_tables(files: Sequence[Path]) -> Iterator[pa.Table]:
    schemas = [_plain(pq.read_schema(file)) for file in files]
    for file, schema in zip(files, schemas, strict=True):
        if twice := [name for name in schema.names if schema.names.count(name) > 1]:
            raise ValueError(f"{file.name}: column {twice[0]!r} stands twice")
        _check_columns(files[0], schemas[0].names, file, schema.names)
    schema = schemas[0]
    for file, other in zip(files[1:], schemas[1:], strict=True):
        schema = _merged(files[0], schema, file, other)
    yield schema.empty_table()
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                table = pa.Table.from_batches([batch]).select(schema.names)
                yield table.cast(schema)


def _merged(first: Path, schema: pa.Schema, file: Path, other: pa.Schema) -> pa.Schema:
    """A schema for the values of both that changes none: wider integers, but none as fractions."""
    meant, also = map(datasets.Features.from_arrow_schema, (schema, other))
    for name in schema.names:
        if meant[name] != also[name] and "ClassLabel" in f"{meant[name]}{also[name]}":
            raise ValueError(
                f"{file.name}: column {name!r} is {also[name]}, but in {first.name} "
                f"{meant[name]}; write the names of the classes instead of ids"
            )
        types = [part.field(name).type for part in (schema, other)]
        try:
            one = [pa.schema([(name, kind)]) for kind in types]
            merged = pa.unify_schemas(one, promote_options="permissive").field(name).type
            safe = len({_floats(kind) for kind in (*types, merged) if not pa.types.is_null(kind)})
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            merged, safe = None, 0
        if merged is None or safe > 1:
            raise ValueError(
                f"{file.name}: column {name!r} is of type {types[1]}, but in {first.name} "
                f"{types[0]}; write both as one type"
            )
        number = schema.get_field_index(name)
        schema = schema.set(number, schema.field(number).with_type(merged))
    return schema


def _floats(kind: pa.DataType) -> int:
    return len(re.findall("halffloat|float|double", str(kind)))


def _plain(schema: pa.Schema) -> pa.Schema:
    """The schema with dictionary-encoded columns as their values."""
    for number, part in enumerate(schema):
        if pa.types.is_dictionary(part.type):
            schema = schema.set(number, part.with_type(part.type.value_type))
    return schema


def _check_columns(first: Path, names: list[str], other: Path, columns: list[str]) -> None:
    if sorted(names) != sorted(columns):
        raise ValueError(
            f"{other.name} has the columns {', '.join(columns)}, but {first.name} has "
            f"{', '.join(names)}"
        )
