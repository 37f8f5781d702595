"""`package:NAME/FOLDER`: a folder in an installed Python package, found without importing it."""

import importlib.util
import re
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def package_folder(name: str) -> Path:
    """The folder that `package:NAME/FOLDER` names.

    Nothing of the package is run: a name with dots is looked up part by part in the folders of its
    parents, where `find_spec` would import them.

    Raises:
        ValueError: the name is none, no such package or folder is there, or the folder, or a link
            in it, leaves the package.
    """
    package, _, rest = name.removeprefix("package:").partition("/")
    if not NAME.fullmatch(package):
        raise ValueError(f"{package!r:.80} is no name of a package; write package:NAME/FOLDER")
    parts = PurePosixPath(rest).parts
    if "\\" in rest or ".." in parts or rest.startswith("/") or not rest.isprintable():
        raise ValueError(f"{rest!r:.80} leaves the package; write package:NAME/FOLDER")
    roots = _folders_of(package)
    if not roots:
        install = package.partition(".")[0].replace("_", "-")
        raise ValueError(f"the package {package} is not installed; type: pip install {install}")
    for root in roots:
        folder = root.joinpath(*parts)
        if folder.is_dir():
            for path in (folder, *folder.rglob("*")):
                if not path.resolve().is_relative_to(root.resolve()):
                    raise ValueError(f"{path} is a link that leaves the package {package}")
            return folder
    raise ValueError(f"the package {package} has no folder {rest}")


def _folders_of(package: str) -> list[Path]:
    """Where a package lies; none where it is a module of one file, or not there."""
    top, *inner = package.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a name without dots it imports nothing
    except (ImportError, ValueError):
        return []
    for number, _ in enumerate(inner, 2):
        if spec is None or not spec.submodule_search_locations:
            return []
        name = ".".join(package.split(".")[:number])
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return [Path(path) for path in (spec and spec.submodule_search_locations) or []]
