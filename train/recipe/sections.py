"""The sections of a recipe beside its tasks: how rows are mixed, what trains, when it ends.

What stands here needs no task; `schema.py` has those, and the recipe that holds both.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from ...modeling.experts import LARGEST_COUNT, LARGEST_SIZE

STRICT = ConfigDict(extra="forbid")
LARGEST = 1e9  # of any number in a recipe


def _number(value: Any) -> Any:
    """Pydantic takes true and '5' for numbers."""
    if isinstance(value, (bool, str)):
        raise ValueError(f"a number is wanted{', without quotes' * isinstance(value, str)}")
    return value


Number = Annotated[float, BeforeValidator(_number), Field(ge=-LARGEST, le=LARGEST)]
Whole = Annotated[int, BeforeValidator(_number), Field(ge=-LARGEST, le=LARGEST)]


@dataclass(config=STRICT, kw_only=True)
class SchedulePoint:
    """The shares of the tasks at an epoch; between two points they change evenly.

    Args:
        epoch: counted from 0.
        weights: uniform, proportional, or a weight for each task.
    """

    epoch: Number = Field(ge=0)
    weights: Literal["uniform", "proportional"] | dict[str, Number]


@dataclass(config=STRICT, kw_only=True)
class Sampling:
    """How rows of the tasks are mixed. Tasks that share their rows count as one here.

    Args:
        strategy: one of `STRATEGIES`. proportional takes each row once an epoch (`epochs` of a
            task: more or less often). uniform: as many rows of each task. temperature: in
            proportion to rows^(1 / temperature) (arXiv:1907.05019). weights: in proportion to
            `weights`. schedule: to weights that change from epoch to epoch. round_robin: tasks take
            turns.
            sequential: all batches of one task, then those of the next.
        temperature: 1 is proportional, large values near uniform.
        size_cap: rows beyond this number do not count for a task's share (arXiv:1910.10683).
        weights: by task.
        schedule: points of `{epoch: 0, weights: uniform}`, in order.
        until: round_robin ends when the shortest task is through (default), or the longest (the
            others begin anew).
        order_of_tasks: sequential: the tasks in the order that they come.
        rows_per_epoch: rows of an epoch for uniform, temperature, weights and schedule; default
            the rows there are. Pure batches fill whole optimizer steps.
        batches: mixed puts rows of several tasks into a batch; pure one task at a time.
        batch_tokens: tokens in a batch of a rank, about, instead of
            `training.per_device_train_batch_size` rows: long rows then come in smaller batches.
        packing: batches without padding, where the encoder can read them: the same losses, faster.
        order: shuffled; length: rows of like length share a batch, which saves padding;
            no_duplicates: rows of text groups (embedding tasks) that have a text in common do not
            share an optimizer step, where it would be a false negative of a contrastive loss.
        balance: label draws as many rows of each class, of tasks with one label for each text; an
            epoch has as many rows as before, those of rare classes several times.
        rows_together: a task whose loss compares the rows of a batch (contrastive, cosent, angle)
            comes into a mixed step with at least so many of them, or not at all; default
            `ROWS_TOGETHER`. 1 spreads them over all steps as those of other tasks.
    """

    strategy: str = "proportional"
    temperature: Number | None = Field(default=None, ge=0.1)
    size_cap: Whole | None = Field(default=None, gt=0)
    weights: dict[str, Number] | None = None
    schedule: list[SchedulePoint] | None = Field(default=None, min_length=1)
    until: Literal["shortest", "longest"] | None = None
    order_of_tasks: list[str] | None = None
    rows_per_epoch: Whole | None = Field(default=None, gt=0, le=10**8)
    batches: Literal["mixed", "pure"] = "mixed"
    batch_tokens: Whole | None = Field(default=None, ge=8)
    packing: bool = True
    order: Literal["shuffled", "length", "no_duplicates"] = "shuffled"
    balance: Literal["label"] | None = None
    rows_together: Whole | None = Field(default=None, ge=1)


@dataclass(config=STRICT, kw_only=True)
class Balancing:
    """How the losses, or the gradients, of the tasks are weighed against each other.

    The weights come on top of each task's own `loss_weight`.

    Args:
        method: one of `METHODS`; see `balancing/methods.py`, which names the paper of each. Default
            equal_norms; none where one task trains, and with torch_compile, FSDP and DeepSpeed.
        learning_rate: of the weights that uncertainty, famo and gradnorm learn.
        temperature: dwa: large values near equal weights.
        alpha: gradnorm: how strongly tasks that learn slowly are favoured.
        c: cagrad: how far from the mean gradient, 0 to 1.
        gradient_steps: every so many optimizer steps the gradients of the tasks are compared and
            logged, 0 for never; default 48 times the number of tasks, which costs some 2 %.
    """

    method: str | None = None
    learning_rate: Number | None = Field(default=None, gt=0)
    temperature: Number | None = Field(default=None, ge=0.01)
    alpha: Number | None = Field(default=None, ge=0)
    c: Number | None = Field(default=None, ge=0, lt=1)
    gradient_steps: Whole | None = Field(default=None, ge=0)


@dataclass(config=STRICT, kw_only=True)
class Unfreeze:
    """Frozen layers that join one after the other (ULMFiT, arXiv:1801.06146).

    Args:
        every: epochs between one layer and the next; the first joins after this time.
        from_: `from` in the recipe: top or bottom, the layer that joins first.
        layers: those of `freeze.layers` that join; default all.
    """

    every: Number = Field(gt=0)
    from_: Literal["top", "bottom"] = Field(default="top", alias="from")
    layers: list[Whole] | None = None


@dataclass(config=STRICT, kw_only=True)
class Experts:
    """What stands between encoder and heads: each task reads a mixture of experts.

    Args:
        kind: mmoe, all experts are all tasks'; cgc, each task has some of its own beside them; ple,
            two levels of these (Ma et al., KDD 2018; Tang et al., RecSys 2020).
        experts: how many all tasks share.
        per_task: how many each task has beside them, for cgc and ple; default 1.
        size: hidden units of an expert; default half of the encoder's width.
    """

    kind: Literal["mmoe", "cgc", "ple"]
    experts: Whole = Field(default=4, ge=1, le=LARGEST_COUNT)
    per_task: Whole | None = Field(default=None, ge=1, le=LARGEST_COUNT)
    size: Whole | None = Field(default=None, ge=1, le=LARGEST_SIZE)


@dataclass(config=STRICT, kw_only=True)
class Freeze:
    """What does not train.

    Args:
        encoder: the encoder's own weights; heads and adapters train.
        embeddings: all of the encoder below its first layer.
        layers: numbers of layers, from 0 at the bottom; negative ones count from the top.
        heads: tasks whose head keeps its first weights.
        unfreeze: when frozen layers join.
    """

    encoder: bool = False
    embeddings: bool = False
    layers: list[Whole] = Field(default_factory=list)
    heads: list[str] = Field(default_factory=list)
    unfreeze: Unfreeze | None = None


@dataclass(config=STRICT, kw_only=True)
class OptimizerOptions:
    """Learning rates that differ from `training.learning_rate`, and AdamW's moments by task.

    Args:
        layer_decay: each layer's rate is that of the layer above times this (arXiv:1801.06146).
        head_lr: of the heads, and of experts.
        adapter_lr: of the adapters.
        by_task: which moments AdamW keeps by task on weights that tasks share (AdaTask,
            arXiv:2211.15055), so that no task sets the step of another: moments for both,
            second_moment for the second. Tasks that share their rows count as one; each is clipped
            to `training.max_grad_norm` by itself. See `optimization/task_adamw.py`.
    """

    layer_decay: Number | None = Field(default=None, gt=0, le=1)
    head_lr: Number | None = Field(default=None, gt=0)
    adapter_lr: Number | None = Field(default=None, gt=0)
    by_task: Literal[False, "moments", "second_moment"] = False


@dataclass(config=STRICT, kw_only=True)
class Stopping:
    """When training, or a task, ends early.

    Args:
        by: macro ends the run when the macro score stops improving. task freezes a task whose own
            main metric stops improving and takes its rows out; the others go on.
        patience: evaluations without improvement.
        threshold: what counts as an improvement.
    """

    by: Literal["macro", "task"] = "macro"
    patience: Whole = Field(gt=0)
    threshold: Number = Field(default=0.0, ge=0)


@dataclass(config=STRICT, kw_only=True)
class Retain:
    """Texts keep the vectors that the encoder gave them before training (LwF, arXiv:1606.09282).

    A text's vector is pooled as by the embedding tasks, else as the model pools. The loss is the
    mean over the texts of a step of 1 - cosine(vector now, vector then).

    All rows are read, but those of masked LM, whose texts are masked, and those that go through an
    adapter. Without those of token tasks, the encoder forgets what these need (wnut17: 8 points).

    Args:
        weight: of that loss, beside the tasks' own.
    """

    weight: Number = Field(default=3.0, gt=0)


@dataclass(config=STRICT, kw_only=True)
class Average:
    """After training, the encoder is averaged with what it was (WiSE-FT, arXiv:2109.01903).

    Heads and adapters stay as trained.

    Args:
        start: share of the start's weights in the finished encoder; auto takes that of 0, 0.1, ...
            0.5 with the best macro score on validation.
    """

    start: Literal["auto"] | Annotated[Number, Field(gt=0, le=1)] = "auto"


@dataclass(config=STRICT, kw_only=True)
class Distill:
    """Tasks learn from other models' answers too (BAM, arXiv:1907.04829).

    Args:
        teachers: task to a finished Polyhead, a folder or Hub id, that has a task of this name and
            of the same labels; its encoder may be another. `alone`: the task is trained alone
            first, in output_dir/alone.
        rows: own, the teachers answer to their tasks' own rows; others, those of token tasks tag as
            many rows of the other tasks, so that entities are seen in texts like theirs as well
            (`commands/teaching_elsewhere.py`); their own rows are then taught by labels only.
        anneal: a task's loss is the teacher's at first and goes evenly over to that of the labels;
            else it is the sum of both.
        weight: of the teachers' part.
    """

    teachers: dict[str, str] = Field(min_length=1)
    rows: Literal["own", "others"] = "own"
    anneal: bool = True
    weight: Number = Field(default=1.0, gt=0)


@dataclass(config=STRICT, kw_only=True)
class FewShot:
    """Pairs of a task's rows train the encoder before its head (SetFit, arXiv:2209.11055).

    A pair with the same label is to have cosine 1, another one 0; see `commands/few_shot.py`.

    Args:
        pairs: of each row with others of its class, and as many with rows of other classes.
        learning_rate: of that stage, one pass over the pairs; then `training.learning_rate` goes.
    """

    pairs: Whole = Field(default=20, gt=0, le=10_000)
    learning_rate: Number = Field(default=2e-5, gt=0)


@dataclass(config=STRICT, kw_only=True)
class Precision:
    """A share of right answers that is wished for.

    Args:
        precision: least share, on validation rows, of the answers that are given.
    """

    precision: Number = Field(gt=0, le=1)


@dataclass(config=STRICT, kw_only=True)
class Decide:
    """What is decided on validation rows after training, and kept in the model's config.

    Args:
        calibrate: a temperature that the task's logits are divided by, for the least negative
            log-likelihood (Guo et al. 2017, arXiv:1706.04599).
        threshold: of a multi-label task, from which probability each label is set: macro_f1, where
            its F1 is best; `{precision: 0.9}`, the lowest with such a precision of the label.
        abstain: of tasks that choose one label, and of entities: the lowest score with such a
            precision of all answers above it. Below it there is no answer.
    """

    calibrate: bool = False
    threshold: Literal["macro_f1"] | Precision | None = None
    abstain: Precision | None = None


@dataclass(config=STRICT, kw_only=True)
class Card:
    """What the model card says that no file knows.

    Args:
        language: codes of the languages of the texts, as [en, de].
        license: of the model, by the Hub's name for it, as apache-2.0.
        limits: what users should know: whom the data leaves out, what it was not tried on.
    """

    language: list[str] = Field(default_factory=list)
    license: str | None = None
    limits: str | None = None


@dataclass(config=STRICT, kw_only=True)
class MultiTaskArguments:
    """What a training of several tasks has beside TrainingArguments; see `Recipe`.

    Args:
        sampling: how rows of the tasks are mixed.
        passes: by source, passes over its rows in an epoch.
        balancing: how the tasks are weighed against each other.
        freeze: what does not train.
        optimizer: learning rates of parts of the model, moments by task.
        rates: by task, the learning rate of its own head and adapter and, with `optimizer.by_task`,
            of its updates on shared weights.
        stopping: when training, or a task, ends early.
        nan_loss: what to do with a loss that is not finite.
        cached: embedding tasks whose texts are compared over all micro-batches of a step.
        retain: what the encoder keeps of itself.
        average: how much of what it was the encoder gets back after training.
        distill: what tasks learn from other models.
    """

    sampling: Sampling = Field(default_factory=Sampling)
    passes: dict[str, Number] = Field(default_factory=dict)
    balancing: Balancing = Field(default_factory=Balancing)
    freeze: Freeze = Field(default_factory=Freeze)
    optimizer: OptimizerOptions = Field(default_factory=OptimizerOptions)
    rates: dict[str, Number] = Field(default_factory=dict)
    stopping: Stopping | None = None
    nan_loss: Literal["stop", "skip"] = "stop"
    cached: set[str] = Field(default_factory=set)
    retain: Retain | None = None
    average: Average | None = None
    distill: Distill | None = None
