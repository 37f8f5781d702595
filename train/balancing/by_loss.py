"""Balancing by weights of the tasks' losses."""

import math
from typing import Any

import numpy as np

from ...modeling.task_config import TaskConfig
from ..kinds import kind_of
from .base import Balancer, Numbers

# ---- weights known before the step ----


class SizeWeights(Balancer):
    """In proportion to the rows of a task; the mean is 1."""

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        total = sum(self.rows[name] for name in self.names)
        return {name: len(self.names) * self.rows[name] / total for name in self.names}


class ClassWeights(Balancer):
    """1 / log(classes): a head that knows nothing yet then has a loss of 1.

    Each label of a multi-label task is a choice between 2. Tasks without `labels` (regression,
    embedding, masked language modeling) have no classes here; their weight is 1.
    """

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        return {n: 1 / math.log(c) for n in self.names if (c := _classes(self.tasks[n])) > 1}


def _classes(task: TaskConfig) -> int:
    """Classes that a label of the task is one of; 1 where there are none."""
    return 2 if kind_of(task).label_type == "classes" else task.num_labels


class RandomWeights(Balancer):
    """RLW, arXiv:2111.10603: K softmax(normal draws), new in each step."""

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        draws = np.random.default_rng([self.seed, step]).standard_normal(len(self.names))
        drawn = dict(zip(self.names, draws.tolist(), strict=True))
        return _softmax(drawn, total=len(drawn))


class Uncertainty(Balancer):
    """Homoscedastic uncertainty, arXiv:1705.07115: the weight is exp(-s), s a log variance.

    s follows the gradient of exp(-s) L + s / 2, one term a step for each task in it, so that the
    weight tends to 1 / (2 L). The paper has exp(-s) L / 2 for regression, from the density of a
    normal distribution; that factor changes no gradient of the model in the end, as s makes up
    for it, only where training starts. Here it is 1 for all: each task starts with weight 1.
    """

    learns = True
    RATE = 0.01
    LIMIT = 10.0  # of |s|: a loss near 0 would drive it on for ever

    def _first_state(self) -> dict[str, Any]:
        return {"log_variance": dict.fromkeys(self.names, 0.0), "adam": _moments(self.names)}

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        return {name: math.exp(-s) for name, s in self.state["log_variance"].items()}

    def _learn(self, losses: Numbers, epoch: int, after: Numbers, norms: Numbers) -> None:
        values, rate = self.state["log_variance"], self.options.learning_rate or self.RATE
        for name, loss in losses.items():
            slope = 0.5 - math.exp(-values[name]) * loss
            moved = _adam_step(self.state["adam"][name], values[name], slope, rate)
            values[name] = min(max(moved, -self.LIMIT), self.LIMIT)


class DynamicAverage(Balancer):
    """DWA, arXiv:1803.10704: K softmax(r / T), r the ratio of the last two epochs' mean losses.

    A task without both has r = 1. An epoch's means are known when the first step of the next is
    through, so the weights of an epoch hold from its second step on; in the first two all are 1.
    """

    learns = True
    TEMPERATURE = 2.0

    def _first_state(self) -> dict[str, Any]:
        return {"epoch": 0, "sums": {}, "older": {}, "newer": {}}

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        older, newer = self.state["older"], self.state["newer"]
        ratios = {n: newer[n] / older[n] if n in newer and n in older else 1.0 for n in self.names}
        temperature = self.options.temperature or self.TEMPERATURE
        return _softmax({n: r / temperature for n, r in ratios.items()}, total=len(ratios))

    def _learn(self, losses: Numbers, epoch: int, after: Numbers, norms: Numbers) -> None:
        if epoch != self.state["epoch"]:
            means = {name: total / steps for name, (total, steps) in self.state["sums"].items()}
            self.state = {"epoch": epoch, "sums": {}, "older": self.state["newer"], "newer": means}
        for name, loss in losses.items():
            total, steps = self.state["sums"].get(name, (0.0, 0))
            self.state["sums"][name] = [total + loss, steps + 1]


class GradNorm(Balancer):
    """GradNorm, arXiv:1711.02257: gradients of one length, longer for tasks that learn slowly.

    With G_i = w_i |gradient of L_i| on the last layer and r_i = L_i / first L_i over the mean of
    these, w follows the gradient of  sum |G_i - mean(G) r_i^alpha|,  mean and r taken as constant,
    and is scaled to the sum K. `loss_weight` comes on top: it is divided out of the gradients.
    """

    reads_last_layer = True
    learns = True
    RATE = 0.025
    ALPHA = 1.5
    LEAST = 0.01  # the rule itself does not keep weights positive

    def _first_state(self) -> dict[str, Any]:
        weights = dict.fromkeys(self.names, 1.0)
        return {"weights": weights, "first": {}, "adam": _moments(self.names)}

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        return self.state["weights"]

    def _learn(self, losses: Numbers, epoch: int, after: Numbers, norms: Numbers) -> None:
        weights, first = self.state["weights"], self.state["first"]
        norms = {n: norms[n] / self.tasks[n].loss_weight for n in losses if 0 < norms[n] < math.inf}
        for name in norms:
            first.setdefault(name, losses[name])
        if len(norms) < 2:
            return
        alpha = self.ALPHA if self.options.alpha is None else self.options.alpha
        rate = self.options.learning_rate or self.RATE
        length = sum(weights[name] * norm for name, norm in norms.items()) / len(norms)
        ratios = {name: losses[name] / first[name] for name in norms}
        ratio = sum(ratios.values()) / len(norms)
        for name, norm in norms.items():
            gap = weights[name] * norm - length * (ratios[name] / ratio) ** alpha
            slope = math.copysign(norm, gap) if gap else 0.0
            moved = _adam_step(self.state["adam"][name], weights[name], slope, rate)
            weights[name] = max(moved, self.LEAST)
        scale = len(weights) / sum(weights.values())
        self.state["weights"] = {name: weight * scale for name, weight in weights.items()}


class EqualNorms(Balancer):
    """Gradients of one length on the encoder's output: w_i = mean over j of |g_j| / |g_i|.

    |g_i| is the running mean of the length of the gradient of L_i on what the encoder hands to head
    i, so that no task drowns another in the steps of one optimizer; `loss_weight` comes on top.
    Equal lengths are those of arXiv:2308.12029 (DB-MTL, section 3.2), and of GradNorm with alpha 0;
    gradients on the encoder's output in place of its weights those of arXiv:1810.04650 (MGDA-UB,
    section 3.3): they are there in the backward pass, and cost nothing. The weights of a step know
    the steps before it alone, so all its micro-batches have the same.
    """

    reads_output = True
    learns = True
    DECAY = 0.9  # of the running mean
    LIMIT = 100.0  # of a weight and of its inverse: a task that is through has no length

    def _first_state(self) -> dict[str, Any]:
        return {"lengths": {}}

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        lengths = self.state["lengths"]
        if len(lengths) < 2:
            return {}
        mean = sum(lengths.values()) / len(lengths)
        return {n: min(max(mean / v, 1 / self.LIMIT), self.LIMIT) for n, v in lengths.items()}

    def _learn(self, losses: Numbers, epoch: int, after: Numbers, norms: Numbers) -> None:
        lengths = self.state["lengths"]
        for name in losses:
            length = norms[name] / self.tasks[name].loss_weight
            if 0 < length < math.inf:
                before = lengths.get(name, length)
                lengths[name] = self.DECAY * before + (1 - self.DECAY) * length


# ---- weights from the losses of the step ----


class GeometricMean(Balancer):
    """K times the geometric mean of the losses, arXiv:1904.08492: w_i = GM / L_i."""

    reads_losses = True

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        logs = {name: math.log(loss) for name, loss in losses.items()}
        return {name: math.exp(sum(logs.values()) / len(logs) - log) for name, log in logs.items()}


class Famo(Balancer):
    """FAMO, arXiv:2306.03792: all losses fall at the same rate, without gradients of tasks.

    With z = softmax of the logits, the weights are K (z_i / L_i) / sum_j (z_j / L_j). The logits
    follow  sum_j z_j (log L_j before the optimizer's step - log L_j after it),  with the paper's
    weight decay.
    """

    reads_losses = True
    reads_losses_after = True
    learns = True
    RATE = 0.025
    DECAY = 0.001
    EPSILON = 1e-8

    def _first_state(self) -> dict[str, Any]:
        return {"logits": dict.fromkeys(self.names, 0.0), "adam": _moments(self.names)}

    def _shares(self, names: Numbers) -> Numbers:
        return _softmax({name: self.state["logits"][name] for name in names}, total=1)

    def _weights(self, step: int, losses: Numbers) -> Numbers:
        shares = self._shares(losses)
        parts = {name: shares[name] / (loss + self.EPSILON) for name, loss in losses.items()}
        return {name: len(parts) * part / sum(parts.values()) for name, part in parts.items()}

    def _learn(self, losses: Numbers, epoch: int, after: Numbers, norms: Numbers) -> None:
        before = {n: loss for n, loss in losses.items() if math.isfinite(after.get(n, math.nan))}
        if len(before) < 2:
            return
        shares = self._shares(before)
        eased = {
            n: math.log((before[n] + self.EPSILON) / (after[n] + self.EPSILON)) for n in before
        }
        mean = sum(shares[name] * value for name, value in eased.items())
        rate = self.options.learning_rate or self.RATE
        for name, value in eased.items():
            logit, moments = self.state["logits"][name], self.state["adam"][name]
            slope = shares[name] * (value - mean) + self.DECAY * logit
            self.state["logits"][name] = _adam_step(moments, logit, slope, rate)


# ---- sums ----


def _softmax(values: Numbers, *, total: float) -> Numbers:
    """In proportion to exp(value), `total` together."""
    powers = {name: math.exp(value - max(values.values())) for name, value in values.items()}
    return {name: total * power / sum(powers.values()) for name, power in powers.items()}


def _moments(names: list[str]) -> dict[str, list[float]]:
    """What `_adam_step` remembers of each task: first and second moment, number of steps."""
    return {name: [0.0, 0.0, 0] for name in names}


def _adam_step(moments: list[float], value: float, slope: float, rate: float) -> float:
    """`value` after a step of torch.optim.Adam with its default betas; changes `moments`."""
    moments[0] = 0.9 * moments[0] + 0.1 * slope
    moments[1] = 0.999 * moments[1] + 0.001 * slope * slope
    moments[2] += 1
    first = moments[0] / (1 - 0.9 ** moments[2])
    second = moments[1] / (1 - 0.999 ** moments[2])
    return value - rate * first / (math.sqrt(second) + 1e-8)
