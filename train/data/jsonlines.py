"""JSON Lines, and a JSON list of objects, as Python's `json` reads them.

A column is typed where that changes no value: all strings, all integers of 64 bit, all fractions,
lists of those, objects that have the same keys. Any other column (strings beside numbers, 1 beside
1.5, integers of any size) holds the JSON text of its values and is marked `JsonText`, which gives
the values back. Strings that look like dates are strings.
"""

import json
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute
from datasets.features.features import register_feature

from .text_files import lines_of

CHUNK = 4096  # rows
JSON = pa.json_()  # stands for the type of a column that is kept as JSON text
pc: Any = pyarrow.compute  # its functions are made at import, unseen by a type checker
SIMPLE = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
INT64 = 2**63


@dataclass
class JsonText:
    """Feature of a column of JSON texts: rows have the values.

    The `Json` of datasets loses digits of large and of fractional numbers.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "string"
    pa_type: ClassVar[Any] = pa.string()
    _type: str = field(default="JsonText", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        """The Arrow type."""
        return self.pa_type

    def encode_example(self, value: Any) -> str | None:
        """A value to its JSON text."""
        return None if value is None else _dump(value)

    def decode_example(self, value: str | None, token_per_repo_id: Any = None) -> Any:
        """JSON text to its value; the second argument is for features that read files."""
        return None if value is None else json.loads(value)


with warnings.catch_warnings():  # it warns that it may change
    warnings.simplefilter("ignore", UserWarning)
    register_feature(JsonText, "JsonText")


class KindsChanged(Exception):
    """A later row does not fit the types of the first; read once more with the new ones."""


def json_tables(paths: Iterable[Path], kinds: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    """The rows of all files in chunks.

    Args:
        paths: the files.
        kinds: column to type, `JSON` for JSON text; empty at the first call, changed here.

    Raises:
        KindsChanged: `kinds` have become others; what was given so far is void.
        OSError: a file cannot be read.
        ValueError: a file is no JSON, or its values cannot be kept as they are; with the line.
    """
    yielded = False
    for path in paths:
        infinite = False
        for rows in _chunks(path):
            changed = False
            for name in dict.fromkeys(chain.from_iterable(row for _, row in rows)):
                kind = _kind([row.get(name) for _, row in rows])
                merged = _merge(kinds[name], kind) if name in kinds else kind
                changed = changed or merged != kinds.get(name)
                kinds[name] = merged
            if changed and yielded:
                raise KindsChanged
            table = _table(rows, kinds)
            if not infinite and any(map(_has_infinity, table.columns, kinds.values())):
                infinite = True
                _refuse_overflow(path)
            yielded = True
            yield table
    if not yielded:
        raise ValueError("no data: a file is empty")


def typed_table(columns: dict[str, list]) -> tuple[pa.Table, set[str]]:
    """Values that JSON has as a table, and the columns of it that hold JSON text."""
    kinds = {name: _kind(values) for name, values in columns.items()}
    return _typed(columns, kinds), {name for name, kind in kinds.items() if kind == JSON}


def _table(rows: list[tuple[int, dict]], kinds: dict[str, pa.DataType]) -> pa.Table:
    return _typed({name: [row.get(name) for _, row in rows] for name in kinds}, kinds)


def _typed(columns: dict[str, list], kinds: dict[str, pa.DataType]) -> pa.Table:
    arrays, fields = [], []
    for name, kind in kinds.items():
        values = columns[name]
        if kind == JSON:
            kind = pa.string()
            values = [None if value is None else _dump(value) for value in values]
        arrays.append(pa.array(values, kind))
        fields.append((name, kind))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # half a surrogate has no UTF-8
    return text if _is_unicode(text) else json.dumps(value, ensure_ascii=True)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- types ----


def _kind(values: Iterable[Any]) -> pa.DataType:
    """The narrowest type that gives all values back as they are, or JSON."""
    values = [value for value in values if value is not None]
    types = set(map(type, values))
    if not types:
        return pa.null()
    if len(types) > 1:
        return JSON
    (kind,) = types
    if kind is int and not -INT64 <= min(values) <= max(values) < INT64:
        return JSON
    if kind is str and not all(value.isascii() or _is_unicode(value) for value in values):
        return JSON
    if kind is list:
        inner = _kind(chain.from_iterable(values))
        return JSON if inner == JSON else pa.list_(inner)
    if kind is dict:
        keys = set(map(tuple, values))
        if len(keys) > 1 or not values[0]:
            return JSON
        parts = {key: _kind(value[key] for value in values) for key in values[0]}
        return JSON if JSON in parts.values() else pa.struct(list(parts.items()))
    return SIMPLE[kind]


def _merge(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type of the values of both."""
    is_type = pa.types
    if one == other or is_type.is_null(other):
        return one
    if is_type.is_null(one):
        return other
    if is_type.is_list(one) and is_type.is_list(other):
        inner = _merge(one.value_type, other.value_type)
        return JSON if inner == JSON else pa.list_(inner)
    if is_type.is_struct(one) and is_type.is_struct(other):
        names = [part.name for part in one]
        if names == [part.name for part in other]:
            parts = [(n, _merge(one.field(n).type, other.field(n).type)) for n in names]
            if all(kind != JSON for _, kind in parts):
                return pa.struct(parts)
    return JSON


def _has_infinity(column: Any, kind: pa.DataType) -> bool:
    if kind == JSON:
        return bool(pc.any(pc.match_substring(column, "Infinity")).as_py())
    if pa.types.is_list(kind):
        return _has_infinity(pc.list_flatten(column), kind.value_type)
    if pa.types.is_struct(kind):
        return any(
            _has_infinity(pc.struct_field(column, [i]), kind[i].type) for i in range(len(kind))
        )
    return pa.types.is_floating(kind) and bool(pc.any(pc.is_inf(column)).as_py())


# ---- parsing ----


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is larger than a number can be")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
FINITE = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite)


def _parse(path: Path, where: str, text: str, decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(text)
    except RecursionError as error:
        raise ValueError(f"{path.name}, {where}: nested too deep") from error
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            why = f"JSON parse error: {error.msg} at character {error.colno}, "
            why += f"{text.strip()!r:.60}; write one object in each line"
        else:
            why = str(error)
        raise ValueError(f"{path.name}, {where}: {why}") from error


def _chunks(path: Path) -> Iterator[list[tuple[int, dict]]]:
    """(number of the line, or of the item of a list, and row) in chunks."""
    chunk = []
    for number, row in _rows(path):
        chunk.append((number, row))
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _rows(path: Path, decoder: json.JSONDecoder = DECODER) -> Iterator[tuple[int, dict]]:
    lines, row = lines_of(path), 0
    for number, line in enumerate(lines, 1):
        if not line.strip(" \t\r\n"):
            continue
        if line.lstrip().startswith("["):
            whole = _parse(path, "the list", line + "".join(lines), decoder)
            for item, value in enumerate(whole):
                yield item, _object(path, f"item {item}", value)
            return
        where = f"line {number} (row {row})"
        yield number, _object(path, where, _parse(path, where, line, decoder))
        row += 1


def _object(path: Path, where: str, row: Any) -> dict:
    if not isinstance(row, dict):
        what = f"{row!r:.60} is no object with columns as keys"
        raise ValueError(f'{path.name}, {where}: {what}, as {{"text": ...}}')
    return row


def _refuse_overflow(path: Path) -> None:
    """`Infinity` is what it says; 1e400 would become it."""
    for _ in _rows(path, FINITE):
        pass


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """What each line of a file, or item of its list, or the whole of it holds, and where it stands.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON; with the line.
    """
    lines = [(number, line) for number, line in enumerate(lines_of(path), 1) if line.strip()]
    if not lines:
        raise ValueError("no data: a file is empty")
    if len(lines) > 1 and _is_whole(lines[0][1]):
        for row, (number, line) in enumerate(lines):
            where = f"line {number} (row {row})"
            yield where, _parse(path, where, line, DECODER)
        return
    value = _parse(path, "the whole", "".join(line for _, line in lines), DECODER)
    if isinstance(value, list) and not (value and isinstance(value[0], str)):
        yield from ((f"item {number}", item) for number, item in enumerate(value))
    else:
        yield f"line {lines[0][0]}", value


def _is_whole(line: str) -> bool:
    try:
        DECODER.decode(line)
    except (ValueError, RecursionError):
        return False
    return True
