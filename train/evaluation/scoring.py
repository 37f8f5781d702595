"""Predictions of a split to scores: what the model said, row by row, against the raw labels.

References are read from the raw rows, not from the encoded labels: a label that the model does not
know counts as wrong instead of dropping out.
"""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...modeling.configuration_polyhead import TaskConfig
from ...modeling.decoding import decode_tags
from ..data.labels import labels_in
from ..data.loading import Source
from ..data.tokenization import tokenize
from .metrics import compute, default_metrics, main_metric


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


def eval_splits(
    sources: list[Source],
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    configs: dict[str, TaskConfig],
) -> dict[str, EvalSplit]:
    """The sources that have `split`, tokenized, by source name.

    Args:
        sources: checked sources.
        split: train, validation or test.
        tokenizer: the model's tokenizer.
        configs: the model's tasks.
    """
    found = {}
    for source in sources:
        if split in source.splits:
            own = {name: configs[name] for name in source.tasks}
            rows = tokenize(source, split, tokenizer, configs=own, longest_first=True)
            found[source.name] = EvalSplit(source, split, rows)
    return found


def score(task: str, config: TaskConfig, part: EvalSplit, predictions: np.ndarray) -> dict:
    """Metrics of one task on one split.

    Args:
        task: name of the task.
        config: the task as the model knows it.
        part: the split.
        predictions: one entry per row of `part.rows`: logits, embeddings of a group (g, D), or
            (found, masked) counts for masked LM.

    Returns:
        metric to value, the main metric first; see `metrics.compute`.
    """
    recipe = part.source.tasks[task]
    scored = recipe.data.label is not None
    names = recipe.metrics or default_metrics(config, scored=scored)
    if config.head == "masked_lm":
        found, masked = predictions.sum(0)
        return {"token_accuracy": float(found / max(1, masked))}
    if config.head == "embedding" and not scored:
        first = [i for i, window in enumerate(part.rows["window"][:]) if window == 0]
        return {"accuracy": _nearest_is_own(torch.from_numpy(predictions[first]).float())}
    if config.loss == "mse":
        return {"cosine": _cosine_to_teacher(part, task, predictions)}
    found = answers(task, config, part, predictions)
    return compute(names, config, found.given, found.wanted)


@dataclass
class Answers:
    """What a model said about the labelled rows of a split.

    Args:
        given: label strings, lists of them, numbers, or the tags of words.
        wanted: what the rows say.
        values: the logits that `given` was read from, (N, L) or (N, g, D); of a token task the
            words' log-probabilities, (W, L) for each row.
    """

    given: list
    wanted: list
    values: Any


def answers(task: str, config: TaskConfig, part: EvalSplit, predictions: np.ndarray) -> Answers:
    """Predictions of a split against its raw labels; rows without a label are left out.

    Args:
        task: name of a task with labels.
        config: the task as the model knows it.
        part: the split.
        predictions: one entry per row of `part.rows`, see `score`.
    """
    values = torch.from_numpy(np.ascontiguousarray(predictions)).float()
    references, data = _references(part, task), part.source.tasks[task].data
    if config.head == "token_classification":
        words = _word_scores(task, config, part, values)
        tags = [decode_tags(row, config.labels or [], config.scheme) for row in words]
        return Answers(tags, references, words)
    windows, rows = part.rows["window"][:], part.rows["row"][:]
    first = [i for i, window in enumerate(windows) if window == 0]
    rows = [rows[i] for i in first]
    kept = [i for i, row in zip(first, rows, strict=True) if not _missing(references[row])]
    wanted = [references[row] for row in rows if not _missing(references[row])]
    if config.problem_type == "regression" or config.head == "embedding":
        low, high = data.label_range or (0.0, 1.0)
        wanted = [(float(value) - low) / (high - low) for value in wanted]
    return Answers(_read_answers(config, values[kept]), wanted, values[kept])


def _word_scores(task: str, config: TaskConfig, part: EvalSplit, values: Tensor) -> list[Tensor]:
    """Log-probabilities (W, L) of the words of every row, put together from its windows.

    A word that has no sub-token of its own keeps even scores.
    """
    lengths = [len(words) for words in part.source.words_of(part.split, task)]
    scores = [torch.zeros(length, len(config.labels or [])) for length in lengths]
    logs = values.log_softmax(-1)
    for i, (row, read) in enumerate(zip(part.rows["row"], part.rows[f"words_{task}"], strict=True)):
        places = [token for token, word in enumerate(read) if word >= 0]
        scores[row][[read[token] for token in places]] = logs[i, places]
    return scores


def macro(scores: dict[str, dict[str, Any]]) -> float:
    """Mean over tasks of the main metric, the first of each task for which higher is better."""
    return float(np.mean([values[main_metric(list(values))] for values in scores.values()]))


def _references(part: EvalSplit, task: str) -> list:
    config, column = part.source.configs[task], part.source.tasks[task].data.label
    values = part.source.splits[part.split][:][column]
    if config.head == "token_classification" or config.problem_type == "multi_label_classification":
        return [None if value is None else labels_in(value) for value in values]
    if config.problem_type == "single_label_classification":
        return [None if value is None else str(value) for value in values]
    return values


def _missing(value: Any) -> bool:
    return value is None or value != value  # NaN is not equal to itself


def _read_answers(config: TaskConfig, values: Tensor) -> list:
    """Logits (rows, L) or groups (rows, g, D) to labels, lists of labels or numbers."""
    labels = config.labels or []
    if config.loss == "margin_mse":
        return ((values[:, 1] - values[:, 2]) * values[:, 0]).sum(-1).tolist()
    if config.head == "embedding":
        return F.cosine_similarity(values[:, 0], values[:, 1]).tolist()
    if config.problem_type == "regression":
        return values[:, 0].tolist()
    if config.problem_type == "multi_label_classification":
        chosen = values.sigmoid() >= config.threshold
        return [[labels[i] for i in row.nonzero().squeeze(1).tolist()] for row in chosen]
    return [labels[i] for i in values.argmax(-1).tolist()]


def _cosine_to_teacher(part: EvalSplit, task: str, predictions: np.ndarray) -> float:
    """Mean cosine of the embeddings (rows, 1, D) to the vectors that the rows hold."""
    wanted = torch.tensor(part.rows[f"labels_{task}"][:])
    found = torch.from_numpy(np.ascontiguousarray(predictions[:, 0])).float()
    return float(F.cosine_similarity(found, wanted).mean())


def _nearest_is_own(groups: Tensor) -> float:
    """Share of anchors whose nearest candidate, of all texts but anchors, is their own positive."""
    unit = F.normalize(groups, dim=-1)
    candidates = unit[:, 1:].transpose(0, 1).flatten(0, 1)
    own = torch.arange(len(groups))
    hits = [
        (anchors @ candidates.T).argmax(1) == number
        for anchors, number in zip(unit[:, 0].split(1024), own.split(1024), strict=True)
    ]
    return float(torch.cat(hits).float().mean())
