# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What a head reads of an encoder pass: states or vectors of its rows, of one layer or a mix.

Shapes: `N` rows, `T` tokens, `H` hidden, `L` labels, `D` embedding width.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .configuration_polyhead import PolyheadConfig
from .encoder_pass import EncoderPass
from .experts import Experts, mean_load
from .heads import IGNORE, Head
from .packing import moved_to
from .pooling import pool
from .rows import TaskRows


class HeadMixin:
    """How a model runs one of its heads."""

    config: PolyheadConfig
    heads: nn.ModuleDict
    experts: Experts | None
    training: bool

    def reads_all_layers(self, names: Iterable[str]) -> bool:
        """Some head of these reads states of other layers than the last."""
        heads = [self._head(name) for name in names]
        return any(head.states_needed > 1 or head.layer is not None for head in heads)

    def _head(self, name: str) -> Head:
        return self.heads[name]  # pyright: ignore[reportReturnType]

    def _run_head(
        self,
        name: str,
        encoded: EncoderPass,
        read: TaskRows,
        target: tuple[Tensor | None, Tensor | None],
        num_items: Tensor | None,
        loads: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (or embeddings) of the task's texts, and its loss if it has labels.

        What its experts weigh goes into `loads`.
        """
        head, rows, (labels, weights) = self._head(name), read.rows[name], target
        if rows is not None and head.per_token:
            labels = None if labels is None else encoded.select_labels(labels, rows)
            weights = None if weights is None else encoded.select_labels(weights, rows)
        rows = encoded.rows_of(self.config.tasks[name].adapter, rows)
        keep = None
        if self.training and labels is not None and head.labelled_tokens_only:
            keep = labels != IGNORE
            labels = labels[keep]
        if self.experts is None:
            values = head(self._head_input(head, encoded, rows, keep))
        else:
            x, load = self._mixed_input(name, encoded, rows, keep)
            values = head(x)
            if load is not None:
                loads[name] = load
        if read.windows is not None:
            lengths = encoded.texts.lengths
            lengths = lengths if rows is None else lengths[moved_to(rows, lengths)]
            values = read.pool(name, values, lengths)
        return values, None if labels is None else head.loss(values, labels, num_items, weights)

    def _head_input(
        self, head: Head, encoded: EncoderPass, rows: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """Token states or vectors of some rows; of their tokens those in `keep`."""
        if head.layer_mix is not None:
            x = self._layer_mixed(head, encoded, rows)
            return x if keep is None else x[keep]
        if head.per_token:
            x = encoded.states(head.layer)
            x = x if rows is None else encoded.texts.select(x, rows)
        else:
            x = encoded.pooled(head.pooling, head.layer)
            x = x if rows is None else x[moved_to(rows, x)]
        return x if keep is None else x[keep]

    def _layer_mixed(self, head: Head, encoded: EncoderPass, rows: Tensor | None) -> Tensor:
        """Token states of all layers as one, or vectors of these, of some rows."""
        assert head.layer_mix is not None
        last: Any = encoded.output.last_hidden_state
        states, texts = (*(encoded.output.hidden_states or ())[:-1], last), encoded.texts
        if rows is not None:
            states = tuple(texts.select(state, rows) for state in states)
            texts = texts.of_rows(rows)
        x = head.layer_mix(states)
        return x if head.per_token else pool((x,), texts, head.pooling)

    def _mixed_input(
        self, task: str, encoded: EncoderPass, rows: Tensor | None, keep: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The same of what the task's experts make of the states, and their mean weights."""
        assert self.experts is not None
        head, parts, texts = self._head(task), encoded.expert_parts, encoded.texts
        if rows is not None:
            parts = tuple(texts.select(part, rows) for part in parts)
            texts = texts.of_rows(rows)
        if keep is not None:
            parts = tuple(part[keep] for part in parts)
        x, gates = self.experts.of_task(task, head, parts)
        load = None if gates is None else mean_load(gates, None if keep is not None else texts.mask)
        return (x if head.per_token else pool((x,), texts, head.pooling)), load
