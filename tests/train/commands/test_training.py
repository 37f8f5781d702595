"""From a recipe to a folder on disk and back: train, evaluate, predict, inspect.

One run with every kind of task is trained for the whole file; tests read what it left.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from polyhead.modeling import PolyheadModel, PolyheadPipeline, modeling_polyhead
from polyhead.train.commands import setup as preparation
from polyhead.train.commands import training as run
from polyhead.train.commands.inspection import inspect_recipe
from polyhead.train.commands.scoring import evaluate
from polyhead.train.evaluation.scoring import macro
from polyhead.train.hub import save_folder
from polyhead.train.trainer import MultiTaskTrainer
from safetensors.torch import load_file
from train_helpers import (
    SPLITS,
    files_of,
    message_of,
    messages,
    pairs,
    private_cache,  # noqa: F401
    recipe_of,
    run_cli,
    write_recipe,
    write_rows,
    write_seven,
    write_splits,
)
from transformers import AutoModel, AutoTokenizer, pipeline

SEQUENCE, TOKENS = "sequence_classification", "token_classification"
CODE = {p.name for p in Path(modeling_polyhead.__file__).parent.glob("*.py")} - {"__init__.py"}
FOLDER = CODE | {
    "README.md",
    "config.json",
    "scores.json",
    "handler.py",
    "history.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}
TASKS = ("intent", "near", "same", "slots", "topics", "urgency", "words")
MULTI = "multi_label_classification"
TEXTS = ["book the train to New York!", "play", "cancel the train now to Paris!"]


@pytest.fixture(scope="module")
def trained(rendered, tmp_path_factory, tokenizer_of) -> SimpleNamespace:
    """The finished run: its recipe, its folder and what `train` gave."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder / "recipe.yaml", write_seven(folder, tokenizer_of))
    scores = run.train(recipe)
    return SimpleNamespace(
        folder=folder, recipe=recipe, scores=scores, model=folder / "out" / "model"
    )


@pytest.fixture(scope="module")
def pipe(trained) -> PolyheadPipeline:
    return PolyheadPipeline(
        model=PolyheadModel.from_pretrained(trained.model),
        tokenizer=AutoTokenizer.from_pretrained(trained.model),
        device="cpu",
    )


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Bit for bit, with the same names."""
    first, second = weights_of(one), weights_of(other)
    assert list(first) == list(second)
    assert [name for name in first if not first[name].equal(second[name])] == []


def plain(value):
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def flat(value):
    """Numbers of nested lists and dicts, and all else, for comparison with `approx`."""
    if isinstance(value, dict):
        return [x for key in value for x in [key, *flat(value[key])]]
    if isinstance(value, (list, np.ndarray)):
        return [x for v in value for x in flat(v)]
    return [value]


def assert_alike(found, expected) -> None:
    """Equal, numbers up to the last bits (they differ with the padding)."""
    found, expected = flat(found), flat(expected)
    assert [x for x in found if not isinstance(x, float)] == [
        x for x in expected if not isinstance(x, float)
    ]
    floats = [[x for x in side if isinstance(x, float)] for side in (found, expected)]
    assert floats[0] == pytest.approx(floats[1], abs=1e-5)


# ---- training ----


class TestTrain:
    def test_every_task_is_scored_on_test_and_the_scores_are_kept(self, trained):
        assert list(trained.scores) == ["tasks", "macro", "splits"]
        tasks = ["intent", "near", "same", "slots", "topics", "urgency", "words"]
        assert list(trained.scores["tasks"]) == tasks
        assert trained.scores["splits"] == dict.fromkeys(tasks, "test")
        assert trained.scores["macro"] == macro(trained.scores["tasks"])
        kept = json.loads((trained.folder / "out" / "scores.json").read_text())
        assert kept == trained.scores

    def test_the_metrics_are_those_of_the_recipe_or_the_usual_ones(self, trained):
        assert {name: list(values) for name, values in trained.scores["tasks"].items()} == {
            "intent": ["mcc", "accuracy"],
            "near": ["spearman", "pearson"],
            "same": ["accuracy", "f1_macro"],
            "slots": ["entity_f1", "precision", "recall", "per_type"],
            "topics": ["f1_micro", "f1_macro"],
            "urgency": ["pearson", "spearman", "mse"],
            "words": ["token_accuracy", "perplexity"],
        }

    def test_the_folder_holds_exactly_what_a_stranger_needs(self, trained):
        found = {
            str(path.relative_to(trained.model))
            for path in trained.model.rglob("*")
            if path.is_file()
        }
        plots = {name for name in found if name.startswith("plots/")}
        assert found - plots == FOLDER
        reports = (trained.folder / "out" / "reports").glob("*.png")
        drawn = {p.name for p in reports if p.stem.rpartition("_")[0] in TASKS}
        assert plots == {f"plots/{name}" for name in drawn}

    def test_the_run_leaves_the_model_its_scores_and_one_checkpoint(self, trained):
        found = sorted(path.name for path in (trained.folder / "out").iterdir())
        checkpoints = [name for name in found if name.startswith("checkpoint-")]
        assert 1 <= len(checkpoints) <= 2  # the best and the latest
        assert set(found) - set(checkpoints) == {
            "model",
            "scores.json",
            "log_history.json",
            "reports",
        }

    def test_the_model_is_the_best_checkpoint(self, trained):
        states = [
            json.loads(path.read_text())
            for path in (trained.folder / "out").glob("checkpoint-*/trainer_state.json")
        ]
        latest = max(states, key=lambda state: state["global_step"])
        rounds = [line for line in latest["log_history"] if "eval_macro" in line]
        assert len(rounds) == 2
        best = max(rounds, key=lambda line: line["eval_macro"])
        assert latest["best_metric"] == best["eval_macro"]
        folder = trained.folder / "out" / f"checkpoint-{best['step']}"
        assert_same_weights(folder, trained.model)

    def test_the_config_holds_the_tasks_with_their_labels(self, trained):
        config = json.loads((trained.model / "config.json").read_text())
        tasks = config["tasks"]
        assert config["model_type"] == "polyhead"
        assert config["task_names"] == sorted(tasks)
        assert tasks["intent"]["labels"] == ["book", "cancel", "play"]
        assert tasks["slots"]["labels"] == ["O", "B-city", "I-city"]
        assert (tasks["slots"]["scheme"], tasks["same"]["pair"]) == ("iob2", True)
        assert config["encoder_config"]["hidden_size"] == 16

    def test_no_pickle_is_saved(self, trained):
        assert not [p for p in trained.model.rglob("*") if p.suffix in (".bin", ".pt", ".pth")]

    def test_saving_what_was_loaded_writes_the_same_weights(self, trained, tmp_path):
        model = PolyheadModel.from_pretrained(trained.model)
        tokenizer = AutoTokenizer.from_pretrained(trained.model)
        save_folder(model, tokenizer, tmp_path)
        files = [folder / "model.safetensors" for folder in (trained.model, tmp_path)]
        assert files[0].read_bytes() == files[1].read_bytes()
        found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
        records = {"history.json", "scores.json", "training.json"}
        assert found == FOLDER - records  # saved without metrics

    @pytest.mark.slow
    def test_the_same_recipe_gives_the_same_weights_in_any_order_of_tasks(self, trained):
        recipe = recipe_of(trained.folder / "tokenizer")
        recipe["tasks"] = dict(reversed(recipe["tasks"].items()))
        recipe["output_dir"] = "${RECIPE_DIR}/turned"
        path = write_recipe(trained.folder / "turned.yaml", recipe)
        assert run.train(path) == trained.scores
        assert_same_weights(trained.folder / "turned" / "model", trained.model)

    def test_the_folder_loads_as_remote_code(self, trained):
        model = AutoModel.from_pretrained(trained.model, trust_remote_code=True)
        assert model.config.task_names == sorted(trained.scores["tasks"])
        predict = pipeline(model=str(trained.model), trust_remote_code=True)
        assert sorted(predict(TEXTS[0], tasks=["intent", "near"])) == ["intent", "near"]


class TestSplits:
    """What is trained, evaluated and kept depends on the splits that there are."""

    def train(self, trained, tmp_path, *splits, **training):
        recipe = recipe_of(trained.folder / "tokenizer")
        files = {name: str(trained.folder / f"messages_{name}.jsonl") for name in splits}
        data = {"data_files": files, "text": "text", "label": "intent"}
        recipe["tasks"] = {"intent": {"head": SEQUENCE, "data": data}}
        recipe["training"] |= {"max_steps": 2, **training}
        scores = run.train(write_recipe(tmp_path / "recipe.yaml", recipe))
        return scores, {path.name for path in (tmp_path / "out").iterdir()}

    def test_without_test_rows_validation_is_scored(self, trained, tmp_path):
        scores, _ = self.train(trained, tmp_path, "train", "validation")
        assert scores["splits"] == {"intent": "validation"}

    def test_without_validation_rows_nothing_is_evaluated_on_the_way(self, trained, tmp_path):
        scores, found = self.train(trained, tmp_path, "train", "test", save_strategy="no")
        assert scores["splits"] == {"intent": "test"}
        assert found == {"log_history.json", "model", "reports", "scores.json"}

    def test_train_alone_gives_a_model_without_scores(self, trained, tmp_path):
        scores, found = self.train(trained, tmp_path, "train", save_strategy="no")
        assert scores == {}
        assert found == {"log_history.json", "model", "reports", "scores.json"}
        assert "not measured" in (tmp_path / "out/model/README.md").read_text()


class TestCommand:
    """`polyhead train` itself; its faults are in test_recipe.py."""

    @pytest.fixture
    def recipe(self, trained, tmp_path):
        """One task, one step; test holds a label that train lacks."""
        rows = [{**row, "intent": "unheard"} for row in messages(1)] + messages(2, 1)
        files = {
            "train": str(trained.folder / "messages_train.jsonl"),
            "validation": str(trained.folder / "messages_validation.jsonl"),
            "test": str(write_rows(tmp_path / "test.jsonl", rows)),
        }
        recipe = recipe_of(trained.folder / "tokenizer")
        data = {"data_files": files, "text": "text", "label": "intent"}
        recipe["tasks"] = {"intent": {"head": SEQUENCE, "data": data}}
        recipe["training"] = {"max_steps": 1, "save_strategy": "no", "use_cpu": True}
        return write_recipe(tmp_path / "recipe.yaml", recipe)

    def test_json_is_all_that_goes_to_stdout(self, recipe, capsys):
        assert run_cli("train", recipe, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        kept = json.loads((recipe.parent / "out" / "scores.json").read_text())
        assert found == kept
        assert found["splits"] == {"intent": "test"}

    def test_a_table_shows_the_scores(self, recipe, capsys):
        assert run_cli("train", recipe) == 0
        out = capsys.readouterr().out
        scores = json.loads((recipe.parent / "out" / "scores.json").read_text())
        assert "Scores (test)" in out
        assert f"{scores['tasks']['intent']['accuracy']:.4f}" in out
        assert f"{scores['macro']:.4f}" in out

    def test_a_label_that_train_lacks_is_told_and_scored_as_wrong(self, recipe, capsys):
        assert run_cli("train", recipe) == 0
        notes = [line for line in message_of(capsys.readouterr().err) if "note: " in line]
        assert len(notes) == 2
        assert "intent: label 'unheard' is not in train; test has it in 1 rows" in notes[0]
        assert notes[1].startswith(
            "note: intent: draws 12 of its 12 rows an epoch, 6 in 0.5 epochs"
        )
        scores = json.loads((recipe.parent / "out" / "scores.json").read_text())
        assert scores["tasks"]["intent"]["accuracy"] <= 2 / 3

    def test_overrides_reach_the_run(self, recipe, tmp_path):
        assert run_cli("train", recipe, f"output_dir={tmp_path / 'x'}", "pooling=max") == 0
        config = json.loads((tmp_path / "x" / "model" / "config.json").read_text())
        assert config["pooling"] == "max"

    @pytest.mark.parametrize("arguments", [["trian", "x"], ["train"], ["predict"], ["--nonsense"]])
    def test_a_wrong_call_is_the_users_mistake(self, arguments, capsys):
        assert run_cli(*arguments) == 2
        assert "Usage" in capsys.readouterr().err

    def test_help_names_the_commands(self, capsys):
        assert run_cli("--help") == 0
        out = capsys.readouterr().out
        names = ("train", "evaluate", "predict", "inspect", "report", "affinity", "add-task")
        assert all(name in out for name in names)

    def test_help_answers_without_loading_torch(self):
        code = "import sys, polyhead.train.cli; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    @pytest.mark.slow
    def test_the_package_runs_as_a_module(self, recipe):
        command = [sys.executable, "-m", "polyhead.train", recipe, "--json"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert (done.returncode, list(json.loads(done.stdout))) == (0, ["tasks", "macro", "splits"])
        command = [sys.executable, "-m", "polyhead.train", recipe, "pooling=sum"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert message_of(done.stderr)[0] == f"{recipe}: 1 fault"


class TestOverwriting:
    """A finished run is replaced only where that was typed."""

    @pytest.fixture
    def never(self, monkeypatch):
        """Neither data nor encoder are loaded."""

        def load(*_):
            raise AssertionError("the data were loaded")

        monkeypatch.setattr(preparation, "load_sources", load)

    def test_a_finished_run_stays(self, trained, never, capsys):
        before = {p: p.stat().st_mtime_ns for p in trained.folder.rglob("*")}
        assert run_cli("train", trained.recipe) == 2
        assert "holds a finished run (model, scores.json); type --overwrite" in " ".join(
            capsys.readouterr().err.split()
        )
        assert {p: p.stat().st_mtime_ns for p in trained.folder.rglob("*")} == before

    @pytest.mark.parametrize("place", ["file", "file/below", "''", "/"])
    def test_a_folder_that_cannot_be_is_told_first(self, trained, never, tmp_path, place, capsys):
        (tmp_path / "file").write_text("mine")
        folder = place if place in ("''", "/") else tmp_path / place
        assert run_cli("train", trained.recipe, f"output_dir={folder}", "--overwrite") == 2
        assert message_of(capsys.readouterr().err)[0].endswith(": 1 fault")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_replaced_run_leaves_nothing_of_the_one_before(self, trained, tmp_path):
        recipe = recipe_of(trained.folder / "tokenizer")
        recipe["tasks"] = {"intent": recipe["tasks"]["intent"]}
        recipe["training"] |= {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
        write_splits(tmp_path, "messages", messages)
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        for name in ("checkpoint-50", "model", "reports"):
            (tmp_path / "out" / name).mkdir(parents=True)
        for name in ("old.json", "old_confusion.png", "report.html", "mine.png", "mine.txt"):
            (tmp_path / "out" / "reports" / name).write_text("{}")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        run.train(path, overwrite=True)
        assert not (tmp_path / "out" / "checkpoint-50").exists()
        names = {p.name for p in (tmp_path / "out" / "reports").iterdir()}
        assert {"mine.png", "mine.txt", "intent.json"} <= names
        assert not names & {"old.json", "old_confusion.png", "report.html"}
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"

    def test_what_predict_would_write_over_stays(self, trained, tmp_path, capsys):
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        write_rows(source, [{"text": text} for text in TEXTS[:2]])
        target.write_text("mine")
        arguments = ["predict", trained.model, "--input", source, "--output", target]
        assert run_cli(*arguments, "--tasks", "intent") == 2
        assert "name a new file, or type --overwrite to replace it" in capsys.readouterr().err
        assert target.read_text() == "mine"
        assert run_cli(*arguments, "--tasks", "intent", "--overwrite") == 0
        assert len(target.read_text().splitlines()) == 2

    def test_a_full_disk_is_one_message(self, trained, tmp_path, monkeypatch, capsys):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(PolyheadModel, "save_pretrained", full)
        output = tmp_path / "less"
        assert run_cli("remove-task", trained.model, "words", "--output", output) == 2
        assert "could not be written: No space left on device" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_the_version(self, capsys):
        assert run_cli("--version") == 0
        assert capsys.readouterr().out.startswith("polyhead ")


class TestResume:
    """`training.resume_from_checkpoint=true` through the whole run."""

    @pytest.fixture
    def started(self, trained, tmp_path, monkeypatch, caplog):
        """(resume) -> (checkpoint that training got, folder of the model)."""
        recipe = recipe_of(trained.folder / "tokenizer")
        del recipe["tasks"]["words"]
        training = {"save_strategy": "steps", "eval_strategy": "no", "save_steps": 2}
        recipe["training"] |= training | {"save_total_limit": 9, "max_steps": 7}
        write_splits(tmp_path, "messages", messages)
        write_splits(tmp_path, "pairs", pairs)
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        got = []
        usual = MultiTaskTrainer.train
        caplog.set_level("INFO", logger="polyhead")

        def train(self, resume_from_checkpoint=None):
            got.append(resume_from_checkpoint)
            return usual(self, resume_from_checkpoint=resume_from_checkpoint)

        monkeypatch.setattr(MultiTaskTrainer, "train", train)

        def start(output, resume=None):
            overrides = [f"output_dir={tmp_path / output}"]
            overrides += ["training.resume_from_checkpoint=true"] if resume else []
            run.train(path, overrides)
            return got[-1], tmp_path / output

        return start

    @pytest.mark.slow
    def test_a_broken_checkpoint_gives_way_to_the_one_before(self, started, caplog):
        got, whole = started("whole", resume=True)
        assert got is None  # there was none: it starts
        before = (whole / "model" / "model.safetensors").read_bytes()
        (whole / "checkpoint-7" / "trainer_state.json").unlink()  # killed while saving
        weights = whole / "checkpoint-6" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:500])
        got, _ = started("whole", resume=True)
        assert got == str(whole / "checkpoint-4")
        assert any(
            "checkpoint-6" in x and "resumed from checkpoint-4" in x for x in caplog.messages
        )
        assert (whole / "model" / "model.safetensors").read_bytes() == before


# ---- evaluate ----


class TestEvaluate:
    def test_it_gives_the_scores_of_training(self, trained, capsys):
        assert run_cli("evaluate", trained.model, trained.recipe, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found) == ["tasks", "macro"]
        assert list(found["tasks"]) == list(trained.scores["tasks"])
        assert_alike(found["tasks"], trained.scores["tasks"])
        assert found["macro"] == pytest.approx(trained.scores["macro"], abs=1e-5)

    def test_it_writes_nothing(self, trained, tmp_path):
        output = tmp_path / "elsewhere"
        evaluate(trained.model, trained.recipe, [f"output_dir={output}"])
        assert not output.exists()

    def test_another_split_may_be_asked_for(self, trained, capsys):
        code = run_cli("evaluate", trained.model, trained.recipe, "--split", "train", "--json")
        found = json.loads(capsys.readouterr().out)
        tags = [tag for row in messages(SPLITS["train"]) for tag in row["tags"]]
        support = found["tasks"]["slots"]["per_type"]["city"]["support"]
        assert (code, support) == (0, tags.count("B-city"))

    def test_a_table_shows_every_metric(self, trained, capsys):
        assert run_cli("evaluate", trained.model, trained.recipe) == 0
        out = capsys.readouterr().out
        for name, values in trained.scores["tasks"].items():
            assert name in out
            assert all(metric in out for metric in values if metric != "per_type")
        assert "slots by type" in out
        assert "macro" in out

    def test_tasks_that_do_not_fit_are_told(self, trained, tmp_path, capsys):
        recipe = recipe_of(trained.folder / "tokenizer")
        tasks = recipe["tasks"]
        tasks["mood"] = tasks.pop("intent")
        tasks["topics"] = {**tasks["topics"], "problem_type": "single_label_classification"}
        tasks["topics"]["data"] = {**tasks["mood"]["data"]}
        path = write_recipe(trained.folder / "other.yaml", recipe)
        assert run_cli("evaluate", trained.model, path) == 2
        first, *faults = message_of(capsys.readouterr().err)
        assert first == f"{path}: 2 faults"
        mood, topics = sorted(faults)
        assert "tasks.mood" in mood
        assert "intent, near, same" in mood
        assert "tasks.topics" in topics
        assert MULTI in topics

    def test_a_split_that_is_not_there_is_told(self, trained, capsys):
        recipe = recipe_of(trained.folder / "tokenizer")
        data = recipe["tasks"]["intent"]["data"] | {"data_files": files_of("messages", "train")}
        recipe["tasks"] = {"intent": {"head": SEQUENCE, "data": data}}
        path = write_recipe(trained.folder / "train_only.yaml", recipe)
        assert run_cli("evaluate", trained.model, path) == 2
        _, fault = message_of(capsys.readouterr().err)
        assert "tasks.intent.data: has no split test" in fault

    def test_a_split_of_an_unknown_name_is_told(self, trained, capsys):
        assert run_cli("evaluate", trained.model, trained.recipe, "--split", "dev") == 2
        stderr = capsys.readouterr().err
        assert "dev" in stderr
        assert "Traceback" not in stderr


# ---- predict ----

SINGLE = ["intent", "near", "slots", "topics", "urgency", "words"]


class TestPredict:
    def test_texts_are_answered_in_order_by_every_task_that_reads_them(self, trained, pipe, capsys):
        assert run_cli("predict", trained.model, *TEXTS, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert [list(answer) for answer in found] == [SINGLE] * 3
        assert_alike(found, plain(pipe(TEXTS)))

    def test_chosen_tasks_answer_in_the_order_asked_for(self, trained, pipe, capsys):
        tasks = ["urgency", "intent"]
        run_cli("predict", trained.model, *TEXTS, "--tasks", ",".join(tasks), "--json")
        found = json.loads(capsys.readouterr().out)
        assert [list(answer) for answer in found] == [tasks] * 3
        assert_alike(found, plain(pipe(TEXTS, tasks)))

    def test_two_texts_may_be_a_pair(self, trained, pipe, capsys):
        assert run_cli("predict", trained.model, "book it", "play", "--pair", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert_alike(found, plain(pipe([("book it", "play")], ["same"])))

    def test_answers_are_shown_below_their_text(self, trained, pipe, capsys):
        assert run_cli("predict", trained.model, TEXTS[0], "--tasks", "intent,urgency") == 0
        text, intent, urgency = capsys.readouterr().out.splitlines()
        answer = pipe(TEXTS[0], ["intent", "urgency"])
        assert text == TEXTS[0]
        label, score = answer["intent"]["label"], answer["intent"]["score"]
        assert intent == f"  intent: {label} {score:.3f}"
        assert urgency == f"  urgency: {answer['urgency']['score']:.3f}"

    @pytest.fixture
    def files(self, tmp_path):
        """Rows as parquet, CSV and JSONL: text, second text and a number, longest in the middle."""
        rows = [
            {"text": TEXTS[i % 3] * (1 + i % 4), "more": TEXTS[(i + 1) % 3], "id": i}
            for i in range(7)
        ]
        write_rows(tmp_path / "in.jsonl", rows)
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "in.parquet")
        with (tmp_path / "in.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return rows

    def read(self, path):
        if path.suffix == ".parquet":
            return datasets.Dataset.from_parquet(str(path)).to_list()
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        tasks = set(SINGLE) | {"same"}
        return [
            {k: json.loads(v) if k in tasks or k == "id" else v for k, v in row.items()}
            for row in rows
        ]

    @pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
    def test_a_file_is_answered_row_by_row(self, trained, pipe, files, tmp_path, ending, capsys):
        source, target = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
        options = ["--input", source, "--output", target, "--batch-size", "2"]
        assert run_cli("predict", trained.model, *options) == 0
        found = self.read(target)
        answers = plain(pipe([row["text"] for row in files]))
        expected = [{**row, **answer} for row, answer in zip(files, answers, strict=True)]
        assert [list(row) for row in found] == [["text", "more", "id", *SINGLE]] * 7
        assert_alike(found, expected)
        assert f"7 rows written to {target}" in capsys.readouterr().err.replace("\n", "")
        assert {path.name for path in tmp_path.iterdir()} == {
            "in.jsonl",
            "in.parquet",
            "in.csv",
            target.name,
        }

    def test_a_file_of_pairs_is_answered_too(self, trained, pipe, files, tmp_path):
        target = tmp_path / "out.jsonl"
        options = ["--input", tmp_path / "in.csv", "--output", target, "--text-pair", "more"]
        assert run_cli("predict", trained.model, *options) == 0
        answers = plain(pipe([(row["text"], row["more"]) for row in files]))
        cells = [{key: str(value) for key, value in row.items()} for row in files]  # of CSV: text
        expected = [{**row, **answer} for row, answer in zip(cells, answers, strict=True)]
        assert_alike(self.read(target), expected)

    def test_empty_text_is_answered(self, trained, capsys):
        assert run_cli("predict", trained.model, "", "--json") == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert (list(found), found["slots"], found["words"]) == (SINGLE, [], [])


FAULTS = {  # arguments after the model: what the message has to say
    "unknown-task": (["a text", "--tasks", "intent,mood"], ["'mood'", "intent, near, same"]),
    "pair-task-of-single-texts": (["a text", "--tasks", "same"], ["'same'", "pairs"]),
    "single-task-of-pairs": (["a", "b", "--pair", "--tasks", "intent"], ["'intent'", "single"]),
    "no-texts": ([], ["texts", "--input and --output"]),
    "input-without-output": (["--input", "in.jsonl"], ["--input and --output"]),
    "pair-of-three": (["a", "b", "c", "--pair"], ["--pair takes two texts"]),
    "no-input-file": (
        ["--input", "none.jsonl", "--output", "out.jsonl"],
        ["there is no file none.jsonl"],
    ),
    "ending-of-the-output": (
        ["--input", "in.jsonl", "--output", "out.txt"],
        ["--output: out.txt", ".parquet, .csv, .jsonl"],
    ),
    "ending-of-the-input": (
        ["--input", "in.txt", "--output", "out.jsonl"],
        ["--input: in.txt", ".parquet, .csv, .jsonl"],
    ),
    "no-output-folder": (
        ["--input", "in.jsonl", "--output", "none/out.jsonl"],
        ["there is no folder none"],
    ),
    "no-such-column": (
        ["--input", "in.jsonl", "--output", "out.jsonl", "--text", "txt"],
        ["--text: no column 'txt'", "text, gap"],
    ),
    "no-such-second-column": (
        ["--input", "in.jsonl", "--output", "out.jsonl", "--text-pair", "txt"],
        ["--text-pair: no column 'txt'"],
    ),
    "text-that-is-none": (
        ["--input", "in.jsonl", "--output", "out.jsonl", "--text", "gap"],
        ["--text", "'gap'", "row 1"],
    ),
    "file-that-is-broken": (["--input", "bad.jsonl", "--output", "out.jsonl"], ["bad.jsonl"]),
    "file-that-is-empty": (["--input", "empty.jsonl", "--output", "out.jsonl"], ["empty.jsonl"]),
    "column-named-as-a-task": (
        ["--input", "named.jsonl", "--output", "out.jsonl"],
        ["named.jsonl", "'intent'"],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_predict_cannot_do_ends_in_one_message(case, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(Path("in.jsonl"), [{"text": "a", "gap": "b"}, {"text": "b", "gap": None}])
    write_rows(Path("in.txt"), [{"text": "a"}])
    write_rows(Path("named.jsonl"), [{"text": "a", "intent": "mine"}])
    Path("bad.jsonl").write_text("no json\n")
    Path("empty.jsonl").write_text("")
    before = sorted(tmp_path.iterdir())
    arguments, parts = FAULTS[case]
    code = run_cli("predict", trained.model, *arguments)
    stdout, stderr = capsys.readouterr()
    assert (code, stdout) == (2, "")
    lines = message_of(stderr)
    assert lines[0].endswith(": 1 fault")
    assert len(lines) == 2
    assert all(part in stderr for part in parts), stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["predict", "evaluate", "inspect"])
@pytest.mark.parametrize("kind", ["nothing", "empty-folder", "another-model", "cut-weights"])
def test_what_is_no_model_ends_in_one_message(command, kind, trained, tmp_path, capsys):
    folder = tmp_path / "folder"
    if kind != "nothing":
        folder.mkdir()
    if kind == "another-model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    if kind == "cut-weights":
        for path in trained.model.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes()[:5000])
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_bytes((trained.model / name).read_bytes())
    more = {"predict": ["a text"], "evaluate": [trained.recipe], "inspect": []}[command]
    code = run_cli(command, folder, *more)
    stdout, stderr = capsys.readouterr()
    assert (code, stdout) == (2, "")
    lines = message_of(stderr)
    assert lines[0] == f"{folder}: 1 fault"
    assert len(lines) == 2
    if kind == "another-model":
        assert "bert" in lines[1]


# ---- inspect ----


class TestInspect:
    def test_a_recipe_shows_rows_labels_lengths_and_samples(self, trained, capsys):
        assert run_cli("inspect", trained.recipe, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["notes"] == []
        tasks = report["tasks"]
        assert list(tasks) == sorted(trained.scores["tasks"])
        joint = "intent+slots+topics+urgency+words"
        assert {name: task["source"] for name, task in tasks.items()} == {
            name: joint if name in joint.split("+") else name for name in tasks
        }
        assert all(task["rows"] == SPLITS for task in tasks.values())
        assert tasks["intent"]["labels"] == {"book": 4, "cancel": 4, "play": 4}
        assert tasks["slots"]["labels"]["B-city"] == 12
        assert tasks["topics"]["labels"] == {"music": 4, "travel": 8}
        numbers = [row["urgency"] for row in messages(12)]
        assert tasks["urgency"]["labels"] == {
            "mean": pytest.approx(np.mean(numbers), abs=1e-3),
            "min": 0.0,
            "max": 1.0,
            "missing": 0,
        }
        assert tasks["words"]["labels"] == {}
        tokenizer = AutoTokenizer.from_pretrained(trained.folder / "tokenizer")
        lengths = [len(tokenizer(row["text"])["input_ids"]) for row in messages(12)]
        assert tasks["intent"]["tokens"] == {
            "mean": pytest.approx(np.mean(lengths), abs=0.1),
            "median": int(np.median(lengths)),
            "p95": int(np.percentile(lengths, 95)),
            "max": max(lengths),
            "total": sum(lengths),
        }
        assert (tasks["intent"]["windows"], tasks["intent"]["cut"]) == (12, 0)

    def test_samples_are_rows_as_the_model_sees_them(self, trained):
        report = run_inspect(trained.recipe)
        rows = messages(12)
        tasks = report["tasks"]
        chosen = [sample["row"] for sample in tasks["intent"]["samples"]]
        assert (chosen[0], chosen[-1], len(chosen)) == (0, 11, 3)
        for name, column in (("intent", "intent"), ("urgency", "urgency")):
            found = [sample["label"] for sample in tasks[name]["samples"]]
            assert found == [rows[number][column] for number in chosen]
        found = [sample["label"] for sample in tasks["topics"]["samples"]]
        assert found == [sorted(rows[number]["topics"]) for number in chosen]
        assert len(tasks["near"]["samples"][0]["text"]) == 2
        for sample, number in zip(tasks["slots"]["samples"], chosen, strict=True):
            tags = [part.rpartition("/")[2] for part in sample["label"].split()]
            assert tags == rows[number]["tags"]

    def test_labels_that_train_lacks_are_noted(self, trained, tmp_path):
        files = files_of("messages")
        rows = [{**row, "intent": "unheard"} for row in messages(3)]
        files["test"] = str(write_rows(tmp_path / "test.jsonl", rows))
        recipe = recipe_of(trained.folder / "tokenizer")
        data = {**recipe["tasks"]["intent"]["data"], "data_files": files}
        recipe["tasks"] = {"intent": {"head": SEQUENCE, "data": data}}
        path = write_recipe(trained.folder / "unheard.yaml", recipe)
        (note,) = run_inspect(path)["notes"]
        assert note.startswith("intent: label 'unheard' is not in train; test has it in 3 rows")

    def test_a_recipe_is_shown_as_text(self, trained, capsys):
        assert run_cli("inspect", trained.recipe) == 0
        out = capsys.readouterr().out
        assert "intent  sequence_classification, rows of intent+slots+topics+urgency+words" in out
        assert "rows: train 12, validation 4, test 5; windows 12\n" in out
        assert "texts longer than 64 tokens, cut: 0 (0.0%) of train" in out
        assert "labels: book 4, cancel 4, play 4" in out
        assert not (trained.folder / "inspected").exists()

    def test_a_model_shows_its_tasks_and_sizes(self, trained, capsys):
        assert run_cli("inspect", trained.model, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        model = PolyheadModel.from_pretrained(trained.model)
        assert report["parameters"] == model.num_parameters()
        assert report["encoder"] == {
            "model_type": "bert",
            "layers": 1,
            "hidden_size": 16,
            "parameters": model.encoder.num_parameters(),
            "mask": "bidirectional",
            "trained_with": "bidirectional",
        }
        assert list(report["tasks"]) == sorted(trained.scores["tasks"])
        assert report["tasks"]["slots"] == {
            "head": TOKENS,
            "problem_type": None,
            "pooling": "mean",
            "pair": False,
            "reads": "text",
            "scheme": "iob2",
            "labels": ["O", "B-city", "I-city"],
            "parameters": 16 * 3 + 3,
            "decisions": {},
        }
        assert report["tasks"]["same"]["pair"]

    def test_a_model_is_shown_as_a_table(self, trained, capsys):
        assert run_cli("inspect", trained.model) == 0
        out = capsys.readouterr().out
        assert out.startswith("bert: 1 layers, hidden size 16, ")
        assert all(name in out for name in trained.scores["tasks"])


def run_inspect(path):
    return inspect_recipe(preparation.prepare(path))


# ---- the folder, for others ----


class TestFolder:
    def test_sentence_transformers_gives_the_vectors_of_the_embedding_task(self, trained, pipe):
        library = pytest.importorskip("sentence_transformers")
        model = library.SentenceTransformer(
            str(trained.model), trust_remote_code=True, device="cpu"
        )
        found = model.encode(TEXTS, batch_size=1)
        expected = [answer["near"] for answer in pipe(TEXTS, ["near"], batch_size=1)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert model.max_seq_length == 64

    def test_the_handler_answers_requests(self, trained, pipe, monkeypatch):
        monkeypatch.syspath_prepend(str(trained.model))
        from handler import EndpointHandler

        found = EndpointHandler(str(trained.model))(
            {"inputs": TEXTS, "parameters": {"tasks": ["intent", "near"]}}
        )
        assert_alike(json.loads(json.dumps(found)), plain(pipe(TEXTS, ["intent", "near"])))
