"""Files of a user's own with heads, losses, poolings, metrics, strategies, balancing methods.

A recipe names what such a file registers as `my_module:name`. Reading a recipe or a model never
runs a file: `allow_code` does, which the command line's `--allow-code` calls, or the user's own
`import my_module`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from ...modeling.extension_files import extensions_in
from ...modeling.heads import HEADS
from ...modeling.losses import LOSSES
from ...modeling.pooling import POOL
from ...modeling.tables import Table
from ..balancing.methods import METHODS
from ..batches.strategies import STRATEGIES
from ..errors import UserError
from ..evaluation.metrics import METRICS
from .yaml_text import read_yaml

# Dotted keys whose values stand in a table that users can add to.
TABLES: dict[tuple[str, ...], Table[Any]] = {
    ("tasks", "*", "head"): HEADS,
    ("tasks", "*", "loss"): LOSSES,
    ("tasks", "*", "pooling"): POOL,
    ("tasks", "*", "metrics", "*"): METRICS,
    ("pooling",): POOL,
    ("sampling", "strategy"): STRATEGIES,
    ("balancing", "method"): METHODS,
}
NAMED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([a-z][a-z0-9_]*)", re.ASCII)


def allow_code(*paths: str | Path) -> list[str]:
    """Import the files that recipes and models name.

    Args:
        paths: recipes (YAML), whose files lie beside them or in an installed package, and folders
            of saved models, which bring theirs along.

    Returns:
        names of the modules.

    Raises:
        UserError: a file is missing or does not import, or a module of its name has been imported
            from elsewhere.
    """
    names = []
    for path in map(Path, paths):
        if path.is_dir():
            files = [name.removesuffix(".py") for name in extensions_in(path)]
        else:
            files = sorted({match.group(1) for match in _named_in(path)})
        folder = path if path.is_dir() else path.resolve().parent
        for name in files:
            try:
                _import(name, folder)
            except (ImportError, SyntaxError, ValueError) as error:
                raise UserError(str(path), [f"{name}: cannot be imported: {error}"]) from error
            names.append(name)
    return names


def with_names(raw: Any, faults: list[str], keys: tuple[str, ...] = ()) -> Any:
    """The plain values of a recipe, with the names that `my_module:name` stands for.

    Args:
        raw: as YAML has them.
        faults: gets what cannot be resolved.
        keys: where `raw` stands in the recipe.
    """
    if isinstance(raw, dict):
        return {key: with_names(part, faults, (*keys, str(key))) for key, part in raw.items()}
    if isinstance(raw, list):
        return [with_names(part, faults, (*keys, str(i))) for i, part in enumerate(raw)]
    table = next((table for key, table in TABLES.items() if _fits(key, keys)), None)
    if table is None or not isinstance(raw, str) or not (match := NAMED.fullmatch(raw)):
        return raw
    try:
        return _registered(match, table)
    except ValueError as error:
        faults.append(f"{'.'.join(keys)}: {error}")
        return raw


def with_modules(plain: Any, keys: tuple[str, ...] = ()) -> Any:
    """The opposite of `with_names`: what users' files registered as `my_module:name`."""
    if isinstance(plain, dict):
        return {key: with_modules(part, (*keys, str(key))) for key, part in plain.items()}
    if isinstance(plain, list):
        return [with_modules(part, (*keys, str(i))) for i, part in enumerate(plain)]
    table = next((table for key, table in TABLES.items() if _fits(key, keys)), None)
    source = None if table is None else table.sources.get(plain)
    return plain if source is None else f"{source.__module__}:{plain}"


def _fits(pattern: tuple[str, ...], keys: tuple[str, ...]) -> bool:
    return len(pattern) == len(keys) and all(
        part in ("*", key) for part, key in zip(pattern, keys, strict=True)
    )


def _registered(match: re.Match, table: Table[Any]) -> str:
    """The name that a user's file registered in a table.

    Raises:
        ValueError: the module has not been imported, or registers nothing by this name.
    """
    module, name = match.groups()
    if module not in sys.modules:
        raise ValueError(
            f"{match.group()} is code in {module}; to run it, say --allow-code, or import {module} "
            "first"
        )
    source = table.sources.get(name)
    if source is None or source.__module__ != module:
        known = [n for n, source in table.sources.items() if source.__module__ == module]
        raise ValueError(
            f"{module} registers no {table.what} {name!r}; it has: {', '.join(known) or 'none'}"
        )
    return name


def _named_in(recipe: Path) -> Iterator[re.Match]:
    """All `my_module:name` of a recipe; one that cannot be read is told by its reader."""
    try:
        raw = read_yaml(recipe.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return
    yield from _matches(raw, ())


def _matches(raw: Any, keys: tuple[str, ...]) -> Iterator[re.Match]:
    if isinstance(raw, (dict, list)):
        parts = raw.items() if isinstance(raw, dict) else enumerate(raw)
        for key, part in parts:
            yield from _matches(part, (*keys, str(key)))
    elif isinstance(raw, str) and any(_fits(key, keys) for key in TABLES):
        yield from filter(None, [NAMED.fullmatch(raw)])


def _import(name: str, folder: Path) -> ModuleType:
    """A module from a file in a folder, or of an installed package."""
    file = folder.joinpath(*name.split(".")).with_suffix(".py")
    loaded = sys.modules.get(name)
    if not file.is_file():
        return loaded or _installed(name, folder)
    if loaded is not None:
        if not _same_code(Path(str(loaded.__file__)), file):
            raise ValueError(
                f"another {name} has been imported, {loaded.__file__}; rename {file.name}"
            )
        return loaded
    if _is_installed(name.partition(".")[0]):
        raise ValueError(f"an installed package is called {name} too; rename {file.name}")
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _installed(name: str, folder: Path) -> ModuleType:
    if not _is_installed(name.partition(".")[0]):
        raise ValueError(f"there is no {name}.py in {folder}, and no such package is installed")
    return import_module(name)


def _is_installed(name: str) -> bool:
    """There is such a package, and not just in the folder that the command was typed in."""
    folders = [folder for folder in sys.path if folder and Path(folder).resolve() != Path.cwd()]
    specs = (
        finder.find_spec(name, folders if finder is PathFinder else None)
        for finder in sys.meta_path
    )
    return any(spec is not None for spec in specs)


def _same_code(one: Path, other: Path) -> bool:
    """Equal but for imports: those of a file that travels with a model are rewritten."""

    def code(path: Path) -> str:
        imports = (ast.Import, ast.ImportFrom, ast.Try)
        body = ast.parse(path.read_text("utf-8")).body
        return "\n".join(ast.dump(node) for node in body if not isinstance(node, imports))

    return one.resolve() == other.resolve() or code(one) == code(other)
