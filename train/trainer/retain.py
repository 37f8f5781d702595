"""Texts keep the vectors that the encoder gave them before training: the loss of `retain`.

LwF (arXiv:1606.09282) with pooled vectors as what is kept. They are computed once, in the time of
an evaluation of the training rows, and stay on the host in float16: a million texts of 384 numbers
take 0.8 GB. A copy of the encoder beside it would cost a forward pass in each step instead.

Shapes: `N` texts of a batch, `n` of them with a target, `E` texts in all, `D` width of a vector.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ...modeling.modeling_polyhead import PolyheadModel, PolyheadOutput
from ...modeling.packing import TextLayout, moved_to
from ...modeling.pooling import layers_needed, pool
from ..adapters import is_adapter_weight
from ..data.dataset import MultiTaskDataset
from ..errors import UserError
from ..recipe.retain import NAME, retained_sources, row_faults
from ..recipe.sections import Retain
from .meters import LossMeter
from .row_targets import RowNumbers, TextNumbers, compute_targets, rows_of_sources

logger = logging.getLogger(__name__)
TEXTS = (  # keys of a batch that the encoder reads
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "cu_seq_lens_q",
    "max_length_q",
    "window_counts",
)


class Retention:
    """The vectors of the start, and the loss that holds the encoder to them.

    Args:
        model: the model to be trained, with its frozen weights frozen.
        options: the recipe's.
        dataset: tokenized rows of all sources.
        sources: source name to its tasks, as the collator counts them.

    Raises:
        ValueError: there is nothing to keep, or nothing that trains.
    """

    def __init__(
        self,
        model: PolyheadModel,
        options: Retain,
        dataset: MultiTaskDataset,
        sources: dict[str, list[str]],
    ) -> None:
        tasks = model.config.tasks
        faults = row_faults(sources, tasks)
        if not any(
            weight.requires_grad and not is_adapter_weight(model, name)
            for name, weight in model.encoder.named_parameters()
        ):
            faults.append("retain: without effect, no weight of the encoder trains; take it out")
        if faults:
            raise ValueError("; ".join(faults))
        self.model = model
        self.options = options
        chosen = rows_of_sources(dataset, retained_sources(sources, tasks))
        self.numbers = TextNumbers(RowNumbers(dataset, list(sources)), chosen)
        self.pooling = pooling_of(model)
        self.vectors: Tensor | None = None  # (E, D)
        self._meter = LossMeter([NAME])

    @property
    def model_options(self) -> dict[str, Any]:
        """What the model is asked for besides, in a step."""
        # where asked for, states of windows are kept, and no layer is skipped
        asks = any(t.pools_windows or t.layer is not None for t in self.model.config.tasks.values())
        deep = layers_needed(self.pooling) > 1 or asks
        return {"output_hidden_states": True} if deep else {}

    def compute(
        self,
        dataset: MultiTaskDataset,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        prepare: Callable[[dict[str, Any]], dict[str, Any]],
        autocast: Callable[[], AbstractContextManager],
        *,
        accelerator: Accelerator,
        progress: bool,
    ) -> None:
        """Take the vectors of the model as it is now; a second call changes nothing.

        Args:
            dataset: tokenized rows of all sources.
            collate: rows to a batch, as in training.
            prepare: moves a batch to the device.
            autocast: Trainer's context around a forward pass.
            accelerator: knows the ranks. All of them have to call this.
            progress: show a bar.
        """
        if self.vectors is not None:
            return
        model = self.model

        def vectors_of(rows: list[int]) -> tuple[Tensor, Tensor]:
            batch = collate(dataset.__getitems__(rows))
            positions, numbers = self.numbers.texts_in(batch)
            inputs = {key: value for key, value in prepare(batch).items() if key in TEXTS}
            with torch.no_grad(), autocast():
                output = model(**inputs, tasks=(), **self.model_options)
            vectors = self._pooled(output, inputs)
            vectors = vectors[moved_to(positions, vectors)].float()
            return numbers, F.normalize(vectors, dim=-1).half()

        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            self.vectors = compute_targets(
                self.numbers.batches(),
                self.numbers.count,
                vectors_of,
                accelerator=accelerator,
                title="Vectors of the start",
                progress=progress,
            )
        finally:
            for module in training:
                module.training = True
        size = self.vectors.nbytes / 1e6
        logger.info(f"retain: {self.numbers.count:,} vectors of the start, {size:,.1f} MB")

    def weighted_loss(
        self,
        outputs: PolyheadOutput,
        batch: dict[str, Any],
        *,
        texts: float,
        skips: bool,
    ) -> Tensor:
        """The loss of a micro-batch, a scalar; those of all add up to that of the step.

        Args:
            outputs: the model's for it.
            batch: the batch, on the device.
            texts: those with a vector in the whole step, over micro-batches and ranks.
            skips: a loss that is not finite counts as 0.

        Raises:
            UserError: the loss is not finite, and `skips` is off.
        """
        total = self.loss(outputs, batch)
        if not total.isfinite():
            if not skips:
                fault = f"the loss of retain is {total.item()}"
                raise UserError("training", [f"{fault}; lower training.learning_rate"])
            total = torch.zeros_like(total)
        count = torch.tensor(self.numbers.count_in(batch))
        self._meter.add(NAME, total.detach(), count.to(total.device))
        return self.options.weight * total / texts

    def log(self, accelerator: Accelerator) -> dict[str, float]:
        """`loss_retain`, the mean over the texts since the last log, not weighted."""
        means = self._meter.means(accelerator)
        return {f"loss_{name}": value for name, value in means.items()}

    def loss(self, outputs: PolyheadOutput, batch: dict[str, Any]) -> Tensor:
        """Sum over the texts with a vector of 1 - cosine to it, a scalar.

        Args:
            outputs: the model's for a batch.
            batch: the batch, on the device.
        """
        assert self.vectors is not None
        positions, numbers = self.numbers.texts_in(batch)
        vectors = self._pooled(outputs, batch)
        vectors = vectors[moved_to(positions, vectors)].float()
        targets = moved_to(self.vectors[numbers], vectors).float()
        return (1 - F.cosine_similarity(vectors, targets, dim=-1)).sum()

    def _pooled(self, outputs: PolyheadOutput, batch: dict[str, Any]) -> Tensor:
        """(N, D)."""
        states: Any = (outputs.last_hidden_state,)
        if layers_needed(self.pooling) > 1:
            states = outputs.hidden_states
        starts = batch.get("cu_seq_lens_q")
        if starts is None:
            layout = TextLayout(mask=batch["attention_mask"])
        else:
            layout = TextLayout(cu_seq_lens=moved_to(starts, states[-1]), host=starts)
        return pool(states, layout, self.pooling)


def pooling_of(model: PolyheadModel) -> str:
    """That of the first embedding task; of a model without one, its own."""
    names = model.config.embedding_tasks
    head: Any = model.heads[names[0]] if names else None
    return head.pooling if names else model.config.pooling
