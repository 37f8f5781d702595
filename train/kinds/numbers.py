"""A number for a text or a pair of texts."""

from typing import Any, ClassVar

import datasets
import numpy as np
from torch import Tensor

from ..recipe.data_config import DataConfig
from .base import Answers, LabelType, TaskKind
from .counting import compare_numbers
from .values import is_real, number_of, rows_named, scaled


class Numbers(TaskKind):
    """What all kinds with a number as label have in common.

    `label_range` of the data scales the numbers to 0-1, for the loss and for the scores.
    """

    label_type: ClassVar[LabelType] = "number"
    allowed_range = (-np.inf, np.inf)  # where the data names none

    def label_faults(self, data: DataConfig, key: str, split: str, values: list) -> list[str]:
        """Labels that are no numbers, or outside of their range."""
        where = f"{key}.label: {split}, column {data.label!r}"
        bad = [i for i, value in enumerate(values) if value is not None and not _is_finite(value)]
        if bad:
            return [
                f"{where}: a number is wanted, but {rows_named(bad)} holds {values[bad[0]]!r:.60}; "
                "if that marks a missing label, name it in data.missing_label"
            ]
        low, high = data.label_range or self.allowed_range
        bad = [i for i, v in enumerate(values) if v is not None and not (low <= float(v) <= high)]
        bad = [i for i in bad if not np.isnan(float(values[i]))]
        if not bad:
            return []
        return [
            f"{key}.label: {split}: {values[bad[0]]} in {rows_named(bad)} lies outside "
            f"[{low:g}, {high:g}]; set data.label_range to the lowest and highest score"
        ]

    def encode(self, value: Any, data: DataConfig) -> float:
        """The number, scaled; NaN without one."""
        return scaled(value, data)

    def reference(self, value: Any, data: DataConfig) -> float:
        """See the base class."""
        return scaled(value, data)


class Regression(Numbers):
    """Regression by squared error."""

    optional = frozenset({"text_pair"})
    pipeline_tag = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    metrics = ("pearson", "spearman", "mse")

    def teacher_loss(self, values: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Squared difference of (N, 1) numbers to the teacher's."""
        return ((values - targets).square() * ~labels.isnan().view(-1, 1)).sum()

    def read(self, values: Tensor) -> list[float]:
        """(N, 1) logits, the numbers."""
        return values[:, 0].tolist()

    def report(self, answers: Answers, scores: dict[str, Any]) -> dict[str, Any]:
        """Predicted against true numbers."""
        return {"numbers": compare_numbers(answers.predictions, answers.references)}

    def feature(self) -> Any:
        """The number."""
        return {"score": datasets.Value("float64")}


def _is_finite(value: Any) -> bool:
    """A number that a float can hold, or NaN; in a column that has classes too, its text.

    True and False are no numbers: that they mean 1 and 0 would be a guess.
    """
    if isinstance(value, str):
        value = number_of(value)
    if not is_real(value):
        return False
    try:
        return not np.isinf(float(value))
    except OverflowError:
        return False
