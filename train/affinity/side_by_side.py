"""Each task trained alone, and all of them jointly, on the same budget."""

from pathlib import Path
from typing import Any

from ..commands.setup import PreparedRun
from ..commands.training import train_once, trained_alone
from ..evaluation.alone import side_by_side

JOINT = "all-tasks"  # folder of the joint run; no task can have this name


def both_ways(run: PreparedRun, folder: Path) -> dict[str, Any]:
    """Scores and wall times of `polyhead train` for each task alone and for all."""
    runs = trained_alone(run.recipe, folder)
    runs[JOINT] = train_once(run.recipe, folder / JOINT)
    joint = runs[JOINT][0]
    scores = {}
    for name in run.recipe.tasks:
        split = joint["splits"][name]
        both = runs[name][0]["tasks"][name], joint["tasks"][name]
        scores[name] = side_by_side(*both, run.rows_of(name)[split], split)
    return {"scores": scores, "wall_seconds": {name: took for name, (_, took) in runs.items()}}
