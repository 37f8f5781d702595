"""The keys of a recipe, as dataclasses; `reader.py` reads the file."""

from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from ...modeling.compute import Mode
from ...modeling.configuration_polyhead import TaskConfig
from ...modeling.head_layers import LARGEST_LAYERS
from ...modeling.heads import HEADS
from ...modeling.losses import LOSSES
from ...modeling.options import TaskOptions
from ...modeling.pooling import POOL
from ..lazy import lazy
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
TEXT_COLUMNS = ("text", "text_pair", "negative", "tokens")
FormatName = Literal[
    "conll", "spans", "doccano", "label_studio", "prodigy", "spacy", "argilla", "brat"
]
SPLITS = ("train", "validation", "test")
OTHER_SCHEMES = {"bio": "iob2", **dict.fromkeys(("bilou", "biluo", "bmes", "iobes"), "bioes")}


def _label(value: Any) -> Any:
    """A label is a text; numbers and truth values come from Python, not from YAML."""
    if not isinstance(value, (str, int)):
        raise ValueError("a label is wanted, in quotes where it is empty")
    return str(value)


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


Label = Annotated[str, BeforeValidator(_label)]
HeadName = Annotated[str, _in_table(HEADS)]
PoolingName = Annotated[str, _in_table(POOL)]


class RowsInMemory:
    """Rows that a caller of Python holds, instead of the name of a place where rows lie.

    Args:
        data: rows of train, or a dict of rows by split; see `data/memory.py` for the types.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def parts(self) -> dict[str, Any]:
        """Rows by split."""
        return dict(self.data) if isinstance(self.data, Mapping) else {"train": self.data}

    @property
    def identity(self) -> tuple:
        """The same for the same rows, in whatever dict they are."""
        return tuple((split, id(part)) for split, part in self.parts.items())

    def __deepcopy__(self, memo: dict) -> "RowsInMemory":
        return self  # rows are only read


@dataclass(config=STRICT, kw_only=True)
class DataConfig:
    """Where rows come from and which columns a task reads.

    Args:
        path: what `datasets.load_dataset` takes: a Hub id, or parquet, csv, json with `data_files`.
            May be left out when the ending of `data_files` tells.
        name: configuration of the dataset.
        data_files: split to file, files or pattern; relative to where the command runs. A file of
            exactly that name goes before a pattern.
        data_dir: folder given to `load_dataset`.
        revision: revision of a Hub dataset.
        splits: our split (train, validation, test) to the dataset's own name or slice.
        format: of an annotation tool, which then says what the columns are; see docs/data.md.
        text: column with the text.
        text_pair: column with the second text of a pair, or the positive of an embedding task; for
            heads that choose, with a list of texts.
        negative: column with a hard negative, for contrastive, triplet and margin_mse embedding
            tasks.
        tokens: column with lists of words, instead of `text` or beside it.
        label: column with the label: a string or id, a list of them or a 0/1 vector beside `labels`
            (multi-label), a number (regression,
            scored pairs, a teacher's margin), a list of tags (token classification) or of numbers
            (a teacher's embedding); for heads that choose, the number of the right text, from 0. A
            list of columns: one of 0 and 1 for each label.
        separator: between the labels (or words, and tags) of a row that are one string.
        pairs: sentence pairs are made of the documents in `text`, for a classification task:
            next_sentence (half of them with a sentence of another document) or sentence_order (half
            of them swapped); see data/document_pairs.py.
        offsets: what start and end of spans count; default characters.
        overlap: error (default) refuses spans that overlap or are empty; longest takes the longest
            of those that overlap and leaves empty ones out, with a note.
        weight: column with a number from 0 for each row of train: how often it counts in the loss
            of the task. Validation and test rows count alike.
        soft_label: column of train with a distribution over `labels`, a list of numbers in their
            order, instead of the one label in `label`; null where that counts.
        ignore_labels: of a token task, tags or types of entities whose words train nothing and are
            not scored; they are no labels of the head.
        missing_label: a value, or several, of `label` that stand for no label, as -1 or "n/a"; null
            and NaN always do.
        marks: the labels (of token tasks the types of entities) that the rows mark, a list; or, of
            token tasks, the column with each row's own list. A word with O, or a row with
            `unmarked`, may then have any label that is not marked. Default all.
        unmarked: beside marks of classes: the value of `label` that says that a row has none of
            the labels that are marked.
        label_range: [lowest, highest] of the numbers in `label`; they are scaled to 0-1.
        group_by: column, as of languages; the report of the task has scores for each value.
        license: of the data, for the model card.

    Attributes:
        rows: in their stead, those of a caller of Python; no key of a recipe.
        more: further corpora of a token task, where `data` is a list.
    """

    path: str | None = None
    name: str | None = None
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    data_dir: str | None = None
    revision: str | None = None
    splits: dict[Literal["train", "validation", "test"], str] | None = None
    format: FormatName | None = None
    text: str | None = None
    text_pair: str | None = None
    negative: str | None = None
    tokens: str | None = None
    label: str | list[str] | None = None
    separator: str | None = Field(default=None, min_length=1, max_length=8)
    pairs: Literal["next_sentence", "sentence_order"] | None = None
    weight: str | None = None
    soft_label: str | None = None
    ignore_labels: list[Label] | None = Field(default=None, min_length=1)
    offsets: Literal["characters", "bytes", "utf16"] | None = None
    overlap: Literal["error", "longest"] | None = None
    missing_label: (
        StrictStr | StrictInt | StrictFloat | list[StrictStr | StrictInt | StrictFloat] | None
    ) = None
    marks: list[Label] | str | None = None
    unmarked: str | None = None
    label_range: tuple[Number, Number] | None = None
    group_by: str | None = None
    license: str | None = None
    more: list["DataConfig"] | None = None
    rows: Annotated[Any, Field(exclude=True)] = field(default=None, init=False, repr=False)


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
