"""Masked language modelling (arXiv:1810.04805): the labels are tokens of the text itself."""

from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor

from ...modeling.heads import IGNORE
from ..recipe.schema import DataConfig
from .base import LabelType, SplitRows, TaskKind
from .classification import ANSWER


class MaskedLM(TaskKind):
    """Tokens at masks. They are drawn when rows are collated."""

    label_type: ClassVar[LabelType] = "none"
    needed = frozenset()
    pipeline_tag = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    metrics = ("token_accuracy",)
    labels_from_tokens = True
    scores_itself = True

    def encode(self, value: Any, data: DataConfig) -> None:
        """Nothing: the data has no labels."""

    def gathered(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, T, V) logits to (N, 2): masked tokens found, masked tokens."""
        masked = labels != IGNORE
        hits = (logits.argmax(-1) == labels) & masked
        return torch.stack([hits.sum(1), masked.sum(1)], dim=1)

    def score(self, values: np.ndarray, rows: SplitRows) -> dict[str, float]:
        """Share of the masked tokens that are found."""
        hits, masked = values.sum(0)
        return {"token_accuracy": float(hits / max(1, masked))}

    def feature(self) -> Any:
        """Tokens with scores."""
        return datasets.List(ANSWER)
