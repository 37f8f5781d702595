# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Heads over the vocabulary: masked and next-token prediction, for training on texts alone.

Their output layer is most of a small model's weights, so it is the encoder's input embeddings, and
in training it runs on labelled tokens only.

Shapes: `T` tokens, `H` hidden, `E` width of the input embeddings, `V` vocabulary.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from .base_head import Head
from .decoding import decode_classes
from .options import HeadTask


class MaskedLMHead(Head):
    """Masked-token prediction with the input embeddings as output layer.

        logits = E LayerNorm(act(W h + b)) + c,   E the (V, E) input embeddings if `tied`

    The head of BERT (arXiv:1810.04805); E may be narrower than H (ALBERT, ELECTRA). In training the
    model gives it the labelled tokens only: V is large, and 85 % of the tokens have no label.
    """

    per_token = True
    labelled_tokens_only = True
    options = frozenset(
        ("mlm_probability", "mask_shares", "whole_word", "blocks", "tied", "long_texts")
    )

    def __init__(self, *, task: HeadTask, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        width = embedding_width(encoder_config)
        self.dense = nn.Linear(encoder_config.hidden_size, width)
        self.act = ACT2FN[getattr(encoder_config, "hidden_act", "gelu")]  # ALBERT: gelu_new
        named = (getattr(encoder_config, key, None) for key in ("layer_norm_eps", "norm_eps"))
        self.norm = nn.LayerNorm(width, eps=next(filter(None, named), 1e-12))
        self.decoder = nn.Linear(width, encoder_config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., V)."""
        return self.decoder(self.norm(self.act(self.dense(x))))

    @classmethod
    def ties(cls, task: HeadTask) -> bool:
        """As the task says."""
        return task.tied

    @classmethod
    def check(cls, task: HeadTask) -> None:
        """Shares that are some, and make a whole."""
        if not 0 <= task.mlm_probability <= 1:
            raise ValueError(f"mlm_probability is {task.mlm_probability}; it must lie in [0, 1]")
        shares = task.mask_shares
        if shares is None:
            return
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"mask_shares is {shares}; give [masked, random, kept], three shares that sum to 1"
            )

    @classmethod
    def answer(
        cls,
        task: HeadTask,
        values: Tensor,
        ids: list[int],
        *,
        tokenizer: PreTrainedTokenizerBase,
        top_k: int | None = 1,
        threshold: float | None = None,
    ) -> Any:
        """(T, V) -> for each mask its best token, or the `top_k` best."""
        vocabulary = _vocabulary(tokenizer, values)
        masks = [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]
        return [
            decode_classes(
                values[mask, : len(vocabulary)],
                vocabulary,
                multi_label=False,
                top_k=top_k,
                threshold=0.0,
            )
            for mask in masks
        ]


class CausalLMHead(Head):
    """Prediction of the next token from the tokens before it.

        logits = E h + c,   E the (V, H) input embeddings if `tied`, else weights of its own

    The head of GPT-2 and Llama (with a bias c that begins at zero); where the embeddings are
    narrower than H (ALBERT, ELECTRA), a linear layer without bias comes before. Labels stand where
    the prediction is made: that of a token is the token after it.
    """

    per_token = True
    labelled_tokens_only = True
    causal = True
    options = frozenset(("blocks", "tied"))

    def __init__(self, *, task: HeadTask, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        hidden = encoder_config.hidden_size
        width = embedding_width(encoder_config)
        narrower = task.tied and width != hidden
        self.dense = nn.Linear(hidden, width, bias=False) if narrower else None
        self.decoder = nn.Linear(width if task.tied else hidden, encoder_config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., V)."""
        return self.decoder(x if self.dense is None else self.dense(x))

    @classmethod
    def ties(cls, task: HeadTask) -> bool:
        """As the task says."""
        return task.tied

    @classmethod
    def answer(
        cls,
        task: HeadTask,
        values: Tensor,
        ids: list[int],
        *,
        tokenizer: PreTrainedTokenizerBase,
        top_k: int | None = 1,
        threshold: float | None = None,
    ) -> Any:
        """(T, V) -> the best token to come after the text, or the `top_k` best."""
        special = set(tokenizer.all_special_ids)
        last = max((i for i, token in enumerate(ids) if token not in special), default=0)
        vocabulary = _vocabulary(tokenizer, values)
        best = values[last, : len(vocabulary)]
        return decode_classes(best, vocabulary, multi_label=False, top_k=top_k, threshold=0.0)


def embedding_width(encoder_config: PreTrainedConfig) -> int:
    """E: as H, or narrower (ALBERT, ELECTRA)."""
    return getattr(encoder_config, "embedding_size", None) or encoder_config.hidden_size


def _vocabulary(tokenizer: PreTrainedTokenizerBase, values: Tensor) -> list[str]:
    """The tokens that (..., V) logits are of; an encoder's vocabulary may be padded."""
    known = min(len(tokenizer), values.shape[-1])
    return list(tokenizer.convert_ids_to_tokens(list(range(known))))
