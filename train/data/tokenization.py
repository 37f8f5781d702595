"""Checked rows to tokenized rows, and the dataset that holds those of all sources.

A tokenized row (one per window of a long text) holds
    input_ids        list of token id lists: one text, or two and more for an embedding group
    token_type_ids   the same shape, where the encoder has segments
    row, window      number of the row in its split, and of the window in its row
    labels_<task>    class id, number, list of 0/1, or one tag id per token (-100: not read);
                     nothing for masked LM, whose labels are made when rows are collated
    words_<task>     token tasks: per token the word that is scored there, or -1
"""

from collections import Counter
from itertools import accumulate
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from ...modeling.configuration_polyhead import TaskConfig
from ...modeling.decoding import Span, Window, encode_windows, locate_words, refine
from ...modeling.heads import IGNORE
from ..recipe.schema import DataConfig
from .labels import labels_in, part_tags
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
    word_tasks = [n for n, c in configs.items() if c.head == "token_classification"]
    if len(texts) > 1:
        groups = _encode_texts(source, tokenizer, texts)
        windows = [[group] for group in groups]
        spans: list[list[Span]] = [[] for _ in numbers]
        owners: list[list[int]] = spans  # pyright: ignore[reportAssignmentType]
    else:
        words = _words(source, batch, texts[0]) if word_tasks else [[] for _ in numbers]
        fine = [refine(text, w) for text, w in zip(texts[0], words, strict=True)]
        spans, owners = [f[0] for f in fine], [f[1] for f in fine]
        found = encode_windows(tokenizer, texts[0], spans, tokenizer.model_max_length)
        windows = [[[w] for w in (row if word_tasks else row[:1])] for row in found]
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
            for name, config in configs.items():
                data = source.tasks[name].data
                value = batch[data.label][i] if data.label is not None else None
                if name in word_tasks:
                    labels, read = _token_labels(config, value, group[0], owners[i])
                    columns.setdefault(f"words_{name}", []).append(read)
                elif config.head == "masked_lm":
                    continue
                else:
                    labels = _label(config, data, value)
                columns.setdefault(f"labels_{name}", []).append(labels)
    return columns


def _prompted(source: Source, texts: list[list[str]]) -> list[list[str]]:
    """The texts with the prompts of the tasks that read them."""
    config = next(iter(source.configs.values()))
    prompts = [config.prompt(part) for part in range(len(texts))]
    return [[prompt + t for t in part] for prompt, part in zip(prompts, texts, strict=True)]


def _encode_texts(
    source: Source, tokenizer: PreTrainedTokenizerBase, texts: list[list[str]]
) -> list[list[Window]]:
    """Two or more texts a row: one sequence for a pair task, one each for an embedding group."""
    embeds = next(iter(source.tasks.values())).head == "embedding"
    options: dict[str, Any] = {"truncation": True, "max_length": tokenizer.model_max_length}
    if embeds:
        encoded = [tokenizer(part, **options) for part in texts]
    else:
        encoded = [tokenizer(texts[0], texts[1], **options)]
    return [
        [
            Window(e["input_ids"][i], e["token_type_ids"][i] if "token_type_ids" in e else None, [])
            for e in encoded
        ]
        for i in range(len(texts[0]))
    ]


def _words(source: Source, batch: dict[str, list], texts: list[str]) -> list[list[Span]]:
    """Character spans of the words of each row in its text."""
    column = next(t.data.tokens for t in source.tasks.values() if t.data.tokens)
    spans = []
    for text, words in zip(texts, batch[str(column)], strict=True):
        found = locate_words(text, words) if source.text is not None else _joined(words)
        assert found is not None, "checked when the data was loaded"
        spans.append(found)
    return spans


def _joined(words: list[str]) -> list[Span]:
    """Spans of words joined by single spaces."""
    ends = accumulate(len(word) + 1 for word in words)
    return [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]


def _token_labels(
    config: TaskConfig, tags: list | None, window: Window, owner: list[int]
) -> tuple[list[int], list[int]]:
    """Tag ids by token, and by token the word that is scored there (its first part)."""
    labels = [IGNORE] * len(window.input_ids)
    read = [-1] * len(window.input_ids)
    ids = {label: i for i, label in enumerate(config.labels or [])}
    first = {word: part for part, word in reversed(list(enumerate(owner)))}
    parts = Counter(owner)
    for part, token in window.first_tokens:
        word = owner[part]
        if part == first[word]:
            read[token] = word
        if tags is not None:
            tag = part_tags(str(tags[word]), parts[word], config.scheme)[part - first[word]]
            labels[token] = ids.get(tag, IGNORE)
    return labels, read


def _label(config: TaskConfig, data: DataConfig, value: Any) -> Any:
    """Label of one row; the missing mark of its kind where there is none or it is unknown."""
    if config.problem_type == "single_label_classification":
        found = labels_in(value)
        known = bool(found) and found[0] in (config.labels or [])
        return (config.labels or []).index(found[0]) if known else IGNORE
    if config.problem_type == "multi_label_classification":
        found = set(labels_in(value))
        missing = float("nan")
        return [missing if value is None else float(x in found) for x in config.labels or []]
    if data.label is None:  # contrastive groups without scores
        return 1.0
    if config.loss == "mse":
        return [float(number) for number in value]
    if value is None:
        return float("nan")
    low, high = data.label_range or (0.0, 1.0)
    return (float(value) - low) / (high - low)
