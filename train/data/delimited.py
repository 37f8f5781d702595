"""CSV and TSV as Python's `csv` reads them: every cell is text, an empty one is missing.

A file in which a column could be taken for another, or a row be swallowed by a quote, is refused
with the line. 100 MB take some 3 s and the memory of a chunk.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from .text_files import lines_of

CHUNK = 4096  # rows
FIELD_LIMIT = 2**31 - 1  # characters; the 128 KiB of `csv` are less than a long text has
FEW = 200  # different values of a column that may hold labels
SHOWN = 3


@dataclass(slots=True)
class _Record:
    """One row: its cells, its first and last line, and the lines themselves where it has more."""

    cells: list[str]
    begin: int
    end: int
    lines: list[str]


@dataclass
class _Widths:
    """Rows that have more or fewer fields than the header."""

    header: int
    odd: int = 0
    first: list[_Record] = field(default_factory=list)
    lengths: set[int] = field(default_factory=set)
    empty: bool = True

    def add(self, record: _Record) -> None:
        cells = record.cells
        self.odd += 1
        self.lengths.add(len(cells))
        self.empty = self.empty and len(cells) > self.header and not any(cells[self.header :])
        if len(self.first) < SHOWN:
            self.first.append(record)

    def fault(self, rows: int) -> str | None:
        """A fault; but commas too many at the end of every row, as spreadsheets write, are none."""
        if not self.odd or (self.odd == rows and self.empty and len(self.lengths) == 1):
            return None
        lines = ", ".join(str(record.begin) for record in self.first)
        more = f" and {self.odd - len(self.first)} more" if self.odd > len(self.first) else ""
        one = self.first[0]
        return (
            f"line {lines}{more}: {len(one.cells)} fields, but the header has {self.header}: "
            f"{one.cells!r:.120}; put a text that holds the separator in double quotes"
        )


def delimited_tables(path: Path, delimiter: str = ",") -> Iterator[pa.Table]:
    """The rows in chunks, all columns strings; at least one table, which may be empty.

    Args:
        path: the file.
        delimiter: between two cells.

    Raises:
        OSError: the file cannot be read.
        ValueError: it cannot be read for certain; with the line.
    """
    records = _records(path, delimiter)
    header = next(records, None)
    if header is None:
        raise ValueError("no data: a file is empty")
    names = _names(path, header, delimiter)
    widths, swallowed = _Widths(len(names)), _Swallowed(len(names), delimiter)
    chunk: list[list[str]] = []
    rows = 0
    for rows, record in enumerate(records, 1):
        if len(record.cells) != widths.header:
            widths.add(record)
        if rows <= CHUNK or record.end > record.begin:
            swallowed.add(record)
        chunk.append(record.cells)
        if len(chunk) == CHUNK:
            yield _table(names, chunk)
            chunk = []
    fault = widths.fault(rows) or swallowed.fault()
    if fault:
        raise ValueError(f"{path.name}, {fault}")
    if chunk or not rows:
        yield _table(names, chunk)


def _table(names: list[str], rows: list[list[str]]) -> pa.Table:
    width = len(names)
    # rows of another width are refused at the end of the file, or have empty cells too many
    fit = [row if len(row) == width else (row + [""] * width)[:width] for row in rows]
    columns = list(zip(*fit, strict=True)) if fit else [()] * width
    arrays = [pa.array([cell or None for cell in column], pa.string()) for column in columns]
    return pa.Table.from_arrays(arrays, schema=pa.schema([(name, pa.string()) for name in names]))


def _records(path: Path, delimiter: str) -> Iterator[_Record]:
    """Rows but blank lines, which stand for none."""
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))
    lines: list[str] = []

    def feed() -> Iterator[str]:
        for line in lines_of(path):
            lines.append(line)
            yield line

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for cells in reader:
            end = reader.line_num
            if cells:
                yield _Record(cells, begin, end, list(lines) if end > begin else [])
            lines.clear()
            begin = end + 1
    except csv.Error as error:
        raise ValueError(f"{path.name}, {_quote_fault(begin, reader.line_num, error)}") from error


def _quote_fault(begin: int, end: int, error: csv.Error) -> str:
    write = 'write a quote inside a quoted field twice ("")'
    if "unexpected end" in str(error):
        return f"line {begin}: a double quote that opens here is not closed before the end; {write}"
    if end > begin:
        return (
            f"line {begin}: a double quote that opens here closes in line {end}, where more text "
            f"follows it; {write}"
        )
    return f"line {begin}: text follows a closing double quote; {write}"


def _names(path: Path, record: _Record, delimiter: str) -> list[str]:
    """Names of the columns; the first may be empty, as pandas writes an index."""
    names, line = list(record.cells), f"{path.name}, line {record.begin}"
    while len(names) > 1 and not names[-1]:  # its column has to be empty too
        names.pop()
    if len(names) == 1 and (other := re.search(r"[;\t|]", names[0])) and delimiter == ",":
        tabs = "let the name of the file end in .tsv" if other[0] == "\t" else "write it with ,"
        raise ValueError(f"{line}: one column, {names[0]!r}: fields are parted by , here; {tabs}")
    if "" in names[1:] or names == [""]:
        raise ValueError(f"{line}: column {names.index('', len(names) > 1) + 1} has no name")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{line}: column {twice[0]!r} stands twice")
    return names


class _Swallowed:
    """Quoted fields over lines that are rows by themselves: a quote that was not meant as one.

    Texts of several lines may look like that too. Only where some column has in each of the lines
    a value that it has in other rows too (a label), or a number where it always holds numbers
    (an id), is it certain enough to refuse.
    """

    def __init__(self, width: int, delimiter: str) -> None:
        self.width = width
        self.delimiter = delimiter
        self.seen: list[set[str]] = [set() for _ in range(width)]
        self.rows = 0
        self.doubtful: list[tuple[_Record, list[list[str]]]] = []

    def add(self, record: _Record) -> None:
        if record.end == record.begin:
            self.rows += 1
            for values, cell in zip(self.seen, record.cells, strict=False):
                values.add(cell)
            return
        if self.width < 2 or len(self.doubtful) >= CHUNK:
            return
        options = {"delimiter": self.delimiter, "quoting": csv.QUOTE_NONE}
        rows = [next(csv.reader([line], **options), []) for line in record.lines]  # pyright: ignore
        if all(len(row) == self.width for row in rows):
            self.doubtful.append((record, rows))

    def fault(self) -> str | None:
        for record, rows in self.doubtful:
            if any(map(self._is_of_column, range(self.width), zip(*rows, strict=True))):
                return (
                    f"line {record.begin}: a double quote that opens here closes in line "
                    f"{record.end}, over lines that look like rows; write a quote inside a quoted "
                    'field twice ("")'
                )
        return None

    def _is_of_column(self, number: int, cells: tuple[str, ...]) -> bool:
        if not all(cells):
            return False
        others = self.seen[number]
        if len(others) <= min(FEW, self.rows // 2) and others.issuperset(cells):
            return True
        return all(re.fullmatch(r"\d{1,18}", cell, re.ASCII) for cell in (*cells, *others))
