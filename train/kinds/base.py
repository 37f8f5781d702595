"""What training, scoring and files must know of one kind of task: `TaskKind`.

Shapes: `N` rows, `L` labels, `g` texts of a group, `D` width of an embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...modeling.heads import HEADS
from ...modeling.task_config import TaskConfig
from ..recipe.data_config import DataConfig
from ..recipe.schema import TaskRecipe
from .counting import reliability
from .values import is_missing, is_text, rows_named

# What stands in the column of labels, before anything is read:
# class    a string or id, one of a closed list
# classes  a list of those, or a 0/1 vector
# tags     a string or id for each word
# number, vector
# index    a number from 0 that points into the row itself
# none     nothing: there is no such column
LabelType = Literal["class", "classes", "tags", "number", "vector", "index", "none"]
CLOSED: tuple[LabelType, ...] = ("class", "classes", "tags")  # strings from a closed list


@dataclass
class SplitRows:
    """Rows of a split, as a kind scores them.

    Args:
        raw: columns of the data.
        data: which of them the task reads.
        text: column with the text; None where only words are given.
        tokenized: the same rows tokenized, see `data/tokenization.py`; not needed for labels.
        scheme: of the tags of these rows.
    """

    raw: dict[str, list]
    data: DataConfig
    text: str | None
    tokenized: Any = None
    scheme: str | None = None

    @property
    def labels(self) -> list:
        """The column of labels; None for each row where there is none."""
        if self.data.label is None:
            return [None] * len(next(iter(self.raw.values()), []))
        return self.raw[str(self.data.label)]

    def first_windows(self) -> list[int]:
        """Positions in `tokenized` of the first window of each row."""
        return [i for i, window in enumerate(self.tokenized["window"][:]) if window == 0]


@dataclass
class Answers:
    """What a model said about the labelled rows of a split.

    Args:
        predictions: label strings, lists of them, numbers, or the tags of words.
        references: what the rows say.
        values: the logits that `predictions` were read from, (N, L) or (N, g, D); of a token task
            log-probabilities (U, L) of the units that have a label, row by row.
        unit_tags: of a token task, the labels of those units.
        entities: of a token task with a tag scheme, the entities of the model and of the rows, as
            (row, kind, start, end), characters.
        scored: of a token task, the score of each entity (word) that was answered, and whether it
            is right.
    """

    predictions: list
    references: list
    values: Any
    unit_tags: list[str] = field(default_factory=list)
    entities: tuple[set[tuple], set[tuple]] | None = None
    scored: list[tuple[float, bool]] = field(default_factory=list)


@dataclass
class BatchLayout:
    """Where the tokens of a batch lie.

    Args:
        width: tokens of a row of the batch.
        packed: texts lie end to end in one row.
    """

    width: int
    packed: bool


class TaskKind(ABC):
    """One kind of task.

    What is read of a task's rows, how its labels train, how the model's answers are scored and
    reported, and what type of column they make. The head itself is in `modeling/heads.py`.

    Args:
        task: the options, of a recipe or of a model. Those of a recipe lack what is found in the
            data: labels, tag scheme.
    """

    label_type: ClassVar[LabelType]
    needed: frozenset[str] = frozenset({"label"})  # columns beside the text
    optional: frozenset[str] = frozenset()
    metrics: tuple[str, ...]  # that fit, the one for the macro score first
    usual_metrics: tuple[str, ...] = ()  # those of a task that names none; default all
    pipeline_tag: ClassVar[str]  # the Hub's name for such tasks
    auto_class: ClassVar[str | None] = None  # transformers' class with such a head, for exports
    labels_from_tokens: ClassVar[bool] = False  # made when rows are collated: language models
    needs_mask_token: ClassVar[bool] = False  # of the tokenizer
    tree: ClassVar[bool] = False  # its labels are paths, and a row may say where one begins
    ordered: ClassVar[bool] = False  # its labels have an order, the lowest first
    scores_itself: ClassVar[bool] = False  # by `score`: there are no answers beside references
    decides: ClassVar[tuple[str, ...]] = ()  # of a recipe's `decide`, what such tasks can

    def __init__(self, task: TaskConfig | TaskRecipe) -> None:
        self.task = task

    @property
    def labels(self) -> list[str]:
        """Labels in id order; none for tasks without."""
        return self.task.labels or []

    # ---- the recipe ----

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Metrics of a task that names none."""
        return self.usual_metrics or self.metrics

    def stand_in_labels(self) -> list[str] | None:
        """Labels to check the options with, before the data's own are read."""
        return None

    # ---- texts ----

    @property
    def pools_windows(self) -> bool:
        """All windows of a text are one example; else each is its own, or the first alone is."""
        return self.task.long_texts == "windows" and not HEADS[self.task.head].per_token

    @property
    def row_form(self) -> Hashable:
        """Tasks over the same columns share their rows where this is equal."""
        return "windows" if self.pools_windows else None

    def text_fault(self, key: str, value: Any) -> str | None:
        """What is wrong with a raw value of the column of `text`, `text_pair` or `negative`."""
        return None if is_text(value) else "no text"

    def sequences(self, texts: list[Any]) -> list[Any]:
        """What the encoder reads of one row: texts, or pairs of them that share a sequence.

        Args:
            texts: of the row, one for each text column.
        """
        return [texts[0]] if len(texts) == 1 else [(texts[0], texts[1])]

    # ---- labels ----

    def fault(self, value: Any) -> str | None:
        """What is wrong with a raw label, as "a label is wanted"; None where nothing is."""
        return None

    def label_faults(self, data: DataConfig, key: str, split: str, values: list) -> list[str]:
        """Raw labels of a split that are not of this kind, for one message.

        Args:
            data: of the task.
            key: `tasks.NAME.data`.
            split: train, validation or test.
            values: of the column of labels.
        """
        bad = [i for i, v in enumerate(values) if v is not None and self.fault(v)]
        if not bad:
            return []
        value = values[bad[0]]
        return [
            f"{key}.label: {split}, column {data.label!r}: {self.fault(value)}, but "
            f"{rows_named(bad)} holds {value!r:.60}"
        ]

    def row_faults(
        self, data: DataConfig, key: str, split: str, batch: dict[str, list]
    ) -> list[str]:
        """What the columns of a split say against each other; each for itself is right.

        Args:
            data: of the task.
            key: `tasks.NAME.data`.
            split: train, validation or test.
            batch: columns of the data.
        """
        return []

    @abstractmethod
    def encode(self, value: Any, data: DataConfig) -> Any:
        """Raw label of a row to what `collate` stacks; a mark for none where it is missing."""

    def decode(self, label: Any, tokens: list[str]) -> Any:
        """An encoded label as a person reads it.

        Args:
            label: as `encode` gave it.
            tokens: of the row's text.
        """
        return label

    def collate(self, labels: list, layout: BatchLayout) -> Tensor:
        """Encoded labels of a batch as one tensor."""
        return torch.tensor(labels)

    def teacher_loss(self, values: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """How far answers are from a teacher's, summed over the labelled units; a scalar.

        A kind without this cannot be distilled.

        Args:
            values: float: what the head gave of the task's rows; of a token task (n, L), of the
                labelled tokens.
            targets: float, the teacher's for the same texts or tokens, in the same order.
            labels: of the batch; of a token task (n,).
        """
        raise NotImplementedError(f"{type(self).__name__} has no teacher_loss")

    @property
    def has_teachers(self) -> bool:
        """Tasks of this kind can be distilled."""
        return type(self).teacher_loss is not TaskKind.teacher_loss

    # ---- answers ----

    def gathered(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What evaluation gathers of a batch: logits, or counts where those would be too large."""
        return logits

    def scored_as(self, recipe: TaskRecipe) -> "TaskKind":
        """The kind by which a model of this kind is scored on the rows of a recipe's task."""
        return self

    def answers(self, rows: SplitRows, values: Tensor) -> Answers:
        """Predictions for a split beside its raw labels; rows without a label are left out.

        Args:
            rows: the split.
            values: what evaluation gathered, one entry for each of `rows.tokenized`.
        """
        row_of, labels = rows.tokenized["row"][:], rows.labels
        labelled = [i for i in rows.first_windows() if not is_missing(labels[row_of[i]])]
        references = [self.reference(labels[row_of[i]], rows.data) for i in labelled]
        return Answers(self.read(values[labelled]), references, values[labelled])

    def read(self, values: Tensor) -> list:
        """Logits (N, L), or embeddings of groups (N, g, D), to labels, lists of them or numbers."""
        raise NotImplementedError(f"{type(self).__name__} scores itself, or has answers of its own")

    def reference(self, value: Any, data: DataConfig) -> Any:
        """A raw label as `read` would answer it."""
        return str(value)

    def score(self, values: np.ndarray, rows: SplitRows) -> dict[str, float]:
        """Metric to value, of a kind that `scores_itself`; arguments as those of `answers`."""
        raise NotImplementedError(f"{type(self).__name__} is scored by its answers")

    def report(self, answers: Answers, scores: dict[str, Any]) -> dict[str, Any]:
        """Sections of the task's report, see `reports/task_report.py`."""
        return {}

    # ---- decisions, of kinds that have some ----

    def truth(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """(n, L) logits, and what is true: (n,) ids, or (n, L) of 0 and 1 for several labels.

        A label that the model does not know is -1, and among several a column of -inf.
        """
        raise NotImplementedError(f"{type(self).__name__} has no probabilities of labels")

    def chances(self, logits: Tensor) -> Tensor:
        """(n, L) logits -> probabilities."""
        return logits.softmax(-1)

    def reliability(self, answers: Answers) -> dict[str, Any]:
        """How far the probabilities can be trusted."""
        logits, truth = self.truth(answers)
        return reliability(self.chances(logits).numpy(), truth.numpy())

    def scored(self, answers: Answers) -> list[tuple[float, bool]]:
        """The score of each answer that is given at any score, and whether it is right.

        Of labels with thresholds of their own, which they have reached, it is 1.
        """
        return answers.scored

    # ---- files ----

    def plain_logits(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """Logits of a model of `auto_class`, shaped as those of our head.

        Args:
            model: of transformers.
            batch: its inputs, (N, T).
        """
        return model(**batch).logits

    @abstractmethod
    def feature(self) -> Any:
        """Type of the column that `predict --output` writes: of `datasets`."""
