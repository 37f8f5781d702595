"""AdamW with moments by source: against torch's AdamW, and against loops written by hand."""

import copy

import pytest
import torch
from polyhead.train.optimization.source_gradients import SourceGradients
from polyhead.train.optimization.task_adamw import TaskAdamW
from torch import nn
from torch.testing import assert_close

RATE, BETAS, EPS, DECAY = 0.03, (0.9, 0.98), 1e-7, 0.1
MODES = ["moments", "second_moment"]


def three_weights() -> list[nn.Parameter]:
    """Two that all sources share, and one of the second source alone."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 2)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def optimizer_over(weights, count=3, *, rates=None, by_task="moments", max_norm=0.0, fused=None):
    everybody = set(range(count))
    readers = [(weights[0], everybody), (weights[1], everybody), (weights[2], {1})]
    names = ["a", "b", "c"][:count]
    gradients = SourceGradients(names, readers, max_norm=max_norm)
    return TaskAdamW(
        [
            {"params": weights[:1], "weight_decay": DECAY},
            {"params": weights[1:], "weight_decay": 0.0, "lr": 2 * RATE},
        ],
        gradients,
        by_task=by_task,
        lr=RATE,
        betas=BETAS,
        eps=EPS,
        rates=rates,
        fused=fused,
    )


def gradient(weight, step, source):
    generator = torch.Generator().manual_seed(100 * step + 10 * source + weight.numel())
    return torch.randn(weight.shape, generator=generator) * 10.0**source


def passes(optimizer, weights, step, sources):
    """A backward pass of each source."""
    for source in sources:
        for weight in weights[: 3 if source == 1 else 2]:
            more = gradient(weight, step, source)
            weight.grad = more if weight.grad is None else weight.grad + more
        optimizer.gradients.take(source)


SOURCES = [[0, 1, 2], [1], [0, 2], [0, 1, 2], [2], [0, 1]]  # of six steps


@pytest.mark.parametrize("fused", [None, True])
def test_with_one_source_it_is_torchs_adamw(fused):
    weights = three_weights()[:2]
    others = copy.deepcopy(weights)
    options = {"lr": RATE, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, "fused": fused}
    gradients = SourceGradients(["a", "b"], [(weight, {0, 1}) for weight in weights])
    ours = TaskAdamW(weights, gradients, **options)
    theirs = torch.optim.AdamW(others, **options)
    for step in range(8):
        for weight, other in zip(weights, others, strict=True):
            weight.grad, other.grad = gradient(weight, step, 0), gradient(weight, step, 0)
        gradients.take(0)
        ours.step()
        theirs.step()
        assert_close([w.data for w in weights], [w.data for w in others], rtol=1e-6, atol=1e-7)


class ByHand:
    """The update of the docstring, one weight and one source at a time, in float64."""

    def __init__(self, weights, rates, by_task):
        self.weights = [weight.detach().double() for weight in weights]
        self.first = [[torch.zeros_like(w) for _ in range(3)] for w in self.weights]
        self.second = [[torch.zeros_like(w) for _ in range(3)] for w in self.weights]
        self.steps = [[0, 0, 0] for _ in self.weights]
        self.sums = [0 for _ in self.weights]  # steps of the one first moment
        self.rates, self.by_task = rates, by_task

    def step(self, step, sources):
        for i, weight in enumerate(self.weights):
            reading = [s for s in sources if i < 2 or s == 1]
            lr, decay = (RATE, DECAY) if i == 0 else (2 * RATE, 0.0)
            if not reading:
                continue
            weight.mul_(1 - lr * decay)
            total = torch.zeros_like(weight)
            for s in reading:
                g = gradient(weight, step, s).double()
                self.steps[i][s] += 1
                n, rate = self.steps[i][s], self.rates[s] if i < 2 else 1.0
                self.second[i][s] = BETAS[1] * self.second[i][s] + (1 - BETAS[1]) * g**2
                root = (self.second[i][s] / (1 - BETAS[1] ** n)).sqrt() + EPS
                if self.by_task == "moments" or i == 2:
                    self.first[i][s] = BETAS[0] * self.first[i][s] + (1 - BETAS[0]) * g
                    weight -= lr * rate * self.first[i][s] / (1 - BETAS[0] ** n) / root
                else:
                    total += rate * g / root
            if self.by_task == "second_moment" and i < 2:
                self.sums[i] += 1
                self.first[i][0] = BETAS[0] * self.first[i][0] + (1 - BETAS[0]) * total
                weight -= lr * self.first[i][0] / (1 - BETAS[0] ** self.sums[i])


@pytest.mark.parametrize("by_task", MODES)
@pytest.mark.parametrize("fused", [None, True])
def test_it_is_the_loop_written_by_hand(by_task, fused):
    rates, weights = [1.0, 0.5, 3.0], three_weights()
    optimizer = optimizer_over(weights, rates=rates, by_task=by_task, fused=fused)
    by_hand = ByHand(weights, rates, by_task)
    for step, sources in enumerate(SOURCES):
        passes(optimizer, weights, step, sources)
        optimizer.step()
        optimizer.zero_grad()
        by_hand.step(step, sources)
        expected = [weight.float() for weight in by_hand.weights]
        assert_close([w.data for w in weights], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by_task", MODES)
def test_an_absent_source_keeps_its_moments_and_moves_nothing(by_task):
    weights = three_weights()
    optimizer = optimizer_over(weights, by_task=by_task)
    passes(optimizer, weights, 0, [0, 1, 2])
    optimizer.step()
    optimizer.zero_grad()
    before, alone = copy.deepcopy(optimizer.state_dict()["state"]), weights[2].detach().clone()
    passes(optimizer, weights, 1, [0])
    optimizer.step()
    after = optimizer.state_dict()["state"]
    for number in (0, 1):
        for key in ("exp_avg_sq", "step", "exp_avg")[: 3 if by_task == "moments" else 2]:
            assert after[number][key][1:3].equal(before[number][key][1:3])
            assert not after[number][key][0].equal(before[number][key][0])
    assert after[2]["exp_avg"].equal(before[2]["exp_avg"])
    assert weights[2].equal(alone)


@pytest.mark.parametrize("by_task", MODES)
@pytest.mark.parametrize("fused", [None, True])
def test_its_state_goes_on_to_the_bit(by_task, fused, tmp_path):
    whole, parts = three_weights(), three_weights()
    options = {"by_task": by_task, "fused": fused, "rates": [1.0, 2.0, 0.5]}
    optimizers = optimizer_over(whole, **options), optimizer_over(parts, **options)
    for step, sources in enumerate(SOURCES):
        if step == 3:
            torch.save(optimizers[1].state_dict(), tmp_path / "optimizer.pt")
            parts = [nn.Parameter(weight.detach().clone()) for weight in parts]
            optimizers = optimizers[0], optimizer_over(parts, **options)
            optimizers[1].load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        for optimizer, weights in zip(optimizers, (whole, parts), strict=True):
            passes(optimizer, weights, step, sources)
            optimizer.step()
            optimizer.zero_grad()
    assert all(one.equal(other) for one, other in zip(whole, parts, strict=True))


def test_gradients_of_a_source_add_up_over_its_passes():
    weights = three_weights()
    gradients = optimizer_over(weights).gradients
    for source in (0, 1, 0):
        weights[0].grad = torch.full((4, 3), source + 1.0)
        weights[2].grad = torch.ones(2, 2)
        gradients.take(source)
    assert weights[0].grad is None
    assert gradients.values[0] == {weights[0]: gradients.values[0][weights[0]]}
    assert gradients.values[0][weights[0]].equal(torch.full((4, 3), 2.0))
    assert gradients.values[1][weights[0]].equal(torch.full((4, 3), 2.0))
    assert weights[2].grad.equal(torch.ones(2, 2))  # a weight of one source: the ordinary way
    gradients.drop(weights[:1])
    assert gradients.values == [{}, {}, {}]


def test_each_source_is_clipped_by_itself():
    weights = three_weights()
    gradients = optimizer_over(weights, max_norm=2.0).gradients
    weights[0].grad = torch.full((4, 3), 0.1)
    gradients.take(0)
    weights[0].grad, weights[2].grad = torch.full((4, 3), 3.0), torch.full((2, 2), 5.0)
    gradients.take(1)
    norms = [(12 * 0.01) ** 0.5, (12 * 9 + 4 * 25) ** 0.5]
    gradients.clip()
    assert gradients.norm.item() == pytest.approx((norms[0] ** 2 + norms[1] ** 2) ** 0.5)
    assert gradients.log() == pytest.approx({"norm_a": norms[0], "norm_b": norms[1]})
    assert gradients.log() == {}
    assert_close(gradients.values[0][weights[0]], torch.full((4, 3), 0.1))
    assert_close(gradients.values[1][weights[0]], torch.full((4, 3), 3.0 * 2 / norms[1]))
    assert_close(weights[2].grad, torch.full((2, 2), 5.0 * 2 / norms[1]))
