# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""One encoder, many heads: encode once, give each head the rows it needs.

The encoder is any AutoModel, held as `encoder`; the heads are `heads[<task>]`. A head costs a
linear layer on its own rows, the encoder pass is shared, so eight tasks on a text cost about one.

Shapes: `N` rows, `T` tokens, `H` hidden, `L` labels, `D` embedding width, `G` groups; `M` texts
where the rows are their windows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

from .adapters import load_plain
from .attention import no_compile
from .causal import check_causal, is_causal, make_causal
from .checks import check_task_name
from .compute import Compute, Mode, set_compute
from .configuration_polyhead import PolyheadConfig
from .early_exit import LayersRead
from .encoder import EncoderInputs, build_encoder, usable_length
from .encoder_parts import Parts, encode_in_parts
from .encoder_pass import EncoderPass
from .experts import build_experts
from .first_use import FIRST_USE
from .head_mixin import HeadMixin
from .packing import TextLayout, can_pack

# Not used here: the import makes the pipeline's file travel with the model.
from .pipeline_polyhead import PolyheadPipeline  # noqa: F401
from .pooling import layers_needed, pool
from .pretrained_polyhead import PolyheadPreTrainedModel
from .rows import TaskRows, check_tasks, read_rows, tasks_to_run

logger = logging.get_logger(__name__)


@dataclass
class PolyheadOutput(ModelOutput):
    """What a forward pass gives; parts not asked for are None.

    Args:
        loss: scalar, the weighted sum of `losses`.
        last_hidden_state: (N, T, H), the encoder's token states. None where texts are encoded
            in parts and nothing but heads over vectors reads them, and where all tasks that run
            read layers below the last: those above are skipped.
        logits: by task: (N, L) sequence classification (L = 1 for regression), (N, T, L) token
            classification, (N, T, V) masked and causal LM (in training with labels: (labelled
            tokens, V)); with `task_ids` only the task's own rows, in order.
        embeddings: by task: (N, D).
        losses: by task: scalar, the mean over labelled rows, tokens or groups.
        hidden_states: the encoder's, one (N, T, H) per layer and one for the input.
        attentions: the encoder's, one (N, heads, T, T) per layer.
        expert_loads: by task: (experts,), the mean weight of each expert that it reads over the
            tokens of its rows, in the order of `expert_names`; without experts None.
    """

    # A dict as first field would be taken for the whole output by ModelOutput.
    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    embeddings: dict[str, Tensor] | None = None
    losses: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    expert_loads: dict[str, Tensor] | None = None


class PolyheadModel(HeadMixin, PolyheadPreTrainedModel):
    """A transformer encoder with a head for each task.

    Made from an encoder by `from_encoder`, or by `from_pretrained` from a saved Polyhead.
    """

    def __init__(self, config: PolyheadConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config.encoder_config)
        if is_causal(config.encoder_config):
            make_causal(self.encoder)
        self._packs: bool | None = None
        self.compute = Compute("exact")
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing
        self.heads = nn.ModuleDict(
            {name: self._build_head(config.tasks[name]) for name in self.task_names}
        )
        self._tied_weights_keys = self._ties()
        self.register_load_state_dict_pre_hook(load_plain)
        self.experts = build_experts(config.experts, config.hidden_size, self.task_names)
        self.post_init()

    def view(self, task: str) -> "PolyheadModel":
        """One classification task of this model as HF's class for it; all weights are shared.

        Raises:
            ValueError: there is no such task, or HF has no class for its head.
        """
        from .views import view_of

        check_tasks(self.task_names, [task])
        return view_of(self, task)

    def set_compute(self, mode: Mode) -> Compute:
        """Choose how the encoder computes: `exact` (default), `auto` or `bf16`; see `compute.py`.

        Raises:
            ValueError: the mode is unknown.
        """
        with FIRST_USE:
            self.compute = set_compute(self.encoder, mode)
            return self.compute

    # ---- the forward pass ----

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        tasks: Iterable[str] | None = None,
        task_ids: Tensor | None = None,
        labels: dict[str, Tensor] | None = None,
        num_items: dict[str, Tensor] | None = None,
        label_weights: dict[str, Tensor] | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        window_counts: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> PolyheadOutput | tuple:
        """Encode once, then run the heads.

        Args:
            input_ids: (N, T) token ids; or `inputs_embeds`, (N, T, E).
            attention_mask: (N, T), 1 for real tokens; none means that all are.
            token_type_ids: (N, T); left out for encoders without segments.
            position_ids: (N, T), for encoders that take them.
            inputs_embeds: (N, T, E), instead of `input_ids`.
            tasks: the heads to run; None for all, `()` for the encoder alone.
            task_ids: (N,) or (N, K), row n goes to the heads `task_names[i]` for its ids i >= 0
                only. Those of heads over groups come in consecutive groups (pair, triplet).
                Best left on the CPU, as `cu_seq_lens_q`: the host reads them.
            labels: by task; -100 (classes) or NaN (numbers) where a row has none. (N,) or, for
                tokens, (N, T) class ids; (N, L) 0/1 for multi-label; (N,) numbers for regression;
                (G,) scores for embeddings, ids for other heads over groups. With `task_ids`, of the
                task's rows only or (but for groups) of all N.
            num_items: by task, the labelled units that the loss is divided by; default the units
                in this batch. A trainer gives the count over the whole optimizer step.
            label_weights: by task, how often each label counts: (N,), or as token labels are;
                of the rows that `labels` are of. Without `num_items` the loss is a mean over them.
            cu_seq_lens_q: (N + 1,) int32: the batch is packed, N texts end to end in one row of P
                tokens: `input_ids` (1, P). `position_ids` restart with each text; left out, they
                are made. Token logits and labels are then (1, tokens of the task's texts, L) and
                (1, tokens). An encoder that cannot pack is given padded rows, with one warning.
            cu_seq_lens_k: the same; flash attention's name for it.
            max_length_q: longest text; found from `cu_seq_lens_q`.
            max_length_k: the same.
            window_counts: (M,), on the CPU: the N rows are windows of M texts, those of a text
                consecutive. `task_ids` are then of the M texts, and labels too, but for those of
                tokens. A task whose `long_texts` is windows gives (M, L), pooled over the windows;
                one over tokens reads each of them, any other the first one. At most M rows go
                through the encoder at a time, so memory is that of M short texts (and of the token
                states, where they are read); in training each part is computed twice.
            output_hidden_states: give the encoder's hidden states too; no layer is then skipped.
            output_attentions: give the encoder's attentions too; as for hidden states.
            return_dict: False for a tuple.

        Raises:
            ValueError: a task in `tasks` or `labels` is unknown or not run, or a task id is.
        """
        inputs = EncoderInputs(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            max_length_q=None if cu_seq_lens_q is None else max_length_q,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if cu_seq_lens_q is not None and attention_mask is not None:
            raise ValueError("a packed batch has no padding: give cu_seq_lens_q or attention_mask")
        if is_causal(self.encoder.config):
            check_causal(self.encoder)
        names = tasks_to_run(self.task_names, tasks, labels)
        count = len(inputs.tokens) if cu_seq_lens_q is None else len(cu_seq_lens_q) - 1
        read = read_rows(self.config.tasks, self.task_names, names, task_ids, count, window_counts)
        names = read.names
        keeps = self._keeps_hidden_states(output_hidden_states)
        layers = self._layers_read(names, output_attentions, whole=keeps)
        if layers.whole:
            inputs = replace(inputs, output_hidden_states=True)
        packs = self.can_pack if cu_seq_lens_q is not None else False
        encoded = encode_in_parts(
            self.encoder,
            inputs,
            self._parts(read, keeps=keeps),
            cu_seq_lens=None if cu_seq_lens_q is None else cu_seq_lens_q.cpu(),
            adapters=self.adapters_of_texts(names, read.rows, count),
            routed=bool(self.config.adapters),
            compute=self.compute,
            packs=packs,
            read=layers,
        )
        output = self._run_heads(encoded, read, labels, num_items or {}, label_weights, keeps=keeps)
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        task: str | None = None,
    ) -> Tensor:
        """Vectors of one embedding task, (N, D); what sentence-transformers calls.

        Args:
            input_ids: (N, T).
            attention_mask: (N, T), 1 for real tokens.
            token_type_ids: (N, T).
            task: name of an embedding task. May be left out where there is one only; where there
                is none the vectors are the bare encoder's, pooled. sentence-transformers' own words
                "query" and "document" count as left out.

        Raises:
            ValueError: there is no such embedding task, or several and none is named.
        """
        embedding_tasks = self.config.embedding_tasks
        if task in ("query", "document") and task not in embedding_tasks:
            task = None
        tokens = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if embedding_tasks or task is not None:
            name = self.config.embedding_task(task)
            return self(input_ids, **tokens, tasks=[name]).embeddings[name]
        pooling = self.config.pooling
        deep = layers_needed(pooling) > 1
        output: Any = self(input_ids, **tokens, tasks=(), output_hidden_states=deep)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = output.hidden_states if deep else (output.last_hidden_state,)
        return pool(states, TextLayout(mask=mask), pooling)

    @property
    @no_compile
    def can_pack(self) -> bool:
        """The encoder reads packed batches as they are; found at first use."""
        if self._packs is None:
            with FIRST_USE:
                if self._packs is None:
                    self._packs = can_pack(self.encoder)
                    if not self._packs:
                        logger.warning(
                            f"{self.encoder.config.model_type} cannot read packed batches "
                            "(attention of its own); they are padded, with the same results"
                        )
        return self._packs

    @property
    def usable_length(self) -> int | None:
        """Number of tokens that the encoder accepts; None where it has no limit."""
        return usable_length(self.encoder)

    def run_heads(self, encoded: EncoderPass, read: TaskRows) -> PolyheadOutput:
        """What the heads make of an encoder pass that there is; `read` says who reads which row."""
        return self._run_heads(encoded, read, None, {}, None, keeps=False)

    def _run_heads(
        self,
        encoded: EncoderPass,
        read: TaskRows,
        labels: dict[str, Tensor] | None,
        num_items: dict[str, Tensor],
        label_weights: dict[str, Tensor] | None,
        *,
        keeps: bool,
    ) -> PolyheadOutput:
        """The heads' outputs and losses, with the encoder's own; `keeps`, its hidden states too."""
        outputs: dict[str, dict[str, Tensor]] = {"logits": {}, "embeddings": {}}
        losses, loads = {}, {}
        if self.experts is not None and read.names:
            encoded.expert_parts = self.experts(encoded.output.last_hidden_state)
        for name in read.names:
            target = read.labels(name, labels), read.labels(name, label_weights)
            values, loss = self._run_head(name, encoded, read, target, num_items.get(name), loads)
            outputs[self._head(name).output][name] = values
            if loss is not None:
                losses[name] = loss
        total = sum(self.config.tasks[name].loss_weight * loss for name, loss in losses.items())
        return PolyheadOutput(
            loss=total if losses else None,  # pyright: ignore[reportArgumentType]
            last_hidden_state=encoded.in_order(encoded.output.last_hidden_state),
            logits=outputs["logits"] or None,
            embeddings=outputs["embeddings"] or None,
            losses=losses or None,
            hidden_states=encoded.hidden_states if keeps else None,
            attentions=encoded.output.get("attentions") if encoded.plan is None else None,
            expert_loads=loads or None,
        )

    def _keeps_hidden_states(self, asked: bool | None) -> bool:
        """A call's output has the hidden states; the encoder's config says so where it does not."""
        return bool(self.encoder.config.output_hidden_states if asked is None else asked)

    def _layers_read(self, names: list[str], attentions: bool | None, *, whole: bool) -> LayersRead:
        """Which states the heads of these tasks read; all where the call's output has them."""
        if attentions is None:
            attentions = self.encoder.config.output_attentions
        heads = [self._head(name) for name in names]
        return LayersRead.of(self.encoder, heads, whole=whole, attentions=bool(attentions))

    def _parts(self, read: TaskRows, *, keeps: bool) -> Parts:
        """How the rows go through the encoder, and what is kept of their states.

        No more windows at a time than there are texts: a batch of long texts then needs the memory
        of one of texts that fit.
        """
        if read.windows is None:
            return Parts(read.count)
        heads = [self._head(name) for name in read.names]
        keeps = keeps or not heads or any(head.per_token for head in heads)
        own = self.experts is not None or any(head.layer_mix is not None for head in heads)
        keeps = keeps or own  # each task pools states of its own
        poolings = None if keeps else frozenset((head.pooling, head.layer) for head in heads)
        return Parts(read.text_count, poolings)

    def count_items(
        self, labels: dict[str, Tensor], label_weights: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Labelled units by task: what `num_items` sums over the batches of an optimizer step."""
        weights = label_weights or {}
        return {
            name: self._head(name).count(values, *([weights[name]] if name in weights else []))
            for name, values in labels.items()
        }


PolyheadConfig.register_for_auto_class()
PolyheadModel.register_for_auto_class("AutoModel")
__all__ = ["PolyheadModel", "PolyheadOutput", "build_encoder", "check_task_name", "usable_length"]
