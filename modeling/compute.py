# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What the encoder's linear layers are computed with: measured on this machine, not assumed.

torch computes fp32 products with the BLAS it was built with. On some CPUs (AMD's with AVX-512) its
other library, oneDNN, takes half the time for the same result; on others it takes longer. bf16 is
several times faster where the CPU has instructions for it and ten times slower where not. So each
is timed on the encoder's own shapes first (under a second, once a process) and used only if it is
faster and gives the same numbers within a tolerance. The plain way always remains.

Shapes: `M` rows, `I` in, `O` out.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Mode = Literal["exact", "auto", "bf16"]
MODES = get_args(Mode)
MIN_SPEEDUP = 1.1  # times as fast as the plain way, to be used instead of it
WAYS = ("torch", "onednn", "bf16")
TOLERANCE = {"torch": 0.0, "onednn": 1e-5, "bf16": 2e-2}  # of the largest output
FLOPS_PER_TRIAL = 2**29  # operations of one timed product
REPEATS = 7
ROWS = 32  # from here on; for single rows the two libraries are alike
WEIGHTS = 2**16  # of a layer, from here on; smaller ones cost little, whatever does them


@dataclass
class Compute:
    """What was chosen, and why.

    Args:
        mode: what was asked for.
        chosen: torch, onednn or bf16, by (in, out) of a linear layer.
        speed: GFLOP/s by (in, out), then by what was timed.
        reason: one sentence.
    """

    mode: Mode
    chosen: dict[tuple[int, int], str] = field(default_factory=dict)
    speed: dict[tuple[int, int], dict[str, float]] = field(default_factory=dict)
    reason: str = "as torch computes"

    @property
    def runs_bf16(self) -> bool:
        """The encoder runs in bfloat16."""
        return "bf16" in self.chosen.values()

    def context(self, device: str) -> AbstractContextManager:
        """What to run the encoder in."""
        return torch.autocast(device, torch.bfloat16) if self.runs_bf16 else nullcontext()

    def cast_back(self, output: Any, dtype: torch.dtype) -> Any:
        """An encoder's output in the dtype that the heads have."""
        if self.runs_bf16:
            if output.last_hidden_state is not None:
                output.last_hidden_state = output.last_hidden_state.to(dtype)
            if output.hidden_states is not None:
                output.hidden_states = tuple(
                    None if state is None else state.to(dtype) for state in output.hidden_states
                )
        return output


class _OneDNN(torch.autograd.Function):
    """x W^T + b by oneDNN, forward and backward: x (M, I), W (O, I), b (O,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        needed = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            _product(grad, weight.t().contiguous()) if needed[0] else None,
            _product(grad.t().contiguous(), x.t().contiguous()) if needed[1] else None,
            grad.sum(0) if needed[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(M, I), (O, I) -> (M, O)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001


class OneDNNLinear(nn.Linear):
    """A linear layer whose class was exchanged: the weights stay where they are."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(..., I) -> (..., O)."""
        plain = input.dtype != torch.float32 or input.device.type != "cpu"
        plain = plain or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        if plain or input.numel() < ROWS * self.in_features:
            return F.linear(input, self.weight, self.bias)
        x = input.reshape(-1, self.in_features).contiguous()
        out: Tensor = _OneDNN.apply(x, self.weight, self.bias)  # pyright: ignore
        return out.view(*input.shape[:-1], self.out_features)


def check_mode(mode: str) -> None:
    """Raise a ValueError for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"compute is {mode!r}; allowed: {', '.join(MODES)}")


def set_compute(encoder: nn.Module, mode: Mode) -> Compute:
    """Choose how the linear layers of an encoder compute.

    Args:
        encoder: its `nn.Linear` layers are exchanged; layers of other types stay as they are.
        mode: `exact`, as torch does; `auto`, the faster way that is the same in fp32; `bf16`, in
            bfloat16 if this machine is faster in it (its caller sets autocast), else as `auto`.

    Returns:
        what was chosen. The numbers of a CPU are measured once a process.

    Raises:
        ValueError: the mode is unknown.
    """
    check_mode(mode)
    linears = [m for m in encoder.modules() if isinstance(m, nn.Linear)]
    layers = [m for m in linears if type(m) in (nn.Linear, OneDNNLinear)]  # no quantized kinds
    large = [m for m in layers if m.in_features * m.out_features >= WEIGHTS]
    compute = _choose(mode, large, next(encoder.parameters()))
    for layer in layers:
        way = compute.chosen.get((layer.in_features, layer.out_features))
        kind = OneDNNLinear if way == "onednn" else nn.Linear  # small ones are in no choice
        if type(layer) is not kind:  # the same choice again changes nothing under a running call
            layer.__class__ = kind
    return compute


def _choose(mode: Mode, layers: list[nn.Linear], first: Tensor) -> Compute:
    """How these layers compute; `first` is a weight of the encoder."""
    if mode == "exact":
        return Compute(mode)
    if not layers:
        return Compute(mode, reason="as torch computes: no linear layer is large")
    if first.device.type != "cpu":
        reason = "bf16 by autocast" if mode == "bf16" else "as torch computes: not a CPU"
        chosen = {(m.in_features, m.out_features): "bf16" for m in layers} if mode == "bf16" else {}
        return Compute(mode, chosen, reason=reason)
    if first.dtype != torch.float32:
        return Compute(mode, reason=f"as torch computes: the weights are {first.dtype}")
    shapes = sorted({(m.in_features, m.out_features) for m in layers})
    ways = WAYS if mode == "bf16" else WAYS[:2]
    speed = {shape: _measure(*shape, ways, torch.get_num_threads()) for shape in shapes}
    if mode == "bf16" and all(
        s["bf16"] > MIN_SPEEDUP * max(s["torch"], s["onednn"]) for s in speed.values()
    ):
        return Compute(mode, dict.fromkeys(shapes, "bf16"), speed, "bf16 is faster here")
    chosen = {
        shape: "onednn" if gflops["onednn"] > MIN_SPEEDUP * gflops["torch"] else "torch"
        for shape, gflops in speed.items()
    }
    faster = sum(way == "onednn" for way in chosen.values())
    reason = f"oneDNN is faster for {faster} of {len(shapes)} shapes"
    if mode == "bf16":
        reason = f"bf16 is not faster here; {reason}"
    return Compute(mode, chosen, speed, reason)


@cache
def _measure(inner: int, outer: int, ways: tuple[str, ...], threads: int) -> dict[str, float]:  # noqa: ARG001 - part of the key
    """GFLOP/s of each way for a layer's shape; 0 where it is absent or gives other numbers."""
    generator = torch.Generator().manual_seed(0)
    rows = min(512, max(ROWS, FLOPS_PER_TRIAL // (2 * inner * outer)))
    single: Any = {"generator": generator, "dtype": torch.float32}
    x, weight = (torch.randn(n, inner, **single) for n in (rows, outer))
    low, low_weight = x.bfloat16(), weight.bfloat16()
    runs: dict[str, Callable[[], Tensor]] = {
        "torch": lambda: F.linear(x, weight),
        "onednn": lambda: _product(x, weight),
        "bf16": lambda: F.linear(low, low_weight),
    }
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    able = [name for name in ways if there or name != "onednn"]
    with torch.no_grad():
        expected = runs["torch"]()
        limit = {name: TOLERANCE[name] * expected.abs().max() for name in able}
        able = [name for name in able if (runs[name]() - expected).abs().max() <= limit[name]]
        least = dict.fromkeys(able, float("inf"))
        for _ in range(REPEATS):  # in turns; what else the machine does can only add to a time
            for name in able:
                start = time.perf_counter()
                runs[name]()
                least[name] = min(least[name], time.perf_counter() - start)
    work = 2 * rows * inner * outer / 1e9
    return {name: round(work / least[name], 1) if name in able else 0.0 for name in ways}
