"""Checked rows to tokenized rows, and the dataset that holds those of all sources.

A tokenized row (one per window of a long text) holds
    input_ids        list of token id lists: one text, or two and more for an embedding group
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
from ...modeling.decoding import unit_tags
from ...modeling.heads import IGNORE
from ...modeling.windows import Span, Window, encode_windows, split_words, units_of
from ..recipe.schema import DataConfig
from .labels import labels_in
from .loading import Source
from .tags import row_words, tags_in


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
        windows = [[group] for group in _encode_texts(source, tokenizer, texts)]
        words: list[list[Span]] = [[] for _ in numbers]
    else:
        words = [split_words(text) if word_tasks else [] for text in texts[0]]
        encoded = encode_windows(tokenizer, texts[0], words, tokenizer.model_max_length)
        windows = [[[w] for w in (row if word_tasks else row[:1])] for row in encoded]
    labels = {
        name: _unit_labels(source, name, config, batch, words, windows)
        if name in word_tasks
        else _labels(config, source.tasks[name].data, batch, len(numbers))
        for name, config in configs.items()
        if config.head != "masked_lm"
    }
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
            if word_tasks:
                words_read, counts = _words_by_token(group[0])
                columns.setdefault("words", []).append(words_read)
                columns.setdefault("word_counts", []).append(counts)
            for name, values in labels.items():
                of_row = values[i][number] if name in word_tasks else values[i]
                columns.setdefault(f"labels_{name}", []).append(of_row)
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
            Window(e["input_ids"][i], e["token_type_ids"][i] if "token_type_ids" in e else None)
            for e in encoded
        ]
        for i in range(len(texts[0]))
    ]


def _words_by_token(window: Window) -> tuple[list[int], list[int]]:
    """For each token of a window, the first word that is read there (or -1), and how many are."""
    words, counts = ([fill] * len(window.input_ids) for fill in (-1, 0))
    for word, token in window.first_tokens:
        words[token] = word if words[token] < 0 else words[token]
        counts[token] += 1
    return words, counts


def first_tokens_of(words: list[int], counts: list[int]) -> list[tuple[int, int]]:
    """(word, token) of a window from its columns `words` and `word_counts`."""
    return [
        (first + more, token)
        for token, (first, count) in enumerate(zip(words, counts, strict=True))
        for more in range(count)
    ]


def _unit_labels(
    source: Source,
    name: str,
    config: TaskConfig,
    batch: dict[str, list],
    words: list[list[Span]],
    windows: list[list[list[Window]]],
) -> list[list[list[int]]]:
    """Tag ids by row, window and token: those of the units that are read there, else IGNORE."""
    task, scheme = source.tasks[name], source.scheme_of(name, config)
    ids: dict[str | None, int] = {label: i for i, label in enumerate(config.labels or [])}
    labels = []
    rows = zip(row_words(task, source.text, batch), batch[str(task.data.label)], strict=True)
    for i, ((text, word_spans), tags) in enumerate(rows):
        units, reads = units_of(words[i], [window.first_tokens for [window] in windows[i]])
        by_window = [[IGNORE] * len(window.input_ids) for [window] in windows[i]]
        if tags is not None:
            of_units = unit_tags(
                text, units, word_spans, tags_in(tags) or [], scheme, config.scheme
            )
            for of_tokens, pairs in zip(by_window, reads, strict=True):
                for unit, token in pairs:
                    of_tokens[token] = ids.get(of_units[unit], IGNORE)
        labels.append(by_window)
    return labels


def _labels(config: TaskConfig, data: DataConfig, batch: dict[str, list], rows: int) -> list:
    """Labels of the rows of a batch."""
    values = batch[data.label] if data.label is not None else [None] * rows
    return [_label(config, data, value) for value in values]


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
