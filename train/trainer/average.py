"""After training, the encoder's weights are averaged with those of the start (`average`).

WiSE-FT (arXiv:2109.01903): what the encoder knew before comes back, what the tasks taught stays for
the most part. Heads and adapters stay as trained, for the encoder as trained. It costs a copy of
the encoder on the host and, where the share is chosen, an evaluation for each share of the grid.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...modeling.modeling_polyhead import PolyheadModel
from ..adapters import is_adapter_weight
from ..evaluation.metrics import main_metric
from ..evaluation.scoring import macro
from ..recipe.sections import Average

logger = logging.getLogger(__name__)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the start's weights, in order of trial
Evaluate = Callable[[], dict[str, dict[str, Any]]]  # scores by task, of the model as it is


@dataclass(frozen=True)
class Trial:
    """Scores on validation with a share of the start's weights.

    Args:
        share: of the start's weights.
        macro: mean of the tasks' main metrics.
        tasks: the main metric of each.
    """

    share: float
    macro: float
    tasks: dict[str, float]


@dataclass
class StartAverage:
    """The weights of the start, and what becomes of them.

    Args:
        model: the model to be trained, with its frozen weights frozen.
        options: the recipe's.

    Attributes:
        share: of the start's weights in the finished encoder; None before it is known.
        trials: of each share that was tried.

    Raises:
        ValueError: no weight of the encoder trains.
    """

    model: PolyheadModel
    options: Average
    share: float | None = None
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start: dict[str, Tensor] | None = None
        if not any(weight.requires_grad for weight in self._weights().values()):
            raise ValueError(
                "average: without effect, no weight of the encoder trains; take it out"
            )

    def _weights(self) -> dict[str, nn.Parameter]:
        """The encoder's own weights, by name."""
        return {
            name: weight
            for name, weight in self.model.encoder.named_parameters()
            if not is_adapter_weight(self.model, name) and weight.is_floating_point()
        }

    def keep_start(self) -> None:
        """Copy the weights as they are now to the host; a second call changes nothing."""
        if self._start is None:
            self._start = _copied(self._weights())

    def apply(self, evaluate: Evaluate) -> None:
        """Average the trained weights with the start's; frozen ones keep every bit.

        Args:
            evaluate: scores the model on validation, where the share is to be chosen. Ranks have
                to call it together.
        """
        trained = _copied(self._weights())
        self.trials = []
        share = self.options.start
        if share == "auto":
            for candidate in SHARES:
                self._set(trained, candidate)
                self.trials.append(_trial(candidate, evaluate()))
            share = max(self.trials, key=lambda trial: trial.macro).share  # the first of equal ones
        self._set(trained, share)
        self.share = share
        for line in self.lines():
            logger.info(line)

    def _set(self, trained: dict[str, Tensor], share: float) -> None:
        assert self._start is not None
        with torch.no_grad():
            for name, weight in self._weights().items():
                difference = self._start[name].float() - trained[name].float()
                weight.copy_(trained[name].float() + share * difference)

    def lines(self) -> list[str]:
        """What was tried, and what was taken."""
        lines = [
            f"average: {trial.share:g} of the start: macro {trial.macro:.4f}, "
            + ", ".join(f"{name} {value:.4f}" for name, value in trial.tasks.items())
            for trial in self.trials
        ]
        return [*lines, f"average: the encoder has {self.share:g} of the start's weights"]

    def record(self) -> dict[str, Any]:
        """What `training.json` says of it."""
        trials = [
            {"share": trial.share, "macro": trial.macro, "tasks": trial.tasks}
            for trial in self.trials
        ]
        return {"share": self.share, "trials": trials}

    def logs(self) -> list[dict[str, float]]:
        """The same as lines of the log: `average_share`, `average_macro`, `average_<task>`."""
        if not self.trials:
            return [{"average_share": float(self.share or 0.0)}]
        return [
            {"average_share": trial.share, "average_macro": trial.macro}
            | {f"average_{name}": value for name, value in trial.tasks.items()}
            for trial in self.trials
        ]


def _copied(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}


def _trial(share: float, scores: dict[str, dict[str, Any]]) -> Trial:
    by_task = {name: float(values[main_metric(list(values))]) for name, values in scores.items()}
    return Trial(share, macro(scores), by_task)
