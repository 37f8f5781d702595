# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Adapters in and out of a model, and which of them its texts go through."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .adapters import inject, remove
from .attention import no_compile
from .checks import check_task_name
from .configuration_polyhead import PolyheadConfig
from .routing import first_adapted_layer
from .rows import Rows, check_tasks
from .stacks import line_up


class AdapterMixin:
    """What a model does with its adapters."""

    config: PolyheadConfig
    encoder: PreTrainedModel
    heads: nn.ModuleDict

    @property
    def loaded_adapters(self) -> list[str]:
        """The adapters that the encoder holds."""
        return list(getattr(self.encoder, "peft_config", {}))

    def attach_adapter(
        self,
        name: str,
        config: Any,
        tasks: Iterable[str],
        *,
        state: dict[str, Tensor] | None = None,
    ) -> None:
        """Put a PEFT adapter into the encoder for the rows of `tasks`.

        The encoder's own weights stay plain weights in the saved folder; the adapter is saved
        beside them in PEFT's format.

        Args:
            name: name of the adapter; by convention the task's, unless it is shared.
            config: a peft config (LoraConfig, IA3Config) whose targets are layers of the encoder.
            tasks: the tasks whose rows go through it.
            state: its weights, with the keys of PEFT's files; None for new ones.

        Raises:
            ImportError: peft is missing.
            ValueError: the name is not allowed or taken, a task is unknown or reads none of its
                layers, or the config or the weights do not fit; the model is left as it was.
        """
        check_task_name(name)
        names = list(tasks)
        check_tasks(list(self.config.task_names or []), names)
        if not names:
            raise ValueError(f"adapter {name!r}: tasks is empty; name the tasks that go through it")
        inject(self.encoder, name, config, state)
        try:
            self.check_reach(name, names)
        except ValueError:
            remove(self.encoder, name)
            raise
        line_up(self.encoder)
        self.config.adapters = [*(self.config.adapters or []), name]
        for task in names:
            self.config.tasks[task].adapter = name

    def check_reach(self, name: str, tasks: Iterable[str]) -> None:
        """Raise ValueError for a task that reads a layer below all those of the adapter `name`."""
        first = first_adapted_layer(self.encoder, [name])
        for task in tasks:
            layer: Any = self.heads.get_submodule(task).layer
            if first is not None and layer is not None and layer <= first:
                raise ValueError(
                    f"adapter {name!r} begins at layer {first} (from 0), above the {layer} that "
                    f"task {task!r} reads (layer: {layer}): it would be without effect"
                )

    def detach_adapter(self, name: str) -> None:
        """Take an adapter out; its tasks read the bare encoder from then on.

        Raises:
            ValueError: there is no such adapter.
        """
        known = self.config.adapters or []
        if name not in known:
            raise ValueError(f"unknown adapter {name!r}; there are: {', '.join(known) or 'none'}")
        if name in self.loaded_adapters:
            remove(self.encoder, name)
            line_up(self.encoder)
        self.config.adapters = [a for a in known if a != name]
        for task in self.config.tasks.values():
            task.adapter = None if task.adapter == name else task.adapter

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Of nn.Module, for `to`, `half`, `cuda` and the like: adapters lie together there too."""
        moved = super()._apply(fn, *args, **kwargs)  # pyright: ignore
        line_up(self.encoder)
        return moved

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: transformers would save one adapter and wrap the heads too."""
        raise ValueError("use attach_adapter(name, config, tasks=[...])")

    def load_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused, as `add_adapter` is."""
        raise ValueError("use attach_adapter(name, config, tasks=[...], state=weights)")

    @no_compile
    def adapters_of_texts(
        self, names: list[str], rows: Rows, count: int
    ) -> list[list[str | None]] | str | None:
        """The adapters that each text is wanted through; one, or None, where all have the same.

        Raises:
            ValueError: an adapter is not loaded, or is no adapter of this model.
        """
        unknown = [a for a in self.loaded_adapters if a not in (self.config.adapters or [])]
        if unknown:  # its tasks would answer without it
            raise ValueError(
                f"adapter {', '.join(unknown)} was put into the encoder behind this model's back; "
                "of a view: make it anew by model.view(task), else use attach_adapter"
            )
        adapters = {name: self.config.tasks[name].adapter for name in names}
        absent = {a for a in adapters.values() if a is not None} - set(self.loaded_adapters)
        if absent:
            raise ValueError(
                f"adapter {', '.join(sorted(absent))} is not loaded; "
                f"loaded are: {', '.join(self.loaded_adapters) or 'none'}"
            )
        if len(set(adapters.values())) < 2:
            return next(iter(adapters.values()), None)
        by_text: list[list[str | None]] = [[] for _ in range(count)]
        for name in names:
            chosen = rows[name]
            for row in range(count) if chosen is None else chosen.tolist():
                if adapters[name] not in by_text[row]:
                    by_text[row].append(adapters[name])
        return by_text
