"""The `training` of a recipe: which of TrainingArguments' fields it may set, and our defaults."""

import difflib
import math
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.training_args import trainer_log_levels

from ..errors import UserError
from .schema import Recipe

# Set by us, or wrong with several tasks.
REFUSED_TRAINING = {
    "output_dir": "write output_dir at the top of the recipe",
    "label_smoothing_factor": "not with labels keyed by task",
    "remove_unused_columns": "the collator needs all columns",
    "train_sampling_strategy": "use sampling",
    "ddp_find_unused_parameters": "heads without rows in a batch need it; take it out",
    "ddp_static_graph": "which heads run changes from batch to batch; take it out",
    "dataloader_persistent_workers": "the collator changes with the epoch",
    "parallelism_config": "takes an object of Python; write it in accelerate's own config",
    "restore_callback_states_from_checkpoint": "they always are",
    "enable_jit_checkpoint": "always done on SIGTERM",
    "use_liger_kernel": "its kernels are for decoders; take it out",
    "liger_kernel_config": "its kernels are for decoders; take it out",
}


TINY = 1e-30  # more than 0
POSITIVE, COUNT, SIZE = (TINY, 1e9), (0, 1e9), (1, 1e6)
RANGES = {  # lowest and highest value of the numbers that TrainingArguments takes unread
    "adam_beta1": (0, 0.999999999),
    "adam_beta2": (0, 0.999999999),
    "adam_epsilon": (TINY, 1),
    "data_seed": (0, 2**32 - 1),
    "dataloader_num_workers": (0, 1024),
    "dataloader_prefetch_factor": SIZE,
    "ddp_bucket_cap_mb": SIZE,
    "ddp_timeout": (1, 1e9),
    "eval_accumulation_steps": SIZE,
    "eval_delay": COUNT,
    "eval_steps": POSITIVE,
    "gradient_accumulation_steps": SIZE,
    "learning_rate": (0, 1000),
    "logging_steps": POSITIVE,
    "max_grad_norm": COUNT,
    "max_steps": (-1, 1e9),
    "neftune_noise_alpha": COUNT,
    "num_train_epochs": (TINY, 1e5),
    "per_device_eval_batch_size": SIZE,
    "per_device_train_batch_size": SIZE,
    "save_steps": POSITIVE,
    "save_total_limit": SIZE,
    "seed": (0, 2**32 - 1),
    "torch_empty_cache_steps": SIZE,
    "warmup_steps": COUNT,
    "weight_decay": (0, 1000),
}
CHOICES = {  # words that TrainingArguments takes unread
    "log_level": tuple(trainer_log_levels),
    "log_level_replica": tuple(trainer_log_levels),
}
NOT_WRITTEN = ("output_dir", "remove_unused_columns", "run_name", "logging_dir", "hub_token")
SET_BY_OPTIMIZER = ("optim", "optim_args", "learning_rate", "weight_decay")
SET_BY_OPTIMIZER += ("adam_beta1", "adam_beta2", "adam_epsilon")
# What TrainingArguments and what it asks raise of a value that a user has written.
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, RuntimeError)


@cache
def _training_types() -> dict[str, Any]:
    hints = get_type_hints(TrainingArguments)
    return {f.name: hints[f.name] for f in fields(TrainingArguments) if f.init}


def training_faults(training: Any) -> list[str]:
    """What TrainingArguments does not take, of the raw `training` of a recipe."""
    if not isinstance(training, dict):
        return []
    faults = []
    for key, value in training.items():
        if key in REFUSED_TRAINING:
            faults.append(f"training.{key}: {REFUSED_TRAINING[key]}")
        elif key not in _training_types():
            near = difflib.get_close_matches(str(key), _training_types(), n=1)
            hint = f"did you mean {near[0]}?" if near else "see TrainingArguments of transformers"
            faults.append(f"training.{key}: unknown key; {hint}")
        elif key == "resume_from_checkpoint":
            if value == "" or not isinstance(value, (bool, str, type(None))):
                fault = f"true for the latest, or the folder of a checkpoint, got {value!r:.80}"
                faults.append(f"training.{key}: {fault}")
        elif fault := _value_fault(key, value):
            faults.append(f"training.{key}: {fault}, got {value!r:.80}")
    return faults


def _batches_fault(options: Any) -> str | None:
    """Options of accelerate that would deal the sampler's batches anew."""
    names = options if isinstance(options, dict) else {}
    batches = [name for name in ("split_batches", "dispatch_batches") if names.get(name)]
    if not batches:
        return None
    return f"{', '.join(batches)}: the sampler deals batches to the ranks; take it out"


def _value_fault(key: str, value: Any) -> str | None:
    """What is wrong with the value of a field of TrainingArguments."""
    hint = _training_types()[key]
    takes = {hint, *get_args(hint)}
    if takes & {int, float} and not takes & {str, bool} and isinstance(value, (bool, str)):
        return f"a number is wanted{', without quotes' * isinstance(value, str)}"
    try:
        kind = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        kind.validate_python(value)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    if key == "accelerator_config":
        return _batches_fault(value)
    if allowed := CHOICES.get(key):
        return None if value in allowed else f"allowed: {', '.join(allowed)}"
    if key == "max_steps" and value < 1 and value != -1:
        return "at least 1, or -1 to count by epochs"
    low, high = RANGES.get(key, (-1e12, 1e12))
    if isinstance(value, float) and not math.isfinite(value):
        return None  # told for the whole recipe
    if isinstance(value, (int, float)) and not low <= value <= high:
        return f"{'more than 0' if low == TINY else f'{low:g}'} to {high:.10g} is allowed"
    return None


def whole_numbers(training: dict[str, Any]) -> dict[str, Any]:
    """`training` with 1e3 as 1000 where TrainingArguments counts; it takes floats, and breaks."""
    hints = _training_types()
    counted = {
        key
        for key in training
        if {int} & (takes := {hints[key], *get_args(hints[key])}) and not {float} & takes
    }
    return {
        key: int(value) if key in counted and isinstance(value, float) else value
        for key, value in training.items()
    }


def training_arguments(recipe: Recipe, *, evaluates: bool) -> TrainingArguments:
    """TrainingArguments of a recipe, with this project's defaults.

    Args:
        recipe: the recipe.
        evaluates: some task has a validation split: evaluate and save each epoch, keep the best.

    Raises:
        UserError: a value that TrainingArguments refuses.
    """
    defaults: dict[str, Any] = {
        "warmup_steps": 0.1,
        "save_total_limit": 1,
        "disable_tqdm": False,
        "logging_nan_inf_filter": False,  # nan_loss says what happens
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # else each rank would train alone
    }
    if evaluates:
        defaults |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
        best = {"load_best_model_at_end": True, "metric_for_best_model": "macro"}
        if recipe.training.get("save_strategy", "epoch") == recipe.training.get(
            "eval_strategy", "epoch"
        ):
            defaults |= best
    options = {**defaults, **recipe.training}
    if options.get("eval_strategy", "no") == "no" or options.get("save_strategy") == "no":
        options["load_best_model_at_end"] = recipe.training.get("load_best_model_at_end", False)
    try:
        return TrainingArguments(
            output_dir=recipe.output_dir, remove_unused_columns=False, **options
        )
    except REFUSALS as error:
        raise UserError(recipe.path, [f"training: {_words(error)}"]) from error


def training_of(args: TrainingArguments) -> dict[str, Any]:
    """The `training` of a recipe that would make such arguments: what differs from HF's defaults.

    Objects of Python, and what a recipe says elsewhere, are left out.
    """
    training = {}
    for field in fields(TrainingArguments):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value, default = (_plain_value(v) for v in (getattr(args, field.name), default))
        written = field.init and field.name not in NOT_WRITTEN and _is_plain(value)
        if written and value != default and (value or default):
            training[field.name] = value
    return training


def _plain_value(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _is_plain(value: Any) -> bool:
    """JSON has it."""
    if isinstance(value, (list, dict)):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (str, int, float, bool))


def optimizer_faults(args: TrainingArguments) -> list[str]:
    """What the optimizer and the schedule that `training` names would stumble over later."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    faults = []
    try:
        model: Any = torch.nn.Linear(1, 1)  # a stand-in: only its parameters are asked for
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not {"params", "optimizer_dict"} & options.keys():  # else it asks for the whole model
            kind([parameter], **options)
    except REFUSALS as error:
        faults.append(f"training.optim: {_plain(args.optim)}: {_words(error)}")
    try:
        get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD([parameter]),
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # pyright: ignore
        )
    except REFUSALS as error:
        faults.append(
            f"training.lr_scheduler_type: {_plain(args.lr_scheduler_type)}: {_words(error)}"
        )
    return faults


def _words(error: Exception) -> str:
    """An error of transformers in one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def _plain(value: Any) -> str:
    """The word of an enumeration as a recipe has it."""
    return str(getattr(value, "value", value))
