"""Files of a user's own that recipes name: run only where that is allowed, and found by name."""

import json
import subprocess
import sys

import pytest
import torch
from polyhead.modeling import Head, PolyheadModel, TaskConfig
from polyhead.modeling.heads import HEADS
from polyhead.train.balancing import Balancer, register_balancing
from polyhead.train.batches import register_strategy
from polyhead.train.batches.strategies import rows_of_epoch
from polyhead.train.errors import UserError
from polyhead.train.evaluation import register_metric
from polyhead.train.evaluation.metrics import compute, metrics_for
from polyhead.train.kinds import TaskKind, kind_of, register_kind
from polyhead.train.kinds.classification import SingleLabel
from polyhead.train.recipe import allow_code, load_recipe
from polyhead.train.recipe.sections import Sampling
from train_helpers import (  # noqa: F401
    SEQUENCE,
    messages,
    private_cache,
    run_cli,
    tables,
    write_recipe,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("tables")

SPLITS = ("train", "test")
HEAD = '''
from polyhead.modeling import register_head
from polyhead.modeling.heads import SequenceClassificationHead


class Halved(SequenceClassificationHead):
    """Half the logits."""

    def forward(self, x):
        return super().forward(x) / 2


register_head("halved", Halved)
'''
TRAINING = """
from polyhead.train.balancing import Balancer, register_balancing
from polyhead.train.batches import register_strategy
from polyhead.train.evaluation import register_metric


def hits(predictions, references):
    return sum(p == r for p, r in zip(predictions, references))


register_metric("hits", hits, labels=["class"])
register_strategy("by_name", lambda sampling, sizes, epoch: dict.fromkeys(sizes, 2.0))


class Double(Balancer):
    def _weights(self, step, losses):
        return dict.fromkeys(self.names, 2.0)


register_balancing("double", Double)
"""


@pytest.fixture
def recipe(tmp_path, encoder_folder) -> dict:
    """A recipe whose parts stand in `my_heads.py` and `my_training.py` beside it."""
    (tmp_path / "my_heads.py").write_text(HEAD)
    (tmp_path / "my_training.py").write_text(TRAINING)
    rows = {split: str(write_rows(tmp_path / f"{split}.jsonl", messages(12))) for split in SPLITS}
    data = {"data_files": rows, "text": "text", "label": "intent"}
    metrics = ["accuracy", "my_training:hits"]
    return {
        "encoder": str(encoder_folder("bert")),
        "output_dir": str(tmp_path / "run"),
        "sampling": {"strategy": "my_training:by_name"},
        "balancing": {"method": "my_training:double"},
        "tasks": {
            "intent": {"head": "my_heads:halved", "metrics": metrics, "data": data},
            "again": {"head": SEQUENCE, "data": data},
        },
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 4},
    }


class TestRecipes:
    def test_nothing_runs_unless_it_is_allowed(self, recipe, tmp_path):
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        with pytest.raises(UserError) as refused:
            load_recipe(path)
        text = str(refused.value)
        for key in ("tasks.intent.head", "tasks.intent.metrics.1", "sampling.strategy"):
            assert f"- {key}: my_" in text
        assert "balancing.method: my_training:double is code in my_training" in text
        assert "--allow-code" in text
        assert "my_heads" not in sys.modules

    def test_names_are_resolved_and_written_again(self, recipe, tmp_path):
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        assert allow_code(path) == ["my_heads", "my_training"]
        loaded = load_recipe(path)
        assert loaded.tasks["intent"].head == "halved"
        assert loaded.tasks["intent"].metrics == ["accuracy", "hits"]
        assert (loaded.sampling.strategy, loaded.balancing.method) == ("by_name", "double")
        text = loaded.to_yaml()
        for name in ("my_heads:halved", "my_training:hits", "my_training:by_name"):
            assert name in text
        assert type(kind_of(loaded.tasks["intent"])) is SingleLabel

    def test_trained_and_loaded_by_a_stranger(self, recipe, tmp_path):
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        assert run_cli("train", path, "--allow-code") == 0
        scores = json.loads((tmp_path / "run/scores.json").read_text())
        assert 0 <= scores["tasks"]["intent"]["hits"] <= 12
        model = tmp_path / "run/model"
        logits = _logits(PolyheadModel.from_pretrained(model))
        stranger = subprocess.run(
            [sys.executable, "-c", STRANGER, model],
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""},
        )
        assert stranger.returncode == 0, stranger.stderr[-2000:]
        assert json.loads(stranger.stdout.splitlines()[-1]) == logits

    @pytest.mark.slow
    @pytest.mark.parametrize("command", ["inspect", "predict", "evaluate"])
    def test_another_process_needs_the_same_word(self, command, recipe, tmp_path):
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        assert run_cli("train", path, "--allow-code") == 0
        more = {"inspect": [], "predict": ["book it"], "evaluate": [str(path)]}[command]
        call = [sys.executable, "-m", "polyhead.train.cli", command, tmp_path / "run/model", *more]
        refused = subprocess.run(call, capture_output=True, text=True)
        assert refused.returncode == 2
        assert "my_heads" in refused.stderr
        assert "--allow-code" in refused.stderr
        assert "Traceback" not in refused.stderr
        done = subprocess.run([*call, "--allow-code"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    @pytest.mark.parametrize(
        ("text", "word"),
        [
            (None, "there is no my_heads.py"),
            ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
            ("def", "invalid syntax"),
            (HEAD.replace('"halved"', '"embedding"'), "take another name"),
        ],
    )
    def test_files_that_do_not_import(self, text, word, recipe, tmp_path):
        path, file = write_recipe(tmp_path / "recipe.yaml", recipe), tmp_path / "my_heads.py"
        file.unlink()
        if text is not None:
            file.write_text(text)
        with pytest.raises(UserError, match="my_heads: cannot be imported") as refused:
            allow_code(path)
        assert word in str(refused.value)
        assert "my_heads" not in sys.modules

    def test_a_name_that_the_file_does_not_register(self, recipe, tmp_path):
        recipe["tasks"]["intent"]["head"] = "my_heads:doubled"
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        allow_code(path)
        with pytest.raises(UserError, match="my_heads registers no head 'doubled'; it has: halved"):
            load_recipe(path)

    def test_two_files_of_one_name(self, recipe, tmp_path):
        allow_code(write_recipe(tmp_path / "recipe.yaml", recipe))
        (tmp_path / "other").mkdir()
        (tmp_path / "other/my_heads.py").write_text(HEAD.replace("/ 2", "/ 3"))
        (tmp_path / "other/my_training.py").write_text(TRAINING)
        with pytest.raises(UserError, match="another my_heads has been imported"):
            allow_code(write_recipe(tmp_path / "other/recipe.yaml", recipe))

    def test_the_folder_of_the_command_is_not_searched(self, recipe, tmp_path, monkeypatch):
        (tmp_path / "elsewhere").mkdir()
        path = write_recipe(tmp_path / "elsewhere/recipe.yaml", recipe)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend("")
        with pytest.raises(UserError, match="there is no my_heads.py in"):
            allow_code(path)

    def test_a_file_called_as_an_installed_package(self, recipe, tmp_path):
        recipe["tasks"]["intent"]["head"] = "antigravity:halved"
        (tmp_path / "antigravity.py").write_text(HEAD)
        with pytest.raises(UserError, match="an installed package is called antigravity too"):
            allow_code(write_recipe(tmp_path / "recipe.yaml", recipe))


def _logits(model: PolyheadModel) -> list:
    ids = torch.tensor([[2, 20, 30, 3]])
    return model(input_ids=ids, tasks=["intent"]).logits["intent"].tolist()


STRANGER = """
import json, sys, torch
sys.modules["polyhead"] = None
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.tensor([[2, 20, 30, 3]])
print(json.dumps(model(input_ids=ids, tasks=["intent"]).logits["intent"].tolist()))
"""


class TestTables:
    def test_a_metric_fits_the_labels_that_it_reads(self):
        register_metric("length", lambda p, r: len(p), labels=["class", "tags"])
        register_metric("worst", lambda p, r: max(p), labels=["number"], lower_is_better=True)
        classes = TaskConfig(head=SEQUENCE, labels=["a", "b"])
        numbers = TaskConfig(head=SEQUENCE, problem_type="regression")
        groups = TaskConfig(head="embedding", loss="contrastive")
        assert metrics_for(kind_of(classes))[-1] == "length"
        assert metrics_for(kind_of(numbers))[-1] == "worst"
        assert metrics_for(kind_of(groups)) == ("accuracy",)
        assert compute(["length", "accuracy"], classes, ["a"], ["b"]) == {
            "length": 1.0,
            "accuracy": 0.0,
        }

    def test_a_metric_that_gives_no_number(self):
        register_metric("none", lambda p, r: None, labels=["class"])
        classes = TaskConfig(head=SEQUENCE, labels=["a", "b"])
        with pytest.raises(ValueError, match="metric none gave None; it must give a number"):
            compute(["none"], classes, ["a"], ["b"])

    @pytest.mark.parametrize("weights", [None, {"a": 1}, {"a": 1, "b": -1}, {"a": 1, "b": "x"}])
    def test_a_strategy_that_gives_no_weights(self, weights):
        register_strategy("odd", lambda sampling, sizes, epoch: weights)
        with pytest.raises(ValueError, match="strategy odd gave .* for each of a, b"):
            rows_of_epoch(Sampling(strategy="odd"), {"a": 5, "b": 5}, 0, passes={})

    def test_a_strategy_shares_the_epoch(self):
        register_strategy("mine", lambda sampling, sizes, epoch: {"a": 1, "b": 3})
        rows = rows_of_epoch(Sampling(strategy="mine"), {"a": 10, "b": 10}, 0, passes={})
        assert rows == {"a": 5, "b": 15}

    @pytest.mark.parametrize(
        ("register", "word"),
        [
            (lambda: register_metric("accuracy", max, labels=["class"]), "give a function"),
            (lambda: register_metric("accuracy", lambda p, r: 1, labels=["class"]), "own"),
            (lambda: register_metric("x", lambda p, r: 1, labels=["text"]), "allowed: class"),
            (lambda: register_metric("x", lambda p, r: 1, labels="class"), "allowed: class"),
            (lambda: register_strategy("uniform", lambda s, z, e: z), "own"),
            (lambda: register_strategy("x", 3), "give a function"),
            (lambda: register_strategy("x", lambda s, z, e: z, options=["alpha"]), "no option"),
            (lambda: register_balancing("pcgrad", Balancer), "own"),
            (lambda: register_balancing("x", 3), "subclass of Balancer"),
            (lambda: register_balancing("x", Balancer, options=["beta"]), "no option beta"),
            (lambda: register_kind("embedding", SingleLabel), "own"),
            (lambda: register_kind("unknown", SingleLabel), "is unknown; allowed"),
            (lambda: register_kind("embedding", TaskKind.encode), "subclass of TaskKind"),
        ],
    )
    def test_refused(self, register, word):
        with pytest.raises(ValueError, match=word):
            register()

    def test_a_head_of_no_kind(self):
        class Bare(Head):
            def forward(self, x):
                return x

        HEADS.add("bare", Bare, Bare)
        with pytest.raises(ValueError, match="register_kind"):
            kind_of(TaskConfig(head="bare"))
        register_kind("bare", SingleLabel)
        assert type(kind_of(TaskConfig(head="bare"))) is SingleLabel
