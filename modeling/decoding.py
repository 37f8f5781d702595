# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Logits to what a user reads: labels, entities; and the tags that a head learns them from.

Token classification goes one way only: a text is cut into words, the words into units that are read
at one sub-token each (`windows.py`), and a head's scores of the units are decoded to entities in
characters. The pipeline answers with them, evaluation scores them against the entities of the data,
and in training `unit_tags` says which tags of the units would be decoded to those of the data.

What a task decides beside its logits is decided here: labels from their thresholds on
(`decode_classes`), and no answer below a score (`if_sure`, `sure_entities`).

Shapes: `U` units, `L` labels.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .tags import Entity, decode_tags, spans_of, write_tags
from .windows import Reads, Span


def even_scores(units: int, labels: int, strict: int = 0) -> Tensor:
    """(U, L) log-probabilities that say nothing: what a word without a sub-token keeps."""
    scores = torch.full((units, labels), -math.log(labels), dtype=torch.float32)
    scores[:, : labels - strict] = -math.log(labels - strict)
    return scores


def log_scores(logits: Tensor, strict: int = 0) -> Tensor:
    """(..., L) log-probabilities.

    Those of the last `strict` labels are among all of them, those of the others among themselves:
    they are what they were when there were no more.
    """
    if not strict:
        return logits.log_softmax(-1)
    older = logits[..., :-strict].log_softmax(-1)
    return torch.cat([older, logits.log_softmax(-1)[..., -strict:]], -1)


def read_scores(scores: Tensor, logits: Tensor, reads: Reads, strict: int = 0) -> None:
    """Put the log-probabilities of the units that are read in a window into `scores`.

    Args:
        scores: (U, L) of the text, changed.
        logits: (T, L) of the window's tokens.
        reads: (unit, token).
        strict: how many labels have thresholds of their own.
    """
    if reads:
        units, tokens = zip(*reads, strict=True)
        scores[list(units)] = log_scores(logits[list(tokens)], strict)


def decode_strict(
    text: str,
    units: list[list[Span]],
    scores: Tensor,
    labels: list[str],
    scheme: str | None,
    signs: list[str] | None,
    strict: dict[str, float],
) -> list[dict[str, Any]]:
    """As `decode_entities`: the older labels as if there were no others, then those of `strict`.

    An entity of a type in `strict` is put where its score reaches the threshold, in place of older
    ones that share a character with it.

    Args:
        text: the text.
        units: character spans of the words of each unit.
        scores: (U, L), as `log_scores` gives them.
        labels: label strings; those of `strict` are the last.
        scheme: tag scheme.
        signs: as of `decode_entities`.
        strict: type of entity to threshold.
    """
    count = sum((x if scheme is None else x[2:]) in strict for x in labels)
    older = decode_entities(text, units, scores[:, :-count], labels[:-count], scheme, signs)
    own = scores[:, -count:]
    rest = (1 - own.exp().sum(-1, keepdim=True)).clamp(min=1e-30).log()
    own = torch.cat([rest, own], -1)
    entities = decode_entities(text, units, own, ["O", *labels[-count:]], scheme, signs)
    put = [e for e in entities if e["score"] >= strict.get(e["entity_group"], math.inf)]
    apart = [
        e for e in older if not any(p["start"] < e["end"] and e["start"] < p["end"] for p in put)
    ]
    return sorted([*apart, *put], key=lambda entity: entity["start"])


def rank_strict(
    logits: Tensor, labels: list[str], strict: dict[str, float]
) -> list[dict[str, Any]]:
    """(L,) logits of one text -> labels and scores, the answer first.

    Labels of `strict` that reach their thresholds come before the older ones, which are in the
    order and have the scores that they would have without them; the other ones come last.
    """
    logits = logits.float()
    older, own = logits[: -len(strict)].softmax(-1), logits.softmax(-1)[-len(strict) :]

    def ranked(scores: Tensor, names: list[str]) -> list[dict[str, Any]]:
        order = scores.argsort(descending=True, stable=True).tolist()
        return [{"label": names[i], "score": float(scores[i])} for i in order]

    last = ranked(own, labels[-len(strict) :])
    put = [entry for entry in last if entry["score"] >= strict[entry["label"]]]
    below = [entry for entry in last if entry not in put]
    return [*put, *ranked(older, labels[: -len(strict)]), *below]


def decode_entities(
    text: str,
    units: list[list[Span]],
    scores: Tensor,
    labels: list[str],
    scheme: str | None,
    signs: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Entities of one text as HF's aggregated pipeline gives them.

    Args:
        text: the text.
        units: character spans of the words of each unit.
        scores: (U, L) log-probabilities.
        labels: label strings.
        scheme: tag scheme; None gives each word on its own (part of speech).
        signs: signs that an entity may begin or end with, where they share a sub-token with other
            words; None for all.

    Returns:
        dicts with `entity_group`, `score` (mean probability of its units' tags), `word` (the text
        as written), `start`, `end` (characters).
    """
    tags = decode_tags(scores, labels, scheme)
    index = {label: i for i, label in enumerate(labels)}
    chosen = [float(scores[u, index[tag]].exp()) for u, tag in enumerate(tags)]
    if scheme is None:
        entities = [
            (tag, score, start, end)
            for tag, score, unit in zip(tags, chosen, units, strict=True)
            for start, end in unit
        ]
    else:
        entities = [
            (
                kind,
                sum(chosen[first:last]) / (last - first),
                *_ends(text, units[first:last], signs),
            )
            for kind, first, last in spans_of(tags, scheme)
        ]
    return [
        {"entity_group": kind, "score": score, "word": text[start:end], "start": start, "end": end}
        for kind, score, start, end in entities
    ]


def _ends(text: str, units: list[list[Span]], signs: list[str] | None) -> Span:
    """First and last character of an entity, without signs that are none of its own.

    A unit of several words has one tag: that `5` of `£5` is an amount, or that `£5` is, looks the
    same. Signs that no entity of the training data begins or ends with are left out.
    """

    def foreign(word: Span) -> bool:
        sign = text[word[0] : word[1]]
        return signs is not None and is_sign(sign) and sign not in signs

    first, last = units[0], units[-1]
    begin, end = first[0], last[-1]
    if len(first) > 1:
        begin = next((word for word in first if not foreign(word)), begin)
    if len(last) > 1:
        end = next((word for word in reversed(last) if not foreign(word)), end)
    return begin[0], end[1]


def is_sign(word: str) -> bool:
    """Has neither letters nor digits."""
    return not any(character.isalnum() for character in word)


def gold_entities(
    text: str, words: list[Span], tags: list[str | None], scheme: str
) -> list[Entity]:
    """Entities in characters of given words and their tags; None is no label.

    Args:
        text: the text.
        words: character spans.
        tags: one for each word.
        scheme: the tag scheme.
    """
    spans = spans_of([tag or "O" for tag in tags], scheme)
    entities = []
    for kind, first, last in spans:
        start, end = words[first][0], words[last - 1][1]
        inner = text[start:end].strip()  # a word may come with white space
        start += text[start:end].find(inner)
        entities.append((kind, start, start + len(inner)))
    return entities


def unit_tags(
    text: str,
    units: list[list[Span]],
    words: list[Span],
    tags: list[str | None],
    scheme: str | None,
    model_scheme: str | None = None,
) -> list[str | None]:
    """The tags of units that are decoded to the tags of given words.

    The words are those of the data: white space words with signs inside, halves of a unit. Under a
    scheme a unit has the part of the entity that it lies in; without one, the tag of the word that
    has most of its letters and digits. None where the data has no label.

    Args:
        text: the text.
        units: character spans of the words of each unit.
        words: character spans of the words of the data.
        tags: their tags; None is no label.
        scheme: their tag scheme; None for tags that stand alone.
        model_scheme: the scheme to write, where it is another one.
    """
    stretches = [(unit[0][0], unit[-1][1]) for unit in units]
    overlaps = _overlaps(stretches, words)
    if scheme is None:
        return [
            _plain_tag(text, s, o, words, tags) for s, o in zip(stretches, overlaps, strict=True)
        ]
    entities = gold_entities(text, words, tags, scheme)
    written = write_tags(entities, stretches, model_scheme or scheme)
    return [
        tag if tag != "O" or (over and all(tags[word] is not None for word in over)) else None
        for tag, over in zip(written, overlaps, strict=True)
    ]


def _overlaps(stretches: list[Span], words: list[Span]) -> list[list[int]]:
    """For each stretch, the numbers of the words that reach into it."""
    overlaps, first = [], 0
    for start, end in stretches:
        while first < len(words) and words[first][1] <= start:
            first += 1
        number = first
        while number < len(words) and words[number][0] < end:
            number += 1
        overlaps.append([n for n in range(first, number) if words[n][1] > start])
    return overlaps


def _plain_tag(
    text: str, stretch: Span, over: list[int], words: list[Span], tags: list[str | None]
) -> str | None:
    def letters(word: int) -> int:
        shared = text[max(stretch[0], words[word][0]) : min(stretch[1], words[word][1])]
        return sum(character.isalnum() for character in shared)

    return tags[max(over, key=letters)] if over else None


def word_tags(
    entities: list[dict[str, Any]], words: list[Span], scheme: str | None
) -> list[str | None]:
    """The tags of given words that decoded entities say.

    Args:
        entities: what `decode_entities` gives.
        words: character spans of the words of the data.
        scheme: the tag scheme; None: a word has the tag of the first answer that begins in it, else
            of the one that reaches into it; None where there is no answer.
    """
    spans = [(e["entity_group"], e["start"], e["end"]) for e in entities]
    if scheme is not None:
        return list(write_tags(spans, words, scheme))
    answers = [(start, end) for _, start, end in spans]
    tags: list[str | None] = []
    for (start, _), over in zip(words, _overlaps(words, answers), strict=True):
        inside = [number for number in over if answers[number][0] >= start]
        tags.append(spans[(inside or over)[0]][0] if over else None)
    return tags


def decode_classes(
    logits: Tensor,
    labels: list[str],
    *,
    multi_label: bool,
    top_k: int | None,
    threshold: float | Mapping[str, float],
) -> dict[str, Any] | list[dict[str, Any]]:
    """(L,) logits of one text -> label and score.

    Args:
        logits: (L,).
        labels: their names.
        multi_label: each label is set or not.
        top_k: of a single label: how many; None for all.
        threshold: of a multi-label task, one for all labels or by label.

    Returns:
        single-label: the best label for `top_k` 1, else a list of the `top_k` best, or of all for
        None; multi-label:
        a list of all labels with a probability of `threshold` or more, best first.
    """
    scores = logits.float().sigmoid() if multi_label else logits.float().softmax(-1)
    order = scores.argsort(descending=True, stable=True).tolist()
    ranked = [{"label": labels[i], "score": float(scores[i])} for i in order]
    if multi_label:
        if not isinstance(threshold, Mapping):
            threshold = dict.fromkeys(labels, threshold)
        return [entry for entry in ranked if entry["score"] >= threshold[entry["label"]]]
    return ranked[0] if top_k == 1 else ranked[:top_k]


def if_sure(
    answer: dict[str, Any], abstain: float | None, apart: Collection[str] | None = None
) -> dict[str, Any]:
    """An answer, or None in the place of its label (and choice) where its score is below `abstain`.

    Args:
        answer: with `label` and `score`.
        abstain: least score; None takes all.
        apart: labels with thresholds of their own, which they have reached.
    """
    if abstain is None or answer["score"] >= abstain or answer["label"] in (apart or ()):
        return answer
    return {key: None if key in ("label", "choice") else value for key, value in answer.items()}


def sure_entities(
    entities: list[dict[str, Any]], abstain: float | None, apart: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """The entities without those whose score is below `abstain`; arguments as of `if_sure`."""
    if abstain is None:
        return entities
    return [e for e in entities if e["score"] >= abstain or e["entity_group"] in (apart or ())]
