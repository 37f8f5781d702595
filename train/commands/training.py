"""From a recipe to a finished model on disk, and from a model and a recipe to scores."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ...modeling.configuration_polyhead import TaskConfig
from ..artifacts import (
    HISTORY,
    REPORTS,
    SCORES,
    clean_up,
    explained,
    write_aside,
    write_json,
)
from ..batches.sampler import epochs_of
from ..data.dataset import MultiTaskDataset
from ..data.loading import load_sources, unseen_labels
from ..data.tokenization import tokenize
from ..errors import Interrupted, UserError
from ..evaluation.scoring import eval_splits, macro
from ..hub.card import about_run
from ..hub.folder import save_folder, write_card
from ..hub.push import HUB_ERRORS
from ..inference.exported import load_any
from ..outputs import MODEL, begin_anew, checkpoints_in, run_faults
from ..recipe.reader import load_recipe
from ..recipe.schema import Recipe
from ..reports.curves import training_plots
from ..reports.figures import SECTIONS
from ..reports.page import PAGE
from ..reports.task_report import write_reports
from ..trainer.checkpoints import is_intact, latest_intact, stays
from ..trainer.fsdp import unsharded_class
from ..trainer.identity import check_resume
from ..trainer.trainer import MultiTaskTrainer
from .setup import Prepared, checked_arguments, prepare


def train(
    path: str | Path,
    overrides: list[str] | None = None,
    *,
    overwrite: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a recipe, save `output_dir/model` and `output_dir/scores.json`.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        overwrite: replace the run that stands in `output_dir`, and nothing else that lies there.
        notify: called with each line worth knowing before training starts.

    Returns:
        `{"tasks": {task: {metric: value}}, "macro": value, "splits": {task: split}}`, over test, or
        validation for tasks without test rows.

    Raises:
        UserError: faults of the recipe, its data or its encoder, or a run stands in `output_dir`;
            nothing has been written then.
    """
    found = prepare(path, overrides, check=partial(output_faults, overwrite=overwrite))
    trainer, scores, reports = fit(found, str(path), notify, overwrite=overwrite)
    state = trainer.gathered_state()  # by all ranks
    if trainer.is_world_process_zero():
        folder = Path(found.recipe.output_dir)
        model, metrics = trainer.model_for_tasks, scores.get("tasks")
        runs = [about(trainer, found, scores)]
        advice = partial(stays, folder)
        with write_aside(folder / MODEL, advice=advice) as aside, unsharded_class(model):
            save_folder(model, found.tokenizer, aside, metrics=metrics, runs=runs, state_dict=state)
        with explained(folder, advice):
            write_json(folder / SCORES, scores)
            write_card(model, folder / MODEL, describe(trainer, reports, folder))
        if trainer.args.push_to_hub:
            _push(trainer, folder / MODEL, notify)
    return scores


def output_faults(recipe: Recipe, *, overwrite: bool) -> list[str]:
    """What keeps a recipe from being trained into its `output_dir`."""
    folder, resume = Path(recipe.output_dir), recipe.training.get("resume_from_checkpoint")
    if isinstance(resume, str):
        goes_on = folder.resolve() in Path(resume).resolve().parents
    else:  # with broken checkpoints alone it starts anew
        broken = checkpoints_in(folder) and not (folder / MODEL).exists()
        goes_on = resume is True and (latest_intact(folder) is not None or bool(broken))
    return run_faults(folder, goes_on=goes_on, overwrite=overwrite)


def _push(trainer: MultiTaskTrainer, folder: Path, notify: Callable[[str], None]) -> None:
    """Push the finished model; where that fails, say where it is and what to type."""
    try:
        notify(f"pushed to {trainer.push_folder(folder)['repo']}")
    except HUB_ERRORS as error:
        line = str(error).strip().splitlines()[0]
        again = f"polyhead push {folder} {trainer.hub_model_id}"
        raise UserError("push", [f"{line}; the model is saved, type: {again}"]) from error


def about(trainer: MultiTaskTrainer, found: Prepared, scores: dict[str, Any]) -> dict[str, Any]:
    """What `training.json` says of a finished training."""
    took = [line["train_runtime"] for line in trainer.state.log_history if "train_runtime" in line]
    device = trainer.args.device
    return about_run(
        found.recipe,
        found.sources,
        trainer.state,
        splits=scores.get("splits", {}),
        seconds=sum(took),
        resumed=bool(trainer.args.resume_from_checkpoint),
        processes=trainer.args.world_size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def fit(
    found: Prepared, path: str, notify: Callable[[str], None], *, overwrite: bool = False
) -> tuple[MultiTaskTrainer, dict[str, Any], dict[str, Any]]:
    """Train what was prepared and score it; the finished model is not saved yet.

    Returns:
        trainer, scores as `train` gives them, and a report of each task for `describe`.

    Args:
        found: recipe, data and model.
        path: the recipe, for errors.
        notify: called with each line worth knowing before training starts.
        overwrite: remove the checkpoints that stand in `output_dir`.

    Raises:
        UserError: arguments that training would stumble over; nothing has been written then.
    """
    tokenizer, model = found.tokenizer, found.model
    args = checked_arguments(found, path)
    for line in unseen_labels(found.sources):  # after the arguments: they say which rank this is
        notify(line)
    options: dict[str, Any] = {
        "model": model,
        "args": args,
        "tokenizer": tokenizer,
        "sources": found.tasks_by_source,
        "train_dataset": MultiTaskDataset(
            {source.name: tokenize(source, "train", tokenizer) for source in found.sources}
        ),
        "eval_dataset": eval_splits(found.sources, "validation", tokenizer, found.configs)
        if found.evaluates
        else None,
        "multitask": found.multitask,
        "origin": found.origin,
    }
    try:
        trainer = MultiTaskTrainer(**options)
    except UserError:
        raise
    except (ValueError, ImportError, RuntimeError) as error:
        # what only the tokenized rows, the number of ranks and the installed packages tell
        raise UserError(path, [" ".join(str(error).split())]) from error
    assert trainer.sampler is not None
    for line in trainer.sampler.summary(epochs_of(args, trainer.sampler)):
        notify(line)
    if found.recipe.compute != "exact":
        notify(f"compute: {model.set_compute(found.recipe.compute).reason}")
    checkpoint = _checkpoint(args, overwrite=overwrite)
    for line in _damaged(args, checkpoint):
        notify(line)
    for line in [] if checkpoint is None else check_resume(checkpoint, trainer.identity):
        notify(line)
    try:
        with trainer.sigterm:
            trainer.train(resume_from_checkpoint=checkpoint)
    except (Interrupted, UserError):  # close the bar and trackers, as HF does after a whole run
        trainer.callback_handler.on_train_end(args, trainer.state, trainer.control)
        raise
    return trainer, *_final_scores(trainer, found)


def describe(trainer: MultiTaskTrainer, reports: dict[str, Any], folder: Path) -> list[Path]:
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


def evaluate(
    model_path: str | Path,
    recipe_path: str | Path,
    overrides: list[str] | None = None,
    *,
    split: str = "test",
    notify: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Score a saved or exported model on a recipe's data.

    Args:
        model_path: folder of the model.
        recipe_path: YAML file.
        overrides: `key=value`, as in `load_recipe`.
        split: train, validation or test.
        notify: called with each line worth knowing of how labels were read.

    Returns:
        `{"tasks": {task: {metric: value}}, "macro": value}`.

    Raises:
        UserError: faults of the recipe or data, a task that the model lacks, no rows in `split`.
    """
    model, tokenizer = load_any(model_path)
    recipe = load_recipe(recipe_path, overrides, scored=model.config)
    sources = load_sources(recipe, str(recipe_path))
    faults = []
    for source in sources:
        for name, config in source.configs.items():
            own = model.config.tasks.get(name)
            fault = _misfit(own, config) if own else None
            if own is None:
                known = ", ".join(model.task_names)
                faults.append(f"tasks.{name}: the model has no such task; it has: {known}")
            elif fault:
                faults.append(f"tasks.{name}.{fault}")
        if split not in source.splits:
            faults.append(f"tasks.{source.name}.data: has no split {split}")
    if faults:
        raise UserError(str(recipe_path), faults)
    for line in unseen_labels(sources, model.config.tasks, split):
        notify(line)
    found = Prepared(recipe, sources, model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:  # a Trainer makes its output_dir
        args = TrainingArguments(
            output_dir=folder,
            remove_unused_columns=False,
            per_device_eval_batch_size=recipe.training.get("per_device_eval_batch_size", 32),
            seed=recipe.training.get("seed", 42),
            dataloader_pin_memory=torch.accelerator.is_available(),
        )
        trainer = MultiTaskTrainer(
            model=model, args=args, tokenizer=tokenizer, sources=found.tasks_by_source
        )
        parts = eval_splits(sources, split, tokenizer, found.configs)
        scores, _ = trainer.evaluate_tasks(parts, split)
    return {"tasks": scores, "macro": macro(scores)}


def _misfit(own: TaskConfig, config: TaskConfig) -> str | None:
    """Why a model's task cannot be scored on rows of another one."""
    if (own.head, own.problem_type) != (config.head, config.problem_type):
        return f"head: the model's is {own.head}, {own.problem_type}"
    tags = set(config.labels or []) - {"O"}
    if tags and (own.scheme is None) != (config.scheme is None):
        return (
            f"data.label: tags of scheme {config.scheme}, but the model's are of {own.scheme}; "
            f"write them as {', '.join((own.labels or [])[:5])}"
        )
    return None


def _final_scores(trainer: MultiTaskTrainer, found: Prepared) -> tuple[dict[str, Any], dict]:
    """Scores and reports on test, and on validation for the sources without test rows."""
    scores: dict[str, Any] = {}
    reports: dict[str, dict[str, Any]] = {}
    splits: dict[str, str] = {}
    for split in ("test", "validation"):
        chosen = [s for s in found.sources if split in s.splits and s.name not in splits]
        parts = eval_splits(chosen, split, found.tokenizer, found.configs)
        values, _ = trainer.evaluate_tasks(parts, split, reports=reports)
        scores |= values
        splits |= {source.name: split for source in chosen}
    if not scores:
        return {}, {}
    by_task = {task: splits[s.name] for s in found.sources if s.name in splits for task in s.tasks}
    found_scores = {"tasks": dict(sorted(scores.items())), "macro": macro(scores)}
    return {**found_scores, "splits": by_task}, reports


def _damaged(args: TrainingArguments, checkpoint: str | None) -> list[str]:
    """A line on checkpoints that resuming passes over."""
    if args.resume_from_checkpoint is not True:
        return []
    names = [c.name for c in checkpoints_in(Path(str(args.output_dir))) if not is_intact(c)]
    if not names:
        return []
    way = "training begins anew" if checkpoint is None else f"resumed from {Path(checkpoint).name}"
    return [f"{', '.join(names)}: damaged; {way}"]


def _checkpoint(args: TrainingArguments, *, overwrite: bool = False) -> str | None:
    """The checkpoint to resume from: the one named, or for `true` the latest intact one."""
    output_dir, wanted = str(args.output_dir), args.resume_from_checkpoint
    with args.main_process_first(local=args.save_on_each_node):
        clean_up(output_dir)  # what a killed process left
        if overwrite:
            begin_anew(Path(output_dir))
    if wanted in (None, False):
        return None
    return latest_intact(output_dir) if wanted is True else str(wanted)
