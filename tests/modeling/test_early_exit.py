"""`layer: k`: a head reads an earlier layer; layers that no task of a call reads do not run."""

import copy
import pickle
import threading

import pytest
import torch
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.modeling.early_exit import can_watch
from polyhead.modeling.packing import TextLayout
from polyhead.modeling.pooling import pool
from polyhead.modeling.routing import layers_of
from polyhead.train.adapters import attach_adapters
from torch.testing import assert_close

LABELS = ["a", "b", "c"]
LAYERS = 4
TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=LABELS, pooling="max", layer=1),
    "slots": TaskConfig(head="token_classification", labels=LABELS, layer=2),
    "vector": TaskConfig(head="embedding", layer=2),
    "choice": TaskConfig(head="multiple_choice", layer=LAYERS),
    "plain": TaskConfig(head="token_classification", labels=LABELS),
}
LOW = ["intent", "slots", "vector"]
LENGTHS = [9, 5, 12]
RUN_WHOLE = ("albert",)  # its layers are one, called again and again


def sizes(kind):
    other = {"n_layers": LAYERS} if kind == "distilbert" else {}
    return {"num_hidden_layers": LAYERS, **other}


@pytest.fixture
def model(make_model):
    return make_model("bert", TASKS, **sizes("bert")).eval()


def values_of(model, batch, **options):
    with torch.no_grad():
        output = model(**batch, **options)
    return {**(output.logits or {}), **(output.embeddings or {})}


def packed(batch):
    real = batch["attention_mask"].bool()
    ends = real.sum(1).cumsum(0)
    return {
        "input_ids": batch["input_ids"][real][None],
        "cu_seq_lens_q": torch.cat([ends.new_zeros(1), ends]).int(),
    }


@pytest.fixture
def layers_run(request):
    """Numbers of the layers that run in a call, as a list; to be given a model."""
    handles = []

    def watch(model):
        run = []
        for number, layer in enumerate(layers_of(model.encoder, LAYERS), 1):
            hook = layer.register_forward_hook(lambda *_, number=number: run.append(number))
            handles.append(hook)
        return run

    yield watch
    for handle in handles:
        handle.remove()


def expected_of(model, batch, name):
    """From all hidden states of the whole encoder, as transformers gives them."""
    hidden = model.encoder(**batch, output_hidden_states=True).hidden_states
    head, task = model.heads[name], model.config.tasks[name]
    x = hidden[task.layer or LAYERS]
    if not head.per_token:
        x = pool((x,), TextLayout(mask=batch["attention_mask"]), head.pooling)
    return head(x)


@torch.no_grad()
def test_heads_read_the_hidden_states_of_every_encoder(kind, make_model, batch_of):
    model = make_model(kind, TASKS, **sizes(kind)).eval()
    batch = batch_of(model, LENGTHS, extra=3)
    real = batch["attention_mask"].bool()
    alone, every = values_of(model, batch, tasks=LOW), values_of(model, batch)
    assert can_watch(model.encoder) == (kind not in RUN_WHOLE)
    for name in TASKS:
        expected = expected_of(model, batch, name)
        expected = expected[real] if expected.dim() == 3 else expected
        for values in (alone, every) if name in LOW else (every,):
            of_task = values[name][real] if values[name].dim() == 3 else values[name]
            assert_close(of_task, expected, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)


def test_alone_padded_and_packed_are_the_same_in_every_encoder(kind, make_model, batch_of):
    model = make_model(kind, TASKS, **sizes(kind)).eval()
    batch = batch_of(model, LENGTHS, extra=3)
    real = batch["attention_mask"].bool()
    padded, unpadded = (values_of(model, b, tasks=LOW) for b in (batch, packed(batch)))
    for name, values in padded.items():
        expected = values[real][None] if values.dim() == 3 else values
        assert_close(unpadded[name], expected, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)
    alone = values_of(model, {k: v[1:2, :5] for k, v in batch.items()}, tasks=LOW)
    for name, values in padded.items():
        assert_close(alone[name][0], values[1][:5] if name == "slots" else values[1],
                     atol=1e-5, rtol=1e-5)  # fmt: skip


def test_layers_above_do_not_run(model, batch_of, layers_run):
    batch, run = batch_of(model, LENGTHS), layers_run(model)
    values_of(model, packed(batch))  # the first call asks the encoder what it can do
    for tasks, depth in ((["intent"], 1), (LOW, 2), (["intent", "choice"], 4), ((), 4)):
        for inputs in (batch, packed(batch)):
            run.clear()
            values_of(model, inputs, tasks=tasks)
            assert run == list(range(1, depth + 1)), tasks
    run.clear()
    values_of(model, batch, task_ids=torch.tensor([0, 1, 1]))
    assert run == [1, 2]


def test_an_output_has_last_states_only_where_they_were_computed(model, batch_of):
    batch = batch_of(model, LENGTHS)
    low = model(**batch, tasks=LOW)
    assert low.last_hidden_state is None
    assert low.hidden_states is None
    whole = model(**batch, tasks=LOW, output_hidden_states=True)
    assert len(whole.hidden_states) == LAYERS + 1
    assert whole.last_hidden_state.equal(model(**batch).last_hidden_state)
    for name in ("intent", "slots"):
        assert whole.logits[name].equal(low.logits[name])
    model.encoder.set_attn_implementation("eager")
    assert len(model(**batch, tasks=LOW, output_attentions=True).attentions) == LAYERS


@pytest.mark.parametrize("layers", [[0, 1, 2, 3], [2, 3], [1]])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert"])
def test_each_task_through_its_adapter(kind, layers, make_model, batch_of):
    options = {"r": 4, "init_lora_weights": False, "target_modules": "all-linear"}
    low = min(layers) < 2
    tasks = {**TASKS, "other": TASKS["slots" if low else "plain"]}
    model = make_model(kind, tasks, **sizes(kind)).eval()
    attach_adapters(model, {"other": {**options, "layers": layers}, "plain": {**options}})
    batch = batch_of(model, LENGTHS, extra=3)
    real = batch["attention_mask"].bool()
    chosen = [*LOW, "other"]  # below all adapted layers, or with some of them
    one_by_one = {name: values_of(model, batch, tasks=[name])[name] for name in tasks}
    if low:
        assert (one_by_one["other"] - one_by_one["slots"]).abs().max() > 1e-3
    together = values_of(model, batch, tasks=chosen), values_of(model, batch)
    unpadded = values_of(model, packed(batch), tasks=chosen), values_of(model, packed(batch))
    for name, expected in one_by_one.items():
        for values in together if name in chosen else together[1:]:
            assert_close(values[name], expected, atol=1e-5, rtol=1e-5)
        expected = expected[real][None] if expected.dim() == 3 else expected
        for values in unpadded if name in chosen else unpadded[1:]:
            assert_close(values[name], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_gradients_are_those_of_the_whole_encoder(checkpointing, kind, make_model, batch_of):
    model = make_model(kind, TASKS, **sizes(kind)).train()
    batch = batch_of(model, LENGTHS)
    labels = {"slots": batch["input_ids"] % 3, "intent": torch.tensor([0, 2, 1])}

    def gradients(**options):
        model.zero_grad()
        model(**batch, labels=labels, **options).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    for head in model.heads.values():
        head.eval()  # no dropout
    expected = gradients(output_hidden_states=True)
    if checkpointing:
        model.activation_checkpointing_enable()
    actual = gradients(tasks=["slots", "intent"])
    assert actual.keys() == expected.keys()
    assert not any(".3." in name for name in actual)
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


def test_windows_are_pooled_as_without_parts(make_model, batch_of):
    windows = {"labels": LABELS, "long_texts": "windows"}
    tasks = {
        "low": TaskConfig(head="sequence_classification", layer=1, **windows),
        "high": TaskConfig(head="sequence_classification", **windows),
        "slots": TASKS["slots"],
    }
    model = make_model("bert", tasks, **sizes("bert")).eval()
    batch, counts = batch_of(model, LENGTHS), torch.tensor([2, 1])
    for chosen in (["low"], ["low", "high"], ["low", "slots"]):
        rows = values_of(model, batch, tasks=chosen)
        for inputs in (batch, packed(batch)):
            texts = values_of(model, inputs, tasks=chosen, window_counts=counts)
            expected = torch.stack([rows["low"][:2].mean(0), rows["low"][2]])
            assert_close(texts["low"], expected, atol=1e-5, rtol=1e-5)
        with torch.enable_grad():
            loss = model(**batch, tasks=chosen, window_counts=counts, labels={"low": counts}).loss
        loss.backward()


def test_saved_copied_and_pickled_it_is_the_same(model, batch_of, tmp_path):
    batch = batch_of(model, LENGTHS)
    expected = values_of(model, batch, tasks=LOW)
    model.save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path).eval()
    assert again.config.tasks == TASKS
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        actual = values_of(other, batch, tasks=LOW)
        assert all(v.equal(expected[name]) for name, v in actual.items())


def test_a_view_reads_its_layer(model, batch_of, layers_run):
    batch = batch_of(model, LENGTHS)
    view, expected = model.view("slots"), values_of(model, batch)["slots"]
    run = layers_run(model)
    with torch.no_grad():
        assert view(**batch).logits.equal(expected)
    assert run == [1, 2]
    assert view(**batch, output_hidden_states=True).hidden_states[2].shape == (3, 12, 32)


def test_a_task_that_comes_later_reads_its_layer(model, batch_of):
    model.add_task("late", TaskConfig(head="embedding", layer=3, normalize=False))
    batch = batch_of(model, LENGTHS)
    states = model(**batch, output_hidden_states=True).hidden_states[3]
    expected = pool((states,), TextLayout(mask=batch["attention_mask"]), "mean")
    assert model(**batch, tasks=["late"]).embeddings["late"].equal(expected)


def test_threads_that_read_different_layers_do_not_meet(model, batch_of):
    batch, calls = batch_of(model, LENGTHS), [["intent"], LOW, ["plain"], [*LOW, "plain"]]
    expected = [values_of(model, batch, tasks=tasks) for tasks in calls]
    wrong = []

    def call(number):
        for turn in range(20):
            which = (number + turn) % len(calls)
            values = values_of(model, batch, tasks=calls[which])
            if any(not v.equal(expected[which][name]) for name, v in values.items()):
                wrong.append(which)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_adapter_above_what_its_task_reads_is_refused(model):
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    message = r"begins at layer 2 \(from 0\), above the 2 that task 'slots' reads \(layer: 2\)"
    with pytest.raises(ValueError, match=message):
        attach_adapters(model, {"slots": {"r": 4, "layers": [2, 3]}})
    assert model.config.adapters == []
    assert weights.keys() == model.state_dict().keys()
    attach_adapters(model, {"plain": {"r": 4, "layers": [2, 3], "name": "top"}})
    with pytest.raises(ValueError, match=message):
        attach_adapters(model, {"slots": "top"})


def test_what_does_not_go_with_it(make_model):
    options = {"head": "sequence_classification", "labels": LABELS}
    for layer, message in ((0, "layer is 0; the layers of an encoder count from 1"),
                           (2.5, "layer is 2.5")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            TaskConfig(**options, layer=layer)
    with pytest.raises(ValueError, match="layer reads one layer, layer_mix all"):
        TaskConfig(**options, layer=1, layer_mix=True)
    with pytest.raises(ValueError, match="layer belongs to .*, not to masked_lm"):
        TaskConfig(head="masked_lm", layer=1)
    with pytest.raises(ValueError, match="layer is 3; this encoder has layers 1 to 2"):
        make_model("bert", {"intent": TaskConfig(**options, layer=3)})
    deep = TaskConfig(**options, layer=3, pooling="mean_last_4")
    with pytest.raises(ValueError, match="layer reads one layer, pooling mean_last_4 several"):
        make_model("bert", {"intent": deep}, num_hidden_layers=4)
    with pytest.raises(ValueError, match="layer reads layers of the encoder below the experts"):
        make_model("bert", {"x": TaskConfig(**options, layer=1)}, experts={"kind": "mmoe"})
