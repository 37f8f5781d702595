# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""One task of a Polyhead with the class and the output that HF's tools expect of it.

    AutoModelForTokenClassification.from_pretrained(repo, task="slots", trust_remote_code=True)

A view is the whole model, all heads and adapters, that answers for one task: saved, it is the
Polyhead it was loaded from.
"""

import copy
import logging
import os
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from .modeling_polyhead import PolyheadModel

logger = logging.getLogger(__name__)


class _View(PolyheadModel):
    """Base of the views.

    Its config shows the task as HF's heads do: `id2label`, `num_labels`, `problem_type`.
    """

    head: ClassVar[str]
    output: ClassVar[Any]
    task: str

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        task: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As PolyheadModel.from_pretrained, for one task.

        Args:
            pretrained_model_name_or_path: folder or Hub id of a saved Polyhead.
            args: for PolyheadModel.from_pretrained.
            task: name of the task; may be left out where the model has one of this kind only.
            kwargs: for PolyheadModel.from_pretrained.

        Raises:
            ValueError: there is no such task of this kind, or several and none is named.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.show(task)
        return loaded

    def show(self, task: str | None = None) -> None:
        """Answer for this task from now on.

        Raises:
            ValueError: as in `from_pretrained`.
        """
        names = [n for n in self.task_names if self.config.tasks[n].head == self.head]
        if task is None and len(names) == 1:
            task = names[0]
        if task not in names:
            known = ", ".join(names) or "none"
            raise ValueError(f"task is {task!r}; tasks of this model for {self.head}: {known}")
        chosen = self.config.tasks[task]
        if chosen.answers_apart:
            raise ValueError(
                f"task {task!r} {chosen.answers_apart}, which no class of transformers knows; ask "
                "PolyheadPipeline"
            )
        if chosen.decided_apart:
            logger.warning(
                f"task {task!r}: transformers' pipelines see the logits alone, and not its "
                f"{chosen.decided_apart}; PolyheadPipeline answers by them"
            )
        self.task = task
        self.config.id2label = dict(enumerate(chosen.labels or ["LABEL_0"]))
        self.config.label2id = {label: i for i, label in enumerate(chosen.labels or ["LABEL_0"])}
        self.config.problem_type = chosen.problem_type

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Shapes as in HF's class for this head; `logits` (N, L), for tokens (N, T, L).

        Args:
            input_ids: (N, T), or `inputs_embeds`, (N, T, E).
            attention_mask: (N, T), 1 for real tokens.
            token_type_ids: (N, T), left out for encoders without segments.
            position_ids: (N, T), for encoders that take them.
            inputs_embeds: (N, T, E), instead of `input_ids`.
            labels: of the task, as `PolyheadModel.forward` takes them.
            output_hidden_states: give the encoder's hidden states too.
            output_attentions: give the encoder's attentions too.
            return_dict: False for a tuple.

        Raises:
            ValueError: the task was removed or replaced since the view was made.
        """
        labels_shown = self.config.tasks[self.task].labels
        if self.task not in self.heads or self._head(self.task).task.labels != labels_shown:
            raise ValueError(
                f"task {self.task!r} was removed or replaced since this view was made; make it "
                f"again: model.view({self.task!r})"
            )
        joint: Any = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            tasks=[self.task],
            labels=None if labels is None else {self.task: labels},
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        output = self.output(
            loss=None if joint.losses is None else joint.losses[self.task],
            logits=joint.logits[self.task],
            hidden_states=joint.hidden_states,
            attentions=joint.attentions,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()


class PolyheadForSequenceClassification(_View):
    """One classification or regression task; for `pipeline("text-classification")`."""

    head = "sequence_classification"
    output = SequenceClassifierOutput


class PolyheadForTokenClassification(_View):
    """One token task; for `pipeline("token-classification")`."""

    head = "token_classification"
    output = TokenClassifierOutput


VIEWS = {
    view.head: view for view in (PolyheadForSequenceClassification, PolyheadForTokenClassification)
}


def view_of(model: PolyheadModel, task: str) -> PolyheadModel:
    """The view of one task; it shares all weights with the model, and has a config of its own.

    Raises:
        ValueError: HF has no class for the head of the task.
    """
    head = model.config.tasks[task].head
    if head not in VIEWS:
        raise ValueError(f"task {task!r} is {head}; there are views of {', '.join(VIEWS)}")
    with torch.device("meta"):  # all of it is replaced at once
        view = VIEWS[head](copy.deepcopy(model.config))
    view.encoder, view.heads, view.experts = model.encoder, model.heads, model.experts
    view.show(task)
    return view.train(model.training)


PolyheadForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
PolyheadForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
