"""Versions of a model: the line of a folder, two folders compared, an older one put back.

Nothing is stored twice: an older version is the folder that a model was made of, or a revision on
the Hub. It is put back only if its files are those that the history names, to the bit; and the
version that it replaces is kept beside it.
"""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx

from ...modeling import reading
from ..artifacts import write_aside
from ..errors import UserError
from ..hub.history import (
    FILE,
    SHORT,
    Made,
    differences,
    file_hashes,
    read_config,
    read_history,
    read_numbers,
    version_of,
    way,
    weight_hashes,
    write_history,
)
from ..hub.proof import read_proofs
from ..outputs import MODEL_FILES, foreign_files, model_files, source_fault, unwritable

TOLD_BY_TASK = ("tasks", "task_names")
TOLD_APART = (
    "config.json",
    "model.",
    "model-",
    "adapters/",
    "scores.json",
    "training.json",
    "proof.json",
)
HUB_FAULTS = (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError, ValueError)


def log(model_path: str | Path) -> dict[str, Any]:
    """The versions of a model, and whether its folder is the latest.

    Args:
        model_path: folder or Hub id of the model.

    Returns:
        `{"versions": [...], "differs": [...]}`: the entries of history.json, oldest first, each
        with `changes` against the one before it, see `changes_between`; and how the folder's files
        differ from those of the latest.

    Raises:
        UserError: there is no model, it has no history, or the history is damaged.
    """
    folder = folder_of(model_path)
    read_config(folder)
    versions = _history(folder, str(model_path))
    older = [None, *versions[:-1]]
    told = [
        {**version, "changes": None if before is None else changes_between(before, version)}
        for before, version in zip(older, versions, strict=True)
    ]
    return {"versions": told, "differs": differences(versions[-1]["files"], file_hashes(folder))}


def changes_between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What differs between two versions, by hash.

    Returns:
        `{"encoder": bool, "tasks": {task: [...]}}`: added, removed, or which of weights and options
        differ; tasks that are the same are left out.
    """
    one, other, tasks = before["tasks"], after["tasks"], {}
    for name in sorted(one.keys() | other.keys()):
        if name not in other or name not in one:
            tasks[name] = ["removed" if name in one else "added"]
        elif parts := [part for part in one[name] if one[name][part] != other[name][part]]:
            tasks[name] = sorted(parts, reverse=True)
    return {"encoder": before["encoder"] != after["encoder"], "tasks": tasks}


def diff(first: str | Path, second: str | Path) -> dict[str, Any]:
    """How two models differ, task by task.

    Args:
        first: folder or Hub id.
        second: folder or Hub id.

    Returns:
        `{"encoder": bool, "tasks": {task: {"change", "options", "scores", "proven"}}, "config",
        "files", "made_of"}`. `change` is [] or what differs (weights, options), or
        ["added"] or ["removed"]; `options` and `scores` hold pairs of those that differ, None where
        one has none; `proven` is whether the second's latest proof says that its logits stayed;
        `config` holds pairs of other keys of config.json; `files` are other files that differ;
        `made_of` is the folder that has the other in its history: first, second or None.

    Raises:
        UserError: one is no Polyhead, or damaged.
    """
    folders = [folder_of(first), folder_of(second)]
    configs = [read_config(folder) for folder in folders]
    hashes = [weight_hashes(folder) for folder in folders]
    scores = [read_numbers(folder) for folder in folders]
    files = [file_hashes(folder) for folder in folders]
    versions = [_version_in(folder) for folder in folders]
    changes = changes_between(hashes[0], hashes[1])
    proofs = read_proofs(folders[1])
    tasks = {
        name: {
            "change": changes["tasks"].get(name, []),
            "options": _pairs(*(config["tasks"].get(name, {}) for config in configs)),
            "scores": _pairs(*(by_task.get(name, {}) for by_task in scores)),
            "proven": bool(proofs) and name in proofs[-1]["tasks"],
        }
        for name in sorted(hashes[0]["tasks"].keys() | hashes[1]["tasks"].keys())
    }
    beside = [{k: v for k, v in config.items() if k not in TOLD_BY_TASK} for config in configs]
    apart = [{k: v for k, v in one.items() if not k.startswith(TOLD_APART)} for one in files]
    return {
        "encoder": changes["encoder"],
        "tasks": tasks,
        "config": _pairs(*beside),
        "files": differences(*apart),
        "made_of": _made_of(versions, [version_of(one) for one in files]),
    }


def _pairs(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    """Values that differ, by key."""
    keys = sorted(one.keys() | other.keys())
    return {key: [one.get(key), other.get(key)] for key in keys if one.get(key) != other.get(key)}


def _version_in(folder: Path) -> set[str]:
    """The versions that a folder came from."""
    return {version["version"] for version in read_history(folder)}


def _made_of(histories: list[set[str]], now: list[str]) -> str | None:
    if now[0] != now[1]:
        if now[0] in histories[1]:
            return "second"
        if now[1] in histories[0]:
            return "first"
    return None


# ---- an older version put back ----


def rollback(
    model_path: str | Path,
    to: str | None = None,
    *,
    source: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Put an older version in the place of a model's folder; the version there is kept beside it.

    Args:
        model_path: folder of the model.
        to: the version, or how it begins; default the one before.
        source: folder or Hub id where it lies; default the folders that the history names.
        revision: of the Hub id.

    Returns:
        `{"version": ..., "taken_from": ..., "kept_in": ...}`.

    Raises:
        UserError: there is no such version, or none whose files are those of the history; or the
            folder holds what no command wrote. Nothing has been changed then.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        raise UserError(str(model_path), ["is no folder; download a Hub model first"])
    folder = folder.resolve()
    versions = _history(folder, str(model_path))
    goal = _goal(versions, to, str(model_path))
    files, foreign = file_hashes(folder), foreign_files(folder)
    if goal["version"] == version_of(files):
        raise UserError(str(model_path), [f"is version {goal['version'][:SHORT]} already"])
    origin = _origin(folder, versions, goal, source, revision)
    faults: list[str | None] = []
    if foreign:
        faults.append(
            f"holds {reading.few(foreign)}, which no command of polyhead wrote; move it out"
        )
    kept = folder.with_name(f"{folder.name}.{version_of(files)[:SHORT]}")
    if kept.exists() and file_hashes(kept) != files:
        faults.append(f"{kept}, where this version would be kept, holds something else; move it")
    faults += [source_fault(origin, folder, "rollback"), unwritable(folder.parent)]
    if any(faults):
        raise UserError(str(model_path), [fault for fault in faults if fault])
    if not kept.exists():
        with write_aside(kept) as aside:
            shutil.copytree(folder, aside)
    older = [*versions[:-1], {k: v for k, v in versions[-1].items() if k != "folder"}]
    if older[-1]["files"] == files:
        older[-1]["folder"] = way(folder, kept)
    with write_aside(folder) as aside:
        for name in model_files(origin):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / name, aside / name)
        if changed := differences(goal["files"], file_hashes(aside)):
            raise UserError(str(origin), [*changed, "changed while it was copied"])
        write_history(aside, Made("restored", list(goal["tasks"])), older)
    return {"version": goal["version"], "taken_from": str(origin), "kept_in": str(kept)}


def _history(folder: Path, name: str) -> list[dict[str, Any]]:
    versions = read_history(folder)
    if not versions:
        why = f"has no {FILE}; train, add-task, extend-task and remove-task write one"
        raise UserError(name, [why])
    return versions


def _goal(versions: list[dict[str, Any]], to: str | None, name: str) -> dict[str, Any]:
    """The version that is asked for."""
    names = [version["version"] for version in versions]
    if to is None:
        before = names.index(names[-1]) - 1  # where it came to be; it may have been restored since
        if before < 0:
            raise UserError(
                name, [f"version {names[-1][:SHORT]} is the first; nothing is before it"]
            )
        return versions[before]
    matching = sorted({one for one in names if one.startswith(to)})
    if len(matching) != 1:
        known = ", ".join(dict.fromkeys(one[:SHORT] for one in names))
        how_many = "no version" if not matching else f"{len(matching)} versions"
        raise UserError(name, [f"--to {to}: {how_many} of its history; it has: {known}"])
    return versions[names.index(matching[0])]


def _origin(
    folder: Path,
    versions: list[dict[str, Any]],
    goal: dict[str, Any],
    source: str | None,
    revision: str | None,
) -> Path:
    """A folder whose files are those of a version."""
    if source is not None:
        places = [folder_of(source, revision)]
    elif revision is not None:
        raise UserError("rollback", ["--revision is of a Hub id; name it by --source"])
    else:
        entries = [v for v in versions if v["version"] == goal["version"] and "folder" in v]
        places = list(dict.fromkeys((folder / entry["folder"]).resolve() for entry in entries))
    faults = []
    for place in places:
        if not place.is_dir():
            faults.append(f"{place} is not there")
        elif changed := differences(goal["files"], file_hashes(place)):
            faults.append(f"{place} is another version: {reading.few(changed)}")
        else:
            return place
    short = goal["version"][:SHORT]
    advice = f"name a folder or Hub id with version {short} by --source"
    raise UserError(
        str(folder), [*faults, advice] if faults else [f"it is not said where; {advice}"]
    )


def folder_of(path: str | Path, revision: str | None = None) -> Path:
    """A folder, or what is downloaded of a Hub id.

    Raises:
        UserError: there is neither.
    """
    if Path(path).is_dir():
        if revision is not None:
            raise UserError(str(path), ["is a folder; --revision is of a Hub id"])
        return Path(path)
    try:
        kinds = [*MODEL_FILES, "*.py"]
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=kinds))
    except HUB_FAULTS as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            str(path), [f"there is no such folder, and as a Hub id: {reason}"]
        ) from error
