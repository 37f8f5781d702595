"""One rule says when two tasks pull apart."""

import pytest
import torch
from polyhead.train.balancing.agreement import (
    agreement_with_itself,
    noise_of,
    own_agreement,
    standard_error,
    summary,
    verdict,
)
from polyhead.train.balancing.halves import HalfGradient
from torch import nn


def pair(mean, error=0.01, compared=10, own=None, tasks=("a", "b")):
    numbers = {"mean": mean, "standard_error": error, "compared": compared, "own": own}
    return {"tasks": list(tasks), **numbers}


def test_noise_is_the_larger_of_chance_and_of_what_does_not_matter():
    assert noise_of(pair(0, 0.1)) == pytest.approx(2.262 * 0.1, abs=1e-3)  # t of 9 degrees
    assert noise_of(pair(0, 0.001)) == 0.1
    assert noise_of(pair(0, 0.001, own=0.4)) == pytest.approx(0.04)
    assert noise_of(pair(0, 0.1, compared=2)) is None
    assert noise_of({"mean": -0.5, "compared": 9}) is None  # of an older run


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (pair(-0.06), "unclear"),  # below a tenth
        (pair(-0.06, own=0.4), "apart"),  # more than a tenth of 0.4
        (pair(-0.06, error=0.04, own=0.4), "unclear"),  # chance
        (pair(-0.5), "apart"),
        (pair(0.5), "alike"),
        (pair(-0.5, compared=2), "unclear"),
        (pair(None), "unclear"),
    ],
)
def test_the_rule(numbers, said):
    assert verdict(numbers) == said


def test_the_sentence_names_those_that_pull_apart():
    assert summary([pair(0.0), pair(-0.5, tasks=("x", "y"))]) == "Pulling apart: x and y."
    assert summary([pair(0.0), pair(0.5)]) == "No two tasks pull apart."
    assert summary([pair(-0.5, compared=2)]).startswith("Fewer than 3 comparisons")


def test_halves_are_scaled_to_whole_batches():
    assert agreement_with_itself([0.2, 0.4]) == pytest.approx(0.6 / 1.3)
    assert agreement_with_itself([-0.2]) == 0.0
    assert agreement_with_itself([]) is None
    assert own_agreement(0.25, 1.0) == 0.5
    assert own_agreement(None, 1.0) is None
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / 3**0.5)
    assert standard_error([1.0]) is None


@pytest.mark.parametrize("packed", [False, True])
def test_two_halves_by_hand(packed):
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    head = nn.Identity()
    half = HalfGradient("a", head, [weight])
    states = rows @ weight
    loss = head(states[None] if packed else states).sum()
    half.add({"a": loss, "b": loss * 0})
    half.add({"a": loss})  # no forward pass since
    half.end()
    assert half.gradients.total.tolist() == [[1.0, 1.0, 1.0, 1.0]]  # rows 0 and 1
    whole = torch.autograd.grad(loss, weight)[0].flatten()
    other = torch.tensor([3.0, 3.0, 1.0, 1.0])  # rows 2 and 3
    wanted = torch.cosine_similarity(other, torch.ones(4), dim=0)
    assert half.cosine(whole) == pytest.approx(wanted.item())
    head(torch.zeros(1, 2))
    assert half._states is None
