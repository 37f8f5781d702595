"""Finished shards of an output that is being made, kept until the last one is there.

`.<name>.parts` beside the target holds `plan.json`, which says what the shards were made of, and a
parquet file for each finished shard. Every file is written aside, through to the disk, and renamed:
what is there is whole, and a process killed at any moment loses the shards it was at.
It costs the output's room twice while the shards are joined, and the memory of `GROUP` bytes.
"""

import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..artifacts import put_in_place, read_json, write_aside, write_json
from ..data.loading import reason
from ..errors import UserError
from ..kinds.values import is_text

JSON_TEXT = {b"polyhead": b"json"}  # metadata of a column of JSON texts
GROUP = 16 * 2**20  # bytes of a row group of the joined parquet file


class OutputParts:
    """The finished shards of one output.

    Args:
        target: the file they will make: .parquet, .csv, .jsonl or .json (lines too).
        plan: what they are made of, as JSON keeps it; `rows` and `shard` (rows of each) at least.
        schema: schema of the output.
    """

    def __init__(self, target: Path, plan: dict[str, Any], schema: pa.Schema) -> None:
        self.target = target
        self.plan = plan
        self.schema = schema
        self.folder = target.with_name(f".{target.name}.parts")
        self.rows, self.size = plan["rows"], plan["shard"]
        self.count = -(-self.rows // self.size)

    def claim(self) -> None:
        """Make the folder, or go on with that of an earlier call.

        Raises:
            UserError: the shards there belong to another plan, or no folder can be made.
        """
        if self.folder.is_dir():
            changes = _changes(read_json(self.folder / "plan.json", {}), self.plan)
            if changes:
                fault = (
                    f"holds finished shards of another call; {'; '.join(changes)}. Finish it "
                    "with the old options and files, or delete the folder"
                )
                raise UserError(str(self.folder), [fault])
            return
        new, joined = (self.folder.with_name(f"{self.folder.name}.{x}") for x in ("new", "joined"))
        try:
            shutil.rmtree(joined, ignore_errors=True)  # of a call killed at its very end
            write_json(new / "plan.json", self.plan)
            put_in_place(new, self.folder)
        except OSError as error:
            raise UserError(str(self.folder), [f"cannot be made: {reason(error)}"]) from error

    def find(self) -> None:
        """Check that what the first rank claimed is the folder that this rank sees.

        Raises:
            UserError: it is not, or the input is another.
        """
        stored = read_json(self.folder / "plan.json", {})
        if stored.get("rows") != self.rows:
            fault = (
                f"on machine {platform.node()}: {stored.get('rows', 'no')} rows planned, "
                f"{self.rows} in the input; all machines have to share the folders of --input and "
                "--output"
            )
            raise UserError(str(self.folder), [fault])

    def finished(self) -> set[int]:
        """Numbers of the shards that are there."""
        names = (re.fullmatch(r"(\d+)\.parquet", name) for name in os.listdir(self.folder))
        return {int(match[1]) for match in names if match}

    def finished_rows(self) -> int:
        """Number of rows in the shards that are there."""
        return sum(min(self.size, self.rows - n * self.size) for n in self.finished())

    def write(self, number: int, table: pa.Table) -> None:
        """Keep one shard.

        Raises:
            UserError: the disk is full, or writing failed otherwise.
        """
        aside = self.folder / f"{number:05d}-{os.getpid()}"
        try:
            pq.write_table(table, aside)
            put_in_place(aside, self._path(number))
        except OSError as error:
            raise UserError(str(aside), [_unwritten(error)]) from error

    def join(self) -> None:
        """Write the target from all shards, in order, and remove them.

        Raises:
            UserError: the disk is full, or writing failed otherwise.
        """
        aside = self.folder / f"joined-{os.getpid()}"
        try:
            WRITERS[self.target.suffix](aside, self._tables(), self.schema)
            put_in_place(aside, self.target)
            # renamed first: half of the shards would look as if the other half were to be made
            joined = self.folder.rename(self.folder.with_name(f"{self.folder.name}.joined"))
            shutil.rmtree(joined)
        except OSError as error:
            raise UserError(str(self.target), [_unwritten(error)]) from error

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.parquet"

    def _tables(self) -> Iterator[pa.Table]:
        for number in range(self.count):
            with pq.ParquetFile(self._path(number)) as file:
                yield file.read().cast(self.schema)


def _unwritten(error: OSError) -> str:
    return f"{reason(error)}; finished shards stay, the same command goes on after them"


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each key that differs; of files, for the first that does."""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        what = key
        if isinstance(before, dict) and isinstance(now, dict):
            name = next(n for n in [*before, *now] if before.get(n) != now.get(n))
            what, before, now = f"{key} {name}", before.get(name), now.get(name)
        lines.append(f"{what} was {json.dumps(before)}, is {json.dumps(now)}")
    return lines


# ---- writing tables one after the other ----


def _write_parquet(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        group: list[pa.Table] = []
        for table in tables:
            group.append(table)
            if sum(one.nbytes for one in group) >= GROUP:
                writer.write_table(pa.concat_tables(group))
                group = []
        if group:
            writer.write_table(pa.concat_tables(group))


def _write_lines(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    texts = [part.name for part in schema if holds_json(part)]
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            for row in table.to_pylist():  # dates and the like as text
                row |= {name: json.loads(row[name]) for name in texts if row[name] is not None}
                line = json.dumps(row, ensure_ascii=False, default=str)
                if not is_text(line):  # half a surrogate pair has no other form
                    line = json.dumps(row, ensure_ascii=True, default=str)
                file.write(f"{line}\n")


def holds_json(field: pa.Field) -> bool:
    """The strings of a column are JSON texts of its values."""
    return (field.metadata or {}).items() >= JSON_TEXT.items()


def _write_csv(
    path: Path, tables: Iterable[pa.Table], schema: pa.Schema, separator: str = ","
) -> None:
    """As `csv` writes; it alone can tell an empty string from a missing one, by quotes."""
    special = re.compile(f'[{separator}"\r\n]')

    def cell(value: str | None) -> str:
        if value is None:
            return ""
        if value and not special.search(value):
            return value
        return '"' + value.replace('"', '""') + '"'

    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(separator.join(map(cell, schema.names)) + "\n")
        for table in tables:
            columns = [map(cell, _cells(*pair)) for pair in zip(table.columns, schema, strict=True)]
            for row in zip(*columns, strict=True):
                # a blank line would be no row
                file.write((separator.join(row) or '""') + "\n")


WRITERS: dict[str, Callable[[Path, Iterable[pa.Table], pa.Schema], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".tsv": partial(_write_csv, separator="\t"),
    ".jsonl": _write_lines,
    ".json": _write_lines,
}


def write_rows(target: Path, table: pa.Table) -> None:
    """Write a small table whole, in the format that the target's ending names.

    Raises:
        UserError: it could not be written.
    """
    with write_aside(target) as aside:
        WRITERS[target.suffix](aside, [table], table.schema)


def _cells(column: pa.ChunkedArray, field: pa.Field) -> list[str | None]:
    """Text of the values: JSON of lists and dicts, numbers as Arrow prints them, else as Python."""
    if holds_json(field):
        values = (None if text is None else json.loads(text) for text in column.to_pylist())
        texts = zip(values, column.to_pylist(), strict=True)
        return [value if isinstance(value, str) else text for value, text in texts]
    kind = field.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.cast(pa.string()).to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.to_pylist()
    return [_cell(value) for value in column.to_pylist()]


def _cell(value: Any) -> str | None:
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return None if value is None else str(value)
