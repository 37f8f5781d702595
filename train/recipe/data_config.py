"""The keys of `data`: where the rows of a task come from, and which columns it reads."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt, StrictStr
from pydantic.dataclasses import dataclass

from .sections import STRICT, Number

TEXT_COLUMNS = ("text", "text_pair", "negative", "tokens")
FormatName = Literal[
    "conll", "spans", "doccano", "label_studio", "prodigy", "spacy", "argilla", "brat"
]
SPLITS = ("train", "validation", "test")
ROUTER = "router"  # the task of `router: true`
ROUTER_TEXT, ROUTER_LABELS = "text", "tasks"  # columns of its rows


def _label(value: Any) -> Any:
    """A label is a text; numbers and truth values come from Python, not from YAML."""
    if not isinstance(value, (str, int)):
        raise ValueError("a label is wanted, in quotes where it is empty")
    return str(value)


Label = Annotated[str, BeforeValidator(_label)]


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
