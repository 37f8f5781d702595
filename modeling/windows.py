# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Text to words and windows: what token tasks read, and where.

Words are found by rule in the raw text and located through character offsets, which every fast
tokenizer gives, so one rule serves WordPiece, byte-level BPE and SentencePiece. A word is read at
its first sub-token. Character offsets always refer to the text as it was passed in.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from itertools import accumulate

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
Reads = list[tuple[int, int]]


def split_words(text: str) -> list[Span]:
    """Character spans of the words of `text`: runs of letters and digits, single other signs."""
    return [match.span() for match in WORD.finditer(text)]


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


def joined_words(words: list[str]) -> list[Span]:
    """Character spans of words that are joined by single spaces."""
    ends = accumulate(len(word) + 1 for word in words)
    return [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]


@dataclass
class Window:
    """One stretch of a text that fits the encoder.

    Args:
        input_ids: token ids with special tokens.
        token_type_ids: segment ids, or None.
        first: it begins the text.
        first_tokens: (word, token) for every word that is read in this window.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None
    first: bool = True
    first_tokens: Reads = field(default_factory=list)


def window_length(tokenizer: PreTrainedTokenizerBase, usable: int | None) -> int:
    """Tokens in a window of a text; the pipeline, training and evaluation ask here.

    Args:
        tokenizer: without a limit it says 1e30; one of another model may say more than fits.
        usable: tokens that the encoder takes; None where it has no limit.
    """
    return min(tokenizer.model_max_length, usable or 1 << 20)


def window_stride(tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Tokens that two windows of a text have in common: a quarter of what fits."""
    return (max_length - tokenizer.num_special_tokens_to_add()) // 4


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
        stride=window_stride(tokenizer, max_length),
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
        windows[row].append(Window(ids, types[number] if types else None, not windows[row]))
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
            candidate = (min(left, right), number, token)
            if word not in best or candidate[0] > best[word][0]:
                best[word] = candidate
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
    pairs, token = [], 0
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
            pairs.append((number, chosen))
    return pairs


def units_of(words: list[Span], first_tokens: list[Reads]) -> tuple[list[list[Span]], list[Reads]]:
    """Units of a text: neighbouring words that have their first sub-token in common are one unit.

    A unit is what a head gives one row of scores for. Nearly always it is one word; but `£5` is one
    token of BERT's, and `."` one of RoBERTa's. A word without a token is a unit of its own.

    Args:
        words: character spans of the words.
        first_tokens: those of each window of the text, in order.

    Returns:
        the words of each unit; and for each window, (unit, token) of the units that it reads.
    """
    token_of = {w: (n, token) for n, pairs in enumerate(first_tokens) for w, token in pairs}
    units: list[list[Span]] = []
    reads: list[Reads] = [[] for _ in first_tokens]
    before = None
    for number, span in enumerate(words):
        token = token_of.get(number)
        if token is not None and token == before:
            units[-1].append(span)
        else:
            if token is not None:
                reads[token[0]].append((len(units), token[1]))
            units.append([span])
        before = token
    return units, reads
