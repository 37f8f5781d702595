# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Text to words and windows: what is read of a long text, and where.

A text longer than the encoder takes is cut into windows that overlap by a quarter; of a pair the
second text is, and each window begins with the first one.

Words are found by rule in the raw text and located through character offsets, which every fast
tokenizer gives, so one rule serves WordPiece, byte-level BPE and SentencePiece. A word is read at
its first sub-token. Character offsets always refer to the text as it was passed in.
"""

import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

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
        number: it is the text's first (0), second, ...
        cut: tokens of the text are in no window; said by its first one.
        first_tokens: (word, token) for every word that is read in this window.
        masks: its mask tokens that no other window shows more of the surroundings of.
        span: of a single text, the characters from its first token to the end of its last.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None
    number: int = 0
    cut: bool = False
    first_tokens: Reads = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    span: Span = (0, 0)

    @property
    def first(self) -> bool:
        """It begins the text."""
        return self.number == 0


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


def cut_note(cut: int, texts: int, what: str, limit: int, tasks: list[str]) -> str:
    """What to say where texts are too long; the pipeline, training and evaluation ask here.

    Args:
        cut: how many are.
        texts: how many there are.
        what: they are.
        limit: tokens in a window.
        tasks: that read them no further.
    """
    share = f"{cut:,} of {texts:,} {what} ({cut / texts:.1%})"
    return f"{share} are longer than {limit} tokens and are cut for {', '.join(tasks)}"


def encode_windows(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    words: list[list[Span]],
    max_length: int,
) -> list[list[Window]]:
    """Tokenize texts into windows of at most `max_length` tokens that overlap by a quarter.

    Each word, and each mask, is read in the one window that shows most of its surroundings; none is
    lost. A text that fits is one window. A word that the tokenizer gives no sub-token (a control
    sign) belongs to no window.

    Args:
        tokenizer: a fast tokenizer.
        texts: the texts.
        words: character spans of the words to read, for each text; may be empty.
        max_length: tokens in a window, special tokens included.
    """
    room, mask = max_length - tokenizer.num_special_tokens_to_add(), tokenizer.mask_token_id
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
        ids, special = (encoding[key][number] for key in ("input_ids", "special_tokens_mask"))
        window = Window(ids, types[number] if types else None, len(windows[row]))
        window.span = _span_of(encoding["offset_mapping"][number], special)
        windows[row].append(window)
        numbers[row].append(number)
    for row, text in enumerate(texts):
        special = [encoding["special_tokens_mask"][number] for number in numbers[row]]
        step = room - room // 4  # from a window's first token to that of the next one
        masks = [
            [(w.number * step + k, k) for k, i in enumerate(w.input_ids) if i == mask]
            for w in windows[row]
        ]
        for _, window, token in _best_windows(masks, special):
            windows[row][window].masks.append(token)
        if not words[row]:
            continue
        offsets = [encoding["offset_mapping"][number] for number in numbers[row]]
        ends = [end for _, end in words[row]]
        reads = []
        for spans, skip in zip(offsets, special, strict=True):
            spans = _trim(text, spans, skip)
            begin = min((s for (s, _), no in zip(spans, skip, strict=True) if not no), default=0)
            reads.append(_first_tokens(spans, words[row], bisect_right(ends, begin)))
        for word, window, token in _best_windows(reads, special):
            windows[row][window].first_tokens.append((word, token))
    return windows


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[str, str]],
    max_length: int,
) -> list[list[Window]]:
    """Tokenize pairs; the second text of one that is too long is cut into windows.

    Each window holds the first text and a stretch of the second, of at most `max_length` tokens
    together; the stretches overlap by a quarter. Where both are long, the first text is kept up to
    half of the room. A pair that fits is one window.

    Args:
        tokenizer: a fast tokenizer; one that cuts nothing is left as it is.
        pairs: the pairs.
        max_length: tokens in a window, special tokens included.
    """
    options: Any = {"truncation": False, "return_attention_mask": False, "verbose": False}
    first, second = (list(texts) for texts in zip(*pairs, strict=True))
    encoding = tokenizer(first, second, **options)
    types = encoding.get("token_type_ids")
    windows = []
    for row, ids in enumerate(encoding["input_ids"]):
        if len(ids) <= max_length:
            windows.append([Window(ids, types[row] if types else None)])
        else:
            windows.append(_pair_windows(tokenizer, *pairs[row], max_length, typed=bool(types)))
    return windows


def _pair_windows(
    tokenizer: PreTrainedTokenizerBase, first: str, second: str, max_length: int, *, typed: bool
) -> list[Window]:
    """The windows of a pair that is too long for one."""
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    options: Any = {"add_special_tokens": False, "truncation": False, "verbose": False}
    one, other = tokenizer([first, second], **options).encodings or [None] * 2
    assert one is not None
    assert other is not None  # of a fast tokenizer
    most = max(room // 2, room - len(other))
    cut = len(one) > most
    while len(one) > most:  # a text cut inside a word may have more tokens than it had there
        first = first[: min(one.offsets[most - 1][1], len(first) - 1)]
        one = (tokenizer([first], **options).encodings or [one])[0]
    other.truncate(room - len(one), stride=(room - len(one)) // 4)
    join = tokenizer.backend_tokenizer.post_process  # pyright: ignore
    whole = (join(one, part, add_special_tokens=True) for part in (other, *other.overflowing))
    return [
        Window(part.ids, part.type_ids if typed else None, number, cut and number == 0)
        for number, part in enumerate(whole)
    ]


def _best_windows(reads: list[Reads], special: list[list[int]]) -> list[tuple[int, int, int]]:
    """Where each unit is read: in the window that shows most of its surroundings.

    Args:
        reads: by window, (unit, token) of all units in it.
        special: by window, which of its tokens are not of the text.

    Returns:
        (unit, window, token), in the order of the units.
    """
    best: dict[int, tuple[int, int, int]] = {}  # unit -> (context, window, token)
    last = len(reads) - 1
    for number, (pairs, skip) in enumerate(zip(reads, special, strict=True)):
        inner = [k for k, s in enumerate(skip) if not s]
        for unit, token in pairs:
            left = token - inner[0] if number > 0 else len(skip)
            right = inner[-1] - token if number < last else len(skip)
            candidate = (min(left, right), number, token)
            if unit not in best or candidate[0] > best[unit][0]:
                best[unit] = candidate
    return [(unit, number, token) for unit, (_, number, token) in sorted(best.items())]


def _span_of(offsets: list[Span], special: list[int]) -> Span:
    """The characters of a window's tokens; special tokens have none."""
    first = next((k for k, skip in enumerate(special) if not skip), None)
    if first is None:
        return (0, 0)
    last = next(k for k in reversed(range(len(special))) if not special[k])
    return (offsets[first][0], offsets[last][1])


def _trim(text: str, offsets: list[Span], special: list[int]) -> list[Span]:
    """Offsets without the leading space that byte-level and SentencePiece tokenizers count in."""
    spans = []
    for (start, end), skip in zip(offsets, special, strict=True):
        while start < end and text[start].isspace():
            start += 1
        spans.append((end, end) if skip else (start, end))
    return spans


def _first_tokens(spans: list[Span], words: list[Span], first: int) -> list[tuple[int, int]]:
    """(word, token): the first token that starts in the word, else the one that reaches into it.

    Args:
        spans: of the tokens of a window.
        words: of the text.
        first: the first word that may have a token among them.
    """
    pairs, token = [], 0
    for number, (start, end) in enumerate(islice(words, first, None), first):
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
