# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Files with heads, poolings and losses of a user's own, made fit to travel in a saved folder.

There each lies beside ours, and `extensions.py` imports it. What it imports from polyhead it finds
beside it: `from polyhead.modeling import Head` becomes an attempt at `from .base_head import Head`,
with the line as it was after `except ImportError`. So the folder needs no polyhead, and who has
polyhead can import the file as it lies there.
"""

import ast
import os
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from sysconfig import get_paths
from typing import Any

from .reading import few

PACKAGE, FOLDER = __name__.rpartition(".")[0], os.path.dirname(os.path.abspath(__file__))
# Files that are not there yet when extensions are imported: they import the config.
LATER = (
    *("modeling_polyhead", "pretrained_polyhead", "pipeline_polyhead", "views"),
    *("adapter_mixin", "head_mixin", "task_mixin"),
)
TAKEN = ("handler", "setup", "conftest")  # beside our own names
IMPORTED = re.compile(r"^from \.(\w+) import __name__ as \1$", re.MULTILINE)
HINT = "from polyhead.modeling import Head, register_head"
ONE_FILE = "put all of it into one file"


def extension_names(sources: Iterable[Any]) -> list[str]:
    """Names of the files, without .py, in which classes and functions stand; sorted."""
    return sorted({source.__module__.rpartition(".")[2] for source in sources})


def check_imported(names: Any, sources: Iterable[Any]) -> None:
    """Raise ValueError when a model's config lists a file that nobody has imported, or no names.

    Args:
        names: of the files, without .py; None for none.
        sources: all classes and functions that users have added.
    """
    if names is not None and (type(names) is not list or not all(map(_is_name, names))):
        raise ValueError(f"extensions is {names!r:.200}; it must be a list of names of modules")
    known = extension_names(sources)
    missing = [f"{name}.py" for name in names or [] if name not in known]
    if missing:
        raise ValueError(
            f"heads, poolings or losses of this model stand in {few(missing)}, which is not "
            "imported; import it first, or say --allow-code (it lies in the model's folder)"
        )


def _is_name(value: Any) -> bool:
    return type(value) is str and value.isidentifier()


def extension_files(sources: Iterable[Any], traveled: Iterable[str]) -> dict[str, str]:
    """The files that a saved folder needs for what users added, by name, and their text.

    Args:
        sources: the classes and functions.
        traveled: modules that came with a saved folder; transformers copies their files with the
            folder's others.

    Raises:
        ValueError: one does not stand in a file of its own, the file's name is taken, or it imports
            what does not travel.
    """
    modules = sorted({source.__module__ for source in sources} - set(traveled))
    if not modules:
        return {}
    files: dict[str, str] = {}
    for module in modules:
        name = f"{module.rpartition('.')[2]}.py"
        if name in files:
            raise ValueError(f"two modules are called {name}; a saved folder has place for one")
        files[name] = _traveling_text(module)
    with open(os.path.join(FOLDER, "extensions.py"), encoding="utf-8") as file:
        text = file.read()
    for name in extension_names(sources):
        if f"{name}.py" in files:
            text += f"\nfrom .{name} import __name__ as {name}\n\nEXTENSIONS.append({name})\n"
    return {**files, "extensions.py": text}


def extensions_in(folder: str | os.PathLike) -> list[str]:
    """Names of the files, with .py, that a saved folder has of users' own."""
    path = os.path.join(folder, "extensions.py")
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return [f"{name}.py" for name in IMPORTED.findall(file.read())]


def _traveling_text(module: str) -> str:
    """The source of a user's module as it lies in a saved folder."""
    path = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or path is None:
        raise ValueError(
            f"{module} has no file that could travel with the model: put the head, pooling or loss "
            "into a file of its own, as my_heads.py, and import it"
        )
    name, ending = os.path.splitext(os.path.basename(path))
    if ending != ".py" or name == "__init__":
        raise ValueError(f"{path} does not travel; put the head, pooling or loss into one .py file")
    if name in TAKEN or os.path.exists(os.path.join(FOLDER, f"{name}.py")):
        raise ValueError(f"{path}: a saved folder has its own {name}.py; rename the file")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    lines = text.splitlines(keepends=True)
    imports = _Imports(path)
    imports.visit(ast.parse(text))
    for node in reversed(imports.of_modeling):
        end = node.end_lineno or node.lineno
        rest = lines[end - 1].encode()[node.end_col_offset :].decode().strip()
        indent = lines[node.lineno - 1][: node.col_offset]
        if indent.strip() or (rest and not rest.startswith("#")):
            raise ValueError(f"{path}, line {node.lineno}: an import needs a line of its own")
        lines[node.lineno - 1 : end] = [f"{indent}{line}\n" for line in _relative(node, path)]
    return "".join(lines)


class _Imports(ast.NodeVisitor):
    """Finds the imports from `polyhead.modeling`; those of an `except` stand by for a relative one.

    Raises:
        ValueError: the file imports what does not travel.
    """

    def __init__(self, path: str) -> None:
        self.path, self.folder = path, os.path.dirname(path)
        self.of_modeling: list[ast.ImportFrom] = []
        self.standing_by = False

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:  # noqa: D102, N802
        before, self.standing_by = self.standing_by, True
        self.generic_visit(node)
        self.standing_by = before

    def visit_Import(self, node: ast.Import) -> None:  # noqa: D102, N802
        for alias in node.names:
            if alias.name.partition(".")[0] == "polyhead":
                self._refuse(node, alias.name, f"write {HINT}")
            self._check_installed(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:  # noqa: D102, N802
        name = node.module or ""
        if node.level:
            if node.level > 1 or not os.path.exists(os.path.join(FOLDER, f"{name}.py")):
                self._refuse(node, f"{'.' * node.level}{name}", ONE_FILE)
        elif name.partition(".")[0] != "polyhead":
            self._check_installed(node, name)
        elif name.split(".")[:2] != ["polyhead", "modeling"]:
            self._refuse(node, name, f"write {HINT}")
        elif not self.standing_by:
            self.of_modeling.append(node)

    def _check_installed(self, node: ast.stmt, name: str) -> None:
        """What is imported from beside the file is no installed package."""
        top = name.partition(".")[0]
        spec = find_spec(top)
        origin = os.path.dirname(str(spec.origin)) if spec is not None else ""
        beside = origin in (self.folder, os.path.join(self.folder, top))
        if beside and self.folder not in get_paths().values():  # of installed packages
            self._refuse(node, name, ONE_FILE)

    def _refuse(self, node: ast.stmt, name: str, hint: str) -> None:
        raise ValueError(
            f"{self.path}, line {node.lineno}: {name} does not travel with the model; {hint}"
        )


def _relative(node: ast.ImportFrom, path: str) -> list[str]:
    """Lines that import from the files beside, and from polyhead where there are none."""
    homes: dict[str, list[str]] = {}
    where = f"{path}, line {node.lineno}"
    source = import_module(f"{PACKAGE}{(node.module or '').removeprefix('polyhead.modeling')}")
    for alias in node.names:
        if source.__name__ == PACKAGE:
            home = getattr(getattr(source, alias.name, None), "__module__", "")
        else:
            home = source.__name__
        package, _, file = home.rpartition(".")
        if package != PACKAGE or file in LATER:
            raise ValueError(
                f"{where}: {alias.name} cannot be imported by a file that travels with a model; "
                "take what heads.py, losses.py, pooling.py and options.py have"
            )
        homes.setdefault(file, []).append(ast.unparse(alias))
    return [
        "try:",
        *(f"    from .{file} import {', '.join(names)}" for file, names in sorted(homes.items())),
        "except ImportError:",
        f"    {ast.unparse(node)}",
    ]
