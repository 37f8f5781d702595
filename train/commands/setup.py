"""A recipe made ready: data loaded and checked, heads on an encoder, the trainer's arguments."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from ...modeling.configuration_polyhead import PolyheadConfig, TaskConfig
from ...modeling.modeling_polyhead import PolyheadModel, usable_length
from ..adapters import attach_adapters
from ..artifacts import read_json
from ..batches.strategies import passes_by_source
from ..data.loading import Source, load_sources
from ..errors import UserError
from ..hub.sentence_transformers import POOLING_FLAGS
from ..inference.load import load_model
from ..kinds import kind_of
from ..optimization.parameter_groups import freeze_faults
from ..recipe.arguments import REFUSALS, optimizer_faults, training_arguments
from ..recipe.packages import package_folder
from ..recipe.reader import load_recipe
from ..recipe.schema import MultiTaskArguments, Recipe, ScratchEncoder
from ..records import MODULES, read_record
from ..trainer.checkpoints import is_intact
from ..trainer.identity import weights_digest

FLAGS = {flag: name for name, flag in POOLING_FLAGS.items()}  # sentence-transformers before 5.4
MODES = {**FLAGS, **{name.replace("_", ""): name for name in POOLING_FLAGS}}
MOST_LAYERS = 1000
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
    def origin(self) -> str:
        """What tells the encoder's first weights from others."""
        encoder = self.recipe.encoder
        if isinstance(encoder, ScratchEncoder):
            return "random"
        folder = Path(_resolve(encoder))
        return weights_digest(folder) if folder.is_dir() else encoder

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
    path: str | Path,
    overrides: list[str] | None = None,
    *,
    onto: str | Path | None = None,
    check: Callable[[Recipe], list[str]] = lambda recipe: [],
) -> Prepared:
    """Load and check everything that a recipe names; nothing is written.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        onto: a finished model that the recipe's tasks are added to; all else in it is frozen.
        check: further faults of the recipe, before its data are read.

    Raises:
        UserError: with all faults of the recipe, or all of the data, or of the encoder.
    """
    given = None if onto is None else load_model(onto)
    recipe = load_recipe(path, overrides, onto=None if given is None else given[0].config)
    if faults := check(recipe):
        raise UserError(str(path), faults)
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
        raise UserError(str(path), [f"encoder: {name}{lines[0]}"]) from error
    if faults := _teacher_faults(sources, model):
        raise UserError(str(path), faults)
    return Prepared(recipe, sources, model, tokenizer)


def _teacher_faults(sources: list[Source], model: PolyheadModel) -> list[str]:
    """Vectors of a teacher that are wider or narrower than the embeddings."""
    faults = []
    for source in sources:
        for name, config in source.configs.items():
            if config.loss == "mse":
                column, head = source.tasks[name].data.label, model.heads[name]
                given = len(source.splits["train"][0][column])
                own: int = head.widths[0]  # pyright: ignore
                if given != own:
                    faults.append(
                        f"tasks.{name}.data.label: vectors of {given} numbers, but the embeddings "
                        f"have {own}; write projection: {given}"
                    )
    return faults


def checked_arguments(found: Prepared, path: str) -> TrainingArguments:
    """The recipe's TrainingArguments.

    Raises:
        UserError: arguments that do not fit the data or the model.
    """
    recipe = found.recipe
    args = training_arguments(recipe, evaluates=found.evaluates, source=path)
    faults = _training_faults(found, args)
    faults += optimizer_faults(args)
    faults += freeze_faults(found.model, recipe.freeze, recipe.optimizer, args)
    if recipe.stopping is not None and args.eval_strategy == "no":
        faults.append("stopping: there are no evaluations to stop by")
    if faults:
        raise UserError(path, faults)
    return args


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
    elif isinstance(resume, str) and not is_intact(resume):
        faults.append(f"training.resume_from_checkpoint: {resume} is no whole checkpoint")
    if args.eval_on_start and args.eval_strategy == "no":
        faults.append("training.eval_on_start: there are no evaluations; give a validation split")
    if args.load_best_model_at_end:
        names = {"loss", "macro"}
        for source in found.sources:
            for task in source.tasks if "validation" in source.splits else ():
                config, recipe = found.configs[task], source.tasks[task]
                metrics = recipe.metrics or kind_of(config).scored_as(recipe).default_metrics
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


def _make_model(
    recipe: Recipe, configs: dict[str, TaskConfig]
) -> tuple[PolyheadModel, PreTrainedTokenizerBase]:
    if isinstance(recipe.encoder, ScratchEncoder):
        tokenizer = AutoTokenizer.from_pretrained(_resolve(recipe.encoder.tokenizer))
        encoder = _scratch_encoder(recipe.encoder.config, tokenizer)
        pooling = recipe.pooling or "mean"
        config = PolyheadConfig(encoder_config=encoder, tasks=configs, pooling=pooling)
        model = PolyheadModel(config)
    else:
        place, pooling = _sentence_transformer(_resolve(recipe.encoder))
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = PolyheadModel.from_encoder(place, configs, pooling=recipe.pooling or pooling)
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
    """An encoder's name as transformers takes it: `package:NAME/FOLDER` is a folder."""
    return str(package_folder(name)) if name.startswith("package:") else name


def _scratch_encoder(given: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config of an encoder with random weights.

    Raises:
        ValueError: transformers takes it for no encoder, or it does not fit into memory.
    """
    if "model_type" not in given:
        raise ValueError("config has no model_type; allowed are those of transformers, as bert")
    for key, value in given.items():  # each is built, even to count its weights
        if "layers" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise ValueError(f"config.{key}: {value}; at most {MOST_LAYERS}")
    options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    try:
        config = AutoConfig.for_model(**{**options, **given})
        config.is_causal = False
        with torch.device("meta"):
            shapes = AutoModel.from_config(config)
    except (*REFUSALS, ArithmeticError, LookupError, AssertionError, MemoryError) as error:
        raise ValueError(f"config: {type(error).__name__}: {str(error).strip()}") from error
    needed = sum(p.numel() * p.element_size() for p in shapes.parameters())
    if needed > psutil.virtual_memory().total:
        raise ValueError(f"config: its weights take {needed / 1e9:,.0f} GB, more than memory has")
    return config


def _sentence_transformer(place: str) -> tuple[str, str]:
    """Where the encoder of a sentence-transformers model lies, and its pooling; else mean.

    Raises:
        ValueError: it pools in a way that there is none for here.
    """
    path = Path(place) / "modules.json"
    modules = read_record(path, MODULES, [])
    for inner in (Path(module["path"]) for module in modules):
        if inner.is_absolute() or ".." in inner.parts:
            raise ValueError(f"{path}: {str(inner)!r:.80} leaves the folder")
    paths = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    if "Pooling" not in paths:
        return place, "mean"
    config = read_json(Path(place) / paths["Pooling"] / "config.json", {})
    modes = config.get("pooling_mode") or [flag for flag in FLAGS if config.get(flag)]
    modes = modes if isinstance(modes, list) else [str(modes)]
    if len(modes) != 1 or modes[0] not in MODES:
        known = ", ".join(mode for mode in MODES if mode not in FLAGS)
        named = ", ".join(map(str, modes)) or "no known mode"
        raise ValueError(f"pools by {named}; known: {known}")
    return str(Path(place, paths.get("Transformer", ""))), MODES[modes[0]]


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
