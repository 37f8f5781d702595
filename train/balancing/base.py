"""What all balancing methods share.

- Weights come on top of each task's `loss_weight`: what trains is the sum of weight x loss_weight x
  loss. The losses handed in are the plain ones, the gradients those of loss_weight x loss.
- A loss is a task's in the whole optimizer step, over micro-batches and ranks. All inputs are the
  same on all ranks, and so is all that comes out; chance is a function of (seed, step).
- K tasks with the same rows, losses and gradients train as without balancing (random: on average),
  so that learning rate and clipping keep their meaning. What a paper defines as a mean over tasks
  is multiplied by K for that. `classes` and `uncertainty` alone set a scale of their own.
- A task that is absent from a step, or whose loss there is 0 or not finite, has no say in the
  weights of the others and learns nothing; neither has one with `loss_weight` 0.

What methods learn are plain numbers with an Adam of their own, no parameters of the model.
"""

import copy
import math
from typing import Any, ClassVar

from torch import Tensor

from ...modeling.task_config import TaskConfig
from ..recipe.sections import Balancing

Numbers = dict[str, float]  # by task


class Balancer:
    """Weighs the tasks of a training; this one, `none`, gives all of them 1.

    What a method reads, and the trainer hands in; this one reads nothing:
        reads_losses: the step's losses in `weights`, so before the backward pass.
        reads_losses_after: those of the same batches again after the optimizer's step.
        reads_gradients: the tasks' gradients on all shared weights, to `combine` them.
        reads_last_layer: the tasks' gradients on the last encoder layer that trains.
        reads_output: the lengths of the tasks' gradients on the encoder's output.
        learns: changes in `after_step`, which reads the step's losses; others may leave it out.

    Args:
        options: the recipe's.
        tasks: configs by task.
        rows: number of training rows by task.
        seed: together with the step it decides what is left to chance.
    """

    reads_losses: ClassVar[bool] = False
    reads_losses_after: ClassVar[bool] = False
    reads_gradients: ClassVar[bool] = False
    reads_last_layer: ClassVar[bool] = False
    reads_output: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def __init__(
        self, options: Balancing, tasks: dict[str, TaskConfig], rows: dict[str, int], seed: int
    ) -> None:
        self.options = options
        self.tasks = {name: tasks[name] for name in sorted(tasks)}
        self.names = [name for name, task in self.tasks.items() if task.loss_weight > 0]
        self.rows = rows
        self.seed = seed
        self.state = self._first_state()
        self._latest = dict.fromkeys(self.tasks, 1.0)

    def weights(self, step: int, losses: Numbers | None = None) -> Numbers:
        """The weight of each task's loss in a step.

        Args:
            step: optimizer steps done before.
            losses: losses of the tasks in the step, for a method with `reads_losses`.

        Raises:
            ValueError: the losses are missing.
        """
        if losses is None and self.reads_losses:
            raise ValueError(f"balancing {self.options.method} needs the losses of the step")
        self._latest = dict.fromkeys(self.tasks, 1.0)
        self._latest |= self._weights(step, self._present(losses or {}))
        return dict(self._latest)

    def combine(self, gradients: Tensor, tasks: list[str], step: int) -> Tensor:
        """One gradient on the shared weights in place of the sum of the tasks'.

        Args:
            gradients: (K, P) of the tasks in the step, of loss_weight x loss.
            tasks: the K names.
            step: optimizer steps done before.

        Returns:
            (P,); of a single task its own.
        """
        return gradients.sum(0)

    def after_step(
        self,
        step: int,
        losses: Numbers,
        *,
        epoch: int = 0,
        losses_after: Numbers | None = None,
        gradients: Tensor | None = None,
    ) -> None:
        """Learn from a step.

        Args:
            step: the number that `weights` had.
            losses: losses of the tasks in the step, before the optimizer's step.
            epoch: epoch that the step belongs to, from 0.
            losses_after: their losses after the optimizer's step.
            gradients: (K, P) on the last layer, a row for each of `losses`, in their order; or
                (K, 1), their lengths on the encoder's output.

        Raises:
            ValueError: something that the method reads is missing.
        """
        if self.reads_losses_after and losses_after is None:
            raise ValueError(f"balancing {self.options.method} needs losses_after after the step")
        if (self.reads_last_layer or self.reads_output) and gradients is None:
            raise ValueError(f"balancing {self.options.method} needs gradients after the step")
        norms = [] if gradients is None else gradients.norm(dim=1).tolist()
        by_task = dict(zip(losses, norms, strict=True)) if norms else {}
        self._learn(self._present(losses), epoch, losses_after or {}, by_task)

    def state_dict(self) -> dict[str, Any]:
        """What has been learned, as JSON can hold it."""
        identity = {"method": self.options.method, "tasks": list(self.tasks)}
        return identity | copy.deepcopy(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ValueError: it is of another method or of other tasks.
        """
        for key, expected in (("method", self.options.method), ("tasks", list(self.tasks))):
            if state[key] != expected:
                raise ValueError(f"the state of balancing has {key} {state[key]}, not {expected}")
        self.state = copy.deepcopy({key: state[key] for key in self.state})

    def log(self) -> Numbers:
        """`weight_<task>` of the latest step; nothing where all are 1 for good."""
        if self.options.method == "none":
            return {}
        return {f"weight_{name}": weight for name, weight in self._latest.items()}

    def _present(self, losses: Numbers) -> Numbers:
        """Losses of the tasks that count, in the order of their names."""
        return {n: losses[n] for n in self.names if 0 < losses.get(n, 0.0) < math.inf}

    def _first_state(self) -> dict[str, Any]:
        """What is learned, as it is before the first step."""
        return {}

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        """Weights of some tasks; that of the others is 1."""
        return {}

    def _learn(self, losses: Numbers, epoch: int, after: Numbers, norms: Numbers) -> None:
        """Change `state`; the lengths of gradients are by task too."""
