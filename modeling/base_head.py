# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""The base of all heads: what a kind of head says of itself, and what it may leave as it is.

Config, model and pipeline ask here; none of them knows a kind of head by name.

Shapes: `N` rows, `T` tokens, `H` hidden, `L` labels, `D` embedding width, `U` units of words.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .decoding import decode_entities, decode_strict, if_sure, sure_entities
from .experts import Mixture
from .head_layers import LayerMix
from .options import HeadTask
from .pooling import layers_needed
from .problem_types import SingleLabel, Weighing, marginal_loss_sum
from .windows import Span

CLASSES = SingleLabel()  # the loss and the answer of heads that say nothing else
Conditions = dict[str, tuple[str, tuple[str | int, ...]]]


class Head(nn.Module):
    """Base of all heads.

    A subclass has a `forward`, names the `options` that it reads, and changes what differs:

    - `per_token`: works on token states, any (..., H), so that it may be given chosen tokens only;
      the others work on one pooled vector per text.
    - `output`: where the result stands in `PolyheadOutput`: `logits` or `embeddings`.
    - `options`: the options of a task that it reads; the others are refused.
    - `grouped`: its rows come in consecutive groups (pair, triplet), and labels count the groups.
    - `labelled_tokens_only`: in training with labels it runs on the labelled tokens alone.
    - `ties_embeddings`: the weight of its `decoder` is the encoder's input embeddings; `ties` says
      it where tasks differ.
    - `causal`: its tokens see earlier ones only. Either all heads of a model are so, or none.
    - `decodes_spans`: of a long text it reads every window, at one sub-token of each unit of words,
      and answers by `answer_spans`; the others answer by `answer`, for the first window or for all.
    - `chooses`: it reads a text with a list of others, each pair a sequence, and answers for all of
      them by `answer_choice`.
    - `check`, `only_with`: what its options may say, and say together.
    - `count`, `loss_sum`: labelled units, and the loss summed over them.
    - `weighs_rows`: both take weights of the units as a third argument.
    - `pool_windows`: what the windows of a long text give, as one; where `options` has long_texts.

    Args:
        task: the task's options.
        encoder_config: the encoder's config, for its sizes.
        pooling: pooling of the model, taken when the task names none.

    Raises:
        ValueError: the pooling or `layer` reads layers that the encoder does not have, or they do
            not go together.
    """

    per_token: ClassVar[bool] = False
    output: ClassVar[Literal["logits", "embeddings"]] = "logits"
    options: ClassVar[frozenset[str]] = frozenset()
    grouped: ClassVar[bool] = False
    labelled_tokens_only: ClassVar[bool] = False
    ties_embeddings: ClassVar[bool] = False
    causal: ClassVar[bool] = False
    decodes_spans: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False

    def __init__(self, *, task: HeadTask, encoder_config: PreTrainedConfig, pooling: str) -> None:
        super().__init__()
        self.task = task
        self.mixture: Mixture | None = None  # of a model with experts, which sets it
        self.pooling = task.pooling or pooling
        if layers_needed(self.pooling) > encoder_config.num_hidden_layers:
            raise ValueError(
                f"pooling {self.pooling} reads {layers_needed(self.pooling)} layers; this encoder "
                f"has {encoder_config.num_hidden_layers}"
            )
        if task.layer_mix and layers_needed(self.pooling) > 1 and not self.per_token:
            raise ValueError(
                f"layer_mix reads all layers, pooling {self.pooling} some; take one of them out"
            )
        layers = encoder_config.num_hidden_layers
        self.layer_mix = LayerMix(layers + 1) if task.layer_mix else None
        self.layer = self._layer_of(task, layers)
        self.pooled_size = encoder_config.hidden_size * layers_needed(self.pooling)

    def _layer_of(self, task: HeadTask, count: int) -> int | None:
        """The layer whose states the task reads; None for the last of `count`."""
        if task.layer is not None and task.layer > count:
            raise ValueError(f"layer is {task.layer}; this encoder has layers 1 to {count}")
        if task.layer is not None and layers_needed(self.pooling) > 1 and not self.per_token:
            raise ValueError(
                f"layer reads one layer, pooling {self.pooling} several; take one of them out"
            )
        return None if task.layer == count else task.layer

    @property
    def states_needed(self) -> int:
        """How many of the last hidden states the head reads, where it reads no one `layer`."""
        if self.layer_mix is not None:
            return len(self.layer_mix.weights)
        return 1 if self.per_token else layers_needed(self.pooling)

    def forward(self, x: Tensor) -> Tensor:
        """Token states (..., H), or vectors of texts (N, pooled_size) -> logits, embeddings."""
        raise NotImplementedError

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits divided by the task's `calibration`; as they are where it has none."""
        return logits if self.task.calibration is None else logits / self.task.calibration

    # ---- the loss ----

    def count(self, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Number of labelled units (rows, tokens or groups), each as often as it weighs; a scalar.

        Args:
            labels: of the units.
            weights: of the units, in the same shape; None for all alike.
        """
        return CLASSES.count(labels, Weighing.of(self.task), weights)

    def loss_sum(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Loss summed over the labelled units, a scalar; here cross-entropy over class ids.

        Where the task has partly annotated rows, a unit may have one of several labels.
        """
        if self.task.partial:
            return marginal_loss_sum(logits, labels, self.task.partial_ids, weights)
        return CLASSES.loss_sum(logits, labels, Weighing.of(self.task), weights)

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        num_items: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Sum over labelled units / `num_items` (default: the units of this batch).

        Raises:
            ValueError: there are weights, which this kind of head does not know.
        """
        if weights is not None and not self.weighs_rows:
            raise ValueError(f"the loss of {self.task.head} knows no weights of rows")
        more = () if weights is None else (weights,)
        units = self.count(labels, *more) if num_items is None else num_items
        return self.loss_sum(logits.float(), labels, *more) / units.masked_fill(units <= 0, 1)

    # ---- long texts ----

    @classmethod
    def pool_windows(cls, task: HeadTask, values: Tensor, lengths: Tensor) -> Tensor:
        """What the windows of a text give, as one: their mean, or maximum by column.

        Training, evaluation and the pipeline ask here. A text of one window is not pooled.

        Args:
            task: the task, which says how.
            values: (W, L), of the W windows of one text.
            lengths: (W,), their tokens.

        Returns:
            (L,).
        """
        return values.amax(0) if task.window_pooling == "max" else values.mean(0)

    # ---- a task with such a head ----

    @classmethod
    def ties(cls, task: HeadTask) -> bool:
        """The decoder of such a task is tied to the input embeddings."""
        return cls.ties_embeddings

    @classmethod
    def only_with(cls) -> Conditions:
        """Of `options`, those read beside some values of another: {option: (other, values)}."""
        return {}

    @classmethod
    def check(cls, task: HeadTask) -> None:
        """Fill in defaults, and raise ValueError for options that do not fit each other.

        Args:
            task: changed; each of its options is of the right type, and one that the head reads.
        """

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
        """What the pipeline says of one text; here a label, a number, or the values as numpy.

        Args:
            task: the task.
            values: float, on the CPU: (L,) or (D,), or (its tokens, L).
            ids: the text's token ids.
            tokenizer: the model's.
            top_k: how many labels; None for all.
            threshold: probability from which labels are set; None for the task's own.
        """
        if values.shape == (len(task.labels or ()),):
            return CLASSES.answer(task, values, top_k=top_k, threshold=threshold)
        if cls.output == "logits" and values.shape == (1,):
            return {"score": float(values[0])}
        return values.numpy()

    @classmethod
    def answer_choice(cls, task: HeadTask, answers: list[Any], choices: Sequence[str]) -> Any:
        """What the pipeline says of one text with choices, for heads that choose.

        Args:
            task: the task.
            answers: what `answer` says of each choice.
            choices: the texts.
        """
        scores = torch.tensor([answer["score"] for answer in answers]).softmax(0)
        best = int(scores.argmax())
        answer = {"label": choices[best], "choice": best, "score": float(scores[best])}
        return if_sure(answer, task.abstain)

    @classmethod
    def answer_spans(
        cls, task: HeadTask, text: str, units: list[list[Span]], scores: Tensor
    ) -> list[dict[str, Any]]:
        """What the pipeline says of one text, for heads that decode spans.

        Args:
            task: the task.
            text: the text.
            units: character spans of the words of each unit.
            scores: (U, L) log-probabilities of the units, as `log_scores` gives them.
        """
        of_task = (text, units, scores, task.labels or [], task.scheme, task.signs)
        if task.strict:
            entities = decode_strict(*of_task, task.strict)
        else:
            entities = decode_entities(*of_task)
        return sure_entities(entities, task.abstain, task.strict)
