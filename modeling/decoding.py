# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Text to words and windows on the way in; logits to labels and entity spans on the way out.

Words are the unit of token classification: the label of a word is read at its first sub-token, in
training and in use alike. Words are found by rule in the raw text and located through character
offsets, which every fast tokenizer gives, so one rule serves WordPiece, byte-level BPE and
SentencePiece. Character offsets always refer to the text as it was passed in.

Shapes: `W` words, `L` labels.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# Scripts written without spaces: each character is a word.
_SOLID = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
# Accents and vowel signs that are characters of their own; they belong to the letter before.
_MARKS = "\u200c\u200d" + "".join(
    chr(c) for c in range(0x300, 0x1F000) if unicodedata.category(chr(c)) in ("Mn", "Mc")
)
WORD = re.compile(rf"[{_SOLID}][{_MARKS}]*|(?:[^\W_{_SOLID}][{_MARKS}]*)+|[^\w\s]|_")

Span = tuple[int, int]


def split_words(text: str) -> list[Span]:
    """Character spans of the words of `text`: runs of letters and digits, single other signs."""
    return [match.span() for match in WORD.finditer(text)]


def refine(text: str, words: list[Span]) -> tuple[list[Span], list[int]]:
    """Split given words by the rule of `split_words`.

    Returns:
        the finer spans, and for each the number of the given word it lies in. A given word without
        letters or signs (an odd space) stays as it is.
    """
    spans, owner = [], []
    for number, (start, end) in enumerate(words):
        parts = [(m.start(), m.end()) for m in WORD.finditer(text, start, end)] or [(start, end)]
        spans += parts
        owner += [number] * len(parts)
    return spans, owner


def locate_words(text: str, tokens: list[str]) -> list[Span] | None:
    """Character spans of `tokens` in `text`, in order; None if one is not there."""
    spans, position = [], 0
    for token in tokens:
        start = text.find(token, position)
        if start < 0 or text[position:start].strip():
            return None
        position = start + len(token)
        spans.append((start, position))
    return spans


@dataclass
class Window:
    """One stretch of a text that fits the encoder.

    Args:
        input_ids: token ids with special tokens.
        token_type_ids: segment ids, or None.
        first_tokens: (word, token) for every word whose label is read in this window.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None
    first_tokens: list[tuple[int, int]]


def encode_windows(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    words: list[list[Span]],
    max_length: int,
) -> list[list[Window]]:
    """Tokenize texts into windows of at most `max_length` tokens that overlap by a quarter.

    Each word is read in the one window that shows most of its surroundings; no word is lost. A text
    that fits is one window. A word that the tokenizer gives no sub-token (a control sign) belongs
    to no window.

    Args:
        tokenizer: a fast tokenizer.
        texts: the texts.
        words: character spans of the words to read, for each text; may be empty.
        max_length: tokens in a window, special tokens included.
    """
    encoding = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        stride=(max_length - tokenizer.num_special_tokens_to_add()) // 4,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    types = encoding.get("token_type_ids")
    windows: list[list[Window]] = [[] for _ in texts]
    numbers: list[list[int]] = [[] for _ in texts]  # which of the encodings are a text's windows
    for number, row in enumerate(encoding["overflow_to_sample_mapping"]):
        ids = encoding["input_ids"][number]
        windows[row].append(Window(ids, types[number] if types else None, []))
        numbers[row].append(number)
    for row, text in enumerate(texts):
        if not words[row]:
            continue
        offsets = [encoding["offset_mapping"][number] for number in numbers[row]]
        special = [encoding["special_tokens_mask"][number] for number in numbers[row]]
        for word, window, token in _best_windows(text, words[row], offsets, special):
            windows[row][window].first_tokens.append((word, token))
    return windows


def _best_windows(
    text: str, words: list[Span], offsets: list[list[Span]], special: list[list[int]]
) -> list[tuple[int, int, int]]:
    """(word, window, token) for every word, in the window that shows most of its surroundings."""
    best: dict[int, tuple[int, int, int]] = {}  # word -> (context, window, token)
    last = len(offsets) - 1
    for number, (spans, skip) in enumerate(zip(offsets, special, strict=True)):
        inner = [k for k, s in enumerate(skip) if not s]
        for word, token in _first_tokens(_trim(text, spans, skip), words):
            left = token - inner[0] if number > 0 else len(skip)
            right = inner[-1] - token if number < last else len(skip)
            found = (min(left, right), number, token)
            if word not in best or found[0] > best[word][0]:
                best[word] = found
    return [(word, number, token) for word, (_, number, token) in sorted(best.items())]


def _trim(text: str, offsets: list[Span], special: list[int]) -> list[Span]:
    """Offsets without the leading space that byte-level and SentencePiece tokenizers count in."""
    spans = []
    for (start, end), skip in zip(offsets, special, strict=True):
        while start < end and text[start].isspace():
            start += 1
        spans.append((end, end) if skip else (start, end))
    return spans


def _first_tokens(spans: list[Span], words: list[Span]) -> list[tuple[int, int]]:
    """(word, token): the first token that starts in the word, else the one that reaches into it."""
    found, token = [], 0
    for number, (start, end) in enumerate(words):
        while token < len(spans) and (
            spans[token][1] <= start or spans[token][0] == spans[token][1]
        ):
            token += 1
        if token == len(spans):
            break
        chosen = token
        while (  # the token may belong to the word before and reach into this one
            spans[chosen][0] < start
            and chosen + 1 < len(spans)
            and start <= spans[chosen + 1][0] < end
            and spans[chosen + 1][0] < spans[chosen + 1][1]
        ):
            chosen += 1
        if spans[chosen][0] < end:
            found.append((number, chosen))
    return found


# ---- tag schemes ----


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
        scores: (W, L) log-probabilities.
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
    """(W, L) log-probabilities of one text -> W tags, legal under `scheme`."""
    if scheme is None:
        return [labels[i] for i in scores.argmax(-1).tolist()]
    return [labels[i] for i in viterbi(scores, *legal_transitions(labels, scheme))]


def spans_of(tags: list[str], scheme: str) -> list[tuple[str, int, int]]:
    """Entities in a tag sequence as (kind, first word, last word + 1), strict to the scheme.

    Parts that are not legal are no entity, as in seqeval's strict mode.
    """
    spans, start, kind, broken = [], 0, "", True
    for i, tag in enumerate([*tags, "O"]):
        before = tags[i - 1] if i else "O"
        prefix, new_kind = split_tag(tag)
        goes_on = i > 0 and not broken and _goes_on(before, tag, scheme)
        if not goes_on:
            if not broken and (scheme != "bioes" or split_tag(before)[0] in "ES"):
                spans.append((kind, start, i))
            opens = {"iob1": "BI", "iob2": "B", "bioes": "BS"}[scheme]
            broken = prefix not in opens or (
                scheme == "iob1" and not _may_follow(before, tag, scheme)
            )
            start, kind = i, new_kind
    return spans


def _goes_on(before: str, after: str, scheme: str) -> bool:
    (p, p_kind), (q, q_kind) = split_tag(before), split_tag(after)
    if p_kind != q_kind:
        return False
    return q in "IE" and p in "BI" if scheme == "bioes" else q == "I" and p in "BI"


# ---- logits to what a user reads ----


def decode_entities(
    text: str, words: list[Span], scores: Tensor, labels: list[str], scheme: str | None
) -> list[dict[str, Any]]:
    """Entities of one text as HF's aggregated pipeline gives them.

    Args:
        text: the text.
        words: character spans of its words.
        scores: (W, L) log-probabilities.
        labels: label strings.
        scheme: tag scheme; None gives each word on its own (part of speech).

    Returns:
        dicts with `entity_group`, `score` (mean probability of its words' tags), `word` (the text
        as written), `start`, `end` (characters).
    """
    tags = decode_tags(scores, labels, scheme)
    index = {label: i for i, label in enumerate(labels)}
    chosen = [float(scores[w, index[tag]].exp()) for w, tag in enumerate(tags)]
    if scheme is None:
        groups = [(tag, w, w + 1) for w, tag in enumerate(tags)]
    else:
        groups = spans_of(tags, scheme)
    return [
        {
            "entity_group": kind,
            "score": sum(chosen[first:last]) / (last - first),
            "word": text[words[first][0] : words[last - 1][1]],
            "start": words[first][0],
            "end": words[last - 1][1],
        }
        for kind, first, last in groups
    ]


def decode_classes(
    logits: Tensor, labels: list[str], *, multi_label: bool, top_k: int, threshold: float
) -> dict[str, Any] | list[dict[str, Any]]:
    """(L,) logits of one text -> label and score.

    Returns:
        single-label: the best label, or the `top_k` best as a list when `top_k` > 1; multi-label:
        a list of all labels with a probability of `threshold` or more, best first.
    """
    scores = logits.float().sigmoid() if multi_label else logits.float().softmax(-1)
    order = scores.argsort(descending=True, stable=True).tolist()
    ranked = [{"label": labels[i], "score": float(scores[i])} for i in order]
    if multi_label:
        return [entry for entry in ranked if entry["score"] >= threshold]
    return ranked[:top_k] if top_k > 1 else ranked[0]
