"""What `training.json` says of a run: data, recipe, time and machine; no path of it."""

import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from ..data.loading import Source
from ..recipe.data_config import DataConfig
from ..recipe.schema import Recipe
from ..reports.curves import training_curves

LOCAL = ("parquet", "csv", "json", "jsonl", "text", "arrow")  # `path` of data that is no Hub id
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")


def about_run(
    recipe: Recipe,
    sources: list[Source],
    state: TrainerState,
    *,
    splits: dict[str, str],
    seconds: float,
    resumed: bool,
    processes: int,
    device: str,
) -> dict[str, Any]:
    """What the card says of a training; JSON-ready, without paths of this machine.

    Args:
        recipe: the recipe.
        sources: its data.
        state: the trainer's state, after training.
        splits: task to the split that its scores were made on.
        seconds: wall time of the training.
        resumed: the time is that since it was resumed.
        processes: how many trained together.
        device: kind of device, as `cpu` or `NVIDIA H100`.
    """
    tasks = {}
    for source in sources:
        for name in source.tasks:
            places = [recipe.tasks[name].data, *(recipe.tasks[name].data.more or [])]
            tasks[name] = {
                "data": _joined(dataset_of(data) for data in places),
                "license": _joined(data.license for data in places),
                "rows": {split: len(rows) for split, rows in source.splits.items()},
                "scored_on": splits.get(name),
            }
    names = sorted(tasks)
    cosines = training_curves(state.log_history, names)["cosines"]
    return {
        "encoder": _hub_id(recipe.encoder),
        "tasks": dict(sorted(tasks.items())),
        "card": asdict(recipe.card),
        "recipe": _published(recipe),
        "steps": state.global_step,
        "epochs": state.epoch,
        "seconds": round(seconds),
        "resumed": resumed,
        "processes": processes,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "gradient_cosines": cosines,
    }


def _joined(names: Iterable[str | None]) -> str | None:
    """Names of several places of rows; None where none has one."""
    return ", ".join(dict.fromkeys(name for name in names if name)) or None


def _place(data: DataConfig, entry: dict[str, Any]) -> dict[str, Any]:
    """What is published of a further place of rows."""
    shown = ("marks", "label", "tokens", "text", *(["path"] if dataset_of(data) else []))
    return {key: entry[key] for key in shown if entry[key] is not None}


def dataset_of(data: DataConfig) -> str | None:
    """The Hub id of a dataset; None for local files."""
    local = data.path is None or data.path in LOCAL or Path(data.path).exists()
    return None if local else data.path


def _hub_id(encoder: Any) -> str | None:
    """An encoder's Hub id; None for a folder, a package, or random weights."""
    if not isinstance(encoder, str) or encoder.startswith("package:") or Path(encoder).exists():
        return None
    return encoder


def _published(recipe: Recipe) -> dict[str, Any]:
    """The recipe's keys that differ from their defaults, without places of files."""
    published = _without_defaults(asdict(recipe), _defaults(recipe))
    for key in ("path", "output_dir", "card"):
        published.pop(key, None)
    if _hub_id(recipe.encoder) is None:
        published.pop("encoder", None)
    for name, teacher in published.get("distill", {}).get("teachers", {}).items():
        published["distill"]["teachers"][name] = _hub_id(teacher) or "a model on disk"
    for name, task in published["tasks"].items():
        private = ["rows", "data_files", "data_dir"]
        private += ["path"] if dataset_of(recipe.tasks[name].data) is None else []
        for key in private:
            task["data"].pop(key, None)
        if more := task["data"].pop("more", None):
            named = zip(recipe.tasks[name].data.more or [], more, strict=True)
            task["data"]["more"] = [_place(data, entry) for data, entry in named]
        if isinstance(task.get("adapter"), dict):
            task["adapter"].pop("path", None)
    for key in ("resume_from_checkpoint", "hub_token", "logging_dir", "run_name"):
        published.get("training", {}).pop(key, None)
    return published


def _defaults(recipe: Recipe) -> dict[str, Any]:
    plain = Recipe(encoder="", tasks=recipe.tasks, output_dir="")
    defaults = asdict(plain)
    for name, task in defaults["tasks"].items():
        blank = type(recipe.tasks[name])(head=task["head"], data=DataConfig())
        defaults["tasks"][name] = asdict(blank) | {"head": None}
    return defaults


def _without_defaults(value: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    changed = {}
    for key, entry in value.items():
        if isinstance(entry, dict) and isinstance(default.get(key), dict):
            entry = _without_defaults(entry, default[key])
            if not entry:
                continue
        elif key in default and entry == default[key]:
            continue
        changed[key] = list(entry) if isinstance(entry, tuple) else entry
    return changed
