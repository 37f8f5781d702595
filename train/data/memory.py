"""Rows that a Python caller holds, as the rows of a file are read: split to `datasets.Dataset`.

A `datasets.Dataset` is used as it is. All else is read once, into Arrow: the objects given are
neither changed nor kept, and values come out as JSON Lines would give them back (`jsonlines.py`);
numbers of numpy, torch and pandas become Python's, what pandas calls missing becomes null. A stream
is read to its end, or as far as the task's `max_rows`; one that has no end is refused after
`MOST_ROWS`, never cut.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
import torch.utils.data

from ..recipe.data_config import SPLITS, RowsInMemory
from .jsonlines import typed_table
from .source import rows_of_table

logger = logging.getLogger(__name__)
MOST_ROWS = 1_000_000  # of a stream without `max_rows`
TOLD = 100_000  # rows between two notes on a stream
ALLOWED = (
    "allowed: datasets.Dataset, DatasetDict or IterableDataset, a list of dicts, a pandas "
    "DataFrame, a torch Dataset whose items are dicts, or a dict of these by split"
)


def splits_in_memory(
    rows: RowsInMemory, columns: set[str], *, named: bool = False, max_rows: int | None = None
) -> dict[str, datasets.Dataset]:
    """Rows by split; what is no dict of splits is train.

    Args:
        rows: what the caller gave.
        columns: those that a task reads; others are left out where Arrow has no form for them.
        named: `splits` of the task says which of its splits are ours, so that any name goes.
        max_rows: of train, as far as a stream is read.

    Raises:
        ValueError: an object of another type, a split of another name, or a row or value that
            cannot be kept; with the split and the row.
    """
    parts = rows.parts
    if not parts:
        raise ValueError("an empty dict is given; give rows of train")
    unknown = [str(name) for name in parts if name not in SPLITS]
    if unknown and not named:
        if not isinstance(rows.data, datasets.DatasetDict | datasets.IterableDatasetDict):
            columns_hint = "; for columns write datasets.Dataset.from_dict(...)"
            hint = columns_hint if columns & set(unknown) else ", or name them in splits"
            raise ValueError(f"split {unknown[0]!r}: allowed: {', '.join(SPLITS)}{hint}")
        if "train" in parts:
            logger.warning(f"splits {', '.join(unknown)} are not read; name them in splits")
    read = {}
    for split in parts if named else [name for name in SPLITS if name in parts]:
        limit = max_rows if split == "train" else None
        try:
            read[split] = _rows(parts[split], split, columns, limit)
        except _NoRows as error:
            raise ValueError(f"{split}: {error}") from error
        if not len(read[split]):
            raise ValueError(f"{split}: there are no rows")
    return read or {str(name): datasets.Dataset.from_dict({}) for name in parts}


class _NoRows(ValueError):
    """What was given cannot be read as rows."""


def _rows(part: Any, split: str, columns: set[str], limit: int | None) -> datasets.Dataset:
    if isinstance(part, datasets.Dataset):
        if part.format["type"] != "custom":  # no transform that makes other values
            return part.with_format(None)
        return _from_items(map(part.__getitem__, range(len(part))), columns)
    if isinstance(part, pd.DataFrame):
        return _from_frame(part, columns)
    if isinstance(part, datasets.IterableDataset):
        return _from_items(_stream(part, split, limit), columns, part.features)
    if isinstance(part, torch.utils.data.IterableDataset):
        return _from_items(_stream(part, split, limit), columns)
    if isinstance(part, torch.utils.data.Dataset):
        try:
            count = len(part)  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise _NoRows(f"a {type(part).__name__} has no length; {ALLOWED}") from error
        return _from_items((part[number] for number in range(count)), columns)
    if isinstance(part, Sequence) and not isinstance(part, (str, bytes)):
        return _from_items(part, columns)
    raise _NoRows(f"a {type(part).__name__} is given; {ALLOWED}")


def _stream(part: Iterable[Any], split: str, limit: int | None) -> Iterator[Any]:
    """The items of a stream, at most `limit` of them."""
    kind, count = type(part).__name__, 0
    logger.info(f"{split}: a stream ({kind}) is read into memory")
    for count, item in enumerate(islice(part, limit), 1):
        if limit is None and count > MOST_ROWS:
            how = "give the task max_rows" if split == "train" else "give a part of it"
            raise _NoRows(f"the {kind} has more than {MOST_ROWS:,} rows; {how}")
        if count % TOLD == 0:
            logger.info(f"{split}: {count:,} rows of the {kind} are read")
        yield item
    logger.info(f"{split}: {count:,} rows were read{', as max_rows says' * (count == limit)}")


# ---- values ----


def _from_items(
    items: Iterable[Any], columns: set[str], features: datasets.Features | None = None
) -> datasets.Dataset:
    rows = []
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise _NoRows(
                f'row {number} is a {type(item).__name__}, but has to be a dict, as {{"text": ...}}'
            )
        rows.append(item)
    if features is not None:  # they hold the names of classes
        return datasets.Dataset.from_list(rows, features=features)
    names = dict.fromkeys(str(name) for row in rows for name in row)
    return _from_columns({name: [row.get(name) for row in rows] for name in names}, columns)


def _from_frame(frame: pd.DataFrame, columns: set[str]) -> datasets.Dataset:
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise _NoRows(f"column {twice!r} stands twice")
    return _from_columns({str(name): frame[name].tolist() for name in frame.columns}, columns)


def _from_columns(values: dict[str, list], columns: set[str]) -> datasets.Dataset:
    table = {}
    for name, column in values.items():
        try:
            table[name] = _plain_column(name, column)
        except _NoRows:
            if name in columns:
                raise
    return rows_of_table(*typed_table(table))


def _plain_column(name: str, values: list) -> list:
    """Values of a column as Python's own; NaN among other things than numbers is null."""
    plain = []
    for number, value in enumerate(values):
        try:
            plain.append(_plain(value))
        except TypeError as error:
            raise _NoRows(
                f"column {name!r}, row {number}: {value!r:.60} is a {error}, not a text, number, "
                "list or dict"
            ) from error
    if any(isinstance(value, str) for value in plain):
        return [None if isinstance(v, float) and math.isnan(v) else v for v in plain]
    return plain


def _plain(value: Any) -> Any:
    """A value as Python's own; a copy of what can be changed.

    Raises:
        TypeError: there is no such form; its message is the name of the type.
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, bool):
        return value
    for kind in (str, int, float):  # also what is derived from them, as numpy.str_
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    raise TypeError(type(value).__name__)
