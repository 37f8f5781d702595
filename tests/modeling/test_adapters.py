"""Per-row adapters: the same numbers as plain PEFT with one adapter at a time, and nothing lost."""

import copy
import re
import subprocess
import sys

import pytest
import torch
from conftest import tiny_encoder_config
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from polyhead.modeling.adapters import adapter_state, inject
from polyhead.modeling.packing import cumulative
from polyhead.modeling.routing import first_adapted_layer
from polyhead.train.adapters import adapter_faults, attach_adapters, peft_config
from safetensors.torch import load_file
from transformers import AutoModel

LENGTHS = [3, 5, 5, 12, 20, 2, 7, 9]
TASK_IDS = torch.tensor([2, 0, 1, 1, 0, 2, 0, 1])  # task 2 has no adapter
KINDS = ("bert", "distilbert", "modernbert", "llama", "mpnet", "deberta-v2", "albert")
LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}


def batch():
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 90, (n,), generator=generator) for n in LENGTHS]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    padded = {"input_ids": ids, "attention_mask": mask}
    packed = {
        "input_ids": torch.cat(rows)[None],
        "cu_seq_lens_q": cumulative(torch.tensor(LENGTHS)),
    }
    return {"padded": padded, "packed": packed}


def model_with_adapters(kind="bert", section=LORA, layers=4):
    torch.manual_seed(0)
    config = tiny_encoder_config(kind, num_hidden_layers=layers)
    config.is_causal = False
    task = {"head": "sequence_classification", "labels": ["x", "y", "z"], "dropout": 0.0}
    tasks = {name: TaskConfig(**task) for name in ("first", "second", "third")}
    model = PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks)).eval()
    plain = copy.deepcopy(model.encoder)
    attach_adapters(model, {"first": dict(section), "second": dict(section), "third": None})
    return model.eval(), plain


def reference(model, plain, name, inputs):
    """All rows through plain PEFT with the task's adapter alone, and the task's head."""
    encoder = copy.deepcopy(plain)
    adapter = model.config.tasks[name].adapter
    if adapter is not None:
        encoder = get_peft_model(encoder, copy.copy(model.encoder.peft_config[adapter]))
        report = set_peft_model_state_dict(encoder, adapter_state(model.encoder, adapter))
        assert not report.unexpected_keys
        encoder.eval()
    states = encoder(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return encoder, model.heads[name].out((states * mask).sum(1) / mask.sum(1))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_rows_equal_plain_peft_row_by_row(kind, layout):
    model, plain = model_with_adapters(kind)
    inputs = batch()
    with torch.no_grad():
        output = model(**inputs[layout], task_ids=TASK_IDS)
        for number, name in enumerate(model.task_names):
            expected = reference(model, plain, name, inputs["padded"])[1][number == TASK_IDS]
            assert torch.allclose(output.logits[name], expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(
    ("kind", "layers"),
    # ALBERT's layers are one shared group: there is no top
    [(k, part) for k in KINDS for part in ("all", "top") if (k, part) != ("albert", "top")],
)
def test_one_text_for_tasks_of_several_adapters_equals_plain_peft(kind, layout, layers):
    section = LORA if layers == "all" else {**LORA, "layers": "top 2"}
    model, plain = model_with_adapters(kind, section)
    inputs = batch()
    with torch.no_grad():
        output = model(**inputs[layout])
        for name in model.task_names:
            expected = reference(model, plain, name, inputs["padded"])[1]
            assert torch.allclose(output.logits[name], expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama"])
def test_gradients_of_a_mixed_batch_equal_plain_peft(kind, layout):
    model, plain = model_with_adapters(kind)
    inputs = batch()
    output = model(**inputs[layout], task_ids=TASK_IDS)
    sum(logits.square().sum() for logits in output.logits.values()).backward()
    for number, name in enumerate(["first", "second"]):
        encoder, logits = reference(model, plain, name, inputs["padded"])
        logits[number == TASK_IDS].square().sum().backward()
        expected = {
            key.removeprefix("base_model.model.").replace(".default.", f".{name}."): p.grad
            for key, p in encoder.named_parameters()
            if p.grad is not None
        }
        gradients = {k: p.grad for k, p in model.encoder.named_parameters() if f".{name}." in k}
        assert gradients.keys() == expected.keys()
        for key, gradient in gradients.items():
            assert torch.allclose(gradient, expected[key], atol=1e-5), key


@pytest.mark.parametrize(
    "section",
    [
        {**LORA, "use_dora": True},
        {**LORA, "use_rslora": True},
        {"type": "ia3", "feedforward_modules": [], "target_modules": ["query", "value"]},
    ],
    ids=["dora", "rslora", "ia3"],
)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_other_kinds_of_adapter_equal_plain_peft(section, layout):
    model, plain = model_with_adapters("bert", section)
    inputs = batch()
    with torch.no_grad():
        for parameter in model.encoder.parameters():  # IA3 starts at 1: no adapter at all
            if parameter.requires_grad and parameter.dim() == 2 and 1 in parameter.shape:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
        output = model(**inputs[layout], task_ids=TASK_IDS)
        for number, name in enumerate(model.task_names):
            expected = reference(model, plain, name, inputs["padded"])[1][number == TASK_IDS]
            assert torch.allclose(output.logits[name], expected, atol=1e-5)


def test_layers_below_the_first_adapter_see_each_text_once():
    model, _ = model_with_adapters("bert", {**LORA, "layers": "top 2"})
    assert first_adapted_layer(model.encoder, ["first", "second", None]) == 2
    rows = []
    for layer in model.encoder.encoder.layer:
        layer.register_forward_hook(lambda _, args, output: rows.append(len(output)))
    with torch.no_grad():
        model(**batch()["padded"])
    assert rows == [8, 8, 24, 24]  # 8 texts, 3 adapters (one of them none)


def test_states_come_back_in_the_callers_order():
    model, plain = model_with_adapters("bert", {**LORA, "init_lora_weights": True})  # B = 0
    inputs = batch()
    with torch.no_grad():
        expected = plain(**inputs["padded"]).last_hidden_state
        states = model(**inputs["padded"], task_ids=TASK_IDS).last_hidden_state
        packed = model(**inputs["packed"], task_ids=TASK_IDS).last_hidden_state
        copied = model(**inputs["padded"]).last_hidden_state
    real = inputs["padded"]["attention_mask"].bool()
    assert torch.allclose(states[real], expected[real], atol=1e-5)
    assert torch.allclose(packed[0], expected[real], atol=1e-5)
    assert copied is None  # three encodings of each text: none is the one


def test_no_task_is_the_bare_encoder():
    model, plain = model_with_adapters()
    inputs = batch()["padded"]
    with torch.no_grad():
        states = model(**inputs, tasks=()).last_hidden_state
        assert torch.equal(states, plain(**inputs).last_hidden_state)


def test_checkpointed_recomputation_goes_through_the_same_adapters():
    gradients = []
    for checkpointing in (False, True):
        model, _ = model_with_adapters()
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        inputs = batch()["padded"]
        first = model(**inputs, task_ids=TASK_IDS).logits["first"].square().sum()
        second = model(**inputs, tasks=["second"]).logits["second"].square().sum()
        (first + second).backward(retain_graph=True)  # the plan of the last forward is the second
        first.backward()  # recomputes once more, as the gradients of each task do
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert all(torch.allclose(plain[k], recomputed[k], atol=1e-5) for k in plain)


def test_adapter_dropout_is_on_in_training_only():
    model, _ = model_with_adapters(section={**LORA, "lora_dropout": 0.5})
    inputs = batch()["padded"]
    runs = [
        model.train(mode)(**inputs, tasks=["first"]).logits["first"]
        for mode in (True, True, False, False)
    ]
    assert not torch.equal(runs[0], runs[1])
    assert torch.equal(runs[2], runs[3])


def test_a_step_on_one_task_leaves_the_other_adapter_and_its_state_alone():
    model, _ = model_with_adapters()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inputs = batch()["padded"]
    only = torch.zeros(8, dtype=torch.long)
    model(
        **inputs, task_ids=only, labels={"first": torch.zeros(8, dtype=torch.long)}
    ).loss.backward()
    optimizer.step()
    after = model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert any(".first." in k for k in moved)
    assert not any(".second." in k or k.startswith(("heads.second", "heads.third")) for k in moved)
    names = {id(p): k for k, p in model.named_parameters()}
    assert not any(".second." in names[id(p)] for p in optimizer.state)


# ---- saving and loading ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    model, plain = model_with_adapters("bert", {**LORA, "layers": "top 2"})
    model.save_pretrained(folder / "model")
    plain.save_pretrained(folder / "encoder")
    return folder, model, plain


def test_loaded_again_all_logits_are_the_same_to_the_bit(saved):
    folder, model, _ = saved
    loaded = PolyheadModel.from_pretrained(folder / "model")
    inputs = batch()["padded"]
    with torch.no_grad():
        for actual, expected in zip(
            loaded(**inputs).logits.items(), model(**inputs).logits.items(), strict=True
        ):
            assert actual[0] == expected[0]
            assert torch.equal(actual[1], expected[1])
    loaded.save_pretrained(folder / "again")
    for name in (
        "model.safetensors",
        *(f"adapters/{a}/adapter_model.safetensors" for a in ("first", "second")),
    ):
        assert (folder / "again" / name).read_bytes() == (folder / "model" / name).read_bytes()


@pytest.mark.parametrize("kind", ["modernbert", "llama"])
def test_saved_loaded_and_saved_again_the_files_are_the_same(kind, tmp_path):
    model, _ = model_with_adapters(kind)
    model.save_pretrained(tmp_path / "first")
    loaded = PolyheadModel.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    for path in (tmp_path / "first").rglob("*.safetensors"):
        again = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert path.read_bytes() == again.read_bytes()
    inputs = batch()["packed"]
    with torch.no_grad():
        actual, expected = (m(**inputs, task_ids=TASK_IDS).logits for m in (loaded, model))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_weights_file_is_that_of_the_plain_model(saved):
    folder, _, plain = saved
    weights = load_file(folder / "model/model.safetensors")
    assert not any("lora" in key or "base_layer" in key for key in weights)
    encoder = {
        k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")
    }
    assert encoder.keys() == plain.state_dict().keys()
    assert all(torch.equal(encoder[k], v) for k, v in plain.state_dict().items())


def test_plain_peft_loads_one_adapter_on_the_plain_encoder(saved):
    folder, model, _ = saved
    encoder = AutoModel.from_pretrained(folder / "encoder", add_pooling_layer=False)
    peft_model = PeftModel.from_pretrained(encoder, folder / "model", subfolder="adapters/second")
    inputs = batch()["padded"]
    with torch.no_grad():
        states = peft_model.eval()(**inputs).last_hidden_state
        expected = model(**inputs, tasks=["second"]).last_hidden_state
    assert torch.allclose(states, expected, atol=1e-6)


@pytest.mark.slow
def test_a_stranger_with_peft_gets_the_same_logits(saved):
    folder, model, _ = saved
    code = f"""
import sys
sys.modules["polyhead"] = None
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained({str(folder / "model")!r}, trust_remote_code=True)
torch.save(model(torch.arange(5, 15)[None]).logits, {str(folder / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    logits = torch.load(folder / "logits.pt")
    expected = model(torch.arange(5, 15)[None]).logits
    assert all(torch.equal(logits[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_without_peft_loading_says_what_to_install(saved):
    folder, _, _ = saved
    code = f"""
import sys
sys.modules["polyhead"] = sys.modules["peft"] = None
from transformers import AutoModel
try:
    AutoModel.from_pretrained({str(folder / "model")!r}, trust_remote_code=True)
except ImportError as error:
    assert "pip install peft" in str(error), error
else:
    raise SystemExit("loaded without its adapters")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_adapters_of_chosen_tasks_are_loaded(saved):
    folder, model, _ = saved
    loaded = PolyheadModel.from_pretrained(folder / "model", tasks=["second", "third"])
    assert loaded.loaded_adapters == ["second"]
    inputs = batch()["padded"]
    with torch.no_grad():
        logits = loaded(**inputs, tasks=["second"]).logits["second"]
        assert torch.equal(logits, model(**inputs, tasks=["second"]).logits["second"])
    with pytest.raises(ValueError, match="adapter first is not loaded; loaded are: second"):
        loaded(**inputs, tasks=["first"])
    with pytest.raises(ValueError, match="adapter first is not loaded; saving loses it"):
        loaded.save_pretrained(folder / "lost")


def test_detached_the_encoder_is_plain_again_to_the_bit():
    model, plain = model_with_adapters()
    model.detach_adapter("first")
    model.detach_adapter("second")
    assert {t.adapter for t in model.config.tasks.values()} == {None}
    assert model.encoder.state_dict().keys() == plain.state_dict().keys()
    inputs = batch()["padded"]
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
        assert torch.equal(states, plain(**inputs).last_hidden_state)


# ---- refusals ----


def test_refused_adapters_leave_the_model_as_it_was():
    model, _ = model_with_adapters()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = peft_config(model, LORA)
    with pytest.raises(ValueError, match="unknown task 'nope'; this model has: first, second"):
        model.attach_adapter("extra", config, ["nope"])
    with pytest.raises(ValueError, match="adapter 'first' exists already"):
        model.attach_adapter("first", config, ["third"])
    with pytest.raises(ValueError, match="those here are"):
        model.attach_adapter("extra", IA3Config(target_modules=["query"]), ["third"])
    with pytest.raises(ValueError, match="unknown adapter 'nope'; there are: first, second"):
        model.detach_adapter("nope")
    with pytest.raises(ValueError, match="attach_adapter"):
        model.add_adapter(config)
    other = LoraConfig(r=2, target_modules=["query"])
    with pytest.raises(ValueError, match="adapter 'extra' does not fit this encoder"):
        inject(model.encoder, "extra", other, adapter_state(model.encoder, "first"))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert model.loaded_adapters == ["first", "second"]


def test_merged_adapters_are_not_added_twice():
    model, _ = model_with_adapters()
    for module in model.encoder.modules():
        if hasattr(module, "merge") and hasattr(module, "lora_A"):
            module.merge(adapter_names=["first"])
    with pytest.raises(ValueError, match=r"\['first'\] are merged; unmerge them"):
        model(**batch()["padded"], tasks=["first"])


@pytest.mark.parametrize(
    ("adapters", "fault"),
    [
        ({"a1": {"r": 8}, "b1": {"name": "a1", "r": 4}}, "tasks.b1.adapter: 'a1' is defined by a1"),
        ({"a1": {"r": 8}, "b1": "c1"}, "tasks.b1.adapter: there is no adapter 'c1'; defined: a1"),
        ({"a1": {"rank": 8}}, "tasks.a1.adapter: .*rank"),
        ({"a1": {"r": 8, "layers": "last 2"}}, "tasks.a1.adapter.layers: 'last 2'; write 'top 2'"),
        ({"a1": {"type": "prefix"}}, "tasks.a1.adapter.type: 'prefix'; allowed: lora, ia3"),
        ({"a1": {"r": 8}, "b1": {"type": "ia3"}}, r"several types \(ia3, lora\)"),
    ],
)
def test_faults_of_adapter_sections(adapters, fault):
    faults = adapter_faults(adapters)
    assert len(faults) == 1
    assert re.search(fault, faults[0]), faults


def test_tasks_share_an_adapter_by_its_name():
    assert adapter_faults({"a1": {"r": 8}, "b1": "a1", "c1": None}) == []
    config = tiny_encoder_config("bert")
    tasks = {n: TaskConfig(head="embedding") for n in ("a1", "b1", "c1")}
    model = PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks))
    attach_adapters(model, {"a1": {"r": 8}, "b1": "a1", "c1": None})
    assert model.loaded_adapters == ["a1"]
    assert [model.config.tasks[n].adapter for n in tasks] == ["a1", "a1", None]


def test_top_layers_are_written_out_as_module_names():
    model, _ = model_with_adapters("bert", {**LORA, "layers": "top 1"})
    targets = model.encoder.peft_config["first"].target_modules
    assert len(targets) == 6
    assert all(name.startswith("encoder.layer.3.") for name in targets)
    with pytest.raises(ValueError, match="the layers have: dense, key, query, value"):
        peft_config(model, {"target_modules": ["nope"]})
