# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""One class per kind of head, and `HEADS`, the table from name to class.

A head turns token states into logits (or embeddings) and knows its loss. The loss is the sum over
labelled units divided by `num_items`: with the count of the whole optimizer step it is exact under
gradient accumulation and over ranks; without one it is the mean over the batch, as in HF's heads.

Shapes: `N` rows, `T` tokens, `H` hidden, `L` labels, `V` vocabulary, `D` embedding width,
`G` groups, `P` tokens of a packed batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_polyhead import GROUP_LOSSES, TaskConfig
from .losses import angle, contrastive, cosent, cosine_mse, margin_mse, triplet
from .pooling import layers_needed

IGNORE = -100  # the label that torch's cross-entropy and HF skip


class Head(nn.Module):
    """Base of all heads.

    Args:
        task: the task's options.
        encoder_config: the encoder's config, for its sizes.
        pooling: pooling of the model, taken when the task names none.

    Raises:
        ValueError: the pooling reads more layers than the encoder has.
    """

    per_token = False  # True: works on any (..., H), so it may be given chosen tokens only

    def __init__(self, *, task: TaskConfig, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__()
        self.task = task
        self.pooling = task.pooling or pooling
        if layers_needed(self.pooling) > encoder_config.num_hidden_layers:
            raise ValueError(
                f"pooling {self.pooling} reads {layers_needed(self.pooling)} layers; this encoder "
                f"has {encoder_config.num_hidden_layers}"
            )
        self.pooled_size = encoder_config.hidden_size * layers_needed(self.pooling)

    @property
    def states_needed(self) -> int:
        """How many of the last hidden states the head reads."""
        return 1 if self.per_token else layers_needed(self.pooling)

    def forward(self, x: Tensor) -> Tensor:
        """Token states (..., H), or vectors of texts (N, pooled_size) -> logits, embeddings."""
        raise NotImplementedError

    def count(self, labels: Tensor) -> Tensor:
        """Number of labelled units (rows, tokens or groups), a scalar."""
        return (labels != IGNORE).sum()

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss summed over the labelled units, a scalar; here cross-entropy over class ids."""
        return F.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        )

    def loss(self, logits: Tensor, labels: Tensor, num_items: Tensor | None = None) -> Tensor:
        """Sum over labelled units / `num_items` (default: the units of this batch)."""
        units = self.count(labels) if num_items is None else num_items
        return self.loss_sum(logits.float(), labels) / units.clamp(min=1)


class SequenceClassificationHead(Head):
    """Classification or regression over one vector per text or pair of texts.

        x = pooled;  x = act(W1 dropout(x) + b1) if `activation`;  logits = W dropout(x) + b

    With pooling `cls` and `activation` tanh this is BERT's pooler and classifier (and, with dropout
    on the pooled vector, RoBERTa's head); relu gives DistilBERT's, gelu ELECTRA's.
    """

    def __init__(self, *, task: TaskConfig, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        self.dropout = nn.Dropout(task.dropout)
        self.dense = nn.Linear(self.pooled_size, self.pooled_size) if task.activation else None
        self.act = ACT2FN[task.activation] if task.activation else None
        self.out = nn.Linear(self.pooled_size, task.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, pooled_size) -> (N, L); L = 1 for regression."""
        if self.dense is not None and self.act is not None:
            x = self.act(self.dense(self.dropout(x)))
        return self.out(self.dropout(x))

    def count(self, labels: Tensor) -> Tensor:
        """Rows with a label: not -100 (single-label) or not NaN (multi-label, regression)."""
        if self.task.problem_type == "single_label_classification":
            return super().count(labels)
        return (~labels.isnan()).view(len(labels), -1).any(1).sum()

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, binary cross-entropy (mean over a row's known labels) or squared error."""
        if self.task.problem_type == "single_label_classification":
            return super().loss_sum(logits, labels)
        known = ~labels.isnan()
        filled = torch.where(known, labels, 0).to(logits.dtype)
        if self.task.problem_type == "regression":
            return ((logits.squeeze(-1) - filled.view(-1)).square() * known.view(-1)).sum()
        errors = F.binary_cross_entropy_with_logits(logits, filled, reduction="none") * known
        return (errors.sum(1) / known.sum(1).clamp(min=1)).sum()


class TokenClassificationHead(Head):
    """One label per token: logits = W dropout(h) + b, as in HF's token classification heads."""

    per_token = True

    def __init__(self, *, task: TaskConfig, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        self.dropout = nn.Dropout(task.dropout)
        self.out = nn.Linear(encoder_config.hidden_size, task.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, H) -> (N, T, L), or packed (1, P, H) -> (1, P, L)."""
        return self.out(self.dropout(x))


class EmbeddingHead(Head):
    """One vector per text: pool, then an optional linear layer, then length 1 if `normalize`.

    In training, rows come in consecutive groups (anchor, positive, ...): N = G * g. The labels say
    how many groups there are; their values are similarity scores, ignored by losses over groups.

    Raises:
        ValueError: an embedding has fewer dimensions than `matryoshka` names, or an odd number of
            them for the angle loss.
    """

    def __init__(self, *, task: TaskConfig, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        self.out = nn.Linear(self.pooled_size, task.projection) if task.projection else None
        width = task.projection or self.pooled_size
        self.widths = task.matryoshka or [width]
        if self.widths[0] > width:
            raise ValueError(f"matryoshka asks for {self.widths[0]} of {width} dimensions")
        odd = [width for width in self.widths if width % 2]
        if odd and task.loss == "angle":
            raise ValueError(f"loss angle pairs the dimensions; {odd[0]} is odd")

    def forward(self, x: Tensor) -> Tensor:
        """(N, pooled_size) -> (N, D)."""
        if self.out is not None:
            x = self.out(x)
        return F.normalize(x, dim=-1) if self.task.normalize else x

    def count(self, labels: Tensor) -> Tensor:
        """Groups whose score (texts whose vector) is not NaN."""
        return (~labels.isnan()).view(len(labels), -1).all(1).sum()

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The task's embedding loss over (N, D) embeddings and (G,) scores, or (N, D) vectors.

        Raises:
            ValueError: the rows do not divide into groups of two or more, or vectors are of another
                width than the embeddings.
        """
        rows, count = len(logits), len(labels)
        if count == 0:
            return logits.sum() * 0
        if self.task.loss == "mse":
            return self._distill(logits, labels.to(logits.dtype))
        if rows % count or rows // count < 2:
            raise ValueError(f"{rows} rows for {count} scores: rows come in groups of 2 or more")
        size, loss = rows // count, self.task.loss
        if loss not in (*GROUP_LOSSES, "margin_mse") and size != 2:
            raise ValueError(f"{loss} reads pairs; got groups of {size}")
        if loss == "margin_mse" and size != 3:
            raise ValueError(f"{loss} reads triplets; got groups of {size}")
        if loss == "triplet" and size < 3:
            raise ValueError(f"{loss} reads anchor, positive and negative; got groups of {size}")
        known = ~labels.isnan()
        groups = logits.view(count, size, -1)[known]  # (G, g, D)
        scores = labels[known].to(logits.dtype)  # (G,)
        return torch.stack([self._loss(groups[..., :w], scores) for w in self.widths]).sum()

    def _distill(self, vectors: Tensor, wanted: Tensor) -> Tensor:
        """Sum over texts of the mean squared difference to a teacher's (N, D) vectors."""
        if vectors.shape != wanted.shape:
            raise ValueError(f"labels are {tuple(wanted.shape)}, embeddings {tuple(vectors.shape)}")
        known = ~wanted.isnan().any(1)
        return (vectors - wanted)[known].square().mean(1).sum()

    def _loss(self, groups: Tensor, scores: Tensor) -> Tensor:
        task = self.task
        if task.loss == "contrastive":
            return contrastive(
                groups,
                task.temperature,
                symmetric=task.symmetric,
                false_negative_margin=task.false_negative_margin,
            )
        if task.loss in ("triplet", "margin_mse"):  # of lengths too, which a cut has changed
            groups = F.normalize(groups, dim=-1) if task.normalize else groups
        if task.loss == "triplet":
            return triplet(groups, task.margin)
        by_name = {
            "cosent": cosent,
            "angle": angle,
            "cosine_mse": cosine_mse,
            "margin_mse": margin_mse,
        }
        return by_name[str(task.loss)](groups, scores)


class MaskedLMHead(Head):
    """Masked-token prediction with the input embeddings as output layer.

        logits = E LayerNorm(act(W h + b)) + c,   E the (V, E) input embeddings (tied)

    The head of BERT (arXiv:1810.04805); E may be narrower than H (ALBERT, ELECTRA). In training the
    model gives it the labelled tokens only: V is large, and 85 % of the tokens have no label.
    """

    per_token = True

    def __init__(self, *, task: TaskConfig, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        width = getattr(encoder_config, "embedding_size", None) or encoder_config.hidden_size
        self.dense = nn.Linear(encoder_config.hidden_size, width)
        self.act = ACT2FN[getattr(encoder_config, "hidden_act", "gelu")]  # ALBERT: gelu_new
        self.norm = nn.LayerNorm(width, eps=getattr(encoder_config, "layer_norm_eps", 1e-12))
        self.decoder = nn.Linear(width, encoder_config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., V)."""
        return self.decoder(self.norm(self.act(self.dense(x))))


HEADS: dict[str, type[Head]] = {
    "sequence_classification": SequenceClassificationHead,
    "token_classification": TokenClassificationHead,
    "embedding": EmbeddingHead,
    "masked_lm": MaskedLMHead,
}
