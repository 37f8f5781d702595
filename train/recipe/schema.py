"""The keys of a recipe, as dataclasses; `reader.py` reads the file."""

from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from ...modeling.compute import Mode
from ...modeling.head_layers import LARGEST_LAYERS
from ...modeling.heads import HEADS
from ...modeling.losses import LOSSES
from ...modeling.options import TaskOptions
from ...modeling.pooling import POOL
from ...modeling.task_config import TaskConfig
from ..lazy import lazy
from .data_config import DataConfig, Label
from .sections import (
    STRICT,
    Average,
    Balancing,
    Card,
    Decide,
    Distill,
    Experts,
    FewShot,
    Freeze,
    Number,
    OptimizerOptions,
    Retain,
    Sampling,
    Stopping,
    Whole,
)

# Reader and writer, which need most rooms, are asked for when a recipe is read or written.
_recipe = lazy(
    __package__ or "",
    {"load_recipe": "reader", "parse_recipe": "reader", "recipe_text": "writer"},
)
OTHER_SCHEMES = {"bio": "iob2", **dict.fromkeys(("bilou", "biluo", "bmes", "iobes"), "bioes")}


def _scheme(value: Any) -> Any:
    """Other names of tag schemes; tags in the letters of BILOU and BMES are read as BIOES."""
    return OTHER_SCHEMES.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _in_table(table: Mapping[str, Any]) -> AfterValidator:
    """A name in a table; the words are pydantic's of a Literal, for what is there by now."""

    def check(name: str) -> str:
        if name not in table:
            *others, last = map(repr, table)
            allowed = f"{', '.join(others)} or {last}"
            raise PydanticCustomError("unknown_name", f"Input should be {allowed}")  # pyright: ignore
        return name

    return AfterValidator(check)


HeadName = Annotated[str, _in_table(HEADS)]
PoolingName = Annotated[str, _in_table(POOL)]


Example = str | tuple[str, str | list[str]]


@dataclass(config=STRICT, kw_only=True)
class TaskRecipe(TaskOptions):
    """One task of a recipe: `TaskOptions`, its data and its metrics.

    Args:
        data: where its rows come from; of a token task also a list of such places, whose rows
            train one head, each naming the types that it `marks`.
        metrics: names from `METRICS`; the first stands for the task in the macro score. Default:
            the usual ones of the kind of head.
        adapter: `{r: 8, ...}`, fields of peft's LoraConfig, for an adapter of its own (`layers:
            top 2` for the last two layers, `type: ia3` for IA3, `name` for another name than the
            task's, `path` of a folder in PEFT's format to start from its weights); or the name of
            one that another task defines; default none.
        max_rows: train on a random sample of so many rows, the same each time.
        epochs: passes over its rows in an epoch of the run; 0.5 leaves out half of them, the other
            half next time. Tasks that share their rows share it.
        learning_rate: of its head and of an adapter that it alone has, before `optimizer.head_lr`
            and `adapter_lr`; with `optimizer.by_task` of its updates on shared weights too.
        cached: an embedding loss that compares texts (contrastive, cosent, angle) does so over all
            micro-batches of an optimizer step (GradCache, arXiv:2101.06983): 32 x 32 is then one
            batch of 1,024 in the memory of 32, for one more forward pass.
        few_shot: of a task with one label for each text and few rows: pairs of them train the
            encoder first.
        decide: what is decided for it on validation rows after training, instead of the recipe's.
        examples: what the page of `polyhead demo` offers to try: texts; of a pair task [text,
            other], of one that chooses [text, [one, other]].

    The other options are those of `TaskOptions`; named here again are those with bounds.
    """

    head: HeadName
    data: DataConfig
    labels: list[Label] | None = None
    problem_type: (
        Literal[
            "single_label_classification", "multi_label_classification", "ordinal", "regression"
        ]
        | None
    ) = None
    scheme: Annotated[str | None, BeforeValidator(_scheme)] = None
    layers: Whole | None = Field(default=None, gt=0, le=LARGEST_LAYERS)
    dropout: Number = Field(default=0.1, ge=0, lt=1)
    threshold: Number = Field(default=0.5, gt=0, lt=1)
    temperature: Number = Field(default=0.05, ge=1e-4)
    false_negative_margin: Number | None = None
    margin: Number = 0.5
    matryoshka: list[Whole] | None = None
    label_smoothing: Number = Field(default=0.0, ge=0, lt=1)
    class_weight: Literal["balanced"] | dict[Label, Annotated[Number, Field(gt=0)]] | None = None
    focal: Number = Field(default=0.0, ge=0, le=100)
    mlm_probability: Number = Field(default=0.15, gt=0, le=1)
    mask_shares: list[Number] | None = None
    projection: Whole | None = Field(default=None, gt=0, le=2**16)
    long_texts: Literal["first", "windows"] | None = None
    window_pooling: Literal["mean", "max"] | None = None
    loss_weight: Number = Field(default=1.0, ge=0)
    cached: bool = False
    adapter: dict[str, Any] | str | None = None
    metrics: list[str] | None = None
    max_rows: Whole | None = Field(default=None, gt=0)
    epochs: Number | None = Field(default=None, gt=0, le=1000)
    learning_rate: Number | None = Field(default=None, gt=0)
    few_shot: FewShot | None = None
    decide: Decide | None = None
    examples: list[Example] | None = None

    def task_config(
        self,
        labels: list[str] | None = None,
        scheme: str | None = None,
        signs: list[str] | None = None,
        class_weight: dict[str, float] | None = None,
    ) -> TaskConfig:
        """The model's side of this task, with what was found in the data.

        Without the weights of its classes, where the recipe asks for some, it has none yet.
        """
        options = {
            f.name: getattr(self, f.name)
            for f in fields(TaskOptions)
            if f.name not in ("labels", "scheme")
        }
        two = self.data.text_pair is not None or self.data.pairs is not None
        pair = "pair" in HEADS[self.head].options and two
        options |= {"scheme": scheme or self.scheme, "signs": signs}
        if self.class_weight is not None:
            options["class_weight"] = class_weight or {}
        return TaskConfig(labels=labels, pair=pair, **options)


@dataclass(config=STRICT, kw_only=True)
class TrainedTokenizer:
    """A tokenizer made of the texts of train.

    Args:
        train: how: wordpiece (BERT), bpe (of bytes; GPT-2), unigram (SentencePiece).
        vocab_size: pieces in it, with five special ones.
    """

    train: Literal["wordpiece", "bpe", "unigram"]
    vocab_size: Whole = Field(default=8000, ge=300, le=10**6)


@dataclass(config=STRICT, kw_only=True)
class ScratchEncoder:
    """An encoder with random weights.

    Args:
        config: its model_type and sizes.
        tokenizer: Hub id or folder, or how to train one.
    """

    config: dict[str, Any]
    tokenizer: str | TrainedTokenizer


@dataclass(config=STRICT, kw_only=True)
class FinishedEncoder:
    """The encoder of a finished Polyhead, with what else of it is wanted.

    Args:
        model: its folder or Hub id. The folder's name alone, as `encoder`, takes the encoder and
            the pooling, and leaves heads and adapters.
        merge: adapter that is added to the encoder's weights.
        keep_tasks: tasks that come along with head and adapter. One of the recipe's tasks goes on
            from them, with the same labels; one that has no rows there needs `freeze.encoder`.
    """

    model: str
    merge: str | None = None
    keep_tasks: list[str] = Field(default_factory=list)


@dataclass(config=STRICT, kw_only=True)
class Recipe:
    """All that a training run needs.

    Args:
        encoder: Hub id, folder, `package:NAME/FOLDER` (a folder inside an installed Python
            package), a `FinishedEncoder`, or a `ScratchEncoder`.
        tasks: by name; read in alphabetical order, so that their order in the file changes nothing.
        output_dir: checkpoints go here, the finished model to `output_dir/model`.
        pooling: pooling of every task that names none; default that of a sentence-transformers
            model, where the encoder is one, else mean.
        experts: what stands between encoder and heads; default nothing.
        max_length: tokens in a text; default what encoder and tokenizer take.
        sampling: how rows of the tasks are mixed.
        balancing: how the tasks are weighed against each other.
        freeze: what does not train.
        optimizer: learning rates of parts of the model, moments by task.
        stopping: when training, or a task, ends early; default never.
        retain: what the encoder keeps of itself; default nothing.
        average: how much of what it was the encoder gets back after training; default nothing.
        distill: what tasks learn from other models; default nothing.
        decide: what is decided on validation rows after training, for the tasks that can; default
            nothing.
        router: true adds a task of that name, which learns from the texts of all others which of
            them a text is for; `tasks="auto"` then answers those.
        compare: single trains each task alone too, on its rows of an epoch and with the same
            training, and puts both scores side by side in the card.
        train_scores: so many training rows of each source are scored at each evaluation too.
        nan_loss: stop ends the run when a loss is not finite, naming task and rows; skip leaves
            that task out of the batch and counts it.
        compute: how the encoder's linear layers compute: exact, as torch does; auto, by what is
            fastest on this machine for the same numbers; bf16 where that is faster.
        card: for the model card.
        training: fields of TrainingArguments.

    Attributes:
        path: the file that it was read from, for messages; no key of it.
    """

    encoder: str | FinishedEncoder | ScratchEncoder
    tasks: dict[str, TaskRecipe] = Field(min_length=1)
    output_dir: str
    pooling: PoolingName | None = None
    experts: Experts | None = None
    max_length: Whole | None = Field(default=None, ge=8)
    sampling: Sampling = Field(default_factory=Sampling)
    balancing: Balancing = Field(default_factory=Balancing)
    freeze: Freeze = Field(default_factory=Freeze)
    optimizer: OptimizerOptions = Field(default_factory=OptimizerOptions)
    stopping: Stopping | None = None
    retain: Retain | None = None
    average: Average | None = None
    distill: Distill | None = None
    decide: Decide | None = None
    router: bool = False
    compare: Literal["single"] | None = None
    train_scores: Whole | None = Field(default=None, ge=1)
    nan_loss: Literal["stop", "skip"] = "stop"
    compute: Mode = "exact"
    card: Card = Field(default_factory=Card)
    training: dict[str, Any] = Field(default_factory=dict)
    path: Annotated[str, Field(exclude=True)] = field(
        default="recipe", init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self.tasks = dict(sorted(self.tasks.items()))

    @classmethod
    def from_yaml(cls, path_or_text: str | Path) -> "Recipe":
        """Read and check a recipe.

        Args:
            path_or_text: name of a YAML file; or, where it has a line break, the text itself.

        Raises:
            UserError: with all faults found.
        """
        if isinstance(path_or_text, str) and "\n" in path_or_text:
            return _recipe("parse_recipe")(path_or_text)
        return _recipe("load_recipe")(path_or_text)

    def to_yaml(self) -> str:
        """The recipe as a text for `from_yaml`; keys at their defaults are left out.

        Raises:
            UserError: rows of a task are in memory.
        """
        return _recipe("recipe_text")(self)


# Embedding losses of ours that compare the groups of a batch with each other.
IN_BATCH_LOSSES = tuple(name for name, loss in LOSSES.items() if loss.in_batch)


def in_batch(task: TaskConfig) -> bool:
    """The loss of the task compares the groups of a batch with each other."""
    loss = LOSSES.get(task.loss or "")
    return loss is not None and loss.in_batch
