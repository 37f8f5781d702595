"""Checked rows to tokenized rows, and the dataset that holds those of all sources.

A tokenized row (one per window of a long text) holds
    input_ids        list of token id lists: one text, or two and more for a group
    token_type_ids   the same shape, where the encoder has segments
    row, window      number of the row in its split, and of the window in its row
    labels_<task>    class id, number, list of 0/1, or one tag id per token (-100: not read);
                     nothing for masked LM, whose labels are made when rows are collated
    words            token tasks: per token the number of the first word that is read there, or -1
    word_counts      and how many words are
"""

from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from ...modeling.configuration_polyhead import TaskConfig
from ...modeling.windows import Span, Window, encode_windows, split_words
from ..kinds import TaskKind, kind_of
from ..kinds.tokens import Tokens
from .loading import Source


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
        lambda batch, numbers: _encode(source, configs, tokenizer, batch, numbers),
        with_indices=True,
        batched=True,
        remove_columns=rows.column_names,
        desc=f"Tokenizing {source.name} {split}",
        keep_in_memory=True,
        load_from_cache_file=False,
        new_fingerprint=f"polyhead-{split}",  # results are not cached: nothing to hash
    )
    if longest_first:
        lengths = [sum(map(len, texts)) for texts in features[:]["input_ids"]]
        features = features.select(np.argsort([-n for n in lengths], kind="stable"))
    return features


def _encode(
    source: Source,
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
    if len(texts) > 1:
        windows = [[row] for row in _encode_sequences(next(iter(kinds.values())), tokenizer, texts)]
    else:
        words = [split_words(text) if word_kinds else [] for text in texts[0]]
        encoded = encode_windows(tokenizer, texts[0], words, tokenizer.model_max_length)
        windows = [[[w] for w in (row if word_kinds else row[:1])] for row in encoded]
    labels = {
        name: [kind.encode(value, source.tasks[name].data) for value in rows.labels]
        for name, kind in kinds.items()
        if name not in word_kinds and not kind.labels_from_tokens
        for rows in [source.split_rows(name, batch)]
    }
    for name, kind in word_kinds.items():
        rows = source.split_rows(name, batch, configs[name])
        by_row = [[window for [window] in row] for row in windows]
        labels[name] = kind.encode_windows(rows, words, by_row)
    columns: dict[str, list] = {"input_ids": [], "row": [], "window": []}
    if windows and windows[0][0][0].token_type_ids is not None:
        columns["token_type_ids"] = []
    for i, row in enumerate(windows):
        for number, group in enumerate(row):
            columns["input_ids"].append([window.input_ids for window in group])
            if "token_type_ids" in columns:
                columns["token_type_ids"].append([window.token_type_ids for window in group])
            columns["row"].append(numbers[i])
            columns["window"].append(number)
            if word_kinds:
                words_read, counts = _words_by_token(group[0])
                columns.setdefault("words", []).append(words_read)
                columns.setdefault("word_counts", []).append(counts)
            for name, values in labels.items():
                of_row = values[i][number] if name in word_kinds else values[i]
                columns.setdefault(f"labels_{name}", []).append(of_row)
    return columns


def _prompted(source: Source, texts: list[list[Any]]) -> list[list[Any]]:
    """The texts with the prompts of the tasks that read them."""
    config = next(iter(source.configs.values()))
    prompts = [config.prompt(part) for part in range(len(texts))]
    return [
        [prompt + text for text in part] if prompt else part
        for prompt, part in zip(prompts, texts, strict=True)
    ]


def _encode_sequences(
    kind: TaskKind, tokenizer: PreTrainedTokenizerBase, texts: list[list[Any]]
) -> list[list[Window]]:
    """Rows of two texts and more, as the kind puts them into sequences: those of each row."""
    rows = [kind.sequences(list(row)) for row in zip(*texts, strict=True)]
    flat = [sequence for row in rows for sequence in row]
    encoded = tokenizer(flat, truncation=True, max_length=tokenizer.model_max_length)
    types = encoded.get("token_type_ids") or [None] * len(flat)
    windows = iter(map(Window, encoded["input_ids"], types))
    return [[next(windows) for _ in row] for row in rows]


def _words_by_token(window: Window) -> tuple[list[int], list[int]]:
    """For each token of a window, the first word that is read there (or -1), and how many are."""
    words, counts = ([fill] * len(window.input_ids) for fill in (-1, 0))
    for word, token in window.first_tokens:
        words[token] = word if words[token] < 0 else words[token]
        counts[token] += 1
    return words, counts
