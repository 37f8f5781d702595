"""A YAML recipe to dataclasses, with every fault of the file in one error.

Types, unknown keys and allowed values are pydantic's work. Here are environment variables and the
words of its faults; which keys go together is in `checks.py`, the fields of TrainingArguments in
`arguments.py`.
"""

import difflib
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ...modeling.configuration_polyhead import PolyheadConfig
from ..adapters import adapter_faults
from ..balancing.methods import balancing_faults
from ..batches.strategies import sampling_faults, sources_of
from ..errors import UserError
from .arguments import training_faults
from .checks import stopping_faults, task_faults
from .schema import (
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
        UserError: with all faults found.
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
        faults += training_faults(raw.get("training"))
        raise UserError(source, faults) from error
    for name, task in recipe.tasks.items():
        faults += task_faults(name, task)
    taken = (onto.tasks or {}) if onto is not None else {}
    known = (onto.adapters or []) if onto is not None else []
    for name in sorted(set(recipe.tasks) & set(taken)):
        faults.append(f"tasks.{name}: the model has this task; take another name")
    if scored is None:  # else the model has its adapters
        faults += adapter_faults({name: task.adapter for name, task in recipe.tasks.items()}, known)
    faults += sampling_faults(recipe)
    faults += balancing_faults(recipe, len(sources_of(recipe)))
    faults += stopping_faults(recipe)
    faults += training_faults(recipe.training)
    if faults:
        raise UserError(source, faults)
    return recipe


def _read(path: str | Path) -> dict[str, Any]:
    """The YAML file as it is."""
    source = str(path)
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(source, [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise UserError(source, [f"is not UTF-8 text: {error.reason}"]) from error
    except yaml.YAMLError as error:
        raise UserError(source, [f"is not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(raw, dict):
        raise UserError(source, ["holds no keys; see configs/ for examples"])
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
