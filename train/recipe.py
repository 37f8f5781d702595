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
from typing import Any, Literal, get_type_hints

import torch
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from transformers import TrainingArguments

from ..modeling.configuration_polyhead import PolyheadConfig, TaskConfig, check_task_name
from .adapters import adapter_faults
from .errors import RecipeError
from .metrics import METRICS, metrics_for

STRICT = ConfigDict(extra="forbid")
TEXT_COLUMNS = ("text", "text_pair", "negative", "tokens")


@dataclass(config=STRICT, kw_only=True)
class DataConfig:
    """Where rows come from and which columns a task reads.

    Args:
        path: what `datasets.load_dataset` takes: a Hub id, or parquet, csv, json with `data_files`.
            May be left out when the ending of `data_files` tells.
        name: configuration of the dataset.
        data_files: split to file, files or pattern; relative to where the command runs.
        data_dir: folder given to `load_dataset`.
        revision: revision of a Hub dataset.
        splits: our split (train, validation, test) to the dataset's own name or slice.
        text: column with the text.
        text_pair: column with the second text of a pair, or the positive of an embedding task.
        negative: column with a hard negative, for contrastive embedding tasks.
        tokens: column with lists of words, instead of `text` or beside it.
        label: column with the label: a string or id, a list (multi-label), a number (regression,
            scored pairs) or a list of tags (token classification).
        label_range: [lowest, highest] of the numbers in `label`; they are scaled to 0-1.
    """

    path: str | None = None
    name: str | None = None
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    data_dir: str | None = None
    revision: str | None = None
    splits: dict[Literal["train", "validation", "test"], str] | None = None
    text: str | None = None
    text_pair: str | None = None
    negative: str | None = None
    tokens: str | None = None
    label: str | None = None
    label_range: tuple[float, float] | None = None


@dataclass(config=STRICT, kw_only=True)
class TaskRecipe:
    """One task of a recipe: `TaskConfig`'s options, its data and its metrics.

    Args:
        data: where its rows come from.
        metrics: names from `METRICS`; the first stands for the task in the macro score. Default:
            the usual ones of the kind of head.
        adapter: `{r: 8, ...}`, fields of peft's LoraConfig, for an adapter of its own (`layers:
            top 2` for the last two layers, `type: ia3` for IA3, `name` for another name than the
            task's, `path` of a folder in PEFT's format to start from its weights); or the name of
            one that another task defines; default none.
        max_rows: train on a random sample of so many rows, the same each time.
        loss_weight: this task's factor in the total loss.

    The other options are `TaskConfig`'s.
    """

    head: Literal["embedding", "sequence_classification", "token_classification", "masked_lm"]
    data: DataConfig
    labels: list[str | int | bool] | None = None
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = None
    pooling: str | None = None
    activation: str | None = None
    dropout: float = 0.1
    scheme: str | None = None
    threshold: float = Field(default=0.5, gt=0, lt=1)
    loss: str | None = None
    temperature: float = 0.05
    projection: int | None = Field(default=None, gt=0)
    normalize: bool = True
    loss_weight: float = Field(default=1.0, ge=0)
    adapter: dict[str, Any] | str | None = None
    metrics: list[str] | None = None
    max_rows: int | None = Field(default=None, gt=0)

    def task_config(self, labels: list[str] | None = None, scheme: str | None = None) -> TaskConfig:
        """The model's side of this task, with the labels and tag scheme found in the data."""
        options = {
            f.name: getattr(self, f.name)
            for f in fields(TaskConfig)
            if f.name not in ("labels", "scheme", "pair", "adapter")
        }
        pair = self.head == "sequence_classification" and self.data.text_pair is not None
        return TaskConfig(labels=labels, scheme=scheme or self.scheme, pair=pair, **options)


@dataclass(config=STRICT, kw_only=True)
class ScratchEncoder:
    """An encoder with random weights: `config` names its model_type and sizes."""

    config: dict[str, Any]
    tokenizer: str


@dataclass(config=STRICT, kw_only=True)
class Sampling:
    """How rows of the tasks are mixed.

    Args:
        strategy: proportional takes each row once an epoch.
        batches: mixed puts rows of several tasks into a batch; pure one task at a time.
        packing: batches without padding, where the encoder can read them: the same losses, faster.
        order: shuffled, or length: rows of like length share a batch, which saves padding.
    """

    strategy: Literal["proportional"] = "proportional"
    batches: Literal["mixed", "pure"] = "mixed"
    packing: bool = True
    order: Literal["shuffled", "length"] = "shuffled"


@dataclass(config=STRICT, kw_only=True)
class Freeze:
    """What does not train.

    Args:
        encoder: the encoder's own weights; heads and adapters train.
    """

    encoder: bool = False


@dataclass(config=STRICT, kw_only=True)
class Recipe:
    """All that a training run needs.

    Args:
        encoder: Hub id, folder, `package:NAME/FOLDER` (a folder inside an installed Python
            package), or a `ScratchEncoder`.
        tasks: by name; read in alphabetical order, so that their order in the file changes nothing.
        output_dir: checkpoints go here, the finished model to `output_dir/model`.
        pooling: pooling of every task that names none.
        max_length: tokens in a text; default what encoder and tokenizer take.
        sampling: how rows of the tasks are mixed.
        freeze: what does not train.
        training: fields of TrainingArguments.
    """

    encoder: str | ScratchEncoder
    tasks: dict[str, TaskRecipe] = Field(min_length=1)
    output_dir: str
    pooling: Literal["mean", "cls", "max", "last_token", "mean_last_4"] = "mean"
    max_length: int | None = Field(default=None, ge=8)
    sampling: Sampling = Field(default_factory=Sampling)
    freeze: Freeze = Field(default_factory=Freeze)
    training: dict[str, Any] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tasks = dict(sorted(self.tasks.items()))


def load_recipe(
    path: str | Path, overrides: list[str] | None = None, *, onto: PolyheadConfig | None = None
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file. `${NAME}` stands for an environment variable, `${RECIPE_DIR}` for the
            folder of the file.
        overrides: `key=value` with dotted keys, as `tasks.intent.loss_weight=2`.
        onto: the finished model that its tasks are added to; the recipe then names no encoder.

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
    faults += adapter_faults({name: task.adapter for name, task in recipe.tasks.items()}, known)
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
    """SafeLoader that refuses a key given twice and reads 1e-4 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen and not key.tag.endswith(":merge"):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+"),
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


def _known_keys(place: list[str]) -> list[str]:
    groups: dict[str, type] = {"sampling": Sampling, "encoder": ScratchEncoder, "freeze": Freeze}
    if not place:
        group: type = Recipe
    elif place[0] == "tasks":
        group = DataConfig if len(place) == 3 else TaskRecipe
    else:
        group = groups[place[0]]
    return [f.name for f in fields(group)]


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
    allowed = metrics_for(config, scored=task.data.label is not None)
    for metric in task.metrics or []:
        if metric not in METRICS:
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


def _column_faults(task: TaskRecipe) -> list[str]:
    data, faults = task.data, []
    given = {column for column in (*TEXT_COLUMNS, "label") if getattr(data, column) is not None}
    contrastive = task.head == "embedding" and task.loss == "contrastive"
    needed, optional = {
        "sequence_classification": ({"label"}, {"text_pair"}),
        "token_classification": ({"tokens", "label"}, set()),
        "embedding": ({"text", "text_pair"} | (set() if contrastive else {"label"}), {"label"}),
        "masked_lm": (set(), set()),
    }[task.head]
    if contrastive:
        optional = {"negative"}
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


# Set by us, or wrong with several tasks.
REFUSED_TRAINING = {
    "output_dir": "write output_dir at the top of the recipe",
    "label_smoothing_factor": "not with labels keyed by task",
    "remove_unused_columns": "the collator needs all columns",
    "train_sampling_strategy": "use sampling",
    "push_to_hub": "not part of a recipe yet",
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
        "dataloader_pin_memory": torch.accelerator.is_available(),
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
