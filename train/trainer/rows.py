"""Rows by task, as a caller of the plain Trainer has them, to the checked and tokenized ones."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.options import TaskOptions
from ...modeling.pipeline_polyhead import PolyheadPipeline
from ...modeling.task_config import TaskConfig
from ..data.dataset import MultiTaskDataset
from ..data.loading import Source, load_sources, unseen_labels
from ..data.memory import splits_in_memory
from ..data.tokenization import tokenize
from ..errors import UserError
from ..evaluation.scoring import EvalSplit, eval_splits
from ..kinds import kind_of
from ..recipe.checks import task_faults
from ..recipe.data_config import TEXT_COLUMNS, DataConfig, RowsInMemory
from ..recipe.schema import Recipe, TaskRecipe

logger = logging.getLogger(__name__)
CALLER = "MultiTaskTrainer"
Columns = Mapping[str, Mapping[str, Any]]  # task -> keys of a recipe's `data` -> names of columns


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """Rows of a model's tasks, ready for the Trainer.

    Args:
        train: all rows to train on; None where there are none.
        evaluation: by source.
        tasks: source to its tasks.
    """

    train: MultiTaskDataset | None
    evaluation: dict[str, EvalSplit]
    tasks: dict[str, list[str]]


def read_task_rows(
    configs: dict[str, TaskConfig],
    tokenizer: PreTrainedTokenizerBase,
    *,
    train: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
    columns: Columns | None = None,
) -> TaskRows:
    """Check rows against the tasks of a model, and tokenize them; labels unseen are logged.

    Args:
        configs: the model's tasks.
        tokenizer: the model's.
        train: task to rows, of any type that `data/memory.py` reads.
        evaluation: the same, to evaluate.
        columns: by task, as `{"label": "intent"}`, which column is what; default `text`, `label`,
            `tokens`, `text_pair`, `negative`.

    Raises:
        UserError: every fault of the rows, with task, split, row and column.
    """
    faults = [
        f"{name}: a {type(rows).__name__}; give rows by task, as {{'intent': rows}}"
        for name, rows in {"train_dataset": train, "eval_dataset": evaluation}.items()
        if rows is not None and not (isinstance(rows, Mapping) and rows)
    ]
    if faults:
        raise UserError(CALLER, faults)
    rows_by_split = {"train": train or {}, "validation": evaluation or {}}
    faults = _name_faults(configs, rows_by_split, columns or {})
    if faults:
        raise UserError(CALLER, faults)
    splits = _read(rows_by_split)
    chosen = {name: configs[name] for name in sorted(splits)}
    sources = _checked(chosen, splits, columns or {}, trains=train is not None)
    row_configs = {name: config for source in sources for name, config in source.configs.items()}
    faults = [
        f"tasks.{name}.{fault}"
        for name, config in chosen.items()
        if (fault := misfit(config, row_configs[name]))
    ]
    if faults:
        raise UserError(CALLER, faults)
    tasks = {source.name: list(source.tasks) for source in sources}
    dataset = None if train is None else _tokenized(sources, tokenizer, configs)
    evaluated = eval_splits(sources, "validation", tokenizer, configs)
    for line in unseen_labels(sources, configs, "validation"):
        logger.warning(line)
    return TaskRows(train=dataset, evaluation=evaluated, tasks=tasks)


def _tokenized(
    sources: list[Source], tokenizer: PreTrainedTokenizerBase, configs: dict[str, TaskConfig]
) -> MultiTaskDataset:
    """The rows to train on, with the labels of the model's tasks."""
    rows = {}
    for source in sources:
        of_source = {name: configs[name] for name in source.tasks}
        rows[source.name] = tokenize(source, "train", tokenizer, configs=of_source)
    return MultiTaskDataset(rows)


def misfit(task: TaskConfig, config: TaskConfig) -> str | None:
    """Why a model's task cannot be scored on rows of another one.

    Args:
        task: the model's.
        config: as found in the rows.
    """
    if (task.head, task.problem_type) != (config.head, config.problem_type):
        return f"head: the model's is {task.head}, {task.problem_type}"
    tags = set(config.labels or []) - {"O"}
    if tags and (task.scheme is None) != (config.scheme is None):
        return (
            f"data.label: tags of scheme {config.scheme}, but the model's are of {task.scheme}; "
            f"write them as {', '.join((task.labels or [])[:5])}"
        )
    return None


def _name_faults(
    configs: dict[str, TaskConfig], rows_by_split: dict[str, Mapping[str, Any]], columns: Columns
) -> list[str]:
    known = ", ".join(configs)
    named = {**dict.fromkeys(rows_by_split["train"]), **dict.fromkeys(rows_by_split["validation"])}
    faults = [
        f"tasks.{name}: the model has no such task; it has: {known}"
        for name in named
        if name not in configs
    ]
    faults += [
        f"columns.{name}: the model has no such task; it has: {known}"
        for name in columns
        if name not in configs
    ]
    keys = [f.name for f in fields(DataConfig) if f.name in (*TEXT_COLUMNS, *LABEL_KEYS)]
    faults += [
        f"columns.{name}.{key}: unknown key; allowed: {', '.join(keys)}"
        for name, names in columns.items()
        for key in names
        if key not in keys
    ]
    return faults


LABEL_KEYS = ("label", "missing_label", "label_range")


def _read(rows_by_split: dict[str, Mapping[str, Any]]) -> dict[str, dict[str, datasets.Dataset]]:
    """Rows by task and split; the same object is read once, so that its tasks share rows."""
    read: dict[int, datasets.Dataset] = {}
    splits: dict[str, dict[str, datasets.Dataset]] = {}
    faults = []
    for split, by_task in rows_by_split.items():
        for name, rows in by_task.items():
            try:
                if id(rows) not in read:
                    read[id(rows)] = splits_in_memory(RowsInMemory({split: rows}), set())[split]
            except ValueError as error:
                faults.append(f"tasks.{name}.data: cannot be loaded: {error}")
                continue
            splits.setdefault(name, {})[split] = read[id(rows)]
    if faults:
        raise UserError(CALLER, faults)
    return splits


def _checked(
    configs: dict[str, TaskConfig],
    splits: dict[str, dict[str, datasets.Dataset]],
    columns: Columns,
    *,
    trains: bool,
) -> list[Source]:
    """Sources of the tasks; where a task has rows to evaluate only, its labels are theirs."""
    faults, tasks = [], {}
    for name, parts in splits.items():
        if trains and "train" not in parts:
            faults.append(f"tasks.{name}.data: has rows to evaluate, but none in train_dataset")
            continue
        parts.setdefault("train", parts.get("validation"))  # pyright: ignore
        present = set(parts["train"].column_names)
        tasks[name] = _task_of(configs[name], present, columns.get(name, {}), trains=trains)
        tasks[name].data.rows = RowsInMemory(parts)
        faults += task_faults(name, tasks[name])
    if faults:
        raise UserError(CALLER, faults)
    if not tasks:
        return []
    recipe = Recipe(encoder="-", tasks=tasks, output_dir="-")
    recipe.path = CALLER
    return load_sources(recipe)


def _task_of(
    config: TaskConfig, present: set[str], names: Mapping[str, Any], *, trains: bool
) -> TaskRecipe:
    """A recipe's task with the options of a model's, over these columns."""
    options = {f.name: getattr(config, f.name) for f in fields(TaskOptions)}
    if not trains:
        options |= {"labels": None, "scheme": None}
    task = TaskRecipe(data=DataConfig(), **options)
    kind = kind_of(task)
    optional = (kind.optional | {"text"}) & present
    usual = {key: key for key in (*TEXT_COLUMNS, "label") if key in kind.needed | optional}
    if config.pair:
        usual["text_pair"] = "text_pair"
    task.data = DataConfig(**{**usual, **names})
    return task


def answers_of(
    model: PolyheadModel, tokenizer: PreTrainedTokenizerBase, splits: dict[str, EvalSplit]
) -> tuple[dict[str, list], dict[str, list | None]]:
    """What the pipeline answers to each row of each task, and the rows' labels.

    Of an embedding task, the vectors of the first texts.

    Args:
        model: the model, in evaluation.
        tokenizer: the model's.
        splits: checked rows, by source.
    """
    device, mode = model.device, model.compute.mode
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device=device, compute=mode)
    answers: dict[str, list] = {}
    labels: dict[str, list | None] = {}
    for part in splits.values():
        batch: Any = part.source.splits[part.split][:]
        columns = part.source.texts_of(batch)
        for name, task in part.source.tasks.items():
            labels[name] = None if task.data.label is None else batch[task.data.label]
            if kind_of(task).labels_from_tokens:  # nothing to answer to a text
                continue
            pairs = model.config.tasks[name].pair
            texts: list[Any] = list(zip(*columns, strict=True)) if pairs else columns[0]
            rows: Any = pipe(texts, [name])
            answers[name] = [row[name] for row in rows]
    return answers, labels
