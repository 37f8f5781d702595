"""Checked rows to tokenized rows, and the dataset that holds those of all sources.

A tokenized row (one per window of a long text, where tasks read windows each for itself) holds
    input_ids        list of token id lists: one text, or two and more for a group
    token_type_ids   the same shape, where the encoder has segments
    window_counts    where tasks pool windows: how many of the lists are each text of the row
    row, window      number of the row in its split, and of the window in its row
    cut              a text of the row is too long for tasks that read the first window, or for a
                     pair's first text to be whole in all of them
    labels_<task>    class id (of train perhaps a distribution), number, list of 0/1, or one tag id
                     per token (-100: not read); nothing for language models, whose labels are
                     made when rows are collated
    weight_<task>    of train, where the task's rows have weights: that of the row
    words            token tasks: per token the number of the first word that is read there, or -1
    word_counts      and how many words are
    token_words      where whole words are masked: per token the number of its word, -1 for special
                     ones; the same shape as input_ids
    block            where texts are joined: the row is one of several texts, each by itself
"""

from typing import Any

import datasets
import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ...modeling.task_config import TaskConfig
from ...modeling.windows import (
    Span,
    Window,
    cut_note,
    encode_pairs,
    encode_windows,
    split_words,
    window_stride,
)
from ..kinds import LanguageModel, TaskKind, kind_of
from ..kinds.tokens import Tokens
from .loading import Source

WEIGHT = "weight_"  # column of a task's weights of rows
OPEN_BLOCKS = 64  # that are looked at for room; the fullest are closed


def tokenize(
    source: Source,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    configs: dict[str, TaskConfig] | None = None,
    longest_first: bool = False,
) -> datasets.Dataset:
    """Tokenized rows of one split; see the head of the file for the columns.

    Args:
        source: checked rows.
        split: train, validation or test.
        tokenizer: its `model_max_length` is the length of a window.
        configs: the tasks as the model knows them; default as found in the data.
        longest_first: sort by length, which saves padding in evaluation.
    """
    configs = configs or source.configs
    rows = source.splits[split]
    features = rows.map(
        lambda batch, numbers: _encode(source, split, configs, tokenizer, batch, numbers),
        with_indices=True,
        batched=True,
        remove_columns=rows.column_names,
        desc=f"Tokenizing {source.name} {split}",
        keep_in_memory=True,
        load_from_cache_file=False,
        new_fingerprint=f"polyhead-{split}",  # results are not cached: nothing to hash
    )
    if split == "train" and any(config.blocks for config in configs.values()):
        features = join_blocks(features, tokenizer.model_max_length)
    if longest_first:
        lengths = [sum(map(len, texts)) for texts in features[:]["input_ids"]]
        features = features.select(np.argsort([-n for n in lengths], kind="stable"))
    return features


def reads_later_windows(config: TaskConfig) -> bool:
    """A task reads tokenized rows that are no first window of a text."""
    return config.reads_windows or config.blocks


def cut_rows(rows: datasets.Dataset, config: TaskConfig) -> int:
    """In how many rows a text is too long for what a task reads of it.

    Args:
        rows: tokenized.
        config: the task.
    """
    if reads_later_windows(config) and not config.pools_windows:
        return 0
    pairs = zip(rows["cut"][:], rows["window"][:], strict=True)
    return sum(cut for cut, window in pairs if window == 0)


def cut_notes(
    rows: datasets.Dataset, split: str, configs: dict[str, TaskConfig], limit: int
) -> list[str]:
    """A line where texts are too long for tasks that read them.

    Args:
        rows: tokenized rows of a split of a source.
        split: train, validation or test.
        configs: the tasks of the source.
        limit: tokens in a window.
    """
    counts = {name: cut_rows(rows, config) for name, config in configs.items()}
    tasks = [name for name, count in counts.items() if count]
    if not tasks:
        return []
    whole = sum(window == 0 for window in rows["window"][:])
    note = cut_note(max(counts.values()), whole, f"rows of {split}", limit, tasks)
    if any(not configs[name].reads_windows for name in tasks):
        note += "; long_texts: windows reads all of a text"
    return [note]


def _encode(
    source: Source,
    split: str,
    configs: dict[str, TaskConfig],
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, list],
    numbers: list[int],
) -> dict[str, list]:
    """One batch of raw rows to columns of tokenized rows."""
    texts = _prompted(source, source.texts_of(batch))
    kinds = {name: kind_of(c).scored_as(source.tasks[name]) for name, c in configs.items()}
    word_kinds = {name: kind for name, kind in kinds.items() if isinstance(kind, Tokens)}
    words: list[list[Span]] = [[] for _ in numbers]
    if word_kinds:
        words = [split_words(text) for text in texts[0]]
    windows, counts, cut = _cut(next(iter(kinds.values())), configs, tokenizer, texts, words)
    labels = _labels(source, configs, kinds, batch, words, windows)
    targets = {f"labels_{name}": values for name, values in labels.items()}
    targets |= _row_weights(source, kinds, batch, labels) if split == "train" else {}
    by_window = {f"labels_{name}" for name in word_kinds}
    token_words = _token_words(kinds, configs, tokenizer, texts[0])
    columns: dict[str, list] = {"input_ids": [], "row": [], "window": [], "cut": []}
    columns |= {"window_counts": counts} if counts else {}
    if "token_type_ids" in tokenizer.model_input_names:
        columns["token_type_ids"] = []
    for i, row in enumerate(windows):
        for number, group in enumerate(row):
            columns["input_ids"].append([window.input_ids for window in group])
            if "token_type_ids" in columns:
                columns["token_type_ids"].append([window.token_type_ids for window in group])
            columns["row"].append(numbers[i])
            columns["window"].append(number)
            columns["cut"].append(cut[i])
            if word_kinds:
                words_read, counts = _words_by_token(group[0])
                columns.setdefault("words", []).append(words_read)
                columns.setdefault("word_counts", []).append(counts)
            if token_words is not None:
                columns.setdefault("token_words", []).append(token_words[i][number])
            for name, values in targets.items():
                of_row = values[i][number] if name in by_window else values[i]
                columns.setdefault(name, []).append(of_row)
    return columns


def _labels(
    source: Source,
    configs: dict[str, TaskConfig],
    kinds: dict[str, TaskKind],
    batch: dict[str, list],
    words: list[list[Span]],
    windows: list[list[list[Window]]],
) -> dict[str, list]:
    """Encoded labels by task: of each row, or of each window of each row for token tasks."""
    labels: dict[str, list] = {}
    for name, kind in kinds.items():
        if isinstance(kind, Tokens):
            rows = source.split_rows(name, batch, configs[name])
            by_row = [[window for [window] in row] for row in windows]
            labels[name] = kind.encode_windows(rows, words, by_row)
        elif not kind.labels_from_tokens:
            rows = source.split_rows(name, batch)
            labels[name] = [kind.encode(value, source.tasks[name].data) for value in rows.labels]
    return labels


def _row_weights(
    source: Source, kinds: dict[str, TaskKind], batch: dict[str, list], labels: dict[str, list]
) -> dict[str, list]:
    """Columns of rows of train whose label is a distribution, and of their weights."""
    columns = {}
    for name, kind in kinds.items():
        data = source.tasks[name].data
        if data.weight is not None:
            columns[WEIGHT + name] = batch[data.weight]
        if data.soft_label is not None:
            both = zip(labels[name], batch[data.soft_label], strict=True)
            columns[f"labels_{name}"] = [
                _one_hot(label, len(kind.labels)) if distribution is None else distribution
                for label, distribution in both
            ]
    return columns


def _one_hot(label: int, count: int) -> list[float]:
    """1 at a label, NaN everywhere where there is none."""
    return [float("nan") if label < 0 else float(label == i) for i in range(count)]


def _prompted(source: Source, texts: list[list[Any]]) -> list[list[Any]]:
    """The texts with the prompts of the tasks that read them."""
    config = next(iter(source.configs.values()))
    prompts = [config.prompt(part) for part in range(len(texts))]
    return [
        [prompt + text for text in part] if prompt else part
        for prompt, part in zip(prompts, texts, strict=True)
    ]


def _cut(
    kind: TaskKind,
    configs: dict[str, TaskConfig],
    tokenizer: PreTrainedTokenizerBase,
    texts: list[list[Any]],
    words: list[list[Span]],
) -> tuple[list[list[list[Window]]], list[list[int]], list[bool]]:
    """Rows to windows.

    Args:
        kind: kind of the tasks.
        configs: the tasks.
        tokenizer: the model's.
        texts: by text column, those of the rows.
        words: by row, spans of the words to be read.

    Returns:
        by row, the groups of windows that are rows of their own; by row, the windows of each text,
        where they are pooled; and whether it is too long, as column `cut` says.
    """
    if any(config.pools_windows for config in configs.values()):
        rows = _windows_of_rows(kind, tokenizer, texts)
        counts = [[len(windows) for windows in row] for row in rows]
        cut = [any(windows[0].cut for windows in row) for row in rows]
        return [[[w for windows in row for w in windows]] for row in rows], counts, cut
    if any(config.blocks for config in configs.values()):
        return _pieces(tokenizer, texts[0]), [], [False] * len(texts[0])
    if len(texts) > 1:
        windows, cut = _encode_sequences(kind, tokenizer, texts)
        return windows, [], cut
    encoded = encode_windows(tokenizer, texts[0], words, tokenizer.model_max_length)
    last = None if any(config.reads_windows for config in configs.values()) else 1
    windows = [[[window] for window in row[:last]] for row in encoded]
    return windows, [], [len(row) > 1 for row in encoded]


def _windows_of_rows(
    kind: TaskKind, tokenizer: PreTrainedTokenizerBase, texts: list[list[Any]]
) -> list[list[list[Window]]]:
    """The windows of each sequence of each row."""
    rows = [kind.sequences(list(row)) for row in zip(*texts, strict=True)]
    flat, limit = [text for row in rows for text in row], tokenizer.model_max_length
    if isinstance(flat[0], tuple):
        encoded = encode_pairs(tokenizer, flat, limit)
    else:
        encoded = encode_windows(tokenizer, flat, [[] for _ in flat], limit)
    windows = iter(encoded)
    return [[next(windows) for _ in row] for row in rows]


def _encode_sequences(
    kind: TaskKind, tokenizer: PreTrainedTokenizerBase, texts: list[list[Any]]
) -> tuple[list[list[list[Window]]], list[bool]]:
    """Rows of two texts and more, as the kind puts them into sequences, and which are cut."""
    rows = [kind.sequences(list(row)) for row in zip(*texts, strict=True)]
    flat = [sequence for row in rows for sequence in row]
    encoded = tokenizer(flat, truncation=True, max_length=tokenizer.model_max_length)
    types = encoded.get("token_type_ids") or [None] * len(flat)
    overflows = iter([bool(encoding.overflowing) for encoding in encoded.encodings or ()])
    windows = iter(map(Window, encoded["input_ids"], types))
    cut = [any([next(overflows) for _ in row]) for row in rows]  # noqa: C419 - each is taken
    return [[[next(windows) for _ in row]] for row in rows], cut


def _pieces(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[list[Window]]]:
    """Texts cut into windows that do not overlap; a text without tokens has none."""
    encoded = _windows_encoded(tokenizer, texts, 0)
    types = encoded.get("token_type_ids") or [None] * len(encoded["input_ids"])
    pieces: list[list[list[Window]]] = [[] for _ in texts]
    parts = zip(encoded["overflow_to_sample_mapping"], encoded["input_ids"], types, strict=True)
    empty = tokenizer.num_special_tokens_to_add()
    for row, ids, segments in parts:
        if len(ids) > empty:
            pieces[row].append([Window(ids, segments)])
    return pieces


def _windows_encoded(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], stride: int
) -> BatchEncoding:
    return tokenizer(
        texts,
        truncation=True,
        max_length=tokenizer.model_max_length,
        stride=stride,
        return_overflowing_tokens=True,
        verbose=False,
    )


def join_blocks(pieces: datasets.Dataset, size: int) -> datasets.Dataset:
    """Rows of one text each to rows of several that have `size` tokens together, or nearly.

    Each text goes whole into the first of the open blocks that has room for it, so that no text
    is lost and none sees another (`packing.py` keeps them apart).

    Args:
        pieces: tokenized rows.
        size: tokens of a block.
    """
    blocks: list[list[int]] = []
    room: list[list[int]] = []  # [tokens left, number of the block], of the open ones
    for number, [ids] in enumerate(pieces[:]["input_ids"]):
        fits = next((entry for entry in room if entry[0] >= len(ids)), None)
        if fits is None:
            fits = [size, len(blocks)]
            blocks.append([])
            room = sorted([*room, fits])[-OPEN_BLOCKS:]
        fits[0] -= len(ids)
        blocks[fits[1]].append(number)
    columns = {name: pieces[:][name] for name in pieces.column_names}
    joined: dict[str, list] = {name: [] for name in columns}
    for block in blocks:
        for name, values in columns.items():
            one = name in ("row", "window", "cut")  # those of its first text
            joined[name].append(
                values[block[0]] if one else [text for number in block for text in values[number]]
            )
    return datasets.Dataset.from_dict({**joined, "block": list(range(len(blocks)))})


def _token_words(
    kinds: dict[str, TaskKind],
    configs: dict[str, TaskConfig],
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
) -> list[list[list[list[int]]]] | None:
    """For each window of each text, the number of the word of each token; -1 for special ones.

    None where no task reads them.
    """
    if not any(isinstance(kind, LanguageModel) and kind.reads_words for kind in kinds.values()):
        return None
    in_blocks = any(config.blocks for config in configs.values())
    stride = 0 if in_blocks else window_stride(tokenizer, tokenizer.model_max_length)
    encoded = _windows_encoded(tokenizer, texts, stride)
    numbers: list[list[list[list[int]]]] = [[] for _ in texts]
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        words = encoded.word_ids(window)
        numbers[row].append([[-1 if word is None else word for word in words]])
    return numbers


def _words_by_token(window: Window) -> tuple[list[int], list[int]]:
    """For each token of a window, the first word that is read there (or -1), and how many are."""
    words, counts = ([fill] * len(window.input_ids) for fill in (-1, 0))
    for word, token in window.first_tokens:
        words[token] = word if words[token] < 0 else words[token]
        counts[token] += 1
    return words, counts
