"""A question and several choices, of which one is right."""

from collections.abc import Hashable
from operator import eq
from typing import Any, ClassVar

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...modeling.heads import IGNORE
from ..recipe.data_config import DataConfig
from .base import Answers, LabelType, TaskKind
from .values import is_text, rows_named, soft_cross_entropy


class MultipleChoice(TaskKind):
    """A row is a group: the question with each of its choices, every pair a sequence.

    All rows of a split have as many choices, so that the scores of a batch make a table.
    """

    label_type: ClassVar[LabelType] = "index"
    needed = frozenset({"text", "text_pair", "label"})
    metrics = ("accuracy",)
    decides = ("calibrate", "abstain")
    pipeline_tag = "multiple-choice"
    auto_class = "AutoModelForMultipleChoice"

    @property
    def row_form(self) -> Hashable:
        """A list of choices is no second text of a pair."""
        return "choices"

    def text_fault(self, key: str, value: Any) -> str | None:
        """See the base class."""
        if key != "text_pair":
            return super().text_fault(key, value)
        if isinstance(value, str):
            return "no list of choices (CSV has none; use JSON Lines or parquet)"
        if not isinstance(value, list) or not all(map(is_text, value)):
            return "no list of texts"
        return None if len(value) > 1 else "no two choices"

    def sequences(self, texts: list[Any]) -> list[Any]:
        """The question with each choice."""
        question, choices = texts
        return [(question, choice) for choice in choices]

    def fault(self, value: Any) -> str | None:
        """See the base class."""
        if type(value) is int and value >= 0:
            return None
        return (
            "the number of the right choice is wanted, counted from 0 (name a mark of a missing "
            "one in data.missing_label)"
        )

    def row_faults(
        self, data: DataConfig, key: str, split: str, batch: dict[str, list]
    ) -> list[str]:
        """Rows with another number of choices than the first; labels that are no choice."""
        counts = [len(choices) for choices in batch[str(data.text_pair)]]
        odd = [i for i, count in enumerate(counts) if count != counts[0]]
        if odd:
            return [
                f"{key}.text_pair: {split}, column {data.text_pair!r}: row 0 has {counts[0]} "
                f"choices, but {rows_named(odd)} has {counts[odd[0]]}; all rows of a task have as "
                "many: leave these out, or make them a task of their own"
            ]
        labels = batch[str(data.label)]
        bad = [i for i, label in enumerate(labels) if label is not None and label >= counts[i]]
        if not bad:
            return []
        return [
            f"{key}.label: {split}, column {data.label!r}: choices count from 0 to "
            f"{counts[0] - 1}, but {rows_named(bad)} holds {labels[bad[0]]}; where they count from "
            "1, take 1 away"
        ]

    def encode(self, value: Any, data: DataConfig) -> int:
        """The number of the choice; `IGNORE` without one."""
        return IGNORE if value is None else value

    def decode(self, label: Any, tokens: list[str]) -> int | None:
        """The number of the choice."""
        return None if label == IGNORE else label

    def teacher_loss(self, values: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of (N, 1) scores to the teacher's probabilities of a row's choices."""
        scores, taught = (part.view(len(labels), -1) for part in (values, targets))
        return (soft_cross_entropy(scores, taught) * (labels != IGNORE)).sum()

    def gathered(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, 1) scores to those of the rows, (G, C)."""
        return logits.view(len(labels), -1)

    def read(self, values: Tensor) -> list[str]:
        """(G, C) scores to the number of the largest."""
        return list(map(str, values.argmax(-1).tolist()))

    def report(self, answers: Answers, scores: dict[str, Any]) -> dict[str, Any]:
        """Calibration."""
        return {"reliability": self.reliability(answers)}

    def truth(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """See the base class; of (G, C) scores."""
        return answers.values, torch.tensor(list(map(int, answers.references)), dtype=torch.long)

    def scored(self, answers: Answers) -> list[tuple[float, bool]]:
        """See the base class."""
        right = map(eq, answers.predictions, answers.references)
        return list(zip(self.chances(answers.values).amax(-1).tolist(), right, strict=True))

    def plain_logits(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """(N, 1): the N sequences as the choices of one row, (1, N, T)."""
        return model(**{name: values[None] for name, values in batch.items()}).logits.T

    def feature(self) -> Any:
        """The chosen text, its number and its probability."""
        return {
            "label": datasets.Value("string"),
            "choice": datasets.Value("int64"),
            "score": datasets.Value("float64"),
        }
