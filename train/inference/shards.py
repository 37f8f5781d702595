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
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..artifacts import put_in_place, read_json, write_json
from ..data.loading import reason
from ..errors import UserError

GROUP = 16 * 2**20  # bytes of a row group of the joined parquet file


class OutputParts:
    """The finished shards of one output.

    Args:
        target: the file they will make: .parquet, .csv, .jsonl or .json (lines too).
        plan: what they are made of, as JSON keeps it; `rows` and `shard` (rows of each) at least.
        schema: of the output.
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
        held: list[pa.Table] = []
        for table in tables:
            held.append(table)
            if sum(one.nbytes for one in held) >= GROUP:
                writer.write_table(pa.concat_tables(held))
                held = []
        if held:
            writer.write_table(pa.concat_tables(held))


def _write_lines(path: Path, tables: Iterable[pa.Table], _: pa.Schema) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            for row in table.to_pylist():  # dates and the like as text
                file.write(f"{json.dumps(row, ensure_ascii=False, default=str)}\n")


def _write_csv(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    kinds = [_csv_type(kind) for kind in schema.types]
    flat = pa.schema(list(zip(schema.names, kinds, strict=True)))
    with pyarrow.csv.CSVWriter(path, flat) as writer:
        for table in tables:
            columns = [
                column if column.type == kind else pa.array(map(_cell, column.to_pylist()), kind)
                for column, kind in zip(table.columns, kinds, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=flat))


WRITERS: dict[str, Callable[[Path, Iterable[pa.Table], pa.Schema], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_lines,
    ".json": _write_lines,
}


def _csv_type(kind: pa.DataType) -> pa.DataType:
    """The type itself where CSV has room for it; else its values are written as text."""
    is_type = pa.types
    own = is_type.is_string, is_type.is_large_string, is_type.is_integer, is_type.is_floating
    return kind if any(fits(kind) for fits in own) else pa.string()


def _cell(value: Any) -> str | None:
    """JSON of lists and dicts; anything else as Python shows it."""
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return None if value is None else str(value)
