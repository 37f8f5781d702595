# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Tasks in and out of a model, and which of their heads are tied to the input embeddings."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from .adapter_mixin import AdapterMixin
from .causal import is_causal
from .experts import Experts, Mixture, build_experts, checked_experts
from .heads import Head
from .router import without_label
from .rows import check_tasks
from .task_config import TaskConfig
from .unread_options import options_without_effect

logger = logging.getLogger(__name__)


class TaskMixin(AdapterMixin):
    """What a model does with its tasks; all but the task in question stays as it is."""

    heads: nn.ModuleDict
    experts: Experts | None
    training: bool  # as all that follow, PreTrainedModel's
    all_tied_weights_keys: dict[str, str]
    _tied_weights_keys: dict[str, str]
    _init_weights: Callable[[nn.Module], None]
    tie_weights: Callable[[], None]

    @property
    def task_names(self) -> list[str]:
        """The tasks in the order that `task_ids` counts them."""
        return list(self.config.task_names or [])

    def add_task(self, name: str, task: TaskConfig) -> None:
        """Add a task with a new head; the encoder and the other heads stay as they are.

        Raises:
            ValueError: the name is not allowed or taken, the task does not fit the encoder, has an
                option that it does not read, or wants another mask than the encoder runs with; or
                experts of the kind ple would change for the other tasks.
        """
        self._check_experts_stay(name)
        faults = options_without_effect(task)
        if faults:
            raise ValueError(f"task {name!r}: {'; '.join(faults)}")
        if task.head_class.causal and not is_causal(self.encoder.config):
            raise ValueError(
                f"task {name!r} reads with a causal mask, but this model attends in both "
                "directions; give the task to from_encoder (or a recipe), alone"
            )
        task = replace(task)  # the caller's own may become another task too
        head = self._build_head(task)
        self.config.set_task(name, task)
        head.apply(self._init_weights)
        head.train(self.training)
        self.heads[name] = head.to(device=self.encoder.device, dtype=self.encoder.dtype)
        self._retie()

    def remove_task(self, name: str) -> None:
        """Remove a task and its head, and its adapter unless another task reads it.

        Texts for it are then, to the model's router, for none of the others.

        Raises:
            ValueError: there is no such task, or experts of the kind ple would change for others.
        """
        check_tasks(self.task_names, [name])
        self._check_experts_stay()
        adapter = self.config.tasks[name].adapter
        if [t.adapter for t in self.config.tasks.values()].count(adapter) == 1 and adapter:
            self.detach_adapter(adapter)
        del self.heads[name]
        del self.config.tasks[name]
        router = self.config.router
        if router == name:
            self.config.router = None
        elif router is not None:
            without_label(self.config.tasks[router], name)
        self.config.task_names = [t for t in self.task_names if t != name]
        self._retie()

    def extend_task(self, name: str, labels: list[str], **options: Any) -> None:
        """Give a task more labels, with an output layer of their own; all else stays as it is.

        `calibration` stays, so that old labels keep their logits. `abstain` was found for answers
        among the old labels: it stays beside `strict`, else it is dropped, and that is logged.

        Args:
            name: of a task with one label for each text or token.
            labels: the new ones.
            options: of `TaskConfig` that change with them, as `strict` or `partial`.

        Raises:
            ValueError: there is no such task, it has none of these heads, or a label already.
        """
        check_tasks(self.task_names, [name])
        old, head = self.config.tasks[name], self.heads[name]
        grown = [*(old.grown or []), len(labels)]
        if old.abstain is not None and not options.get("strict"):
            options = {"abstain": None, **options}
            logger.warning(
                f"task {name!r}: its abstain {old.abstain:.4g} was found among fewer labels and is "
                "dropped; all its answers have a label again"
            )
        task = replace(old, labels=[*(old.labels or []), *labels], grown=grown, **options)
        larger = self._build_head(task)
        larger.apply(self._init_weights)
        larger.load_state_dict(head.state_dict(), strict=False)
        larger.train(head.training)
        self.heads[name] = larger.to(device=self.encoder.device, dtype=self.encoder.dtype)
        self.config.tasks[name] = task

    def _build_head(self, task: TaskConfig) -> Head:
        """A new head, with its gate and own experts where the model has experts."""
        head = task.head_class(
            task=task, encoder_config=self.encoder.config, pooling=self.config.pooling
        )
        if (options := self.config.experts) is not None:
            if head.states_needed > 1 or head.layer is not None:
                named = [name for name in ("layer", "layer_mix") if getattr(task, name)]
                what = named[0] if named else f"pooling {head.pooling}"
                raise ValueError(
                    f"{what} reads layers of the encoder below the experts; take it "
                    "out, or leave experts out"
                )
            head.mixture = Mixture(width=self.config.hidden_size, options=options)
        return head

    def set_experts(self, options: dict[str, Any] | None, tasks: Iterable[str] = ()) -> None:
        """Put new experts between encoder and heads, or take them out; before there are tasks.

        Args:
            options: fields of `ExpertOptions`; None for no experts.
            tasks: those that will be added; experts of the kind ple are for these alone.

        Raises:
            ValueError: the model has tasks, whose heads have learned without them; or an option is
                not allowed.
        """
        if self.task_names:
            raise ValueError(f"experts come before tasks; there are: {', '.join(self.task_names)}")
        width = self.config.hidden_size
        self.config.experts = None if options is None else checked_experts(options, width)
        self.experts = build_experts(self.config.experts, width, list(tasks))
        if self.experts is not None:
            self.experts.apply(self._init_weights)
            self.experts.to(device=self.encoder.device, dtype=self.encoder.dtype)

    def _check_experts_stay(self, new: str | None = None) -> None:
        """Raise ValueError where other tasks would change with one less, or with the task `new`."""
        lower = None if self.experts is None else self.experts.lower
        if lower is not None and (new is None or new not in lower.tasks):
            raise ValueError(
                "experts of the kind ple are read by all tasks together: with one task more or "
                "less the others would answer differently. Train all tasks anew, or take cgc"
            )

    # ---- tied weights ----

    @property
    def _tied_tasks(self) -> list[str]:
        tasks = self.config.tasks
        return [name for name in self.task_names if tasks[name].head_class.ties(tasks[name])]

    def _ties(self) -> dict[str, str]:
        """Decoder weight of each tied head -> the encoder's input embeddings, by name."""
        tied = self._tied_tasks
        if not tied:
            return {}
        weight = self.encoder.get_input_embeddings().weight
        source = next(n for n, p in self.encoder.named_parameters() if p is weight)
        return {f"heads.{n}.decoder.weight": f"encoder.{source}" for n in tied}

    def _retie(self) -> None:
        inner = {k: v for k, v in self.all_tied_weights_keys.items() if not k.startswith("heads.")}
        self._tied_weights_keys = self._ties()
        self.all_tied_weights_keys = {**inner, **self._tied_weights_keys}
        self.tie_weights()
