"""Experts between encoder and heads: their formula, and the same however rows are batched."""

import pytest
import torch
import torch.nn.functional as F
from conftest import shake_adapters
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from polyhead.modeling.experts import expert_names
from polyhead.modeling.packing import TextLayout
from polyhead.modeling.pooling import pool
from polyhead.train.adapters import attach_adapters
from torch.testing import assert_close

LABELS = ["a", "b", "c"]
TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=LABELS, pooling="cls"),
    "slots": TaskConfig(head="token_classification", labels=LABELS, layers=1),
    "vector": TaskConfig(head="embedding", projection=8),
    "words": TaskConfig(head="masked_lm"),
}
KINDS = {
    "mmoe": {"kind": "mmoe", "experts": 3, "size": 8},
    "cgc": {"kind": "cgc", "experts": 2, "per_task": 2, "size": 8},
    "ple": {"kind": "ple", "experts": 2, "per_task": 1, "size": 8},
}
LENGTHS = [9, 5, 12, 7]


@pytest.fixture(params=list(KINDS))
def model(request, make_model):
    return make_model("bert", TASKS, experts=KINDS[request.param]).eval()


def values_of(model, batch, **options):
    with torch.no_grad():
        output = model(**batch, **options)
    return {**(output.logits or {}), **(output.embeddings or {})}


def packed(batch):
    real = batch["attention_mask"].bool()
    ends = real.sum(1).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends]).int()
    return {"input_ids": batch["input_ids"][real][None], "cu_seq_lens_q": starts}


# ---- the formula, written out ----


def expert(bank, number, x):
    """U_i gelu(D_i x + b_i)."""
    size = bank.shape[1]
    part = slice(number * size, (number + 1) * size)
    hidden = F.gelu(x @ bank.down.weight[part].T + bank.down.bias[part])
    return hidden @ bank.up.weight[:, part].T


def mixture(x, gate, outputs):
    weights = (x @ gate.weight.T + gate.bias).softmax(-1)
    mixed = x
    for number, output in enumerate(outputs):
        mixed = mixed + weights[..., number : number + 1] * output
    return mixed


def experts_of(bank, x):
    return [] if bank is None else [expert(bank, number, x) for number in range(bank.shape[0])]


def expected_states(model, task, states):
    top, lower, shared = model.heads[task].mixture, model.experts.lower, states
    if lower is not None:
        own = [e for m in lower.tasks.values() for e in experts_of(m.own, states)]
        shared = mixture(states, lower.gate, [*experts_of(lower.shared, states), *own])
        below = lower.tasks[task]
        outputs = [*experts_of(lower.shared, states), *experts_of(below.own, states)]
        states = mixture(states, below.gate, outputs)
    outputs = [*experts_of(model.experts.shared, shared), *experts_of(top.own, states)]
    return mixture(states, top.gate, outputs)


@torch.no_grad()
def test_each_task_reads_its_mixture_of_experts(model, batch_of):
    batch = batch_of(model, LENGTHS)
    states = model(**batch, tasks=()).last_hidden_state
    layout = TextLayout(mask=batch["attention_mask"])
    for name, values in values_of(model, batch).items():
        head, x = model.heads[name], expected_states(model, name, states)
        x = x if head.per_token else pool((x,), layout, head.pooling)
        assert_close(values, head(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_loads_are_the_mean_weights_over_real_tokens(make_model, batch_of):
    model = make_model("bert", TASKS, experts=KINDS["cgc"]).eval()
    batch = batch_of(model, LENGTHS, extra=3)
    real = batch["attention_mask"].bool()
    output = model(**batch)
    for name in TASKS:
        weights = model.heads[name].mixture.gate(output.last_hidden_state).softmax(-1)
        assert_close(output.expert_loads[name], weights[real].mean(0))
    assert_close(model(**packed(batch)).expert_loads, output.expert_loads)
    assert expert_names(model.config.experts) == ["shared_0", "shared_1", "own_0", "own_1"]
    assert make_model("bert", TASKS)(**batch).expert_loads is None


# ---- invariants ----


def test_alone_padded_and_packed_are_the_same(model, batch_of):
    batch = batch_of(model, LENGTHS, extra=3)
    real = batch["attention_mask"].bool()
    padded, unpadded = values_of(model, batch), values_of(model, packed(batch))
    for name, values in padded.items():
        expected = values[real][None] if values.dim() == 3 else values
        assert_close(unpadded[name], expected, atol=1e-5, rtol=1e-5)
    for row, length in enumerate(LENGTHS):
        alone = values_of(model, {k: v[row : row + 1, :length] for k, v in batch.items()})
        for name, values in padded.items():
            expected = values[row, :length] if values.dim() == 3 else values[row]
            assert_close(alone[name][0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapters", [None, {"r": 4, "lora_alpha": 8}])
def test_rows_of_different_tasks_share_a_batch(adapters, model, batch_of):
    if adapters is not None:
        attach_adapters(model, {"intent": dict(adapters), "slots": dict(adapters)})
        shake_adapters(model)
    batch = batch_of(model, LENGTHS)
    task_ids = torch.tensor([[2, 0], [1, -1], [0, 1], [2, 3]])
    whole = values_of(model, batch)
    mixed = values_of(model, batch, task_ids=task_ids)
    from_packed = values_of(model, packed(batch), task_ids=task_ids)
    for number, name in enumerate(TASKS):
        rows = (task_ids == number).any(1)
        assert_close(mixed[name], whole[name][rows], atol=1e-5, rtol=1e-5)
        expected = mixed[name]
        if expected.dim() == 3:
            expected = expected[batch["attention_mask"][rows].bool()][None]
        assert_close(from_packed[name], expected, atol=1e-5, rtol=1e-5)


def test_windows_of_long_texts_are_pooled_as_without_parts(make_model, batch_of):
    tasks = {"intent": TaskConfig(**vars_of(TASKS["intent"]), long_texts="windows")}
    model = make_model("bert", tasks, experts=KINDS["cgc"]).eval()
    batch, counts = batch_of(model, LENGTHS), torch.tensor([3, 1])
    of_rows = values_of(model, batch)["intent"]
    of_texts = values_of(model, batch, window_counts=counts)["intent"]
    assert_close(of_texts, torch.stack([of_rows[:3].mean(0), of_rows[3]]), atol=1e-5, rtol=1e-5)


def vars_of(task):
    return {"head": task.head, "labels": task.labels, "pooling": task.pooling}


def test_in_training_masked_words_alone_go_through_the_experts(model, batch_of):
    batch = batch_of(model, LENGTHS)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, 2] = 7
    expected = model(**batch, labels={"words": labels}).loss
    model.train()
    output = model(**batch, labels={"words": labels})
    assert output.logits["words"].shape[0] == len(LENGTHS)
    assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)


def test_a_view_of_a_task_reads_the_experts(model, batch_of):
    batch = batch_of(model, LENGTHS)
    with torch.no_grad():
        logits = model.view("slots").eval()(**batch).logits
    assert torch.equal(logits, values_of(model, batch)["slots"])


# ---- how it begins ----


@pytest.mark.parametrize(
    "experts", [*KINDS.values(), {"kind": "mmoe", "experts": 1}], ids=[*KINDS, "one"]
)
def test_a_new_model_has_the_logits_of_one_without_experts_to_the_bit(
    experts, encoder_folder, batch_of
):
    folder = str(encoder_folder("bert"))
    model = PolyheadModel.from_encoder(folder, TASKS, experts=experts)
    plain = PolyheadModel.from_encoder(folder, TASKS)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    batch = batch_of(model, LENGTHS)
    expected = values_of(plain, batch)
    assert all(torch.equal(v, expected[name]) for name, v in values_of(model, batch).items())


def test_one_expert_has_no_gate_and_adds_what_it_gives(make_model, batch_of):
    model = make_model("bert", TASKS, experts={"kind": "mmoe", "experts": 1, "size": 8}).eval()
    assert not [name for name in model.state_dict() if "mixture" in name]
    batch = batch_of(model, LENGTHS)
    output = model(**batch)
    states, bank = output.last_hidden_state, model.experts.shared
    x = states + bank.up(F.gelu(bank.down(states)))
    assert_close(output.logits["slots"], model.heads["slots"](x), atol=1e-5, rtol=1e-5)
    assert output.expert_loads is None


# ---- saved, grown, refused ----


def test_saved_and_loaded_it_is_the_same(model, batch_of, tmp_path):
    model.save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path).eval()
    assert again.config.experts == model.config.experts
    batch = batch_of(model, LENGTHS)
    expected = values_of(model, batch)
    assert all(torch.equal(v, expected[name]) for name, v in values_of(again, batch).items())


def test_missing_weights_are_refused(make_model, tmp_path):
    make_model("bert", TASKS).save_pretrained(tmp_path)
    config = PolyheadConfig.from_pretrained(tmp_path)
    config.experts = {**KINDS["mmoe"], "per_task": 0}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="missing"):
        PolyheadModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["mmoe", "cgc"])
def test_tasks_come_and_go_without_a_change_of_the_others(kind, make_model, batch_of):
    model = make_model("bert", TASKS, experts=KINDS[kind]).eval()
    batch = batch_of(model, LENGTHS)
    expected = values_of(model, batch)
    model.add_task("mood", TaskConfig(head="sequence_classification", labels=LABELS))
    assert "heads.mood.mixture.gate.weight" in model.state_dict()
    model.remove_task("intent")
    found = values_of(model, batch)
    assert list(found) == ["slots", "words", "mood", "vector"]
    assert all(torch.equal(found[name], expected[name]) for name in ("slots", "words", "vector"))


def test_two_levels_are_for_the_tasks_they_were_made_for(make_model):
    model = make_model("bert", TASKS, experts=KINDS["ple"])
    with pytest.raises(ValueError, match="kind ple are read by all tasks together"):
        model.remove_task("intent")
    with pytest.raises(ValueError, match="kind ple are read by all tasks together"):
        model.add_task("mood", TaskConfig(head="embedding"))
    assert model.task_names == list(TASKS)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({"kind": "moe"}, "experts: kind is 'moe'; allowed: mmoe, cgc, ple"),
        ({"kind": "mmoe", "per_task": 1}, "per_task belongs to cgc and ple"),
        ({"kind": "mmoe", "experts": 0}, "experts is 0; allowed: 1 to 64"),
        ({"kind": "cgc", "per_task": 0}, "per_task is 0; allowed: 1 to 64"),
        ({"kind": "cgc", "size": 1 << 20}, "size is 1048576; allowed: 1 to 65536"),
        ({"kind": "cgc", "gate": 1}, "experts: unknown key gate"),
        ({"experts": 2}, "kind"),
    ],
)
def test_options_that_are_not_allowed(experts, message, make_model):
    with pytest.raises(ValueError, match=message):
        make_model("bert", TASKS, experts=experts)


def test_a_pooling_of_layers_below_the_experts_is_refused(make_model):
    deep = {"deep": TaskConfig(head="embedding", pooling="mean_last_4")}
    with pytest.raises(ValueError, match="mean_last_4 reads layers of the encoder below"):
        make_model("bert", deep, experts=KINDS["mmoe"], num_hidden_layers=4)


def test_experts_come_before_tasks(make_model):
    with pytest.raises(ValueError, match="experts come before tasks; there are: intent"):
        make_model("bert", TASKS).set_experts(KINDS["mmoe"])
