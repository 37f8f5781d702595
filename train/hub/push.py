"""A saved model to the Hub, in one commit."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx

from ...modeling.configuration_polyhead import PolyheadConfig
from ..artifacts import read_json
from ..errors import UserError
from ..escape import visible
from ..inference.load import load_model
from . import history
from .folder import CARD, THIS_FOLDER
from .space import check_space, push_space, space_files, space_report

# What a trainer leaves beside a model in a checkpoint.
STATE = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state\w*)\.(pt|pth|bin)"
    r"|trainer_state\.json|(optimizer|pytorch_model_fsdp)_\d+/.*"
)
# Left out wherever it lies: hidden files (.git, .env, .cache) and compiled code.
HIDDEN = re.compile(r"\..*|__pycache__")
HUB_ERRORS = (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError)
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".distcp")
DATA = (".csv", ".tsv", ".parquet", ".arrow", ".jsonl", ".feather", ".xlsx", ".sqlite", ".db")
SECRET = re.compile(r".*\.(pem|key|p12|pfx)|id_(rsa|dsa|ecdsa|ed25519)|(credentials|token)(\..*)?")


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = True,
    revision: str | None = None,
    message: str = "Upload model",
    token: str | None = None,
    dry_run: bool = False,
    space: str | None = None,
) -> dict[str, Any]:
    """Upload a saved model in one commit; files of an earlier version that it lacks are deleted.

    The card goes up with the repository's name in its snippet.

    Called again after it was cut off, it uploads what is missing: large files that the Hub has
    already are not sent twice, and nothing shows before the commit.

    Args:
        folder: a saved Polyhead, or a checkpoint of one; the trainer's state is left out.
        repo: name of the repository, `user/model` or `model`; made when it is not there.
        private: whether only you may see a repository that is made; None: the Hub's default.
        revision: branch; made when it is not there.
        message: commit message.
        token: token for the Hub; default the one of `hf auth login`.
        dry_run: upload nothing.
        space: name of a Space that shows the model on its page; made when it is not there.

    Returns:
        `{"repo": ..., "files": {path: bytes}, "commit": hash or None}`, and the same of a Space
        under `space`.

    Raises:
        UserError: `folder` holds no whole Polyhead, a link that leads out, or files that no model
            needs: pickles, data, keys; or the Space holds another program. Nothing has been
            uploaded then.
        HfHubHTTPError: the Hub refuses.
    """
    files = _files_to_push(Path(folder))
    report: dict[str, Any] = {"repo": repo, "files": files, "commit": None}
    if space is not None:
        report["space"] = space_report(space, space_files(Path(folder), repo, revision))
    if dry_run:
        return report
    contents = _contents(Path(folder), files)
    api = HfApi(token=token)
    if space is not None:
        check_space(api, space)
    made = api.create_repo(repo, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(made.repo_id, branch=revision, exist_ok=True)
    card = (Path(folder) / CARD).read_text(encoding="utf-8").replace(THIS_FOLDER, made.repo_id)
    contents[CARD] = card.encode()
    operations = _operations(contents, api.list_repo_files(made.repo_id, revision=revision))
    commit = api.create_commit(made.repo_id, operations, commit_message=message, revision=revision)
    report |= {"repo": made.repo_id, "commit": commit.oid}
    if space is not None:
        page = space_files(Path(folder), made.repo_id, revision)  # the user's name before it
        report["space"] |= push_space(api, space, page, private=private, message=message)
    return report


def _contents(folder: Path, files: Iterable[str]) -> dict[str, str | bytes]:
    """Path of each file of a folder, or its bytes where it goes up with other ones."""
    published = {n: history.published(folder / n) for n in files if n == history.FILE}
    return {name: published.get(name, str(folder / name)) for name in files}


def _operations(
    contents: Mapping[str, str | bytes], present: Iterable[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Of the commit that leaves a repository, with files `present`, with these contents alone."""
    current = {*contents, ".gitattributes"}  # the Hub's own
    return [
        *(CommitOperationDelete(name) for name in present if name not in current),
        *(CommitOperationAdd(name, content) for name, content in contents.items()),
    ]


def _files_to_push(folder: Path) -> dict[str, int]:
    """Size by path of what belongs to the model.

    Raises:
        UserError: see `push`; with all faults.
    """
    if not (folder / "config.json").is_file() or not (folder / CARD).is_file():
        raise UserError("push", [f"{folder} is no folder of a saved Polyhead"])
    kind = read_json(folder / "config.json", {}).get("model_type")
    if kind != PolyheadConfig.model_type:
        raise UserError("push", [f"{folder} holds a {kind} model, not a Polyhead"])
    files, faults = {}, []
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if STATE.fullmatch(name):
            continue
        fault = _fault(path, folder)
        if fault is not None:
            faults.append(f"{visible(name)}: {fault}")
        else:
            files[name] = path.stat().st_size
    if faults:
        raise UserError("push", faults)
    load_model(folder)  # one that is not whole would not load for anyone
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Everything but hidden files and folders, in order; links to folders are not followed."""
    for path in sorted(folder.iterdir()):
        if HIDDEN.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _fault(path: Path, folder: Path) -> str | None:
    """Why a file is not uploaded; None for one that is."""
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # nothing there, or a circle
            return f"a link to {path.readlink()}, where nothing is"
        if not target.is_relative_to(folder.resolve()):
            return f"a link to {target}, outside the folder; put a copy of the file in its place"
        if target.is_dir():
            return "a link to a folder; put a copy of the folder in its place"
        if any(HIDDEN.fullmatch(part) for part in target.relative_to(folder.resolve()).parts):
            return f"a link to {target}, which is not uploaded"
    if not path.is_file():
        return "no file"
    if path.suffix.lower() in PICKLED:
        return "weights are safetensors only"
    if path.suffix.lower() in DATA:
        return "data; a repository of datasets is the place for it"
    if SECRET.fullmatch(path.name.lower()):
        return "looks like a key"
    return None
