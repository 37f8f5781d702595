"""Weights of tasks against hand calculations, the papers' algorithms and torchjd."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from polyhead.modeling import TaskConfig
from polyhead.train.balancing.base import Balancer
from polyhead.train.balancing.by_gradient import WEIGHTINGS
from polyhead.train.balancing.methods import METHODS, balancing_faults, make_balancer
from polyhead.train.recipe.schema import Recipe
from polyhead.train.recipe.sections import Balancing, Freeze, Sampling
from torch import Tensor
from torch.testing import assert_close
from torchjd import aggregation, scalarization
from train_helpers import task

REGRESSION = TaskConfig(head="sequence_classification", problem_type="regression")
# Two quadratic losses of two weights. At (0, 0): a is 1/2 with gradient (-1, 0), b is 5/2 with
# gradient (1, -2); their product is -1, so that each step for one alone harms the other.
TARGETS = {"a": (1.0, 0.0), "b": (-1.0, 2.0)}
JACOBIAN = torch.tensor([[-1.0, 0.0], [1.0, -2.0]])
LEARNING = [name for name, m in METHODS.items() if m.learns or m.reads_gradients]


def balancer_of(method: str, names: str = "ab", rows=None, seed: int = 7, **options) -> Balancer:
    tasks = dict.fromkeys(names, REGRESSION)
    rows = rows or dict.fromkeys(names, 10)
    return make_balancer(Balancing(method=method, **options), tasks, rows, seed)  # pyright: ignore


def losses_at(point: Tensor, targets=TARGETS) -> dict[str, Tensor]:
    """|point - target|^2 / 2 of each task."""
    return {
        name: (point - torch.tensor(target, dtype=point.dtype)).square().sum() / 2
        for name, target in targets.items()
    }


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def jacobian_at(point: Tensor, targets=TARGETS) -> Tensor:
    losses = losses_at(point, targets).values()
    return torch.stack([torch.autograd.grad(loss, point)[0] for loss in losses])


def play(balancer: Balancer, steps: range, *, point: Tensor | None = None, targets=TARGETS):
    """What a trainer does with a balancer: SGD at 0.1, 3 steps an epoch; the weights of each step.

    The third task of three is absent from every third step.
    """
    point = torch.zeros(2, dtype=torch.float64) if point is None else point
    logs = []
    for step in steps:
        there = {n: t for n, t in targets.items() if n != "c" or step % 3}
        point.requires_grad_()
        before, gradients = numbers(losses_at(point, there)), jacobian_at(point, there)
        early = before if balancer.reads_losses else None
        weights = balancer.weights(step, early)
        if balancer.reads_gradients:
            direction = balancer.combine(gradients, list(there), step)
        else:
            direction = gradients.new_tensor([weights[name] for name in there]) @ gradients
        logs.append(balancer.log())
        point = point.detach() - 0.1 * direction
        balancer.after_step(
            step,
            before,
            epoch=step // 3,
            losses_after=numbers(losses_at(point, there)),
            gradients=gradients,
        )
    return logs, point


# ---- weights known before the step ----


def test_none_gives_every_task_1_and_logs_nothing():
    balancer = balancer_of("none")
    assert balancer.weights(0) == {"a": 1.0, "b": 1.0}
    assert balancer.log() == {}
    assert_close(balancer.combine(JACOBIAN, ["a", "b"], 0), torch.tensor([0.0, -2.0]))


def test_size_is_proportional_to_the_rows_with_mean_1():
    balancer = balancer_of("size", rows={"a": 300, "b": 100})
    assert balancer.weights(0) == {"a": 1.5, "b": 0.5}
    assert balancer.log() == {"weight_a": 1.5, "weight_b": 0.5}


def test_classes_makes_the_loss_of_an_untrained_head_1():
    labels = ["w", "x", "y", "z"]
    tasks = {
        "four": TaskConfig(head="sequence_classification", labels=labels),
        "tags": TaskConfig(head="token_classification", labels=labels[:3]),
        "topics": TaskConfig(
            head="sequence_classification",
            labels=labels,
            problem_type="multi_label_classification",
        ),
        "score": REGRESSION,
        "similar": TaskConfig(head="embedding"),
        "constant": TaskConfig(head="token_classification", labels=["O"]),
    }
    balancer = make_balancer(Balancing(method="classes"), tasks, dict.fromkeys(tasks, 1), 0)
    assert balancer.weights(0) == {
        "four": pytest.approx(1 / math.log(4)),
        "tags": pytest.approx(1 / math.log(3)),
        "topics": pytest.approx(1 / math.log(2)),
        "score": 1.0,
        "similar": 1.0,
        "constant": 1.0,
    }


def test_random_is_softmax_of_normal_draws_times_k():
    one, two = np.exp(np.random.default_rng([7, 3]).standard_normal(2))
    expected = {"a": 2 * one / (one + two), "b": 2 * two / (one + two)}
    assert balancer_of("random").weights(3) == pytest.approx(expected)


def test_random_is_a_function_of_seed_and_step():
    balancer = balancer_of("random")
    drawn = [balancer.weights(step)["a"] for step in range(400)]
    assert balancer_of("random").weights(399)["a"] == drawn[-1]
    assert balancer_of("random", seed=8).weights(399)["a"] != drawn[-1]
    assert len(set(drawn)) == 400
    assert abs(np.mean(drawn) - 1) < 0.1  # 4 standard errors: the deviation of a draw is 0.5


def test_uncertainty_moves_the_first_step_by_the_learning_rate():
    # the slopes of exp(-s) L + s / 2 at s = 0 are 1/2 - 1/4 and 1/2 - 2: s falls and rises
    balancer = balancer_of("uncertainty", learning_rate=0.1)
    assert balancer.weights(0) == {"a": 1.0, "b": 1.0}
    balancer.after_step(0, {"a": 0.25, "b": 2.0})
    assert balancer.weights(1) == pytest.approx({"a": math.exp(0.1), "b": math.exp(-0.1)})


def test_uncertainty_equals_the_loss_of_the_paper_under_adam():
    balancer = balancer_of("uncertainty", learning_rate=0.05)
    s = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([s], lr=0.05)
    losses = torch.rand(30, 2, dtype=torch.float64, generator=torch.manual_seed(0)) * 3
    for step, row in enumerate(losses):
        balancer.after_step(step, dict(zip("ab", row.tolist(), strict=True)))
        optimizer.zero_grad()
        (torch.exp(-s) * row + s / 2).sum().backward()
        optimizer.step()
    assert list(balancer.weights(30).values()) == pytest.approx(torch.exp(-s).tolist())


def test_uncertainty_tends_to_half_the_inverse_of_the_loss():
    balancer = balancer_of("uncertainty", learning_rate=0.05)
    for step in range(1000):
        balancer.after_step(step, {"a": 0.1, "b": 4.0})
    assert balancer.weights(1000) == pytest.approx({"a": 5.0, "b": 0.125}, rel=1e-3)


def test_uncertainty_of_a_loss_near_0_stays_finite():
    balancer = balancer_of("uncertainty", learning_rate=1.0)
    for step in range(2000):
        balancer.after_step(step, {"a": 1e-30, "b": 1e30})
    assert balancer.weights(2000) == pytest.approx({"a": math.exp(10), "b": math.exp(-10)})


def test_dwa_by_hand():
    balancer = balancer_of("dwa", temperature=0.5)
    # mean losses of three epochs of two steps: a 4, 2, 1; b 1, 1, 1.5
    a, b = [5.0, 3.0, 2.5, 1.5, 1.0, 1.0], [1.0, 1.0, 0.5, 1.5, 1.0, 2.0]
    weights = []
    for step in range(6):
        weights.append(balancer.weights(step)["a"])
        balancer.after_step(step, {"a": a[step], "b": b[step]}, epoch=step // 2)
    # from the second step of epoch 2 on: ratios 2 / 4 and 1 / 1
    one, two = math.exp(0.5 / 0.5), math.exp(1 / 0.5)
    assert weights == pytest.approx([1, 1, 1, 1, 1, 2 * one / (one + two)])
    balancer.after_step(6, {"a": 1.0, "b": 1.0}, epoch=3)  # ratios 1 / 2 and 1.5 / 1
    one, two = math.exp(0.5 / 0.5), math.exp(1.5 / 0.5)
    assert balancer.weights(7)["b"] == pytest.approx(2 * two / (one + two))


def test_dwa_equals_torchjd():
    balancer, theirs = balancer_of("dwa"), scalarization.DWA()
    losses = torch.rand(12, 2, dtype=torch.float64, generator=torch.manual_seed(0)) + 0.1
    for step, row in enumerate(losses):
        if step and step % 3 == 0:
            theirs.step()
        values = row.clone().requires_grad_()
        theirs(values).backward()  # its weights are the slopes of its sum
        if step % 3:  # ours change with the second step of an epoch
            expected = dict(zip("ab", values.grad.tolist(), strict=True))  # pyright: ignore
            assert balancer.weights(step) == pytest.approx(expected)
        balancer.after_step(step, dict(zip("ab", row.tolist(), strict=True)), epoch=step // 3)


def test_gradnorm_moves_the_first_step_towards_equal_lengths():
    # lengths 1 and sqrt 5, as long ratios: a is under the mean, b over it; Adam's first step is
    # the learning rate: 1.1 and 0.9, whose sum is 2 already
    balancer = balancer_of("gradnorm", learning_rate=0.1)
    balancer.after_step(0, {"a": 0.5, "b": 2.5}, gradients=JACOBIAN)
    assert balancer.weights(1) == pytest.approx({"a": 1.1, "b": 0.9})


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradnorm_equals_the_algorithm_of_the_paper(alpha):
    logs, _ = play(balancer_of("gradnorm", alpha=alpha, learning_rate=0.05), range(20))
    # Algorithm 1, the gradient of L_grad by autograd
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.05)
    point, first = torch.zeros(2, dtype=torch.float64), None
    for weights in logs:
        assert list(weights.values()) == pytest.approx(w.tolist())
        point.requires_grad_()
        losses = torch.stack(list(losses_at(point).values()))
        first = losses.detach() if first is None else first
        lengths = torch.stack(
            [
                torch.autograd.grad(w[i] * losses[i], point, create_graph=True)[0].norm()
                for i in range(2)
            ]
        )
        ratios = losses / first
        target = lengths.mean() * (ratios / ratios.mean()) ** alpha
        w.grad = torch.autograd.grad((lengths - target.detach()).abs().sum(), w)[0]
        step = torch.autograd.grad((w.detach() * losses).sum(), point)[0]
        point = (point - 0.1 * step).detach()
        optimizer.step()
        w.data *= 2 / w.data.sum()


def test_gradnorm_balances_lengths_without_the_loss_weight():
    plain = balancer_of("gradnorm")
    weighted = make_balancer(
        Balancing(method="gradnorm"),
        {
            "a": TaskConfig(
                head="sequence_classification", problem_type="regression", loss_weight=4
            ),
            "b": REGRESSION,
        },
        {"a": 1, "b": 1},
        0,
    )
    for step in range(5):
        plain.after_step(step, {"a": 0.5, "b": 2.5}, gradients=JACOBIAN)
        scaled = JACOBIAN * torch.tensor([[4.0], [1.0]])
        weighted.after_step(step, {"a": 0.5, "b": 2.5}, gradients=scaled)
    assert weighted.weights(5) == pytest.approx(plain.weights(5))


# ---- weights from the losses of the step ----


def test_geometric_by_hand():
    # the geometric mean of 1/2 and 8 is 2
    assert balancer_of("geometric").weights(0, {"a": 0.5, "b": 8.0}) == pytest.approx(
        {"a": 4.0, "b": 0.25}
    )


def test_geometric_has_the_gradient_of_k_times_the_geometric_mean():
    losses = torch.tensor([0.3, 1.7, 5.0], dtype=torch.float64, requires_grad=True)
    (3 * scalarization.GeometricMean()(losses)).backward()
    weights = balancer_of("geometric", "abc").weights(0, numbers(dict(zip("abc", losses))))  # noqa: B905
    assert list(weights.values()) == pytest.approx(losses.grad.tolist())  # pyright: ignore


def test_famo_by_hand():
    balancer = balancer_of("famo", learning_rate=0.1)
    # shares 1/2 each: weights 2 (1 / L_i) / (1/1 + 1/3)
    assert balancer.weights(0, {"a": 1.0, "b": 3.0}) == pytest.approx({"a": 1.5, "b": 0.5})
    # b fell more: its logit falls by the learning rate, that of a rises
    balancer.after_step(0, {"a": 1.0, "b": 3.0}, losses_after={"a": 0.9, "b": 1.0})
    one, two = math.exp(0.1), math.exp(-0.1) / 3
    expected = {"a": 2 * one / (one + two), "b": 2 * two / (one + two)}
    assert balancer.weights(1, {"a": 1.0, "b": 3.0}) == pytest.approx(expected)


def test_famo_equals_the_algorithm_of_the_paper():
    logs, last = play(balancer_of("famo"), range(20))
    xi = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([xi], lr=0.025, weight_decay=0.001)
    point = torch.zeros(2, dtype=torch.float64)
    for weights in logs:
        point.requires_grad_()
        before = torch.stack(list(losses_at(point).values())) + 1e-8
        z = torch.softmax(xi, 0)
        c = 1 / (z / before).sum().detach()
        objective = 2 * c * (z.detach() * before.log()).sum()  # K times the paper's
        step = torch.autograd.grad(objective, point)[0]
        assert list(weights.values()) == pytest.approx((2 * c * z / before).tolist())
        point = (point - 0.1 * step).detach()
        after = torch.stack(list(losses_at(point).values())) + 1e-8
        delta = before.detach().log() - after.log()
        xi.grad = torch.autograd.grad(z, xi, delta)[0]
        optimizer.step()
    assert_close(last, point)


# ---- one gradient out of many ----


def test_pcgrad_by_hand():
    # a loses its part against b: (-1, 0) + 1/5 (1, -2) = (-0.8, -0.4)
    # b loses its part against a: (1, -2) + (-1, 0) = (0, -2)
    balancer = balancer_of("pcgrad")
    assert_close(balancer.combine(JACOBIAN, ["a", "b"], 0), torch.tensor([-0.8, -2.4]))
    # of a: 1 of its own and 1 from b; of b: 1 of its own and 1/5 from a
    assert balancer.log() == pytest.approx({"weight_a": 2.0, "weight_b": 1.2})


def test_mgda_by_hand():
    # between (-1, 0) and (1, -2) the shortest is a quarter of the way: (-0.5, -0.5); times K
    combined = balancer_of("mgda").combine(JACOBIAN, ["a", "b"], 0)
    assert_close(combined, torch.tensor([-1.0, -1.0]))


def test_upgrad_of_two_tasks_is_pcgrad():
    combined = balancer_of("upgrad").combine(JACOBIAN, ["a", "b"], 0)
    assert_close(
        combined, torch.tensor([-0.8, -2.4]), atol=1e-3, rtol=0
    )  # it adds 1e-4 to products


def test_aligned_mtl_shortens_orthogonal_gradients_to_the_least():
    combined = balancer_of("aligned_mtl").combine(
        torch.diag(torch.tensor([3.0, 4.0])), ["a", "b"], 0
    )
    assert_close(combined, torch.tensor([3.0, 3.0]))


def test_nash_mtl_makes_orthogonal_gradients_equally_long():
    # products 9 and 16, their norm sqrt(337): w_i^2 |g_i|^2 = sqrt(337)
    combined = balancer_of("nash_mtl").combine(torch.diag(torch.tensor([3.0, 4.0])), ["a", "b"], 0)
    assert_close(combined, torch.full((2,), 337**0.25), rtol=1e-4, atol=0)  # 1e-4 on the diagonal


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-6])
def test_nash_mtl_solves_the_bargaining_problem(scale):
    # the product of each weight with its gain, w_i (g_i . sum_j w_j g_j), is the same for all
    gradients = torch.randn(4, 9, generator=torch.manual_seed(0)) * scale
    gradients[2] *= 300
    combined = balancer_of("nash_mtl", "abcd").combine(gradients, list("abcd"), 0)
    weights = torch.linalg.lstsq(gradients.double().T, combined.double()).solution
    gains = weights * (gradients.double() @ combined.double())
    assert_close(gains, gains.mean().expand(4), rtol=0.01, atol=0)  # 1e-4 on the diagonal


def test_cagrad_without_a_radius_is_the_sum():
    combined = balancer_of("cagrad", c=0.0).combine(JACOBIAN, ["a", "b"], 0)
    assert_close(combined, torch.tensor([0.0, -2.0]))


REFERENCES = {  # torchjd's on the whole matrix, and what brings it to our scale for K = 4
    "pcgrad": (aggregation.PCGrad, {}, 1),
    "mgda": (aggregation.MGDA, {}, 4),
    "upgrad": (aggregation.UPGrad, {}, 4),
    "aligned_mtl": (aggregation.AlignedMTL, {}, 4),
    "cagrad": (aggregation.CAGrad, {"c": 0.25}, 4 / 1.25),
}


@pytest.mark.parametrize("method", REFERENCES)
def test_torchjd_on_the_whole_matrix(method):
    kind, options, scale = REFERENCES[method]
    balancer = balancer_of(method, "abcd", **options)
    rng = torch.Generator().manual_seed(0)
    for step in range(5):
        gradients = torch.randn(4, 6, generator=rng)
        with torch.random.fork_rng():
            seed = np.random.SeedSequence([7, step]).generate_state(1)[0]
            torch.manual_seed(int(seed))  # the order of pcgrad
            expected = kind(**options)(gradients) * scale
        combined = balancer.combine(gradients, list("abcd"), step)
        assert_close(combined, expected, rtol=1e-4, atol=1e-5)


def test_pcgrad_is_a_function_of_seed_and_step_and_leaves_chance_alone():
    gradients = torch.randn(5, 3, generator=torch.manual_seed(1))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    combined = [
        balancer_of("pcgrad", "abcde").combine(gradients, list("abcde"), s) for s in range(6)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = [balancer_of("pcgrad", "abcde").combine(gradients, list("abcde"), s) for s in range(6)]
    assert all(torch.equal(one, two) for one, two in zip(combined, again, strict=True))
    assert len({tuple(vector.tolist()) for vector in combined}) > 1
    other = balancer_of("pcgrad", "abcde", seed=8)
    assert not torch.equal(other.combine(gradients, list("abcde"), 0), combined[0])


@pytest.mark.parametrize("method", WEIGHTINGS)
def test_gradients_as_small_as_they_come_are_combined_like_large_ones(method):
    gradients = torch.randn(3, 8, generator=torch.manual_seed(0))
    large = balancer_of(method, "abc").combine(gradients, list("abc"), 0)
    small = balancer_of(method, "abc").combine(gradients * 2**-20, list("abc"), 0)
    assert_close(small * 2**20, large, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", WEIGHTINGS)
def test_one_gradient_is_left_as_it_is(method):
    balancer = balancer_of(method)
    assert torch.equal(balancer.combine(JACOBIAN[1:], ["b"], 0), JACOBIAN[1])
    with_zero = torch.stack([JACOBIAN[1], torch.zeros(2)])
    assert torch.equal(balancer.combine(with_zero, ["b", "a"], 0), JACOBIAN[1])


@pytest.mark.parametrize("method", WEIGHTINGS)
def test_a_gradient_that_is_not_finite_shows_in_the_result(method):
    gradients = torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])
    assert not balancer_of(method).combine(gradients, ["a", "b"], 0).isfinite().all()


@pytest.mark.parametrize("method", WEIGHTINGS)
def test_losses_keep_weight_1_where_gradients_are_combined(method):
    balancer = balancer_of(method)
    assert balancer.weights(0) == {"a": 1.0, "b": 1.0}
    assert balancer.reads_gradients


# ---- all methods ----

THREE = {"a": (1.0, 0.0), "b": (-1.0, 2.0), "c": (3.0, 1.0)}


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_tasks_changes_nothing(method):
    rows = {"a": 5, "b": 10, "c": 30}
    logs, point = play(balancer_of(method, "abc", rows), range(8), targets=THREE)
    turned = {name: THREE[name] for name in "cab"}
    other, same = play(balancer_of(method, "cab", rows), range(8), targets=turned)
    assert other == [pytest.approx(weights, rel=1e-5) for weights in logs]
    assert [list(weights) for weights in other] == [list(weights) for weights in logs]
    assert_close(same, point, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"random", "uncertainty"}))
def test_equal_tasks_train_as_without_balancing(method):
    targets = dict.fromkeys("ab", (1.0, -2.0))
    _, plain = play(balancer_of("none"), range(8), targets=targets)
    _, point = play(balancer_of(method), range(8), targets=targets)
    assert_close(point, plain, rtol=1e-5, atol=1e-6)


def test_equal_tasks_have_equal_weights_by_uncertainty():
    logs, _ = play(balancer_of("uncertainty"), range(8), targets=dict.fromkeys("ab", (1.0, -2.0)))
    assert logs[-1]["weight_a"] == logs[-1]["weight_b"] != 1.0


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(method):
    whole, _ = play(balancer_of(method, "abc"), range(11), targets=THREE)
    first = balancer_of(method, "abc")
    _, point = play(first, range(7), targets=THREE)  # in the middle of an epoch
    saved = json.dumps(first.state_dict(), sort_keys=True)
    second = balancer_of(method, "abc")
    second.load_state_dict(json.loads(saved))
    assert json.dumps(second.state_dict(), sort_keys=True) == saved
    logs, _ = play(second, range(7, 11), point=point, targets=THREE)
    assert logs == whole[7:]


@pytest.mark.parametrize("method", LEARNING)
def test_a_state_is_no_view_of_what_goes_on(method):
    balancer = balancer_of(method)
    saved = balancer.state_dict()
    text = json.dumps(saved)
    play(balancer, range(3))
    assert json.dumps(saved) == text


def test_a_state_of_another_method_or_of_other_tasks_is_refused():
    with pytest.raises(ValueError, match="has method dwa, not famo"):
        balancer_of("famo").load_state_dict(balancer_of("dwa").state_dict())
    with pytest.raises(ValueError, match=r"has tasks \['a', 'b'\], not \['a', 'c'\]"):
        balancer_of("famo", "ac").load_state_dict(balancer_of("famo").state_dict())


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), None])
@pytest.mark.parametrize("method", METHODS)
def test_a_task_without_a_loss_leaves_the_others_as_if_it_did_not_exist(method, value):
    alone, two = balancer_of(method, "ab"), balancer_of(method, "abc")
    for step in range(8):
        losses = {"a": 0.5 + step % 3, "b": 2.5 / (step + 1)}
        after = {name: 0.9 * loss for name, loss in losses.items()}
        with_c = losses if value is None else {"c": value, **losses}
        rows = JACOBIAN if value is None else torch.cat([torch.zeros(1, 2), JACOBIAN])
        alone.weights(step, losses)
        two.weights(step, with_c)
        if alone.reads_gradients:
            one = alone.combine(JACOBIAN, ["a", "b"], step)
            assert_close(two.combine(rows, list(with_c), step), one)
        alone.after_step(step, losses, losses_after=after, gradients=JACOBIAN, epoch=step // 3)
        after = {**after, "c": 1.0}
        two.after_step(step, with_c, losses_after=after, gradients=rows, epoch=step // 3)
    ours, theirs = (b.weights(8, {"a": 1.0, "b": 2.0}) for b in (two, alone))
    assert all(math.isfinite(weight) and weight > 0 for weight in ours.values())
    if method != "random":  # a draw for c shifts no other, but takes a share
        share = (ours["a"] + ours["b"]) / (theirs["a"] + theirs["b"])
        expected = {name: weight * share for name, weight in theirs.items()}
        assert {name: ours[name] for name in "ab"} == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_task_with_loss_weight_0_has_no_say(method):
    idle = TaskConfig(head="sequence_classification", problem_type="regression", loss_weight=0)
    rows = {"a": 5, "b": 10, "idle": 1000}
    tasks = {"idle": idle, **dict.fromkeys("ab", REGRESSION)}
    two, three = (
        make_balancer(Balancing(method=method), configs, rows, 7)  # pyright: ignore
        for configs in (dict.fromkeys("ab", REGRESSION), tasks)
    )
    gradients = torch.cat([JACOBIAN, torch.zeros(1, 2)])
    for step in range(8):
        losses = {"a": 0.5 + step % 3, "b": 2.5 / (step + 1)}
        after = {name: 0.9 * loss for name, loss in losses.items()}
        whole = {**losses, "idle": 3.0}
        assert three.weights(step, whole) == {**two.weights(step, losses), "idle": 1.0}
        expected = two.combine(JACOBIAN, ["a", "b"], step)
        assert_close(three.combine(gradients, list(whole), step), expected)
        two.after_step(step, losses, losses_after=after, gradients=JACOBIAN, epoch=step // 3)
        after["idle"] = 3.0
        three.after_step(step, whole, losses_after=after, gradients=gradients, epoch=step // 3)


@pytest.mark.parametrize("method", ["geometric", "famo"])
def test_methods_over_losses_ask_for_them(method):
    with pytest.raises(ValueError, match=f"balancing {method} needs the losses of the step"):
        balancer_of(method).weights(0)


def test_what_a_method_learns_from_must_be_handed_in():
    with pytest.raises(ValueError, match="balancing famo needs losses_after after the step"):
        balancer_of("famo").after_step(0, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="balancing gradnorm needs gradients after the step"):
        balancer_of("gradnorm").after_step(0, {"a": 1.0, "b": 1.0})


# ---- faults of a recipe ----


def recipe_of(method: str, count: int = 2, options=None, adapters=(), **sections) -> Recipe:
    tasks = {
        f"t{number}": task("sequence_classification", text="x", label="y")
        for number in range(count)
    }
    for name, adapter in zip(tasks, adapters):  # noqa: B905
        tasks[name].adapter = adapter
    return Recipe(
        encoder="-",
        tasks=tasks,
        output_dir="-",
        balancing=Balancing(method=method, **(options or {})),  # pyright: ignore
        **sections,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_plain_recipe_has_no_faults(method):
    assert balancing_faults(recipe_of(method, options={"gradient_steps": 8}), 2) == []


def test_options_of_other_methods_are_refused_and_the_allowed_ones_listed():
    options = {"learning_rate": 0.1, "temperature": 2.0, "c": 0.0, "alpha": 0.0}
    assert balancing_faults(recipe_of("gradnorm", options=options), 2) == [
        "balancing.c: gradnorm does not read it; allowed: learning_rate, alpha, gradient_steps",
        "balancing.temperature: gradnorm does not read it; allowed: learning_rate, alpha, "
        "gradient_steps",
    ]
    assert balancing_faults(recipe_of("none", options={"alpha": 0.0}), 2) == [
        "balancing.alpha: none does not read it; allowed: gradient_steps"
    ]


def test_gradients_by_task_are_refused_for_a_compiled_model():
    compiled = "training.torch_compile does not go with gradients by task"
    options = {"options": {"gradient_steps": 8}, "training": {"torch_compile_mode": "default"}}
    assert balancing_faults(recipe_of("none", **options), 2) == [
        f"balancing.gradient_steps: {compiled}; write 0"
    ]
    recipe = recipe_of("gradnorm", training={"torch_compile": True})
    assert balancing_faults(recipe, 2) == [
        f"balancing.method: gradnorm: {compiled}; take another method"
    ]
    assert balancing_faults(recipe_of("famo", training={"torch_compile": True}), 2) == []


def test_a_single_task_is_not_balanced():
    assert balancing_faults(recipe_of("dwa", count=1), 1) == [
        "balancing.method: dwa needs two tasks with a loss_weight; write none"
    ]
    recipe = recipe_of("dwa")
    recipe.tasks["t1"].loss_weight = 0.0
    assert len(balancing_faults(recipe, 2)) == 1
    assert balancing_faults(recipe_of("none", count=1), 1) == []


@pytest.mark.parametrize("method", METHODS)
def test_pure_batches_fit_only_what_needs_one_task_in_a_step(method):
    recipe = recipe_of(method, sampling=Sampling(batches="pure"))
    alone = ("none", "equal_norms", "size", "classes", "random", "uncertainty", "dwa")
    fault = f"sampling.batches: pure has one task in a step, {method} needs several; write mixed"
    assert balancing_faults(recipe, 2) == ([] if method in alone else [fault])
    assert balancing_faults(recipe, 1) == []  # all tasks share their rows


def test_what_does_not_fit_gradients_of_tasks_is_told_all_at_once():
    recipe = recipe_of(
        "pcgrad",
        options={"c": 0.5},
        training={"fp16": True, "fsdp": "full_shard", "deepspeed": "zero.json"},
        freeze=Freeze(encoder=True),
        sampling=Sampling(batches="pure"),
    )
    assert balancing_faults(recipe, 2) == [
        "balancing.c: pcgrad does not read it; allowed: gradient_steps",
        "sampling.batches: pure has one task in a step, pcgrad needs several; write mixed",
        "training.fp16: does not fit pcgrad; write bf16: true instead",
        "training.fsdp: pcgrad needs whole gradients; take it out",
        "training.deepspeed: pcgrad needs whole gradients; take it out",
        "freeze.encoder: true leaves no weights that tasks share and train, pcgrad needs some; "
        "take it out, or give two tasks the same adapter",
    ]


def test_gradnorm_needs_whole_gradients_on_shared_weights_but_no_full_precision():
    sections = {"training": {"fp16": True, "fsdp": "full_shard"}, "freeze": Freeze(encoder=True)}
    faults = balancing_faults(recipe_of("gradnorm", **sections), 2)
    assert [fault.partition(":")[0] for fault in faults] == ["training.fsdp", "freeze.encoder"]
    assert balancing_faults(recipe_of("famo", **sections), 2) == []


def test_a_shared_adapter_on_a_frozen_encoder_is_something_to_share():
    frozen = {"freeze": Freeze(encoder=True)}
    shared = recipe_of("pcgrad", adapters=({"r": 4}, "t0"), **frozen)
    assert balancing_faults(shared, 2) == []
    separate = recipe_of("pcgrad", adapters=({"r": 4}, {"r": 4}), **frozen)
    assert len(balancing_faults(separate, 2)) == 1
    named = recipe_of("pcgrad", adapters=({"r": 4, "name": "x"}, {"r": 4, "name": "x"}), **frozen)
    assert balancing_faults(named, 2) == []


def test_a_missing_package_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    told = "cagrad needs torchjd, cvxpy, which are not installed; type: pip install "
    told += '"polyhead[balancing]"'
    assert balancing_faults(recipe_of("cagrad"), 2) == [f"balancing.method: {told}"]
    with pytest.raises(ValueError, match="pcgrad needs torchjd, which is not installed"):
        balancer_of("pcgrad")
    assert balancer_of("nash_mtl").combine(JACOBIAN, ["a", "b"], 0).isfinite().all()
