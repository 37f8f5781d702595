"""Names of a run's and a model's files, and JSON as every part of `train` writes and reads it."""

import json
from pathlib import Path
from typing import Any

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
    """What a file holds, or `default` where there is none."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
