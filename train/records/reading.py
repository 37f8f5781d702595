"""A JSON file, read once it is known to hold what its name says."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...modeling import reading
from ..errors import UserError

TOLD = 3  # faults of one file
HALVES = re.compile(r"\\ud[89a-f][0-9a-f]{2}", re.IGNORECASE)  # of a pair; pydantic reads none
OBJECT = TypeAdapter(dict[str, Any])


def read_record(path: str | Path, kind: TypeAdapter, default: Any = None) -> Any:
    """What a JSON file holds, all of it, once it is known to be of a kind.

    Args:
        path: the file.
        kind: what it must hold; keys beyond it are left alone.
        default: where there is no file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if not Path(path).is_file():
        return default
    try:
        value = reading.read_json(path, object, finite=False)
        kind.validate_json(HALVES.sub("?", json.dumps(value)), strict=True)
    except ValidationError as error:
        faults = {_where(one): _fault(one) for one in reversed(error.errors())}
        lines = list(faults.values())[::-1]
        more = [f"and {len(lines) - TOLD} more"] if len(lines) > TOLD else []
        raise UserError(str(path), [*lines[:TOLD], *more]) from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        raise UserError(str(path), [f"cannot be read as JSON: {reason}"]) from error
    return value


def _where(error: Any) -> str:
    """Dotted key; pydantic names the key itself and the members of a union too."""
    parts = [str(part) for part in error["loc"]]
    union = ("float", "[key]", "dict[")
    return ".".join(part for part in parts if not part.startswith(union))


def _fault(error: Any) -> str:
    """`tasks.intent.f1: None; input should be a valid number`."""
    where = _where(error)
    value = repr(error["input"])
    value = value if len(value) <= 60 else f"{value[:59]}…"
    says = error["msg"].removeprefix("Value error, ")
    says = f"{says[:1].lower()}{says[1:]}"
    return f"{where}: {value}; {says}" if where else f"{says}; got {value}"
