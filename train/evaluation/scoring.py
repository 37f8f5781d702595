"""Predictions of a split to scores: what the model said, row by row, against the raw labels.

References are read from the raw rows, not from the encoded labels: a label that the model does not
know counts as wrong instead of dropping out.
"""

from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...modeling.configuration_polyhead import TaskConfig
from ...modeling.decoding import (
    decode_entities,
    even_scores,
    gold_entities,
    read_scores,
    unit_tags,
    word_tags,
)
from ...modeling.windows import Span, split_words, units_of
from ..data.labels import labels_in
from ..data.loading import Source
from ..data.tags import row_words, tags_in
from ..data.tokenization import first_tokens_of, tokenize
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
    return compute(names, config, found.given, found.wanted, found.entities)


@dataclass
class Answers:
    """What a model said about the labelled rows of a split.

    Args:
        given: label strings, lists of them, numbers, or the tags of words.
        wanted: what the rows say.
        values: the logits that `given` was read from, (N, L) or (N, g, D); of a token task
            log-probabilities (U, L) of the units that have a label.
        unit_tags: of a token task, the labels of those units.
        entities: of a token task with a tag scheme, the entities of the model and of the rows, as
            (row, kind, start, end), characters.
    """

    given: list
    wanted: list
    values: Any
    unit_tags: list[str] = field(default_factory=list)
    entities: tuple[set[tuple], set[tuple]] | None = None


def answers(task: str, config: TaskConfig, part: EvalSplit, predictions: np.ndarray) -> Answers:
    """Predictions of a split against its raw labels; rows without a label are left out.

    Args:
        task: name of a task with labels.
        config: the task as the model knows it.
        part: the split.
        predictions: one entry per row of `part.rows`, see `score`.
    """
    values = torch.from_numpy(np.ascontiguousarray(predictions)).float()
    if config.head == "token_classification":
        return _token_answers(task, config, part, values)
    references, data = _references(part, task), part.source.tasks[task].data
    windows, rows = part.rows["window"][:], part.rows["row"][:]
    first = [i for i, window in enumerate(windows) if window == 0]
    rows = [rows[i] for i in first]
    kept = [i for i, row in zip(first, rows, strict=True) if not _missing(references[row])]
    wanted = [references[row] for row in rows if not _missing(references[row])]
    if config.problem_type == "regression" or config.head == "embedding":
        low, high = data.label_range or (0.0, 1.0)
        wanted = [(float(value) - low) / (high - low) for value in wanted]
    return Answers(_read_answers(config, values[kept]), wanted, values[kept])


def _token_answers(task: str, config: TaskConfig, part: EvalSplit, values: Tensor) -> Answers:
    """What the pipeline answers to the texts of a split, against the words of its rows.

    Args:
        task: name of the task.
        config: the task as the model knows it.
        part: the split.
        values: (N, T, L) logits of the windows, in the order of `part.rows`.
    """
    rows, recipe = part.source.splits[part.split][:], part.source.tasks[task]
    labels, scheme = config.labels or [], part.source.scheme_of(task, config)
    windows: dict[int, list[int]] = {}
    for i in np.argsort(part.rows["window"][:], kind="stable").tolist():
        windows.setdefault(part.rows["row"][i], []).append(i)
    found = Answers([], [], [], entities=(set(), set()) if config.scheme else None)
    words, counts = part.rows["words"][:], part.rows["word_counts"][:]
    texts = zip(row_words(recipe, part.source.text, rows), rows[recipe.data.label], strict=True)
    for row, ((text, word_spans), tags) in enumerate(texts):
        tags = tags_in(tags)
        if tags is None:
            continue
        first_tokens = [first_tokens_of(words[i], counts[i]) for i in windows[row]]
        units, reads = units_of(split_words(text), first_tokens)
        scores = even_scores(len(units), len(labels))
        for i, pairs in zip(windows[row], reads, strict=True):
            read_scores(scores, values[i], pairs)
        entities = decode_entities(text, units, scores, labels, config.scheme, config.signs)
        answered = word_tags(entities, word_spans, scheme)
        labelled = [word for word, tag in enumerate(tags) if tag is not None]
        found.given.append([answered[word] or "" for word in labelled])
        found.wanted.append([tags[word] for word in labelled])
        of_units = unit_tags(text, units, word_spans, tags, scheme, config.scheme)
        known = [unit for unit, tag in enumerate(of_units) if tag is not None]
        found.values.append(scores[known])
        found.unit_tags += [str(of_units[unit]) for unit in known]
        if found.entities is not None and scheme is not None:
            true = gold_entities(text, word_spans, tags, scheme)
            ends = [(start, end) for _, start, end in true]
            unknown = [  # words without a label, and what of an entity goes on from one
                span
                for span, tag in zip(word_spans, tags, strict=True)
                if tag is None or (tag != "O" and not _meets(span, ends))
            ]
            spans = [(e["entity_group"], e["start"], e["end"]) for e in entities]
            found.entities[0].update((row, *x) for x in spans if not _meets(x[1:], unknown))
            found.entities[1].update((row, *x) for x in true)
    return found


def _meets(span: Span, others: list[Span]) -> bool:
    """Has a character in common with one of the others."""
    return any(start < span[1] and span[0] < end for start, end in others)


def macro(scores: dict[str, dict[str, Any]]) -> float:
    """Mean over tasks of the main metric, the first of each task for which higher is better."""
    return float(np.mean([values[main_metric(list(values))] for values in scores.values()]))


def _references(part: EvalSplit, task: str) -> list:
    config, column = part.source.configs[task], part.source.tasks[task].data.label
    values = part.source.splits[part.split][:][column]
    if config.problem_type == "multi_label_classification":
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
