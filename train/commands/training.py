"""From a recipe to a finished model on disk: prepare, fit, save."""

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..artifacts import (
    HISTORY,
    REPORTS,
    SCORES,
    explained,
    read_json,
    write_aside,
    write_json,
    write_text,
)
from ..errors import UserError
from ..evaluation.alone import in_words, side_by_side
from ..hub.folder import save_folder, write_card
from ..hub.history import Made, line_of, relocated, write_history
from ..hub.push import HUB_ERRORS
from ..hub.run_info import about_run
from ..outputs import MODEL, checkpoints_in, run_faults
from ..recipe.parts import alone
from ..recipe.router import with_rows
from ..recipe.schema import FinishedEncoder, Recipe
from ..records import RUN_SCORES, read_record
from ..reports.curves import training_plots
from ..reports.figures import SECTIONS
from ..reports.page import PAGE
from ..reports.task_report import write_reports
from ..trainer.checkpoints import latest_intact, stays
from ..trainer.fsdp import unsharded_class
from ..trainer.identity import content_of
from ..trainer.trainer import MultiTaskTrainer
from .fitting import fit
from .setup import PreparedRun, prepare
from .teachers import ALONE

logger = logging.getLogger(__name__)


def train(
    path: str | Path,
    overrides: list[str] | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a recipe, save `output_dir/model` and `output_dir/scores.json`.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        overwrite: replace the run that stands in `output_dir`, and nothing else that lies there.

    Returns:
        `{"tasks": {task: {metric: value}}, "macro": value, "splits": {task: split}}`, over test, or
        validation for tasks without test rows.

    Raises:
        UserError: faults of the recipe, its data or its encoder, or a run stands in `output_dir`;
            nothing has been written then.
    """
    run = prepare(path, overrides, check=partial(output_faults, overwrite=overwrite))
    return train_run(run, overwrite=overwrite)[1]


def train_run(
    run: PreparedRun, *, overwrite: bool = False
) -> tuple[MultiTaskTrainer, dict[str, Any]]:
    """Train what was prepared, and save model, scores and reports in its `output_dir`.

    With `compare: single` each task is trained alone before, in `output_dir/alone`.

    Args:
        run: from `prepare`.
        overwrite: replace the run that stands in `output_dir`.

    Returns:
        trainer, and scores as `train` gives them.

    Raises:
        UserError: see `fit`; or what keeps the model from being written or pushed.
    """
    folder = Path(run.recipe.output_dir)
    older = _older_versions(run.recipe)
    singles = {} if run.recipe.compare is None else trained_alone(run.recipe, folder / ALONE)
    run = with_teachers(run)
    trainer, scores, reports = fit(run, overwrite=overwrite)
    state = trainer.gathered_state()  # by all ranks
    if trainer.is_world_process_zero():
        model, metrics = trainer.model_for_tasks, scores.get("tasks")
        compared = _compared(run, singles, scores)
        runs = [run_metadata(trainer, run, scores) | compared]
        advice = partial(stays, folder)
        with write_aside(folder / MODEL, advice=advice) as aside, unsharded_class(model):
            save_folder(model, run.tokenizer, aside, metrics=metrics, runs=runs, state_dict=state)
            write_history(aside, Made("trained", list(run.recipe.tasks)), older)
        with explained(folder, advice):
            write_json(folder / SCORES, scores)
            write_card(model, folder / MODEL, write_run_reports(trainer, reports, folder))
        if trainer.args.push_to_hub:
            _push(trainer, folder / MODEL)
    return trainer, scores


def _older_versions(recipe: Recipe) -> list[dict[str, Any]]:
    """Those of the finished model on disk that a recipe goes on from."""
    spec, target = recipe.encoder, Path(recipe.output_dir) / MODEL
    if not isinstance(spec, FinishedEncoder) or not Path(spec.model).is_dir():
        return []
    return relocated(line_of(Path(spec.model)), Path(spec.model), target)


def trained_alone(recipe: Recipe, folder: Path) -> dict[str, tuple[dict[str, Any], float | None]]:
    """Scores and seconds of each task of a recipe trained alone, in folders of their names.

    Not of a router, whose rows are the others'.
    """
    return {name: train_once(alone(recipe, name), folder / name) for name in with_rows(recipe)}


def with_teachers(run: PreparedRun) -> PreparedRun:
    """The run with the folders of teachers that are the tasks alone; they are trained first."""
    distill, folder = run.recipe.distill, Path(run.recipe.output_dir) / ALONE
    if distill is None or ALONE not in distill.teachers.values():
        return run
    teachers = dict(distill.teachers)
    for name in [name for name, teacher in teachers.items() if teacher == ALONE]:
        train_once(alone(run.recipe, name), folder / name)
        teachers[name] = str(folder / name / MODEL)
    recipe = replace(run.recipe, distill=replace(distill, teachers=teachers))
    return replace(run, recipe=recipe)


def train_once(recipe: Recipe, folder: Path) -> tuple[dict[str, Any], float | None]:
    """Scores and seconds of a run in a folder; trained unless it is finished there.

    It is so where the folder holds the scores of the same recipe on the same rows. Nothing is
    pushed.
    """
    training = dict(recipe.training)
    for key in ("resume_from_checkpoint", "push_to_hub"):
        training.pop(key, None)
    recipe = replace(recipe, output_dir=str(folder), training=training, compare=None)
    run = prepare(recipe, check=partial(output_faults, overwrite=True))
    path, scores, clock = (folder / n for n in ("recipe.yaml", SCORES, "wall_seconds.json"))
    text = _text_of(run, path)
    same = text is not None and path.is_file() and path.read_text(encoding="utf-8") == text
    if not same or not scores.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for old in (scores, clock, path):
            old.unlink(missing_ok=True)
        logger.info(f"training {folder}")
        began = time.perf_counter()
        train_run(run, overwrite=True)
        write_json(clock, round(time.perf_counter() - began, 1))
        if text is not None:
            write_text(path, text)
    return read_record(scores, RUN_SCORES, {}), read_json(clock, 0.0) or None


def _text_of(run: PreparedRun, path: Path) -> str | None:
    """A recipe's text, with hashes of the rows it is trained and scored on; None: not in files."""
    if any(task.data.rows is not None for task in run.recipe.tasks.values()):
        return None
    rows = [
        f"#   {source.name} {split}: {content_of(source.splits[split])}\n"
        for source in run.sources
        for split in sorted(source.splits)
    ]
    return f"# polyhead train {path}\n# rows:\n{''.join(rows)}{run.recipe.to_yaml()}"


def _compared(
    run: PreparedRun, singles: dict[str, tuple[dict[str, Any], Any]], scores: dict[str, Any]
) -> dict[str, Any]:
    """For `training.json`: each task alone and jointly; a line of the log for each."""
    table = {}
    for name, (single, _) in singles.items():
        split = scores["splits"][name]
        both = single["tasks"][name], scores["tasks"][name]
        table[name] = side_by_side(*both, run.rows_of(name)[split], split)
        logger.info(f"{name}: {in_words(table[name])}")
    return {"alone": table} if table else {}


def output_faults(recipe: Recipe, *, overwrite: bool) -> list[str]:
    """What keeps a recipe from being trained into its `output_dir`."""
    folder, resume = Path(recipe.output_dir), recipe.training.get("resume_from_checkpoint")
    if isinstance(resume, str):
        goes_on = folder.resolve() in Path(resume).resolve().parents
    else:  # with broken checkpoints alone it starts anew
        broken = checkpoints_in(folder) and not (folder / MODEL).exists()
        goes_on = resume is True and (latest_intact(folder) is not None or bool(broken))
    return run_faults(folder, goes_on=goes_on, overwrite=overwrite)


def _push(trainer: MultiTaskTrainer, folder: Path) -> None:
    """Push the finished model; where that fails, say where it is and what to type."""
    try:
        logger.info(f"pushed to {trainer.push_folder(folder)['repo']}")
    except HUB_ERRORS as error:
        line = str(error).strip().splitlines()[0]
        again = f"polyhead push {folder} {trainer.hub_model_id}"
        raise UserError("push", [f"{line}; the model is saved, type: {again}"]) from error


def run_metadata(
    trainer: MultiTaskTrainer, run: PreparedRun, scores: dict[str, Any]
) -> dict[str, Any]:
    """What `training.json` says of a finished training."""
    runtimes = [
        line["train_runtime"] for line in trainer.state.log_history if "train_runtime" in line
    ]
    device = trainer.args.device
    record = about_run(
        run.recipe,
        run.sources,
        trainer.state,
        splits=scores.get("splits", {}),
        seconds=sum(runtimes),
        resumed=bool(trainer.args.resume_from_checkpoint),
        processes=trainer.args.world_size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )
    if trainer.average is not None:
        record["average"] = trainer.average.record()
    decisions = scores.get("decisions")
    return {**record, "decisions": decisions} if decisions else record


def write_run_reports(
    trainer: MultiTaskTrainer, reports: dict[str, Any], folder: Path
) -> list[Path]:
    """Write the log, a report of each task, and their pictures; after the model is saved.

    Returns:
        the pictures of the tasks.
    """
    _remove_reports(folder / REPORTS)
    write_json(folder / HISTORY, trainer.state.log_history)
    training_plots(trainer.state.log_history, trainer.model_for_tasks.task_names, folder)
    return write_reports(folder, reports)


def _remove_reports(folder: Path) -> None:
    """Remove an earlier run's reports, their pictures and its page; the new run may lack a task."""
    (folder / PAGE).unlink(missing_ok=True)
    for path in folder.glob("*.json"):
        for section in SECTIONS:
            (folder / f"{path.stem}_{section}.png").unlink(missing_ok=True)
        path.unlink()
