"""Graphs for ONNX Runtime and OpenVINO give the numbers and the answers of the model itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ENCODERS, POSITIONS
from polyhead.modeling import PolyheadPipeline, TaskConfig
from polyhead.train.adapters import attach_adapters
from polyhead.train.errors import UserError
from polyhead.train.export.graph import export_graph
from polyhead.train.hub import save_folder
from polyhead.train.inference import exported
from polyhead.train.inference.exported import ExportedModel
from train_helpers import message_of, run_cli, write_recipe, write_rows

pytest.importorskip("onnxruntime", reason="pip install polyhead[onnx]")

TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["book", "cancel", "play"]),
    "slots": TaskConfig(head="token_classification", labels=["O", "B-city", "I-city"]),
    "vectors": TaskConfig(head="embedding", pooling="cls", projection=8),
    "urgency": TaskConfig(
        head="sequence_classification", problem_type="regression", activation="tanh"
    ),
}
LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}
TEXTS = ["Book a table for two in Paris!", "go", "The train to New York leaves on Monday, Anna."]
LENGTHS = [3, 17, 1, 9, 40]  # none of the probe's shapes


@pytest.fixture
def written(make_model, tokenizer_of, tmp_path):
    """(kind of encoder, kind of export, adapters by task, tasks) -> model, its export"""

    def write(kind="bert", to="onnx", adapters=None, tasks=None, only=None):
        pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[to])
        model = make_model(kind, tasks or TASKS)
        attach_adapters(model, adapters or {})
        tokenizer, folder = tokenizer_of(ENCODERS[kind][0]), tmp_path / "exported"
        export_graph(model, tokenizer, to, tasks=only or model.task_names, folder=folder)
        return model.eval(), ExportedModel(folder)

    return write


@torch.no_grad()
def assert_same(model, graph, batch, **options):
    expected, actual = model(**batch, **options), graph(**batch, **options)
    real = batch["attention_mask"].bool()
    for part in ("logits", "embeddings"):
        one, other = getattr(expected, part) or {}, getattr(actual, part) or {}
        assert list(other) == [name for name in one if name in graph.task_names]
        for name, values in other.items():
            theirs = one[name]
            assert values.shape == theirs.shape
            if values.dim() == 3 and len(values) == len(real):
                values, theirs = values[real], theirs[real]
            assert (values - theirs).abs().max() <= 1e-4, name


@pytest.mark.slow
class TestOutputs:
    @pytest.mark.parametrize("to", ["onnx", "openvino"])
    def test_of_every_head_are_the_models(self, to, written, batch_of):
        pooled = {
            name: TaskConfig(head="embedding", pooling=name) for name in ("max", "last_token")
        }
        options = {"labels": ["O", "x", "y"], "layers": 2}
        deep = {
            "deep_slots": TaskConfig(head="token_classification", **options),
            "deep_intent": TaskConfig(head="sequence_classification", **options),
        }
        mixed = {name: replace(task, layer_mix=True) for name, task in deep.items()}
        deep |= {name.replace("deep", "mixed"): task for name, task in mixed.items()}
        tasks = {**TASKS, **pooled, **deep, "masked": TaskConfig(head="masked_lm")}
        model, graph = written(to=to, tasks=tasks)
        assert graph.about["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
        assert graph.task_names == model.task_names
        assert_same(model, graph, batch_of(model, LENGTHS))
        assert_same(model, graph, batch_of(model, [POSITIONS]))

    @pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "bert"])
    def test_of_every_encoder_are_the_models(self, kind, written, batch_of):
        model, graph = written(kind)
        assert_same(model, graph, batch_of(model, LENGTHS))
        assert_same(model, graph, batch_of(model, [2]))

    @pytest.mark.parametrize("experts", ["mmoe", "cgc", "ple"])
    def test_of_experts_are_the_models(self, experts, make_model, tokenizer_of, batch_of, tmp_path):
        model = make_model("bert", TASKS, experts={"kind": experts, "experts": 2}).eval()
        only, tokenizer = ["slots", "vectors"], tokenizer_of("wordpiece")
        export_graph(model, tokenizer, "onnx", tasks=only, folder=tmp_path / "x")
        assert_same(model, ExportedModel(tmp_path / "x"), batch_of(model, LENGTHS))

    def test_of_texts_in_windows_are_the_models(self, written, batch_of):
        windows = {"long_texts": "windows"}
        tasks = {name: replace(TASKS[name], **windows) for name in ("intent", "vectors", "urgency")}
        tasks["intent"].window_pooling = "max"
        model, graph = written(tasks={**tasks, "first": TASKS["intent"], "slots": TASKS["slots"]})
        batch, counts = batch_of(model, LENGTHS), torch.tensor([2, 3])
        assert_same(model, graph, batch, window_counts=counts)
        ids = torch.tensor([model.task_names.index(name) for name in ("vectors", "first")])
        assert_same(model, graph, batch, window_counts=counts, task_ids=ids)
        labels = {"urgency": torch.tensor([0.5, 1.0])}
        losses = [m(**batch, window_counts=counts, labels=labels).loss for m in (model, graph)]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-4)

    def test_of_four_layers_are_the_models(
        self, written, batch_of, make_model, tokenizer_of, tmp_path
    ):
        task = TaskConfig(head="embedding", pooling="mean_last_4")
        model = make_model("bert", {"deep": task}, num_hidden_layers=4)
        export_graph(
            model, tokenizer_of("wordpiece"), "onnx", tasks=["deep"], folder=tmp_path / "x"
        )
        assert_same(model, ExportedModel(tmp_path / "x"), batch_of(model, LENGTHS))

    @pytest.mark.parametrize("kind", ["bert", "modernbert", "albert"])
    def test_of_lower_layers_are_the_models(
        self, kind, make_model, tokenizer_of, batch_of, tmp_path
    ):
        labels = {"labels": ["x", "y"]}
        tasks = {
            "low": TaskConfig(head="sequence_classification", layer=1, **labels),
            "slots": TaskConfig(head="token_classification", layer=2, **labels),
            "plain": TaskConfig(head="token_classification", **labels),
        }
        model, sizes = make_model(kind, tasks, num_hidden_layers=3).eval(), []
        for number in (1, 2, 3):
            only, folder = list(tasks)[:number], tmp_path / str(number)
            export_graph(model, tokenizer_of(ENCODERS[kind][0]), "onnx", tasks=only, folder=folder)
            graph = ExportedModel(folder)
            assert_same(model, graph, batch_of(model, LENGTHS), tasks=only)
            sizes.append(sum(path.stat().st_size for path in folder.glob("model.onnx*")))
        assert sizes[0] < 0.8 * sizes[1]  # layers above are not in the graph
        assert sizes[1] < 0.8 * sizes[2]

    def test_losses_and_counts_are_the_models(self, written, batch_of):
        model, graph = written()
        batch = batch_of(model, [4, 6, 3])
        task_ids = torch.tensor(
            [[0, 2], [0, -1], [2, 1]]
        )  # intent, slots, urgency, vectors: sorted
        names = model.task_names
        labels = {
            names[0]: torch.tensor([2, 0]),
            names[1]: torch.tensor([[0, 1, 2, -100, -100, -100]]),
            names[2]: torch.tensor([0.5, float("nan")]),
        }
        if names != ["intent", "slots", "urgency", "vectors"]:
            labels[names[2]] = torch.tensor([0.5])
        with torch.no_grad():
            expected = model(**batch, task_ids=task_ids, labels=labels)
            actual = graph(**batch, task_ids=task_ids, labels=labels)
        assert list(actual.losses) == list(expected.losses)
        for name, loss in expected.losses.items():
            assert actual.losses[name].item() == pytest.approx(loss.item(), abs=1e-5)
        assert actual.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
        assert graph.count_items(labels) == model.count_items(labels)


class TestAdapters:
    @pytest.mark.slow
    def test_one_adapter_is_merged(self, written, batch_of):
        model, graph = written(adapters={"intent": LORA}, only=["intent"])
        assert "task_ids" not in graph.about["inputs"]
        assert_same(model, graph, batch_of(model, LENGTHS), tasks=["intent"])

    @pytest.mark.slow
    @pytest.mark.parametrize("to", ["onnx", "openvino"])
    def test_several_are_chosen_by_row(self, to, written, batch_of):
        adapters = {
            "intent": LORA,
            "slots": {**LORA, "r": 2, "target_modules": ["query", "value"]},
            "urgency": {**LORA, "layers": [1], "lora_bias": True},
        }
        model, graph = written(to=to, adapters=adapters)
        assert graph.about["inputs"][-1] == "task_ids"
        batch = batch_of(model, LENGTHS)
        assert_same(model, graph, batch)
        assert_same(model, graph, batch, task_ids=torch.tensor([0, 3, 1, 1, 2]))
        assert_same(
            model, graph, batch, task_ids=torch.tensor([[0, 1], [1, -1], [2, 0], [3, 2], [0, -1]])
        )

    @pytest.mark.slow
    def test_a_raw_session_takes_rows_of_all_adapters_at_once(self, written, batch_of):
        model, graph = written(adapters={"intent": LORA, "slots": LORA, "urgency": LORA})
        batch = batch_of(model, [5, 7, 6, 4])
        ids = torch.tensor([3, 0, 2, 1])
        inputs = {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"]), "task_ids": ids}
        outputs = graph.engine({name: value.numpy() for name, value in inputs.items()})
        for row, number in enumerate(ids.tolist()):
            name = model.task_names[number]
            with torch.no_grad():
                output = model(**{k: v[row : row + 1] for k, v in batch.items()}, tasks=[name])
            expected = (output.logits or output.embeddings)[name][0]
            if expected.dim() == 2:
                real = batch["attention_mask"][row].bool()
                assert np.abs(outputs[name][row][real] - expected[real].numpy()).max() <= 1e-4
            else:
                assert np.abs(outputs[name][row] - expected.numpy()).max() <= 1e-4

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{"use_dora": True}, {"type": "ia3"}], ids=["dora", "ia3"])
    def test_other_kinds_alone_but_not_side_by_side(
        self, options, make_model, tokenizer_of, batch_of, tmp_path
    ):
        section = {"type": "ia3"} if "type" in options else {**LORA, **options}
        model = make_model("bert", TASKS)
        attach_adapters(model, {"intent": section, "slots": section})
        model.eval()
        tokenizer = tokenizer_of("wordpiece")
        with pytest.raises(UserError) as stopped:
            export_graph(model, tokenizer, "onnx", tasks=["intent", "slots"], folder=tmp_path / "x")
        assert "is no plain LoRA of a linear layer; export one of these tasks at a time" in str(
            stopped.value
        )
        assert list(tmp_path.iterdir()) == []
        export_graph(model, tokenizer, "onnx", tasks=["intent"], folder=tmp_path / "x")
        assert_same(
            model, ExportedModel(tmp_path / "x"), batch_of(model, LENGTHS), tasks=["intent"]
        )

    def test_an_encoder_that_adapts_something_else_than_tokens(
        self, make_model, tokenizer_of, tmp_path
    ):
        model = make_model("deberta-v2", TASKS, share_att_key=True)
        attach_adapters(model, {"intent": LORA, "slots": LORA})
        with pytest.raises(UserError, match="not applied to the batch's tokens; export one"):
            export_graph(
                model,
                tokenizer_of("wordpiece"),
                "onnx",
                tasks=["intent", "slots"],
                folder=tmp_path / "x",
            )
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
class TestUse:
    def test_the_pipeline_says_the_same(self, written, tokenizer_of):
        model, graph = written(adapters={"intent": LORA, "slots": LORA})
        tokenizer = tokenizer_of("wordpiece")
        long = " ".join(TEXTS * 6)  # several windows
        expected = PolyheadPipeline(model=model, tokenizer=tokenizer)([*TEXTS, long])
        answers = PolyheadPipeline(model=graph, tokenizer=tokenizer, device=-1)([*TEXTS, long])
        for one, other in zip(expected, answers, strict=True):
            assert list(one) == list(other)
            assert other["intent"]["label"] == one["intent"]["label"]
            assert other["intent"]["score"] == pytest.approx(one["intent"]["score"], abs=1e-5)
            places = [
                [(e["entity_group"], e["start"], e["end"]) for e in a["slots"]]
                for a in (one, other)
            ]
            assert places[0] == places[1]
            assert np.abs(one["vectors"] - other["vectors"]).max() <= 1e-5

    def test_the_command_writes_predicts_and_scores(
        self, make_model, tokenizer_of, tmp_path, capsys
    ):
        model, tokenizer = make_model("bert", TASKS), tokenizer_of("wordpiece")
        save_folder(model, tokenizer, tmp_path / "model")
        rows = [
            {"text": text, "intent": TASKS["intent"].labels[i % 3]}
            for i, text in enumerate(TEXTS * 4)
        ]
        for split in ("train", "validation"):
            write_rows(tmp_path / f"{split}.jsonl", rows)
        files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
        task = {
            "head": "sequence_classification",
            "data": {"data_files": files, "text": "text", "label": "intent"},
        }
        recipe = {"encoder": "-", "tasks": {"intent": task}, "output_dir": str(tmp_path / "run")}
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        scores, answers = {}, {}
        for name, more in {"full": [], "small": ["--int8", path]}.items():
            if more:
                pytest.importorskip("nncf", reason="pip install polyhead[int8]")
            target = tmp_path / name
            command = ("export", tmp_path / "model", "onnx", "--output", target, "--json", *more)
            assert run_cli(*command) == 0
            about = json.loads(capsys.readouterr().out)
            assert about == json.loads((target / exported.FILE).read_text())
            run_cli("evaluate", target, path, "--split", "validation", "--json")
            scores[name] = json.loads(capsys.readouterr().out)["tasks"]["intent"]["accuracy"]
            run_cli("predict", target, TEXTS[0], "--json")
            answers[name] = json.loads(capsys.readouterr().out)[0]["intent"]["score"]
        run_cli("evaluate", tmp_path / "model", path, "--split", "validation", "--json")
        assert json.loads(capsys.readouterr().out)["tasks"]["intent"]["accuracy"] == scores["full"]
        assert about["int8"]["tasks"]["intent"] == {
            "metric": "accuracy",
            "fp32": scores["full"],
            "int8": scores["small"],
        }
        assert about["precision"] == "int8"
        assert answers["small"] != answers["full"]
        assert answers["small"] == pytest.approx(answers["full"], abs=0.1)


class TestRefusals:
    @pytest.fixture
    def said(self, make_model, tokenizer_of, tmp_path, capsys):
        """The faults that the command ends with; nothing is written."""
        model = make_model("bert", TASKS)
        save_folder(model, tokenizer_of("wordpiece"), tmp_path / "model")
        (tmp_path / "there").mkdir()

        def run(*arguments):
            assert run_cli("export", tmp_path / "model", *arguments) == 2
            assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there"]
            return [line.strip() for line in message_of(capsys.readouterr().err)][1:]

        return run

    def test_of_arguments(self, said, tmp_path):
        new, there = tmp_path / "new", tmp_path / "there"
        taken = f"- --output: {there} exists; name a new folder, or type --overwrite to replace it"
        known = "there are: " + ", ".join(TASKS)
        assert said("tflite", "--output", new) == ["- 'tflite'; allowed: onnx, openvino, hf"]
        assert said("hf", "--output", new) == ["- hf writes one task: name it by --task"]
        assert said("onnx", "--task", "nope,intent", "--output", there) == [
            f"- --task: there is no task 'nope'; {known}",
            taken,
        ]
        assert said("onnx", "a=1", "--output", new) == [
            "- 'a=1' is for the recipe of --int8, and there is none"
        ]
        assert said("hf", "--task", "intent", "--int8", "r.yaml", "--output", new) == [
            "- --int8 is for onnx and openvino, --bundle for onnx"
        ]

    def test_of_a_missing_package(self, said, tmp_path, monkeypatch):
        monkeypatch.setitem(exported.PACKAGES, "onnx", ("onnx", "no_such_package"))
        assert said("onnx", "--output", tmp_path / "new") == [
            '- onnx needs no_such_package; type: pip install "polyhead[onnx]"'
        ]

    def test_a_recipe_with_a_task_that_is_not_exported(self, said, tmp_path):
        rows = write_rows(tmp_path / "model" / "x.jsonl", [{"text": "go", "intent": "book"}])
        data = {"data_files": {"train": str(rows)}, "text": "text", "label": "intent"}
        task = {"head": "sequence_classification", "data": data}
        recipe = {"encoder": "-", "tasks": {"intent": task}, "output_dir": "-"}
        path = write_recipe(tmp_path / "model" / "recipe.yaml", recipe)
        pytest.importorskip("nncf", reason="pip install polyhead[int8]")
        assert said("onnx", "--task", "slots", "--int8", path, "--output", tmp_path / "new") == [
            "- tasks.intent: is not exported; exported are: slots"
        ]

    def test_what_needs_weights_says_where_they_are(self, tmp_path, capsys):
        (tmp_path / exported.FILE).write_text("{}")
        assert run_cli("inspect", tmp_path) == 2
        said = capsys.readouterr().err
        assert "is an exported model; give the one it was exported from" in said
