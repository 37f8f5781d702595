# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Files that may be anyone's, read with bounds: JSON, and the headers of safetensors.

Python's own reader takes NaN, keys given twice, nesting until the stack ends and files of any size;
each would be a crash or a wrong answer later. Here they are refused with the file's name.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 64 << 20  # of a JSON file; a config with 100,000 labels has 2 MB
MOST_DEPTH = 64  # of lists and dicts in each other
FLOATS = ("F64", "F32", "F16", "BF16")  # in the words of safetensors


def read_json(path: str | os.PathLike, kind: type = dict, *, finite: bool = True) -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        kind: what it must hold, dict or list; object for either.
        finite: refuse NaN and infinity; a log of a training may hold them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is too large, too deep, no JSON or no UTF-8, holds NaN, an infinite
            number or a key twice, or something else than `kind`.
    """
    path = os.fspath(path)
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path} is no file")
    if about.st_size > MOST_BYTES:
        raise ValueError(f"{path} has {about.st_size:,} bytes; {MOST_BYTES:,} are allowed")
    with open(path, "rb") as file:
        return parse_json(file.read(MOST_BYTES + 1), path, kind, finite=finite)


def parse_json(text: str | bytes, source: str, kind: type = dict, *, finite: bool = True) -> Any:
    """As `read_json`, of a text that came from `source`.

    Raises:
        ValueError: as there.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{source} has more than {MOST_BYTES:,} bytes")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        constant = _refused if finite else float
        value = json.loads(text, parse_constant=constant, object_pairs_hook=_without_repeats)
        _check_values(value, finite)
    except RecursionError:
        raise ValueError(f"{source}: nested deeper than {MOST_DEPTH} levels") from None
    except ValueError as error:  # of JSON, of UTF-8, and our own
        raise ValueError(f"{source} cannot be read: {error}") from error
    if not isinstance(value, kind):
        expected = {dict: "an object {...}", list: "a list [...]"}.get(kind, kind.__name__)
        raise ValueError(f"{source} holds {_shown(value)}; it must hold {expected}")
    return value


def _refused(name: str) -> None:
    raise ValueError(f"the number {name} is no JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        met: set[str] = set()
        twice = next(key for key, _ in pairs if key in met or met.add(key))
        raise ValueError(f"the key {twice!r} is there twice")
    return made


def _check_values(value: Any, finite: bool) -> None:
    """Walk through it level by level, as deep as is allowed."""
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise ValueError(f"nested deeper than {MOST_DEPTH} levels")
        following: list[Any] = []
        for part in level:
            if finite and isinstance(part, float) and not math.isfinite(part):
                raise ValueError("a number is too large")
            if isinstance(part, (dict, list)):
                following += part.values() if isinstance(part, dict) else part
        level, depth = following, depth + 1


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def few(names: Iterable[str], most: int = 4) -> str:
    """The first of some names, and how many there are."""
    names = sorted(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says of one tensor.

    Args:
        dtype: type in the words of safetensors: `F32`, `BF16`, `I8`, ...
        shape: its sizes.
    """

    dtype: str
    shape: tuple[int, ...]


def read_tensor_headers(path: str | os.PathLike) -> dict[str, TensorHeader]:
    """Type and shape of each tensor of a safetensors file; the tensors are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or was cut.
    """
    path = os.fspath(path)
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MOST_BYTES):
            raise ValueError(f"{path} is cut short or no safetensors file")
        header = parse_json(file.read(length), path)
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in header.items():
        try:
            tensors[name] = TensorHeader(str(entry["dtype"]), tuple(map(int, entry["shape"])))
            end = max(end, int(entry["data_offsets"][1]))
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{path}: the entry of {name} is damaged: {error}") from error
    if size != 8 + length + end:
        raise ValueError(
            f"{path} has {size:,} bytes; its tensors end at {8 + length + end:,}. It was cut short "
            "or changed: copy or download it again"
        )
    return tensors


def digest(*paths: str | os.PathLike) -> str:
    """sha256 over the bytes of some files, in this order."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
