"""A recipe made ready to train: data, model, tokenizer and arguments, all checked.

`prepare` is the whole of it: what it returns is trained as it is, and nothing has been written.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.task_config import TaskConfig
from ..adapters import attach_adapters
from ..batches.strategies import passes_by_source
from ..data.loading import Source, load_sources
from ..errors import UserError
from ..evaluation.scoring import MetricFunction
from ..inference.load import load_model
from ..kinds import kind_of
from ..kinds.values import is_missing
from ..optimization.by_task import learning_rates, model_faults
from ..optimization.parameter_groups import freeze_faults, idle_faults
from ..recipe.arguments import optimizer_faults, training_arguments
from ..recipe.data_config import ROUTER
from ..recipe.decide import decisions_of
from ..recipe.reader import load_recipe
from ..recipe.schema import Recipe
from ..recipe.sections import FewShot, MultiTaskArguments
from ..trainer.checkpoints import is_intact
from .encoders import Keep, add_heads, build_model, extend_heads, origin_of
from .teachers import teacher_faults


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a caller of Python adds to the trainer.

    Args:
        callbacks: of the Trainer.
        compute_metrics: see `MultiTaskTrainer`.
        optimizers: the model, with its heads and adapters, to its optimizer and scheduler, or None
            for the scheduler of the arguments.
    """

    callbacks: Sequence[TrainerCallback] = ()
    compute_metrics: MetricFunction | None = None
    optimizers: Callable[[PolyheadModel], tuple[Any, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """All that a training needs, checked and fitting together.

    Args:
        recipe: the recipe.
        sources: its checked rows.
        model: encoder with a head and an adapter for each task that has one.
        tokenizer: with `model_max_length` set.
        args: the recipe's TrainingArguments.
        hooks: what a caller of Python adds.
    """

    recipe: Recipe
    sources: list[Source]
    model: PolyheadModel
    tokenizer: PreTrainedTokenizerBase
    args: TrainingArguments
    hooks: Hooks = Hooks()

    @property
    def configs(self) -> dict[str, TaskConfig]:
        """The model's tasks."""
        return self.model.config.tasks

    @property
    def origin(self) -> str:
        """What tells the encoder's first weights from others."""
        stages = {name: asdict(options) for name, options in self.few_shot.items()}
        return " ".join([origin_of(self.recipe.encoder), *([f"few_shot: {stages}"] * bool(stages))])

    @property
    def few_shot(self) -> dict[str, FewShot]:
        """The tasks whose pairs of rows train the encoder first."""
        tasks = self.recipe.tasks.items()  # a finished model has others too
        return {name: task.few_shot for name, task in tasks if task.few_shot is not None}

    @property
    def evaluates(self) -> bool:
        """Some task has validation rows."""
        return _has_validation(self.sources)

    @property
    def multitask(self) -> MultiTaskArguments:
        """How the recipe trains several tasks."""
        recipe = self.recipe
        return MultiTaskArguments(
            sampling=recipe.sampling,
            passes=passes_by_source(recipe, self.tasks_by_source),
            balancing=recipe.balancing,
            freeze=recipe.freeze,
            optimizer=recipe.optimizer,
            rates=learning_rates(recipe),
            stopping=recipe.stopping,
            nan_loss=recipe.nan_loss,
            retain=recipe.retain,
            average=recipe.average,
            distill=recipe.distill,
            cached={name for name, task in recipe.tasks.items() if task.cached},
        )

    @property
    def tasks_by_source(self) -> dict[str, list[str]]:
        """Source name to its tasks."""
        return {source.name: list(source.tasks) for source in self.sources}

    def rows_of(self, task: str) -> dict[str, int]:
        """Split to its number of rows."""
        source = next(source for source in self.sources if task in source.tasks)
        return {split: len(rows) for split, rows in source.splits.items()}


def prepare(
    recipe: str | Path | Recipe,
    overrides: list[str] | None = None,
    *,
    onto: str | Path | None = None,
    keep: Keep | None = None,
    check: Callable[[Recipe], list[str]] = lambda recipe: [],
    args: TrainingArguments | None = None,
    hooks: Hooks | None = None,
) -> PreparedRun:
    """Load and check everything that a recipe names; nothing is written.

    Args:
        recipe: the recipe, or the name of its file.
        overrides: `key=value` with dotted keys.
        onto: a finished model that the recipe's tasks are added to; all else in it is frozen.
        keep: the recipe's tasks are the model's own, which get more labels; see `extend_task.py`.
        check: further faults of the recipe, before its data are read.
        args: instead of those that the recipe's `training` makes.
        hooks: what a caller of Python adds to the trainer.

    Raises:
        UserError: with all faults of the recipe, or all of the data, of the encoder, or of the
            arguments.
    """
    finished = None if onto is None else load_model(onto)
    if not isinstance(recipe, Recipe):
        config = None if finished is None else finished[0].config
        recipe = load_recipe(recipe, overrides, onto=config, extends=keep is not None)
    if faults := check(recipe):
        raise UserError(recipe.path, faults)
    sources = load_sources(recipe)
    set_seed(int(recipe.training.get("seed", 42)))
    model, tokenizer = _with_heads(recipe, sources, finished, keep)
    if faults := _teacher_faults(sources, model):
        raise UserError(recipe.path, faults)
    run = PreparedRun(
        recipe=recipe,
        sources=sources,
        model=model,
        tokenizer=tokenizer,
        args=args or training_arguments(recipe, evaluates=_has_validation(sources)),
        hooks=hooks or Hooks(),
    )
    if faults := _argument_faults(run):
        raise UserError(recipe.path, faults)
    return run


def _with_heads(
    recipe: Recipe,
    sources: list[Source],
    finished: tuple[PolyheadModel, PreTrainedTokenizerBase] | None,
    keep: Keep | None,
) -> tuple[PolyheadModel, PreTrainedTokenizerBase]:
    """The recipe's encoder, or a finished model, with new heads and adapters."""
    configs = {name: source.configs[name] for source in sources for name in source.configs}
    configs = {name: configs[name] for name in sorted(configs)}
    try:
        if finished is None:
            model, tokenizer = build_model(recipe, configs, sources)
        else:
            model, tokenizer = finished
            if keep is None:
                add_heads(model, tokenizer, configs)
            else:
                extend_heads(model, configs, keep)
        attach_adapters(model, {name: recipe.tasks[name].adapter for name in configs})
        if recipe.router:
            model.config.router = ROUTER
    except UserError:
        raise
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        name = f"{recipe.encoder}: " if isinstance(recipe.encoder, str) else ""
        raise UserError(recipe.path, [f"encoder: {name}{lines[0]}"]) from error
    return model, tokenizer


def _has_validation(sources: list[Source]) -> bool:
    return any("validation" in source.splits for source in sources)


# ---- checks ----


def _teacher_faults(sources: list[Source], model: PolyheadModel) -> list[str]:
    """Vectors of a teacher that are wider or narrower than the embeddings."""
    faults = []
    for source in sources:
        for name, config in source.configs.items():
            if kind_of(config).label_type == "vector":
                column, head = source.tasks[name].data.label, model.heads[name]
                teacher = len(source.splits["train"][0][column])
                width: int = head.widths[0]  # pyright: ignore
                if teacher != width:
                    faults.append(
                        f"tasks.{name}.data.label: vectors of {teacher} numbers, but the "
                        f"embeddings have {width}; write projection: {teacher}"
                    )
    return faults


def _argument_faults(run: PreparedRun) -> list[str]:
    """Arguments that do not fit the data, the model or the machine."""
    recipe, args = run.recipe, run.args
    faults = [*_rank_faults(args), *_resume_faults(args)]
    if args.eval_on_start and args.eval_strategy == "no":
        faults.append("training.eval_on_start: there are no evaluations; give a validation split")
    faults += _best_model_faults(run)
    faults += optimizer_faults(args)
    faults += teacher_faults(recipe, run.model)
    misfits = freeze_faults(run.model, recipe.freeze, recipe.optimizer, args)
    faults += misfits or idle_faults(run.model, recipe.freeze, recipe.tasks)
    if not misfits:
        faults += model_faults(run.model, run.multitask, run.tasks_by_source)
    if recipe.stopping is not None and args.eval_strategy == "no":
        faults.append("stopping: there are no evaluations to stop by")
    faults += _compare_faults(run)
    faults += _decide_faults(run)
    if recipe.average is not None and recipe.average.start == "auto" and not run.evaluates:
        fault = "there are no validation rows to choose the share by"
        faults.append(f"average.start: {fault}; write a number, as 0.2")
    return faults


def _decide_faults(run: PreparedRun) -> list[str]:
    """Tasks without labelled validation rows to decide on, or with thresholds of another origin."""
    faults = []
    for source in run.sources:
        for name in set(source.tasks) & set(decisions_of(run.recipe)):
            strict = run.configs[name].strict
            rows = source.splits.get("validation")
            labels = [] if rows is None else source.split_rows(name, rows[:]).labels
            if strict:
                fault = f"{', '.join(strict)} have thresholds of their own; take it out"
                faults.append(f"tasks.{name}.decide: {fault}")
            elif all(map(is_missing, labels)):
                faults.append(
                    f"tasks.{name}.data: no validation rows with a label, and decide is made by "
                    "them; give some, as splits: {train: 'train[:90%]', validation: "
                    f"'train[90%:]'}}, or write decide: {{}} for {name}"
                )
    return sorted(faults)


def _compare_faults(run: PreparedRun) -> list[str]:
    """What keeps tasks from being trained alone on the same budget, and scored."""
    if run.recipe.compare is None:
        return []
    faults = []
    if run.args.world_size > 1:
        faults.append("compare: the tasks alone are trained by one process; take it out")
    if run.args.max_steps > 0:
        faults.append(
            "training.max_steps: a task alone would see more of its rows than jointly; write "
            "num_train_epochs beside compare"
        )
    for source in run.sources:
        if not {"test", "validation"} & set(source.splits):
            faults.append(f"tasks.{source.name}.data: no test or validation rows to compare on")
    return faults


def _rank_faults(args: TrainingArguments) -> list[str]:
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == args.world_size:
        return []
    how = f"{started} processes were started, but each would train alone"
    return [f"{how}; on CPUs type training.use_cpu=true"]


def _resume_faults(args: TrainingArguments) -> list[str]:
    folder = args.resume_from_checkpoint
    if not isinstance(folder, str):
        return []
    if not Path(folder).is_dir():
        return [f"training.resume_from_checkpoint: there is no folder {folder}"]
    if not is_intact(folder):
        return [f"training.resume_from_checkpoint: {folder} is no whole checkpoint"]
    return []


def _best_model_faults(run: PreparedRun) -> list[str]:
    """A metric to choose the best checkpoint by that no evaluation gives."""
    if not run.args.load_best_model_at_end:
        return []
    names = {"loss", "macro"}
    for source in run.sources:
        for task in source.tasks if "validation" in source.splits else ():
            options = source.tasks[task]
            kind = kind_of(run.configs[task]).scored_as(options)
            metrics = options.metrics or kind.default_metrics
            names |= {f"{task}_{metric}" for metric in ["loss", *metrics]}
            if "entity_f1" in metrics:
                names |= {f"{task}_precision", f"{task}_recall"}
    best = str(run.args.metric_for_best_model).removeprefix("eval_")
    owners = tuple(f"{name}_" for name in run.configs)
    may_come = run.hooks.compute_metrics is not None and best.startswith(owners)
    if best in names or may_come:
        return []
    fault = f"training.metric_for_best_model: {best!r} is unknown"
    return [f"{fault}; allowed: {', '.join(sorted(names))}"]
