"""Annotations as tools write them, read into the columns that tasks read: text, words, labels.

`FORMATS` says for each format how its files become rows and which of their columns are meant where
a recipe names none. `read_annotations` then makes the columns of each task: spans become words and
tags, one column for each label, or lists in one string, lists of labels. All checks of rows come
after it, and see no difference.
"""

from .annotations import read_annotations
from .base import Format
from .conll import column_name
from .table import FORMATS, named_columns, open_format, read_rows

__all__ = [
    "FORMATS",
    "Format",
    "column_name",
    "named_columns",
    "open_format",
    "read_annotations",
    "read_rows",
]
