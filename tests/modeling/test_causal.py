"""A causal mask, packed and padded, on encoders and decoders; and what cannot share its pass."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ENCODERS, NO_DROPOUT, shake, shake_heads, tiny_encoder_config
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig, attention
from polyhead.modeling.packing import cumulative
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

NEXT = {"next": TaskConfig(head="causal_lm")}
OWN_ATTENTION = ["mpnet", "deberta-v2"]
CAUSAL = [kind for kind in ENCODERS if kind not in OWN_ATTENTION]
LENGTHS = [3, 9, 9, 20]
STARTS = cumulative(torch.tensor(LENGTHS))


@pytest.fixture
def model(make_model, kind):
    return make_model(kind, NEXT)


def packed(batch):
    real = batch["attention_mask"].bool()
    return {"input_ids": batch["input_ids"][real][None], "cu_seq_lens_q": STARTS}


@pytest.mark.parametrize("kind", CAUSAL)
class TestEveryEncoder:
    def test_alone_padded_and_packed_are_the_same(self, model, batch_of, kind):
        batch = batch_of(model, LENGTHS)
        real = batch["attention_mask"].bool()
        texts = batch["input_ids"][real].split(LENGTHS)
        with torch.no_grad():
            alone = torch.cat([model(text[None]).logits["next"][0] for text in texts])
            padded = model(**batch).logits["next"][real]
            in_one = model(**packed(batch)).logits["next"][0]
        for found in (padded, in_one):
            assert_close(found, alone, atol=1e-5, rtol=1e-5)
        if kind in ("modernbert", "eurobert", "llama"):  # the others count positions from the left
            left = batch_of(model, LENGTHS, side="left")
            with torch.no_grad():
                from_left = model(**left).logits["next"][left["attention_mask"].bool()]
            assert_close(from_left, alone, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("packs", [False, True])
    def test_later_tokens_and_other_texts_change_nothing(self, model, batch_of, packs):
        batch = batch_of(model, LENGTHS)
        changed = {**batch, "input_ids": batch["input_ids"].clone()}
        changed["input_ids"][1, 4] = 5 + (batch["input_ids"][1, 4] - 4) % 20
        with torch.no_grad():
            states = [model(**(packed(b) if packs else b)).logits["next"] for b in (batch, changed)]
        moved = (states[0] != states[1]).any(-1)
        moved = moved[0] if packs else moved[batch["attention_mask"].bool()]
        assert moved.nonzero()[:, 0].tolist() == list(range(LENGTHS[0] + 4, LENGTHS[0] + 9))

    def test_loss_and_gradients_are_the_same_packed(self, model, batch_of):
        batch = batch_of(model, LENGTHS)
        real = batch["attention_mask"].bool()
        labels = torch.where(real, batch["input_ids"].roll(-1, 1), -100)
        losses, gradients = [], []
        for inputs, values in ((batch, labels), (packed(batch), labels[real][None])):
            model.zero_grad()
            loss = model(**inputs, labels={"next": values}).loss
            loss.backward()
            losses.append(loss.detach())
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        assert_close(losses[0], losses[1])
        assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)

    def test_a_saved_model_is_causal_still(self, model, batch_of, tmp_path):
        model.save_pretrained(tmp_path)
        again = PolyheadModel.from_pretrained(tmp_path)
        assert again.config.encoder_config.is_causal is True
        batch = batch_of(model, [7, 4])
        with torch.no_grad():
            expected, found = (m(**batch).logits["next"] for m in (model, again))
        assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", OWN_ATTENTION)
def test_an_encoder_with_attention_of_its_own_is_refused(kind, make_model):
    with pytest.raises(ValueError, match=f"{kind} makes its attention itself.*cannot be made caus"):
        make_model(kind, NEXT)


@pytest.mark.parametrize("window", [None, 0, 2, 20])
def test_each_way_of_packed_attention_looks_back_only(window):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 4, sum(LENGTHS), 8, generator=generator) for _ in range(3)]
    expected = []
    for query, key, value in zip(*(t.split(LENGTHS, dim=2) for t in inputs), strict=True):
        positions = torch.arange(query.shape[2])
        back = positions[:, None] - positions
        seen = (back >= 0) & (back <= (99 if window is None else window))
        expected.append(F.scaled_dot_product_attention(query, key, value, attn_mask=seen))
    expected = torch.cat(expected, dim=2).transpose(1, 2)
    by_runs = attention._by_runs(*inputs, window, 0.0, None, STARTS, causal=True)
    by_rows = attention._by_rows(*inputs, window, 0.0, None, STARTS, max(LENGTHS), causal=True)
    assert_close(by_runs, expected)
    assert_close(by_rows, expected)


def test_the_kernel_is_told_to_look_back_only(monkeypatch):
    """There is no such kernel on a CPU."""
    sides = []

    def kernel(query, *_, window_size, **__):
        sides.append(window_size)
        return query

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    inputs = [torch.zeros(1, 4, sum(LENGTHS), 8) for _ in range(3)]
    for window in (None, 3):
        attention._by_kernel(*inputs, window, None, STARTS, max(LENGTHS), causal=True)
    assert sides == [(-1, 0), (3, 0)]


# ---- the same as HF's own ----


DECODERS = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", list(DECODERS))
def test_a_decoder_equals_hf(kind, tied, batch_of):
    sizes = {
        name: getattr(tiny_encoder_config("llama"), name)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        + ("intermediate_size", "pad_token_id")
    }
    config = AutoConfig.for_model(
        kind, **sizes, **NO_DROPOUT, **DECODERS[kind], tie_word_embeddings=tied
    )
    theirs = AutoModelForCausalLM.from_config(config)
    shake(theirs)
    tasks = {"next": TaskConfig(head="causal_lm", tied=tied)}
    ours = PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks))
    ours.encoder.load_state_dict(theirs.base_model.state_dict())
    decoder = ours.heads["next"].decoder
    with torch.no_grad():
        decoder.weight.copy_(theirs.lm_head.weight)
        decoder.bias.zero_()
    assert (decoder.weight is ours.get_input_embeddings().weight) is tied
    theirs.eval(), ours.eval()
    batch = batch_of(ours, LENGTHS)
    real = batch["attention_mask"].bool()
    targets = batch["input_ids"].masked_fill(~real, -100)
    labels = F.pad(targets, (0, 1), value=-100)[:, 1:]
    expected = theirs(**batch, labels=targets)
    found = ours(**batch, labels={"next": labels})
    assert_close(found.logits["next"][real], expected.logits[real])
    assert_close(found.loss, expected.loss)
    assert_close(ours(**packed(batch)).logits["next"][0], expected.logits[real])
    expected.loss.backward()
    found.loss.backward()
    gradients = dict(theirs.base_model.named_parameters())
    for name, parameter in ours.encoder.named_parameters():
        assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_an_encoder_has_the_states_of_hf_as_decoder(kind, batch_of):
    theirs = AutoModel.from_config(tiny_encoder_config(kind, is_decoder=True)).eval()
    shake(theirs)
    config = PolyheadConfig(encoder_config=tiny_encoder_config(kind), tasks=NEXT)
    ours = PolyheadModel(config).eval()
    ours.encoder.load_state_dict(theirs.state_dict(), strict=False)
    batch = batch_of(ours, LENGTHS)
    real = batch["attention_mask"].bool()
    expected = theirs(**batch).last_hidden_state[real]
    assert_close(ours(**batch, tasks=()).last_hidden_state[real], expected)


# ---- one mask for all heads ----


def test_only_labelled_tokens_are_scored_in_training(make_model, batch_of):
    model = make_model("bert", NEXT).train()
    batch = batch_of(model, LENGTHS)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 1] = labels[3, 2] = 9
    assert model(**batch, labels={"next": labels}).logits["next"].shape == (2, 160)


FAULT = "task next reads with a causal mask, tags in both directions: one pass cannot do both"
TAGS = TaskConfig(head="token_classification", labels=["O", "x"])


def test_a_causal_and_a_bidirectional_task_are_refused(make_model):
    with pytest.raises(ValueError, match=FAULT):
        make_model("bert", {**NEXT, "tags": TAGS})
    with pytest.raises(ValueError, match=FAULT):
        make_model("bert", NEXT).add_task("tags", TAGS)
    model = make_model("bert", {})
    with pytest.raises(ValueError, match="task 'next' reads with a causal mask, but this model"):
        model.add_task("next", NEXT["next"])
    assert model.task_names == []


def test_a_causal_base_becomes_an_encoder_that_looks_both_ways(make_model, batch_of, tmp_path):
    base = make_model("llama", NEXT)
    assert base.config.trained_causal  # as decoders are
    base.encoder.save_pretrained(tmp_path)
    model = PolyheadModel.from_encoder(str(tmp_path), {"tags": TAGS})
    assert (model.config.trained_causal, model.config.encoder_config.is_causal) == (True, False)
    batch = batch_of(model, [6])
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, -1] = 5 + (batch["input_ids"][0, -1] - 4) % 20
    with torch.no_grad():
        first, other = (model(**b).logits["tags"][0, 0] for b in (batch, changed))
    assert not torch.equal(first, other)


def test_another_attention_set_later_is_refused(make_model, batch_of):
    model = make_model("bert", NEXT)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attention 'eager' was set, which may see later tokens"):
        model(**batch_of(model, [4]))


def test_two_tasks_of_next_tokens_share_a_pass(make_model, batch_of):
    model = make_model("bert", {**NEXT, "more": TaskConfig(head="causal_lm", tied=False)})
    shake_heads(model)
    assert set(model(**batch_of(model, [5, 3])).logits) == {"next", "more"}
