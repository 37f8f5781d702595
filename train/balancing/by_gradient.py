"""One gradient out of the tasks': weights from the products of each two of them.

Every method here gives a combination of the K gradients whose weights follow from their Gramian,
(K, K), alone; the gradients themselves are read once for it and once to be combined. Most come
from torchjd (the extra `balancing`); nash_mtl is solved here, see `_nash_mtl`.

All are scaled so that K equal gradients give their sum, as adding up the losses would; torchjd's
mgda, cagrad, upgrad and aligned_mtl give a mean, which is multiplied by K.

Shapes: `K` tasks, `P` shared weights.
"""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from .base import Balancer

STRETCH = 2**16  # columns that are made float64 at a time; they stay in the cache

# Packages that a method needs beyond our own.
PACKAGES = {
    "pcgrad": ("torchjd",),
    "cagrad": ("torchjd", "cvxpy", "clarabel"),
    "mgda": ("torchjd",),
    "upgrad": ("torchjd", "qpsolvers", "quadprog"),
    "aligned_mtl": ("torchjd",),
    "nash_mtl": (),
}


class GradientBalancer(Balancer):
    """One gradient on the shared weights from those of the tasks.

    Heads and adapters of a single task train by their own losses, at weight 1. mgda, aligned_mtl
    and nash_mtl even out the lengths of gradients, and a `loss_weight` with them.
    """

    reads_gradients = True
    C = 0.4  # of cagrad

    def combine(self, gradients: Tensor, tasks: list[str], step: int) -> Tensor:
        """See `Balancer.combine`."""
        order = sorted(range(len(tasks)), key=tasks.__getitem__)
        gramian = gramian_of(gradients)[order][:, order]
        c = self.C if self.options.c is None else self.options.c
        seed = int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0])
        weights = gradient_weights(str(self.options.method), gramian, c=c, seed=seed)
        by_task = dict(zip(sorted(tasks), weights.tolist(), strict=True))
        self._latest = dict.fromkeys(self.tasks, 1.0) | by_task
        return gradients.new_tensor([by_task[name] for name in tasks]) @ gradients


def missing_packages(method: str) -> list[str]:
    """Packages that a method needs and that are not installed."""
    return [name for name in PACKAGES.get(method, ()) if find_spec(name) is None]


def gramian_of(gradients: Tensor) -> Tensor:
    """(K, P) gradients -> (K, K) products of each two of them, float64 on the CPU."""
    device = "cpu" if gradients.device.type == "mps" else gradients.device  # it has no float64
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64, device=device)
    for columns in gradients.split(STRETCH, dim=1):
        part = columns.to(device, torch.float64)
        total += part @ part.T
    return total.cpu()


def gradient_weights(method: str, gramian: Tensor, *, c: float, seed: int) -> Tensor:
    """Weights of the gradients in their combination.

    A gradient of zero has no say in those of the others; where fewer than two are left, or one is
    not finite, all weights are 1.

    Args:
        method: a key of `WEIGHTINGS`.
        gramian: (K, K) products of the gradients.
        c: constant of cagrad.
        seed: decides what a method draws by chance.

    Returns:
        (K,) float64.
    """
    weights = torch.ones(len(gramian), dtype=torch.float64)
    nonzero = gramian.diagonal() > 0
    if nonzero.sum() < 2 or not gramian.isfinite().all():
        return weights
    products = gramian[nonzero][:, nonzero]
    # No method minds a common scale, but some of torchjd take small gradients for none.
    weights[nonzero] = WEIGHTINGS[method](products / products.trace(), c, seed)
    return weights


def _pcgrad(gramian: Tensor, c: float, seed: int) -> Tensor:
    """PCGrad, arXiv:2001.06782: each gradient loses what goes against another; their sum."""
    from torchjd.aggregation import PCGradWeighting

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the order in which the others are met
        return PCGradWeighting()(gramian)


def _cagrad(gramian: Tensor, c: float, seed: int) -> Tensor:
    """CAGrad, arXiv:2110.14048: the best for the worst task within c of the mean gradient.

    Divided by 1 + c, as the authors' code can (`rescale`), or equal gradients would grow.
    """
    from torchjd.aggregation import CAGradWeighting

    return CAGradWeighting(c=c)(gramian) * len(gramian) / (1 + c)


def _mgda(gramian: Tensor, c: float, seed: int) -> Tensor:
    """MGDA, arXiv:1810.04650: the shortest vector between the gradients."""
    from torchjd.aggregation import MGDAWeighting

    return MGDAWeighting()(gramian) * len(gramian)


def _upgrad(gramian: Tensor, c: float, seed: int) -> Tensor:
    """UPGrad, arXiv:2406.16232: each gradient turned so that it harms no task; their sum."""
    from torchjd.aggregation import UPGradWeighting

    return UPGradWeighting()(gramian) * len(gramian)


def _aligned_mtl(gramian: Tensor, c: float, seed: int) -> Tensor:
    """Aligned-MTL, arXiv:2305.19000: gradients made orthogonal and of one length; their sum."""
    from torchjd.aggregation import AlignedMTLWeighting

    # The least length that is not 0 decides; what is 0 depends on the precision of the gradients.
    return AlignedMTLWeighting()(gramian.float()).double() * len(gramian)


def _nash_mtl(gramian: Tensor, c: float, seed: int) -> Tensor:
    """Nash-MTL, arXiv:2202.01017: the weights w with w_i (G w)_i = |G|, the bargaining solution.

    With gradients of length 1, w is where the strictly convex  w^T G w / 2 - sum log w_i  is least;
    Newton's method finds it to rounding in some ten steps. The authors' code, and torchjd's after
    it, approach it by a series of convex programs: slower, with a state to save, and far from it,
    without a word, once one gradient is some hundred times longer than another. 1e-4 on the
    diagonal keeps the weights of opposite gradients finite.
    """
    lengths = gramian.diagonal().sqrt()
    cosines = gramian / lengths / lengths[:, None] + 1e-4 * torch.eye(len(gramian)).double()
    weights = torch.ones_like(lengths)
    for _ in range(100):
        slope = cosines @ weights - 1 / weights
        step = torch.linalg.solve(cosines + torch.diag(weights.pow(-2)), slope)
        decrement = (slope @ step).clamp(min=0).sqrt()
        # The damping that keeps all weights positive, as long as a full step is not safe.
        weights = weights - step / (1 + decrement if decrement > 0.25 else 1)
        if decrement < 1e-10:
            break
    return weights / lengths * torch.linalg.matrix_norm(gramian).sqrt()


WEIGHTINGS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "pcgrad": _pcgrad,
    "cagrad": _cagrad,
    "mgda": _mgda,
    "upgrad": _upgrad,
    "aligned_mtl": _aligned_mtl,
    "nash_mtl": _nash_mtl,
}
