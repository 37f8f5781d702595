"""Each task trained alone, and all of them jointly, on the same budget."""

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..adapters import adapter_name
from ..artifacts import read_json, write_json, write_text
from ..commands.setup import PreparedRun
from ..commands.training import train
from ..evaluation.metrics import LOWER_IS_BETTER, main_metric
from ..recipe.schema import Recipe
from ..recipe.sections import Balancing, Sampling
from ..records import RUN_SCORES, read_record

logger = logging.getLogger(__name__)
JOINT = "all-tasks"  # folder of the joint run; no task can have this name
BEST_MODEL = ("metric_for_best_model", "greater_is_better")
CORRELATIONS = ("pearson", "spearman", "mcc")


def both_ways(run: PreparedRun, folder: Path) -> dict[str, Any]:
    """Scores and wall times of `polyhead train` for each task alone and for all."""
    recipe, runs = run.recipe, {}
    for name in recipe.tasks:
        runs[name] = _train_once(_alone(recipe, name), folder / name)
    runs[JOINT] = _train_once(recipe, folder / JOINT)
    joint = runs[JOINT][0]
    rows = {t: {k: len(s.splits[k]) for k in s.splits} for s in run.sources for t in s.tasks}
    scores = {}
    for name in recipe.tasks:
        split = joint["splits"][name]
        both = runs[name][0]["tasks"][name], joint["tasks"][name]
        scores[name] = _side_by_side(*both, rows[name][split]) | {"split": split}
    return {"scores": scores, "wall_seconds": {name: took for name, (_, took) in runs.items()}}


def _alone(recipe: Recipe, name: str) -> Recipe:
    """The recipe with one of its tasks; what mixes and weighs tasks is left out."""
    task, training = recipe.tasks[name], dict(recipe.training)
    if isinstance(task.adapter, str):  # the name of one that another task defines
        sections = {
            adapter_name(t, other.adapter): other.adapter
            for t, other in recipe.tasks.items()
            if isinstance(other.adapter, dict)
        }
        task = replace(task, adapter={**sections[task.adapter], "name": task.adapter})
    best = str(training.get("metric_for_best_model", "macro")).removeprefix("eval_")
    if best not in ("macro", "loss"):  # a metric of one task; macro is the main one of the task
        training = {k: v for k, v in training.items() if k not in BEST_MODEL}
    return replace(
        recipe,
        tasks={name: task},
        sampling=Sampling(packing=recipe.sampling.packing, order=recipe.sampling.order),
        balancing=Balancing(),
        optimizer=replace(recipe.optimizer, by_task=False),
        retain=None,
        average=None,
        distill=None,
        freeze=replace(recipe.freeze, heads=[head for head in recipe.freeze.heads if head == name]),
        training=training,
    )


def _train_once(recipe: Recipe, folder: Path) -> tuple[dict[str, Any], float | None]:
    """Scores and seconds of a run in a folder; it is trained unless it is finished there."""
    training = {k: v for k, v in recipe.training.items() if k != "resume_from_checkpoint"}
    recipe = replace(recipe, output_dir=str(folder), training=training)
    path, scores, clock = (folder / n for n in ("recipe.yaml", "scores.json", "wall_seconds.json"))
    text = f"# polyhead train {path}\n{recipe.to_yaml()}"
    same = path.is_file() and path.read_text(encoding="utf-8") == text
    if not same or not scores.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for old in (scores, clock):
            old.unlink(missing_ok=True)
        write_text(path, text)
        logger.info(f"training {folder}")
        began = time.perf_counter()
        train(path, overwrite=True)
        write_json(clock, round(time.perf_counter() - began, 1))
    return read_record(scores, RUN_SCORES, {}), read_json(clock, 0.0) or None


def _side_by_side(single: dict[str, Any], joint: dict[str, Any], rows: int) -> dict[str, Any]:
    """The main metric of a task trained alone and jointly; `gain` is positive where joint wins."""
    metric = main_metric(list(joint))
    values = (single[metric], joint[metric])
    gain = (values[0] - values[1]) if metric in LOWER_IS_BETTER else (values[1] - values[0])
    errors = [_score_error(metric, value, rows) for value in values]
    known = None not in errors and math.isfinite(gain)
    return {
        "metric": metric,
        "rows": rows,
        "single": values[0] if math.isfinite(values[0]) else None,
        "joint": values[1] if math.isfinite(values[1]) else None,
        "gain": gain if math.isfinite(gain) else None,
        "standard_error": math.hypot(*errors) if known else None,  # pyright: ignore
    }


def _score_error(metric: str, value: float, rows: int) -> float | None:
    """The usual standard error of a share, or of a correlation, over so many rows.

    A share gets two rows that are right and two that are wrong (Agresti and Coull, 1998), so that
    all of a few is not taken for certain.
    """
    if metric in LOWER_IS_BETTER or not math.isfinite(value):
        return None
    if metric in CORRELATIONS:
        return (1 - value**2) / math.sqrt(rows)
    share = (value * rows + 2) / (rows + 4)
    return math.sqrt(share * (1 - share) / (rows + 4))
