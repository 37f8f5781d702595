"""Each pooling by hand, padded on either side and packed."""

import pytest
import torch
from polyhead.modeling.configuration_polyhead import POOLINGS
from polyhead.modeling.packing import TextLayout
from polyhead.modeling.pooling import POOL, layers_needed, pool

REAL = torch.tensor([[1.0, -8.0], [3.0, -4.0], [5.0, -6.0]])  # three tokens, H = 2
JUNK = torch.tensor([[100.0, 100.0]])  # what an encoder leaves at padding
EXPECTED = {
    "mean": [3.0, -6.0],
    "max": [5.0, -4.0],
    "cls": [1.0, -8.0],
    "last_token": [5.0, -6.0],
}
LAYOUTS = {
    "whole": (REAL, TextLayout(mask=torch.tensor([[1, 1, 1]]))),
    "right": (torch.cat([REAL, JUNK, JUNK]), TextLayout(mask=torch.tensor([[1, 1, 1, 0, 0]]))),
    "left": (torch.cat([JUNK, JUNK, REAL]), TextLayout(mask=torch.tensor([[0, 0, 1, 1, 1]]))),
    "packed": (REAL, TextLayout(cu_seq_lens=torch.tensor([0, 3], dtype=torch.int32))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pooling", EXPECTED)
def test_pooling_by_hand(pooling, layout):
    states, texts = LAYOUTS[layout]
    assert pool((states[None],), texts, pooling).tolist() == [EXPECTED[pooling]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_of_last_4_layers_by_hand(layout):
    states, texts = LAYOUTS[layout]
    layers = tuple(states[None] * factor for factor in (1000, 1, 2, 3, 4))  # the first is not read
    vectors = pool(layers, texts, "mean_last_4")
    assert vectors.tolist() == [[3.0, -6.0, 6.0, -12.0, 9.0, -18.0, 12.0, -24.0]]


@pytest.mark.parametrize("pooling", EXPECTED)
def test_rows_of_different_length_pool_apart(pooling):
    padded = torch.stack([torch.cat([REAL, JUNK]), torch.cat([JUNK, JUNK, JUNK, REAL[:1]])])
    mask = TextLayout(mask=torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1]]))
    packed, starts = (
        torch.cat([REAL, REAL[:1]])[None],
        TextLayout(cu_seq_lens=torch.tensor([0, 3, 4])),
    )
    expected = [EXPECTED[pooling], [1.0, -8.0]]
    assert pool((padded,), mask, pooling).tolist() == expected
    assert pool((packed,), starts, pooling).tolist() == expected


@pytest.mark.parametrize("pooling", EXPECTED)
def test_only_the_final_layer_is_read(pooling):
    states, texts = LAYOUTS["right"]
    assert pool((states[None] * 7, states[None]), texts, pooling).tolist() == [EXPECTED[pooling]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
@pytest.mark.parametrize("pooling", EXPECTED)
def test_mask_may_be_of_any_type(pooling, dtype):
    states, texts = LAYOUTS["left"]
    vectors = pool((states[None],), TextLayout(mask=texts.mask.to(dtype)), pooling)
    assert vectors.tolist() == [EXPECTED[pooling]]


@pytest.mark.parametrize("layout", ["right", "packed"])
@pytest.mark.parametrize("pooling", EXPECTED)
def test_half_precision_stays_half_precision(pooling, layout):
    states, texts = LAYOUTS[layout]
    vectors = pool((states[None].bfloat16(),), texts, pooling)
    assert vectors.dtype == torch.bfloat16
    assert vectors.tolist() == [EXPECTED[pooling]]


def test_gradient_reaches_real_tokens_only():
    states, texts = LAYOUTS["right"]
    states = states.clone().requires_grad_()
    pool((states[None],), texts, "mean").sum().backward()
    assert states.grad.tolist() == [[pytest.approx(1 / 3)] * 2] * 3 + [[0.0, 0.0]] * 2


def test_every_pooling_is_known_to_the_config():
    assert {*POOL, "mean_last_4"} == set(POOLINGS)
    assert {name: layers_needed(name) for name in POOLINGS} == dict.fromkeys(POOL, 1) | {
        "mean_last_4": 4
    }
