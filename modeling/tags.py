# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Tag schemes: which tags may follow each other, and entities to tags and back.

`iob1` marks with B- only what parts two neighbours of one kind, `iob2` the beginning of every
entity, `bioes` its end (E-) and single words (S-) too.

Shapes: `U` units (words), `L` labels.
"""

from bisect import bisect_right
from functools import lru_cache

import torch
from torch import Tensor

from .windows import Span

Entity = tuple[str, int, int]  # kind, start, end


def split_tag(tag: str) -> tuple[str, str]:
    """`B-city` -> ("B", "city"); `O` -> ("O", "")."""
    prefix, _, kind = tag.partition("-")
    return (prefix, kind) if kind else ("O", "")


def _may_follow(before: str, after: str, scheme: str) -> bool:
    (p, p_kind), (q, q_kind) = split_tag(before), split_tag(after)
    same = p_kind == q_kind
    if scheme == "iob1":  # B- only to part two neighbours of one kind
        return q != "B" or (p in "BI" and same)
    if scheme == "iob2":
        return q != "I" or (p in "BI" and same)
    inside = p in "BI"  # bioes: B and I must go on to I or E of the same kind
    return (q in "IE" and same) if inside else q not in "IE"


def legal_transitions(labels: list[str], scheme: str) -> tuple[Tensor, Tensor, Tensor]:
    """Which tag may start, follow another, and end a sequence.

    Returns:
        bool (L,), (L, L) [from, to] and (L,).
    """
    starts = torch.tensor([_may_follow("O", tag, scheme) for tag in labels])
    pairs = torch.tensor([[_may_follow(a, b, scheme) for b in labels] for a in labels])
    ends = torch.tensor([scheme != "bioes" or split_tag(tag)[0] not in "BI" for tag in labels])
    return starts, pairs, ends


def viterbi(scores: Tensor, starts: Tensor, pairs: Tensor, ends: Tensor) -> list[int]:
    """The legal tag sequence with the highest sum of scores.

    Args:
        scores: (U, L) log-probabilities.
        starts: bool (L,), may come first.
        pairs: bool (L, L), may follow.
        ends: bool (L,), may come last.

    Viterbi 1967; when the best tag of every word is legal already, that is the answer.
    """
    if len(scores) == 0:
        return []
    best = scores.argmax(-1)
    if starts[best[0]] and ends[best[-1]] and bool(pairs[best[:-1], best[1:]].all()):
        return best.tolist()
    barred = torch.zeros_like(pairs, dtype=scores.dtype).masked_fill(~pairs, float("-inf"))
    total = scores[0].masked_fill(~starts, float("-inf"))  # (L,)
    back = []
    for emission in scores[1:]:
        value, origin = (total[:, None] + barred).max(0)
        total = value + emission
        back.append(origin)
    tag = int(total.masked_fill(~ends, float("-inf")).argmax())
    path = [tag]
    for origin in reversed(back):
        tag = int(origin[tag])
        path.append(tag)
    return path[::-1]


def decode_tags(scores: Tensor, labels: list[str], scheme: str | None) -> list[str]:
    """(U, L) log-probabilities of one text -> W tags, legal under `scheme`."""
    if scheme is None:
        return [labels[i] for i in scores.argmax(-1).tolist()]
    return [labels[i] for i in viterbi(scores, *_transitions(tuple(labels), scheme))]


@lru_cache(maxsize=64)
def _transitions(labels: tuple[str, ...], scheme: str) -> tuple[Tensor, Tensor, Tensor]:
    return legal_transitions(list(labels), scheme)


def spans_of(tags: list[str], scheme: str) -> list[Entity]:
    """Entities in a tag sequence as (kind, first word, last word + 1), strict to the scheme.

    Parts that are not legal are no entity, as in seqeval's strict mode.
    """
    spans, start, kind, broken = [], 0, "", True
    for i, tag in enumerate([*tags, "O"]):
        before = tags[i - 1] if i else "O"
        prefix, new_kind = split_tag(tag)
        goes_on = i > 0 and not broken and _goes_on(before, tag, scheme)
        if not goes_on:
            if not broken and _may_end(before, tag, scheme):
                spans.append((kind, start, i))
            opens = {"iob1": "BI", "iob2": "B", "bioes": "BS"}[scheme]
            broken = prefix not in opens or (
                scheme == "iob1" and not _may_follow(before, tag, scheme)
            )
            start, kind = i, new_kind
    return spans


def _may_end(before: str, after: str, scheme: str) -> bool:
    """Whether an entity whose last tag is `before` ends well at `after`."""
    (p, kind), (q, q_kind) = split_tag(before), split_tag(after)
    if scheme == "bioes":
        return p in "ES"
    return scheme != "iob1" or (p, q) != ("B", "B") or kind == q_kind  # as seqeval has it


def _goes_on(before: str, after: str, scheme: str) -> bool:
    (p, p_kind), (q, q_kind) = split_tag(before), split_tag(after)
    if p_kind != q_kind:
        return False
    return q in "IE" and p in "BI" if scheme == "bioes" else q == "I" and p in "BI"


def follow_table(labels: list[str], scheme: str) -> list[list[int]]:
    """What becomes of an entity when one tag follows another, for decoders outside of Python.

    Returns:
        (L + 1, L + 1) [from, to], the last being what is outside of the text: 0 may not follow,
        1 ends what was before, 2 goes on with it, 3 ends it as no entity.
    """

    def step(before: str, after: str) -> int:
        if not _may_follow(before, after, scheme):
            return 0
        if _goes_on(before, after, scheme):
            return 2
        return 1 if before == "O" or _may_end(before, after, scheme) else 3

    tags = [*labels, "O"]
    return [[step(before, after) for after in tags] for before in tags]


def write_tags(entities: list[Entity], stretches: list[Span], scheme: str) -> list[str]:
    """Tags of the stretches of a text that its entities lie over; the inverse of `spans_of`.

    The stretches are words as they are given, or units as the model reads them: an entity takes
    every stretch that it reaches into. Of several that reach into one stretch, the first that
    begins there has it, else the one that goes on.

    Args:
        entities: (kind, start, end), characters, from left to right.
        stretches: (start, end), characters, from left to right.
        scheme: one of the tag schemes.
    """
    owner, begins = [-1] * len(stretches), [False] * len(stretches)
    stretch_ends = [end for _, end in stretches]
    for number, (_, start, end) in enumerate(entities):
        first = k = bisect_right(stretch_ends, start)
        while k < len(stretches) and stretches[k][0] < end:
            if owner[k] < 0 or (k == first and not begins[k]):
                owner[k], begins[k] = number, k == first
            k += 1
    tags = []
    for k, number in enumerate(owner):
        if number < 0:
            tags.append("O")
            continue
        kind = entities[number][0]
        before = owner[k - 1] if k else -1
        goes_on = k + 1 < len(owner) and owner[k + 1] == number
        if scheme == "bioes":
            prefix = ("I" if goes_on else "E") if before == number else "B" if goes_on else "S"
        elif scheme == "iob2":
            prefix = "I" if before == number else "B"
        else:
            parts = before not in (-1, number) and entities[before][0] == kind
            prefix = "B" if parts else "I"
        tags.append(f"{prefix}-{kind}")
    return tags
