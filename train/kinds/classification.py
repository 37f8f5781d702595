"""Classes of a text or a pair of texts: one of them, or any number."""

import math
from operator import eq
from typing import Any, ClassVar

import datasets
import torch
import torch.nn.functional as F
from sklearn.preprocessing import MultiLabelBinarizer
from torch import Tensor

from ...modeling.decoding import rank_strict
from ...modeling.heads import IGNORE
from ...modeling.hierarchy import SEPARATOR, best_leaves, leaves_under, nodes_of
from ...modeling.problem_types import middle_class
from ...modeling.task_config import TaskConfig
from ..recipe.data_config import DataConfig
from .base import Answers, LabelType, SplitRows, TaskKind
from .counting import confusion, multi_label_confusion
from .partial import allowed_id, shown_id
from .values import ids_of, labels_in, rows_named, soft_cross_entropy, taught

BLANK = "a label with letters is wanted (name a mark of a missing one in data.missing_label)"
ANSWER = {"label": datasets.Value("string"), "score": datasets.Value("float64")}


def is_blank(value: Any) -> bool:
    """A string without a sign."""
    return isinstance(value, str) and not value.strip()


class Classes(TaskKind):
    """What both have in common."""

    optional = frozenset({"text_pair"})
    pipeline_tag = "text-classification"
    auto_class = "AutoModelForSequenceClassification"

    def stand_in_labels(self) -> list[str] | None:
        """See the base class."""
        return ["x", "y"]

    def label_faults(self, data: DataConfig, key: str, split: str, values: list) -> list[str]:
        """Labels of another type; strings beside numbers ("1" and 1 would be one class)."""
        if faults := super().label_faults(data, key, split, values):
            return faults
        first: dict[type, tuple[int, Any]] = {}
        for row, value in enumerate(values):
            for label in value if isinstance(value, list) else [value]:
                if label is not None:
                    first.setdefault(type(label), (row, label))
        if len(first) < 2:
            return []
        (a, one), (b, other) = list(first.values())[:2]
        return [
            f"{key}.label: {split}, column {data.label!r}: labels are strings or ids, not both, "
            f"but {rows_named([a])} holds {one!r:.60} and {rows_named([b])} {other!r:.60}"
        ]


class SingleLabel(Classes):
    """One class for each row."""

    label_type: ClassVar[LabelType] = "class"
    metrics = ("accuracy", "f1_macro", "f1_micro", "mcc")
    usual_metrics = ("accuracy", "f1_macro")
    decides = ("calibrate", "abstain")

    def fault(self, value: Any) -> str | None:
        """See the base class."""
        if isinstance(value, list):
            return (
                "a label (string or id) is wanted; for lists of them write problem_type: "
                "multi_label_classification"
            )
        if is_blank(value):
            return BLANK
        return None if isinstance(value, (str, int, bool)) else "a label (string or id) is wanted"

    def encode(self, value: Any, data: DataConfig) -> int:
        """The class id; `IGNORE` without a label or for one that the model does not know."""
        label = next(iter(labels_in(value)), None)
        if label is not None and label == data.unmarked:
            return allowed_id(self.task, data.marks, label)  # pyright: ignore
        return self.labels.index(label) if label in self.labels else IGNORE

    def decode(self, label: Any, tokens: list[str]) -> str | None:
        """The name of the class."""
        return shown_id(self.labels, self.task, label) if label >= 0 else None

    def answers(self, rows: SplitRows, values: Tensor) -> Answers:
        """See the base class; of rows that mark some classes only, any other is right."""
        answers, data = super().answers(rows, values), rows.data
        if data.unmarked is not None:
            marked = set(data.marks or [])
            answers.predictions = [
                data.unmarked if reference == data.unmarked and label not in marked else label
                for label, reference in zip(answers.predictions, answers.references, strict=True)
            ]
        return answers

    def teacher_loss(self, values: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of (N, L) logits to the teacher's probabilities; see `taught`."""
        known = labels != IGNORE
        return soft_cross_entropy(*taught(values[known], targets[known], labels[known])).sum()

    def read(self, values: Tensor) -> list[str]:
        """(N, L) logits to the label of the largest, or as the task's own thresholds say."""
        if isinstance(self.task, TaskConfig) and (strict := self.task.strict):
            return [rank_strict(row, self.labels, strict)[0]["label"] for row in values]
        return [self.labels[i] for i in values.argmax(-1).tolist()]

    def report(self, answers: Answers, scores: dict[str, Any]) -> dict[str, Any]:
        """Confusions and calibration."""
        return {
            "confusion": confusion(self.labels, answers.predictions, answers.references),
            "reliability": self.reliability(answers),
        }

    def truth(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return answers.values, ids_of(self.labels, answers.references)

    def scored(self, answers: Answers) -> list[tuple[float, bool]]:
        """See the base class."""
        right = map(eq, answers.predictions, answers.references)
        return list(zip(self.scores(answers.values), right, strict=True))

    def scores(self, values: Tensor) -> list[float]:
        """(N, L) logits to the score of what `read` says."""
        if isinstance(self.task, TaskConfig) and (strict := self.task.strict):
            ranked = [rank_strict(row, self.labels, strict)[0] for row in values]
            return [1.0 if one["label"] in strict else one["score"] for one in ranked]
        return self.chances(values).amax(-1).tolist()

    def feature(self) -> Any:
        """Label and score."""
        return ANSWER


class Ordinal(SingleLabel):
    """One of several classes in order, the lowest first."""

    metrics = ("quadratic_kappa", "mae", "accuracy", "f1_macro", "f1_micro", "mcc")
    usual_metrics = ("quadratic_kappa", "mae", "accuracy")
    ordered = True
    decides = ()

    def read(self, values: Tensor) -> list[str]:
        """(N, L) logits to the class in the middle of the distribution."""
        return [self.labels[i] for i in middle_class(values).tolist()]


class Tree(SingleLabel):
    """One leaf of a tree of labels; a row may say an inner node, and is then any leaf under it."""

    metrics = ("hierarchical_f1", "accuracy", "f1_macro", "f1_micro", "mcc")
    usual_metrics = ("hierarchical_f1", "accuracy")
    tree = True

    def encode(self, value: Any, data: DataConfig) -> int:
        """The id of the leaf, or of the set of those under an inner node."""
        label = next(iter(labels_in(value)), "")
        under = leaves_under(label, self.labels)
        partial = self.task.partial or [] if isinstance(self.task, TaskConfig) else []
        if len(under) == 1:
            return self.labels.index(under[0])
        if under in partial:
            return len(self.labels) + partial.index(under)
        return super().encode(value, data)

    def answers(self, rows: SplitRows, values: Tensor) -> Answers:
        """See the base class; a row that says an inner node is right for all that lies under it."""
        answers = super().answers(rows, values)
        inner = {node for label in self.labels for node in nodes_of(label)[:-1]}
        answers.predictions = [
            nodes_of(label)[: reference.count(SEPARATOR) + 1][-1] if reference in inner else label
            for label, reference in zip(answers.predictions, answers.references, strict=True)
        ]
        return answers

    def read(self, values: Tensor) -> list[str]:
        """(N, L) logits to the leaf of the best branch."""
        return [self.labels[i] for i in best_leaves(values, self.labels).tolist()]

    def scores(self, values: Tensor) -> list[float]:
        """(N, L) logits to the probability of that leaf."""
        best = best_leaves(values, self.labels)[:, None]
        return self.chances(values).gather(1, best)[:, 0].tolist()

    def report(self, answers: Answers, scores: dict[str, Any]) -> dict[str, Any]:
        """See the base class; of the rows that say no inner node."""
        inner = {node for label in self.labels for node in nodes_of(label)[:-1]}
        rows = [n for n, label in enumerate(answers.references) if label not in inner]
        sides = (answers.predictions, answers.references)
        leaves = [[side[n] for n in rows] for side in sides]
        return super().report(Answers(leaves[0], leaves[1], answers.values[rows]), scores)

    def feature(self) -> Any:
        """Label and score, and those of the nodes above."""
        return {**ANSWER, "path": datasets.List(ANSWER)}


class MultiLabel(Classes):
    """Any number of classes for each row."""

    label_type: ClassVar[LabelType] = "classes"
    metrics = ("f1_micro", "f1_macro")
    decides = ("calibrate", "threshold")

    def fault(self, value: Any) -> str | None:
        """See the base class."""
        if not isinstance(value, list):
            cells = isinstance(value, str) and value.lstrip().startswith("[")
            why = " (CSV has none; use JSON Lines)" if cells else ""
            return f"a list of labels is wanted{why}"
        if not all(isinstance(x, (str, int)) and not isinstance(x, bool) for x in value):
            return "a list of strings or ids is wanted"
        if any(map(is_blank, value)):
            return BLANK
        ids = [label for label in value if isinstance(label, int)]
        return "each id once in a list is wanted" if len(set(ids)) < len(ids) else None

    def encode(self, value: Any, data: DataConfig) -> list[float]:
        """0 or 1 for each label; NaN without a label."""
        present, missing = set(labels_in(value)), float("nan")
        return [missing if value is None else float(x in present) for x in self.labels]

    def decode(self, label: Any, tokens: list[str]) -> list[str]:
        """The names of the classes."""
        return [name for name, value in zip(self.labels, label, strict=True) if value == 1]

    def reference(self, value: Any, data: DataConfig) -> list[str]:
        """See the base class."""
        return labels_in(value)

    def teacher_loss(self, values: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy of (N, L) logits to the teacher's, a mean over the labels."""
        options: Any = {"reduction": "none"}
        errors = F.binary_cross_entropy_with_logits(values, targets.sigmoid(), **options)
        return (errors.mean(1) * (~labels.isnan()).any(1)).sum()

    def read(self, values: Tensor) -> list[list[str]]:
        """(N, L) logits to the labels whose probability reaches their threshold."""
        thresholds: Any = self.task.threshold
        if isinstance(self.task, TaskConfig):
            by_label = self.task.label_thresholds
            thresholds = torch.tensor([by_label[x] for x in self.labels], dtype=torch.float64)
        chosen = self.chances(values).double() >= thresholds
        return [[self.labels[i] for i in row.nonzero().squeeze(1).tolist()] for row in chosen]

    def report(self, answers: Answers, scores: dict[str, Any]) -> dict[str, Any]:
        """How often each label is rightly and wrongly set, and calibration."""
        counts = multi_label_confusion(self.labels, answers.predictions, answers.references)
        return {"labels": counts, "reliability": self.reliability(answers)}

    def truth(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """See the base class."""
        unknown = sorted({label for row in answers.references for label in row} - {*self.labels})
        binary = MultiLabelBinarizer(classes=[*self.labels, *unknown])
        true: Any = binary.fit_transform(answers.references)
        return F.pad(answers.values, (0, len(unknown)), value=-math.inf), torch.tensor(true)

    def chances(self, logits: Tensor) -> Tensor:
        """(n, L) logits -> probabilities, each by itself."""
        return logits.sigmoid()

    def scored(self, answers: Answers) -> list[tuple[float, bool]]:
        """See the base class; of the labels that are set."""
        ids = {label: i for i, label in enumerate(self.labels)}
        rows = zip(
            self.chances(answers.values).tolist(),
            answers.predictions,
            answers.references,
            strict=True,
        )
        return [
            (chances[ids[label]], label in expected)
            for chances, labels, expected in rows
            for label in labels
        ]

    def feature(self) -> Any:
        """A list of labels with scores."""
        return datasets.List(ANSWER)
