# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What config.json holds: the encoder's own config, the tasks and how each one reads the encoder.

`TaskConfig` is checked when it is made, so a model never meets a half-valid task. Everything that
differs between encoders (hidden size, layers, usable length) is asked of the encoder's config.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .checks import (
    CONFIG_ERRORS,
    FORMAT_VERSION,
    LARGEST_WIDTH,
    check_choice,
    check_fields,
    check_finite,
    check_options,
    check_sizes,
    check_task_name,
    check_types,
)
from .reading import read_json

HEAD_KINDS = ("embedding", "sequence_classification", "token_classification", "masked_lm")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
POOLINGS = ("mean", "cls", "max", "last_token", "mean_last_4")
SCORED_LOSSES = ("cosine_mse", "cosent", "angle")  # of pairs with a number
GROUP_LOSSES = ("contrastive", "triplet")  # of groups: anchor, positive, hard negatives
TEACHER_LOSSES = ("margin_mse", "mse")  # of triplets with a margin, of texts with a vector
EMBEDDING_LOSSES = (*SCORED_LOSSES, *GROUP_LOSSES, *TEACHER_LOSSES)
SCHEMES = ("iob1", "iob2", "bioes")
NUMBERS = (  # options of a task
    "dropout",
    "threshold",
    "temperature",
    "false_negative_margin",
    "margin",
    "loss_weight",
)
ACTIVATIONS = ("tanh", "relu", "gelu")


@dataclass(kw_only=True)
class TaskConfig:
    """One task: the kind of its head and what the head needs to know.

    Args:
        head: one of `HEAD_KINDS`.
        labels: label strings in id order; for classification heads.
        problem_type: one of `PROBLEM_TYPES`, for `sequence_classification`; with labels the default
            is `single_label_classification`.
        pooling: one of `POOLINGS`, for heads over one vector per text; None takes the model's.
        activation: adds a dense layer with this activation before the output, as BERT's pooler
            (tanh) or DistilBERT's pre-classifier (relu) do; None is one linear layer.
        dropout: probability before each linear layer of a classification head.
        pair: the task reads two texts (sentence-pair tasks).
        scheme: `iob1`, `iob2` or `bioes` for entity tags; None for token labels that stand alone
            (part of speech). Found from the labels when not given.
        signs: signs that entities begin or end with, found in the data. Where a sub-token holds
            several words (`£5`, `."`), an entity leaves out signs at its ends that are not listed;
            None leaves out none.
        threshold: a label of a multi-label task is set when its probability reaches this.
        loss: one of `EMBEDDING_LOSSES`, for `embedding`; default cosent.
        temperature: divides the cosines of the contrastive loss.
        symmetric: the contrastive loss asks both ways: anchor to positive, positive to anchor.
        false_negative_margin: candidates of the contrastive loss that are nearer to the anchor than
            its own positive by more than this cosine are left out; None keeps all.
        margin: of the triplet loss: how much further away than the positive a negative must be.
        prompts: put before the texts of an embedding task: [text], or [query, document] where the
            second text of a row has another one (arXiv:2212.03533).
        matryoshka: widths, as [384, 128, 64]: the embedding loss is summed over the first so many
            dimensions of each embedding, so that it can be cut to them (arXiv:2205.13147).
        projection: width of a linear layer after pooling, for `embedding`; None leaves it out.
        normalize: scale embeddings to length 1.
        loss_weight: this task's factor in the total loss.
        adapter: name of the PEFT adapter that its rows go through, its own or a shared one; None
            for the bare encoder.

    Raises:
        ValueError: an option is unknown, missing, or does not fit the kind of head.
    """

    head: str
    labels: list[str] | None = None
    problem_type: str | None = None
    pooling: str | None = None
    activation: str | None = None
    dropout: float = 0.1
    pair: bool = False
    scheme: str | None = None
    signs: list[str] | None = None
    threshold: float = 0.5
    loss: str | None = None
    temperature: float = 0.05
    symmetric: bool = False
    false_negative_margin: float | None = None
    margin: float = 0.5
    prompts: list[str] | None = None
    matryoshka: list[int] | None = None
    projection: int | None = None
    normalize: bool = True
    loss_weight: float = 1.0
    adapter: str | None = None

    def __post_init__(self) -> None:
        self._check_labels()
        check_types("", self)
        check_choice("head", self.head, HEAD_KINDS)
        check_choice("pooling", self.pooling, (None, *POOLINGS))
        check_choice("activation", self.activation, (None, *ACTIVATIONS))
        check_choice("loss", self.loss, (None, *EMBEDDING_LOSSES))
        for name in NUMBERS:
            if getattr(self, name) is not None:
                check_finite(name, getattr(self, name))
        self._check_numbers()
        if self.pair and self.head != "sequence_classification":
            raise ValueError(f"pair belongs to sequence_classification, not to {self.head}")
        for option, owner in (
            ("problem_type", "sequence_classification"),
            ("scheme", "token_classification"),
            ("signs", "token_classification"),
            ("loss", "embedding"),
            ("matryoshka", "embedding"),
            ("prompts", "embedding"),
        ):
            if getattr(self, option) is not None and self.head != owner:
                raise ValueError(f"{option} belongs to {owner}, not to {self.head}")
        if self.head == "sequence_classification":
            self._check_sequence()
        elif self.head == "token_classification":
            self._check_tokens()
        elif self.labels:
            raise ValueError(f"a {self.head} task has no labels, got {len(self.labels)}")
        self._check_embedding()

    def _check_embedding(self) -> None:
        if self.head == "embedding":
            self.loss = self.loss or "cosent"
        if self.loss == "mse" and self.matryoshka:
            raise ValueError("loss mse compares whole vectors; take matryoshka out")
        if self.prompts is not None and len(self.prompts) not in (1, 2):
            raise ValueError(f"prompts is {self.prompts}; give [text] or [query, document]")
        if (
            self.symmetric or self.false_negative_margin is not None
        ) and self.loss != "contrastive":
            raise ValueError("symmetric and false_negative_margin belong to loss: contrastive")

    def _check_numbers(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must lie in [0, 1)")
        for name in ("temperature", "margin"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.false_negative_margin is not None and self.false_negative_margin < 0:
            raise ValueError(
                f"false_negative_margin is {self.false_negative_margin}; it must be 0 or more"
            )
        widths = self.matryoshka
        if widths is not None and (not widths or sorted(set(widths), reverse=True) != widths):
            raise ValueError(
                f"matryoshka is {widths}; give widths from the largest to the smallest"
            )
        if widths is not None and widths[-1] < 1:
            raise ValueError(f"matryoshka is {widths}; a width is 1 or more")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}; it must lie in [0, 1]")
        if not self.loss_weight >= 0:
            raise ValueError(f"loss_weight is {self.loss_weight}; it must be 0 or more")
        if self.projection is not None and not 1 <= self.projection <= LARGEST_WIDTH:
            raise ValueError(f"projection is {self.projection}; allowed: 1 to {LARGEST_WIDTH}")

    def _check_labels(self) -> None:
        if self.labels is not None:
            labels: Any = self.labels
            if isinstance(labels, (str, dict)) or not isinstance(labels, Iterable):
                raise ValueError(f"labels is {labels!r}; it must be a list of strings")
            labels = list(labels)
            odd = [x for x in labels if not isinstance(x, (str, Integral))]
            if odd:
                raise ValueError(f"labels holds {odd[0]!r}; a label is a string")
            self.labels = [str(label) for label in labels]
            repeated = sorted({x for x in self.labels if self.labels.count(x) > 1})
            if repeated:
                raise ValueError(f"labels repeat: {', '.join(repeated)}")

    def _check_sequence(self) -> None:
        if self.problem_type is None and self.labels:
            self.problem_type = "single_label_classification"
        if self.problem_type is None:
            raise ValueError("sequence_classification needs labels or problem_type: regression")
        check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if self.problem_type == "regression":
            if self.labels:
                raise ValueError("a regression task has no labels")
            return
        least = 2 if self.problem_type == "single_label_classification" else 1
        if not self.labels or len(self.labels) < least:
            raise ValueError(f"{self.problem_type} needs {least} labels or more, got {self.labels}")

    def _check_tokens(self) -> None:
        if not self.labels:
            raise ValueError("token_classification needs labels")
        if self.scheme is None:
            self.scheme = scheme_of(self.labels)
        if self.scheme is not None:
            check_choice("scheme", self.scheme, SCHEMES)
            if scheme_of(self.labels) is None:
                raise ValueError(
                    f"scheme {self.scheme} needs tags like B-x, I-x; got {self.labels}"
                )
            if self.scheme != "bioes" and scheme_of(self.labels) == "bioes":
                raise ValueError(f"scheme {self.scheme} has no E- and S-; got {self.labels}")

    def prompt(self, part: int = 0) -> str:
        """What is put before a text: 0 for the query (anchor), 1 and more for the document."""
        return self.prompts[min(part, len(self.prompts) - 1)] if self.prompts else ""

    @property
    def num_labels(self) -> int:
        """Width of the head's output."""
        return len(self.labels) if self.labels else 1

    @property
    def id2label(self) -> dict[int, str]:
        """Label string of each output column."""
        return dict(enumerate(self.labels or []))


# Options that some tasks alone read: which, in words, and what tells such a task.
READERS: dict[str, tuple[str, Callable[[TaskConfig], bool]]] = {
    "pooling": (
        "sequence_classification and embedding",
        lambda task: task.head in ("sequence_classification", "embedding"),
    ),
    "activation": (
        "sequence_classification",
        lambda task: task.head == "sequence_classification",
    ),
    "dropout": (
        "sequence_classification and token_classification",
        # 0.0 holds for the others too
        lambda task: (
            task.head in ("sequence_classification", "token_classification") or not task.dropout
        ),
    ),
    "threshold": (
        "problem_type: multi_label_classification",
        lambda task: task.problem_type == "multi_label_classification",
    ),
    "temperature": ("loss: contrastive", lambda task: task.loss == "contrastive"),
    "margin": ("loss: triplet", lambda task: task.loss == "triplet"),
    "projection": ("embedding", lambda task: task.head == "embedding"),
    "normalize": ("embedding", lambda task: task.head == "embedding"),
}


def options_without_effect(task: TaskConfig) -> list[str]:
    """A fault for each option that was set and that such a task does not read.

    A saved model may have them, from before they were refused; a new task may not.
    """
    defaults = {option.name: option.default for option in fields(TaskConfig)}
    return [
        f"{option}: only for {readers}; take it out"
        for option, (readers, reads) in READERS.items()
        if getattr(task, option) != defaults[option] and not reads(task)
    ]


def scheme_of(labels: list[str]) -> str | None:
    """The tag scheme of `labels`: bioes, iob1 (when none begins with B-), iob2, or None.

    IOB1 with some B- tags has the same labels as IOB2; it must be named. Tags without a kind (`B`,
    `B-`) make no entities.
    """
    tags = [label for label in labels if label != "O"]
    prefixes = {tag[:2] for tag in tags}
    if not tags or not prefixes <= {"B-", "I-", "E-", "S-"} or min(map(len, tags)) < 3:
        return None
    if prefixes & {"E-", "S-"}:
        return "bioes"
    return "iob2" if "B-" in prefixes else "iob1"


# What HF's `from_pretrained` would take for a config's, and weights of a Polyhead contradict.
FIXED = ("num_labels", "id2label", "label2id", "problem_type", "task_names", "adapters")
FIXED += ("format_version", "hidden_size", "projection_dim", "num_hidden_layers")
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
        check_sizes(self.encoder_config)
        if isinstance(self.encoder_config, dict):
            drop = ("trust_remote_code", "auto_map")
            self.encoder_config = {k: v for k, v in self.encoder_config.items() if k not in drop}
        check_choice("pooling", self.pooling, POOLINGS)
        given = dict(self.tasks or {})
        names = list(self.task_names) if self.task_names is not None else list(given)
        if sorted(names) != sorted(given):
            raise ValueError(f"task_names {names} and tasks {sorted(given)} differ")
        self.tasks, self.task_names = {}, []
        self.adapters = list(self.adapters or [])
        for name in self.adapters:
            check_task_name(name, "adapter name")  # it becomes a path: adapters/<name>
        for name in names:
            task = given[name]
            if not isinstance(task, TaskConfig):
                check_fields(f"task {name!r}", TaskConfig, task)
            self.set_task(name, TaskConfig(**task) if isinstance(task, dict) else task)
        super().__post_init__(**kwargs)

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
        self.tasks[name] = task
        self.task_names = [*(self.task_names or []), name]

    def embedding_task(self, name: str | None = None) -> str:
        """The embedding task of this name, or the only one where none is named.

        Raises:
            ValueError: there is no such embedding task, or several and none is named.
        """
        own = [task for task, config in self.tasks.items() if config.head == "embedding"]
        if name is None and len(own) == 1:
            return own[0]
        if name is None or name not in own:
            known = ", ".join(own) or "none"
            raise ValueError(f"task is {name!r}; embedding tasks of this model: {known}")
        return name

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The encoder's config: what asks for the text model's sizes gets the encoder's."""
        return self.encoder_config  # pyright: ignore[reportReturnType]

    def to_dict(self) -> dict[str, Any]:
        """As PreTrainedConfig.to_dict, with each task as a plain dict."""
        output = super().to_dict()
        output["tasks"] = {
            name: {k: v for k, v in asdict(task).items() if v is not None}
            for name, task in self.tasks.items()
        }
        return output

    # Tools that meet the outer config only (sentence-transformers, vLLM) read sizes from it.
    @property
    def hidden_size(self) -> int:
        """Width of the encoder's token states."""
        return self.get_text_config().hidden_size

    @property
    def projection_dim(self) -> int:
        """Width of the first embedding task's vectors, or of the pooled states of the encoder."""
        found = [task for task in self.tasks.values() if task.head == "embedding"]
        task = found[0] if found else TaskConfig(head="embedding")
        layers = 4 if (task.pooling or self.pooling) == "mean_last_4" else 1
        return task.projection or layers * self.hidden_size

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
