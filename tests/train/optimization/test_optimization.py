"""What trains, at which rate and from which epoch: parts of every kind of encoder, exact rates,
frozen weights that keep every bit, layers that join at their epoch, in one process and in two.
"""

import itertools
import json
import os
import re
import socket
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer, shake, tiny_encoder_config
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from polyhead.train.adapters import attach_adapters
from polyhead.train.data.dataset import MultiTaskDataset
from polyhead.train.data.tokenization import tokenize
from polyhead.train.optimization.freezing import Unfreezing, apply_freeze
from polyhead.train.optimization.model_parts import model_parts
from polyhead.train.optimization.parameter_groups import (
    freeze_faults,
    optimizer_groups,
    parameter_table,
)
from polyhead.train.recipe.sections import Freeze, MultiTaskArguments, OptimizerOptions, Unfreeze
from polyhead.train.trainer import MultiTaskTrainer
from torch.testing import assert_close
from train_helpers import messages, private_cache, sources_of, task, write_rows  # noqa: F401
from transformers import AutoConfig, Trainer, TrainerCallback, TrainerState, TrainingArguments

INTENT = TaskConfig(head="sequence_classification", labels=["book", "cancel", "play"], dropout=0.0)
SLOTS = TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"], dropout=0.0)
WORDS = TaskConfig(head="masked_lm")
TASKS = {"intent": INTENT, "slots": SLOTS}
NONE, PLAIN = Freeze(), OptimizerOptions()
BELOW = {  # kind: modules of the encoder below its layers, modules above them
    "bert": ({"embeddings"}, set()),
    "distilbert": ({"embeddings"}, set()),
    "electra": ({"embeddings", "embeddings_project"}, set()),
    "mpnet": ({"embeddings", "encoder.relative_attention_bias"}, set()),
    "deberta-v2": ({"embeddings", "encoder.rel_embeddings"}, set()),
    "albert": ({"embeddings", "encoder.embedding_hidden_mapping_in"}, set()),
    "roberta": ({"embeddings"}, set()),
    "xlm-roberta": ({"embeddings"}, set()),
    "camembert": ({"embeddings"}, set()),
    "modernbert": ({"embeddings"}, {"final_norm"}),
    "eurobert": ({"embed_tokens"}, {"norm"}),
    "llama": ({"embed_tokens"}, {"norm"}),
}
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def staged(*, layers=(0, 1, 2), every=0.5, first="top", joining=None, **more) -> Freeze:
    unfreeze = Unfreeze(**{"every": every, "from": first, "layers": joining})
    return Freeze(layers=list(layers), unfreeze=unfreeze, **more)


def arguments(**more) -> TrainingArguments:
    usual = {"learning_rate": 1e-3, "weight_decay": 0.1, "output_dir": "unused", "use_cpu": True}
    return TrainingArguments(**{**usual, **more})


def groups(model, freeze=NONE, options=PLAIN, args=None) -> list[dict]:
    names = Trainer.get_decay_parameter_names(None, model)
    return optimizer_groups(model, freeze, options, args or arguments(), names)


def rates(made: list[dict]) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in made if "no decay" not in group["name"]}


def titles(model) -> dict[str, str]:
    """Each weight's name to the title of its part."""
    return {name: part.title for part in model_parts(model) for name in part.weights}


def random_model(config, tasks=TASKS) -> PolyheadModel:
    return PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks))


@pytest.fixture
def six(make_model) -> PolyheadModel:
    """BERT with layers 0 to 5 and two tasks."""
    return make_model("bert", TASKS, num_hidden_layers=6)


class TestParts:
    def test_embeddings_and_what_lies_above_the_layers(self, kind, make_model):
        model = make_model(kind, TASKS)
        below, above = BELOW[kind]
        for name, title in titles(model).items():
            inner = name.removeprefix("encoder.")
            numbers = re.findall(r"(?:layers?|albert_layer_groups)\.(\d+)\.", inner)
            if any(inner.startswith(f"{prefix}.") for prefix in below):
                assert title == "embeddings", name
            elif any(inner.startswith(f"{prefix}.") for prefix in above):
                assert title == "above the layers", name
            elif name.startswith("heads."):
                assert title == f"head {name.split('.')[1]}"
            else:
                assert title == ("layers" if kind == "albert" else f"layer {numbers[0]}"), name

    def test_each_weight_is_in_one_part(self, kind, make_model):
        model = make_model(kind, {**TASKS, "words": WORDS})
        attach_adapters(model, {"intent": {"r": 2}, "slots": None, "words": None})
        ids = [id(p) for part in model_parts(model) for p in part.weights.values()]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())

    def test_parts_come_from_the_bottom_up(self, make_model):
        model = make_model("llama", {"second": INTENT, "first": SLOTS})
        attach_adapters(model, {"second": {"r": 2, "layers": [1]}, "first": {"r": 2}})
        layers = {part.title: part.layers for part in model_parts(model)}
        assert list(layers.items()) == [
            ("embeddings", []),
            ("layer 0", [0]),
            ("layer 1", [1]),
            ("above the layers", []),
            ("head first", []),
            ("head second", []),
            ("adapter first", [0, 1]),
            ("adapter second", [1]),
        ]

    def test_layers_that_share_their_weights_are_one_part(self, make_model):
        parts = model_parts(make_model("albert", {}))
        assert [(p.title, p.layers) for p in parts] == [("embeddings", []), ("layers", [0, 1])]

    def test_a_convolution_between_layers_belongs_to_the_layer_below_it(self):
        options = {"conv_kernel_size": 3, "conv_act": "gelu", "norm_rel_ebd": "layer_norm"}
        title_of = titles(random_model(tiny_encoder_config("deberta-v2", **options)))
        assert title_of["encoder.encoder.conv.conv.weight"] == "layer 0"
        assert title_of["encoder.encoder.LayerNorm.weight"] == "embeddings"

    def test_parallel_lists_of_sublayers_are_one_list_of_layers(self):
        config = AutoConfig.for_model("xlm", vocab_size=99, emb_dim=32, n_layers=3, n_heads=4)
        title_of = titles(random_model(config))
        for name in ("attentions.2.q_lin.weight", "ffns.2.lin1.bias", "layer_norm2.2.weight"):
            assert title_of[f"encoder.{name}"] == "layer 2"
        assert title_of["encoder.layer_norm_emb.bias"] == "embeddings"

    def test_layers_whose_forward_is_called_without_hooks_are_found(self):
        title_of = titles(
            random_model(AutoConfig.for_model("squeezebert", **SIZES, embedding_size=32))
        )
        assert title_of["encoder.embeddings.word_embeddings.weight"] == "embeddings"
        assert title_of["encoder.pooler.dense.weight"] == "above the layers"

    def test_an_encoder_of_one_layer_has_it(self, make_model):
        assert "layer 0" in titles(make_model("bert", {}, num_hidden_layers=1)).values()

    def test_what_is_tied_to_the_encoder_is_the_encoders(self, make_model):
        model = make_model("bert", {"words": WORDS})
        head = next(part for part in model_parts(model) if part.title == "head words")
        assert "heads.words.decoder.bias" in head.weights
        assert "heads.words.decoder.weight" not in head.weights

    def test_asking_leaves_the_model_as_it_was(self, make_model):
        model = make_model("deberta-v2", TASKS, hidden_dropout_prob=0.1).train()
        model.encoder.encoder.layer[0].eval()
        model.encoder.embeddings.requires_grad_(requires_grad=False)
        before = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
        modes = [module.training for module in model.modules()]
        hooks = [len(module._forward_pre_hooks) for module in model.modules()]
        state = torch.get_rng_state()
        with torch.no_grad():
            model_parts(model)
        assert [(p.requires_grad, p.grad, p._version) for p in model.parameters()] == before
        assert [module.training for module in model.modules()] == modes
        assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
        assert torch.equal(torch.get_rng_state(), state)


class TestFaults:
    @pytest.mark.parametrize(
        ("freeze", "options", "faults"),
        [
            (Freeze(layers=[0, -6, 5, -1]), {}, []),
            (staged(layers=[0, 1, -1], joining=[5]), {"layer_decay": 0.9, "head_lr": 1.0}, []),
            (Freeze(encoder=True, heads=["intent"]), {}, []),
            (
                Freeze(layers=[0, 6, -7, 12], heads=["nope"]),
                {},
                [
                    "freeze.layers: 6, -7, 12 not there; the encoder has layers 0 to 5, or -1 for "
                    "the last",
                    "freeze.heads: 'nope' is no task; known: intent, slots",
                ],
            ),
            (
                Freeze(encoder=True, layers=[0], embeddings=True),
                {},
                [
                    "freeze.encoder: freezes all of the encoder; take out freeze.layers, "
                    "freeze.embeddings"
                ],
            ),
            (
                Freeze(encoder=True, unfreeze=Unfreeze(every=1)),
                {},
                ["freeze.encoder: freezes all of the encoder; take out freeze.unfreeze"],
            ),
            (
                Freeze(unfreeze=Unfreeze(every=1)),
                {},
                ["freeze.unfreeze: no layer is frozen; name them in freeze.layers"],
            ),
            (
                staged(joining=[1, 3, -2, 9]),
                {},
                [
                    "freeze.unfreeze.layers: 9 not there; the encoder has layers 0 to 5, or -1 for "
                    "the last",
                    "freeze.unfreeze.layers: 3, -2 not frozen; freeze.layers: 0, 1, 2",
                ],
            ),
            (
                staged(joining=[]),
                {},
                ["freeze.unfreeze.layers: names no layer; take it out for all of freeze.layers"],
            ),
            (
                Freeze(heads=["intent", "slots"]),
                {"head_lr": 1e-3, "adapter_lr": 1e-3},
                [
                    "optimizer.head_lr: no weight of any head trains; take it out",
                    "optimizer.adapter_lr: no weight of any adapter trains; take it out",
                ],
            ),
            (
                Freeze(encoder=True),
                {"layer_decay": 0.9},
                ["optimizer.layer_decay: no weight of any encoder trains; take it out"],
            ),
            (
                Freeze(encoder=True, heads=["intent", "slots"]),
                {"head_lr": 1e-3},
                ["freeze: nothing is left to train; take something out"],
            ),
        ],
        ids=lambda value: "",
    )
    def test_each_comes_with_its_key(self, six, freeze, options, faults):
        assert freeze_faults(six, freeze, OptimizerOptions(**options)) == faults

    def test_layers_that_would_join_after_the_end(self, six):
        freeze, fault = (
            staged(),
            "freeze.unfreeze.every: layer 0 would join at epoch 1.5; the last ends at",
        )
        assert freeze_faults(six, freeze, PLAIN, arguments(num_train_epochs=1.6)) == []
        faults = freeze_faults(six, freeze, PLAIN, arguments(num_train_epochs=1.5))
        assert faults == [f"{fault} 1.5"]
        faults = freeze_faults(six, freeze, PLAIN, arguments(max_steps=1, num_train_epochs=1))
        assert faults == []

    def test_layers_that_cannot_be_told_apart(self, make_model):
        model = make_model("albert", TASKS)
        why = "the layers of albert cannot be told apart; take it out"
        faults = freeze_faults(model, staged(layers=[0]), OptimizerOptions(layer_decay=0.9))
        keys = ("freeze.layers", "freeze.unfreeze", "optimizer.layer_decay")
        assert faults == [f"{key}: {why}" for key in keys]
        other = Freeze(embeddings=True, heads=["slots"])
        assert freeze_faults(model, other, OptimizerOptions(head_lr=1.0)) == []
        assert freeze_faults(model, Freeze(encoder=True), PLAIN) == []

    def test_adapters_keep_a_frozen_model_training(self, six):
        freeze = Freeze(encoder=True, heads=["intent", "slots"])
        attach_adapters(six, {"intent": {"r": 2}, "slots": None})
        assert freeze_faults(six, freeze, OptimizerOptions(adapter_lr=1e-3)) == []

    def test_a_head_without_weights_has_no_rate(self, make_model):
        model = make_model("bert", {"near": TaskConfig(head="embedding")})
        faults = freeze_faults(model, NONE, OptimizerOptions(head_lr=1e-3))
        assert faults == ["optimizer.head_lr: no weight of any head trains; take it out"]

    def test_what_is_refused_changes_nothing(self, six):
        wrong = Freeze(layers=[0, 6], embeddings=True)
        for refused in (lambda: apply_freeze(six, wrong), lambda: Unfreezing(six, wrong)):
            with pytest.raises(ValueError, match=r"freeze\.layers: 6 not there"):
                refused()
        with pytest.raises(ValueError, match=r"freeze\.layers: 6 not there"):
            groups(six, wrong)
        assert all(p.requires_grad for p in six.parameters())

    def test_layer_decay_without_layers_is_refused_by_the_groups_too(self, make_model):
        with pytest.raises(ValueError, match=r"optimizer\.layer_decay: the layers of albert"):
            groups(make_model("albert", TASKS), options=OptimizerOptions(layer_decay=0.9))


class TestFreezing:
    def frozen(self, model) -> set[str]:
        owner = titles(model)
        frozen = {owner[n] for n, p in model.named_parameters() if not p.requires_grad}
        assert not frozen & {owner[n] for n, p in model.named_parameters() if p.requires_grad}
        return frozen

    @pytest.mark.parametrize(
        ("freeze", "expected"),
        [
            (NONE, set()),
            (Freeze(encoder=True), {"embeddings", "layer 0", "layer 1", "above the layers"}),
            (Freeze(embeddings=True), {"embeddings"}),
            (Freeze(layers=[-1], heads=["slots"]), {"layer 1", "head slots"}),
            (staged(layers=[0, 1], joining=[1]), {"layer 0"}),
        ],
        ids=lambda value: "",
    )
    def test_what_never_trains_has_no_gradient(self, make_model, freeze, expected):
        model = make_model("modernbert", TASKS)
        attach_adapters(model, {"intent": {"r": 2}, "slots": None})
        apply_freeze(model, freeze)
        assert self.frozen(model) == expected

    def test_what_is_frozen_already_stays_so(self, six):
        six.requires_grad_(requires_grad=False)
        six.heads["slots"].requires_grad_()
        apply_freeze(six, NONE)
        assert {n for n, p in six.named_parameters() if p.requires_grad} == {
            "heads.slots.out.weight",
            "heads.slots.out.bias",
        }

    def test_a_frozen_head_leaves_what_it_shares_with_the_encoder(self, make_model):
        model = make_model("bert", {**TASKS, "words": WORDS})
        apply_freeze(model, Freeze(heads=["words"]))
        assert model.heads["words"].decoder.weight.requires_grad
        assert not model.heads["words"].decoder.bias.requires_grad
        apply_freeze(model, Freeze(embeddings=True))
        assert not model.heads["words"].decoder.weight.requires_grad


class TestSchedule:
    LOW = list(range(8))  # of twelve layers, which people count from 1

    @pytest.fixture
    def twelve(self, make_model):
        return make_model("bert", {"intent": INTENT}, num_hidden_layers=12)

    @pytest.mark.parametrize(
        ("first", "starts"),
        [("top", {7: 0.5, 6: 1.0, 5: 1.5, 4: 2.0}), ("bottom", {4: 0.5, 5: 1.0, 6: 1.5, 7: 2.0})],
    )
    def test_layers_join_one_by_one(self, twelve, first, starts):
        schedule = Unfreezing(twelve, staged(layers=self.LOW, joining=[4, 5, 6, 7], first=first))
        assert schedule.starts == starts
        for epoch in (0.0, 0.49, 0.5, 0.99, 1.0, 1.7, 1.99, 2.0, 5.0):
            assert schedule.waiting(epoch) == [n for n in (4, 5, 6, 7) if epoch < starts[n]]

    def test_all_frozen_layers_join_where_none_is_named(self, twelve):
        schedule = Unfreezing(twelve, staged(layers=[3, -12], every=2))
        assert schedule.starts == {0: 4.0, 3: 2.0}

    def test_rounding_holds_no_layer_back(self, twelve):
        schedule = Unfreezing(twelve, staged(layers=self.LOW, every=0.1))
        for step in range(11):  # 3 * 0.1 > 3 / 10
            assert schedule.waiting(step / 10) == self.LOW[: 8 - min(step, 8)]
        schedule = Unfreezing(twelve, staged(layers=[0, 1], every=2 / 3))
        assert [schedule.waiting(n / 3) for n in range(5)] == [[0, 1]] * 2 + [[0]] * 2 + [[]]

    @pytest.mark.parametrize("epoch", [0.0, 0.5, 1.2, 3.0])
    def test_a_resumed_run_goes_on_where_it_was(self, twelve, epoch):
        freeze = staged(layers=self.LOW, joining=[4, 5, 6, 7], embeddings=True)
        apply_freeze(twelve, freeze)
        whole, states = Unfreezing(twelve, freeze), []
        for step in range(int(epoch * 10) + 1):
            whole.set_epoch(step / 10)
        states.append((whole.frozen, [p.requires_grad for p in twelve.parameters()]))
        twelve.encoder.encoder.layer[4:].requires_grad_()
        resumed, state = Unfreezing(twelve, freeze), TrainerState(epoch=epoch)
        resumed.on_train_begin(arguments(), state, None, model=twelve)
        states.append((resumed.frozen, [p.requires_grad for p in twelve.parameters()]))
        assert states[0] == states[1]
        assert whole.frozen == whole.waiting(epoch)

    def test_an_adapter_trains_in_a_layer_that_waits(self, six):
        attach_adapters(six, {"intent": {"r": 2}, "slots": None})
        Unfreezing(six, staged()).set_epoch(0.0)
        layer = six.encoder.encoder.layer[0]
        trains = {name: p.requires_grad for name, p in layer.named_parameters()}
        assert trains == {name: "lora_" in name for name in trains}

    def test_what_trains_in_a_step_is_known_when_the_one_before_has_ended(self, six):
        schedule = Unfreezing(six, staged())
        schedule.on_train_begin(arguments(), TrainerState(), None, model=six)
        assert schedule.frozen == [0, 1, 2]
        schedule.on_step_end(arguments(), TrainerState(epoch=0.5), None)
        assert schedule.frozen == [0, 1]
        assert six.encoder.encoder.layer[2].output.dense.weight.requires_grad

    def test_only_gradients_of_layers_that_wait_are_thrown_away(self, six, batch_of):
        schedule = Unfreezing(six, staged(layers=[0, 1, 2], joining=[1, 2]))
        schedule._keeps_gradients = True
        schedule.set_epoch(0.6)
        batch = batch_of(six, [5, 4])
        six(**batch, labels={"slots": batch["input_ids"] % 3}).loss.backward()
        schedule.on_pre_optimizer_step(arguments(), None, None)
        parts = {part_of(name) for name, p in six.named_parameters() if p.grad is not None}
        layers = {f"layer {n}" for n in (0, 2, 3, 4, 5)}
        assert parts == layers | {"encoder.embeddings", "heads.slots"}
        assert [id(w) for w in schedule.frozen_weights] == [
            id(w) for w in six.encoder.encoder.layer[1].parameters()
        ]

    def test_a_model_split_over_processes_is_refused(self, six):
        copy = random_model(six.encoder.config)  # FSDP puts other weights in place of the model's
        with pytest.raises(ValueError, match="not with DeepSpeed or FSDP"):
            Unfreezing(six, staged()).on_train_begin(arguments(), TrainerState(), None, model=copy)
        Unfreezing(six, NONE).on_train_begin(arguments(), TrainerState(), None, model=copy)


class TestGroups:
    def test_each_layer_has_the_rate_of_the_one_above_times_the_decay(self, make_model):
        model = make_model("llama", TASKS, num_hidden_layers=3)
        attach_adapters(model, {"intent": {"r": 2}, "slots": None})
        options = OptimizerOptions(layer_decay=0.5, head_lr=0.25, adapter_lr=0.125)
        made = groups(model, options=options, args=arguments(learning_rate=1.0))
        assert [(group["name"], group["lr"], group["weight_decay"]) for group in made] == [
            ("above the layers, no decay", 1.0, 0.0),
            ("layer 2", 1.0, 0.1),
            ("layer 2, no decay", 1.0, 0.0),
            ("layer 1", 0.5, 0.1),
            ("layer 1, no decay", 0.5, 0.0),
            ("layer 0", 0.25, 0.1),
            ("layer 0, no decay", 0.25, 0.0),
            ("embeddings", 0.125, 0.1),
            ("head intent", 0.25, 0.1),
            ("head intent, no decay", 0.25, 0.0),
            ("head slots", 0.25, 0.1),
            ("head slots, no decay", 0.25, 0.0),
            ("adapter intent", 0.125, 0.1),
        ]

    def test_heads_and_adapters_have_the_usual_rate_unless_told(self, six):
        attach_adapters(six, {"intent": {"r": 2}, "slots": None})
        rate_of = rates(groups(six, options=OptimizerOptions(layer_decay=0.5)))
        assert rate_of["head slots"] == rate_of["adapter intent"] == rate_of["layer 5"] == 1e-3

    def test_without_options_each_weight_has_the_rate_and_decay_of_hf(self, kind, make_model):
        model = make_model(kind, {**TASKS, "words": WORDS})
        attach_adapters(model, {"intent": {"r": 2}, "slots": None, "words": None})
        apply_freeze(model, Freeze(embeddings=True, heads=["slots"]))
        theirs = Trainer(model=model, args=arguments(optim="adamw_torch")).create_optimizer()
        for options in (PLAIN, OptimizerOptions(layer_decay=1.0)):
            if kind == "albert" and options is not PLAIN:
                continue
            ours = groups(model, Freeze(embeddings=True, heads=["slots"]), options)
            decays = [
                sorted((id(w), g["lr"], g["weight_decay"]) for g in each for w in g["params"])
                for each in (ours, theirs.param_groups)
            ]
            assert decays[0] == decays[1]

    def test_a_tied_weight_is_in_one_group(self, make_model):
        model = make_model("electra", {"words": WORDS, **TASKS})
        ids = [id(w) for group in groups(model) for w in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())

    def test_layers_that_join_later_are_there_and_frozen_ones_are_not(self, six):
        freeze = staged(joining=[1], embeddings=True, heads=["slots"])
        expected = {"layer 5", "layer 4", "layer 3", "layer 1", "head intent"}
        assert set(rates(groups(six, freeze))) == expected
        apply_freeze(six, freeze)
        assert set(rates(groups(six, freeze))) == expected
        Unfreezing(six, freeze).set_epoch(0.0)  # as a run that was broken off leaves it
        assert set(rates(groups(six, freeze))) == expected
        assert rates(groups(six, freeze, OptimizerOptions(layer_decay=0.5)))["layer 1"] == 1e-3 / 16

    def test_the_order_of_tasks_changes_nothing(self, make_model):
        tables = []
        for names in (["intent", "slots"], ["slots", "intent"]):
            model = make_model("bert", {name: TASKS[name] for name in names})
            attach_adapters(model, {name: {"r": 2} for name in names})
            owner = {id(p): n for n, p in model.named_parameters()}
            made = groups(model)
            tables.append([(g["name"], [owner[id(w)] for w in g["params"]]) for g in made])
        assert tables[0] == tables[1]

    def test_schedulers_scale_the_rate_of_each_group(self, six):
        made = groups(six, options=OptimizerOptions(layer_decay=0.5, head_lr=0.01))
        optimizer = torch.optim.AdamW(made, lr=1.0)
        before = rates(optimizer.param_groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
        optimizer.step()
        scheduler.step()
        assert rates(optimizer.param_groups) == {name: 0.75 * lr for name, lr in before.items()}

    def test_names_of_a_wrapped_model_are_refused(self, six):
        with pytest.raises(ValueError, match=r"'module\.encoder.* is no weight of the model"):
            optimizer_groups(six, NONE, PLAIN, arguments(), ["module.encoder.embeddings.weight"])


class TestTable:
    def test_a_row_for_each_part(self, make_model):
        model = make_model("llama", TASKS, num_hidden_layers=3)
        attach_adapters(model, {"intent": {"r": 2, "layers": [1, 2]}, "slots": None})
        freeze = staged(layers=[0, 1], joining=[1], heads=["slots"])
        apply_freeze(model, freeze)
        Unfreezing(model, freeze).set_epoch(0.0)
        options = OptimizerOptions(layer_decay=0.5, adapter_lr=0.01)
        rows = parameter_table(model, freeze, options, arguments())
        matrices = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48  # q and o, k and v of 2 heads, the MLP
        low_rank = 2 * (2 * 64 + 2 * 48 + 3 * 80)  # r (in + out) of the same
        table = [
            ("embeddings", [], 290 * 32, 0, 290 * 32, 1.25e-4, 0.0),
            ("layer 0", [0], 0, matrices + 64, 0, None, None),
            ("layer 1", [1], matrices + 64, 0, matrices, 5e-4, 0.5),
            ("layer 2", [2], matrices + 64, 0, matrices, 1e-3, 0.0),
            ("above the layers", [], 32, 0, 0, 1e-3, 0.0),
            ("head intent", [], 99, 0, 96, 1e-3, 0.0),
            ("head slots", [], 0, 99, 0, None, None),
            ("adapter intent", [1, 2], 2 * low_rank, 0, 2 * low_rank, 0.01, 0.0),
        ]
        keys = (
            "name", "layers", "trainable", "frozen", "decayed", "learning_rate", "from_epoch"
        )  # fmt: skip
        assert [tuple(row[key] for key in keys) for row in rows] == table
        assert [row["weight_decay"] for row in rows] == [0.1 if row[4] else 0.0 for row in table]
        assert json.loads(json.dumps(rows)) == rows

    @pytest.mark.parametrize("kind", ["electra", "albert", "modernbert"])
    def test_parameters_add_up(self, kind, make_model):
        model = make_model(kind, {**TASKS, "words": WORDS})
        freeze = Freeze(embeddings=True)
        apply_freeze(model, freeze)
        rows = parameter_table(model, freeze, PLAIN, arguments())
        total = sum(row["trainable"] + row["frozen"] for row in rows)
        assert total == model.num_parameters()
        trainable = sum(row["trainable"] for row in rows)
        assert trainable == model.num_parameters(only_trainable=True)

    def test_a_model_frozen_but_for_a_new_head(self, six):
        six.requires_grad_(requires_grad=False)
        six.heads["slots"].requires_grad_()
        rows = parameter_table(six, NONE, PLAIN, arguments())
        assert {row["name"] for row in rows if row["from_epoch"] == 0.0} == {"head slots"}


# ---- training ----

LAYERS = 4


class Changes(TrainerCallback):
    """Which parts of the model each step makes gradients for, and which it moves."""

    def __init__(self, model) -> None:
        self.model, self.training, self.moved = model, [], []

    def on_step_begin(self, *_, **__):
        named = list(self.model.named_parameters())
        self.training.append({part_of(name) for name, p in named if p.requires_grad})
        self.before = {name: p.detach().clone() for name, p in named}

    def on_step_end(self, *_, **__):
        named, before = self.model.named_parameters(), self.before
        self.moved.append({part_of(name) for name, p in named if not torch.equal(p, before[name])})


def part_of(name: str) -> str:
    """Of a weight of BERT with adapters, by its name."""
    if "lora_" in name:
        return "adapter"
    layer = re.search(r"encoder\.layer\.(\d)", name)
    return f"layer {layer[1]}" if layer else ".".join(name.split(".")[:2])


def make_trainer(
    folder, *, freeze=NONE, rates=PLAIN, adapters=None, size=3, accumulation=1, keeps=False, **more
) -> tuple[MultiTaskTrainer, Changes]:
    """Two tasks over 12 rows, the same weights each time; `keeps` in one process, as DDP does."""
    path = str(write_rows(Path(folder) / "rows.jsonl", messages(12)))
    text = {"data_files": path, "text": "text", "dropout": 0.0}
    sources = sources_of(
        intent=task("sequence_classification", label="intent", **text),
        slots=task("token_classification", tokens="tokens", label="tags", **text),
    )
    tokenizer = make_tokenizer("wordpiece")
    torch.manual_seed(0)
    tasks = {name: c for source in sources for name, c in source.configs.items()}
    model = random_model(tiny_encoder_config("bert", num_hidden_layers=LAYERS), tasks)
    shake(model)
    attach_adapters(model, adapters or dict.fromkeys(tasks))
    usual = {"num_train_epochs": 2, "lr_scheduler_type": "constant", "learning_rate": 1e-2}
    usual |= {"weight_decay": 0.1, "logging_steps": 1, "save_strategy": "no", "use_cpu": True}
    trainer = MultiTaskTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(Path(folder) / "out"),
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            **{**usual, **more},
        ),
        processing_class=tokenizer,
        sources={source.name: list(source.tasks) for source in sources},
        train_dataset=MultiTaskDataset({s.name: tokenize(s, "train", tokenizer) for s in sources}),
        multitask=MultiTaskArguments(freeze=freeze, optimizer=rates),
    )
    if keeps:
        unfreezing = trainer.optimizer_step.unfreezing
        begin = unfreezing.on_train_begin

        def keep_gradients(args, state, control, **rest):
            begin(args, state, control, **rest)
            unfreezing._keeps_gradients = True
            unfreezing.set_epoch(state.epoch)

        unfreezing.on_train_begin = keep_gradients
    changes = Changes(model)
    trainer.add_callback(changes)
    return trainer, changes


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


SCHEDULE = staged(layers=[0, 1, 2], joining=[1, 2])  # 2 joins at epoch 0.5, 1 at 1.0, 0 never
RESUMED = {
    "freeze": SCHEDULE,
    "rates": OptimizerOptions(layer_decay=0.5),
    "lr_scheduler_type": "linear",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(micro-batches of a step, gradients kept as under DDP) -> trainer after training."""
    trainers = {}
    for key in itertools.product((1, 3), (False, True)):
        options = {"size": 3 // key[0], "accumulation": key[0], "keeps": key[1]}
        folder = tmp_path_factory.mktemp("run")
        made = make_trainer(folder, freeze=SCHEDULE, max_grad_norm=0.5, **options)
        made[0].train()
        trainers[key] = made
    return trainers


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped, with a checkpoint of each step."""
    saving = {"save_strategy": "steps", "save_steps": 1}
    made = make_trainer(tmp_path_factory.mktemp("whole"), **RESUMED, **saving)
    made[0].train()
    return made


class TestTraining:
    HEADS = {"heads.intent", "heads.slots"}
    ALL = {"encoder.embeddings", *(f"layer {n}" for n in range(LAYERS)), *HEADS}
    ALWAYS = ALL - {"layer 0", "layer 1", "layer 2"}
    WITH_2, WITH_1 = ALWAYS | {"layer 2"}, ALWAYS | {"layer 2", "layer 1"}

    @pytest.mark.parametrize(
        ("freeze", "moving"),
        [
            (NONE, ALL),
            (Freeze(encoder=True), HEADS),
            (Freeze(layers=[1, -1], heads=["slots"]), ALL - {"layer 1", "layer 3", "heads.slots"}),
            (Freeze(embeddings=True, layers=[0, 1, 2, 3]), HEADS),
        ],
        ids=["none", "encoder", "some", "all"],
    )
    def test_frozen_weights_keep_every_bit_and_all_others_move(self, tmp_path, freeze, moving):
        adapters = {"intent": {"r": 2, "init_lora_weights": False}, "slots": "intent"}
        trainer, _ = make_trainer(tmp_path, freeze=freeze, adapters=adapters, max_steps=3)
        before = weights(trainer)
        trainer.train()
        still = {name for name, value in weights(trainer).items() if value.equal(before[name])}
        assert {part_of(name) for name in before if name not in still} == moving | {"adapter"}
        assert not {part_of(name) for name in still} & moving

    def test_layers_join_exactly_at_their_epoch(self, runs):
        for _, changes in runs.values():
            assert changes.moved == [self.ALWAYS] * 2 + [self.WITH_2] * 2 + [self.WITH_1] * 4

    def test_one_process_makes_no_gradients_for_layers_that_wait(self, runs):
        for (_, keeps), (_, changes) in runs.items():
            waits = self.ALL - {"layer 0"} if keeps else self.ALWAYS
            joins = waits | {"layer 2"}
            assert changes.training == [waits] * 2 + [joins] * 2 + [joins | {"layer 1"}] * 4

    @pytest.mark.parametrize("accumulation", [1, 3])
    def test_throwing_gradients_away_is_the_same_as_not_making_them(self, runs, accumulation):
        results = []
        for keeps in (False, True):
            trainer, _ = runs[accumulation, keeps]
            norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
            results.append((weights(trainer), norms))
        assert len(results[0][1]) == 8
        assert min(results[0][1]) > 0.5  # clipped, or the norm would not matter
        assert_close(results[0], results[1], rtol=0, atol=0)

    @pytest.mark.parametrize("step", [1, 2, 5])
    def test_a_resumed_run_ends_with_the_same_weights(self, whole, tmp_path, step):
        resumed, watched = make_trainer(tmp_path, **RESUMED)
        checkpoint = Path(whole[0].args.output_dir) / f"checkpoint-{step}"
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert watched.moved == whole[1].moved[step:]
        assert_close(weights(resumed), weights(whole[0]), rtol=0, atol=0)

    def test_the_rate_that_is_logged_is_the_recipes(self, tmp_path):
        options = OptimizerOptions(layer_decay=0.5, head_lr=0.1)
        trainer, _ = make_trainer(tmp_path, rates=options, max_steps=1)
        trainer.train()
        assert trainer.state.log_history[0]["learning_rate"] == 1e-2
        rate_of = rates(trainer.optimizer.param_groups)
        assert (rate_of["layer 0"], rate_of["head intent"]) == (1e-2 / 8, 0.1)


# ---- two processes ----


def train_rank(rank: int, folder: Path, port: int, options: dict) -> None:
    """One of two processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    trainer, changes = make_trainer(folder / str(rank), **options)
    assert trainer.args.world_size == 2
    trainer.train()
    torch.save((weights(trainer), changes.moved), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_train_as_one_does(tmp_path, accumulation):
    options = {"freeze": SCHEDULE, "optim": "sgd", "max_grad_norm": 0.5}
    one, changes = make_trainer(tmp_path, size=4, **options)
    one.train()
    steps = [TestTraining.ALWAYS] * 2 + [TestTraining.WITH_2] + [TestTraining.WITH_1] * 3
    assert changes.moved == steps  # at epochs 0, 1/3, 2/3, 1, ...
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options |= {"size": 2 // accumulation, "accumulation": accumulation}
    torch.multiprocessing.spawn(train_rank, (tmp_path, port, options), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    assert_close(results[0][0], weights(one), rtol=0, atol=1e-5)
    assert results[0][1] == results[1][1] == steps
