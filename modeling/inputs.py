# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What a caller gives as texts, read as what it is or refused with what to type.

Nothing is taken for texts that only iterates over names (a dict, a table) or has no order (a set).
pandas, numpy, pyarrow and datasets are known by what their objects can do, not imported.
"""

import re
import reprlib
from collections.abc import Iterable, Set
from typing import Any

TextOrPair = str | tuple[str, str | tuple[str, ...]]  # in a pair a text, or several to choose from
HALF = re.compile(r"[\ud800-\udfff]")  # of a surrogate pair: no character, no encoding has it
REPLACEMENT = "\ufffd"
ROW_KEYS = ("text", "text_pair")
MISSING = ("NoneType", "NAType", "NaTType")
FORMS = {
    "text": "single texts",
    "pair": "pairs, as (text, text)",
    "choices": "a text and others to choose from, as (text, [text, text])",
}


def form_of(text: TextOrPair) -> str:
    """A key of `FORMS`: what a task must read to read this."""
    if isinstance(text, str):
        return "text"
    return "pair" if isinstance(text[1], str) else "choices"


def read_inputs(texts: Any) -> tuple[list[TextOrPair], bool]:
    """The texts or pairs of a call, and whether it is one, not a list of them.

    Args:
        texts: a string, a pair (text, text), a dict `{"text": ..., "text_pair": ...}`, or a list, a
            column, a series, an array of one dimension or another ordered iterable of these.

    Raises:
        ValueError: it is something else, or an item is; with its number.
    """
    if getattr(texts, "ndim", None) == 0 and hasattr(texts, "item"):
        texts = texts.item()  # numpy's array of one string
    if isinstance(texts, (str, tuple)) or is_mapping(texts):
        return [read_text(texts)], True
    _check_list(texts)
    items = texts.to_pylist() if hasattr(texts, "to_pylist") else texts  # pyarrow's scalars
    return read_items(items), False


def read_items(items: Iterable[Any], first: int = 0) -> list[TextOrPair]:
    """Texts or pairs, of which the first has the number `first`."""
    return [read_text(item, f"text {number}") for number, item in enumerate(items, first)]


def read_text(value: Any, what: str = "the text") -> TextOrPair:
    """One text or pair.

    Args:
        value: a string, a tuple of two, or a dict of `text` and maybe `text_pair`; the second text
            may be a list of texts to choose from.
        what: names it in the message.

    Raises:
        ValueError: it is something else, or missing.
    """
    if isinstance(value, str):
        return str.__str__(value)  # of numpy's and of other subclasses the plain string
    if is_mapping(value):
        keys = list(value.keys())
        if "text" not in keys or not set(keys) <= set(ROW_KEYS):
            shown = reprlib.repr(keys)
            raise ValueError(
                f"{what} has the keys {shown}; give the text itself, as row['text'], or a dict of "
                "'text' and, for pairs, 'text_pair' alone"
            )
        value = tuple(value[key] for key in ROW_KEYS if key in keys)
        if len(value) == 1:
            return _string(value[0], f"{what}['text']")
    if isinstance(value, tuple):
        names = getattr(value, "_fields", ())
        if (
            "text" in names and names != ROW_KEYS
        ):  # a row of a table, as `DataFrame.itertuples` gives them
            raise ValueError(
                f"{what} is a row of {reprlib.repr(list(names))}; give the text itself, as "
                "row.text, or a pair as a plain tuple (text, text)"
            )
        if len(value) != 2:
            raise ValueError(
                f"{what} is {reprlib.repr(value)}, a tuple of {len(value)}; a pair has two texts, "
                "several texts are a list"
            )
        one, other = value
        if isinstance(other, list):
            return _string(one, f"{what}[0]"), _choices(other, f"{what}[1]")
        return _string(one, f"{what}[0]"), _string(other, f"{what}[1]")
    return _string(value, what)


def _choices(values: list, what: str) -> tuple[str, ...]:
    if not values:
        raise ValueError(f"{what} is []; give a list of texts to choose from")
    return tuple(_string(value, f"{what}[{number}]") for number, value in enumerate(values))


def _string(value: Any, what: str) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    says = f"{what} is {reprlib.repr(value)}"
    if type(value).__name__ in MISSING or (isinstance(value, float) and value != value):
        raise ValueError(f"{says}: it is missing; leave it out, or give '' for an empty text")
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise ValueError(f"{says}; decode it: value.decode('utf-8')")
    if isinstance(value, list):
        raise ValueError(f"{says}, a list; give a string, or a pair as a tuple (text, text)")
    raise ValueError(f"{says}; give a string or a pair of strings (text, text)")


def is_mapping(value: Any) -> bool:
    """It has names and values, as a dict or the row of a DataFrame."""
    return hasattr(value, "keys") and not hasattr(value, "iloc") or _is_row(value)


def _is_row(value: Any) -> bool:
    """A series that is a row: its index are the columns, its name is the number of the row."""
    if not hasattr(value, "iloc") or getattr(value, "ndim", None) != 1:
        return False
    names = list(value.index)
    named = bool(names) and all(isinstance(name, str) for name in names)
    return named and ("text" in names or not isinstance(value.name, (str, type(None))))


def _check_list(texts: Any) -> None:
    """Raise ValueError for what is no list of texts though it may iterate."""
    columns = getattr(texts, "column_names", None)
    columns = getattr(texts, "columns", None) if columns is None else columns
    name = type(texts).__name__
    if columns is not None:
        shown = reprlib.repr(columns if isinstance(columns, dict) else list(columns))
        raise ValueError(f"texts is a {name} of columns {shown}; give one of them: table['text']")
    if isinstance(texts, (bytes, bytearray, memoryview)):
        raise ValueError(f"texts is {reprlib.repr(texts)}; decode it: texts.decode('utf-8')")
    if isinstance(texts, Set):
        raise ValueError(f"texts is a {name}, which has no order; give a list")
    if getattr(texts, "ndim", 1) != 1:
        raise ValueError(
            f"texts is a {name} of {texts.ndim} dimensions; give a list of strings or of pairs "
            "(text, text)"
        )
    if not isinstance(texts, Iterable) and not hasattr(texts, "__getitem__"):
        raise ValueError(f"texts is {reprlib.repr(texts)}; give a string or a list of strings")


def tokenizable(text: str) -> str:
    """The text as tokenizers take it, of the same length: half a surrogate pair is replaced."""
    return text if text.isascii() else HALF.sub(REPLACEMENT, text)
