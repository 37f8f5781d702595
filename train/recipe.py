"""A YAML recipe to dataclasses, with every fault of the file in one error.

Types, unknown keys and allowed values are pydantic's work; what is left here is what it cannot
know: which keys go together, environment variables, and the fields of TrainingArguments.
"""

import difflib
import os
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments

from ..modeling.checks import check_task_name
from ..modeling.configuration_polyhead import PolyheadConfig
from .adapters import adapter_faults
from .balancing import balancing_faults
from .errors import RecipeError
from .group_losses import COMPARING, compares
from .metrics import METRICS, metrics_for
from .schema import (
    TEXT_COLUMNS,
    Balancing,
    DataConfig,
    Freeze,
    OptimizerOptions,
    Recipe,
    Sampling,
    SchedulePoint,
    ScratchEncoder,
    Stopping,
    TaskRecipe,
    Unfreeze,
)
from .strategies import sampling_faults, sources_of


def load_recipe(
    path: str | Path,
    overrides: list[str] | None = None,
    *,
    onto: PolyheadConfig | None = None,
    scored: PolyheadConfig | None = None,
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file. `${NAME}` stands for an environment variable, `${RECIPE_DIR}` for the
            folder of the file.
        overrides: `key=value` with dotted keys, as `tasks.intent.loss_weight=2`.
        onto: the finished model that its tasks are added to; the recipe then names no encoder.
        scored: the finished model that is scored on its data; it may then name none.

    Raises:
        RecipeError: with all faults found.
    """
    source, faults = str(path), []
    raw = _read(path)
    for override in overrides or []:
        _override(raw, override, faults)
    raw = _expand(raw, "", {"RECIPE_DIR": str(Path(path).resolve().parent)}, faults)
    if onto is not None:
        faults += [f"{key}: {why}" for key, why in FROM_MODEL.items() if raw.pop(key, None)]
        raw["encoder"] = str(onto.name_or_path)
    if scored is not None:
        raw.setdefault("encoder", str(scored.name_or_path))
    try:
        recipe = TypeAdapter(Recipe).validate_python(raw)
    except ValidationError as error:
        scratch = isinstance(raw.get("encoder"), dict)  # then it is no name: drop that complaint
        faults += [
            _pydantic_fault(entry)
            for entry in error.errors()
            if entry["loc"] != ("encoder", "str") or not scratch
        ]
        faults += _training_faults(raw.get("training"))
        raise RecipeError(source, faults) from error
    for name, task in recipe.tasks.items():
        faults += _task_faults(name, task)
    taken = (onto.tasks or {}) if onto is not None else {}
    known = (onto.adapters or []) if onto is not None else []
    for name in sorted(set(recipe.tasks) & set(taken)):
        faults.append(f"tasks.{name}: the model has this task; take another name")
    if scored is None:  # else the model has its adapters
        faults += adapter_faults({name: task.adapter for name, task in recipe.tasks.items()}, known)
    faults += sampling_faults(recipe)
    faults += balancing_faults(recipe, len(sources_of(recipe)))
    faults += _stopping_faults(recipe)
    faults += _training_faults(recipe.training)
    if faults:
        raise RecipeError(source, faults)
    return recipe


def _read(path: str | Path) -> dict[str, Any]:
    """The YAML file as it is."""
    source = str(path)
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise RecipeError(source, [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise RecipeError(source, [f"is not UTF-8 text: {error.reason}"]) from error
    except yaml.YAMLError as error:
        raise RecipeError(source, [f"is not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(raw, dict):
        raise RecipeError(source, ["holds no keys; see configs/ for examples"])
    return raw


# What a recipe for more tasks on a finished model leaves out.
FROM_MODEL = {
    "encoder": "it is the model's that the tasks are added to; take it out",
    "pooling": "it is the model's; write the pooling of a new task in that task",
    "max_length": "it is the model's; take it out",
    "freeze": "all but the new heads and adapters is frozen; take it out",
}


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, reads 1e-4 as a number, and yes and no as words.

    So YAML 1.2 has it, and `eval_strategy: no` and a label `no` mean what they say.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen and not key.tag.endswith(":merge"):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in found if entry[0] != BOOLEAN]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    BOOLEAN, re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _override(raw: dict, override: str, faults: list[str]) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        faults.append(f"{override!r} on the command line: write key=value")
        return
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            faults.append(f"{key} on the command line: {parent} is no group of keys")
            return
    try:
        place[last] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        faults.append(f"{key} on the command line: {value!r} is not YAML: {error.problem}")  # pyright: ignore


def _expand(value: Any, key: str, extra: dict[str, str], faults: list[str]) -> Any:
    """Replace ${NAME} in all strings."""
    if isinstance(value, dict):
        return {k: _expand(v, f"{key}.{k}".strip("."), extra, faults) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, f"{key}.{i}", extra, faults) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match) -> str:
        name = match.group(1)
        found = extra.get(name, os.environ.get(name))
        if found is None:
            faults.append(f"{key}: ${{{name}}} is not set; type: export {name}=...")
            return match.group(0)
        return found

    return re.sub(r"\$\{(\w+)\}", replace, value)


def _pydantic_fault(entry: Any) -> str:
    place = [
        str(part) for part in entry["loc"] if not str(part).startswith(("function-", "Scratch"))
    ]
    key = ".".join(place)
    if entry["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if entry["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: missing"
    got = "" if isinstance(entry["input"], dict) else f", got {entry['input']!r}"
    return f"{key}: {entry['msg'][0].lower()}{entry['msg'][1:]}{got}"


GROUPS: dict[str, type] = {
    "sampling": Sampling,
    "sampling.schedule": SchedulePoint,
    "balancing": Balancing,
    "encoder": ScratchEncoder,
    "freeze": Freeze,
    "freeze.unfreeze": Unfreeze,
    "optimizer": OptimizerOptions,
    "stopping": Stopping,
}


def _known_keys(place: list[str]) -> list[str]:
    if not place:
        group: type = Recipe
    elif place[0] == "tasks":
        group = DataConfig if len(place) == 3 else TaskRecipe
    else:
        group = GROUPS[".".join(part for part in place if not part.isdigit())]
    return [f.name.rstrip("_") for f in fields(group)]


def _task_faults(name: str, task: TaskRecipe) -> list[str]:
    faults = []
    key = f"tasks.{name}"
    try:
        check_task_name(name)
    except ValueError as error:
        faults.append(f"{key}: {error}")
    try:
        labels = None if task.labels is None else [str(label) for label in task.labels]
        config = task.task_config(labels or _stand_in_labels(task))
    except ValueError as error:
        return [*faults, f"{key}: {error}"]
    faults += [f"{key}.data.{fault}" for fault in _column_faults(task)]
    faults += [f"{key}.data.{fault}" for fault in _file_faults(task.data)]
    if task.cached and not compares(config):
        faults.append(
            f"{key}.cached: only for embedding losses {', '.join(COMPARING)}; take it out"
        )
    allowed = metrics_for(config, scored=task.data.label is not None)
    for metric in task.metrics or []:
        if metric not in (*METRICS, *allowed):
            faults.append(f"{key}.metrics: {metric!r} is unknown; allowed: {', '.join(METRICS)}")
        elif metric not in allowed and not (metric == "entity_f1" and not task.labels):
            faults.append(f"{key}.metrics: {metric} does not fit; allowed: {', '.join(allowed)}")
    return faults


def _stand_in_labels(task: TaskRecipe) -> list[str] | None:
    """Labels to check a task with before its own are found in the data."""
    if task.head == "token_classification":
        return ["O", "B-x", "I-x"] if task.scheme else ["x", "y"]
    classes = task.head == "sequence_classification" and task.problem_type != "regression"
    return ["x", "y"] if classes else None


def _columns_of(task: TaskRecipe) -> tuple[set[str], set[str]]:
    """The columns that a task needs beside its text, and those that it can read."""
    if task.head == "embedding":
        by_loss = {
            "contrastive": ({"text", "text_pair"}, {"negative"}),
            "triplet": ({"text", "text_pair", "negative"}, set()),
            "margin_mse": ({"text", "text_pair", "negative", "label"}, set()),
            "mse": ({"text", "label"}, set()),
        }
        return by_loss.get(str(task.loss), ({"text", "text_pair", "label"}, set()))
    return {
        "sequence_classification": ({"label"}, {"text_pair"}),
        "token_classification": ({"tokens", "label"}, set()),
        "masked_lm": (set(), set()),
    }[task.head]


def _column_faults(task: TaskRecipe) -> list[str]:
    data, faults = task.data, []
    given = {column for column in (*TEXT_COLUMNS, "label") if getattr(data, column) is not None}
    needed, optional = _columns_of(task)
    for column in sorted(needed - given):
        faults.append(f"{column}: missing; {task.head} needs the name of this column")
    for column in sorted(given - needed - optional - {"text", "tokens"}):
        faults.append(f"{column}: {task.head} does not read it; take it out")
    if not given & {"text", "tokens"} and "text" not in needed | {"tokens"} & needed:
        faults.append("text: missing; name the column with the text, or tokens")
    if {"text_pair", "tokens"} <= given:
        faults.append("tokens: a pair task reads text and text_pair; take it out")
    if data.label_range is not None:
        numbers = task.problem_type == "regression" or task.head == "embedding"
        if not numbers:
            faults.append("label_range: only for tasks with numbers as labels")
        elif data.label_range[0] >= data.label_range[1]:
            faults.append(f"label_range: {list(data.label_range)}; write [lowest, highest]")
    return faults


def _file_faults(data: DataConfig) -> list[str]:
    if data.path is None and data.data_files is None:
        return ["path: missing; give path, data_files or both"]
    files = data.data_files if isinstance(data.data_files, dict) else {"": data.data_files or []}
    faults = []
    for split, names in files.items():
        for name in [names] if isinstance(names, str) else names:
            if not any(sign in name for sign in "*?[{:$") and not Path(name).is_file():
                place = f"data_files.{split}".strip(".")
                faults.append(f"{place}: there is no file {name} (seen from {Path.cwd()})")
    if isinstance(data.data_files, dict):
        for split in data.data_files:
            if split not in ("train", "validation", "test") and data.splits is None:
                faults.append(f"data_files.{split}: allowed: train, validation, test")
    return faults


def _stopping_faults(recipe: Recipe) -> list[str]:
    if recipe.stopping is None:
        return []
    faults, training = [], recipe.training
    if recipe.stopping.by == "macro":
        if training.get("load_best_model_at_end") is False:
            faults.append("stopping.by: macro needs training.load_best_model_at_end")
        if training.get("metric_for_best_model", "macro") != "macro":
            faults.append("stopping.by: macro, but training.metric_for_best_model is another")
    return faults


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


def _training_faults(training: Any) -> list[str]:
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
        RecipeError: a value that TrainingArguments refuses.
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
        raise RecipeError(source, [f"training: {' '.join(str(error).split())}"]) from error
