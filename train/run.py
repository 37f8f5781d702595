"""From a recipe to a finished model on disk, and from a model and a recipe to scores."""

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from ..modeling.configuration_polyhead import PolyheadConfig, TaskConfig
from ..modeling.modeling_polyhead import PolyheadModel, usable_length
from .adapters import attach_adapters
from .checkpoints import clean_up, latest_intact, write_aside
from .curves import training_plots
from .data import Source, load_sources, unseen_labels
from .errors import Left, RecipeError
from .evaluation import eval_splits, macro
from .features import MultiTaskDataset, tokenize
from .hub import save_folder, write_json
from .metrics import default_metrics
from .optimization import freeze_faults
from .recipe import load_recipe, training_arguments
from .reports import write_reports
from .run_report import HISTORY
from .sampler import epochs_of
from .schema import MultiTaskArguments, Recipe, ScratchEncoder
from .sharding import own_class
from .strategies import passes_by_source
from .trainer import MultiTaskTrainer

DEFAULT_LENGTH = 512  # for an encoder and a tokenizer that both know no limit


@dataclass
class Prepared:
    """A recipe whose data and encoder have been loaded and found good.

    Args:
        recipe: the recipe.
        sources: its checked data.
        model: encoder with a new head for each task.
        tokenizer: with `model_max_length` set.
    """

    recipe: Recipe
    sources: list[Source]
    model: PolyheadModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def configs(self) -> dict[str, TaskConfig]:
        """The model's tasks."""
        return self.model.config.tasks

    @property
    def evaluates(self) -> bool:
        """Some task has validation rows."""
        return any("validation" in source.splits for source in self.sources)

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
            stopping=recipe.stopping,
            nan_loss=recipe.nan_loss,
            cached={name for name, task in recipe.tasks.items() if task.cached},
        )

    @property
    def tasks_by_source(self) -> dict[str, list[str]]:
        """Source name to its tasks."""
        return {source.name: list(source.tasks) for source in self.sources}


def prepare(
    path: str | Path, overrides: list[str] | None = None, *, onto: str | Path | None = None
) -> Prepared:
    """Load and check everything that a recipe names; nothing is written.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        onto: a finished model that the recipe's tasks are added to; all else in it is frozen.

    Raises:
        RecipeError: with all faults of the recipe, or all of the data, or of the encoder.
    """
    given = None if onto is None else load_model(onto)
    recipe = load_recipe(path, overrides, onto=None if given is None else given[0].config)
    sources = load_sources(recipe, str(path))
    set_seed(int(recipe.training.get("seed", 42)))
    configs = {name: source.configs[name] for source in sources for name in source.configs}
    configs = {name: configs[name] for name in sorted(configs)}
    try:
        model, tokenizer = _make_model(recipe, configs) if given is None else given
        if given is not None:
            model.requires_grad_(requires_grad=False)
            _add_tasks(model, tokenizer, configs)
        attach_adapters(model, {name: recipe.tasks[name].adapter for name in configs})
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        name = f"{recipe.encoder}: " if isinstance(recipe.encoder, str) else ""
        raise RecipeError(str(path), [f"encoder: {name}{lines[0]}"]) from error
    return Prepared(recipe, sources, model, tokenizer)


def train(
    path: str | Path,
    overrides: list[str] | None = None,
    *,
    notify: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a recipe, save `output_dir/model` and `output_dir/scores.json`.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        notify: called with each line worth knowing before training starts.

    Returns:
        `{"tasks": {task: {metric: value}}, "macro": value, "splits": {task: split}}`, over test, or
        validation for tasks without test rows.

    Raises:
        RecipeError: faults of the recipe, its data or its encoder; nothing has been written then.
    """
    found = prepare(path, overrides)
    trainer, scores, reports = fit(found, str(path), notify)
    state = trainer.gathered_state()  # by all ranks
    if trainer.is_world_process_zero():
        folder = Path(found.recipe.output_dir)
        model, metrics = trainer.model_for_tasks, scores.get("tasks")
        with write_aside(folder / "model") as aside, own_class(model):
            save_folder(model, found.tokenizer, aside, metrics=metrics, state_dict=state)
        with write_aside(folder / "scores.json") as aside:
            write_json(aside, scores)
        describe(trainer, reports, folder)
    return scores


def fit(
    found: Prepared, path: str, notify: Callable[[str], None]
) -> tuple[MultiTaskTrainer, dict[str, Any], dict[str, Any]]:
    """Train what was prepared and score it; the finished model is not saved yet.

    Returns:
        trainer, scores as `train` gives them, and a report of each task for `describe`.

    Args:
        found: recipe, data and model.
        path: the recipe, for errors.
        notify: called with each line worth knowing before training starts.

    Raises:
        RecipeError: arguments that training would stumble over; nothing has been written then.
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
    }
    try:
        trainer = MultiTaskTrainer(**options)
    except ValueError as error:  # what only the tokenized rows and the number of ranks tell
        raise RecipeError(path, [str(error)]) from error
    assert trainer.sampler is not None
    for line in trainer.sampler.summary(epochs_of(args, trainer.sampler)):
        notify(line)
    try:
        with trainer.leaving:
            trainer.train(resume_from_checkpoint=_checkpoint(args))
    except (Left, RecipeError):  # what HF does after a whole run only: close the bar and trackers
        trainer.callback_handler.on_train_end(args, trainer.state, trainer.control)
        raise
    return trainer, *_final_scores(trainer, found)


def describe(trainer: MultiTaskTrainer, reports: dict[str, Any], folder: Path) -> None:
    """Write the log, a report of each task, and their pictures; after the model is saved."""
    write_json(folder / HISTORY, trainer.state.log_history)
    write_reports(folder, reports)
    training_plots(trainer.state.log_history, trainer.model_for_tasks.task_names, folder)


def checked_arguments(found: Prepared, path: str) -> TrainingArguments:
    """The recipe's TrainingArguments.

    Raises:
        RecipeError: arguments that do not fit the data or the model.
    """
    recipe = found.recipe
    args = training_arguments(recipe, evaluates=found.evaluates, source=path)
    faults = _training_faults(found, args)
    faults += freeze_faults(found.model, recipe.freeze, recipe.optimizer, args)
    if recipe.stopping is not None and args.eval_strategy == "no":
        faults.append("stopping: there are no evaluations to stop by")
    if faults:
        raise RecipeError(path, faults)
    return args


def evaluate(
    model_path: str | Path,
    recipe_path: str | Path,
    overrides: list[str] | None = None,
    *,
    split: str = "test",
) -> dict[str, Any]:
    """Score a saved model on a recipe's data.

    Returns:
        `{"tasks": {task: {metric: value}}, "macro": value}`.

    Raises:
        RecipeError: faults of the recipe or data, a task that the model lacks, no rows in `split`.
    """
    recipe = load_recipe(recipe_path, overrides)
    sources = load_sources(recipe, str(recipe_path))
    model, tokenizer = load_model(model_path)
    faults = []
    for source in sources:
        for name, config in source.configs.items():
            own = model.config.tasks.get(name)
            if own is None:
                faults.append(
                    f"tasks.{name}: the model has no such task; it has: "
                    f"{', '.join(model.task_names)}"
                )
            elif (own.head, own.problem_type) != (config.head, config.problem_type):
                faults.append(f"tasks.{name}.head: the model's is {own.head}, {own.problem_type}")
        if split not in source.splits:
            faults.append(f"tasks.{source.name}.data: has no split {split}")
    if faults:
        raise RecipeError(str(recipe_path), faults)
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


def load_model(path: str | Path) -> tuple[PolyheadModel, PreTrainedTokenizerBase]:
    """A saved Polyhead and its tokenizer, from a folder or the Hub.

    Raises:
        RecipeError: there is no Polyhead at `path`.
    """
    try:
        config = AutoConfig.from_pretrained(path)
        if config.model_type != PolyheadConfig.model_type:
            raise RecipeError(str(path), [f"is a {config.model_type} model, not a Polyhead"])
        model = PolyheadModel.from_pretrained(path)
        return model, AutoTokenizer.from_pretrained(path)
    except RecipeError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        here = "" if Path(path).is_dir() else f"there is no folder {path}, and as a Hub id: "
        raise RecipeError(str(path), [f"no model can be loaded: {here}{lines[0]}"]) from error


def _training_faults(found: Prepared, args: TrainingArguments) -> list[str]:
    """What TrainingArguments takes, but training would stumble over later."""
    faults = []
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != args.world_size:
        faults.append(
            f"{started} processes were started, but each would train alone; on CPUs type "
            "training.use_cpu=true"
        )
    resume = args.resume_from_checkpoint
    if isinstance(resume, str) and not Path(resume).is_dir():
        faults.append(f"training.resume_from_checkpoint: there is no folder {resume}")
    if args.load_best_model_at_end:
        names = {"loss", "macro"}
        for source in found.sources:
            for task in source.tasks if "validation" in source.splits else ():
                config, recipe = found.configs[task], source.tasks[task]
                scored = recipe.data.label is not None
                metrics = recipe.metrics or default_metrics(config, scored=scored)
                names |= {f"{task}_{metric}" for metric in ["loss", *metrics]}
                if "entity_f1" in metrics:
                    names |= {f"{task}_precision", f"{task}_recall"}
        wanted = str(args.metric_for_best_model).removeprefix("eval_")
        if wanted not in names:
            faults.append(
                f"training.metric_for_best_model: {wanted!r} is unknown; allowed: "
                f"{', '.join(sorted(names))}"
            )
    return faults


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


def _checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint to resume from: the one named, or for `true` the latest intact one."""
    output_dir, wanted = str(args.output_dir), args.resume_from_checkpoint
    with args.main_process_first(local=args.save_on_each_node):
        clean_up(output_dir)  # what a killed process left
    if wanted in (None, False):
        return None
    return latest_intact(output_dir) if wanted is True else str(wanted)


# ---- the encoder ----


def _make_model(
    recipe: Recipe, configs: dict[str, TaskConfig]
) -> tuple[PolyheadModel, PreTrainedTokenizerBase]:
    if isinstance(recipe.encoder, ScratchEncoder):
        tokenizer = AutoTokenizer.from_pretrained(_resolve(recipe.encoder.tokenizer))
        if "model_type" not in recipe.encoder.config:
            raise ValueError("config has no model_type; allowed are those of transformers, as bert")
        options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        encoder = AutoConfig.for_model(**{**options, **recipe.encoder.config})
        encoder.is_causal = False
        config = PolyheadConfig(encoder_config=encoder, tasks=configs, pooling=recipe.pooling)
        model = PolyheadModel(config)
    else:
        place = _resolve(recipe.encoder)
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = PolyheadModel.from_encoder(place, configs, pooling=recipe.pooling)
    _fit_tokenizer(tokenizer, model, recipe.max_length)
    return model, tokenizer


def _add_tasks(
    model: PolyheadModel, tokenizer: PreTrainedTokenizerBase, configs: dict[str, TaskConfig]
) -> None:
    """New heads on a frozen model; they alone train (and adapters that come with them)."""
    _check_mask(tokenizer, configs)
    encoder = {id(parameter) for parameter in model.encoder.parameters()}
    for name, task in configs.items():
        model.add_task(name, task)
        for parameter in model.heads[name].parameters():
            parameter.requires_grad_(id(parameter) not in encoder)  # a masked_lm head ties one


def _resolve(name: str) -> str:
    """`package:NAME/FOLDER` to the folder inside that installed package."""
    if not name.startswith("package:"):
        return name
    package, _, folder = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the package {package} is not installed; type: pip install {package.replace('_', '-')}"
        )
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise ValueError(f"the package {package} has no folder {folder}")
    return str(path)


def _check_mask(tokenizer: PreTrainedTokenizerBase, tasks: dict[str, TaskConfig]) -> None:
    if tokenizer.mask_token is None and any(t.head == "masked_lm" for t in tasks.values()):
        raise ValueError("a masked_lm task needs a tokenizer with a mask token")


def _fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: PolyheadModel, max_length: int | None
) -> None:
    """Set the length of a text, and a padding token where there is none."""
    if not tokenizer.is_fast:
        raise ValueError("the tokenizer is a slow one; character offsets need a fast tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _check_mask(tokenizer, model.config.tasks)
    usable = usable_length(model.encoder)
    limits = [n for n in (usable, tokenizer.model_max_length) if n is not None and n < 10**6]
    limit = min(limits, default=DEFAULT_LENGTH)
    if max_length is not None and max_length > limit:
        raise ValueError(f"max_length is {max_length}, but it takes {limit} tokens at most")
    tokenizer.model_max_length = max_length or limit
