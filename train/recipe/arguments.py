"""The `training` of a recipe: which of TrainingArguments' fields it may set, and our defaults."""

import difflib
from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments

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
    "restore_callback_states_from_checkpoint": "they always are",
    "enable_jit_checkpoint": "always done on SIGTERM",
}


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
        elif key != "resume_from_checkpoint":  # a path, or true for the latest
            kind = TypeAdapter(
                _training_types()[key], config=ConfigDict(arbitrary_types_allowed=True)
            )
            try:
                kind.validate_python(value)
            except ValidationError as error:
                faults.append(f"training.{key}: {error.errors()[0]['msg']}, got {value!r}")
    return faults


def training_arguments(
    recipe: Recipe, *, evaluates: bool, source: str = "recipe"
) -> TrainingArguments:
    """TrainingArguments of a recipe, with this project's defaults.

    Args:
        recipe: the recipe.
        evaluates: some task has a validation split: evaluate and save each epoch, keep the best.
        source: name of the recipe, for the error.

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
    given = {**defaults, **recipe.training}
    if given.get("eval_strategy", "no") == "no" or given.get("save_strategy") == "no":
        given["load_best_model_at_end"] = recipe.training.get("load_best_model_at_end", False)
    try:
        return TrainingArguments(output_dir=recipe.output_dir, remove_unused_columns=False, **given)
    except (ValueError, TypeError) as error:
        raise UserError(source, [f"training: {' '.join(str(error).split())}"]) from error
