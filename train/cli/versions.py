"""The commands `log`, `diff` and `rollback`: what a model was before."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import err, note, out, print_json, say, table_of
from .predict import AsJson, ModelPath


def log(model: ModelPath, as_json: AsJson = False) -> None:
    """Show the versions of a model: what was done, when, what changed."""
    from ..commands.versions import log as run
    from ..hub.history import SHORT

    line = run(model)
    if as_json:
        print_json(line)
        return
    rows = []
    for version in line["versions"]:
        done = " ".join([version["change"], ", ".join(version["changed"])])
        rows.append((version["version"][:SHORT], version["time"], done, _changes(version)))
    out.print(table_of(("version", "time", "what was done", "what changed"), rows))
    for fault in line["differs"]:
        note(f"{fault}: the folder is not the latest version, something else has changed it")


def diff(
    first: Annotated[str, typer.Argument(help="Folder or Hub id of a Polyhead.")],
    second: Annotated[str, typer.Argument(help="The other.")],
    as_json: AsJson = False,
) -> None:
    """Show which tasks of two models differ: weights, options, scores."""
    from ..commands.versions import diff as run

    found = run(first, second)
    if as_json:
        print_json(found)
        return
    rows = []
    for name, task in found["tasks"].items():
        parts = [f"{key}: {_shown(a)} -> {_shown(b)}" for key, (a, b) in task["options"].items()]
        same = "both there" if task["change"] not in (["added"], ["removed"]) else ""
        scores = [f"{key} {_number(a)} -> {_number(b)}" for key, (a, b) in task["scores"].items()]
        rows.append(
            (
                name,
                ", ".join(task["change"]) or "same",
                "; ".join(parts) if same else "",
                ", ".join(scores),
                "yes" if task["proven"] else "-",
            )
        )
    out.print(table_of(("task", "differs", "options", "scores", "proven to stay"), rows))
    say(f"encoder: {'another' if found['encoder'] else 'same'}")
    for key, (a, b) in found["config"].items():
        say(f"config.json: {key}: {_shown(a)} -> {_shown(b)}")
    for line in found["files"]:
        say(line)
    if found["made_of"]:
        made, of = (second, first) if found["made_of"] == "second" else (first, second)
        say(f"{made} was made of {of}")


def rollback(
    model: Annotated[Path, typer.Argument(help="Folder of a saved Polyhead.")],
    to: Annotated[
        str | None, typer.Option(help="Version, or how it begins; default the one before.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Folder or Hub id with it; default as the history says.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a Hub id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put an older version in a model's place; the present one is kept beside it."""
    from ..commands.versions import rollback as run
    from ..hub.history import SHORT

    done = run(model, to, source=source, revision=revision)
    if as_json:
        print_json(done)
        return
    say(f"{model}: version {done['version'][:SHORT]}, from {done['taken_from']}", console=err)
    say(f"what was there is kept in {done['kept_in']}", console=err)


def _changes(version: dict[str, Any]) -> str:
    """What differs from the version before, in a line."""
    changes = version["changes"]
    if changes is None:
        return ""
    parts = ["encoder"] if changes["encoder"] else []
    parts += [f"{name} ({', '.join(kinds)})" for name, kinds in changes["tasks"].items()]
    return ", ".join(parts) or "nothing"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
