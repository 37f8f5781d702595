"""Causal language modelling: the label of a token is the token after it."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...modeling.heads import IGNORE
from .language_model import LanguageModel


class CausalLM(LanguageModel):
    """The next token, of every token but the last of a text."""

    pipeline_tag = "text-generation"
    auto_class = "AutoModelForCausalLM"

    def labels_of(
        self,
        texts: Sequence[Sequence[int]],
        words: Sequence[Sequence[int]] | None,
        tokenizer: PreTrainedTokenizerBase,
        seed: tuple[int, ...] | None,
    ) -> tuple[list[Any], list[Any]]:
        """The texts as they are, and each shifted by one."""
        return list(texts), [[*text[1:], IGNORE] for text in texts]
