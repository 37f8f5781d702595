"""A YAML recipe to dataclasses, with every fault of the file in one error.

YAML is read in `yaml_text.py`; types, unknown keys and allowed values are pydantic's work. Here are
environment variables, overrides and the words of its faults; which keys go together is in
`checks.py`, the fields of TrainingArguments in `arguments.py`.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from ...modeling.configuration_polyhead import PolyheadConfig
from ..adapters import adapter_faults
from ..balancing.methods import balancing_faults
from ..batches.strategies import sampling_faults, sources_of
from ..errors import UserError
from ..optimization.by_task import by_task_faults
from .arguments import training_faults, whole_numbers
from .checks import output_dir_faults, task_faults
from .code import with_names
from .data_config import RowsInMemory
from .decide import decide_faults
from .extension import extend_recipe
from .retain import retain_faults
from .router import add_router
from .schema import Recipe, TaskRecipe
from .section_checks import section_faults, stages_on_model_faults
from .yaml_text import BYTES, read_yaml


def load_recipe(
    path: str | Path,
    overrides: list[str] | None = None,
    *,
    onto: PolyheadConfig | None = None,
    scored: PolyheadConfig | None = None,
    extends: bool = False,
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file. `${NAME}` stands for an environment variable, `${RECIPE_DIR}` for the
            folder of the file.
        overrides: `key=value` with dotted keys, as `tasks.intent.loss_weight=2`.
        onto: the finished model that its tasks are added to; the recipe then names no encoder.
        scored: the finished model that is scored on its data; it may then name none.
        extends: its tasks are those of `onto`, which are given more labels.

    Raises:
        UserError: with all faults found.
    """
    source, faults = str(path), []
    raw = _parse(_read(path), source)
    for override in overrides or []:
        _override(raw, override, faults)
    raw = _expand(raw, "", {"RECIPE_DIR": str(Path(path).resolve().parent)}, faults)
    return build_recipe(raw, source, faults, onto=onto, scored=scored, extends=extends)


def parse_recipe(text: str) -> Recipe:
    """Read and check a recipe that is a text; `${RECIPE_DIR}` is the folder of the process.

    Raises:
        UserError: with all faults found.
    """
    faults: list[str] = []
    raw = _expand(_parse(text, "recipe"), "", {"RECIPE_DIR": str(Path.cwd())}, faults)
    return build_recipe(raw, "recipe", faults)


def build_recipe(
    raw: dict[str, Any],
    source: str,
    faults: Sequence[str] = (),
    *,
    rows: Mapping[str, RowsInMemory] | None = None,
    onto: PolyheadConfig | None = None,
    scored: PolyheadConfig | None = None,
    extends: bool = False,
) -> Recipe:
    """The recipe that plain keys and values say, checked.

    Args:
        raw: as YAML has them.
        source: where they come from, for messages.
        faults: those found so far.
        rows: by task, rows that are in memory.
        onto: as of `load_recipe`.
        scored: as of `load_recipe`.
        extends: as of `load_recipe`.

    Raises:
        UserError: with all faults found.
    """
    faults = list(faults)
    if onto is not None:
        faults += [f"{key}: {why}" for key, why in FROM_MODEL.items() if raw.pop(key, None)]
        raw["encoder"] = str(onto.name_or_path)
    if scored is not None:
        raw.setdefault("encoder", str(scored.name_or_path))
    faults += _number_faults(raw)
    raw = _with_corpora(raw)
    recipe = _validated(with_names(raw, faults), source, faults)
    if scored is not None:
        _read_as_model(recipe, scored)
    if extends and onto is not None:
        faults += extend_recipe(recipe, onto)
    for name, task in recipe.tasks.items():
        task.data.rows = (rows or {}).get(name)
        faults += task_faults(name, task)
    faults += add_router(recipe)
    taken = (onto.tasks or {}) if onto is not None and not extends else {}
    for name in sorted(set(recipe.tasks) & set(taken)):
        faults.append(f"tasks.{name}: the model has this task; take another name")
    if scored is None:  # else the model has its adapters
        known = (onto.adapters or []) if onto is not None else []
        faults += adapter_faults({name: task.adapter for name, task in recipe.tasks.items()}, known)
    faults += _faults_between(recipe, on_model=onto is not None)
    if faults:
        raise UserError(source, list(dict.fromkeys(faults)))
    recipe.path = source
    recipe.training = whole_numbers(recipe.training)
    recipe.output_dir = str(Path(recipe.output_dir).expanduser())
    return recipe


def _faults_between(recipe: Recipe, *, on_model: bool) -> list[str]:
    """What of a recipe does not go together, beyond single tasks; `on_model` adds to a model."""
    sources = sources_of(recipe)
    return [
        *sampling_faults(recipe),
        *balancing_faults(recipe, len(sources)),
        *by_task_faults(recipe, sources),
        *retain_faults(recipe, sources),
        *section_faults(recipe),
        *(stages_on_model_faults(recipe) if on_model else []),
        *decide_faults(recipe),
        *training_faults(recipe.training),
        *output_dir_faults(recipe.output_dir),
    ]


def _with_corpora(raw: dict[str, Any]) -> dict[str, Any]:
    """Keys where a list of places in `data` is the first of them, with `more`."""
    if not isinstance(raw.get("tasks"), dict):
        return raw
    tasks = {}
    for name, task in raw["tasks"].items():
        data = task.get("data") if isinstance(task, dict) else None
        if isinstance(data, list) and data and isinstance(data[0], dict):
            task = {**task, "data": {**data[0], **({"more": data[1:]} if data[1:] else {})}}
        tasks[name] = task
    return {**raw, "tasks": tasks}


def _read_as_model(recipe: Recipe, model: PolyheadConfig) -> None:
    """Rows to be scored are cut as the model reads texts, whatever the recipe says."""
    for name, task in recipe.tasks.items():
        config = (model.tasks or {}).get(name)
        if config is not None and config.head == task.head:
            for option in ("long_texts", "window_pooling"):
                setattr(task, option, getattr(config, option))


def _validated(raw: dict[str, Any], source: str, faults: list[str]) -> Recipe:
    """The recipe, if pydantic takes each of its values; else an error with `faults` and its own."""
    try:
        return TypeAdapter(Recipe).validate_python(raw)
    except ValidationError as error:
        others = _other_encoders(raw.get("encoder"))
        faults += [
            _pydantic_fault(entry, raw)
            for entry in error.errors()
            if entry["loc"][:1] != ("encoder",) or entry["loc"][1:2] not in others
        ]
        faults += training_faults(raw.get("training"))
        raise UserError(source, list(dict.fromkeys(faults))) from error


def _read(path: str | Path) -> str:
    """The text of a file."""
    source = str(path)
    try:
        with Path(path).open("rb") as file:
            return file.read(BYTES + 1).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(source, [f"is not UTF-8 text: {error.reason}"]) from error
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(source, [f"cannot be read: {reason}"]) from error


def _other_encoders(encoder: Any) -> list[tuple[str]]:
    """The forms of `encoder` that this one is not meant as: what pydantic says of them is noise."""
    if not isinstance(encoder, dict):
        return [("FinishedEncoder",), ("ScratchEncoder",)]
    finished = "model" in encoder
    return [("str",), ("ScratchEncoder" if finished else "FinishedEncoder",)]


def _parse(text: str, source: str) -> dict[str, Any]:
    """The keys and values of a YAML text, as they are."""
    try:
        raw = read_yaml(text)
    except ValueError as error:
        raise UserError(source, [f"cannot be read: {error}"]) from error
    except yaml.YAMLError as error:
        raise UserError(source, [f"is not YAML: {_yaml_fault(error)}"]) from error
    if not isinstance(raw, dict):
        raise UserError(source, ["holds no keys; see configs/ for examples"])
    return raw


def _yaml_fault(error: yaml.YAMLError) -> str:
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())[:400]


# What a recipe for more tasks on a finished model leaves out.
FROM_MODEL = {
    "encoder": "it is the model's that the tasks are added to; take it out",
    "pooling": "it is the model's; write the pooling of a new task in that task",
    "experts": "they are the model's; take it out",
    "max_length": "it is the model's; take it out",
    "freeze": "all but the new heads and adapters is frozen; take it out",
    "compare": "on a frozen encoder a task is trained alone already; take it out",
    "router": "it would know the new tasks alone; train all tasks anew with it, or take it out",
}


def _override(raw: dict, override: str, faults: list[str]) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        faults.append(f"{override!r} on the command line: write key=value")
        return
    *parents, last = key.split(".")
    group = raw
    for parent in parents:
        group = group.setdefault(parent, {})
        if not isinstance(group, dict):
            faults.append(f"{key} on the command line: {parent} is no group of keys")
            return
    try:
        group[last] = read_yaml(value, key)
    except yaml.YAMLError as error:
        fault = f"{value!r:.80} is not YAML: {_yaml_fault(error)}"
        faults.append(f"{key} on the command line: {fault}")


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
        text = extra.get(name, os.environ.get(name))
        if text is None:
            faults.append(f"{key}: ${{{name}}} is not set; type: export {name}=...")
            return match.group(0)
        return text

    return re.sub(r"\$\{(\w+)\}", replace, value)


def _number_faults(value: Any, key: str = "") -> list[str]:
    """Numbers that are none: nothing in a recipe means NaN or infinity."""
    if isinstance(value, dict):
        parts = [(f"{key}.{name}".lstrip("."), part) for name, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{key}.{number}", part) for number, part in enumerate(value)]
    else:
        odd = isinstance(value, float) and not math.isfinite(value)
        return [f"{key}: {value}; write a finite number"] if odd else []
    return [fault for name, part in parts for fault in _number_faults(part, name)]


def _pydantic_fault(entry: Any, raw: Any) -> str:
    """One of pydantic's faults; its key without the parts that name a type of a union."""
    keys, value = [], raw
    for part in entry["loc"]:
        if isinstance(value, dict) and str(part) in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif part != entry["loc"][-1] or entry["type"] not in (*UNKNOWN, *MISSING):
            continue
        keys.append(str(part))
    key = re.sub(r"\.more\.(\d+)", lambda found: f".{int(found[1]) + 1}", ".".join(keys))
    if entry["type"] in UNKNOWN:
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.55)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if entry["type"] in MISSING:
        return f"{key}: missing"
    got = "" if isinstance(entry["input"], dict) else f", got {entry['input']!r:.80}"
    return f"{key}: {entry['msg'][0].lower()}{entry['msg'][1:]}{got}"


UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


def _known_keys(keys: list[str]) -> list[str]:
    """The keys of the group of a recipe that a dotted key names."""
    groups: list[type] = [Recipe]
    if keys[:1] == ["tasks"]:
        groups, keys = [TaskRecipe], keys[2:]
    for key in keys:
        hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
        name = next((n for n in hints if n.rstrip("_") == key), None)  # none: a number in a list
        groups = (_groups_in(hints[name]) or groups) if name else groups
    return [f.name.rstrip("_") for group in groups for f in fields(group) if f.init]


def _groups_in(hint: Any) -> list[type]:
    """The dataclasses that a type hint names."""
    if is_dataclass(hint):
        return [hint]  # pyright: ignore[reportReturnType]
    return [group for part in get_args(hint) for group in _groups_in(part)]
