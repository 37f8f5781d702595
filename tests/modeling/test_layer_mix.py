"""`layer_mix`: a head reads a learned mean of all layers, the same however texts are batched."""

import pytest
import torch
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.modeling.packing import TextLayout
from polyhead.modeling.pooling import pool
from polyhead.train.adapters import attach_adapters
from torch.testing import assert_close

LABELS = ["a", "b", "c"]
TASKS = {
    "intent": TaskConfig(
        head="sequence_classification", labels=LABELS, pooling="max", layer_mix=True
    ),
    "slots": TaskConfig(head="token_classification", labels=LABELS, layers=1, layer_mix=True),
    "plain": TaskConfig(head="token_classification", labels=LABELS),
    "choice": TaskConfig(head="multiple_choice", layer_mix=True),
}
LENGTHS = [9, 5, 12]


@pytest.fixture
def model(make_model):
    return make_model("bert", TASKS).eval()


def logits(model, batch, **options):
    with torch.no_grad():
        return model(**batch, **options).logits


@torch.no_grad()
def test_it_is_a_weighted_mean_of_all_layers(model, batch_of):
    batch = batch_of(model, LENGTHS)
    hidden = model(**batch, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    for name, values in logits(model, batch).items():
        head = model.heads[name]
        x = hidden[-1]
        if TASKS[name].layer_mix:
            shares = head.layer_mix.weights.softmax(0)
            x = head.layer_mix.scale * torch.einsum("l,lnth->nth", shares, torch.stack(hidden))
        if not head.per_token:
            x = pool((x,), TextLayout(mask=batch["attention_mask"]), head.pooling)
        assert_close(values, head(x), atol=1e-5, rtol=1e-5)


def test_it_begins_with_equal_weights_and_gets_a_gradient(encoder_folder, batch_of):
    model = PolyheadModel.from_encoder(str(encoder_folder("bert")), tasks=TASKS)
    mix = model.heads["slots"].layer_mix
    assert mix.weights.tolist() == [0, 0, 0]
    assert mix.scale.tolist() == [1]
    batch = batch_of(model, LENGTHS)
    model(**batch, labels={"slots": batch["input_ids"] % 3}).loss.backward()
    assert bool((mix.weights.grad != 0).all())


@pytest.mark.parametrize("adapter", [None, {"r": 4, "init_lora_weights": False}])
def test_alone_padded_packed_and_beside_other_tasks_are_the_same(adapter, model, batch_of):
    if adapter is not None:
        attach_adapters(model, {"slots": adapter})
    batch = batch_of(model, LENGTHS, extra=3)
    real = batch["attention_mask"].bool()
    ends = real.sum(1).cumsum(0)
    packed = {
        "input_ids": batch["input_ids"][real][None],
        "cu_seq_lens_q": torch.cat([ends.new_zeros(1), ends]).int(),
    }
    padded, unpadded = logits(model, batch), logits(model, packed)
    task_ids = torch.tensor([[1, 0], [0, 3], [1, 2]])
    mixed = logits(model, packed, task_ids=task_ids)
    for number, (name, values) in enumerate(padded.items()):
        rows = (task_ids == number).any(1)
        of_rows, expected = values[rows], values
        if values.dim() == 3:
            of_rows, expected = values[rows][real[rows]][None], values[real][None]
        assert_close(unpadded[name], expected, atol=1e-5, rtol=1e-5)
        assert_close(mixed[name], of_rows, atol=1e-5, rtol=1e-5)
    for row, length in enumerate(LENGTHS):
        alone = logits(model, {k: v[row : row + 1, :length] for k, v in batch.items()})
        for name, values in padded.items():
            expected = values[row, :length] if values.dim() == 3 else values[row]
            assert_close(alone[name][0], expected, atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_it_is_the_same(model, batch_of, tmp_path):
    model.save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path).eval()
    assert again.config.tasks == TASKS
    batch = batch_of(model, LENGTHS)
    expected = logits(model, batch)
    assert all(v.equal(expected[name]) for name, v in logits(again, batch).items())


def test_windows_are_pooled_as_without_parts(make_model, batch_of):
    task = TaskConfig(
        head="sequence_classification", labels=LABELS, layer_mix=True, long_texts="windows"
    )
    model = make_model("bert", {"intent": task}).eval()
    batch = batch_of(model, LENGTHS)
    of_rows = logits(model, batch)["intent"]
    of_texts = logits(model, batch, window_counts=torch.tensor([2, 1]))["intent"]
    assert_close(of_texts, torch.stack([of_rows[:2].mean(0), of_rows[2]]), atol=1e-5, rtol=1e-5)


def test_what_does_not_go_with_it(make_model):
    deep = TaskConfig(
        head="sequence_classification", labels=LABELS, layer_mix=True, pooling="mean_last_4"
    )
    with pytest.raises(ValueError, match="layer_mix reads all layers, pooling mean_last_4 some"):
        make_model("bert", {"intent": deep}, num_hidden_layers=4)
    with pytest.raises(ValueError, match="layer_mix reads layers of the encoder below the experts"):
        make_model("bert", TASKS, experts={"kind": "mmoe"})
    with pytest.raises(ValueError, match="layer_mix belongs to"):
        TaskConfig(head="embedding", layer_mix=True)
