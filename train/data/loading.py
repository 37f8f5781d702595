"""Rows of a recipe: load them and check them against the recipe.

Tasks that read the same rows through the same texts form one `Source`: each row is encoded once
and carries the labels of all of them. Everything wrong with the data is found here, before
training, and reported in one error with task, split, row and column.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import datasets.exceptions
import numpy as np

from ...modeling.configuration_polyhead import TaskConfig
from ...modeling.windows import locate_words
from ..errors import UserError
from ..recipe.schema import DataConfig, Recipe, TaskRecipe
from .labels import find_labels, labels_in
from .tags import tag_faults

SPLITS = ("train", "validation", "test")
SHOWN = 3  # rows named in a fault


@dataclass
class Source:
    """Rows that one or more tasks read together.

    Args:
        tasks: the recipe's tasks over these rows, by name.
        configs: what the model gets for each task, with labels and tag scheme found in the data.
        splits: the raw rows of train, and of validation and test where there are any.
        text: column with the text; None where only `tokens` are given.
        notes: what a user should know of how labels were read.
    """

    tasks: dict[str, TaskRecipe]
    splits: dict[str, datasets.Dataset]
    text: str | None
    configs: dict[str, TaskConfig] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The task, or the tasks joined by +."""
        return "+".join(self.tasks)

    @property
    def data(self) -> DataConfig:
        """The data section of the first task; its source and texts are those of all."""
        return next(iter(self.tasks.values())).data

    def scheme_of(self, task: str, config: TaskConfig) -> str | None:
        """The scheme that a token task's tags are written in; None where the model has none.

        A model may be evaluated on rows in another scheme than that of its training.
        """
        if config.scheme is None or task not in self.configs:
            return config.scheme
        return self.configs[task].scheme or config.scheme

    def texts_of(self, batch: dict[str, list]) -> list[list[str]]:
        """For each text column in turn, the texts of a batch of rows."""
        data = self.data
        if self.text is None:
            tokens = next(t.data.tokens for t in self.tasks.values() if t.data.tokens)
            return [[" ".join(words) for words in batch[tokens]]]
        columns = [self.text, data.text_pair, data.negative]
        return [batch[column] for column in columns if column is not None]


def load_sources(recipe: Recipe, source: str = "data") -> list[Source]:
    """Load and check the data of all tasks.

    Args:
        recipe: the recipe.
        source: name of the recipe, for the error.

    Raises:
        UserError: with every fault of the data against the recipe.
    """
    faults: list[str] = []
    sources = []
    for tasks in group_tasks(recipe.tasks):
        first = next(iter(tasks))
        try:
            splits = _load(tasks[first])
        except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:
            faults.append(f"tasks.{first}.data: cannot be loaded: {reason(error)}")
            continue
        text = next((t.data.text for t in tasks.values() if t.data.text), None)
        found = Source(tasks=tasks, splits=splits, text=text)
        found_faults = _column_faults(found)
        if not found_faults:
            found_faults = _check_rows(found)
        faults += found_faults
        sources.append(found)
    if faults:
        raise UserError(source, faults)
    return sources


def reason(error: BaseException) -> str:
    """What to tell of an error of `load_dataset`, in one line: it, or the cause that it hides."""
    if isinstance(error, StopIteration):
        return "no data: a file is empty"
    text = " ".join(str(error).split())
    if text == "An error occurred while generating the dataset":
        text = " ".join(str(error.__cause__).split())
    return text[:400] or type(error).__name__


def unseen_labels(sources: list[Source]) -> list[str]:
    """Labels read as others, and those of validation and test that the model cannot know.

    Returns:
        lines to show.
    """
    lines = [note for source in sources for note in source.notes]
    for source in sources:
        for name, config in source.configs.items():
            for split, rows in source.splits.items():
                if not config.labels or split == "train":
                    continue
                known, first, count = set(config.labels), {}, Counter()
                for row, values in enumerate(rows[:][source.tasks[name].data.label]):
                    for label in set(labels_in(values)) - known:
                        first.setdefault(label, row)
                        count[label] += 1
                lines += [
                    f"{name}: label {label!r} is not in train; {split} has it in "
                    f"{count[label]} rows, first in row {first[label]}; scored as wrong"
                    for label in sorted(first)
                ]
    return lines


# ---- loading ----


def group_tasks(tasks: dict[str, TaskRecipe]) -> Iterator[dict[str, TaskRecipe]]:
    """Tasks that read the same rows and texts."""
    groups: dict[str, dict[str, TaskRecipe]] = {}
    for name, task in tasks.items():
        data = task.data
        place = (data.path, data.name, data.data_files, data.data_dir, data.revision, data.splits)
        groups.setdefault(repr((place, task.max_rows)), {})[name] = task
    for same_rows in groups.values():
        by_text: dict[tuple, dict[str, TaskRecipe]] = {}
        for name, task in same_rows.items():
            columns = (task.data.text, task.data.text_pair, task.data.negative)
            # embedding rows are groups of texts: not to be shared with heads over one text
            grouped = task.head == "embedding" and (task.data.text_pair or task.prompts)
            kind = repr(task.prompts) if grouped else False
            words = task.data.tokens if task.data.text is None else None  # they are the text
            by_text.setdefault((*columns, kind, words), {})[name] = task
        single = [key for key in by_text if key[0] and key[1:4] == (None, None, False)]
        bare = [key for key in by_text if key[0] is None]
        if len(single) == len(bare) == 1:  # words and their text: one pass over the text for both
            both = {**by_text[single[0]], **by_text.pop(bare[0])}
            by_text[single[0]] = dict(sorted(both.items()))
        yield from by_text.values()


BUILDERS = {"parquet": "parquet", "csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json"}


def _load(task: TaskRecipe) -> dict[str, datasets.Dataset]:
    data = task.data
    path = data.path
    if path is None:
        files = data.data_files
        while not isinstance(files, str):
            files = list(files.values() if isinstance(files, dict) else files or [""])[0]
        ending = files.removesuffix(".gz").rsplit(".", 1)[-1]
        if ending not in BUILDERS:
            raise ValueError(f"{files}: ending .{ending}; name data.path (parquet, csv, json)")
        path = BUILDERS[ending]
    options: dict[str, Any] = {
        "name": data.name,
        "data_files": data.data_files,
        "data_dir": data.data_dir,
        "revision": data.revision,
    }
    options = {key: value for key, value in options.items() if value is not None}
    names = data.splits or {}
    if names:
        loaded = {
            ours: datasets.load_dataset(path, split=theirs, **options)
            for ours, theirs in names.items()
        }
    else:
        every = datasets.load_dataset(path, **options)
        loaded = {split: every[split] for split in SPLITS if split in every}
        if "train" not in loaded:
            raise ValueError(
                f"has no split train, but {', '.join(every)}; name them in data.splits"
            )
    if task.max_rows is not None:
        # a sample, not the head: files are often sorted by label
        chosen = np.random.default_rng(0).permutation(len(loaded["train"]))[: task.max_rows]
        loaded["train"] = loaded["train"].select(np.sort(chosen))
    return loaded  # pyright: ignore[reportReturnType]


# ---- checks ----


def _column_faults(source: Source) -> list[str]:
    faults = []
    for split, rows in source.splits.items():
        if not len(rows):
            faults.append(f"tasks.{source.name}.data: split {split} is empty")
        for name, task in source.tasks.items():
            columns = ("text", "text_pair", "negative", "tokens", "label")
            for key, column in ((key, getattr(task.data, key)) for key in columns):
                if column is not None and column not in rows.column_names:
                    faults.append(
                        f"tasks.{name}.data.{key}: split {split} has no column {column!r}; "
                        f"it has: {', '.join(rows.column_names)}"
                    )
    return faults


def _rows(numbers: list[int]) -> str:
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"row {', '.join(map(str, numbers[:SHOWN]))}{more}"


def _check_rows(source: Source) -> list[str]:
    """Faults of values; then, where there are none, of labels, which makes the task configs."""
    faults = []
    for split, rows in source.splits.items():
        batch = rows[:]
        for name, task in source.tasks.items():
            faults += _text_faults(task, name, split, batch)
            if task.data.tokens is not None:
                faults += _token_faults(source, name, split, batch)
            elif task.data.label is not None:
                place = f"tasks.{name}.data"
                faults += _label_kind_faults(task, place, split, batch[task.data.label])
    if faults:
        return faults
    for name, task in source.tasks.items():
        found, notes, label_faults = find_labels(name, task, source.splits, source.text)
        source.notes += notes
        faults += label_faults
        if found is not None:
            source.configs[name] = found
    return faults


def _text_faults(task: TaskRecipe, name: str, split: str, batch: dict[str, list]) -> list[str]:
    faults = []
    for key in ("text", "text_pair", "negative"):
        column = getattr(task.data, key)
        if column is None:
            continue
        bad = [i for i, text in enumerate(batch[column]) if not isinstance(text, str)]
        if bad:
            faults.append(
                f"tasks.{name}.data.{key}: {split}, column {column!r}: no text in {_rows(bad)}, "
                f"but {batch[column][bad[0]]!r:.60}"
            )
    return faults


def _token_faults(source: Source, name: str, split: str, batch: dict[str, list]) -> list[str]:
    """Faults of words, of tags against words, and of words against the text beside them."""
    data, place = source.tasks[name].data, f"tasks.{name}.data"
    tokens = batch[str(data.tokens)]
    tags = batch[str(data.label)] if source.tasks[name].head == "token_classification" else None
    # beside a text, a row without tags needs no words either: the task skips it
    skips = [source.text is not None and row is None for row in (tokens if tags is None else tags)]
    bad = [
        i
        for i, (row, skipped) in enumerate(zip(tokens, skips, strict=True))
        if not _is_list_of_text(row) and not (row is None and skipped)
    ]
    if bad:
        return [
            f"{place}.tokens: {split}, column {data.tokens!r}: no list of words in {_rows(bad)}, "
            f"but {tokens[bad[0]]!r:.80}"
        ]
    faults = []
    if tags is not None:
        where = f"{place}.label: {split}, column {data.label!r}"
        faults += tag_faults(where, tags, tokens, _rows)
    texts = batch[source.text] if source.text is not None else []
    bad = [
        i
        for i, text in enumerate(texts)
        if isinstance(text, str) and not skips[i] and locate_words(text, tokens[i]) is None
    ]
    if bad:
        i = bad[0]
        faults.append(
            f"{place}.tokens: {split}: the tokens are not the words of column {source.text!r} in "
            f"{_rows(bad)} ({tokens[i]!r:.60} in {texts[i]!r:.60}); "
            "let all tasks of this data read tokens, or mend the rows"
        )
    return faults


def _is_list_of_text(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(word, str) for word in row)


def _vector_faults(task: TaskRecipe, place: str, split: str, values: list) -> list[str]:
    """Labels that are no vectors, or vectors of another width than the first."""
    width = len(values[0]) if values and isinstance(values[0], list) else 0

    def fits(value: Any) -> bool:
        own = isinstance(value, list) and len(value) == width > 0
        return own and all(isinstance(x, (int, float)) and np.isfinite(x) for x in value)

    bad = [i for i, value in enumerate(values) if not fits(value)]
    if not bad:
        return []
    return [
        f"{place}.label: {split}, column {task.data.label!r}: a list of {width or 'some'} numbers "
        f"is wanted, but {_rows(bad)} holds {values[bad[0]]!r:.60}"
    ]


def _label_kind_faults(task: TaskRecipe, place: str, split: str, values: list) -> list[str]:
    """Labels that are not of the kind that the head reads."""
    numbers = task.problem_type == "regression" or task.head == "embedding"
    multi = task.problem_type == "multi_label_classification"
    if task.head == "embedding" and task.loss == "mse":
        return _vector_faults(task, place, split, values)

    def fits(value: Any) -> bool:
        if value is None:
            return True
        if numbers:
            return isinstance(value, (int, float)) and not np.isinf(value)
        return isinstance(value, list) if multi else isinstance(value, (str, int, bool))

    bad = [i for i, value in enumerate(values) if not fits(value)]
    want = "a number" if numbers else "a list of labels" if multi else "a label (string or id)"
    faults = []
    if bad:
        faults.append(
            f"{place}.label: {split}, column {task.data.label!r}: {want} is wanted, but "
            f"{_rows(bad)} holds {values[bad[0]]!r:.60}"
        )
    elif numbers:
        low, high = task.data.label_range or (-np.inf, np.inf)
        if task.head == "embedding" and task.loss == "cosine_mse" and not task.data.label_range:
            low, high = -1.0, 1.0  # a cosine
        bad = [
            i for i, v in enumerate(values) if v is not None and not (low <= v <= high or v != v)
        ]
        if bad:
            faults.append(
                f"{place}.label: {split}: {values[bad[0]]} in {_rows(bad)} lies outside "
                f"[{low:g}, {high:g}]; set data.label_range to the lowest and highest score"
            )
    return faults
