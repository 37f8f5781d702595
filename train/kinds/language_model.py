"""What masked and causal language models have in common: their labels are tokens of the text."""

import math
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...modeling.heads import IGNORE
from ..recipe.data_config import DataConfig
from .base import BatchLayout, LabelType, SplitRows, TaskKind
from .classification import ANSWER

LARGEST_LOSS = 700.0  # whose perplexity a float can hold


class LanguageModel(TaskKind):
    """Tokens of the text itself. They are chosen when rows are collated, by `labels_of`."""

    label_type: ClassVar[LabelType] = "none"
    needed = frozenset()
    metrics = ("token_accuracy", "perplexity")
    labels_from_tokens = True
    scores_itself = True

    @property
    def reads_words(self) -> bool:
        """`labels_of` wants to know which tokens are of one word."""
        return False

    @property
    def row_form(self) -> Hashable:
        """Texts that are joined to blocks are no rows of other tasks."""
        return "blocks" if self.task.blocks else None

    def labels_of(
        self,
        texts: Sequence[Sequence[int]],
        words: Sequence[Sequence[int]] | None,
        tokenizer: PreTrainedTokenizerBase,
        seed: tuple[int, ...] | None,
    ) -> tuple[list[Any], list[Any]]:
        """What the encoder reads of the texts of a row, and their labels.

        Args:
            texts: token ids of each.
            words: for each token the number of its word, -1 for special tokens; None where the kind
                does not read them.
            tokenizer: knows the special ones.
            seed: of what is drawn; None draws anew.

        Returns:
            the ids and the labels of each text, `IGNORE` for a token that has none.
        """
        raise NotImplementedError

    def encode(self, value: Any, data: DataConfig) -> None:
        """Nothing: the data has no labels."""

    def collate(self, labels: list, layout: BatchLayout) -> Tensor:
        """(n, T) padded, or (1, tokens) packed; `labels` are those of texts."""
        if layout.packed:
            return torch.tensor([[label for text in labels for label in text]])
        return torch.tensor([[*text, *[IGNORE] * (layout.width - len(text))] for text in labels])

    def gathered(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, T, V) logits to (N, 3): labelled tokens found, labelled tokens, sum of their loss."""
        labelled = labels != IGNORE
        row = labelled.nonzero()[:, 0]
        values, expected = logits[labelled].float(), labels[labelled]
        losses = F.cross_entropy(values, expected, reduction="none")
        hits = (values.argmax(-1) == expected).float()
        columns = torch.stack([hits, torch.ones_like(hits), losses], dim=1)
        return columns.new_zeros(len(labels), 3).index_add_(0, row, columns)

    def score(self, values: np.ndarray, rows: SplitRows) -> dict[str, float]:
        """Share of the labelled tokens that are found, and e to the power of their mean loss."""
        # NaN of windows that it does not read
        hits, tokens, loss = np.nansum(values.astype(np.float64), axis=0)
        mean = loss / max(1, tokens)
        return {
            "token_accuracy": float(hits / max(1, tokens)),
            "perplexity": math.exp(min(mean, LARGEST_LOSS)),
        }

    def feature(self) -> Any:
        """Tokens with scores."""
        return datasets.List(ANSWER)
