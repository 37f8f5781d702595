"""Rows of a recipe: load them and check them against the recipe.

Tasks that read the same rows through the same texts form one `Source`: each row is encoded once
and carries the labels of all of them. Everything wrong with the data is found here, before
training, and reported in one error with task, split, row and column.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import datasets
import datasets.exceptions

from ...modeling.hierarchy import nodes_of
from ...modeling.tags import split_tag
from ...modeling.task_config import TaskConfig
from ...modeling.windows import locate_words
from ..errors import UserError
from ..kinds import SplitRows, kind_of
from ..kinds.values import labels_in, rows_named
from ..recipe.data_config import ROUTER, TEXT_COLUMNS, DataConfig
from ..recipe.schema import Recipe, TaskRecipe
from .checks import text_faults
from .corpora import join_corpora
from .document_pairs import make_pairs
from .formats import named_columns, read_annotations
from .label_values import class_notes, missing_notes, read_labels
from .labels import find_labels
from .router_rows import router_rows
from .row_weights import read_row_weights
from .splits import load_splits
from .tags import tag_faults

PREFIXES = ("B-", "I-", "E-", "S-")


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

    def split_rows(
        self, task: str, batch: dict[str, list], config: TaskConfig | None = None
    ) -> SplitRows:
        """A batch of raw rows, as the kind of a task reads them.

        Args:
            task: name of the task.
            batch: columns.
            config: the task as the model knows it; default as found in the data.
        """
        scheme = self.scheme_of(task, config or self.configs[task])
        return SplitRows(batch, self.tasks[task].data, self.text, scheme=scheme)

    def texts_of(self, batch: dict[str, list]) -> list[list[Any]]:
        """For each text column in turn, the texts of a batch of rows."""
        data = self.data
        if self.text is None:
            tokens = next(t.data.tokens for t in self.tasks.values() if t.data.tokens)
            return [[" ".join(words) for words in batch[tokens]]]
        columns = [self.text, data.text_pair, data.negative]
        return [batch[column] for column in columns if column is not None]


def load_sources(recipe: Recipe) -> list[Source]:
    """Load and check the data of all tasks.

    Args:
        recipe: the recipe.

    Raises:
        UserError: with every fault of the data against the recipe.
    """
    faults: list[str] = []
    sources = []
    for tasks in group_tasks(recipe.tasks):
        first = next(iter(tasks))
        if recipe.router and first == ROUTER:
            continue
        try:
            if tasks[first].data.more:
                tasks, splits = join_corpora(first, tasks[first])
            else:
                splits = load_splits(tasks[first], _columns_read(tasks))
            if tasks[first].data.pairs is not None:
                tasks, splits = make_pairs(tasks, splits)
        except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:
            faults.append(f"tasks.{first}.data: cannot be loaded: {reason(error)}")
            continue
        tasks, notes, found_faults = read_annotations(tasks, splits)
        text = next((t.data.text for t in tasks.values() if t.data.text), None)
        source = Source(tasks=tasks, splits=splits, text=text, notes=notes)
        found_faults = found_faults or _column_faults(source)
        if not found_faults:
            found_faults = _check_rows(source)
        faults += found_faults
        sources.append(source)
    if recipe.router and ROUTER in recipe.tasks and not faults:
        task = recipe.tasks[ROUTER]
        rows = router_rows(sources, task.labels or [])
        sources.append(Source(tasks={ROUTER: task}, splits=rows, text=task.data.text))
        faults += _check_rows(sources[-1])
    if faults:
        raise UserError(recipe.path, faults)
    return sources


def reason(error: BaseException) -> str:
    """What to tell of an error of `load_dataset`, in one line: it, or the cause that it hides."""
    if isinstance(error, StopIteration):
        return "no data: a file is empty"
    text = " ".join(str(error).split())
    if text == "An error occurred while generating the dataset":
        text = " ".join(str(error.__cause__).split())
    return text[:400] or type(error).__name__


def unseen_labels(
    sources: list[Source], configs: dict[str, TaskConfig] | None = None, scored: str | None = None
) -> list[str]:
    """Labels read as others, and those of validation and test that the model cannot know.

    Args:
        sources: checked rows.
        configs: tasks of a model that is not trained on `sources`; default as found in train.
        scored: the one split to look at; default validation and test.

    Returns:
        lines to show.
    """
    whose = "train" if configs is None else "the model"
    lines = [note for source in sources for note in source.notes]
    for source in sources:
        for name, config in (configs or source.configs).items():
            for split, rows in source.splits.items():
                skipped = split == "train" if scored is None else split != scored
                if name not in source.tasks or not config.labels or skipped:
                    continue
                known, first, count = set(config.labels), {}, Counter()
                if configs is not None and config.scheme is not None:  # the data may have another
                    known = {part + split_tag(label)[1] for label in known for part in PREFIXES}
                    known.add("O")
                if kind_of(config).tree:
                    known |= {node for label in known for node in nodes_of(label)}
                data = source.tasks[name].data
                for row, values in enumerate(rows[:][data.label]):
                    for label in set(labels_in(values)) - known - {data.unmarked}:
                        first.setdefault(label, row)
                        count[label] += 1
                lines += [
                    f"{name}: label {label!r} is not in {whose}; {split} has it in "
                    f"{count[label]} rows, first in row {first[label]}; scored as wrong"
                    for label in sorted(first)
                ]
    return lines


# ---- loading ----


def group_tasks(tasks: dict[str, TaskRecipe]) -> Iterator[dict[str, TaskRecipe]]:
    """Tasks that read the same rows and texts."""
    groups: dict[str, dict[str, TaskRecipe]] = {}
    for name, task in tasks.items():
        data = named_columns(task).data
        origin = (data.path, data.name, data.data_files, data.data_dir, data.revision, data.splits)
        origin += (None if data.format == "spans" else data.format,)
        origin += (name,) if data.more else ()  # they are joined for this task alone
        origin += (data.pairs,)
        origin += () if data.rows is None else data.rows.identity
        groups.setdefault(repr((origin, task.max_rows)), {})[name] = task
    for same_rows in groups.values():
        by_text: dict[tuple, dict[str, TaskRecipe]] = {}
        for name, task in same_rows.items():
            data = named_columns(task).data
            columns = (data.text, data.text_pair, data.negative)
            # they are the text
            words = None if data.text is not None else (data.tokens, data.separator)
            by_text.setdefault((*columns, kind_of(task).row_form, words), {})[name] = task
        single = [key for key in by_text if key[0] and key[1:4] == (None, None, None)]
        bare = [key for key in by_text if key[0] is None]
        if len(single) == len(bare) == 1:  # words and their text: one pass over the text for both
            both = {**by_text[single[0]], **by_text.pop(bare[0])}
            by_text[single[0]] = dict(sorted(both.items()))
        yield from by_text.values()


# ---- checks ----


COLUMNS = (*TEXT_COLUMNS, "label")


def _columns_read(tasks: dict[str, TaskRecipe]) -> set[str]:
    names = set()
    for task in tasks.values():
        data = named_columns(task).data
        for column in (getattr(data, key) for key in COLUMNS):
            names |= set(column) if isinstance(column, list) else {column}
        names |= {data.marks} if isinstance(data.marks, str) else set()
        names |= {data.group_by, data.weight, data.soft_label}
    return names - {None}


def _column_faults(source: Source) -> list[str]:
    faults = []
    for split, rows in source.splits.items():
        if not len(rows):
            faults.append(f"tasks.{source.name}.data: split {split} is empty, there is no data")
        for name, task in source.tasks.items():
            named = {key: getattr(task.data, key) for key in COLUMNS}
            named |= {"marks": task.data.marks} if isinstance(task.data.marks, str) else {}
            named["group_by"] = task.data.group_by
            if split == "train":  # other rows count alike
                named |= {key: getattr(task.data, key) for key in ("weight", "soft_label")}
            for key, column in named.items():
                if column is not None and column not in rows.column_names:
                    in_train = column in source.splits["train"].column_names
                    why = ", as train has: column names don't match" if in_train else ""
                    faults.append(
                        f"tasks.{name}.data.{key}: split {split} has no column {column!r}{why}; "
                        f"it has: {', '.join(rows.column_names)}"
                    )
    return faults


def _check_rows(source: Source) -> list[str]:
    """Faults of values; then, where there are none, of labels, which makes the task configs."""
    notes, faults = read_labels(source.tasks, source.splits)
    faults += read_row_weights(source.tasks, source.splits)
    source.notes += notes
    unread = {name for name in source.tasks if any(f"tasks.{name}." in fault for fault in faults)}
    for split, rows in source.splits.items():
        batch = rows[:]
        for name, task in source.tasks.items():
            of_task = text_faults(task, name, split, batch)
            key, label = f"tasks.{name}.data", str(task.data.label)
            if task.data.tokens is not None:
                of_task += _token_faults(source, name, split, batch)
            kind = kind_of(task)
            if task.data.label is not None and kind.label_type != "tags" and name not in unread:
                of_task += kind.label_faults(task.data, key, split, batch[label])
            if not of_task and name not in unread:
                of_task = kind.row_faults(task.data, key, split, batch)
            faults += of_task
    if faults:
        return faults
    for name, task in source.tasks.items():
        config, notes, more = find_labels(name, task, source.splits, source.text)
        source.notes += notes
        faults += more
        if config is not None:
            source.configs[name] = config
            source.notes += _label_notes(source, name)
    return faults


def _label_notes(source: Source, name: str) -> list[str]:
    """Rows without a label, and labels without a row."""
    task, labels = source.tasks[name], source.configs[name].labels
    if task.data.label is None:
        return []
    lines = missing_notes(name, task, source.splits)
    if labels and kind_of(task).label_type != "tags":
        values = source.splits["train"][:][task.data.label]
        lines += class_notes(
            name, task, labels, Counter(chain.from_iterable(map(labels_in, values)))
        )
    return lines


def _token_faults(source: Source, name: str, split: str, batch: dict[str, list]) -> list[str]:
    """Faults of words, of tags against words, and of words against the text beside them."""
    data, key = source.tasks[name].data, f"tasks.{name}.data"
    tokens = batch[str(data.tokens)]
    has_tags = kind_of(source.tasks[name]).label_type == "tags"
    tags = batch[str(data.label)] if has_tags else None
    # beside a text, a row without tags needs no words either: the task skips it
    skips = [source.text is not None and row is None for row in (tokens if tags is None else tags)]
    bad = [
        i
        for i, (row, skipped) in enumerate(zip(tokens, skips, strict=True))
        if not _is_list_of_text(row) and not (row is None and skipped)
    ]
    if bad:
        return [
            f"{key}.tokens: {split}, column {data.tokens!r}: no list of words in "
            f"{rows_named(bad)}, but {tokens[bad[0]]!r:.80}"
        ]
    faults = _marks_faults(data, key, split, batch)
    if tags is not None:
        where = f"{key}.label: {split}, column {data.label!r}"
        faults += tag_faults(where, tags, tokens, rows_named)
    texts = batch[source.text] if source.text is not None else []
    bad = [
        i
        for i, text in enumerate(texts)
        if isinstance(text, str) and not skips[i] and locate_words(text, tokens[i]) is None
    ]
    if bad:
        i = bad[0]
        faults.append(
            f"{key}.tokens: {split}: the tokens are not the words of column {source.text!r} in "
            f"{rows_named(bad)} ({tokens[i]!r:.60} in {texts[i]!r:.60}); "
            "let all tasks of this data read tokens, or mend the rows"
        )
    return faults


def _marks_faults(data: DataConfig, key: str, split: str, batch: dict[str, list]) -> list[str]:
    if not isinstance(data.marks, str):
        return []
    values = batch[data.marks]
    bad = [i for i, row in enumerate(values) if row is not None and not _is_list_of_text(row)]
    where = f"{key}.marks: {split}, column {data.marks!r}"
    odd = f"a list of types is wanted, but {rows_named(bad)} holds" if bad else ""
    return [f"{where}: {odd} {values[bad[0]]!r:.60}"] if bad else []


def _is_list_of_text(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(word, str) for word in row)
