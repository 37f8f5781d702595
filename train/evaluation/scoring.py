"""Predictions of a split to scores: what the model said, row by row, against the raw labels.

References are read from the raw rows, not from the encoded labels: a label that the model does not
know counts as wrong instead of dropping out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ...modeling.task_config import TaskConfig
from ..data.loading import Source
from ..data.tokenization import tokenize
from ..errors import UserError
from ..kinds import SplitRows, TaskKind, kind_of
from .metrics import compute, main_metric

# (task, predictions, references) -> metric to value; of both lists one entry per labelled row
MetricFunction = Callable[[str, list, list], dict[str, float]]


@dataclass
class EvalSplit:
    """One split of a source, ready for evaluation.

    Args:
        source: the raw rows and the tasks over them.
        split: train, validation or test.
        rows: the same rows tokenized.
    """

    source: Source
    split: str
    rows: datasets.Dataset

    def of_task(self, task: str, config: TaskConfig) -> tuple[TaskKind, SplitRows]:
        """The kind by which a task is scored, and the rows as it reads them.

        Args:
            task: name of the task.
            config: the task as the model knows it.
        """
        rows = self.source.split_rows(task, self.source.splits[self.split][:], config)
        rows.tokenized = self.rows
        return kind_of(config).scored_as(self.source.tasks[task]), rows


def eval_splits(
    sources: list[Source],
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    configs: dict[str, TaskConfig],
) -> dict[str, EvalSplit]:
    """The sources that have `split`, tokenized, by source name.

    A language model hides tokens of its rows: tasks that share them with it are a source of their
    own here, so that they are scored on whole texts, as they answer in use.

    Args:
        sources: checked sources.
        split: train, validation or test.
        tokenizer: the model's tokenizer.
        configs: the model's tasks.
    """
    splits = {}
    for source in chain.from_iterable(map(_with_whole_texts, sources)):
        if split in source.splits:
            of_source = {name: configs[name] for name in source.tasks}
            rows = tokenize(source, split, tokenizer, configs=of_source, longest_first=True)
            splits[source.name] = EvalSplit(source, split, rows)
    return splits


def _with_whole_texts(source: Source) -> list[Source]:
    """The source; or its tasks that read whole texts, and its language models."""
    parts = [
        {n: task for n, task in source.tasks.items() if kind_of(task).labels_from_tokens is hides}
        for hides in (False, True)
    ]
    return [replace(source, tasks=tasks) for tasks in parts if tasks] if all(parts) else [source]


def score(
    task: str,
    config: TaskConfig,
    part: EvalSplit,
    predictions: np.ndarray,
    compute_metrics: MetricFunction | None = None,
) -> dict:
    """Metrics of one task on one split.

    Args:
        task: name of the task.
        config: the task as the model knows it.
        part: the split.
        predictions: one entry per row of `part.rows`: what the task's kind keeps of the logits, or
            the embeddings of a group (g, D).
        compute_metrics: more metrics of the caller's; not called for masked LM, which has no
            answers beside references.

    Returns:
        metric to value, the main metric first; see `metrics.compute`.

    Raises:
        UserError: `compute_metrics` gives something else than numbers under names of its own.
    """
    kind, rows = part.of_task(task, config)
    names = part.source.tasks[task].metrics or kind.default_metrics
    if kind.scores_itself:
        scores = kind.score(predictions, rows)
        return {name: scores[name] for name in names}
    answered = kind.answers(rows, as_tensor(predictions))
    read, references = answered.predictions, answered.references
    scores = compute(names, config, read, references, answered.entities)
    if compute_metrics is None:
        return scores
    return scores | _own_metrics(task, compute_metrics(task, read, references), scores)


def scores_by_group(
    task: str, config: TaskConfig, part: EvalSplit, predictions: np.ndarray
) -> dict[str, dict[str, Any]]:
    """`score` of the rows of each value of the task's `data.group_by`.

    Args:
        task: name of the task.
        config: the task as the model knows it.
        part: the split.
        predictions: as `score` takes them.

    Returns:
        value as text to `rows`, a number, and `scores`, those that are numbers; empty where the
        task has no groups, or no row of any group has a label.
    """
    column = part.source.tasks[task].data.group_by
    if column is None:
        return {}
    numbers_of: dict[str, list[int]] = {}
    for number, value in enumerate(part.source.splits[part.split][column][:]):
        numbers_of.setdefault(str(value), []).append(number)
    groups = {}
    for value, numbers in sorted(numbers_of.items()):
        group, places = _of_rows(part, numbers)
        kind, rows = group.of_task(task, config)
        said = predictions[places]
        if kind.scores_itself or kind.answers(rows, as_tensor(said)).references:
            scores = score(task, config, group, said)
            numeric = {name: v for name, v in scores.items() if not isinstance(v, dict)}
            groups[value] = {"rows": len(numbers), "scores": numeric}
    return groups


def _of_rows(part: EvalSplit, numbers: list[int]) -> tuple[EvalSplit, list[int]]:
    """The part with these raw rows alone, and where their tokenized rows stood."""
    number_of = {old: new for new, old in enumerate(numbers)}
    places = [place for place, row in enumerate(part.rows["row"][:]) if row in number_of]
    columns = part.rows.select(places)[:]
    columns["row"] = [number_of[row] for row in columns["row"]]
    rows = datasets.Dataset.from_dict(columns, features=part.rows.features)
    splits = {part.split: part.source.splits[part.split].select(numbers)}
    return EvalSplit(replace(part.source, splits=splits), part.split, rows), places


def _own_metrics(task: str, metrics: Any, scores: dict[str, Any]) -> dict[str, float]:
    """What a caller's function gave, once it is known to be metrics."""
    if not isinstance(metrics, dict):
        fault = f"task {task}: a {type(metrics).__name__} was returned; return a dict of numbers"
        raise UserError("compute_metrics", [fault])
    faults = [
        f"task {task}: {name!r} is {value!r:.60}, not a number"
        for name, value in metrics.items()
        if not isinstance(value, (int, float, np.number))
    ]
    faults += [
        f"task {task}: {name!r} is there already; give it another name"
        for name in metrics
        if name in scores
    ]
    if faults:
        raise UserError("compute_metrics", faults)
    return {str(name): float(value) for name, value in metrics.items()}


def as_tensor(predictions: np.ndarray) -> torch.Tensor:
    """In float32, on the CPU."""
    return torch.from_numpy(np.ascontiguousarray(predictions)).float()


def macro(scores: dict[str, dict[str, Any]]) -> float:
    """Mean over tasks of the main metric, the first of each task for which higher is better."""
    return float(np.mean([values[main_metric(list(values))] for values in scores.values()]))
