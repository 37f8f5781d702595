"""Hidden layers of heads, `layers: n`: their formula, and the same however texts are batched."""

import pytest
import torch
from polyhead.modeling import PolyheadModel, TaskConfig
from torch.testing import assert_close

LABELS = ["a", "b", "c"]
SEQUENCE = {"head": "sequence_classification", "labels": LABELS}
TASKS = {
    "intent": TaskConfig(**SEQUENCE, layers=2, activation="tanh"),
    "slots": TaskConfig(head="token_classification", labels=LABELS, layers=3),
    "urgency": TaskConfig(head="sequence_classification", problem_type="regression", layers=1),
    "choice": TaskConfig(head="multiple_choice", layers=1, activation="relu"),
}


@pytest.fixture
def model(make_model):
    return make_model("bert", TASKS).eval()


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("intent", torch.tanh),
        ("slots", torch.nn.functional.gelu),
        ("urgency", torch.nn.functional.gelu),
        ("choice", torch.relu),
    ],
)
def test_each_layer_adds_to_what_it_reads(name, act, model):
    head, x = model.heads[name], torch.randn(5, 32)
    expected = x
    for number in range(TASKS[name].layers):
        weight, bias = (
            head.get_parameter(f"hidden.layers.{number}.{p}") for p in ("weight", "bias")
        )
        expected = expected + act(expected @ weight.T + bias)
    expected = expected @ head.out.weight.T + head.out.bias
    assert_close(head(x), expected, atol=1e-5, rtol=1e-5)


def test_there_are_as_many_as_asked_and_no_dense_layer(model):
    for name, task in TASKS.items():
        weights = {key for key, _ in model.heads[name].named_parameters()}
        layers = {f"hidden.layers.{i}.{p}" for i in range(task.layers) for p in ("weight", "bias")}
        assert weights == {*layers, "out.weight", "out.bias"}


def test_alone_padded_and_packed_are_the_same(model, batch_of):
    lengths = [9, 5, 12]
    batch = batch_of(model, lengths, extra=3)
    real = batch["attention_mask"].bool()
    ends = real.sum(1).cumsum(0)
    packed = {
        "input_ids": batch["input_ids"][real][None],
        "cu_seq_lens_q": torch.cat([ends.new_zeros(1), ends]).int(),
    }
    padded, unpadded = logits(model, batch), logits(model, packed)
    for name, values in padded.items():
        expected = values[real][None] if name == "slots" else values
        assert_close(unpadded[name], expected, atol=1e-5, rtol=1e-5)
    for row, length in enumerate(lengths):
        alone = logits(model, {k: v[row : row + 1, :length] for k, v in batch.items()})
        for name, values in padded.items():
            expected = values[row, :length] if name == "slots" else values[row]
            assert_close(alone[name][0], expected, atol=1e-5, rtol=1e-5)


def test_they_are_saved_and_loaded(model, batch_of, tmp_path):
    model.save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path).eval()
    assert again.config.tasks == TASKS
    batch = batch_of(model, [9, 5])
    expected = logits(model, batch)
    assert all(torch.equal(v, expected[name]) for name, v in logits(again, batch).items())


def test_dropout_stands_before_each_layer(model, monkeypatch):
    head, probabilities = model.heads["slots"].train(), []
    dropout = torch.nn.functional.dropout

    def spy(x, p, *rest):
        probabilities.append(p)
        return dropout(x, p, *rest)

    monkeypatch.setattr(torch.nn.functional, "dropout", spy)
    head(torch.randn(2, 32))
    assert probabilities == [0.1] * 4


@pytest.mark.parametrize("layers", [0, -1, 9])
def test_a_number_without_sense_is_refused(layers):
    with pytest.raises(ValueError, match=rf"layers is {layers}; allowed: 1 to 8"):
        TaskConfig(**SEQUENCE, layers=layers)


@pytest.mark.parametrize("head", ["embedding", "masked_lm"])
def test_a_head_that_has_none_refuses_them(head):
    readers = "sequence_classification, token_classification and multiple_choice"
    with pytest.raises(ValueError, match=f"layers belongs to {readers}, not to {head}"):
        TaskConfig(head=head, layers=1)


def test_a_grown_task_keeps_its_layers_and_old_logits(model, batch_of):
    batch = batch_of(model, [9, 5])
    before = logits(model, batch)["slots"]
    model.extend_task("slots", ["d"])
    after = logits(model, batch)["slots"]
    assert after.shape == (2, 9, 4)
    assert torch.equal(after[..., :3], before)
