"""The gradient of half of a task's rows: how much of a task's gradient is the rows' own chance."""

from typing import Any

import torch
from torch import Tensor, nn

from .task_gradients import StepGradients, cosines


class HalfGradient:
    """A task's gradient on shared weights from the first half of what its head reads.

    What comes back to the head's input is cut in half and sent on through the encoder: one backward
    pass, whatever the loss. The other half is the whole gradient less this one; it has what a head
    that is tied to the embeddings (masked LM) gives them directly.

    Args:
        name: the task.
        head: its head.
        parameters: the shared weights.
        like: the gradients of tasks that it is compared with; None for whole ones.
    """

    def __init__(
        self,
        name: str,
        head: nn.Module,
        parameters: list[nn.Parameter],
        like: StepGradients | None = None,
    ) -> None:
        self.name = name
        self.gradients = StepGradients([name], parameters) if like is None else like.alone(name)
        self._states: Tensor | None = None
        self._handle = head.register_forward_pre_hook(self._keep)

    def _keep(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        states = inputs[0]
        if torch.is_grad_enabled() and states.requires_grad:
            self._states = states

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add that of a micro-batch; the graph stays."""
        states, self._states = self._states, None
        if states is None or self.name not in losses:
            return
        options: Any = {"retain_graph": True, "allow_unused": True}
        (back,) = torch.autograd.grad(losses[self.name], [states], **options)
        if back is None:
            return
        # (1, P, H) where packed tokens are read: their texts stand one after the other
        side = 1 if back.dim() > 2 and len(back) == 1 else 0
        back = back.clone()
        back.narrow(side, back.shape[side] // 2, back.shape[side] - back.shape[side] // 2).zero_()
        self.gradients.add_outputs(self.name, states, back)

    def end(self) -> None:
        """After the last micro-batch: leave the head alone."""
        self._handle.remove()
        self._states = None

    def cosine(self, whole: Tensor) -> float:
        """Cosine of the two halves; NaN where one is 0.

        Args:
            whole: the task's row of a `StepGradients` of the same width.
        """
        half = self.gradients.total[0]
        return float(cosines([half, whole - half])[0, 1])
