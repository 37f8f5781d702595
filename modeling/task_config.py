# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""A task as the model has it: its options, checked, and what follows of its kind of head.

`TaskConfig` is checked when it is made, so a model never meets a half-valid task.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from .checks import LARGEST_WIDTH, check_choice, check_finite, check_json, check_types
from .head_layers import LARGEST_LAYERS
from .heads import HEADS, Head
from .options import ACTIVATIONS, LONG_TEXTS, NUMBERS, WINDOW_POOLINGS, HeadTask, check_decisions
from .pooling import POOLINGS
from .unread_options import check_read


@dataclass(kw_only=True)
class TaskConfig(HeadTask):
    """One task: the kind of its head and what the head needs to know.

    The options are those of `TaskOptions` and `HeadTask`; here they are checked, those that differ
    between kinds of head by the head's class.

    Raises:
        ValueError: an option is unknown, missing, or does not fit the kind of head.
    """

    def __post_init__(self) -> None:
        self._check_labels()
        check_types("", self)
        check_choice("head", self.head, tuple(HEADS))
        check_choice("pooling", self.pooling, (None, *POOLINGS))
        check_choice("activation", self.activation, (None, *ACTIVATIONS))
        check_choice("long_texts", self.long_texts, (None, *LONG_TEXTS))
        check_choice("window_pooling", self.window_pooling, (None, *WINDOW_POOLINGS))
        for name in NUMBERS:
            if getattr(self, name) is not None:
                check_finite(name, getattr(self, name))
        self._check_shares()
        self._check_numbers()
        self._check_widths()
        check_json("head_options", self.head_options)
        if self.labels and "labels" not in self.head_class.options:
            raise ValueError(f"a {self.head} task has no labels, got {len(self.labels)}")
        check_read(self)
        check_decisions(self)
        self.head_class.check(self)

    @property
    def head_class(self) -> type[Head]:
        """The class of the task's head: what differs between kinds of head is asked there."""
        return HEADS[self.head]

    @property
    def reads(self) -> Literal["text", "pair", "choices"]:
        """What it reads: a text, two texts, or a text with others to choose from."""
        if self.head_class.chooses:
            return "choices"
        return "pair" if self.pair else "text"

    @property
    def reads_windows(self) -> bool:
        """Of a long text it reads every window, not the first alone."""
        return self.head_class.decodes_spans or self.long_texts == "windows"

    @property
    def pools_windows(self) -> bool:
        """It answers once for all windows of a text; else for their tokens, each by itself."""
        return self.reads_windows and not self.head_class.per_token

    def _check_shares(self) -> None:
        for name in ("dropout", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")

    def _check_numbers(self) -> None:
        for name in ("temperature", "margin"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.false_negative_margin is not None and self.false_negative_margin < 0:
            raise ValueError(
                f"false_negative_margin is {self.false_negative_margin}; it must be 0 or more"
            )
        if self.focal < 0:
            raise ValueError(f"focal is {self.focal}; it must be 0 or more")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}; it must lie in [0, 1]")
        if not self.loss_weight >= 0:
            raise ValueError(f"loss_weight is {self.loss_weight}; it must be 0 or more")

    def _check_widths(self) -> None:
        widths = self.matryoshka
        if widths is not None and (not widths or sorted(set(widths), reverse=True) != widths):
            raise ValueError(
                f"matryoshka is {widths}; give widths from the largest to the smallest"
            )
        if widths is not None and widths[-1] < 1:
            raise ValueError(f"matryoshka is {widths}; a width is 1 or more")
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer is {self.layer}; the layers of an encoder count from 1")
        if self.layer is not None and self.layer_mix:
            raise ValueError("layer reads one layer, layer_mix all; take one of them out")
        for name, largest in (("projection", LARGEST_WIDTH), ("layers", LARGEST_LAYERS)):
            number = getattr(self, name)
            if number is not None and not 1 <= number <= largest:
                raise ValueError(f"{name} is {number}; allowed: 1 to {largest}")

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


def mask_fault(tasks: Mapping[str, Any]) -> str | None:
    """What to tell of tasks that cannot share a pass: some see earlier tokens only, others all."""
    causal = [name for name, task in tasks.items() if HEADS[task.head].causal]
    others = [name for name in tasks if name not in causal]
    if not causal or not others:
        return None
    return (
        f"task {', '.join(causal)} reads with a causal mask, {', '.join(others)} in both "
        "directions: one pass cannot do both. Train them apart, the others then on the encoder of "
        "the first (encoder: its folder)"
    )
