"""Names of a run's and a model's files, and JSON as every part of `train` writes and reads it."""

import json
from pathlib import Path
from typing import Any

from ..modeling import reading
from .errors import UserError

SCORES = "scores.json"  # in a model's folder: metrics by task
RUNS = "training.json"  # in a model's folder: the trainings that made it, oldest first
PLOTS = "plots"  # in a model's folder
REPORTS = "reports"  # in the folder of a run
HISTORY = "log_history.json"


def write_json(path: Path, value: Any) -> None:
    """Write a file that people may read, and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: str | Path, default: Any) -> Any:
    """What a file holds, or `default` where there is none; see `records.read_record` for more.

    Args:
        path: the file.
        default: a dict, a list or a float; the file must hold the same.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    if not Path(path).exists():
        return default
    try:
        return reading.read_json(path, type(default), finite=False)
    except (OSError, ValueError) as error:
        raise UserError(str(path), [" ".join(str(error).split())]) from error
