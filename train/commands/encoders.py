"""The encoder that a recipe names, with a head for each task, and the tokenizer that fits it."""

import logging
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.modeling_polyhead import PolyheadModel, usable_length
from ...modeling.task_config import TaskConfig
from ..artifacts import read_json
from ..data.loading import Source
from ..hub.sentence_transformers import POOLING_FLAGS
from ..kinds import kind_of
from ..recipe.arguments import REFUSALS
from ..recipe.packages import package_folder
from ..recipe.schema import FinishedEncoder, Recipe, ScratchEncoder
from ..records import MODULES, read_record
from ..trainer.checkpoints import latest_intact
from ..trainer.identity import weights_digest
from .finished import experts_of, take_finished
from .tokenizers import train_tokenizer

logger = logging.getLogger(__name__)
FLAGS = {flag: name for name, flag in POOLING_FLAGS.items()}  # sentence-transformers before 5.4
MODES = {**FLAGS, **{name.replace("_", ""): name for name in POOLING_FLAGS}}
MOST_LAYERS = 1000
LENGTH_FILE = "sentence_bert_config.json"
Keep = Literal["weights", "strict"]
DEFAULT_LENGTH = 512  # for an encoder and a tokenizer that both know no limit


def build_model(
    recipe: Recipe, configs: dict[str, TaskConfig], sources: list[Source]
) -> tuple[PolyheadModel, Tokenizer]:
    """A recipe's encoder with new heads, without adapters.

    Args:
        recipe: names the encoder, its pooling and the length of a text.
        configs: the tasks by name, with labels found in the data.
        sources: the rows, for a tokenizer that is trained on them.

    Raises:
        OSError: there is no such encoder.
        ValueError: it is none, or its tokenizer does not fit.
    """
    if isinstance(recipe.encoder, FinishedEncoder):
        model, tokenizer = take_finished(recipe, recipe.encoder, configs, sources)
    elif isinstance(recipe.encoder, ScratchEncoder):
        tokenizer = _scratch_tokenizer(recipe, recipe.encoder, sources)
        encoder = _scratch_encoder(recipe.encoder.config, tokenizer, configs)
        pooling = recipe.pooling or "mean"
        config = PolyheadConfig(
            encoder_config=encoder, tasks=configs, pooling=pooling, experts=experts_of(recipe)
        )
        model = PolyheadModel(config)
    else:
        folder, pooling, _ = _sentence_transformer(resolve(recipe.encoder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = PolyheadModel.from_encoder(
            folder,
            configs,
            pooling=recipe.pooling or pooling,
            experts=experts_of(recipe),
            dtype=torch.float32,  # half precision loses small steps; training.bf16 is by operation
        )
        adapters = read_json(Path(folder) / "config.json", {}).get("adapters")
        if adapters:  # of a finished Polyhead
            logger.info(
                "encoder: the adapters of %s (%s) are left out; encoder: {model: %s, merge: %s} "
                "adds one to its weights",
                *(folder, ", ".join(adapters), folder, adapters[0]),
            )
    _fit_tokenizer(tokenizer, model, recipe.max_length, default_length(recipe, configs))
    return model, tokenizer


def default_length(recipe: Recipe, configs: dict[str, TaskConfig]) -> int | None:
    """Tokens that a sentence-transformers encoder reads, where a task is to give such vectors.

    None where the recipe says a length itself, or the encoder is another.
    """
    embeds = any(config.head_class.output == "embeddings" for config in configs.values())
    if recipe.max_length is not None or not isinstance(recipe.encoder, str) or not embeds:
        return None
    return _sentence_transformer(resolve(recipe.encoder))[2]


def length_notes(recipe: Recipe, model: PolyheadModel, tokenizer: Tokenizer) -> list[str]:
    """What a user should know of the length of a text; nothing where it is all that fits."""
    length, fits = default_length(recipe, model.config.tasks), usable_length(model.encoder)
    if length is None or length != tokenizer.model_max_length or length == fits:
        return []
    return [
        f"texts are read to {length} tokens, max_seq_length of the sentence-transformers encoder"
        + ("" if fits is None else f", which would take {fits}")
        + "; max_length sets another"
    ]


def add_heads(model: PolyheadModel, tokenizer: Tokenizer, configs: dict[str, TaskConfig]) -> None:
    """Put new heads on a finished model; they alone train (and adapters that come with them).

    Raises:
        ValueError: the tokenizer does not fit a task.
    """
    _check_mask(tokenizer, configs)
    model.requires_grad_(requires_grad=False)
    encoder = {id(parameter) for parameter in model.encoder.parameters()}
    for name, task in configs.items():
        model.add_task(name, task)
        for parameter in model.heads[name].parameters():
            parameter.requires_grad_(id(parameter) not in encoder)  # a masked_lm head ties one


def extend_heads(model: PolyheadModel, configs: dict[str, TaskConfig], keep: Keep) -> None:
    """Give tasks of a finished model more labels; their new layers alone train.

    Args:
        model: the model.
        configs: the tasks with old and new labels, as found in the data.
        keep: strict puts new labels by thresholds of their own.
    """
    for name, config in configs.items():
        old = model.config.tasks[name]
        new = (config.labels or [])[len(old.labels or []) :]
        types = [label if old.scheme is None else label[2:] for label in new]
        options: dict[str, Any] = {"partial": config.partial}
        if keep == "strict":
            options["strict"] = dict.fromkeys(types, 0.5)
        elif old.signs is not None:
            options["signs"] = sorted({*old.signs, *(config.signs or [])})
        model.extend_task(name, new, **options)
    model.requires_grad_(requires_grad=False)
    for name in configs:
        model.heads[name].more[-1].requires_grad_()  # pyright: ignore


def origin_of(encoder: str | FinishedEncoder | ScratchEncoder) -> str:
    """What tells the first weights of an encoder from others; a checkpoint keeps it."""
    if isinstance(encoder, ScratchEncoder):
        return "random"
    name = encoder if isinstance(encoder, str) else encoder.model
    folder = Path(resolve(name))
    origin = weights_digest(folder) if folder.is_dir() else name
    if isinstance(encoder, str):
        return origin
    return " ".join([origin, encoder.merge or "", *encoder.keep_tasks])


def resolve(name: str) -> str:
    """An encoder's name as transformers takes it: `package:NAME/FOLDER` is a folder."""
    return str(package_folder(name)) if name.startswith("package:") else name


def _scratch_tokenizer(recipe: Recipe, encoder: ScratchEncoder, sources: list[Source]) -> Tokenizer:
    """The tokenizer of a scratch encoder; a run that resumes has one."""
    if isinstance(encoder.tokenizer, str):
        return AutoTokenizer.from_pretrained(resolve(encoder.tokenizer))
    resumes = recipe.training.get("resume_from_checkpoint")
    checkpoint = latest_intact(recipe.output_dir) if resumes is True else resumes
    if isinstance(checkpoint, str) and Path(checkpoint).is_dir():
        return AutoTokenizer.from_pretrained(checkpoint)
    return train_tokenizer(encoder.tokenizer, sources)


def _scratch_encoder(
    settings: dict[str, Any], tokenizer: Tokenizer, tasks: dict[str, TaskConfig]
) -> PreTrainedConfig:
    """The config of an encoder with random weights.

    Raises:
        ValueError: transformers takes it for no encoder, or it does not fit into memory.
    """
    if "model_type" not in settings:
        raise ValueError("config has no model_type; allowed are those of transformers, as bert")
    for key, value in settings.items():  # each is built, even to count its weights
        if "layers" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise ValueError(f"config.{key}: {value}; at most {MOST_LAYERS}")
    options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    try:
        config = AutoConfig.for_model(**{**options, **settings})
        config.is_causal = any(task.head_class.causal for task in tasks.values())
        with torch.device("meta"):
            shapes = AutoModel.from_config(config)
    except (*REFUSALS, ArithmeticError, LookupError, AssertionError, MemoryError) as error:
        raise ValueError(f"config: {type(error).__name__}: {str(error).strip()}") from error
    needed = sum(p.numel() * p.element_size() for p in shapes.parameters())
    if needed > psutil.virtual_memory().total:
        raise ValueError(f"config: its weights take {needed / 1e9:,.0f} GB, more than memory has")
    return config


def _sentence_transformer(folder: str) -> tuple[str, str | None, int | None]:
    """Where the encoder of a sentence-transformers model lies; if it is one, pooling and length.

    Raises:
        ValueError: it pools in a way that there is none for here, or its length is no number.
    """
    path = Path(folder) / "modules.json"
    modules = read_record(path, MODULES, [])
    for inner in (Path(module["path"]) for module in modules):
        if inner.is_absolute() or ".." in inner.parts:
            raise ValueError(f"{path}: {str(inner)!r:.80} leaves the folder")
    paths = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    if "Pooling" not in paths:
        return folder, None, None
    config = read_json(Path(folder) / paths["Pooling"] / "config.json", {})
    modes = config.get("pooling_mode") or [flag for flag in FLAGS if config.get(flag)]
    modes = modes if isinstance(modes, list) else [str(modes)]
    if len(modes) != 1 or modes[0] not in MODES:
        known = ", ".join(mode for mode in MODES if mode not in FLAGS)
        named = ", ".join(map(str, modes)) or "no known mode"
        raise ValueError(f"pools by {named}; known: {known}")
    inner = Path(folder, paths.get("Transformer", ""))
    length = read_json(inner / LENGTH_FILE, {}).get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise ValueError(f"{LENGTH_FILE}: max_seq_length is {length!r:.40}; a number is wanted")
    return str(inner), MODES[modes[0]], length


def _check_mask(tokenizer: Tokenizer, tasks: dict[str, TaskConfig]) -> None:
    needing = [task.head for task in tasks.values() if kind_of(task).needs_mask_token]
    if tokenizer.mask_token is None and needing:
        raise ValueError(f"a {needing[0]} task needs a tokenizer with a mask token")


def _fit_tokenizer(
    tokenizer: Tokenizer, model: PolyheadModel, max_length: int | None, default: int | None
) -> None:
    """Set the length of a text, and a padding token where there is none.

    Args:
        tokenizer: changed.
        model: knows how many tokens fit.
        max_length: the recipe's.
        default: without one, if less than fits.
    """
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
    tokenizer.model_max_length = max_length or min(limit, default or limit)
