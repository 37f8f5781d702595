"""Attention over packed texts: each way that a device may take gives what the others give."""

import pytest
import torch
import torch.nn.functional as F
from polyhead.modeling import TaskConfig, attention
from polyhead.modeling.attention import has_kernel
from polyhead.modeling.packing import cumulative, restarting_positions
from torch.testing import assert_close

LENGTHS = [3, 7, 7, 1, 12]
STARTS = cumulative(torch.tensor(LENGTHS))


def parts():
    """Query, key and value of 4 heads, (1, 4, P, 8)."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, sum(LENGTHS), 8)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]


def one_by_one(query, key, value, window, scaling):
    """Each text alone, (1, P, 4, 8)."""
    outputs = []
    for x, y, z in zip(*(t.split(LENGTHS, dim=2) for t in (query, key, value)), strict=True):
        positions = torch.arange(x.shape[2])
        mask = None if window is None else (positions[:, None] - positions).abs() <= window
        outputs.append(F.scaled_dot_product_attention(x, y, z, attn_mask=mask, scale=scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def gradients(out, inputs):
    weights = torch.arange(out.numel()).view_as(out).cos()
    return torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize("window", [None, 0, 2, 20])
@pytest.mark.parametrize("way", ["runs", "rows"])
def test_each_text_sees_itself_alone(way, window):
    inputs = parts()
    expected = one_by_one(*inputs, window, 0.3)
    if way == "runs":
        out = attention._by_runs(*inputs, window, 0.0, 0.3, STARTS)
    else:
        out = attention._by_rows(*inputs, window, 0.0, 0.3, STARTS, max(LENGTHS))
    assert_close(out, expected)
    assert_close(gradients(out, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("window", [None, 2])
def test_the_kernel_is_given_what_it_wants(window, monkeypatch):
    """There is no such kernel on a CPU: its place is taken by its definition."""

    def kernel(query, key, value, starts, ends, most, longest, *, scale, window_size):
        assert query.shape == (sum(LENGTHS), 4, 8)
        assert starts.dtype == ends.dtype == torch.int32
        assert most == longest == max(LENGTHS)
        side = None if window_size == (-1, -1) else window_size[0]
        rows = [x.transpose(0, 1)[None] for x in (query, key, value)]
        return one_by_one(*rows, side, scale)[0]

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    inputs = parts()
    out = attention._by_kernel(*inputs, window, 0.3, STARTS, max(LENGTHS))
    assert_close(out, one_by_one(*inputs, window, 0.3))


def test_dropout_drops_weights_of_attention():
    torch.manual_seed(0)
    query, key, _ = parts()
    ones = torch.ones_like(query)
    for out in (
        attention._by_runs(query, key, ones, None, 0.5, None, STARTS),
        attention._by_rows(query, key, ones, None, 0.5, None, STARTS, max(LENGTHS)),
    ):
        assert 0.9 < float(out.detach().mean()) < 1.1  # 1 without dropout
        assert float(out.detach().std()) > 0.2


def test_a_cpu_has_no_kernel():
    assert not has_kernel(torch.device("cpu"), torch.bfloat16)


def test_every_encoder_reads_rows_padded_for_attention_alone(
    kind, make_model, batch_of, monkeypatch
):
    """What a GPU without the kernel does, forward and gradients."""
    model = make_model(kind, {"tags": TaskConfig(head="token_classification", labels=["O", "x"])})
    if not model.can_pack:
        return  # is given padded rows on every device
    batch = batch_of(model, LENGTHS)
    real = batch["attention_mask"].bool()
    inputs = {"input_ids": batch["input_ids"][real][None], "cu_seq_lens_q": STARTS}
    inputs |= {"labels": {"tags": torch.ones(1, sum(LENGTHS), dtype=torch.long)}}
    model.eval()
    results, calls = [], []

    def by_rows(*parts, causal):
        calls.append(len(parts))
        return attention._by_rows(*parts, max(LENGTHS), causal=causal)

    for way in (attention._by_runs, by_rows):
        monkeypatch.setattr(attention, "_by_runs", way)
        model.zero_grad()
        out = model(**inputs, max_length_q=max(LENGTHS))
        out.loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((out.logits["tags"].detach(), grads))
    assert len(calls) == model.encoder.config.num_hidden_layers
    assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_positions_begin_anew_with_each_text():
    positions = restarting_positions(torch.tensor([0, 2, 5], dtype=torch.int32), 5, 1)
    assert positions.tolist() == [[1, 2, 1, 2, 3]]
