"""What is wrong with a recipe whose keys and types are right: which of them go together."""

from dataclasses import replace
from pathlib import Path

from ...modeling.checks import check_task_name
from ...modeling.heads import HEADS
from ...modeling.inputs import FORMS, form_of
from ...modeling.unread_options import options_without_effect
from ..data.document_pairs import with_columns
from ..data.formats import FORMATS, named_columns
from ..data.splits import is_saved
from ..evaluation.metrics import METRICS, metrics_for
from ..kinds import kind_of
from .data_config import TEXT_COLUMNS, DataConfig
from .schema import IN_BATCH_LOSSES, TaskRecipe, in_batch


def task_faults(name: str, task: TaskRecipe) -> list[str]:
    """What is wrong with one task: its name, options, columns, files, metrics."""
    faults = []
    key = f"tasks.{name}"
    try:
        check_task_name(name)
    except ValueError as error:
        faults.append(f"{key}: {error}")
    try:
        labels = None if task.labels is None else [str(label) for label in task.labels]
        config = task.task_config(labels or kind_of(task).stand_in_labels())
    except ValueError as error:
        return [*faults, f"{key}: {error}"]
    faults += [f"{key}.{fault}" for fault in options_without_effect(config)]
    places = [task.data, *(task.data.more or [])]
    for number, data in enumerate(places):
        where = f"{key}.data.{number}" if len(places) > 1 else f"{key}.data"
        of_data = replace(task, data=data)
        faults += [f"{where}.{fault}" for fault in _column_faults(of_data)]
        faults += [f"{where}.{fault}" for fault in _file_faults(data)]
        faults += [f"{where}.{fault}" for fault in _script_faults(data)]
    faults += [f"{key}.data.{fault}" for fault in _corpora_faults(task)]
    if task.cached and not in_batch(config):
        faults.append(
            f"{key}.cached: only for embedding losses {', '.join(IN_BATCH_LOSSES)}; take it out"
        )
    allowed = metrics_for(kind_of(config))
    if task.metrics and set(task.metrics) == {"perplexity"}:
        faults.append(f"{key}.metrics: perplexity is lower where it is better; add token_accuracy")
    for metric in task.metrics or []:
        if metric not in (*METRICS, *allowed):
            faults.append(f"{key}.metrics: {metric!r} is unknown; allowed: {', '.join(METRICS)}")
        elif metric not in allowed and not (metric == "entity_f1" and not task.labels):
            faults.append(f"{key}.metrics: {metric} does not fit; allowed: {', '.join(allowed)}")
    faults += [
        f"{key}.examples.{number}: the task reads {FORMS[config.reads]}"
        for number, example in enumerate(task.examples or [])
        if form_of(example) != config.reads  # pyright: ignore[reportArgumentType]
    ]
    return faults


def _column_faults(task: TaskRecipe) -> list[str]:
    data, faults = task.data, []
    kind = kind_of(task)
    named = named_columns(with_columns(task)).data
    columns = {name for name in (*TEXT_COLUMNS, "label") if getattr(named, name) is not None}
    faults += [*_format_faults(task), *_form_faults(task), *_pair_faults(task)]
    spans = data.format is not None and FORMATS[data.format].spans and kind.label_type == "tags"
    for column in sorted(kind.needed - columns - {"tokens" if spans else ""}):
        faults.append(f"{column}: missing; {task.head} needs the name of this column")
    for column in sorted(columns - kind.needed - kind.optional - {"text", "tokens"}):
        faults.append(f"{column}: {task.head} does not read it; take it out")
    if not columns & {"text", "tokens"} and not kind.needed & {"text", "tokens"}:
        faults.append("text: missing; name the column with the text, or tokens")
    if {"text_pair", "tokens"} <= columns:
        faults.append("tokens: a pair task reads text and text_pair; take it out")
    if data.missing_label is not None and (data.label is None or kind.label_type == "vector"):
        faults.append("missing_label: only beside a label, and not for vectors; take it out")
    faults += [*_marks_faults(task), *_weight_faults(task)]
    if data.group_by is not None and (data.more or data.pairs):
        faults.append("group_by: not with pairs or a list of places, which make rows of their own")
    if data.label_range is not None:
        if kind.label_type != "number":
            faults.append("label_range: only for tasks with numbers as labels")
        elif data.label_range[0] >= data.label_range[1]:
            faults.append(f"label_range: {list(data.label_range)}; write [lowest, highest]")
    return faults


def _weight_faults(task: TaskRecipe) -> list[str]:
    """Weights of rows, distributions and tags left out, where they have no meaning."""
    data, kind, faults = task.data, kind_of(task), []
    if data.weight is not None and not HEADS[task.head].weighs_rows:
        faults.append(f"weight: the loss of {task.head} knows no weights of rows; take it out")
    if data.ignore_labels is not None and kind.label_type != "tags":
        faults.append("ignore_labels: only for token tasks; elsewhere write missing_label")
    if data.soft_label is None:
        return faults
    if kind.label_type != "class" or kind.tree or kind.ordered or data.marks is not None:
        fault = "only for classification with one label for each text, in no order or tree"
        faults.append(f"soft_label: {fault}; take it out")
    elif task.labels is None:
        faults.append("soft_label: its numbers stand in the order of labels; name them in the task")
    if task.few_shot is not None:
        faults.append("soft_label: few_shot makes pairs of rows with one label; take one out")
    return faults


def _marks_faults(task: TaskRecipe) -> list[str]:
    """Partial annotation where there is none, or half of what it needs."""
    data, kind = task.data, kind_of(task).label_type
    if data.marks is None:
        return [] if data.unmarked is None else ["unmarked: only beside marks; take it out"]
    if kind not in ("class", "tags"):
        return ["marks: only for tasks with one label for each row or word; take it out"]
    if kind == "tags":
        fault = "unmarked: of words it is O; take it out"
        return [] if data.unmarked is None else [fault]
    if isinstance(data.marks, str):
        return ["marks: write a list of labels; a column is for token tasks"]
    if data.unmarked is None:
        return ["unmarked: missing; name the value of label that says: none of those in marks"]
    return []


def _corpora_faults(task: TaskRecipe) -> list[str]:
    """What keeps the rows of several places from training one head."""
    data = task.data
    if not data.more:
        return []
    if kind_of(task).label_type != "tags":
        return [f"several places are for token tasks; {task.head} reads one"]
    faults = []
    if nested := [number for number, other in enumerate(data.more, 1) if other.more]:
        faults.append(f"{nested[0]}: is a list in a list; write one list")
    if data.rows is not None:
        faults.append("rows in memory are one place; join them first")
    if data.separator is not None or any(other.separator for other in data.more):
        faults.append("separator: not in a list of places; convert those rows first")
    if data.weight is not None or any(other.weight for other in data.more):
        faults.append("weight: not in a list of places; write the rows into one file")
    return faults


def _pair_faults(task: TaskRecipe) -> list[str]:
    """What stands beside `pairs`, which makes the columns."""
    data, kind = task.data, kind_of(task)
    if data.pairs is None:
        return []
    keys = ("text_pair", "negative", "tokens", "label", "format", "separator", "missing_label")
    faults = [
        f"{key}: pairs makes the rows of the documents in text; take it out"
        for key in (*keys, "more")
        if getattr(data, key, None)
    ]
    if kind.label_type != "class" or "text_pair" not in kind.optional:
        faults.append("pairs: only for classification with one label; take it out")
    if data.text is None:
        faults.append("text: missing; name the column with the documents")
    return faults


def _format_faults(task: TaskRecipe) -> list[str]:
    """Keys that the format of the data has no use for."""
    data, faults = task.data, []
    fmt = None if data.format is None else FORMATS[data.format]
    of_spans = [name for name, other in FORMATS.items() if other.spans]
    for key in ("offsets", "overlap"):
        if getattr(data, key) is not None and (fmt is None or not fmt.spans):
            faults.append(f"{key}: only beside format: {', '.join(of_spans)}; take it out")
    if fmt is None:
        return faults
    if fmt.spans and kind_of(task).label_type == "tags" and data.tokens is not None:
        faults.append(f"tokens: format: {data.format} makes the words of its spans; take it out")
    if fmt.read_files is not None and data.rows is None:
        if data.data_files is None:
            faults.append(f"data_files: missing; format: {data.format} is read from local files")
        elif data.path is not None:
            faults.append(f"path: format: {data.format} reads data_files; take it out")
    return faults


def _form_faults(task: TaskRecipe) -> list[str]:
    """`separator` and a list of columns where they have no effect, or do not go together."""
    data, faults = task.data, []
    kind = kind_of(task).label_type
    if data.separator is not None:
        if kind not in ("classes", "tags") and data.tokens is None:
            faults.append("separator: only for several labels, or words and tags; take it out")
        elif isinstance(data.label, list) or data.format is not None:
            other = "format" if data.format is not None else "the list of label"
            faults.append(f"separator: {other} says how labels are written; take it out")
    if isinstance(data.label, list):
        if kind not in ("class", "classes"):
            faults.append("label: a list of columns is for classes only; name one column")
        elif not data.label or len(set(data.label)) < len(data.label):
            faults.append("label: name each column of the list once")
    return faults


def _script_faults(data: DataConfig) -> list[str]:
    """A path whose rows a program would make; what `datasets` no longer runs, we never did."""
    path = Path(data.path or "")
    script = path / f"{path.name}.py" if data.path and path.is_dir() else path
    if script.suffix == ".py" and (script.is_file() or script == path):
        fault = f"path: {script} is a dataset script, whose code is not run"
        return [f"{fault}; give its rows as parquet, CSV or JSONL"]
    return []


def _file_faults(data: DataConfig) -> list[str]:
    if data.rows is not None:
        return []
    if data.path is None and data.data_files is None:
        return ["path: missing; give path, data_files or both"]
    files = data.data_files if isinstance(data.data_files, dict) else {"": data.data_files or []}
    faults = []
    for split, names in files.items():
        for name in [names] if isinstance(names, str) else names:
            if not any(sign in name for sign in "*?[{:$") and not _is_there(data, Path(name)):
                key = f"data_files.{split}".strip(".")
                faults.append(f"{key}: there is no file {name} (seen from {Path.cwd()})")
    if isinstance(data.data_files, dict):
        for split in data.data_files:
            if split not in ("train", "validation", "test") and data.splits is None:
                faults.append(f"data_files.{split}: allowed: train, validation, test")
    return faults


def _is_there(data: DataConfig, path: Path) -> bool:
    return path.is_file() or (path.is_dir() and (data.format == "brat" or is_saved(path)))


def output_dir_faults(name: str) -> list[str]:
    """An `output_dir` that can be no folder; `~` stands for the home folder."""
    if not name.strip() or not name.isprintable():
        return [f"output_dir: {name!r:.80} is no name of a folder"]
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:
        return [f"output_dir: {name}: {error}"]
    if folder.resolve() == Path(folder.anchor or "/").resolve():
        return [f"output_dir: {name} is the root of the disk; name a folder, as runs/mine"]
    return []
