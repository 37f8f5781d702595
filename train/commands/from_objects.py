"""A training from Python: what a recipe says, with objects that one already has.

The keyword arguments are a recipe's sections; they become a `Recipe`, are checked by the same code
and trained by the same run.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypedDict, Unpack

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.options import TaskOptions
from ..errors import UserError
from ..evaluation.scoring import MetricFunction
from ..outputs import MODEL
from ..recipe.arguments import SET_BY_OPTIMIZER, training_of
from ..recipe.data_config import DataConfig, RowsInMemory
from ..recipe.reader import build_recipe
from ..recipe.schema import Recipe, ScratchEncoder
from ..recipe.sections import (
    Average,
    Balancing,
    Card,
    Decide,
    Distill,
    Experts,
    Freeze,
    OptimizerOptions,
    Retain,
    Sampling,
    Stopping,
)
from ..trainer.trainer import MultiTaskTrainer
from .setup import Hooks, prepare
from .training import output_faults, train_run

CALLER = "polyhead.train.train"
DATA_KEYS = {f.name for f in fields(DataConfig) if f.init}


@dataclass(kw_only=True)
class Task(TaskOptions):
    """One task: its head, its rows, which of their columns it reads, and options as in a recipe.

    Args:
        data: rows of train, or a dict of rows by split (train, validation, test): a
            `datasets.Dataset`, a `DatasetDict`, a list of dicts, a pandas DataFrame, a torch
            Dataset whose items are dicts, or an `IterableDataset`, which is read once, into memory.
            Names of files, as `{"train": "train.csv"}`, are `data_files` of a recipe. The objects
            are not changed.
        text: column with the text.
        text_pair: column with the second text of a pair, or the positive of an embedding task.
        negative: column with a hard negative.
        tokens: column with lists of words, instead of `text` or beside it.
        label: column with the label; a list of columns of 0 and 1, one for each label.
        format: of an annotation tool; see docs/data.md.
        separator: between the labels (or words, and tags) of a row that are one string.
        offsets: what start and end of spans count: characters, bytes or utf16.
        overlap: of spans: error or longest.
        missing_label: a value, or several, of `label` that stand for no label.
        label_range: [lowest, highest] of the numbers in `label`.
        splits: our split to the name of one in `data`, or a slice of it, as `train[:90%]`.
        license: of the data, for the model card.
        metrics: names; the first stands for the task in the macro score.
        adapter: options of an adapter of its own, or the name of another task's.
        max_rows: train on a random sample of so many rows; of a stream, on the first ones.
        epochs: passes over its rows in an epoch of the run.
        learning_rate: of its own head and adapter; with `optimizer.by_task` of all its updates.
        cached: compare texts over all micro-batches of a step (GradCache).
        decide: as of a recipe, `{"calibrate": True, "abstain": {"precision": 0.95}}`.
        examples: texts or pairs that the page of `polyhead demo` offers to try.

    The other options are those of `TaskOptions`.
    """

    data: Any
    text: str | None = None
    text_pair: str | None = None
    negative: str | None = None
    tokens: str | None = None
    label: str | list[str] | None = None
    format: str | None = None
    separator: str | None = None
    offsets: str | None = None
    overlap: str | None = None
    missing_label: Any = None
    label_range: tuple[float, float] | None = None
    splits: Mapping[str, str] | None = None
    license: str | None = None
    metrics: list[str] | None = None
    adapter: dict[str, Any] | str | None = None
    max_rows: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    cached: bool = False
    decide: dict[str, Any] | None = None
    examples: list[Any] | None = None

    def keys(self) -> dict[str, Any]:
        """What a recipe says of this task; rows in memory are left out."""
        options = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name != "data" and (f.default is MISSING or getattr(self, f.name) != f.default)
        }
        data = {key: options.pop(key) for key in DATA_KEYS & set(options)}
        if self.names_files:
            data["data_files"] = _as_text(self.data)
        return {**options, "data": data}

    @property
    def names_files(self) -> bool:
        """Its data are names of files."""
        parts = list(self.data.values()) if isinstance(self.data, Mapping) else [self.data]
        return bool(parts) and all(isinstance(part, (str, Path)) for part in parts)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished training.

    Args:
        model: the trained model; the best one, where `load_best_model_at_end` says so.
        tokenizer: with `model_max_length` set.
        scores: `{"tasks": {task: {metric: value}}, "macro": value, "splits": {task: split}}`.
        folder: where model, tokenizer and card are saved.
        trainer: the Trainer, for its state and log.
    """

    model: PolyheadModel
    tokenizer: PreTrainedTokenizerBase
    scores: dict[str, Any]
    folder: Path
    trainer: MultiTaskTrainer


class Sections(TypedDict, total=False):
    """Sections of a recipe, as dicts or as the dataclasses of the schema; all may be left out.

    Args:
        pooling: how a text's states become its vector.
        experts: what stands between encoder and heads.
        max_length: tokens in a text.
        sampling: how rows of the tasks are mixed.
        balancing: how the tasks are weighed against each other.
        freeze: what does not train.
        optimizer: learning rates of parts of the model, moments by task.
        stopping: when training, or a task, ends early.
        retain: what the encoder keeps of itself.
        average: how much of what it was the encoder gets back after training.
        distill: what tasks learn from other models.
        decide: what is decided on validation rows after training.
        router: True trains a head that says which tasks a text is for.
        compare: single trains each task alone too; without `args`, `callbacks`, `compute_metrics`
            and `optimizers`.
        nan_loss: stop, or skip; default stop.
        compute: exact, auto or bf16; default exact.
        card: for the model card.
    """

    pooling: str | None
    experts: Experts | dict[str, Any] | None
    max_length: int | None
    sampling: Sampling | dict[str, Any] | None
    balancing: Balancing | dict[str, Any] | None
    freeze: Freeze | dict[str, Any] | None
    optimizer: OptimizerOptions | dict[str, Any] | None
    stopping: Stopping | dict[str, Any] | None
    retain: Retain | dict[str, Any] | None
    average: Average | dict[str, Any] | None
    distill: Distill | dict[str, Any] | None
    decide: Decide | dict[str, Any] | None
    router: bool
    compare: str | None
    nan_loss: str
    compute: str
    card: Card | dict[str, Any] | None


def train(
    *,
    tasks: Mapping[str, Task],
    encoder: str | Path | ScratchEncoder | dict[str, Any],
    output_dir: str | Path | None = None,
    training: dict[str, Any] | None = None,
    args: TrainingArguments | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    compute_metrics: MetricFunction | None = None,
    optimizers: Callable[[PolyheadModel], tuple[Any, Any]] | None = None,
    overwrite: bool = False,
    **sections: Unpack[Sections],
) -> TrainResult:
    """Train tasks on rows in memory: prepare, fit, save, as `polyhead train` does with a recipe.

    Args:
        tasks: by name.
        encoder: as in a recipe: Hub id, folder, or config and tokenizer of one with random weights.
        output_dir: checkpoints go here, the finished model to `output_dir/model`; default that of
            `args`.
        training: fields of TrainingArguments, over this project's defaults.
        args: TrainingArguments, instead of `training`; nothing is added to them.
        callbacks: of the Trainer.
        compute_metrics: `(task, predictions, references) -> {metric: value}`, added to the scores
            of the task; logged as `eval_<task>_<metric>`. Both are lists, one entry per labelled
            row, in the order of evaluation (longest texts first): labels, lists of labels, numbers,
            or the tags of words.
        optimizers: a function of the model, which is made here, that gives an optimizer over its
            parameters and a scheduler, or None for the one that the arguments name.
        overwrite: replace the run that stands in `output_dir`.
        sections: those of a recipe, see `Sections`.

    Raises:
        UserError: faults of the options, the rows or the encoder, each with its key; nothing has
            been written then.
    """
    hooks = Hooks(callbacks=callbacks, compute_metrics=compute_metrics, optimizers=optimizers)
    faults = _unknown(sections) + _conflicts(training, args, output_dir, sections, hooks)
    if faults := faults + _task_faults(tasks):
        raise UserError(CALLER, faults)
    recipe = _recipe_of(tasks, encoder, output_dir, training, args, optimizers, sections)
    check = partial(_output_faults, overwrite=overwrite)
    run = prepare(recipe, check=check, args=_copied(args, recipe), hooks=hooks)
    trainer, scores = train_run(run, overwrite=overwrite)
    return TrainResult(
        model=trainer.model_for_tasks,
        tokenizer=run.tokenizer,
        scores=scores,
        folder=Path(recipe.output_dir) / MODEL,
        trainer=trainer,
    )


def _recipe_of(
    tasks: Mapping[str, Task],
    encoder: Any,
    output_dir: Any,
    training: dict[str, Any] | None,
    args: TrainingArguments | None,
    optimizers: Any,
    sections: Sections,
) -> Recipe:
    """What a recipe would say; its rows are in memory. See `train`."""
    settings = training_of(args) if args is not None else training or {}
    raw: dict[str, Any] = {key: value for key, value in sections.items() if value is not None}
    raw["encoder"] = str(encoder) if isinstance(encoder, Path) else encoder
    raw["tasks"] = {name: task.keys() for name, task in tasks.items()}
    raw["training"] = dict(settings)
    raw["output_dir"] = str(output_dir if args is None else args.output_dir)
    rows = {n: RowsInMemory(task.data) for n, task in tasks.items() if not task.names_files}
    return build_recipe(raw, CALLER, _unused(settings, tasks, optimizers), rows=rows)


def _as_text(names: Any) -> Any:
    if isinstance(names, Mapping):
        return {split: str(name) for split, name in names.items()}
    return str(names)


def _copied(args: TrainingArguments | None, recipe: Recipe) -> TrainingArguments | None:
    """The caller's arguments stay as they are."""
    if args is None:
        return None
    args = copy(args)
    args.output_dir = recipe.output_dir
    return args


# ---- checks ----


def _task_faults(tasks: Any) -> list[str]:
    if not isinstance(tasks, Mapping) or not tasks:
        return [f"tasks: {tasks!r:.60}; give a dict of one Task or more by name"]
    return [
        f"tasks.{name}: a {type(task).__name__}; give a Task(head=..., data=..., ...)"
        for name, task in tasks.items()
        if not isinstance(task, Task)
    ]


def _unknown(sections: Sections) -> list[str]:
    """Keywords that are none."""
    known = [*signature(train).parameters][:-1] + [*Sections.__annotations__]
    return [
        f"{key}: unknown keyword; allowed: {', '.join(known)}"
        for key in sections
        if key not in Sections.__annotations__
    ]


def _conflicts(
    training: Any, args: Any, output_dir: Any, sections: Sections, hooks: Hooks
) -> list[str]:
    """What is given twice, or not at all."""
    faults, optimizers = [], hooks.optimizers
    if args is not None and training is not None:
        faults.append("training: args are given too; write all in one of them")
    if args is not None and not isinstance(args, TrainingArguments):
        faults.append(
            f"args: a {type(args).__name__}; give TrainingArguments, or a dict as training"
        )
    elif args is None and output_dir is None:
        faults.append("output_dir: missing; name the folder of the run")
    elif args is not None and output_dir is not None and str(args.output_dir) != str(output_dir):
        faults.append(f"output_dir: {output_dir}, but args.output_dir is {args.output_dir}")
    if isinstance(optimizers, tuple):
        faults.append(
            "optimizers: the model is made here; give a function (model) -> (optimizer, "
            "scheduler or None), or train a model of your own with MultiTaskTrainer"
        )
    elif optimizers is not None and not callable(optimizers):
        faults.append(f"optimizers: {optimizers!r:.60}; give a function of the model")
    if sections.get("optimizer") is not None and optimizers is not None:
        faults.append("optimizer: optimizers are given too, which set the learning rates")
    if sections.get("compare") is not None:
        given = {"args": args, **vars(hooks)}
        order = ("args", "compute_metrics", "optimizers", "callbacks")
        named = [key for key in order if given[key]]
        faults += [f"compare: the tasks alone are trained without {key}" for key in named]
    return faults


def _unused(settings: dict[str, Any], tasks: Mapping[str, Task], optimizers: Any) -> list[str]:
    """Learning rates and the like that an optimizer of the caller's own leaves without effect."""
    if optimizers is None:
        return []
    keys = [f"training.{key}" for key in settings if key in SET_BY_OPTIMIZER]
    keys += [f"tasks.{name}.learning_rate" for name, task in tasks.items() if task.learning_rate]
    return [f"{key}: optimizers are given, which set it; take it out" for key in keys]


def _output_faults(recipe: Recipe, *, overwrite: bool) -> list[str]:
    faults = output_faults(recipe, overwrite=overwrite)
    return [fault.replace("type --overwrite", "write overwrite=True") for fault in faults]
