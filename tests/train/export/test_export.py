"""Adapters in from plain PEFT, one task out as a plain transformers model: the same numbers."""

import json
import os
import subprocess
import sys

import peft
import pytest
import torch
from conftest import ENCODERS
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.train import adapters
from polyhead.train.adapters import attach_adapters, merged_encoder, read_adapter
from polyhead.train.errors import UserError
from polyhead.train.export.plain import export_hf
from polyhead.train.hub import save_folder
from safetensors.torch import load_file
from train_helpers import message_of, run_cli
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

SEQUENCE, TOKENS = "sequence_classification", "token_classification"
LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}
LABELS = ["O", "B-city", "I-city"]
LENGTHS = [3, 9, 12, 5]
TARGETS = {
    "bert": ["query", "value"],
    "modernbert": ["Wqkv", "Wi"],
    "llama": ["q_proj", "down_proj"],
}


def embedding():
    return TaskConfig(head="embedding")


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model, before):
    after = model.state_dict()
    assert list(before) == list(after)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


# ---- adapters of plain PEFT ----


@pytest.fixture
def plain_adapter(encoder_folder, tmp_path):
    """(kind, peft config, AutoModel class) -> its encoder with the adapter, and the saved folder"""

    def make(kind, config, auto=AutoModel):
        model = auto.from_pretrained(encoder_folder(kind))
        model.config.is_causal = False
        model = peft.get_peft_model(model, config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".ia3_" in name:  # starts at 1: no adapter at all
                    parameter.add_(torch.randn(parameter.shape) * 0.3)
        model.save_pretrained(tmp_path / "adapter")
        inner = model.get_base_model()
        return (inner if auto is AutoModel else inner.base_model), tmp_path / "adapter"

    return make


def attached(model, path):
    config, state = read_adapter(model.encoder, str(path))
    model.attach_adapter("extra", config, ["extra"], state=state)
    return model.eval()


@torch.no_grad()
def assert_same_states(model, encoder, batch):
    real = batch["attention_mask"].bool()
    expected = encoder(**batch).last_hidden_state
    routed = model(**batch, tasks=["extra"]).last_hidden_state
    bare = model(**batch, tasks=[]).last_hidden_state
    assert (routed[real] - expected[real]).abs().max() <= 1e-5  # sums in another order
    assert (bare[real] - expected[real]).abs().max() > 1e-2  # the adapter matters


class TestReadAdapter:
    @pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
    @pytest.mark.parametrize("kind", TARGETS)
    def test_the_states_are_those_of_plain_peft(
        self, kind, auto, plain_adapter, make_model, batch_of, monkeypatch
    ):
        more, warnings = {}, []
        if auto is not AutoModel:
            head = "score" if kind == "llama" else "classifier"
            more = {"task_type": "SEQ_CLS", "modules_to_save": [head]}
        monkeypatch.setattr(adapters.logger, "warning", warnings.append)
        config = peft.LoraConfig(target_modules=TARGETS[kind], **LORA, **more)
        encoder, path = plain_adapter(kind, config, auto)
        model = attached(make_model(kind, {"extra": embedding()}), path)
        assert_same_states(model, encoder, batch_of(model, LENGTHS))
        assert len(warnings) == (auto is not AutoModel)
        assert all(f"left out what is no adapter: {head}" in w for w in warnings)

    @pytest.mark.parametrize(
        "config",
        [
            peft.LoraConfig(target_modules=["query"], use_dora=True, **LORA),
            peft.LoraConfig(target_modules=["query"], use_rslora=True, **LORA),
            peft.LoraConfig(target_modules=["query", "key"], rank_pattern={"key": 2}, **LORA),
            peft.LoraConfig(target_modules=["query"], layers_to_transform=[1], **LORA),
            peft.IA3Config(target_modules=["query", "output.dense"], feedforward_modules=[]),
            peft.IA3Config(
                target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]
            ),
        ],
        ids=["dora", "rslora", "rank_pattern", "one_layer", "ia3", "ia3_feedforward"],
    )
    def test_of_every_kind(self, config, plain_adapter, make_model, batch_of):
        encoder, path = plain_adapter("bert", config)
        model = attached(make_model("bert", {"extra": embedding()}), path)
        assert_same_states(model, encoder, batch_of(model, LENGTHS))

    def test_options_by_the_name_of_a_module_in_the_whole_model(
        self, plain_adapter, make_model, batch_of
    ):
        module = "bert.encoder.layer.0.attention.self.query"
        config = peft.LoraConfig(target_modules=["query"], alpha_pattern={module: 64}, **LORA)
        encoder, path = plain_adapter("bert", config, AutoModelForSequenceClassification)
        model = attached(make_model("bert", {"extra": embedding()}), path)
        assert_same_states(model, encoder, batch_of(model, LENGTHS))

    def test_saved_and_loaded_it_is_the_same(self, plain_adapter, make_model, batch_of, tmp_path):
        config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", **LORA)
        encoder, path = plain_adapter("bert", config, AutoModelForSequenceClassification)
        model = attached(make_model("bert", {"extra": embedding()}), path)
        model.save_pretrained(tmp_path / "model")
        again = PolyheadModel.from_pretrained(tmp_path / "model")
        assert_same_states(again, encoder, batch_of(model, LENGTHS))


class TestRefusedAdapters:
    @pytest.fixture
    def refused(self, make_model):
        """The message of an adapter that is not taken; the model stays as it was."""

        def run(path, kind="bert"):
            model = make_model(kind, {"extra": embedding(), "other": embedding()})
            attach_adapters(model, {"other": LORA})
            before, config = state_of(model), model.config.to_dict()
            with pytest.raises(ValueError, match=".") as stopped:
                attached(model, path)
            assert_unchanged(model, before)
            assert model.loaded_adapters == ["other"]
            assert model.config.to_dict() == config
            return str(stopped.value)

        return run

    def test_no_folder(self, refused, tmp_path):
        path = tmp_path / "nowhere"
        assert refused(path).startswith(f"adapter path {path}: ")

    def test_a_folder_without_adapter(self, refused, tmp_path):
        assert refused(tmp_path).startswith(f"adapter path {tmp_path}: ")

    def test_a_config_without_weights(self, refused, plain_adapter):
        _, path = plain_adapter("bert", peft.LoraConfig(target_modules=["query"]))
        (path / "adapter_model.safetensors").unlink()
        assert refused(path).startswith(f"adapter path {path}: ")

    def test_weights_cut_short(self, refused, plain_adapter):
        _, path = plain_adapter("bert", peft.LoraConfig(target_modules=["query"]))
        file = path / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
        assert refused(path).startswith(f"adapter path {path}: ")

    @pytest.mark.parametrize(
        "config",
        [
            peft.LoHaConfig(target_modules=["query"]),
            peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2),
        ],
        ids=["loha", "prompt_tuning"],
    )
    def test_another_kind(self, refused, plain_adapter, config, request):
        _, path = plain_adapter("bert", config)
        kind = request.node.callspec.id
        assert refused(path) == f"adapter path {path}: its type is {kind}; allowed: lora, ia3"

    @pytest.mark.parametrize(
        ("config", "auto", "kind", "module"),
        [
            ({"target_modules": ["pooler.dense"]}, AutoModel, "bert", "pooler.dense"),
            (
                {"target_modules": ["classifier"]},
                AutoModelForSequenceClassification,
                "bert",
                "classifier",
            ),
            (
                {"target_modules": ["query"]},
                AutoModel,
                "modernbert",
                "encoder.layer.0.attention.self.query",
            ),
            (
                {"target_modules": ["word_embeddings"]},
                AutoModel,
                "bert",
                "embeddings.word_embeddings",
            ),
        ],
        ids=["pooler", "classifier", "another encoder", "embeddings"],
    )
    def test_a_module_that_is_not_here(self, refused, plain_adapter, config, auto, kind, module):
        _, path = plain_adapter("bert", peft.LoraConfig(**config), auto)
        expected = f"adapter path {path}: the encoder has no linear layer {module}"
        assert refused(path, kind) == expected

    def test_another_rank_than_the_config_says(self, refused, plain_adapter):
        _, path = plain_adapter("bert", peft.LoraConfig(r=4, target_modules=["query"]))
        config = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
        assert "adapter 'extra' does not fit this encoder" in refused(path)

    @pytest.mark.parametrize(
        "config",
        [
            {"bias": "all"},
            {"bias": "lora_only"},
            {"modules_to_save": ["word_embeddings"]},
            {"modules_to_save": ["LayerNorm"]},
        ],
        ids=["all biases", "their biases", "embeddings", "norms"],
    )
    def test_weights_of_the_encoder_saved_with_it(self, refused, plain_adapter, config):
        # left out, the states would be others than those it was trained for
        _, path = plain_adapter("bert", peft.LoraConfig(target_modules=["query"], **config))
        assert refused(path).startswith(f"adapter path {path}: ")


# ---- merging ----


class TestMergedEncoder:
    @pytest.mark.parametrize(
        "section",
        [
            LORA,
            {**LORA, "use_rslora": True},
            {**LORA, "use_dora": True},
            {"type": "ia3", "feedforward_modules": []},
        ],
        ids=["lora", "rslora", "dora", "ia3"],
    )
    @pytest.mark.parametrize("kind", ["bert", "modernbert", "llama"])
    def test_its_states_are_those_of_the_routed_encoder(self, kind, section, make_model, batch_of):
        model = make_model(kind, {"first": embedding(), "second": embedding(), "bare": embedding()})
        plain = state_of(model.encoder)
        attach_adapters(model, {"first": dict(section), "second": dict(section), "bare": None})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".ia3_" in name:
                    parameter.add_(torch.randn(parameter.shape) * 0.3)
        model.eval()
        before, batch = state_of(model), batch_of(model, LENGTHS)
        real, states = batch["attention_mask"].bool(), {}
        for name in model.task_names:
            merged = merged_encoder(model, model.config.tasks[name].adapter)
            assert list(merged.state_dict()) == list(plain)
            with torch.no_grad():
                states[name] = merged(**batch).last_hidden_state[real]
                expected = model(**batch, tasks=[name]).last_hidden_state[real]
            assert (states[name] - expected).abs().max() <= 1e-4
        assert (states["first"] - states["second"]).abs().max() > 1e-2
        assert_unchanged(merged_encoder(model, None), plain)
        assert_unchanged(model, before)

    def test_ia3_of_feedforward_layers(self, make_model, batch_of):
        model = make_model("bert", {"first": embedding()})
        names = ["key", "value", "intermediate.dense", "output.dense"]
        section = {"type": "ia3", "target_modules": names, "feedforward_modules": names[2:]}
        attach_adapters(model, {"first": section})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".ia3_" in name:
                    parameter.add_(torch.randn(parameter.shape) * 0.3)
            batch = batch_of(model.eval(), LENGTHS)
            expected = model(**batch, tasks=["first"]).last_hidden_state
            states = merged_encoder(model, "first")(**batch).last_hidden_state
        real = batch["attention_mask"].bool()
        assert (states[real] - expected[real]).abs().max() <= 1e-4


# ---- a task as a plain model ----


@pytest.fixture
def exported(make_model, tokenizer_of, batch_of, tmp_path):
    """(kind, task) -> logits of the task, the folder it was exported to, a batch.

    The model has another task and an adapter for each; the export leaves it as it was.
    """

    @torch.no_grad()
    def export(kind, task, name, *, adapter=LORA):
        model = make_model(kind, {"chosen": task, "other": TaskConfig(head=TOKENS, labels=["x"])})
        attach_adapters(model, {"chosen": adapter, "other": LORA})
        model.eval()
        before, config, batch = state_of(model), model.config.to_dict(), batch_of(model, LENGTHS)
        expected = model(**batch, tasks=["chosen"])
        tokenizer = tokenizer_of(ENCODERS[kind][0])
        assert export_hf(model, tokenizer, task="chosen", folder=tmp_path / "plain") == name
        assert_unchanged(model, before)
        assert model.config.to_dict() == config
        after = model(**batch, tasks=["chosen"])
        assert torch.equal(after.last_hidden_state, expected.last_hidden_state)
        bare = model(**batch, tasks=[]).last_hidden_state
        assert (adapter is None) == torch.equal(bare, expected.last_hidden_state)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]
        return expected, tmp_path / "plain", batch

    return export


@torch.no_grad()
def assert_logits(auto, folder, batch, expected):
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    logits = model(**batch).logits
    assert logits.shape == expected.shape
    real = batch["attention_mask"].bool() if logits.dim() == 3 else slice(None)
    assert (logits[real] - expected[real]).abs().max() <= 1e-4
    return model


class TestTokenClassification:
    @pytest.mark.parametrize("kind", sorted(set(ENCODERS) - {"modernbert"}))
    def test_logits_and_labels_are_the_tasks(self, kind, exported):
        class_name = {
            "bert": "Bert", "distilbert": "DistilBert", "electra": "Electra", "mpnet": "MPNet",
            "deberta-v2": "DebertaV2", "albert": "Albert", "roberta": "Roberta",
            "xlm-roberta": "XLMRoberta", "camembert": "Camembert", "eurobert": "EuroBert",
            "llama": "Llama",
        }[kind]  # fmt: skip
        task = TaskConfig(head=TOKENS, labels=LABELS)
        expected, folder, batch = exported(kind, task, f"{class_name}ForTokenClassification")
        logits = expected.logits["chosen"]
        model = assert_logits(AutoModelForTokenClassification, folder, batch, logits)
        assert model.config.id2label == dict(enumerate(LABELS))
        assert model.config.label2id == {"O": 0, "B-city": 1, "I-city": 2}
        weights = load_file(folder / "model.safetensors")
        assert not any("lora" in key or "base_layer" in key for key in weights)

    def test_a_temperature_is_in_the_weights_and_thresholds_are_told(self, exported, caplog):
        task = TaskConfig(head=TOKENS, labels=LABELS, calibration=1.7, abstain=0.4)
        expected, folder, batch = exported("bert", task, "BertForTokenClassification")
        logits = expected.logits["chosen"]
        assert_logits(AutoModelForTokenClassification, folder, batch, logits)
        assert "chosen: a plain model has logits alone; its abstain" in caplog.text

    @pytest.mark.slow
    def test_a_stranger_without_polyhead_and_peft_gets_them_too(
        self, make_model, tokenizer_of, batch_of, tmp_path, capsys
    ):
        model = make_model("bert", {"slots": TaskConfig(head=TOKENS, labels=LABELS)})
        attach_adapters(model, {"slots": LORA})
        save_folder(model, tokenizer_of("wordpiece"), tmp_path / "model")
        output = tmp_path / "plain"
        arguments = ("export", tmp_path / "model", "hf", "--task", "slots", "--output", output)
        assert run_cli(*arguments) == 0
        said = " ".join(message_of(capsys.readouterr().err))
        assert said.endswith("BertForTokenClassification, the same logits as task slots")
        batch = batch_of(model, LENGTHS)
        torch.save(batch, tmp_path / "batch.pt")
        code = """
import sys
sys.modules["polyhead"] = sys.modules["peft"] = None
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline
model = AutoModelForTokenClassification.from_pretrained("plain")
with torch.no_grad():
    torch.save(model(**torch.load("batch.pt")).logits, "logits.pt")
tokenizer = AutoTokenizer.from_pretrained("plain")
pipe = pipeline("token-classification", model=model, tokenizer=tokenizer)
assert {found["entity"] for found in pipe("book the train to Paris")} <= {"B-city", "I-city"}
"""
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={**os.environ})
        logits = torch.load(tmp_path / "logits.pt")
        with torch.no_grad():
            expected = model.eval()(**batch).logits["slots"]
        real = batch["attention_mask"].bool()
        assert (logits[real] - expected[real]).abs().max() <= 1e-4


class TestSequenceClassification:
    @pytest.mark.parametrize(
        "options",
        [
            {"labels": ["a", "b", "c"]},
            {"labels": ["a", "b", "c"], "problem_type": "multi_label_classification"},
            {"problem_type": "regression"},
        ],
        ids=["single", "multi", "regression"],
    )
    @pytest.mark.parametrize(
        ("kind", "activation", "name"),
        [
            ("bert", "tanh", "Bert"),
            ("roberta", "tanh", "Roberta"),
            ("distilbert", "relu", "DistilBert"),
            ("electra", "gelu", "Electra"),
            ("albert", "tanh", "Albert"),
        ],
    )
    def test_the_head_of_the_original_model(self, kind, activation, name, options, exported):
        task = TaskConfig(head=SEQUENCE, pooling="cls", activation=activation, **options)
        expected, folder, batch = exported(kind, task, f"{name}ForSequenceClassification")
        logits = expected.logits["chosen"]
        model = assert_logits(AutoModelForSequenceClassification, folder, batch, logits)
        assert model.config.problem_type == task.problem_type
        assert model.config.num_labels == task.num_labels
        if task.labels:
            assert model.config.id2label == {0: "a", 1: "b", 2: "c"}

    def test_without_adapter(self, exported):
        task = TaskConfig(head=SEQUENCE, pooling="cls", activation="tanh", labels=["a", "b"])
        expected, folder, batch = exported(
            "bert", task, "BertForSequenceClassification", adapter=None
        )
        assert_logits(AutoModelForSequenceClassification, folder, batch, expected.logits["chosen"])


@pytest.mark.parametrize(("kind", "name"), [("bert", "Bert"), ("roberta", "Roberta")])
def test_masked_words(kind, name, exported):
    expected, folder, batch = exported(kind, TaskConfig(head="masked_lm"), f"{name}ForMaskedLM")
    model = assert_logits(AutoModelForMaskedLM, folder, batch, expected.logits["chosen"])
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


class TestEmbedding:
    @pytest.mark.parametrize(("kind", "name"), [("bert", "BertModel"), ("llama", "LlamaModel")])
    def test_token_states_are_the_tasks(self, kind, name, exported):
        expected, folder, batch = exported(kind, embedding(), name)
        with torch.no_grad():
            states = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
        real = batch["attention_mask"].bool()
        assert (states[real] - expected.last_hidden_state[real]).abs().max() <= 1e-4

    @pytest.mark.parametrize(
        "options", [{}, {"pooling": "cls", "normalize": False}], ids=["mean", "cls"]
    )
    def test_sentence_transformers_gives_the_tasks_vectors(self, options, exported):
        library = pytest.importorskip(
            "sentence_transformers", reason="pip install polyhead[sentence-transformers]"
        )
        task = TaskConfig(head="embedding", **options)
        expected, folder, batch = exported("bert", task, "BertModel")
        encoder = library.SentenceTransformer(str(folder), device="cpu")
        with torch.no_grad():
            embedded = encoder(dict(batch))["sentence_embedding"]
        assert (embedded - expected.embeddings["chosen"]).abs().max() <= 1e-4
        vectors = encoder.encode(["Book a table in Paris.", "go"])  # by the tokenizer beside it
        assert vectors.shape == (2, 32)


class TestRefusedExports:
    @pytest.fixture
    def refused(self, make_model, tokenizer_of, tmp_path):
        """The message of an export that is not made; nothing is written."""

        def run(kind, task, *, name="chosen"):
            model = make_model(kind, {"chosen": task})
            attach_adapters(model, {"chosen": LORA})
            before = state_of(model)
            tokenizer = tokenizer_of(ENCODERS[kind][0])
            with pytest.raises(UserError) as stopped:
                export_hf(model, tokenizer, task=name, folder=tmp_path / "plain")
            assert list(tmp_path.iterdir()) == []
            assert_unchanged(model, before)
            (fault,) = stopped.value.faults
            return fault

        return run

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("bert", {}),
            ("bert", {"pooling": "cls"}),
            ("bert", {"pooling": "cls", "activation": "relu"}),
            ("bert", {"pooling": "max", "activation": "tanh"}),
            ("distilbert", {"pooling": "cls", "activation": "tanh"}),
            ("modernbert", {"pooling": "cls"}),
            ("llama", {"pooling": "last_token"}),
        ],
    )
    def test_a_head_that_the_class_cannot_hold(self, refused, kind, options):
        fault = refused(kind, TaskConfig(head=SEQUENCE, labels=["a", "b"], **options))
        assert "ForSequenceClassification cannot hold this head" in fault
        assert fault.startswith("chosen: ")

    @pytest.mark.parametrize("head", [SEQUENCE, TOKENS])
    def test_hidden_layers(self, refused, head):
        fault = refused("bert", TaskConfig(head=head, labels=["a", "b"], layers=1))
        assert "cannot hold this head" in fault
        assert "layers 1" in fault

    def test_a_mean_of_layers(self, refused):
        fault = refused("bert", TaskConfig(head=TOKENS, labels=["a", "b"], layer_mix=True))
        assert "cannot hold this head" in fault
        assert "layer_mix" in fault

    def test_a_lower_layer(self, refused):
        fault = refused("bert", TaskConfig(head=TOKENS, labels=["a", "b"], layer=1))
        assert "cannot hold this head" in fault
        assert "layer 1" in fault

    def test_token_labels_where_the_class_has_another_layer(self, refused):
        fault = refused("modernbert", TaskConfig(head=TOKENS, labels=LABELS))
        assert fault.startswith("chosen: ModernBertForTokenClassification cannot hold this head")

    def test_a_kind_of_head_that_transformers_does_not_have(self, refused):
        fault = refused("llama", TaskConfig(head="masked_lm"))
        assert fault == "transformers has no masked_lm model for llama"

    def test_a_causal_mask_that_only_polyhead_makes(self, refused):
        fault = refused("bert", TaskConfig(head="causal_lm"))
        assert fault.startswith("bert has no causal mask of its own: exported it would see later")

    def test_a_projection(self, refused):
        fault = refused("bert", TaskConfig(head="embedding", projection=8))
        assert fault == "chosen: a plain encoder has no place for its projection"

    def test_an_unknown_task(self, refused):
        fault = refused("bert", embedding(), name="nope")
        assert fault == "--task: there is no task 'nope'; there are: chosen"

    def test_a_taken_folder(self, make_model, tokenizer_of, tmp_path):
        model = make_model("bert", {"slots": TaskConfig(head=TOKENS, labels=LABELS)})
        (tmp_path / "there").mkdir()
        with pytest.raises(UserError) as stopped:
            export_hf(model, tokenizer_of("wordpiece"), task="nope", folder=tmp_path / "there")
        again = "name a new folder, or type --overwrite to replace it"
        assert stopped.value.faults == [
            "--task: there is no task 'nope'; there are: slots",
            f"--output: {tmp_path / 'there'} exists; {again}",
        ]
        assert list((tmp_path / "there").iterdir()) == []
