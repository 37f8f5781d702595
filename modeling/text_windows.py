# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Texts of a pipeline's calls to windows of tokens, for the tasks that read them.

A fast tokenizer holds how it cuts texts, and each call with other lengths would change that under
the calls of other threads; so there are copies of it, one for each way.
"""

import copy
import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from .first_use import FIRST_USE
from .inputs import TextOrPair, tokenizable
from .task_config import TaskConfig
from .windows import (
    Reads,
    Span,
    Window,
    cut_note,
    encode_pairs,
    encode_windows,
    split_words,
    units_of,
)

logger = logging.getLogger(__name__)
WAYS = {  # to cut: single texts in windows, pairs at their end, pairs not at all
    "windows": lambda tokenizer, limit: encode_windows(tokenizer, ["a"], [[]], limit),
    "cut": lambda tokenizer, limit: tokenizer(["a"], ["a"], truncation=True, max_length=limit),
    "whole": lambda tokenizer, limit: encode_pairs(tokenizer, [("a", "a")], limit),
}


class TextWindows:
    """Cuts texts into windows; any number of threads may call it.

    Attributes:
        told: what has been said, and is not said again.
    """

    def __init__(self) -> None:
        self._tokenizers: dict[tuple[Any, int, str], PreTrainedTokenizerBase] = {}
        self.told: set[str] = set()

    def of(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: list[TextOrPair],
        configs: dict[str, TaskConfig],
        limit: int,
    ) -> tuple[list[list[list[Span]]], list[tuple[int, Window, Reads]]]:
        """The windows of texts, or of pairs, that some tasks read.

        Args:
            tokenizer: the pipeline's.
            texts: texts, or pairs, not both.
            configs: the tasks.
            limit: tokens of a window.

        Returns:
            units of words of each text; (row, window, the units read in it) by window.
        """
        if isinstance(texts[0], tuple):
            windows = self._of_pairs(tokenizer, texts, configs, limit)  # pyright: ignore
            return [[] for _ in texts], [(row, w, []) for row, of in enumerate(windows) for w in of]
        reads_words = any(config.head_class.decodes_spans for config in configs.values())
        read = [tokenizable(str(text)) for text in texts]
        words = [split_words(text) if reads_words else [] for text in read]
        encoded = encode_windows(self._copy_of(tokenizer, limit, "windows"), read, words, limit)
        cut = [name for name, config in configs.items() if not config.reads_windows]
        self._tell_cut([len(windows) > 1 for windows in encoded], cut, limit)
        last = None if any(config.reads_windows for config in configs.values()) else 1
        units, windows = [], []
        for row, windows_of_text in enumerate(encoded):
            of_text, reads = units_of(
                words[row], [window.first_tokens for window in windows_of_text]
            )
            units.append(of_text)
            windows += [
                (row, *pair) for pair in zip(windows_of_text[:last], reads[:last], strict=True)
            ]
        return units, windows

    def _of_pairs(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: list[tuple[str, str]],
        configs: dict[str, TaskConfig],
        limit: int,
    ) -> list[list[Window]]:
        """The windows of each pair; one of each where the tasks read the first alone."""
        pairs = [(tokenizable(one), tokenizable(other)) for one, other in texts]
        tasks = list(configs)
        if configs[tasks[0]].reads_windows:
            windows = encode_pairs(self._copy_of(tokenizer, limit, "whole"), pairs, limit)
            self._tell_cut([of_pair[0].cut for of_pair in windows], tasks, limit)
            return windows
        first, second = (list(part) for part in zip(*pairs, strict=True))
        cutting = self._copy_of(tokenizer, limit, "cut")
        encoded = cutting(first, second, truncation=True, max_length=limit)
        self._tell_cut([bool(e.overflowing) for e in encoded.encodings or ()], tasks, limit)
        types = encoded.get("token_type_ids")
        return [
            [Window(ids, types[row] if types else None)]
            for row, ids in enumerate(encoded["input_ids"])
        ]

    def _tell_cut(self, cut: list[bool], tasks: list[str], limit: int) -> None:
        """Say, once, that texts were too long for some tasks."""
        if tasks and any(cut) and "cut" not in self.told:
            self.told.add("cut")
            note = cut_note(sum(cut), len(cut), "texts", limit, tasks)
            logger.warning(f"{note}; this is said once")

    def _copy_of(
        self, source: PreTrainedTokenizerBase, limit: int, way: str
    ) -> PreTrainedTokenizerBase:
        """A tokenizer that is asked for nothing else than one of `WAYS` at one limit."""
        key = (source, limit, way)
        if key not in self._tokenizers:
            with FIRST_USE:
                if key not in self._tokenizers:
                    tokenizer = copy.deepcopy(source)
                    WAYS[way](tokenizer, limit)  # sets how it cuts; later calls find it so
                    self._tokenizers[key] = tokenizer
        return self._tokenizers[key]
