"""Routing where it may go wrong: dropout, unlike adapters, autocast, compilation, ranks."""

import copy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_encoder_config
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter_from_state_dict
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from polyhead.modeling.adapters import adapter_state
from polyhead.modeling.routing import first_adapted_layer
from polyhead.train.adapters import attach_adapters, blend_adapters, merged_encoder
from test_adapters import LORA, TASK_IDS, batch, model_with_adapters, reference
from torch import nn

ENCODERS = ("bert", "modernbert", "llama")


class FixedMask(nn.Module):
    """Dropout with one mask for every token, another for each adapter."""

    def __init__(self, adapter):
        super().__init__()
        self.shift = len(adapter)

    def forward(self, x):
        mask = (torch.arange(x.shape[-1]) + self.shift) % 3 > 0
        return x * mask / (2 / 3) if self.training else x


def unlike_adapters(kind="bert"):
    """Adapters of other rank, other scaling, other layers, and with a bias."""
    section = {"first": {**LORA, "r": 2}, "second": {**LORA, "r": 6, "lora_alpha": 3}}
    section["third"] = {**LORA, "layers": [1], "lora_bias": kind == "bert"}
    torch.manual_seed(0)
    config = tiny_encoder_config(kind, num_hidden_layers=4)
    config.is_causal = False
    task = {"head": "sequence_classification", "labels": ["x", "y", "z"], "dropout": 0.0}
    tasks = {name: TaskConfig(**task) for name in section}
    model = PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks)).eval()
    plain = PolyheadModel(model.config).eval()
    plain.load_state_dict(model.state_dict())
    attach_adapters(model, section)
    return model.eval(), plain.encoder


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_adapters_unlike_each_other_share_a_batch(kind, layout):
    model, plain = unlike_adapters(kind)
    inputs = batch()
    output = model(**inputs[layout], task_ids=TASK_IDS)
    sum(logits.square().sum() for logits in output.logits.values()).backward()
    for number, name in enumerate(model.task_names):
        encoder, expected = reference(model, plain, name, inputs["padded"])
        assert torch.allclose(output.logits[name], expected[number == TASK_IDS], atol=1e-5)
        expected[number == TASK_IDS].square().sum().backward()
        gradients = {
            key.removeprefix("base_model.model.").replace(".default.", f".{name}."): p.grad
            for key, p in encoder.named_parameters()
            if p.grad is not None
        }
        assert gradients
        for key, gradient in gradients.items():
            routed = model.encoder.get_parameter(key).grad
            assert torch.allclose(routed, gradient, atol=1e-5), key


@pytest.mark.parametrize(
    "ids",
    [
        [0, 1, 0, 1, 0, 1, 0, 1],  # stretches of one length
        [0, 0, 0, 0, 0, 0, 1, 0],  # rows of a padded batch as parts
        [0, 1, 2, 2, 2, 2, 2, 2],  # few rows have an adapter
        [1, 1, 1, 1, 1, 1, 1, 1],
    ],
)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_any_mix_of_rows_equals_plain_peft(ids, layout):
    model, plain = model_with_adapters()
    inputs, task_ids = batch(), torch.tensor(ids)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            output = model(**inputs[layout], task_ids=task_ids)
        for number, name in enumerate(model.task_names):
            if (task_ids == number).any():
                expected = reference(model, plain, name, inputs["padded"])[1][number == task_ids]
                assert torch.allclose(output.logits[name], expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_with_the_same_dropout_mask_training_equals_plain_peft(kind, layout):
    section = {**LORA, "lora_dropout": 0.5}
    model, plain = model_with_adapters(kind, section)
    inputs = batch()

    def fix_masks(module, adapter=None):
        for part in module.modules():
            for name in list(getattr(part, "lora_dropout", {})):
                part.lora_dropout[name] = FixedMask(adapter or name)
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        return module.train()

    fix_masks(model)
    output = model(**inputs[layout], task_ids=TASK_IDS)
    sum(logits.square().sum() for logits in output.logits.values()).backward()
    without = model.eval()(**inputs[layout], task_ids=TASK_IDS)
    for number, name in enumerate(["first", "second"]):
        encoder, _ = reference(model, plain, name, inputs["padded"])
        fix_masks(encoder, name)
        states = encoder(**inputs["padded"]).last_hidden_state
        mask = inputs["padded"]["attention_mask"].unsqueeze(-1)
        expected = model.heads[name].out((states * mask).sum(1) / mask.sum(1))[number == TASK_IDS]
        assert torch.allclose(output.logits[name], expected, atol=1e-4)
        assert not torch.allclose(without.logits[name], expected, atol=1e-3)
        expected.square().sum().backward()
        for key, parameter in encoder.named_parameters():
            if parameter.grad is not None:
                path = key.removeprefix("base_model.model.").replace(".default.", f".{name}.")
                gradient = model.encoder.get_parameter(path).grad
                assert torch.allclose(gradient, parameter.grad, atol=1e-4), key


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_autocast_is_close_and_its_gradients_are_float32(layout):
    model, _ = model_with_adapters()
    inputs = batch()[layout]
    exact = model(**inputs, task_ids=TASK_IDS).logits
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(**inputs, task_ids=TASK_IDS).logits
        for name in exact:
            assert rounded[name].dtype == torch.bfloat16
            assert torch.allclose(rounded[name].float(), exact[name], atol=0.1)
    sum(logits.float().square().sum() for logits in rounded.values()).backward()
    gradients = [p.grad for k, p in model.named_parameters() if "lora_" in k]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_compiled_once_for_all_mixes_of_rows(layout):
    model, _ = model_with_adapters(layers=2)
    inputs = batch()[layout]
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    compiled, graphs = torch.compile(model, backend="eager"), []
    for shift in range(4):
        ids = TASK_IDS.roll(shift)
        with torch.no_grad():
            actual, expected = (m(**inputs, task_ids=ids).logits for m in (compiled, model))
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert len(set(graphs)) == 1, graphs


def test_merged_and_unmerged_by_peft_itself_the_logits_come_back():
    model, plain = model_with_adapters()
    inputs = batch()["padded"]
    with torch.no_grad():
        expected = model(**inputs, tasks=["first"]).logits["first"]
        layers = [m for m in model.encoder.modules() if hasattr(m, "lora_A")]
        for layer in layers:
            layer.merge(adapter_names=["first"])
        states = model.encoder(**inputs).last_hidden_state  # no plan: PEFT's own forward
        mask = inputs["attention_mask"].unsqueeze(-1)
        merged = model.heads["first"].out((states * mask).sum(1) / mask.sum(1))
        assert torch.allclose(merged, expected, atol=1e-4)
        for layer in layers:
            layer.unmerge()
        again = model(**inputs, tasks=["first"]).logits["first"]
        assert torch.allclose(again, expected, atol=1e-5)
        bare = model(**inputs, tasks=()).last_hidden_state
        assert torch.allclose(bare, plain(**inputs).last_hidden_state, atol=1e-5)


def test_a_merged_model_is_not_saved(tmp_path):
    model, _ = model_with_adapters()
    layers = [m for m in model.encoder.modules() if hasattr(m, "lora_A")]
    for layer in layers:
        layer.merge(adapter_names=["first"])
    for call in (
        lambda: model.save_pretrained(tmp_path / "model"),
        lambda: merged_encoder(model, "second"),
        lambda: merged_encoder(model, None),
    ):
        with pytest.raises(ValueError, match="adapter first is merged into the encoder's weights"):
            call()
    assert not (tmp_path / "model").exists()
    for layer in layers:
        layer.unmerge()
    model.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_disabled_by_peft_are_disabled_whatever_their_kind(dora):
    model, plain = model_with_adapters(section={**LORA, "use_dora": dora})
    inputs = batch()["padded"]
    layers = [m for m in model.encoder.modules() if hasattr(m, "lora_A")]
    with torch.no_grad():
        expected = model(**inputs, tasks=["first"]).last_hidden_state
        for layer in layers:
            layer.enable_adapters(False)
        bare = model(**inputs, tasks=["first"]).last_hidden_state
        assert torch.allclose(bare, plain(**inputs).last_hidden_state, atol=1e-5)
        for layer in layers:
            layer.enable_adapters(True)
        assert torch.equal(model(**inputs, tasks=["first"]).last_hidden_state, expected)


def test_an_adapter_hotswapped_by_peft_is_routed():
    model, _ = model_with_adapters()
    inputs = batch()["padded"]
    state = adapter_state(model.encoder, "first")
    state = {
        key.removeprefix("base_model.model.").replace(".weight", ".second.weight"): value.clone()
        for key, value in state.items()
    }
    config = model.encoder.peft_config["first"]
    hotswap_adapter_from_state_dict(model.encoder, state, "second", config)
    model.heads["second"].load_state_dict(model.heads["first"].state_dict())
    with torch.no_grad():
        logits = model(**inputs, tasks=["first", "second"]).logits
    assert torch.allclose(logits["first"], logits["second"], atol=1e-6)


def test_a_blend_of_adapters_is_that_of_plain_peft(tmp_path):
    model, plain = model_with_adapters()
    inputs = batch()["padded"]
    theirs = get_peft_model(plain, copy.copy(model.encoder.peft_config["first"]), "first")
    theirs.add_adapter("second", copy.copy(model.encoder.peft_config["second"]))
    for name in ("first", "second"):
        set_peft_model_state_dict(theirs, adapter_state(model.encoder, name), adapter_name=name)
    theirs.add_weighted_adapter(["first", "second"], [0.7, 0.3], "blend", "linear")
    theirs.set_adapter("blend")
    with pytest.raises(ValueError, match="unknown: nope, fourth"):
        blend_adapters(model, "blend", {"first": 0.7, "nope": 0.3}, ["fourth"])
    blend_adapters(model, "blend", {"first": 0.7, "second": 0.3}, ["third"])
    with torch.no_grad():
        output = model(**inputs, tasks=["third"])
        expected = theirs.eval()(**inputs).last_hidden_state
        assert torch.allclose(output.last_hidden_state, expected, atol=1e-5)
        mixed = model(**inputs, task_ids=TASK_IDS).logits["third"]
        assert torch.allclose(mixed, output.logits["third"][TASK_IDS == 2], atol=1e-5)
        model.save_pretrained(tmp_path)
        again = PolyheadModel.from_pretrained(tmp_path)(**inputs, tasks=["third"])
        assert torch.equal(again.logits["third"], output.logits["third"])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_adapters_on_the_token_embeddings_are_routed(layout):
    model, plain = model_with_adapters()
    config = LoraConfig(target_modules=["word_embeddings", "query"], **LORA)
    for name in ("first", "second"):
        model.detach_adapter(name)
    for name in ("first", "second"):
        model.attach_adapter(name, copy.copy(config), [name])
    inputs = batch()
    with torch.no_grad():
        mixed = model.eval()(**inputs[layout], task_ids=TASK_IDS).logits
        copied = model(**inputs[layout]).logits
        for number, name in enumerate(model.task_names):
            expected = reference(model, plain, name, inputs["padded"])[1]
            assert torch.allclose(mixed[name], expected[number == TASK_IDS], atol=1e-5)
            assert torch.allclose(copied[name], expected, atol=1e-5)


def test_below_the_layers_of_the_adapters_asked_for_nothing_is_copied():
    sections = {
        "deep": {**LORA, "layers": [0]},
        "top1": {**LORA, "layers": "top 1"},
        "top2": {**LORA, "layers": "top 1"},
    }
    config = tiny_encoder_config("bert", num_hidden_layers=4)
    tasks = {name: TaskConfig(head="embedding") for name in sections}
    model = PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks)).eval()
    attach_adapters(model, sections)
    assert first_adapted_layer(model.encoder, ["top1", "top2", None]) == 3
    assert first_adapted_layer(model.encoder, ["top1", "deep"]) == 0
    rows = []
    for layer in model.encoder.encoder.layer:
        layer.register_forward_hook(lambda _, args, output: rows.append(len(output)))
    with torch.no_grad():
        model(**batch()["padded"], tasks=["top1", "top2"])
    assert rows == [8, 8, 8, 16]


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_step_on_one_task_leaves_everything_of_the_others_alone(kind):
    model, _ = model_with_adapters(kind)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    labels = {"second": torch.zeros(8, dtype=torch.long)}
    ids = torch.ones(8, dtype=torch.long)
    model(**batch()["packed"], task_ids=ids, labels=labels).loss.backward()
    optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert any("lora_A.second" in key for key in moved)
    assert any(key.startswith("heads.second") for key in moved)
    assert not [k for k in moved if ".first." in k or k.startswith(("heads.first", "heads.third"))]
    names = {id(p): k for k, p in model.named_parameters()}
    assert not [p for p in optimizer.state if ".first." in names[id(p)]]


@pytest.mark.slow
def test_sixty_four_adapters_load_route_and_save(tmp_path):
    names = [f"task{number}" for number in range(64)]
    config = tiny_encoder_config("bert", num_hidden_layers=2)
    tasks = {name: TaskConfig(head="sequence_classification", labels=["x", "y"]) for name in names}
    model = PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks)).eval()
    attach_adapters(model, dict.fromkeys(names, {**LORA, "target_modules": ["query"]}))
    model.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("adapters/*/adapter_model.safetensors"))) == 64
    loaded = PolyheadModel.from_pretrained(tmp_path)
    assert loaded.loaded_adapters == model.loaded_adapters
    assert sorted(loaded.loaded_adapters) == sorted(names)
    inputs = {k: v.repeat(8, 1) for k, v in batch()["padded"].items()}  # 64 rows
    ids = torch.arange(64).flip(0)
    with torch.no_grad():
        mixed, again = (m(**inputs, task_ids=ids).logits for m in (model, loaded))
        for row in (0, 17, 63):
            name = names[ids[row]]
            alone = {k: v[row : row + 1] for k, v in inputs.items()}
            expected = model(**alone, tasks=[name]).logits[name]
            assert torch.allclose(mixed[name], expected, atol=1e-5)
    assert all(torch.equal(mixed[name], again[name]) for name in names)


@pytest.mark.parametrize("name", ["layer", "query", "attention", "embeddings"])
def test_an_adapter_is_not_named_as_a_module_of_the_encoder(name):
    task = {"head": "sequence_classification", "labels": ["x", "y"]}
    config = PolyheadConfig(
        encoder_config=tiny_encoder_config("bert"), tasks={name: TaskConfig(**task)}
    )
    model = PolyheadModel(config)
    before = [key for key, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=f"'{name}' is that of a module in the encoder"):
        model.attach_adapter(name, LoraConfig(target_modules=["query"]), [name])
    assert [key for key, _ in model.named_parameters()] == before
    model.attach_adapter(f"{name}_lora", LoraConfig(target_modules=["query"]), [name])


RANKS = """
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path[:0] = {tests!r}
from test_adapters import TASK_IDS, batch, model_with_adapters

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
NAMES = ["first", "second", "third"]
NUM_ITEMS = {{n: (TASK_IDS == i).sum().float() for i, n in enumerate(NAMES)}}


def loss_of(model, rows):
    inputs = {{k: v[rows] for k, v in batch()["padded"].items()}}
    ids = TASK_IDS[rows]
    labels = {{n: LABELS[rows][ids == i] for i, n in enumerate(NAMES) if (ids == i).any()}}
    return model(**inputs, task_ids=ids, labels=labels, num_items=NUM_ITEMS).loss


def work(rank, port):
    place = f"tcp://127.0.0.1:{{port}}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    model, _ = model_with_adapters()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    # the first rank has no row of `second`, the other none of `first`
    own = [0, 1, 4, 5, 6] if rank == 0 else [2, 3, 7]
    (2 * loss_of(wrapped, own)).backward()
    whole, _ = model_with_adapters()
    loss_of(whole, list(range(8))).backward()
    expected = {{k: p.grad for k, p in whole.named_parameters() if p.grad is not None}}
    assert any("lora_A.second" in key for key in expected)
    for key, parameter in model.named_parameters():
        if key in expected:
            assert torch.allclose(parameter.grad, expected[key], atol=1e-5), key
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, args=(int(sys.argv[1]),), nprocs=2)
"""


@pytest.mark.slow
def test_two_ranks_with_different_adapters_give_the_gradients_of_one(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(tests=[str(folder) for folder in Path(__file__).parents[:2]]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = subprocess.run(
        [sys.executable, script, str(port)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
