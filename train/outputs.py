"""Where a command may write: nothing that stands there is replaced unless `--overwrite` is typed.

And even then only what this package writes: a file of another name in the folder stops it. All is
asked before anything is loaded or trained.
"""

import errno
import os
import re
import tempfile
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

from ..modeling.extension_files import extensions_in
from .artifacts import HISTORY, REPORTS, SCORES, UNFINISHED, clean_up, put_away
from .errors import RESUME

MODEL = "model"  # in the folder of a run
CHECKPOINT = re.compile(r"checkpoint-\d+")
SHOWN = 3  # foreign files named in a fault
# Files of the folders that are written as a whole: a model, an export, a plain transformers model.
MODEL_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "training.json",
    "scores.json",
    "proof.json",
    "history.json",
    "export.json",
    "handler.py",
    "runner.py",
    "runner.mjs",
    "model*.safetensors",
    "model.safetensors.index.json",
    "model.onnx",
    "model.onnx.data",
    "model.xml",
    "model.bin",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "plots/*.png",
    "adapters/*/adapter_config.json",
    "adapters/*/adapter_model.safetensors",
    "adapters/*/README.md",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",  # of sentencepiece
    "__pycache__/*",
)


def target_faults(
    target: Path,
    *,
    option: str = "--output",
    overwrite: bool = False,
    is_file: bool = False,
) -> list[str]:
    """What keeps a command from writing a file, or a folder as a whole.

    Args:
        target: file or folder that it would write.
        option: how the user named it.
        overwrite: what stands there may be replaced.
        is_file: a file is written, not a folder.
    """
    kind = "file" if is_file else "folder"
    if os.path.lexists(target):
        if not overwrite:
            again = "or type --overwrite to replace it"
            return [f"{option}: {target} exists; name a new {kind}, {again}"]
        if is_file and not target.is_file():
            return [f"{option}: {target} exists and is no file; name another"]
        if not is_file and (fault := foreign_fault(target, option)):
            return [fault]
    reason = unwritable(target.absolute().parent)
    return [f"{option}: {target} cannot be written: {reason}"] if reason else []


def source_fault(
    source: str | Path, target: Path, option: str = "--output", *, may_lie_inside: bool = False
) -> str | None:
    """What writing a folder would do to the model that is read: it has to stay as it is.

    Args:
        source: the model's folder, or its id on the Hub.
        target: the folder that is written.
        option: how the user named it.
        may_lie_inside: a new folder in the model's own does it no harm.
    """
    if not Path(source).is_dir():
        return None
    one, other = target.resolve(), Path(source).resolve()
    aside = one.parent / UNFINISHED  # is emptied
    inside = other in one.parents and not may_lie_inside
    if one == other or one in other.parents or aside in other.parents or inside:
        return f"{option}: the model lies there; name another"
    return None


def run_faults(folder: Path, *, goes_on: bool = False, overwrite: bool = False) -> list[str]:
    """What keeps a training from writing to its `output_dir`.

    Args:
        folder: the recipe's `output_dir`.
        goes_on: it resumes from one of the checkpoints there.
        overwrite: a run that stands there may be replaced.
    """
    if reason := unwritable(folder):
        return [f"output_dir: {folder} cannot be written: {reason}"]
    in_the_way = [name for name in (SCORES, HISTORY) if (folder / name).is_dir()]
    in_the_way += [name for name in (REPORTS, UNFINISHED) if (folder / name).is_file()]
    faults = [f"output_dir: {folder / name} is in the way; move it" for name in in_the_way]
    if fault := foreign_fault(folder / MODEL, "output_dir"):
        faults.append(fault)
    if goes_on and overwrite:
        faults.append(
            f"output_dir: --overwrite begins {folder} anew, training.resume_from_checkpoint goes "
            "on with it; choose one"
        )
    if faults or goes_on or overwrite:
        return faults
    anew = "type --overwrite to replace it, or name another output_dir"
    finished = [name for name in (MODEL, SCORES) if os.path.lexists(folder / name)]
    if finished:
        return [f"output_dir: {folder} holds a finished run ({', '.join(finished)}); {anew}"]
    if checkpoints := checkpoints_in(folder):
        run = f"holds an unfinished run ({checkpoints[-1].name})"
        return [f"output_dir: {folder} {run}; type {RESUME} to go on with it, {anew}"]
    return []


def begin_anew(folder: Path) -> None:
    """Remove the checkpoints of a run that is replaced; its model stands until the new one does."""
    for path in checkpoints_in(folder):
        put_away(path)
    clean_up(folder)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, by step."""
    if not folder.is_dir():
        return []
    paths = [p for p in folder.iterdir() if CHECKPOINT.fullmatch(p.name) and p.is_dir()]
    return sorted(paths, key=lambda path: int(path.name.partition("-")[2]))


def foreign_fault(folder: Path, option: str) -> str | None:
    """What is in a folder, that is to be replaced as a whole, and was not written by us."""
    if not folder.is_dir() or folder.is_symlink():
        there = os.path.lexists(folder)
        return f"{option}: {folder} exists and is no folder; name another" if there else None
    foreign = foreign_files(folder)
    if not foreign:
        return None
    more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
    listed = f"{', '.join(foreign[:SHOWN])}{more}"
    return f"{option}: {folder} holds {listed}, which no command of polyhead wrote; name another"


def names_in(folder: Path) -> list[str]:
    """All files in a folder, by their paths from there."""
    return [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if not p.is_dir()]


def foreign_files(folder: Path) -> list[str]:
    """Those of other names."""
    known = set(model_files(folder))
    return [name for name in names_in(folder) if name not in known]


def model_files(folder: Path) -> list[str]:
    """Those of the names that this package writes."""
    code = resources.files("polyhead.modeling")
    known = [*MODEL_FILES, *(file.name for file in code.iterdir() if file.name.endswith(".py"))]
    known += extensions_in(folder)
    return [
        name for name in names_in(folder) if any(_matches(name, known_as) for known_as in known)
    ]


def _matches(name: str, pattern: str) -> bool:
    """As fnmatch, but * stays within one folder."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch, parts, patterns))


def unwritable(folder: Path) -> str | None:
    """Why the system lets nothing be written in a folder, which need not exist yet."""
    folder = folder.absolute()
    try:
        try:
            folder.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not there.is_dir():
            return f"{there} is no folder"
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(4096))  # a full disk takes an empty file
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None
