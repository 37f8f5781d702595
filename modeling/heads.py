# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""One class per kind of head, and `HEADS`, the table from name to class.

A head turns token states into logits (or embeddings) and knows its loss. The loss is the sum over
labelled units divided by `num_items`: with the count of the whole optimizer step it is exact under
gradient accumulation and over ranks; without one it is the mean over the batch, as in HF's heads.

What else differs between kinds of head stands in their classes too (`base_head.py` says what).
`register_head` adds a class of your own.

Shapes: `N` rows, `T` tokens, `H` hidden, `L` labels, `V` vocabulary, `D` embedding width,
`G` groups, `P` tokens of a packed batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .base_head import Conditions, Head
from .checks import check_choice
from .head_layers import LARGEST_LAYERS, ResidualLayers, dense_layer
from .hierarchy import check_paths
from .losses import LOSSES
from .options import (
    SCHEMES,
    HeadTask,
    check_class_weight,
    check_grown,
    check_option_names,
    scheme_of,
)
from .problem_types import IGNORE as IGNORE
from .problem_types import PROBLEM_TYPES, Weighing, ordinal_logits
from .tables import Table
from .vocabulary_heads import CausalLMHead, MaskedLMHead

OUTPUTS = ("logits", "embeddings")
# Of classes: what may be decided beside the logits, and of which problem types.
DECISIONS = {
    "calibration": ("single_label_classification", "multi_label_classification"),
    "thresholds": ("multi_label_classification",),
    "abstain": ("single_label_classification",),
}


def output_layers(task: HeadTask, size: int) -> tuple[nn.Linear, nn.ModuleList]:
    """The layer of a task's first labels, and one for those of each time that it has grown.

    Between labels in order are steps, one less.
    """
    grown, ordinal = task.grown or [], task.problem_type == "ordinal"
    more = nn.ModuleList(nn.Linear(size, count) for count in grown)
    return nn.Linear(size, task.num_labels - sum(grown) - ordinal), more


def joined_logits(x: Tensor, out: nn.Linear, more: nn.ModuleList) -> Tensor:
    """(..., size) -> (..., L), each layer by itself: logits of old labels stay the same bits."""
    return torch.cat([out(x), *(layer(x) for layer in more)], -1) if more else out(x)


class SequenceClassificationHead(Head):
    """Classification or regression over one vector per text or pair of texts.

        x = pooled;  x = act(W1 dropout(x) + b1) if `activation`;  logits = W dropout(x) + b

    With `layers: n` the hidden layers are n of `ResidualLayers` instead.
    With pooling `cls` and `activation` tanh this is BERT's pooler and classifier (and, with dropout
    on the pooled vector, RoBERTa's head); relu gives DistilBERT's, gelu ELECTRA's.
    """

    options = frozenset(
        ("labels", "problem_type", "hierarchy", "pooling", "activation", "layers", "dropout")
        + ("threshold", "pair", "partial", "grown", "strict", "long_texts", "window_pooling")
        + ("label_smoothing", "class_weight", "focal", "layer_mix", "layer")
        + ("calibration", "thresholds", "abstain")
    )
    weighs_rows = True

    def __init__(self, *, task: HeadTask, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        self.problem = PROBLEM_TYPES[str(task.problem_type)]
        self.dropout = nn.Dropout(task.dropout)
        self.dense, self.act = dense_layer(task, self.pooled_size)
        self.hidden = ResidualLayers(task=task, size=self.pooled_size)
        self.out, self.more = output_layers(task, self.pooled_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, pooled_size) -> (N, L); L = 1 for regression, log-probabilities for ordinal."""
        if self.dense is not None and self.act is not None:
            x = self.act(self.dense(self.dropout(x)))
        logits = joined_logits(self.dropout(self.hidden(x)), self.out, self.more)
        if self.task.problem_type == "ordinal":
            return ordinal_logits(logits)
        return self.calibrated(logits)

    def count(self, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Rows with a label: not -100 (single-label) or not NaN (multi-label, regression)."""
        return self.problem.count(labels, Weighing.of(self.task), weights)

    def loss_sum(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Cross-entropy, binary cross-entropy (mean over a row's known labels) or squared error."""
        if self.task.partial:
            return super().loss_sum(logits, labels, weights)
        return self.problem.loss_sum(logits, labels, Weighing.of(self.task), weights)

    @classmethod
    def only_with(cls) -> Conditions:
        """Which options read others: as a threshold, labels of which there may be several."""
        return {
            "threshold": ("problem_type", ("multi_label_classification",)),
            **dict.fromkeys(
                ("partial", "grown", "strict"), ("problem_type", ("single_label_classification",))
            ),
            "window_pooling": ("long_texts", ("windows",)),
        }

    @classmethod
    def check(cls, task: HeadTask) -> None:
        """A problem type, and as many labels as it needs."""
        if task.problem_type is None and task.labels:
            task.problem_type = "single_label_classification"
        if task.problem_type is None:
            raise ValueError("sequence_classification needs labels or problem_type: regression")
        check_choice("problem_type", task.problem_type, tuple(PROBLEM_TYPES))
        if task.label_smoothing and task.problem_type != "single_label_classification":
            raise ValueError(
                f"label_smoothing is for one class of several, not {task.problem_type}"
            )
        if task.problem_type == "regression" and (task.class_weight is not None or task.focal):
            raise ValueError("class_weight and focal are for classes, not regression")
        least, labels = PROBLEM_TYPES[task.problem_type].least_labels, task.labels or []
        if labels and least == 0:
            raise ValueError(f"a {task.problem_type} task has no labels")
        if len(labels) < least:
            raise ValueError(f"{task.problem_type} needs {least} labels or more, got {task.labels}")
        if task.hierarchy:
            if task.problem_type != "single_label_classification":
                raise ValueError("hierarchy belongs to problem_type: single_label_classification")
            check_paths(labels)
            if task.strict:
                raise ValueError("hierarchy: labels with thresholds of their own are in no tree")
        check_grown(task)
        check_class_weight(task)
        _check_decided(task)

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
        """(L,) -> the best label, all labels above the threshold, or a number."""
        problem = PROBLEM_TYPES[str(task.problem_type)]
        return problem.answer(task, values, top_k=top_k, threshold=threshold)


def _check_decided(task: HeadTask) -> None:
    """Raise ValueError for a decision that classes of this problem type do not have."""
    for option, kinds in DECISIONS.items():
        if getattr(task, option) is not None and task.problem_type not in kinds:
            raise ValueError(f"{option} belongs to problem_type: {' or '.join(kinds)}")


class TokenClassificationHead(Head):
    """One label per token: logits = W dropout(h) + b, as in HF's token classification heads.

    With `layers: n` token states go through n of `ResidualLayers` first.
    """

    per_token = True
    decodes_spans = True
    options = frozenset(
        ("labels", "layers", "layer_mix", "layer", "activation", "dropout", "scheme", "signs")
        + ("partial", "grown", "strict", "label_smoothing", "class_weight", "focal")
        + ("calibration", "abstain")
    )
    weighs_rows = True

    def __init__(self, *, task: HeadTask, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        self.dropout = nn.Dropout(task.dropout)
        self.hidden = ResidualLayers(task=task, size=encoder_config.hidden_size)
        self.out, self.more = output_layers(task, encoder_config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, H) -> (N, T, L), or packed (1, P, H) -> (1, P, L)."""
        logits = joined_logits(self.dropout(self.hidden(x)), self.out, self.more)
        return self.calibrated(logits)

    @classmethod
    def only_with(cls) -> Conditions:
        """An activation is that of `layers`."""
        return {"activation": ("layers", tuple(range(1, LARGEST_LAYERS + 1)))}

    @classmethod
    def check(cls, task: HeadTask) -> None:
        """Labels, and a tag scheme that they follow."""
        if not task.labels:
            raise ValueError(f"{task.head} needs labels")
        if task.scheme is None:
            task.scheme = scheme_of(task.labels)
        check_grown(task)
        check_class_weight(task)
        if task.scheme is None:
            return
        check_choice("scheme", task.scheme, SCHEMES)
        if scheme_of(task.labels) is None:
            raise ValueError(f"scheme {task.scheme} needs tags like B-x, I-x; got {task.labels}")
        if task.scheme != "bioes" and scheme_of(task.labels) == "bioes":
            raise ValueError(f"scheme {task.scheme} has no E- and S-; got {task.labels}")


class EmbeddingHead(Head):
    """One vector per text: pool, then an optional linear layer, then length 1 if `normalize`.

    In training, rows come in consecutive groups (anchor, positive, ...): N = G * g. The labels say
    how many groups there are; their values are similarity scores, ignored by losses over groups.

    Raises:
        ValueError: an embedding has fewer dimensions than `matryoshka` names, or an odd number of
            them for the angle loss.
    """

    output = "embeddings"
    grouped = True
    options = frozenset(
        ("pooling", "projection", "normalize", "loss", "matryoshka", "prompts", "temperature")
        + ("symmetric", "false_negative_margin", "margin", "long_texts", "layer")
    )

    def __init__(self, *, task: HeadTask, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        self.out = nn.Linear(self.pooled_size, task.projection) if task.projection else None
        width = task.projection or self.pooled_size
        self.widths = task.matryoshka or [width]
        if self.widths[0] > width:
            raise ValueError(f"matryoshka asks for {self.widths[0]} of {width} dimensions")
        odd = [width for width in self.widths if width % 2]
        if odd and LOSSES[str(task.loss)].halves:
            raise ValueError(f"loss {task.loss} pairs the dimensions; {odd[0]} is odd")

    def forward(self, x: Tensor) -> Tensor:
        """(N, pooled_size) -> (N, D)."""
        if self.out is not None:
            x = self.out(x)
        return F.normalize(x, dim=-1) if self.task.normalize else x

    def count(self, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Groups whose score (texts whose vector) is not NaN, a scalar."""
        return _whole(labels).sum()

    def loss_sum(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """The task's embedding loss over (N, D) embeddings and (G,) scores, or (N, D) vectors.

        Raises:
            ValueError: the rows do not divide into the groups that the loss reads, or vectors are
                of another width than the embeddings.
        """
        rows, count, loss = len(logits), len(labels), LOSSES[str(self.task.loss)]
        if count == 0:
            return logits.sum() * 0
        if loss.label == "vector" and labels.shape != logits.shape:
            raise ValueError(f"labels are {tuple(labels.shape)}, embeddings {tuple(logits.shape)}")
        size, (least, most) = rows // count, loss.group
        if rows % count or size < least:
            raise ValueError(
                f"{rows} rows for {count} scores: rows come in groups of {least} or more"
            )
        if most is not None and size > most:
            raise ValueError(f"{self.task.loss} reads {loss.groups}; got groups of {size}")
        known = _whole(labels)
        groups = logits.view(count, size, -1)[known]  # (G, g, D)
        values = labels[known].to(logits.dtype)  # (G,) or (G, D)
        scaled = loss.reads_lengths and self.task.normalize  # a cut has changed the lengths
        cuts = [groups[..., :width] for width in self.widths]
        cuts = [F.normalize(cut, dim=-1) for cut in cuts] if scaled else cuts
        return torch.stack([loss.sum(cut, values, self.task) for cut in cuts]).sum()

    @classmethod
    def pool_windows(cls, task: HeadTask, values: Tensor, lengths: Tensor) -> Tensor:
        """(W, D) vectors of a text's windows and (W,) their tokens -> (D,).

        v = sum_w n_w v_w / sum_w n_w, and of length 1 again if `normalize`
        """
        weights = (lengths / lengths.sum()).to(values.dtype)
        mean = weights @ values
        return F.normalize(mean, dim=-1) if task.normalize else mean

    @classmethod
    def only_with(cls) -> Conditions:
        """What some of the losses read."""
        names = {option for loss in LOSSES.values() for option in loss.options}
        return {
            option: ("loss", tuple(n for n, loss in LOSSES.items() if option in loss.options))
            for option in names
        }

    @classmethod
    def check(cls, task: HeadTask) -> None:
        """A loss, and what goes with it."""
        task.loss = task.loss or "cosent"
        check_choice("loss", task.loss, tuple(LOSSES))
        if LOSSES[task.loss].label == "vector" and task.matryoshka:
            raise ValueError(f"loss {task.loss} compares whole vectors; take matryoshka out")
        if task.prompts is not None and len(task.prompts) not in (1, 2):
            raise ValueError(f"prompts is {task.prompts}; give [text] or [query, document]")


def _whole(labels: Tensor) -> Tensor:
    """(G,) whether a label of (G,) or (G, D) has no NaN."""
    return (~labels.isnan()).view(len(labels), -1).all(1)


class MultipleChoiceHead(Head):
    """One score for a question and a choice in one sequence; a softmax over the choices of a row.

        x = pooled;  x = act(W1 dropout(x) + b1) if `activation`;  score = w dropout(x) + b

    With `layers: n` the hidden layers are n of `ResidualLayers` instead.

    Rows come in consecutive groups, a question with each of its C choices: N = G * C. With pooling
    `cls` and `activation` tanh these are the layers of HF's BertForMultipleChoice.
    """

    grouped = True
    chooses = True
    options = frozenset(
        ("pooling", "activation", "layers", "layer_mix", "layer", "dropout", "label_smoothing")
        + ("focal", "calibration", "abstain")
    )
    weighs_rows = True

    def __init__(self, *, task: HeadTask, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        self.dropout = nn.Dropout(task.dropout)
        self.dense, self.act = dense_layer(task, self.pooled_size)
        self.hidden = ResidualLayers(task=task, size=self.pooled_size)
        self.out = nn.Linear(self.pooled_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, pooled_size) -> (N, 1)."""
        if self.dense is not None and self.act is not None:
            x = self.act(self.dense(self.dropout(x)))
        return self.calibrated(self.out(self.dropout(self.hidden(x))))

    def loss_sum(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Cross-entropy of (N, 1) scores over the choices of each row, and (G,) of their numbers.

        Raises:
            ValueError: the scores do not divide into G groups.
        """
        rows, groups = len(logits), len(labels)
        if groups == 0:
            return logits.sum() * 0
        if rows % groups:
            raise ValueError(f"{rows} rows for {groups} labels: each group has as many choices")
        return super().loss_sum(logits.view(groups, rows // groups), labels, weights)


HEADS: Table[type[Head]] = Table(
    "head",
    {
        "embedding": EmbeddingHead,
        "sequence_classification": SequenceClassificationHead,
        "token_classification": TokenClassificationHead,
        "masked_lm": MaskedLMHead,
        "causal_lm": CausalLMHead,
        "multiple_choice": MultipleChoiceHead,
    },
)


def register_head(name: str, head: type[Head]) -> None:
    """Add a kind of head that tasks can name.

    Args:
        name: for the task's `head`.
        head: its class. Its file travels with models that have such a task.

    Raises:
        ValueError: `head` is no subclass of `Head` with a `forward`, or says of itself what no head
            does; the name is taken or has other characters than lower-case letters, digits and _.
    """
    if not isinstance(head, type) or not issubclass(head, Head) or head.forward is Head.forward:
        raise ValueError(f"head {name!r} is {head!r}; give a subclass of Head with a forward")
    check_choice(f"output of head {name!r}", head.output, OUTPUTS)
    check_option_names(f"head {name!r}", head.options)
    HEADS.add(name, head, head)
