"""Masked language modelling (arXiv:1810.04805): some tokens are hidden, and to be found."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ...modeling.heads import IGNORE
from ...modeling.options import MASK_SHARES
from .language_model import LanguageModel


class MaskedLM(LanguageModel):
    """Tokens at masks."""

    pipeline_tag = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    needs_mask_token = True

    @property
    def reads_words(self) -> bool:
        """All tokens of a word are hidden together."""
        return self.task.whole_word

    def labels_of(
        self,
        texts: Sequence[Sequence[int]],
        words: Sequence[Sequence[int]] | None,
        tokenizer: PreTrainedTokenizerBase,
        seed: tuple[int, ...] | None,
    ) -> tuple[list[Any], list[Any]]:
        """Of each text, its ids with masks, and the tokens that stood there."""
        rng = np.random.default_rng(seed)
        masked, random, _ = self.task.mask_shares or MASK_SHARES
        special, mask = np.array(tokenizer.all_special_ids), np.array(tokenizer.mask_token_id)
        ids, labels = [], []
        for number, text in enumerate(texts):
            tokens = np.array(text)
            of_word = np.arange(len(tokens)) if words is None else np.array(words[number])
            drawn = rng.random(of_word.max(initial=0) + 1) < self.task.mlm_probability
            hidden = drawn[of_word] & ~np.isin(tokens, special)
            labels.append(np.where(hidden, tokens, IGNORE).tolist())
            how, others = rng.random(len(tokens)), rng.integers(len(tokenizer), size=len(tokens))
            tokens = np.where(hidden & (how < masked), mask, tokens)
            replaced = hidden & (how >= masked) & (how < masked + random)
            ids.append(np.where(replaced, others, tokens).tolist())
        return ids, labels
