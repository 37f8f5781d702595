"""Lengths of the tasks' gradients on the encoder's output, as the backward pass meets them."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...modeling.modeling_polyhead import PolyheadModel


class OutputGradients:
    """Watches what the encoder hands to each head, in the backward passes of an optimizer step.

    Several heads may read one tensor; each is given a view of it, whose gradient is its own.

    Args:
        model: the model, not wrapped.
    """

    def __init__(self, model: PolyheadModel) -> None:
        self._heads: dict[str, Any] = dict(model.heads.items())
        self._model = model
        self._handles: list[Any] = []
        self._squares: dict[str, Tensor] = {}
        self._counts = False

    def begin_forward(self) -> None:
        """Before the forward pass of a micro-batch: watch the heads."""
        self._counts = False
        if not self._handles:
            self._squares = {}
            self._handles = [
                head.register_forward_pre_hook(partial(self._watch, name))
                for name, head in self._heads.items()
            ]

    def begin_backward(self) -> None:
        """Before its backward pass: those that compare gradients do not count."""
        self._counts = True

    def end_backward(self) -> None:
        """After the last backward pass of the step: leave the heads alone."""
        self._counts = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def squares(self, names: Iterable[str]) -> Tensor:
        """(K,) float64: squared lengths of these tasks' gradients on this rank.

        0 for a task that no gradient reached.
        """
        zero = torch.zeros((), device=self._model.device)
        squares = [self._squares.get(name, zero).double() for name in names]
        return torch.stack(squares) if squares else zero.new_zeros(0).double()

    def _watch(self, name: str, head: nn.Module, inputs: tuple[Any, ...]) -> Any:
        states, *others = inputs
        if not torch.is_grad_enabled() or not states.requires_grad:
            return None
        states = states.view_as(states)
        states.register_hook(partial(self._add, name))
        return (states, *others)

    def _add(self, name: str, gradient: Tensor) -> None:
        if self._counts:
            square = gradient.detach().float().square().sum()
            self._squares[name] = self._squares[name] + square if name in self._squares else square
