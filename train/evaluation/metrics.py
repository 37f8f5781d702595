"""Metrics as `evaluate.Metric`s that need no download.

Each takes plain Python values (label strings, numbers, lists of tags), so the same classes serve
the trainer, `polyhead evaluate` and anybody with two lists in hand. A reference that the model
cannot know, a label unseen in training, is just a string that differs.
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from inspect import isfunction
from numbers import Real
from typing import Any

import datasets
import evaluate
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.preprocessing import MultiLabelBinarizer

from ...modeling.hierarchy import nodes_of
from ...modeling.tables import Table
from ...modeling.tags import spans_of
from ...modeling.task_config import TaskConfig
from ..kinds import TaskKind, kind_of
from ..kinds.base import LabelType
from .entity_scores import entity_scores

TEXT = datasets.Value("string")
NUMBER = datasets.Value("float64")
LISTS = datasets.List(TEXT)


class _Metric(evaluate.Metric):
    """An `evaluate.Metric` over values of one kind."""

    feature: Any = TEXT
    about = ""
    source = ""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.about,
            citation=self.source,
            inputs_description=f"predictions, references: {self.feature}",
            features=datasets.Features({"predictions": self.feature, "references": self.feature}),
        )


class Accuracy(_Metric):
    """Share of predictions equal to their reference."""

    about = "Share of predictions equal to their reference."

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        hits = sum(p == r for p, r in zip(predictions, references, strict=True))
        return {"accuracy": hits / len(references)}


class _F1(_Metric):
    """F1 over lists of labels: one label a row, or any number (multi-label).

    Macro is the mean over the labels that occur in the references or the predictions.
    """

    feature = LISTS
    average = ""
    source = "scikit-learn, f1_score"

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict:
        labels = sorted({label for row in [*predictions, *references] for label in row})
        if not labels:  # nothing to find and nothing found
            return {f"f1_{self.average}": 1.0}
        binary = MultiLabelBinarizer(classes=labels)
        score = sklearn_metrics.f1_score(
            binary.fit_transform(references),
            binary.fit_transform(predictions),
            average=self.average,
            zero_division=0.0,  # pyright: ignore[reportArgumentType]
        )
        return {f"f1_{self.average}": float(score)}


class F1Macro(_F1):
    """Mean over labels of each label's F1."""

    average = "macro"
    about = "Mean over labels of each label's F1."


class F1Micro(_F1):
    """F1 over all label decisions together."""

    average = "micro"
    about = "F1 over all label decisions together."


class MCC(_Metric):
    """Matthews correlation coefficient, 0 when predictions or references hold one class only."""

    about = "Matthews correlation coefficient (Matthews 1975)."
    source = "scikit-learn, matthews_corrcoef"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"mcc": float(sklearn_metrics.matthews_corrcoef(references, predictions))}


class _Correlation(_Metric):
    """A correlation of two lists of numbers, 0 where one of them is constant."""

    feature = NUMBER
    name_ = ""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        function = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[self.name_]
        if len(references) < 2 or len(set(predictions)) < 2 or len(set(references)) < 2:
            return {self.name_: 0.0}
        with warnings.catch_warnings():  # nearly constant input: the value is still the answer
            warnings.simplefilter("ignore")
            return {self.name_: float(function(predictions, references).statistic)}


class Pearson(_Correlation):
    """Pearson's r."""

    name_ = "pearson"
    about = "Pearson's r; 0 where a list is constant."


class Spearman(_Correlation):
    """Spearman's rank correlation."""

    name_ = "spearman"
    about = "Spearman's rank correlation; 0 where a list is constant."


class MSE(_Metric):
    """Mean squared error."""

    feature = NUMBER
    about = "Mean squared error."

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"mse": float(sklearn_metrics.mean_squared_error(references, predictions))}


class _Ordered(_Metric):
    """A metric of classes in order; one that the model does not know is as far off as can be.

    Args:
        labels: in their order; default one to five stars.
        kwargs: of `evaluate.Metric`.
    """

    def __init__(self, labels: Sequence[str] = ("1", "2", "3", "4", "5"), **kwargs: Any) -> None:
        self.labels = list(labels)
        super().__init__(**kwargs)

    def _ranks(self, predictions: list[str], references: list[str]) -> tuple[list, list]:
        """Predictions and references as ranks from 0."""
        rank = {label: number for number, label in enumerate(self.labels)}
        last = len(rank) - 1
        ranks = [rank[label] for label in predictions]
        true = [
            rank.get(label, 0 if answer > last / 2 else last)
            for answer, label in zip(ranks, references, strict=True)
        ]
        return ranks, true


class MAE(_Ordered):
    """Mean distance of classes in order."""

    about = "Mean number of classes between prediction and reference."

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        ranks, true = self._ranks(predictions, references)
        return {"mae": float(sklearn_metrics.mean_absolute_error(true, ranks))}


class QuadraticKappa(_Ordered):
    """Cohen's kappa with squared distances, 0 when all rows hold one class (Cohen 1968)."""

    about = "Cohen's kappa, weighted by squared distances; 0 when all rows hold one class."
    source = "scikit-learn, cohen_kappa_score"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        ranks, true = self._ranks(predictions, references)
        if len({*ranks, *true}) < 2:
            return {"quadratic_kappa": 0.0}
        known = list(range(len(self.labels)))
        kappa = sklearn_metrics.cohen_kappa_score(true, ranks, labels=known, weights="quadratic")
        return {"quadratic_kappa": float(kappa)}


class HierarchicalF1(_Metric):
    """F1 over the nodes of paths `a/b/c`: those on the way to the answer beside the true ones."""

    about = "F1 over all nodes on the paths of predictions and references."
    source = "Kiritchenko et al. 2006, Learning and evaluation in the presence of class hierarchies"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        pairs = [
            (set(nodes_of(p)), set(nodes_of(r)))
            for p, r in zip(predictions, references, strict=True)
        ]
        hits = sum(len(said & true) for said, true in pairs)
        return {"hierarchical_f1": 2 * hits / sum(len(said) + len(true) for said, true in pairs)}


class TokenAccuracy(_Metric):
    """Share of words with the right tag, over all words of all rows."""

    feature = LISTS
    about = "Share of words with the right tag."

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict:
        pairs = [
            (p, r)
            for row, tags in zip(predictions, references, strict=True)
            for p, r in zip(row, tags, strict=True)
        ]
        hits = sum(p == r for p, r in pairs)
        return {"token_accuracy": hits / max(1, len(pairs))}


class EntityF1(_Metric):
    """F1 over entities whose kind and both ends are right (strict; CoNLL-2003).

    Takes rows of tags. Gives `entity_f1`, `precision`, `recall`, and `per_type` with the same and
    `support` for each kind of entity. Equal to seqeval in strict mode.
    """

    feature = LISTS
    about = "F1 over entities, strict: kind and both ends."
    source = "Tjong Kim Sang and De Meulder 2003 (CoNLL-2003 shared task)"

    def __init__(self, scheme: str = "iob2", **kwargs: Any) -> None:
        self.scheme = scheme
        super().__init__(**kwargs)

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict:
        predicted, true = (
            {(row, *span) for row, tags in enumerate(rows) for span in spans_of(tags, self.scheme)}
            for rows in (predictions, references)
        )
        return entity_scores(predicted, true)


METRICS: Table[Callable[[], Any]] = Table(
    "metric",
    {
        "accuracy": Accuracy,
        "f1_macro": F1Macro,
        "f1_micro": F1Micro,
        "mcc": MCC,
        "mae": MAE,
        "quadratic_kappa": QuadraticKappa,
        "hierarchical_f1": HierarchicalF1,
        "pearson": Pearson,
        "spearman": Spearman,
        "mse": MSE,
        "entity_f1": EntityF1,
        "token_accuracy": TokenAccuracy,
    },
)
LOWER_IS_BETTER = {"mae", "mse", "perplexity"}
HUB_TYPES = {  # names of the Hub's own metrics, for a model's index; others go by ours
    "f1_macro": "f1",
    "f1_micro": "f1",
    "entity_f1": "f1",
    "token_accuracy": "accuracy",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
FOR_LABELS: dict[str, frozenset[str]] = {}  # users' metrics, and the types of labels they read
Function = Callable[[list, list], float]


class _FunctionMetric:
    """A user's function, asked as our metrics are."""

    def __init__(self, name: str, function: Function) -> None:
        self.name, self.function = name, function

    def compute(self, *, predictions: list, references: list) -> dict[str, float]:
        """`{name: value}`.

        Raises:
            ValueError: the function gives no number.
        """
        value = self.function(predictions, references)
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"metric {self.name} gave {value!r:.80}; it must give a number")
        return {self.name: float(value)}


def register_metric(
    name: str,
    function: Function,
    *,
    labels: Collection[LabelType],
    lower_is_better: bool = False,
) -> None:
    """Add a metric that tasks can name under `metrics`.

    Args:
        name: for the recipe.
        function: called as `function(predictions, references)`, two lists of equal length, to a
            number. Entries are strings for labels `class`, lists of strings for `classes` and
            `tags` (one for each word), numbers for `number`.
        labels: what stands in the column of labels of tasks that it fits: some of class, classes,
            tags, number, index.
        lower_is_better: such a metric does not enter the macro score.

    Raises:
        ValueError: the name is taken or has other characters than lower-case letters, digits and _;
            `function` is no function, or `labels` names something else.
    """
    if not isfunction(function):
        raise ValueError(f"metric {name!r} is {function!r}; give a function")
    allowed = ("class", "classes", "tags", "number", "index")
    if not labels or isinstance(labels, str) or not set(labels) <= set(allowed):
        raise ValueError(f"metric {name!r}: labels is {labels!r}; allowed: {', '.join(allowed)}")
    METRICS.add(name, partial(_FunctionMetric, name, function), function)
    FOR_LABELS[name] = frozenset(labels)
    if lower_is_better:
        LOWER_IS_BETTER.add(name)


def metrics_for(kind: TaskKind) -> tuple[str, ...]:
    """The metrics that fit a kind of task: its own, and those of users for its type of labels."""
    if kind.scores_itself:
        return kind.metrics
    added = (name for name, types in FOR_LABELS.items() if kind.label_type in types)
    return (*kind.metrics, *added)


def main_metric(names: Sequence[str]) -> str:
    """The first metric for which higher is better: the one that enters the macro score."""
    return next((name for name in names if name not in LOWER_IS_BETTER), names[0])


def compute(
    names: Sequence[str],
    task: TaskConfig,
    predictions: list,
    references: list,
    entities: tuple[set[tuple], set[tuple]] | None = None,
) -> dict[str, Any]:
    """All metrics of one task.

    Args:
        names: metric names.
        task: the task.
        predictions: label strings, lists of them (multi-label), numbers, or lists of tags.
        references: the same.
        entities: of a token task, those of the model and the true ones, as (row, kind, start, end);
            without them they are read from the tags.

    Returns:
        metric name to value; `entity_f1` brings `precision`, `recall` and `per_type` along.
    """
    values: dict[str, Any] = {}
    single = kind_of(task).label_type == "class"
    for name in names:
        if name == "entity_f1" and entities is not None:
            values.update(entity_scores(*entities))
            continue
        metric = _metric(name, task)
        sides = {"predictions": predictions, "references": references}
        if single and isinstance(metric, _F1):  # which counts lists of labels
            sides = {side: [[label] for label in labels] for side, labels in sides.items()}
        values.update(metric.compute(**sides) or {})
    return values


def _metric(name: str, task: TaskConfig) -> Any:
    """A metric, told of the task what it needs to know."""
    if name == "entity_f1":
        return EntityF1(str(task.scheme))
    made = METRICS[name]
    return made(task.labels or []) if made in (MAE, QuadraticKappa) else made()
