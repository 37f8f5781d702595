"""Every kind of encoder: an example alone is the same as padded in a batch, for every head."""

import inspect

import pytest
import torch
from conftest import POSITIONS, shake, tiny_encoder_config
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.modeling.modeling_polyhead import usable_length
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForMaskedLM

HEADS = {
    "single": TaskConfig(head="sequence_classification", labels=["a", "b", "c"], pooling="cls"),
    "multi": TaskConfig(
        head="sequence_classification",
        problem_type="multi_label_classification",
        labels=["a", "b"],
        pooling="max",
        activation="tanh",
    ),
    "number": TaskConfig(
        head="sequence_classification", problem_type="regression", pooling="last_token"
    ),
    "tags": TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"]),
    "vector": TaskConfig(head="embedding", pooling="mean"),
    "narrow": TaskConfig(head="embedding", pooling="mean", projection=8, normalize=False),
    "words": TaskConfig(head="masked_lm"),
}
PER_TOKEN = ("tags", "words")
RELATIVE = ["deberta-v2", "modernbert", "eurobert", "llama"]  # absolute positions do not matter


def results(model, batch):
    with torch.no_grad():
        out = model(**batch)
    return {**(out.logits or {}), **(out.embeddings or {})}


def test_row_alone_equals_row_padded_in_a_batch(kind, make_model, batch_of):
    model = make_model(kind, HEADS)
    lengths = [9, 5, 12]
    batch = batch_of(model, lengths, extra=3)
    together = results(model, batch)
    for row, length in enumerate(lengths):
        alone = results(model, {k: v[row : row + 1, :length] for k, v in batch.items()})
        for name in HEADS:
            values = together[name][row]
            values = values[:length] if name in PER_TOKEN else values
            assert_close(values, alone[name][0], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)


def test_packed_rows_equal_padded_rows(kind, make_model, batch_of):
    model = make_model(kind, HEADS)
    batch = batch_of(model, [9, 5, 12, 5, 1])
    real = batch["attention_mask"].bool()
    ends = real.sum(1).cumsum(0)
    packed = {
        "input_ids": batch["input_ids"][real][None],
        "cu_seq_lens_q": torch.cat([ends.new_zeros(1), ends]).int(),
    }
    padded, unpadded = results(model, batch), results(model, packed)
    for name in HEADS:
        expected = padded[name][real][None] if name in PER_TOKEN else padded[name]
        assert_close(unpadded[name], expected, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)


def test_rows_of_other_texts_give_other_results(kind, make_model, batch_of):
    # guards the test above: heads that ignore their input would pass it
    model = make_model(kind, HEADS)
    out = results(model, batch_of(model, [6, 6]))
    for name in HEADS:
        assert (out[name][0] - out[name][1]).abs().max() > 1e-3, name


def test_mean_of_last_4_layers_ignores_padding(make_model, batch_of):
    tasks = {"deep": TaskConfig(head="embedding", pooling="mean_last_4", normalize=False)}
    model = make_model("bert", tasks, num_hidden_layers=4)
    batch = batch_of(model, [4, 7], extra=2)
    together = results(model, batch)["deep"]
    assert together.shape == (2, 4 * 32)
    alone = results(model, {k: v[:1, :4] for k, v in batch.items()})["deep"]
    assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


def test_mean_of_last_4_layers_is_refused_by_an_encoder_of_two_layers(make_model):
    tasks = {"deep": TaskConfig(head="embedding", pooling="mean_last_4")}
    with pytest.raises(ValueError, match="mean_last_4"):
        make_model("bert", tasks)


@pytest.mark.parametrize("kind", RELATIVE)
def test_padding_side_does_not_matter_with_relative_positions(kind, make_model, batch_of):
    pooled = {name: task for name, task in HEADS.items() if name not in PER_TOKEN}
    model = make_model(kind, pooled)
    right = results(model, batch_of(model, [9, 5], side="right"))
    left = results(model, batch_of(model, [9, 5], side="left"))
    for name in pooled:
        assert_close(left[name], right[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)


def test_first_token_sees_the_last_in_every_encoder(kind, make_model, batch_of):
    model = make_model(kind, {})
    batch = batch_of(model, [4])
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, -1] = 5 + (batch["input_ids"][0, -1] - 4) % 20
    with torch.no_grad():
        first, other = model(**batch), model(**changed)
    moved = (first.last_hidden_state - other.last_hidden_state)[0, 0].abs().max()
    assert moved > 1e-4


def test_a_decoder_stays_bidirectional_after_saving(tmp_path, make_model, batch_of):
    model = make_model("llama", HEADS)
    model.save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path)
    assert again.config.encoder_config.is_causal is False
    batch = batch_of(model, [7, 4])
    before, after = results(model, batch), results(again, batch)
    for name in HEADS:  # loaded weights lie otherwise in memory: the last bit of a sum may differ
        assert_close(after[name], before[name], atol=1e-6, rtol=1e-6)


def test_encoder_weights_are_those_of_the_folder(kind, encoder_folder, make_model):
    expected = AutoModel.from_pretrained(encoder_folder(kind)).state_dict()
    weights = make_model(kind, {}).encoder.state_dict()
    assert [name for name in expected if name not in weights and "pooler" not in name] == []
    for name, value in weights.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_encoder_can_come_from_a_checkpoint_with_a_head(kind, tmp_path):
    checkpoint = AutoModelForMaskedLM.from_config(tiny_encoder_config(kind))
    shake(checkpoint)
    checkpoint.save_pretrained(tmp_path)
    model = PolyheadModel.from_encoder(str(tmp_path), tasks={})
    expected = checkpoint.base_model.state_dict()
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_no_encoder_parameter_goes_without_gradient(kind, make_model, batch_of):
    model = make_model(kind, {"tags": HEADS["tags"]})
    batch = batch_of(model, [6, 4])
    model(**batch, labels={"tags": batch["input_ids"] % 3}).loss.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle == []


def test_segments_reach_the_encoders_that_have_them(kind, make_model, batch_of):
    model = make_model(kind, {})
    batch = batch_of(model, [4])
    segments = torch.zeros_like(batch["input_ids"])
    if kind in ("bert", "electra", "albert"):
        segments[0, 2:] = 1
    with torch.no_grad():
        states = model(**batch, token_type_ids=segments).last_hidden_state
        plain = model(**batch).last_hidden_state
        expected = plain
        if "token_type_ids" in inspect.signature(model.encoder.forward).parameters:
            expected = model.encoder(**batch, token_type_ids=segments).last_hidden_state
    assert torch.equal(states, expected)
    assert torch.equal(states, plain) == (not segments.any())


def test_usable_length_is_what_the_encoder_accepts(kind, make_model, batch_of):
    model = make_model(kind, {})
    assert usable_length(model.encoder) == POSITIONS
    with torch.no_grad():
        out = model(**batch_of(model, [POSITIONS]))
        assert out.last_hidden_state.shape == (1, POSITIONS, 32)
        if kind not in RELATIVE:
            with pytest.raises((IndexError, RuntimeError)):
                model(**batch_of(model, [POSITIONS + 1]))


def test_input_embeddings_stand_in_for_ids(kind, make_model, batch_of):
    model = make_model(kind, {"tags": HEADS["tags"]})
    batch = batch_of(model, [6])
    with torch.no_grad():
        vectors = model.get_input_embeddings()(batch["input_ids"])
        output = model(inputs_embeds=vectors, attention_mask=batch["attention_mask"])
        assert_close(output.logits["tags"], model(**batch).logits["tags"])


def test_without_attention_mask_all_tokens_are_real(make_model, batch_of):
    model = make_model("bert", HEADS)
    batch = batch_of(model, [6, 6])
    with_mask, without = results(model, batch), results(model, {"input_ids": batch["input_ids"]})
    for name in HEADS:
        assert_close(without[name], with_mask[name], atol=1e-5, rtol=1e-5)


def test_hidden_states_and_attentions_are_given_when_asked(make_model, batch_of):
    model = make_model("bert", {"tags": HEADS["tags"]})
    model.set_attn_implementation("eager")
    batch = batch_of(model, [6])
    plain = model(**batch)
    assert plain.hidden_states is None
    assert plain.attentions is None
    asked = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in asked.hidden_states] == [(1, 6, 32)] * 3
    assert torch.equal(asked.hidden_states[-1], asked.last_hidden_state)
    assert [tuple(a.shape) for a in asked.attentions] == [(1, 4, 6, 6)] * 2


def test_tuple_output_holds_the_same_values(make_model, batch_of):
    model = make_model("bert", {"tags": HEADS["tags"]})
    batch = batch_of(model, [6])
    last, logits = model(**batch, return_dict=False)
    assert torch.equal(last, model(**batch).last_hidden_state)
    assert torch.equal(logits["tags"], model(**batch).logits["tags"])
