"""Measures of the source: sizes, kinds of task told apart by name, rooms and arrows between them.

    python benchmarks/house.py [--against REV]

`make house` prints them for the working tree, `make house AGAINST=main` beside those of a revision.
Figures, not gates: what must hold, `tests/train/test_house.py` holds.
"""

import argparse
import ast
import io
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling", "train")
FILE, FUNCTION, CLASS = 400, 60, 300  # lines; more are counted
KINDS = {
    *("sequence_classification", "token_classification", "embedding", "masked_lm"),
    *("single_label_classification", "multi_label_classification", "regression"),
    *("contrastive", "triplet", "margin_mse", "cosent", "angle", "cosine_mse", "mse"),
}
KEYS = {f"train.recipe.{name}" for name in ("data_config", "schema", "sections")}  # of a recipe
# Where types have to be asked for.
DOORS = {f"modeling.{name}" for name in ("routing", "configuration_polyhead", "task_config")}

Arrow = tuple[str, str]


def modules_here(root: Path = ROOT) -> dict[str, ast.Module]:
    """Dotted name to syntax tree of each module of `modeling` and `train` in a folder."""
    files = (path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py")))
    return {_name(path.relative_to(root)): ast.parse(path.read_text("utf-8")) for path in files}


def modules_of(revision: str) -> dict[str, ast.Module]:
    """The same of a git revision."""
    command = ["git", "-C", str(ROOT), "archive", revision, *FOLDERS]
    packed = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        members = [m for m in archive.getmembers() if m.isfile() and m.name.endswith(".py")]
        return {
            _name(Path(member.name)): ast.parse(archive.extractfile(member).read())  # pyright: ignore
            for member in members
        }


def _name(path: Path) -> str:
    """`train/hub/card.py` to `train.hub.card`; a package keeps its `__init__`."""
    return ".".join(path.with_suffix("").parts)


def arrows_of(modules: dict[str, ast.Module]) -> set[Arrow]:
    """(module, module that it imports), of all imports in files and functions; packages by name.

    Importing a module runs its package's `__init__` too, which is no arrow of its own here.
    """
    names = {name.removesuffix(".__init__"): name for name in modules}
    arrows = set()
    for module, tree in modules.items():
        package = module.split(".")[:-1]
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level:
                start = package[: len(package) - node.level + 1]
            elif (node.module or "").startswith("polyhead."):
                start = []
            else:
                continue
            written = (node.module or "").removeprefix("polyhead.")
            source = ".".join([*start, *filter(None, [written])])
            for alias in node.names:
                target = names.get(f"{source}.{alias.name}") or names.get(source)
                if target is not None and target != module:
                    arrows.add((module, target))
    return arrows


def circles_of(arrows: Iterable[Arrow]) -> list[list[str]]:
    """Groups of modules that import each other, straight or through others (Tarjan, 1972)."""
    following: dict[str, list[str]] = {}
    for start, end in sorted(arrows):
        following.setdefault(start, []).append(end)
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    circles = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        path.append(module)
        for target in following.get(module, []):
            if target not in numbers:
                visit(target)
            if target in path:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == numbers[module]:
            cut = path.index(module)
            if len(path) - cut > 1:
                circles.append(sorted(path[cut:]))
            del path[cut:]

    for module in following:
        if module not in numbers:
            visit(module)
    return circles


def room_of(module: str) -> str:
    """`modeling` is one room; in `train` a folder is, and a file that lies in none.

    The keys of a recipe are a room of their own: all others read them, the recipe's reader needs
    most others.
    """
    if module in KEYS:
        return "train.recipe.schema"
    parts = module.split(".")
    return "modeling" if parts[0] == "modeling" else ".".join(parts[:2])


def measures_of(modules: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Measure to what is counted, one entry each."""
    arrows = arrows_of(modules)
    between = {(room_of(a), room_of(b)) for a, b in arrows if room_of(a) != room_of(b)}
    measures: dict[str, list[str]] = {
        "modules": list(modules),
        "rooms": sorted({room_of(module) for module in modules}),
        "arrows between rooms": [f"{a} -> {b}" for a, b in sorted(between)],
        "circles of modules": [" ".join(circle) for circle in circles_of(arrows)],
        "circles of rooms": [" ".join(circle) for circle in circles_of(between)],
        f"files > {FILE} lines": [],
        f"functions > {FUNCTION} lines": [],
        f"classes > {CLASS} lines": [],
        "isinstance in modeling": [],
        "isinstance in train": [],
        "comparisons with a kind's name": [],
    }
    for module, tree in modules.items():
        if (size := _last_line(tree)) > FILE:
            measures[f"files > {FILE} lines"].append(f"{module} {size}")
        for node in ast.walk(tree):
            for measure, text in _counted(module, node):
                measures[measure].append(text)
    return measures


def _counted(module: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """(measure, entry) of what a node adds to."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        size = _size(node) - (_size(node.body[0]) if node.name == "forward" else 0)
        if size > FUNCTION:
            yield f"functions > {FUNCTION} lines", f"{module}.{node.name} {size}"
    elif isinstance(node, ast.ClassDef) and _size(node) > CLASS:
        yield f"classes > {CLASS} lines", f"{module}.{node.name} {_size(node)}"
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
        if module not in DOORS:
            yield f"isinstance in {module.split('.')[0]}", f"{module}:{node.lineno}"
    elif isinstance(node, ast.Compare):
        sides = [part for side in (node.left, *node.comparators) for part in _parts(side)]
        if any(isinstance(side, ast.Constant) and side.value in KINDS for side in sides):
            yield "comparisons with a kind's name", f"{module}:{node.lineno}"


def _parts(side: ast.expr) -> list[ast.expr]:
    """The entries of a tuple, list or set that is compared with; else the side itself."""
    return side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]


def _size(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _last_line(tree: ast.Module) -> int:
    return max((node.end_lineno or 0 for node in tree.body), default=0)


def main() -> None:
    """Print the measures, and what is too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="REV", help="a git revision to set beside")
    against = parser.parse_args().against
    columns = {"here": measures_of(modules_here())}
    if against is not None:
        columns[against] = measures_of(modules_of(against))
    print(f"{'':32}" + "".join(f"{name:>12}" for name in columns))
    for measure in columns["here"]:
        counts = "".join(f"{len(column[measure]):12}" for column in columns.values())
        print(f"{measure:32}{counts}")
    print()
    for measure, entries in columns["here"].items():
        if measure.startswith(("circles", "files", "functions", "classes")) and entries:
            print(f"{measure}: {', '.join(entries)}")


if __name__ == "__main__":
    main()
