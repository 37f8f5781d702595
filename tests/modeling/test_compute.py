"""How linear layers compute: chosen by measure, with the same numbers."""

import copy

import pytest
import torch
from peft import LoraConfig
from polyhead.modeling import PolyheadModel, TaskConfig, compute
from polyhead.modeling.compute import OneDNNLinear, set_compute
from torch import nn
from torch.testing import assert_close

TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["a", "b", "c"]),
    "tags": TaskConfig(head="token_classification", labels=["O", "B-x"]),
}
GFLOPS = {
    "onednn": {"torch": 50.0, "onednn": 100.0, "bf16": 20.0},
    "torch": {"torch": 100.0, "onednn": 105.0, "bf16": 20.0},  # a gain too small to take
    "bf16": {"torch": 50.0, "onednn": 100.0, "bf16": 200.0},
}


@pytest.fixture
def machine(monkeypatch):
    """A machine on which this way is the fastest."""

    def choose(fastest: str) -> None:
        monkeypatch.setattr(compute, "_measure", lambda *_: GFLOPS[fastest])
        monkeypatch.setattr(compute, "ROWS", 1)
        monkeypatch.setattr(compute, "WEIGHTS", 1)

    return choose


def linears(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


class TestChoice:
    @pytest.mark.parametrize(
        ("mode", "fastest", "chosen", "reason"),
        [
            ("auto", "onednn", {"onednn"}, "oneDNN is faster for 3 of 3 shapes"),
            ("auto", "torch", {"torch"}, "oneDNN is faster for 0 of 3 shapes"),
            ("auto", "bf16", {"onednn"}, "oneDNN is faster for 3 of 3 shapes"),  # fp32 stays fp32
            ("bf16", "bf16", {"bf16"}, "bf16 is faster here"),
            ("bf16", "torch", {"torch"}, "bf16 is not faster here; oneDNN is faster for 0 of 3"),
            ("exact", "onednn", set(), "as torch computes"),
        ],
    )
    def test_the_fastest_way_that_the_mode_allows(
        self, mode, fastest, chosen, reason, machine, make_model
    ):
        machine(fastest)
        model = make_model("bert", TASKS)
        choice = model.set_compute(mode)
        assert set(choice.chosen.values()) == chosen
        assert choice.reason.startswith(reason)
        changed = {type(m) for m in linears(model.encoder)}
        assert changed == ({OneDNNLinear} if chosen == {"onednn"} else {nn.Linear})
        assert {type(m) for m in linears(model.heads)} == {nn.Linear}

    def test_exact_takes_it_back(self, machine, make_model):
        machine("onednn")
        model = make_model("bert", TASKS)
        model.set_compute("auto")
        model.set_compute("exact")
        assert {type(m) for m in linears(model)} == {nn.Linear}

    def test_an_unknown_mode_changes_nothing(self, machine, make_model):
        machine("onednn")
        model = make_model("bert", TASKS)
        model.set_compute("auto")
        with pytest.raises(ValueError, match="compute is 'fp8'; allowed: exact, auto, bf16"):
            model.set_compute("fp8")
        assert model.compute.mode == "auto"
        assert OneDNNLinear in {type(m) for m in linears(model)}

    def test_weights_that_are_not_fp32_stay_with_torch(self, machine, make_model):
        machine("onednn")
        model = make_model("bert", TASKS).bfloat16()
        assert (
            model.set_compute("auto").reason == "as torch computes: the weights are torch.bfloat16"
        )

    def test_a_way_that_gives_other_numbers_has_no_speed(self, monkeypatch):
        monkeypatch.setattr(compute, "_product", lambda x, weight: 1.01 * (x @ weight.T))
        speed = compute._measure.__wrapped__(16, 24, ("torch", "onednn"), 1)
        assert speed["torch"] > 0
        assert speed["onednn"] == 0

    def test_speeds_of_large_layers_are_measured_once(self):
        before = compute._measure.cache_info().misses
        for _ in range(2):
            layers = nn.Sequential(nn.Linear(192, 384), nn.Linear(384, 192), nn.Linear(192, 8))
            choice = set_compute(layers, "auto")
        assert compute._measure.cache_info().misses == before + 2
        assert sorted(choice.chosen) == [(192, 384), (384, 192)]


class TestOneDNN:
    """Forward and gradients of the exchanged layers are those of torch."""

    def test_every_encoder_gives_the_same(self, kind, machine, make_model, batch_of):
        machine("onednn")
        plain = make_model(kind, TASKS)
        fast = copy.deepcopy(plain)
        fast.set_compute("auto")
        batch = batch_of(plain, [9, 5, 12])
        labels = {"intent": torch.tensor([0, 1, 2]), "tags": torch.zeros(3, 12, dtype=torch.long)}
        outputs = [model.eval()(**batch, labels=labels) for model in (plain, fast)]
        for name in TASKS:
            assert_close(outputs[1].logits[name], outputs[0].logits[name], rtol=1e-5, atol=1e-5)
        for output in outputs:
            output.loss.backward()
        pairs = zip(plain.named_parameters(), fast.named_parameters(), strict=True)
        for (name, one), (_, two) in pairs:
            assert (one.grad is None) == (two.grad is None), name
            if one.grad is not None:
                assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m)

    def test_weights_changed_later_count(self, machine):
        machine("onednn")
        layer = nn.Linear(8, 4)
        set_compute(layer, "auto")
        x = torch.randn(3, 8)
        with torch.no_grad():
            layer(x)
            layer.weight.data = torch.ones(4, 8)
            layer.bias.data.zero_()
            assert_close(layer(x), x.sum(1, keepdim=True).expand(3, 4))

    def test_rows_of_several_adapters(self, machine, make_model, batch_of):
        machine("onednn")
        model = make_model("bert", TASKS)
        for name in TASKS:
            config = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
            model.attach_adapter(name, config, [name])
        plain = copy.deepcopy(model)
        model.set_compute("auto")
        batch = batch_of(model, [9, 5, 12])
        with torch.no_grad():
            one, two = (m.eval()(**batch).logits for m in (plain, model))
        for name in TASKS:
            assert_close(two[name], one[name], rtol=1e-5, atol=1e-5)

    def test_what_is_saved_does_not_know_of_it(self, machine, make_model, tmp_path):
        machine("onednn")
        model = make_model("bert", TASKS)
        model.save_pretrained(tmp_path / "plain")
        model.set_compute("auto")
        model.save_pretrained(tmp_path / "fast")
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "plain" / name).read_bytes() == (
                tmp_path / "fast" / name
            ).read_bytes()
        assert PolyheadModel.from_pretrained(tmp_path / "fast").compute.mode == "exact"

    def test_compiled_code_is_torchs(self, machine, make_model, batch_of):
        machine("onednn")
        model = make_model("bert", TASKS).eval()
        batch = batch_of(model, [9, 5])
        model.set_compute("auto")
        program = torch.export.export(model.encoder, (), dict(batch))
        names = {str(node.target) for node in program.graph.nodes}
        assert not any("mkldnn" in name for name in names)


class TestBf16:
    def test_the_encoder_runs_in_it_and_heads_get_their_dtype(self, machine, make_model, batch_of):
        machine("bf16")
        model = make_model("bert", TASKS).eval()
        batch = batch_of(model, [9, 5, 12])
        with torch.no_grad():
            plain = model(**batch)
            model.set_compute("bf16")
            low = model(**batch)
        assert low.last_hidden_state.dtype == low.logits["intent"].dtype == torch.float32
        cosine = nn.functional.cosine_similarity
        near = cosine(plain.last_hidden_state[0], low.last_hidden_state[0], dim=-1)
        assert 0.999 < near.min() < 1
