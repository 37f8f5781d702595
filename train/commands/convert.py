"""Rows of any format as ours: JSON Lines of words and tags, of spans, or of texts and labels."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ...modeling.decoding import gold_entities
from ..artifacts import write_aside
from ..data.loading import Source, load_sources
from ..errors import UserError
from ..kinds import kind_of
from ..kinds.tokens import row_words
from ..outputs import target_faults
from ..recipe.data_config import TEXT_COLUMNS, DataConfig
from ..recipe.reader import build_recipe, load_recipe
from ..recipe.router import with_rows
from ..recipe.schema import Recipe

Form = Literal["tokens", "spans"]
FORMS: tuple[Form, ...] = ("tokens", "spans")
ENDING = ".jsonl"
TASK_KEYS = ("head", "problem_type", "scheme")


def convert(  # noqa: PLR0913 - each is an option of the command line
    what: str | Path,
    output: str | Path,
    overrides: list[str] | None = None,
    *,
    format: str | None = None,
    to: Form = "tokens",
    task: str | None = None,
    split: str = "train",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the rows of one task as JSON Lines.

    Args:
        what: a recipe (YAML), or a file or folder of data.
        output: file to write.
        overrides: `key=value`; of a recipe as in `load_recipe`, beside a file keys of `data`, as
            `label=entities`, and `head`, `problem_type` and `scheme`; default
            `head=token_classification`.
        format: of the file; a recipe says it itself.
        to: token tasks as words and tags, or as a text and its spans.
        task: of the recipe, where it has several.
        split: train, validation or test.
        overwrite: replace the file that stands there.

    Returns:
        `{"rows": count, "columns": names, "notes": lines}`.

    Raises:
        UserError: faults of the recipe or the data, or the file may not be written.
    """
    target = Path(output)
    faults = target_faults(target, is_file=True, overwrite=overwrite)
    if target.suffix != ENDING:
        faults.append(f"--output: {output}: JSON Lines are written; let its name end in {ENDING}")
    if to not in FORMS:
        faults.append(f"--to: {to!r}; allowed: {', '.join(FORMS)}")
    recipe = _recipe(what, format, overrides or [], faults)
    tasks = with_rows(recipe)
    if task is None and len(tasks) == 1:
        task = tasks[0]
    if task not in tasks:
        unknown = "" if task is None else f"{task} is unknown; "
        faults.append(f"--task: {unknown}name one of {', '.join(tasks)}")
    if faults:
        raise UserError("convert", faults)
    recipe.tasks = {str(task): recipe.tasks[str(task)]}
    [source] = load_sources(recipe)
    if split not in source.splits:
        raise UserError("convert", [f"--split: {split}; there is {', '.join(source.splits)}"])
    count, names = 0, []
    with write_aside(target) as aside, aside.open("w", encoding="utf-8") as file:
        for row in our_rows(source, str(task), split, to):
            count, names = count + 1, list(row)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {"rows": count, "columns": names, "notes": source.notes}


def our_rows(source: Source, task: str, split: str, to: Form = "tokens") -> Iterator[dict]:
    """Rows of a task as we write them.

    Args:
        source: checked rows.
        task: one of its tasks.
        split: one of its splits.
        to: `tokens` and `tags`, or `text` and `spans`, of token tasks.

    Raises:
        UserError: spans are wanted of tags that stand alone.
    """
    data, batch = source.tasks[task].data, source.splits[split][:]
    if kind_of(source.tasks[task]).label_type != "tags":
        columns = {key: getattr(data, key) for key in (*TEXT_COLUMNS, "label")}
        columns = {key: column for key, column in columns.items() if column is not None}
        values = zip(*(batch[column] for column in columns.values()), strict=True)
        yield from (dict(zip(columns, row, strict=True)) for row in values)
        return
    scheme = source.configs[task].scheme
    if to == "spans" and scheme is None:
        raise UserError("convert", ["--to: spans, but the tags stand alone; write --to tokens"])
    labels = batch[str(data.label)]
    for (text, words), tags in zip(row_words(data, source.text, batch), labels, strict=True):
        if to == "spans":
            entities = None if tags is None else gold_entities(text, words, tags, str(scheme))
            yield {"text": text, "spans": _spans(entities)}
        else:
            shown = {} if source.text is None else {"text": text}
            tokens = [text[start:end] for start, end in words] if tags is not None else None
            yield {**shown, "tokens": tokens, "tags": tags}


def _spans(entities: list | None) -> list[dict] | None:
    if entities is None:
        return None
    return [{"start": start, "end": end, "label": kind} for kind, start, end in entities]


def _recipe(
    what: str | Path, format: str | None, overrides: list[str], faults: list[str]
) -> Recipe:
    """The recipe, or one of a single task over a file."""
    if str(what).endswith((".yaml", ".yml")):
        if format is not None:
            faults.append("--format: a recipe says it: data.format of its tasks")
        return load_recipe(what, overrides)
    allowed = sorted(DataConfig.__dataclass_fields__.keys() - {"rows", "data_files", "format"})
    data: dict[str, Any] = {"data_files": {"train": str(what)}}
    if format is not None:
        data["format"] = format
    task: dict[str, Any] = {"head": "token_classification"}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or key not in (*allowed, *TASK_KEYS):
            names = ", ".join((*TASK_KEYS, *allowed))
            faults.append(f"{override!r}: key=value is wanted; allowed keys: {names}")
        elif key in TASK_KEYS:
            task[key] = value
        else:
            data[key] = value.split(",") if key == "label" and "," in value else value
    raw = {"encoder": "-", "output_dir": "-", "tasks": {"rows": {**task, "data": data}}}
    return build_recipe(raw, str(what), faults)
