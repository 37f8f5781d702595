"""Names of a run's and a model's files, and JSON as every part of `train` writes and reads it."""

import json
import reprlib
from pathlib import Path
from types import NoneType
from typing import Any

from ..modeling import reading
from .errors import UserError

SCORES = "scores.json"  # in a model's folder: metrics by task
RUNS = "training.json"  # in a model's folder: the trainings that made it, oldest first
PLOTS = "plots"  # in a model's folder
REPORTS = "reports"  # in the folder of a run
HISTORY = "log_history.json"

# What must be in the files that are read again; see `shape_fault`.
NUMBER, NAME_OR_NONE = (int, float), (str, NoneType)
ENTITY = {"precision": NUMBER, "recall": NUMBER, "f1": NUMBER, "support": int}
TASK_SCORES = {str: (int, float, dict, NoneType)}  # `per_type` is a dict, by kind of entity
MODEL_SCORES = {str: TASK_SCORES}
RUN_SCORES = {"tasks": {str: TASK_SCORES}, "macro": (int, float, NoneType), "splits": {str: str}}
TRAININGS = [
    {
        "encoder": NAME_OR_NONE,
        "tasks": {
            str: {
                "data": NAME_OR_NONE,
                "license": NAME_OR_NONE,
                "rows": {str: int},
                "scored_on": NAME_OR_NONE,
            }
        },
        "card": {"language": [str], "license": NAME_OR_NONE, "limits": NAME_OR_NONE},
        "recipe": dict,
        "steps": int,
        "epochs": NUMBER,
        "seconds": NUMBER,
        "resumed": bool,
        "processes": int,
        "threads": int,
        "device": str,
        "machine": str,
        "versions": {str: str},
        "gradient_cosines": [{"tasks": [str], "mean": NUMBER, "negative": NUMBER, "compared": int}],
    }
]
PROOFS = [
    {
        "change": str,
        "changed": [str],
        "encoder": str,
        "tasks": {str: {"weights": str, "logits": str}},
        "made_with": dict,
    }
]


def write_json(path: Path, value: Any) -> None:
    """Write a file that people may read, and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: str | Path, default: Any, shape: Any = None) -> Any:
    """What a file holds, or `default` where there is none.

    Args:
        path: the file.
        default: a dict, a list or a float; the file must hold the same.
        shape: what must be in it, see `shape_fault`; None: the reader checks for itself.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    if not Path(path).exists():
        return default
    try:
        value = reading.read_json(path, type(default), finite=False)
    except (OSError, ValueError) as error:
        raise UserError(str(path), [" ".join(str(error).split())]) from error
    fault = None if shape is None else shape_fault(value, shape)
    if fault:
        raise UserError(str(path), [f"{fault}. The file is damaged, or of another release"])
    return value


def read_scores(folder: str | Path) -> dict[str, Any]:
    """The scores in a model's folder, by task and metric; empty where it has none.

    Raises:
        UserError: they cannot be read, or are none.
    """
    path = Path(folder) / SCORES
    scores = read_json(path, {}, MODEL_SCORES)
    for task, values in scores.items():
        fault = shape_fault(values.get("per_type", {}), {str: ENTITY}, f"{task}.per_type")
        if fault:
            raise UserError(str(path), [fault])
    return scores


def shape_fault(value: Any, shape: Any, where: str = "") -> str | None:
    """The first thing in which JSON differs from a shape; None where nothing does.

    Args:
        value: what a file holds.
        shape: a type, a tuple of types, `[shape]` for a list, `{str: shape}` for a mapping, or a
            dict of the keys that must be there.
        where: dotted key of the value.
    """
    if isinstance(shape, (type, tuple)):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        number = isinstance(value, bool) and bool not in kinds
        if isinstance(value, kinds) and not number:
            return None
        wanted = " or ".join({NoneType: "null"}.get(kind, kind.__name__) for kind in kinds)
        return f"{where or 'it'} is {reprlib.repr(value)}; it must be {wanted}"
    kind = type(shape)
    if not isinstance(value, kind):
        return f"{where or 'it'} is {reprlib.repr(value)}; it must be a {kind.__name__}"
    if kind is list:
        parts = [(f"{where}[{i}]", part, shape[0]) for i, part in enumerate(value)]
    elif str in shape:
        parts = [(f"{where}.{key}".lstrip("."), part, shape[str]) for key, part in value.items()]
    else:
        absent = [key for key in shape if key not in value]
        if absent:
            return f"{where or 'it'} lacks {', '.join(absent)}"
        parts = [(f"{where}.{k}".lstrip("."), value[k], part) for k, part in shape.items()]
    faults = (shape_fault(part, inner, place) for place, part, inner in parts)
    return next((fault for fault in faults if fault), None)
