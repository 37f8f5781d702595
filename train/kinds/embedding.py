"""Embeddings, by what their loss reads: scores of pairs, groups of texts, a teacher's answers."""

from collections.abc import Hashable
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...modeling.losses import LOSSES
from ...modeling.task_config import TaskConfig
from ..recipe.data_config import DataConfig
from ..recipe.schema import TaskRecipe
from .base import Answers, LabelType, SplitRows, TaskKind
from .counting import compare_numbers
from .numbers import Numbers
from .values import rows_named

TEXTS_A_PASS = 1024


class Embedding(TaskKind):
    """What all embedding tasks have in common: a row is a group of texts, each a sequence."""

    pipeline_tag = "sentence-similarity"
    auto_class = "AutoModel"

    @property
    def row_form(self) -> Hashable:
        """Groups of texts, and texts with prompts, are not to be shared with other heads."""
        paired = isinstance(self.task, TaskRecipe) and self.task.data.text_pair
        if paired or self.task.prompts:
            return ("group", repr(self.task.prompts), self.pools_windows)
        return super().row_form

    def sequences(self, texts: list[Any]) -> list[Any]:
        """See the base class."""
        return texts

    def teacher_loss(self, values: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Of (N, D) vectors in groups: 1 - cosine to the teacher's, a mean over a group's texts.

        Of a teacher with vectors of another width: the squared difference of the cosines in a
        group, a mean over its pairs.
        """
        known = (~labels.isnan()).view(len(labels), -1).all(1)
        groups, taught = (part.view(len(labels), -1, part.shape[-1]) for part in (values, targets))
        groups, taught = (F.normalize(part[known], dim=-1) for part in (groups, taught))
        if groups.shape == taught.shape:
            return (1 - (groups * taught).sum(-1)).mean(1).sum()
        one, other = torch.triu_indices(groups.shape[1], groups.shape[1], 1, device=values.device)
        cosines, cosines_taught = ((g[:, one] * g[:, other]).sum(-1) for g in (groups, taught))
        return (cosines - cosines_taught).square().mean(1).sum()

    def scored_as(self, recipe: TaskRecipe) -> TaskKind:
        """By what the rows hold, which may differ from what the model was trained on."""
        return embedding_kind(recipe)

    def feature(self) -> Any:
        """The vector."""
        return datasets.List(datasets.Value("float32"))


class ScoredPairs(Embedding, Numbers):
    """Pairs of texts with a number that says how alike they are."""

    needed = frozenset({"text", "text_pair", "label"})
    metrics = ("spearman", "pearson")

    def __init__(self, task: TaskConfig | TaskRecipe) -> None:
        super().__init__(task)
        self.learns_values = False  # else their order alone
        loss = LOSSES.get(task.loss or "")  # of a recipe that is still to be checked: none
        if loss is not None and loss.score_range is not None:
            self.allowed_range, self.learns_values = loss.score_range, True

    def read(self, values: Tensor) -> list[float]:
        """(N, 2, D) embeddings to the cosines of the pairs."""
        return F.cosine_similarity(values[:, 0], values[:, 1]).tolist()

    def report(self, answers: Answers, scores: dict[str, Any]) -> dict[str, Any]:
        """Cosines against scores, of which some losses learn the order only."""
        compared = answers.predictions, answers.references
        return {"numbers": compare_numbers(*compared, same_scale=self.learns_values)}


class TeacherMargins(Embedding, Numbers):
    """Triplets with the difference of a teacher's scores (margin_mse)."""

    needed = frozenset({"text", "text_pair", "negative", "label"})
    metrics = ("spearman", "pearson")

    def read(self, values: Tensor) -> list[float]:
        """(N, 3, D) embeddings to how much nearer the anchor is to the positive."""
        return ((values[:, 1] - values[:, 2]) * values[:, 0]).sum(-1).tolist()

    def report(self, answers: Answers, scores: dict[str, Any]) -> dict[str, Any]:
        """Margins against the teacher's."""
        return {"numbers": compare_numbers(answers.predictions, answers.references)}


class TextGroups(Embedding):
    """Groups of anchor, positive and negatives, without a label."""

    label_type: ClassVar[LabelType] = "none"
    needed = frozenset({"text", "text_pair"})
    optional = frozenset({"negative"})
    metrics = ("accuracy",)
    scores_itself = True

    def encode(self, value: Any, data: DataConfig) -> float:
        """1: a group counts."""
        return 1.0

    def score(self, values: np.ndarray, rows: SplitRows) -> dict[str, float]:
        """Share of anchors whose nearest of all texts but anchors is their own positive."""
        groups = torch.from_numpy(values[rows.first_windows()]).float()
        unit = F.normalize(groups, dim=-1)
        candidates = unit[:, 1:].transpose(0, 1).flatten(0, 1)
        positives = torch.arange(len(groups))
        hits = [
            (anchors @ candidates.T).argmax(1) == number
            for anchors, number in zip(
                unit[:, 0].split(TEXTS_A_PASS), positives.split(TEXTS_A_PASS), strict=True
            )
        ]
        return {"accuracy": float(torch.cat(hits).float().mean())}


class Triplets(TextGroups):
    """Groups that cannot do without a negative."""

    needed = frozenset({"text", "text_pair", "negative"})
    optional = frozenset()


class TeacherVectors(Embedding):
    """Texts with a teacher's vector (mse)."""

    label_type: ClassVar[LabelType] = "vector"
    needed = frozenset({"text", "label"})
    metrics = ("cosine",)
    scores_itself = True

    def label_faults(self, data: DataConfig, key: str, split: str, values: list) -> list[str]:
        """Labels that are no vectors, or vectors of another width than the first."""
        width = len(values[0]) if values and isinstance(values[0], list) else 0

        def fits(value: Any) -> bool:
            is_vector = isinstance(value, list) and len(value) == width > 0
            return is_vector and all(isinstance(x, (int, float)) and np.isfinite(x) for x in value)

        bad = [i for i, value in enumerate(values) if not fits(value)]
        if not bad:
            return []
        return [
            f"{key}.label: {split}, column {data.label!r}: a list of {width or 'some'} numbers "
            f"is wanted, but {rows_named(bad)} holds {values[bad[0]]!r:.60}"
        ]

    def encode(self, value: Any, data: DataConfig) -> list[float]:
        """The vector."""
        return [float(number) for number in value]

    def score(self, values: np.ndarray, rows: SplitRows) -> dict[str, float]:
        """Mean cosine of the embeddings (rows, 1, D) to the vectors that the rows hold."""
        labels, row_of = rows.labels, rows.tokenized["row"][:]
        vectors = torch.tensor([labels[row] for row in row_of]).float()
        embeddings = torch.from_numpy(np.ascontiguousarray(values[:, 0])).float()
        return {"cosine": float(F.cosine_similarity(embeddings, vectors).mean())}


def embedding_kind(task: Any) -> Embedding:
    """The kind of an embedding task, by what its loss reads."""
    loss = LOSSES.get(task.loss, LOSSES["cosent"])
    if loss.label == "vector":
        return TeacherVectors(task)
    if loss.label is None:
        return Triplets(task) if loss.group[0] > 2 else TextGroups(task)
    return TeacherMargins(task) if loss.group[0] > 2 else ScoredPairs(task)
