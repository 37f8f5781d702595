"""Files of a run and of a model: their names, JSON, and the one way to write them whole.

What is written goes into `.unfinished` beside its place, through to the disk, and is then renamed:
at its place there is the old or the new, never half of either, and what a killed process left is
replaced by the next. It costs an fsync of each file and room for both.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..modeling import reading
from .errors import UserError

SCORES = "scores.json"  # in a model's folder: metrics by task; in a run's: of the whole run
RUNS = "training.json"  # in a model's folder: the trainings that made it, oldest first
PLOTS = "plots"  # in a model's folder
REPORTS = "reports"  # in the folder of a run
HISTORY = "log_history.json"
UNFINISHED = ".unfinished"  # beside what is being written
REPLACED = "replaced"  # in UNFINISHED: what is being deleted
REFUSED = {  # what the system says of a place or a disk, not of our code
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}


def write_json(path: Path, value: Any) -> None:
    """Write a file that people may read, and the folders it lies in."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, and the folders it lies in."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def read_json(path: str | Path, default: Any) -> Any:
    """What a file holds, or `default` where there is none; see `records.read_record` for more.

    Args:
        path: the file.
        default: a dict, a list or a float; the file must hold the same.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    if not Path(path).exists():
        return default
    try:
        return reading.read_json(path, type(default), finite=False)
    except (OSError, ValueError) as error:
        raise UserError(str(path), [" ".join(str(error).split())]) from error


# ---- whole or not at all ----


@contextmanager
def write_aside(target: str | Path, *, advice: Callable[[], str] = str) -> Iterator[Path]:
    """Give a path to write a file or folder to; it takes the target's place when the block ends.

    When the block fails, or the process dies, the target is what it was, and folders that were made
    for it are gone.

    Args:
        target: a file, or a folder that is replaced as a whole; one process writes it at a time.
        advice: what to add to the message of a failed write, made only then.

    Raises:
        UserError: the disk is full, or the system refused to write otherwise.
    """
    target = Path(target)
    aside = target.parent / UNFINISHED / target.name
    with explained(target, advice), _no_empty_folders(target.parent):
        _clean_up_one(target)
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            put_in_place(aside, target)
        finally:
            _clean_up_one(target)


def put_in_place(new: Path, target: Path) -> None:
    """Rename a whole file or folder over an older one, which then goes; both are on one disk.

    Between the two renames that a folder takes there is none at its place; `clean_up` ends what a
    kill just there has left. A folder is not replaced by a file.
    """
    _sync(new)
    if target.is_dir() and new.is_dir():
        put_away(target)
    new.rename(target)
    _sync_one(target.parent)


def clean_up(folder: str | Path) -> None:
    """Remove what killed processes were writing here; a whole folder still gets its place."""
    aside = Path(folder) / UNFINISHED
    for old in (aside / REPLACED).glob("*"):
        _finish(Path(folder) / old.name)
    shutil.rmtree(aside, ignore_errors=True)


def put_away(old: Path) -> None:
    """Move what is to be deleted: a kill while deleting must not leave half a checkpoint."""
    trash = old.parent / UNFINISHED / REPLACED
    trash.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(trash / old.name, ignore_errors=True)
    old.rename(trash / old.name)


def _clean_up_one(target: Path) -> None:
    """As `clean_up`, of one target: others may be written beside it."""
    aside = target.parent / UNFINISHED
    if not aside.is_dir():
        return
    if (aside / REPLACED / target.name).exists():
        _finish(target)
    for path in (aside / target.name, aside / REPLACED / target.name):
        _remove(path)
    for folder in (aside / REPLACED, aside):
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()


def _finish(target: Path) -> None:
    """Give a whole folder its place, where the older one has left it already."""
    new = target.parent / UNFINISHED / target.name
    if new.exists() and not target.exists():
        new.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _no_empty_folders(folder: Path) -> Iterator[None]:
    """Remove the folders that a failed block has made and left empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def _sync(path: Path) -> None:
    """A file, or a folder and all in it; at once, because the disk takes many as fast as one."""
    paths = [path]
    if path.is_dir():
        paths = [*path.rglob("*"), path]
    if len(paths) == 1:
        _sync_one(path)
        return
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_sync_one, paths))


def _sync_one(path: Path) -> None:
    """Through to the disk, so that a loss of power later finds it there."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# ---- what the system refuses ----


class explained:  # noqa: N801 - used as a function, as contextlib's are
    """Turns a failed write into one clear error.

    Not by `except OSError`: torch, safetensors and tokenizers raise errors of their own.

    Args:
        target: what is written.
        advice: what to add, made only when a write fails.
    """

    def __init__(self, target: Path, advice: Callable[[], str] = str) -> None:
        self.target = target
        self.advice = advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        reason = None if error is None else refusal(error)
        if reason is None:
            return
        fault = f"could not be written: {reason}"
        folder = self.target.absolute().parent
        there = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
        if there is not None:
            fault += f"; {shutil.disk_usage(there).free / 1e6:,.1f} MB are free there"
        advice = self.advice()
        raise UserError(str(self.target), [f"{fault}; {advice}" if advice else fault]) from error


def refusal(error: BaseException) -> str | None:
    """Why the system refused to read or write; None for an error of another kind."""
    if isinstance(error, UserError) and error.__cause__ is not None:  # of a file in a folder
        return refusal(error.__cause__)
    if "inline_container" in str(error):  # torch.save keeps the reason to itself
        return "the file was cut short"
    match = re.search(r"\(os error (\d+)\)", str(error))  # safetensors, tokenizers
    number = int(match[1]) if match else error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number in REFUSED else None
