# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What config.json holds: the encoder's own config, the tasks and how each one reads the encoder.

Everything that differs between encoders (hidden size, layers, usable length) is asked of the
encoder's config.
"""

import os
from dataclasses import asdict, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .checks import (
    CONFIG_ERRORS,
    FORMAT_VERSION,
    check_choice,
    check_fields,
    check_options,
    check_sizes,
    check_task_name,
)
from .experts import checked_experts
from .extension_files import check_imported, extension_files, extension_names
from .heads import HEADS
from .losses import LOSSES
from .options import scheme_of as scheme_of
from .pooling import POOL, POOLINGS, layers_needed
from .reading import read_json
from .router import check_router
from .task_config import TaskConfig, mask_fault

# Options that config.json has only where they differ from their default.
LEFT_OUT = ("hierarchy", "layer_mix", "label_smoothing", "class_weight", "focal", "mlm_probability")
LEFT_OUT += ("whole_word", "blocks", "tied")
# What HF's `from_pretrained` would take for a config's, and weights of a Polyhead contradict.
FIXED = ("num_labels", "id2label", "label2id", "problem_type", "task_names", "adapters")
FIXED += (
    "format_version",
    "experts",
    "router",
    "hidden_size",
    "projection_dim",
    "num_hidden_layers",
)
FIXED += ("num_attention_heads", "vocab_size", "max_position_embeddings")


class PolyheadConfig(PreTrainedConfig):
    """Configuration of a Polyhead model: one encoder config and the tasks by name.

    Args:
        encoder_config: config of any encoder that AutoModel knows.
        tasks: task name to `TaskConfig` (or its fields as a dict). Names match
            `[a-z][a-z0-9_]*`, are no part of `lora_` and no attribute of ModuleDict.
        task_names: the tasks in the order that `task_ids` counts them; JSON does not keep the
            order of `tasks`.
        pooling: pooling of every task that names none.
        trained_causal: the encoder that the heads were put on had been trained with a causal mask;
            `encoder_config.is_causal` says with which it runs.
        experts: what stands between encoder and heads, fields of `ExpertOptions`; None for nothing.
        router: the task whose labels are names of tasks, for `tasks="auto"`; None for none.
        adapters: names of the adapters saved with the model, in `adapters/<name>/`.
        adapter_hashes: adapter to the sha256 of its two files, as they were saved; loading compares
            them, so that no adapter answers for another. Without an entry an adapter is taken as
            it is (folders of older releases have none).
        format_version: of the saved folder.

    Raises:
        ValueError: a task name or a task is not valid, or names an adapter that is not listed; an
            option has another type; the folder is of a newer release.
    """

    model_type = "polyhead"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")
    }

    encoder_config: dict | PreTrainedConfig | None = None
    tasks: dict[str, Any] = field(default_factory=dict)
    task_names: list[str] | None = None
    pooling: str = "mean"
    trained_causal: bool = False
    experts: dict[str, Any] | None = None
    router: str | None = None
    adapters: list[str] | None = None
    adapter_hashes: dict[str, str] | None = None
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    format_version: int = FORMAT_VERSION
    custom_pipelines: dict[str, Any] = field(
        default_factory=lambda: {
            "polyhead": {"impl": "pipeline_polyhead.PolyheadPipeline", "pt": ["AutoModel"]}
        }
    )

    def __post_init__(self, **kwargs: Any) -> None:
        kind = kwargs.get("model_type", self.model_type)
        if kind != self.model_type:
            raise ValueError(
                f"this is a {kind} model, not a Polyhead; put heads on it with "
                "PolyheadModel.from_encoder(name_or_path, tasks={...})"
            )
        check_options(self)
        sources = [source for table in (HEADS, POOL, LOSSES) for source in table.sources.values()]
        check_imported(kwargs.pop("extensions", None), sources)
        check_sizes(self.encoder_config)
        if isinstance(self.encoder_config, dict):
            drop = ("trust_remote_code", "auto_map")
            self.encoder_config = {k: v for k, v in self.encoder_config.items() if k not in drop}
        check_choice("pooling", self.pooling, tuple(POOLINGS))
        tasks = dict(self.tasks or {})
        names = list(self.task_names) if self.task_names is not None else list(tasks)
        if sorted(names) != sorted(tasks):
            raise ValueError(f"task_names {names} and tasks {sorted(tasks)} differ")
        self.tasks, self.task_names = {}, []
        self.adapters = list(self.adapters or [])
        for name in self.adapters:
            check_task_name(name, "adapter name")  # it becomes a path: adapters/<name>
        for name in names:
            task = tasks[name]
            if not isinstance(task, TaskConfig):
                check_fields(f"task {name!r}", TaskConfig, task)
            self.set_task(name, TaskConfig(**task) if isinstance(task, dict) else task)
        check_router(self.router, self.tasks)
        super().__post_init__(**kwargs)
        if self.experts is not None:
            self.experts = checked_experts(self.experts, self.hidden_size)
        if any(task.head_class.causal for task in self.tasks.values()):
            self.get_text_config().is_causal = True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As PreTrainedConfig.from_dict; what does not make a config is a ValueError.

        Args:
            config_dict: what config.json holds.
            kwargs: options of `from_pretrained` that the config has; names of tasks, whose adapters
                the model is to load, are the model's and go on to it.

        Raises:
            ValueError: the encoder's config or one of the options is not valid, or says otherwise
                than the weights that are loaded.
        """
        fixed = [name for name in FIXED if name in kwargs]
        if fixed:
            raise ValueError(
                f"{', '.join(fixed)}: a saved Polyhead says that itself, by task; leave it out, or "
                "train a task with other labels by polyhead add-task"
            )
        chosen = {} if isinstance(kwargs.get("tasks", {}), dict) else {"tasks": kwargs.pop("tasks")}
        encoder = config_dict.get("encoder_config", {"model_type": "bert"})
        if not isinstance(encoder, PreTrainedConfig) and (
            not isinstance(encoder, dict) or not isinstance(encoder.get("model_type"), str)
        ):
            raise ValueError("config.json: encoder_config must be a dict with a model_type")
        try:
            config = super().from_dict(config_dict, **kwargs)
        except CONFIG_ERRORS as error:
            raise ValueError(f"config.json: {type(error).__name__}: {error}") from error
        return (config[0], {**config[1], **chosen}) if isinstance(config, tuple) else config

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """Of PreTrainedConfig, with bounds; AutoConfig reads the file itself, before our code."""
        return cls._decode_special_floats(read_json(json_file))

    def set_task(self, name: str, task: TaskConfig) -> None:
        """Add a task, last in order.

        Raises:
            ValueError: the name is not allowed or taken.
        """
        check_task_name(name)
        if name in self.tasks:
            raise ValueError(f"task {name!r} exists already; remove it first or take another name")
        if task.adapter is not None and task.adapter not in (self.adapters or []):
            known = ", ".join(self.adapters or []) or "none"
            raise ValueError(f"task {name!r} names adapter {task.adapter!r}; there are: {known}")
        if fault := mask_fault({**self.tasks, name: task}):
            raise ValueError(fault)
        self.tasks[name] = task
        self.task_names = [*(self.task_names or []), name]

    def embedding_task(self, name: str | None = None) -> str:
        """The embedding task of this name, or the only one where none is named.

        Raises:
            ValueError: there is no such embedding task, or several and none is named.
        """
        names = self.embedding_tasks
        if name is None and len(names) == 1:
            return names[0]
        if name is None or name not in names:
            known = ", ".join(names) or "none"
            raise ValueError(f"task is {name!r}; embedding tasks of this model: {known}")
        return name

    @property
    def embedding_tasks(self) -> list[str]:
        """The tasks whose heads give embeddings, in order."""
        return [
            name
            for name in self.task_names or []
            if self.tasks[name].head_class.output == "embeddings"
        ]

    @property
    def extension_sources(self) -> list[Any]:
        """The classes and functions of users' own that the tasks name."""
        named = [(POOL, self.pooling)]
        for task in self.tasks.values():
            named += [(HEADS, task.head), (POOL, task.pooling), (LOSSES, task.loss)]
        return [table.sources[name] for table, name in named if name in table.sources]

    def extension_files(self) -> dict[str, str]:
        """Name to text of the files that a saved folder needs for them, beside Polyhead's own.

        Raises:
            ValueError: such a file cannot travel; see `extension_files.py`.
        """
        return extension_files(self.extension_sources, EXTENSIONS)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As PreTrainedConfig.save_pretrained, with `extension_files`."""
        files = self.extension_files()
        saved = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        for name, text in files.items():
            with open(os.path.join(save_directory, name), "w", encoding="utf-8") as file:
                file.write(text)
        return saved

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The encoder's config: what asks for the text model's sizes gets the encoder's."""
        return self.encoder_config  # pyright: ignore[reportReturnType]

    def to_dict(self) -> dict[str, Any]:
        """As PreTrainedConfig.to_dict, with each task as a plain dict."""
        output = super().to_dict()
        output["tasks"] = {
            name: {
                key: value
                for key, value in asdict(task).items()
                if value is not None and (key not in LEFT_OUT or value != getattr(TaskConfig, key))
            }
            for name, task in self.tasks.items()
        }
        for key in ("experts", "router"):
            if output.get(key) is None:
                output.pop(key, None)
        if sources := self.extension_sources:
            output["extensions"] = extension_names(sources)
        return output

    # Tools that meet the outer config only (sentence-transformers, vLLM) read sizes from it.
    @property
    def hidden_size(self) -> int:
        """Width of the encoder's token states."""
        return self.get_text_config().hidden_size

    @property
    def projection_dim(self) -> int:
        """Width of the first embedding task's vectors, or of the pooled states of the encoder."""
        tasks = [self.tasks[name] for name in self.embedding_tasks]
        pooling = (tasks[0].pooling if tasks else None) or self.pooling
        width = tasks[0].projection if tasks else None
        return width or layers_needed(pooling) * self.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Number of encoder layers."""
        return self.get_text_config().num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        """Number of attention heads in a layer."""
        return self.get_text_config().num_attention_heads

    @property
    def vocab_size(self) -> int:
        """Size of the encoder's vocabulary."""
        return self.get_text_config().vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:  # `resize_token_embeddings` sets it
        self.get_text_config().vocab_size = value

    @property
    def max_position_embeddings(self) -> int | None:
        """The encoder's own figure; see `usable_length` for what a text may have."""
        return getattr(self.get_text_config(), "max_position_embeddings", None)


# Last, as such a file may import what stands here.
from .extensions import EXTENSIONS as EXTENSIONS  # noqa: E402
