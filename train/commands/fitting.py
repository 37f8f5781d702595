"""A prepared run is trained and scored; nothing but checkpoints is written."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..artifacts import (
    clean_up,
)
from ..batches.sampler import epochs_of
from ..data.dataset import MultiTaskDataset
from ..data.loading import unseen_labels
from ..data.tokenization import cut_notes, tokenize
from ..errors import Interrupted, UserError
from ..evaluation.scoring import EvalSplit, eval_splits, macro
from ..outputs import begin_anew, checkpoints_in
from ..reports.row_maps import row_maps
from ..reports.task_report import decisions_in
from ..trainer.checkpoints import is_intact, latest_intact
from ..trainer.identity import check_resume
from ..trainer.trainer import MultiTaskTrainer
from .deciding import decide
from .encoders import length_notes
from .few_shot import train_on_pairs
from .setup import PreparedRun
from .teachers import distil
from .teaching_elsewhere import teach_others

logger = logging.getLogger(__name__)


def fit(
    run: PreparedRun, *, overwrite: bool = False
) -> tuple[MultiTaskTrainer, dict[str, Any], dict[str, Any]]:
    """Train what was prepared and score it; the finished model is not saved yet.

    Args:
        run: from `prepare`.
        overwrite: remove the checkpoints that stand in `output_dir`.

    Returns:
        trainer, scores as `train` gives them, and a report of each task for `describe`.

    Raises:
        UserError: what only the tokenized rows, the number of ranks and the installed packages
            tell; nothing has been written then.
    """
    for line in unseen_labels(run.sources):
        logger.warning(line)
    trainer = make_trainer(run)
    for line in length_notes(run.recipe, run.model, run.tokenizer):
        logger.info(line)
    for line in _cut_notes(trainer, run):
        logger.warning(line)
    assert trainer.sampler is not None
    for line in trainer.sampler.summary(epochs_of(run.args, trainer.sampler)):
        logger.info(line)
    if run.recipe.compute != "exact":
        logger.info(f"compute: {run.model.set_compute(run.recipe.compute).reason}")
    _make_room(run.args, overwrite=overwrite)
    checkpoint = resume_from(run.args)
    for line in _damaged(run.args, checkpoint):
        logger.warning(line)
    for line in [] if checkpoint is None else check_resume(checkpoint, trainer.identity):
        logger.warning(line)
    _train_before(trainer, run, checkpoint)
    try:
        with trainer.sigterm:
            trainer.train(resume_from_checkpoint=checkpoint)
    except (Interrupted, UserError):  # close the bar and trackers, as HF does after a whole run
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        raise
    decide(trainer, run)
    return trainer, *final_scores(trainer, run)


def _train_before(trainer: MultiTaskTrainer, run: PreparedRun, checkpoint: str | None) -> None:
    """What other models say of the rows, and the stage that comes before the first checkpoint."""
    if run.recipe.distill is not None and run.recipe.distill.rows == "own":
        distil(trainer, run.recipe, run.sources)
    if run.few_shot and checkpoint is None:
        train_on_pairs(trainer, run)


def final_scores(trainer: MultiTaskTrainer, run: PreparedRun) -> tuple[dict[str, Any], dict]:
    """Scores and reports on test, and on validation for the sources without test rows."""
    scores: dict[str, Any] = {}
    reports: dict[str, dict[str, Any]] = {}
    splits: dict[str, str] = {}
    for split in ("test", "validation"):
        chosen = [s for s in run.sources if split in s.splits and s.name not in splits]
        parts = eval_splits(chosen, split, run.tokenizer, run.configs)
        values, _ = trainer.evaluate_tasks(parts, split, reports=reports)
        scores |= values
        splits |= {source.name: split for source in chosen}
    if not scores:
        return {}, {}
    by_task = {task: splits[s.name] for s in run.sources if s.name in splits for task in s.tasks}
    whole = {"tasks": dict(sorted(scores.items())), "macro": macro(scores), "splits": by_task}
    if decided := decisions_in(reports):
        whole["decisions"] = decided
    for task, section in _row_maps(trainer, run).items():
        reports[task]["map"] = section
    return whole, reports


def make_trainer(run: PreparedRun) -> MultiTaskTrainer:
    """The Trainer of a prepared run, with its rows tokenized.

    Raises:
        UserError: options, rows or packages that do not fit.
    """
    rows = {source.name: tokenize(source, "train", run.tokenizer) for source in run.sources}
    if run.recipe.distill is not None and run.recipe.distill.rows == "others":
        rows = teach_others(run, rows)
    evaluation = None
    if run.evaluates:
        evaluation = eval_splits(run.sources, "validation", run.tokenizer, run.configs)
    try:
        return MultiTaskTrainer(
            model=run.model,
            args=run.args,
            processing_class=run.tokenizer,
            sources=run.tasks_by_source,
            train_dataset=MultiTaskDataset(rows),
            eval_dataset=evaluation,
            callbacks=list(run.hooks.callbacks),
            compute_metrics=run.hooks.compute_metrics,
            optimizers=_optimizers(run),
            multitask=run.multitask,
            origin=run.origin,
            train_splits=_train_splits(run),
        )
    except UserError:
        raise
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(run.recipe.path, [" ".join(str(error).split())]) from error


def _train_splits(run: PreparedRun) -> dict[str, EvalSplit]:
    """Training rows to score beside the validation rows, by chance."""
    count, seed = run.recipe.train_scores, run.args.seed
    if count is None:
        return {}
    if not run.evaluates:
        fault = "train_scores: nothing is evaluated while training; give validation rows"
        raise UserError(run.recipe.path, [fault])
    sources = []
    for source in run.sources:
        rows = source.splits["train"]
        rows = rows.shuffle(seed=seed).select(range(min(count, len(rows))))
        sources.append(replace(source, splits={"train": rows}))
    return eval_splits(sources, "train", run.tokenizer, run.configs)


def _optimizers(run: PreparedRun) -> tuple[Any, Any]:
    """The optimizer and scheduler of a caller of Python; None for those of the arguments."""
    if run.hooks.optimizers is None:
        return None, None
    made = run.hooks.optimizers(run.model)
    if not isinstance(made, tuple) or len(made) != 2:
        fault = f"optimizers: gave {made!r:.60}; return (optimizer, scheduler or None)"
        raise UserError(run.recipe.path, [fault])
    weights = {id(parameter) for parameter in run.model.parameters()}
    if any(id(p) not in weights for group in made[0].param_groups for p in group["params"]):
        fault = "optimizers: the optimizer has weights that are not those of the model it was given"
        raise UserError(run.recipe.path, [fault])
    return made


def _row_maps(trainer: MultiTaskTrainer, run: PreparedRun) -> dict[str, dict[str, Any]]:
    """Validation rows of each scored task on a plane, or test rows; none of weights in shards."""
    if (
        trainer.is_fsdp_enabled
        or trainer.is_deepspeed_enabled
        or not trainer.is_world_process_zero()
    ):
        return {}
    splits: dict[str, EvalSplit] = {}
    for split in ("test", "validation"):  # the latter goes before
        splits |= eval_splits(run.sources, split, run.tokenizer, run.configs)
    model, prepare = trainer.model_for_tasks, trainer.prepare_inputs
    collator = trainer.evaluation.collator
    return row_maps(model, splits, collator, prepare, seed=run.args.seed)


def _cut_notes(trainer: MultiTaskTrainer, run: PreparedRun) -> list[str]:
    """Lines on texts of train and validation that are too long for what reads them."""
    dataset: Any = trainer.train_dataset
    tasks = run.tasks_by_source
    parts = [(tasks[name], "train", rows) for name, rows in dataset.parts.items()]
    splits: Any = trainer.eval_dataset or {}
    parts += [(list(part.source.tasks), part.split, part.rows) for part in splits.values()]
    limit = run.tokenizer.model_max_length
    return [
        line
        for names, split, rows in parts
        for line in cut_notes(rows, split, {name: run.configs[name] for name in names}, limit)
    ]


def _damaged(args: TrainingArguments, checkpoint: str | None) -> list[str]:
    """A line on checkpoints that resuming passes over."""
    if args.resume_from_checkpoint is not True:
        return []
    names = [c.name for c in checkpoints_in(Path(str(args.output_dir))) if not is_intact(c)]
    if not names:
        return []
    way = "training begins anew" if checkpoint is None else f"resumed from {Path(checkpoint).name}"
    return [f"{', '.join(names)}: damaged; {way}"]


def _make_room(args: TrainingArguments, *, overwrite: bool) -> None:
    """End what a killed process was writing, and move away the run that is replaced."""
    folder = str(args.output_dir)
    with args.main_process_first(local=args.save_on_each_node):
        clean_up(folder)
        if overwrite:
            begin_anew(Path(folder))


def resume_from(args: TrainingArguments) -> str | None:
    """The checkpoint to resume from: the one named, or for `true` the latest intact one."""
    wish = args.resume_from_checkpoint
    if wish in (None, False):
        return None
    return latest_intact(str(args.output_dir)) if wish is True else str(wish)
