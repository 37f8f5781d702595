"""What a model's folder was before: `history.json`, one entry for each version, oldest first.

A version is the sha256 of the files that a loaded model is made of; card and pictures may change.
The latest entry is that of the folder itself. What was done to a folder by other means is seen
where its files are not those of that entry, and is said, not guessed. `folder` says where an older
version lay, from the folder of the history; it is not pushed.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ...modeling import reading
from ...modeling.configuration_polyhead import PolyheadConfig
from ..artifacts import SCORES, write_json
from ..errors import UserError
from ..outputs import model_files
from ..records import MODEL_SCORES, VERSIONS, read_record
from .proof import tensor_hash

logger = logging.getLogger(__name__)
FILE = "history.json"
CHANGING = ("README.md", "plots/", "__pycache__/", FILE)  # of a version: may change without it
SHORT = 12  # letters of a version that are shown


class Made(NamedTuple):
    """How a folder came to be.

    Args:
        change: trained, added, removed, extended, restored; or found, as it was.
        tasks: the tasks that it was done to.
    """

    change: str
    tasks: Sequence[str]


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a folder's history; none where it has no `history.json`.

    Raises:
        UserError: it cannot be read, or a version is not the hash of its files.
    """
    path = Path(folder) / FILE
    versions = read_record(path, VERSIONS, [])
    odd = [v["version"] for v in versions if v["version"] != version_of(v["files"])]
    if odd:
        fault = f"version {odd[0][:SHORT]} is not the hash of its files: damaged, or written over"
        raise UserError(str(path), [fault])
    return versions


def file_hashes(folder: str | Path) -> dict[str, str]:
    """sha256 of each file that a loaded model is made of, by its path in the folder."""
    names = [name for name in model_files(Path(folder)) if not name.startswith(CHANGING)]
    return {name: _file_hash(Path(folder) / name) for name in sorted(names)}


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version_of(files: dict[str, str]) -> str:
    """The hash of files that are known by their hashes."""
    lines = "".join(f"{digest} {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def differences(expected: dict[str, str], files: dict[str, str]) -> list[str]:
    """How files differ from those of a version: a line for each."""
    gone = [f"{name} is missing" for name in expected if name not in files]
    other = [f"{n} is another" for n in expected if n in files and files[n] != expected[n]]
    return [*gone, *other, *(f"{name} is new" for name in files if name not in expected)]


# ---- what a version is made of ----


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a saved Polyhead.

    Raises:
        UserError: there is none, or it is another model's.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(str(folder), ["has no config.json: no saved model, or not all of it"])
    try:
        config = reading.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(str(path), [" ".join(str(error).split())]) from error
    if config.get("model_type") != PolyheadConfig.model_type or not _has_tasks(config):
        raise UserError(str(folder), ["is no Polyhead"])
    return config


def _has_tasks(config: dict[str, Any]) -> bool:
    tasks = config.get("tasks")
    return isinstance(tasks, dict) and all(isinstance(task, dict) for task in tasks.values())


def weight_hashes(folder: str | Path) -> dict[str, Any]:
    """Hashes of encoder and tasks, from the files alone; as those of a proof.

    Returns:
        `{"encoder": ..., "tasks": {task: {"weights": ..., "options": ...}}}`; of a decoder tied to
        the encoder's embeddings what is its own.

    Raises:
        UserError: the folder holds no Polyhead, or a file of weights is damaged.
    """
    folder, config = Path(folder), read_config(folder)
    parts: dict[str, dict[str, Any]] = {"encoder": {}}
    for path in sorted(folder.glob("model*.safetensors")):
        for key, tensor in _tensors(path):
            kind, _, rest = key.partition(".")
            if kind == "heads":
                task, _, rest = rest.partition(".")
                parts.setdefault(f"heads.{task}", {})[f"head.{rest}"] = tensor
            else:
                parts["encoder"][key if kind == "experts" else rest] = tensor
    tasks = {}
    for name, options in sorted(config["tasks"].items()):
        weights = parts.get(f"heads.{name}", {})
        adapter = options.get("adapter")
        if adapter is not None:
            weights |= _tensors(folder / "adapters" / str(adapter) / "adapter_model.safetensors")
        known = json.dumps(options, sort_keys=True, ensure_ascii=False)
        tasks[name] = {
            "weights": tensor_hash(weights),
            "options": hashlib.sha256(known.encode()).hexdigest(),
        }
    return {"encoder": tensor_hash(parts["encoder"]), "tasks": tasks}


def _tensors(path: Path) -> Iterable[tuple[str, Any]]:
    """The tensors of a file, by name."""
    try:
        with safe_open(path, framework="pt") as file:
            return [(key, file.get_tensor(key)) for key in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(str(path), [f"cannot be read: {' '.join(str(error).split())}"]) from error


def read_numbers(folder: str | Path) -> dict[str, dict[str, float | None]]:
    """The scores in a model's folder, less what they say of single labels."""
    scores = read_record(Path(folder) / SCORES, MODEL_SCORES, {})
    return {
        task: {name: value for name, value in metrics.items() if not isinstance(value, dict)}
        for task, metrics in scores.items()
    }


# ---- writing ----


def describe(folder: Path, made: Made) -> dict[str, Any]:
    """The entry of a folder as it is."""
    files = file_hashes(folder)
    return {
        "version": version_of(files),
        "change": made.change,
        "changed": sorted(made.tasks),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **weight_hashes(folder),
        "scores": read_numbers(folder),
        "files": files,
    }


def line_of(source: Path) -> list[dict[str, Any]]:
    """The versions up to a folder from which another is made, its own last.

    A folder without a history, or with another's, gets an entry of what was found.

    Raises:
        UserError: its history is damaged.
    """
    versions = read_history(source)
    files = file_hashes(source)
    if versions and versions[-1]["version"] == version_of(files):
        return versions
    if versions:
        changed = differences(versions[-1]["files"], files)
        logger.warning(
            f"{source}: changed since its history.json was written ({reading.few(changed)}); the "
            "history goes on with what is there"
        )
    return [*versions, describe(source, Made("found", ()))]


def relocated(line: Sequence[dict[str, Any]], source: Path, target: Path) -> list[dict[str, Any]]:
    """The versions of a folder as another tells them, with the ways to where they lie.

    Args:
        line: of `source`, its own last.
        source: a folder.
        target: one that is made of it.
    """
    told = []
    for number, version in enumerate(line, 1):
        told.append({key: value for key, value in version.items() if key != "folder"})
        folder = "." if number == len(line) else version.get("folder")
        if folder is not None:
            told[-1]["folder"] = way(target, source / folder)
    return told


def write_history(folder: Path, made: Made, older: Sequence[dict[str, Any]] = ()) -> None:
    """Write the history of a folder that is whole but for it.

    Args:
        folder: where it lies now.
        made: how it came to be.
        older: the versions before it, with the ways from where it will lie.
    """
    write_json(folder / FILE, [*older, describe(folder, made)])


def way(start: Path, end: Path) -> str:
    """From one folder to another."""
    return Path(os.path.relpath(end.resolve(), start.resolve())).as_posix()


def published(path: Path) -> bytes:
    """A history without the places of older versions."""
    versions = read_history(path.parent)
    for version in versions:
        version.pop("folder", None)
    return (json.dumps(versions, indent=2) + "\n").encode()
