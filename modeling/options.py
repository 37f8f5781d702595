# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""The options of a task, as plain dataclasses; what they may say is checked where they are read.

`TaskOptions` is what a recipe and a model's config have in common. Which of them a task reads, its
head says (`heads.py`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

SCHEMES = ("iob1", "iob2", "bioes")
ACTIVATIONS = ("tanh", "relu", "gelu")
LONG_TEXTS = ("first", "windows")
WINDOW_POOLINGS = ("mean", "max")
NUMBERS = (  # options that are numbers
    "dropout",
    "threshold",
    "temperature",
    "false_negative_margin",
    "margin",
    "loss_weight",
    "mlm_probability",
    "label_smoothing",
    "focal",
    "calibration",
    "abstain",
)
DECIDED = ("calibration", "thresholds", "abstain")  # on validation rows, after training
MASK_SHARES = (0.8, 0.1, 0.1)  # arXiv:1810.04805
# Options that a saved model may have without effect, from before they were refused.
ONCE_ALLOWED = frozenset(
    ("pooling", "activation", "dropout", "threshold", "temperature", "margin", "projection")
    + ("normalize",)
)


@dataclass(kw_only=True)
class TaskOptions:
    """What one may say of a task, in a recipe as in a config.

    Args:
        head: the kind of its head: a name in `HEADS`.
        labels: label strings in id order; for classification heads.
        problem_type: one of `PROBLEM_TYPES`, for `sequence_classification`; with labels the default
            is `single_label_classification`. The labels of `ordinal` are in order, the lowest
            first.
        hierarchy: the labels of a single-label task are paths of a tree, `a/b/c`: the score of a
            node is the sum of those under it, and the answer is found from the root down.
        pooling: one of `POOLINGS`, for heads over one vector per text; None takes the model's.
        activation: adds a dense layer with this activation before the output, as BERT's pooler
            (tanh) or DistilBERT's pre-classifier (relu) do; None is one linear layer.
        layers: hidden layers of a head that classifies or chooses, each x + act(W dropout(x) + b),
            with `activation` or gelu; they stand in the place of the one dense layer. None: none.
        layer_mix: the head reads a learned mean of all layers of the encoder, not the last alone
            (ELMo, arXiv:1802.05365).
        layer: number of the layer of the encoder whose states the head reads, from 1; None for the
            last. Layers that no task of a call reads are not computed.
        dropout: probability before each linear layer of a classification head.
        scheme: `iob1`, `iob2` or `bioes` for entity tags; None for token labels that stand alone
            (part of speech). Found from the labels when not given.
        threshold: a label of a multi-label task is set when its probability reaches this.
        loss: one of `LOSSES`, for `embedding`; default cosent.
        temperature: divides the cosines of the contrastive loss.
        symmetric: the contrastive loss asks both ways: anchor to positive, positive to anchor.
        false_negative_margin: candidates of the contrastive loss that are nearer to the anchor than
            its own positive by more than this cosine are left out; None keeps all.
        margin: of the triplet loss: how much further away than the positive a negative must be.
        prompts: put before the texts of an embedding task: [text], or [query, document] where the
            second text of a row has another one (arXiv:2212.03533).
        matryoshka: widths, as [384, 128, 64]: the embedding loss is summed over the first so many
            dimensions of each embedding, so that it can be cut to them (arXiv:2205.13147).
        label_smoothing: share of each label that is spread over all classes evenly, for heads that
            choose one class: q = (1 - s) onehot + s / L (arXiv:1512.00567). It is in the loss of
            evaluation too.
        class_weight: weight of each label in the loss, by label; those not named weigh 1. In a
            recipe also `balanced`: n / (L n_l), with n_l of n rows (words) of train. Of a
            multi-label task the weight of a label where it is set; balanced: (n - n_l) / n_l.
        focal: gamma of the focal loss, (1 - p)^gamma times the cross-entropy, for heads over
            classes; 0 for none (arXiv:1708.02002).
        mlm_probability: share of the tokens that `masked_lm` hides.
        mask_shares: of these, [masked, replaced by a random token, kept]; default [0.8, 0.1, 0.1].
        whole_word: all tokens of a word are hidden together.
        blocks: a language model reads texts whole: short ones are joined to rows of as many tokens
            as a text may have, each seeing itself alone, long ones cut; else the first window.
        tied: the output layer over the vocabulary is the encoder's input embeddings; false gives it
            weights of its own.
        projection: width of a linear layer after pooling, for `embedding`; None leaves it out.
        normalize: scale embeddings to length 1.
        long_texts: how a text longer than the encoder takes is read: `first`, its first window
            alone; `windows`, all of it, in windows that overlap by a quarter. Default first. Of a
            pair the second text is cut so, beside the first one in each window.
        window_pooling: `mean` or `max` of the windows' logits, beside `long_texts: windows`;
            default mean. Vectors of an embedding task are a mean weighted by tokens.
        loss_weight: this task's factor in the total loss.
        head_options: options of a head of your own, by name; values that JSON has.
    """

    head: str
    labels: list[str] | None = None
    problem_type: str | None = None
    hierarchy: bool = False
    pooling: str | None = None
    activation: str | None = None
    layers: int | None = None
    layer_mix: bool = False
    layer: int | None = None
    dropout: float = 0.1
    scheme: str | None = None
    threshold: float = 0.5
    loss: str | None = None
    temperature: float = 0.05
    symmetric: bool = False
    false_negative_margin: float | None = None
    margin: float = 0.5
    prompts: list[str] | None = None
    matryoshka: list[int] | None = None
    label_smoothing: float = 0.0
    class_weight: str | dict[str, float] | None = None
    focal: float = 0.0
    mlm_probability: float = 0.15
    mask_shares: list[float] | None = None
    whole_word: bool = False
    blocks: bool = False
    tied: bool = True
    projection: int | None = None
    normalize: bool = True
    long_texts: str | None = None
    window_pooling: str | None = None
    loss_weight: float = 1.0
    head_options: dict[str, Any] | None = None


@dataclass(kw_only=True)
class HeadTask(TaskOptions):
    """A task as its head meets it: the options, and what the data and the model add to them.

    Args:
        pair: the task reads two texts (sentence-pair tasks).
        signs: signs that entities begin or end with, found in the data. Where a sub-token holds
            several words (`£5`, `."`), an entity leaves out signs at its ends that are not listed;
            None leaves out none.
        partial: sets of labels, found in data that mark only some of them: among the labels of a
            batch the id `num_labels + k` stands for any label of `partial[k]`.
        grown: how many labels, the last ones, came later, one number for each time; these have
            output layers of their own, so that those of the older ones stay as they are.
        strict: the labels (types of entities) that came last, each with the probability from which
            it is put; where none is, the older ones are answered as they were before.
        adapter: name of the PEFT adapter that its rows go through, its own or a shared one; None
            for the bare encoder.
        calibration: number that the logits are divided by, so that probabilities are as often right
            as they say (temperature scaling, arXiv:1706.04599); found on validation rows.
        thresholds: of a multi-label task, by label, before `threshold`; above 1 it is never set.
        abstain: least probability of an answer; below it there is none: no label, no entity. Labels
            of `strict` have thresholds of their own.
    """

    pair: bool = False
    signs: list[str] | None = None
    partial: list[list[str]] | None = None
    grown: list[int] | None = None
    strict: dict[str, float] | None = None
    adapter: str | None = None
    calibration: float | None = None
    thresholds: dict[str, float] | None = None
    abstain: float | None = None

    def prompt(self, part: int = 0) -> str:
        """What is put before a text: 0 for the query (anchor), 1 and more for the document."""
        return self.prompts[min(part, len(self.prompts) - 1)] if self.prompts else ""

    @property
    def num_labels(self) -> int:
        """Width of the head's output."""
        return len(self.labels) if self.labels else 1

    @property
    def strict_labels(self) -> int:
        """How many labels, the last ones, are put by thresholds of their own."""
        return self.grown[-1] if self.strict and self.grown else 0

    @property
    def label_thresholds(self) -> dict[str, float]:
        """By label, the probability from which a multi-label task sets it."""
        return dict.fromkeys(self.labels or [], self.threshold) | (self.thresholds or {})

    @property
    def decided(self) -> list[str]:
        """Its options that were decided after training."""
        return [name for name in DECIDED if getattr(self, name) is not None]

    @property
    def decisions(self) -> dict[str, Any]:
        """What was decided for it after training, by option."""
        return {name: getattr(self, name) for name in self.decided}

    @property
    def decided_apart(self) -> str | None:
        """What of its decisions no class of transformers knows; it sees the logits alone."""
        return " and ".join(name for name in self.decided if name != "calibration") or None

    @property
    def answers_apart(self) -> str | None:
        """Why no class of transformers answers as this task does; None where one does."""
        if self.strict:
            return f"puts {', '.join(self.strict)} by thresholds of its own"
        if self.problem_type == "ordinal":
            return "answers the middle of its classes in order, not the likeliest"
        return "answers from the root of a tree down, not the likeliest" if self.hierarchy else None

    @property
    def partial_ids(self) -> list[list[int]]:
        """`partial` as ids of labels."""
        return [[(self.labels or []).index(label) for label in part] for part in self.partial or []]

    @property
    def id2label(self) -> dict[int, str]:
        """Label string of each output column."""
        return dict(enumerate(self.labels or []))


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


def check_class_weight(task: HeadTask) -> None:
    """Raise ValueError unless `class_weight` gives labels of the task weights above 0."""
    weights = task.class_weight
    if weights is None:
        return
    if isinstance(weights, str):
        raise ValueError(
            f"class_weight is {weights!r}; a model has a number for each label, as {{x: 2.0}}: "
            "balanced is found by a recipe, in its data"
        )
    unknown = [label for label in weights if label not in (task.labels or [])]
    if unknown:
        raise ValueError(
            f"class_weight names {', '.join(map(repr, unknown))}; labels: "
            f"{', '.join(task.labels or [])}"
        )
    for label, weight in weights.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 < weight < float("inf"):
            raise ValueError(f"class_weight of {label!r} is {weight!r}; write a number above 0")


def check_grown(task: HeadTask) -> None:
    """Raise ValueError unless `grown` and `strict` go with the labels.

    Each set of `partial` has labels of the task, each once.
    """
    count, grown = len(task.labels or []), task.grown or []
    if any(number < 1 for number in grown) or sum(grown) >= max(count, 1):
        raise ValueError(f"grown is {grown}; of {count} labels some came first")
    new = [x if task.scheme is None else x[2:] for x in (task.labels or [])[-(grown or [1])[-1] :]]
    strict = task.strict or {}
    odd = [t for t in strict.values() if isinstance(t, bool) or not isinstance(t, (int, float))]
    if odd or any(not 0 <= threshold <= 1 for threshold in strict.values()):
        raise ValueError(f"strict is {strict!r:.80}; a threshold lies in [0, 1]")
    if strict and (not grown or set(strict) != set(new)):
        raise ValueError(f"strict names {', '.join(strict)}; it must name the labels grown last")
    for name in ("label_smoothing", "class_weight", "focal") if task.partial else ():
        if getattr(task, name):
            verb = "spreads" if name == "label_smoothing" else "weighs"
            raise ValueError(f"{name} {verb} one label, but of partial rows several are allowed")
    for part in task.partial or []:
        unknown = [label for label in part if label not in (task.labels or [])]
        if unknown or not part or len(set(part)) < len(part):
            raise ValueError(f"partial has {part!r:.80}; it must be labels of the task, each once")


def check_decisions(task: HeadTask) -> None:
    """Raise ValueError unless calibration, thresholds and abstain can have their values."""
    if task.calibration is not None and task.calibration <= 0:
        raise ValueError(f"calibration is {task.calibration}; it must be above 0")
    if task.abstain is not None and task.abstain < 0:
        raise ValueError(f"abstain is {task.abstain}; it must be 0 or more")
    for label, value in (task.thresholds or {}).items():
        if label not in (task.labels or []):
            raise ValueError(f"thresholds names {label!r:.40}, which is no label of the task")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise ValueError(f"thresholds has {label!r:.40}: {value!r:.40}; write 0 or more")


def check_option_names(what: str, names: Iterable[str]) -> None:
    """Raise ValueError unless `what` reads options that tasks have.

    Args:
        what: a head or a loss of a user's, for the message.
        names: the options that it says it reads.
    """
    known = [option.name for option in fields(HeadTask)]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(
            f"{what} reads {', '.join(unknown)}, which is no option of a task; allowed: "
            f"{', '.join(known)}; those of your own go into head_options"
        )
