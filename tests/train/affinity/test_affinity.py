"""Comparing tasks: gradients that agree or fight, exact lookaheads, single runs beside a joint one.

Tasks are the same where they read the same labels and have no head, or equal ones that do not
train; with inverted labels they are opposites.
"""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from polyhead.modeling import TaskConfig
from polyhead.train.affinity import advice as affinity_advice
from polyhead.train.affinity import measure as tool
from polyhead.train.affinity.advice import conclude
from polyhead.train.affinity.measure import affinity, compare_tasks, measure
from polyhead.train.balancing.task_gradients import shared_parameters
from polyhead.train.batches.collator import model_inputs
from polyhead.train.commands import training as run
from polyhead.train.commands.setup import PreparedRun, prepare
from polyhead.train.errors import UserError
from polyhead.train.evaluation.alone import side_by_side
from polyhead.train.optimization.freezing import apply_freeze
from polyhead.train.recipe import load_recipe
from torch import nn
from torch.testing import assert_close
from train_helpers import (
    files_of,
    messages,
    pairs,
    private_cache,  # noqa: F401
    set_key,
    write_recipe,
    write_rows,
    write_splits,
)

SEQUENCE = "sequence_classification"
ROWS = messages(12)
LORA = {"r": 2, "lora_alpha": 4}


def opposite_pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    inverted = {"yes": "no", "no": "yes"}
    return [{**row, "other": inverted[row["same"]]} for row in pairs(count, start)]


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory, encoder_folder):
    """(task names, dotted keys) -> recipe file beside its data."""
    root = tmp_path_factory.mktemp("affinity")
    write_splits(root, "messages", messages)
    write_splits(root, "pairs", opposite_pairs)
    pair = {"data_files": files_of("pairs"), "text": "text1", "text_pair": "text2"}
    text = {"data_files": files_of("messages"), "text": "text"}
    tasks = {
        "near": {"head": "embedding", "data": {**pair, "label": "score"}},
        "twin": {"head": "embedding", "data": {**pair, "label": "score"}},
        "same": {"head": SEQUENCE, "data": {**pair, "label": "same"}},
        "other": {"head": SEQUENCE, "data": {**pair, "label": "other"}},
        "intent": {"head": SEQUENCE, "data": {**text, "label": "intent"}},
        "slots": {
            "head": "token_classification",
            "data": {**text, "tokens": "tokens", "label": "tags"},
        },
    }

    def make(names: str, **keys: Any) -> Path:
        number = len(list(root.glob("*.yaml")))
        recipe = {
            "encoder": str(encoder_folder("bert")),
            "tasks": {name: copy.deepcopy(tasks[name]) for name in names.split()},
            "training": {
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 8,
                "disable_tqdm": True,
                "use_cpu": True,
            },
            "output_dir": f"${{RECIPE_DIR}}/out_{number}",
        }
        for key, value in keys.items():
            set_key(recipe, key.replace("__", "."), value)
        return write_recipe(root / f"recipe_{number}.yaml", recipe)

    return make


def folder_of(recipe: Path) -> Path:
    return recipe.parent / recipe.stem.replace("recipe", "out")


def measured(recipe: Path, steps: int) -> dict[str, Any]:
    """The short run without its picture."""
    run = prepare(recipe)
    apply_freeze(run.model, run.recipe.freeze)
    assert not tool._faults(run, full=False)
    return measure(run, steps=steps)


def cosine_of(result: dict[str, Any], *names: str) -> dict[str, Any]:
    return next(f for f in result["cosines"] if set(f["tasks"]) == set(names))


def gain_of(result: dict[str, Any], follows: str, gains: str) -> dict[str, Any]:
    return next(f for f in result["affinities"] if (f["follows"], f["gains"]) == (follows, gains))


# ---- one comparison ----


class TestCompareTasks:
    def test_equals_a_calculation_by_hand(self):
        # a = |w|^2 / 2, b = 2 w_1 at w = (3, 4): gradients (3, 4) and (2, 0), cosine 3 / 5.
        # A step of length 1: a's leads to (2.4, 3.2), where a is 8 and b 4.8; b's leads to (2, 4),
        # where a is 10 and b 4; before, a is 12.5 and b 6.
        w = nn.Parameter(torch.tensor([3.0, 4.0]))
        found, gains = compare_tasks(lambda: [w.square().sum() / 2, 2 * w[0]], [w], 1.0)
        assert_close(found.double(), torch.tensor([[1, 0.6], [0.6, 1]]).double(), atol=1e-6, rtol=0)
        expected = [[1 - 8 / 12.5, 1 - 4.8 / 6], [1 - 10 / 12.5, 1 - 4 / 6]]
        assert_close(gains, torch.tensor(expected).double(), atol=1e-6, rtol=0)
        assert w.tolist() == [3, 4]

    def test_the_size_of_a_loss_changes_nothing(self):
        w = nn.Parameter(torch.tensor([3.0, 4.0]))
        one = compare_tasks(lambda: [w.square().sum(), 2 * w[0]], [w], 0.5)
        other = compare_tasks(lambda: [w.square().sum() * 1000, w[0] / 1000], [w], 0.5)
        for ours, theirs in zip(one, other, strict=True):
            assert_close(ours, theirs, atol=1e-5, rtol=0)

    def test_a_task_without_gradient_is_compared_with_none(self):
        w = nn.Parameter(torch.tensor([3.0, 4.0]))
        found, gains = compare_tasks(lambda: [w.square().sum(), 0 * w.sum() + 1], [w], 1.0)
        assert found.isnan().tolist() == [[False, True], [True, True]]
        assert gains.isnan().tolist() == [[False, False], [True, True]]
        assert gains[0, 1] == 0
        assert w.tolist() == [3, 4]

    def test_a_loss_of_zero_has_no_share_to_take_away(self):
        w = nn.Parameter(torch.tensor([3.0, 4.0]))
        _, gains = compare_tasks(lambda: [w.square().sum(), (w[0] - 3) * 2], [w], 1.0)
        assert gains.isnan().tolist() == [[False, True], [False, True]]

    def test_on_a_model_equals_moving_a_copy_and_restores_every_bit(self, make_model, batch_of):
        tasks = {
            "one": TaskConfig(head=SEQUENCE, labels=["x", "y"]),
            "two": TaskConfig(head=SEQUENCE, labels=["x", "y", "z"]),
        }
        model = make_model("bert", tasks)
        labels = {"one": torch.tensor([0, 1, 1]), "two": torch.tensor([2, 0, 1])}
        fed = {**batch_of(model, [5, 7, 3]), "labels": labels}
        before = copy.deepcopy(model.state_dict())
        found, gains = compare_tasks(
            lambda: list(model(**fed).losses.values()), shared_parameters(model), 0.1
        )
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        losses = model(**fed).losses
        for i, follows in enumerate(losses):
            moved = copy.deepcopy(model)
            moved(**fed).losses[follows].backward()
            own = [p for p in moved.encoder.parameters() if p.grad is not None]
            norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in own))
            with torch.no_grad():
                for parameter in own:
                    parameter -= 0.1 / norm * parameter.grad
                after = moved(**fed).losses
            for j, name in enumerate(losses):
                expected = 1 - after[name].item() / losses[name].item()
                assert gains[i, j].item() == pytest.approx(expected, abs=1e-5)
        assert found[0, 1].item() == pytest.approx(found[1, 0].item(), abs=1e-12)

    def test_inverted_labels_pull_the_other_way(self, make_model, batch_of):
        """One row through heads with the same weights: gradients are c (p - y), c > 0 of each."""
        tasks = {n: TaskConfig(head=SEQUENCE, labels=["no", "yes"]) for n in ("one", "not_one")}
        model = make_model("bert", tasks)
        model.heads["not_one"].load_state_dict(model.heads["one"].state_dict())
        y = torch.tensor([1])
        fed = {**batch_of(model, [7]), "labels": {"one": y, "not_one": 1 - y}}
        found, gains = compare_tasks(
            lambda: list(model(**fed).losses.values()), shared_parameters(model), 0.01
        )
        assert found[0, 1].item() == pytest.approx(-1, abs=1e-5)
        assert (gains.sign() == torch.tensor([[1, -1], [-1, 1]])).all()


# ---- the short run ----


@pytest.fixture(scope="module")
def toys(recipe_of) -> dict[str, Any]:
    """Two equal tasks and two opposites."""
    found = prepare(recipe_of("near twin same other", freeze__heads=["same", "other"]))
    heads = found.model.heads
    heads["other"].load_state_dict(heads["same"].state_dict())
    apply_freeze(found.model, found.recipe.freeze)
    assert not tool._faults(found, full=False)
    return measure(found, steps=30)


class TestMeasure:
    def test_the_same_task_twice_agrees(self, toys):
        cosine = cosine_of(toys, "near", "twin")
        assert cosine["mean"] == pytest.approx(1, abs=1e-5)
        assert cosine["negative"] == 0
        own, other = gain_of(toys, "near", "near"), gain_of(toys, "near", "twin")
        assert other["mean"] == pytest.approx(own["mean"], abs=1e-9)
        assert own["mean"] > 2 * own["standard_error"]

    def test_a_task_and_its_opposite_fight(self, toys):
        cosine = cosine_of(toys, "same", "other")
        assert cosine["mean"] < -2 * cosine["standard_error"]
        for one, other in (("same", "other"), ("other", "same")):
            gain = gain_of(toys, one, other)
            assert gain["mean"] < -2 * gain["standard_error"]
            assert gain["negative"] > 0.5

    def test_says_what_follows(self, toys):
        found = conclude({**toys, "scores": None})
        verdicts = {tuple(pair["tasks"]): pair["verdict"] for pair in found["pairs"]}
        assert verdicts["near", "twin"] == "help"
        assert verdicts["other", "same"] == "fight"
        assert found["advice"]["other"]["verdict"] in ("apart", "divided")

    def test_the_order_of_tasks_changes_nothing(self, recipe_of):
        results = [
            measured(recipe_of(names), 4) for names in ("near slots same", "same near slots")
        ]
        for result in results:
            del result["seconds"]
        assert results[0] == results[1]

    def test_writes_what_it_found(self, recipe_of, rendered):
        recipe = recipe_of("intent slots near")
        result = affinity(recipe, steps=41)
        assert result["tasks"] == ["intent", "near", "slots"]
        assert (result["steps"], result["measurements"], result["batch_size"]) == (41, 20, 8)
        length = 0.01 * 1e-3 * math.sqrt(result["shared_weights"])
        assert result["step_length"] == pytest.approx(length)
        assert [len(result[key]) for key in ("cosines", "affinities", "pairs", "advice")] == [
            3,
            9,
            3,
            3,
        ]
        assert {found["compared"] for found in result["cosines"]} == {20}
        folder = folder_of(recipe)
        assert {path.name for path in folder.iterdir()} == {"affinity.json", "affinity.png"}
        assert json.loads((folder / "affinity.json").read_text()) == result
        assert (folder / "affinity.png").read_bytes().startswith(b"\x89PNG")

    def test_measuring_leaves_the_training_as_it_is(self, recipe_of, monkeypatch):
        """The weights at the end are the same whether all steps are measured or the last one."""
        weights = []
        for count in (1, 6):
            monkeypatch.setattr(tool, "MEASUREMENTS", count)
            found = prepare(recipe_of("intent slots near"))
            assert measure(found, steps=6)["measurements"] == count
            weights.append(found.model.state_dict())
        first = prepare(recipe_of("intent slots near")).model.state_dict()
        for name, value in weights[0].items():
            assert torch.equal(value, weights[1][name]), name
            assert not torch.equal(value, first[name]), name

    def test_each_number_is_that_of_its_tasks(self, recipe_of):
        """One step: what it gives is one comparison, made here on the same batch."""
        recipe = recipe_of("intent slots near")
        result = measured(recipe, 1)
        found = prepare(recipe)
        model = found.model.eval()
        fed = model_inputs(next(iter(tool._batches(found, size=8, steps=1))))
        names = ["intent", "near", "slots"]
        cosines, gains = compare_tasks(
            lambda: [model(**fed).losses[name] for name in names],
            shared_parameters(model),
            result["step_length"],
        )
        for i, one in enumerate(names):
            for j, other in enumerate(names):
                assert gain_of(result, one, other)["mean"] == gains[i, j].item()
                if i < j:
                    assert cosine_of(result, one, other)["mean"] == cosines[i, j].item()

    def test_a_batch_has_rows_of_every_source(self, recipe_of):
        keys = {"training__per_device_train_batch_size": 1}
        result = measured(recipe_of("intent near", **keys), 3)
        assert result["batch_size"] == 8
        assert {found["compared"] for found in result["affinities"]} == {3}

    def test_a_task_without_labels_in_a_batch_is_left_out_there(self, recipe_of):
        """A quarter of the rows have an intent: in some batches of 4 none has."""
        recipe = recipe_of("intent slots", training__per_device_train_batch_size=4)
        rows = [{**row, "intent": row["intent"] if i < 3 else None} for i, row in enumerate(ROWS)]
        path = write_rows(recipe.parent / "few.jsonl", rows)
        overrides = [f"tasks.{name}.data.data_files.train={path}" for name in ("intent", "slots")]
        found = prepare(recipe, overrides)
        result = measure(found, steps=12)
        missing = 12 - cosine_of(result, "intent", "slots")["compared"]
        assert 0 < missing < 12
        assert gain_of(result, "intent", "slots")["compared"] == 12 - missing
        assert gain_of(result, "slots", "slots")["compared"] == 12

    def test_rates_of_layers_shorten_the_step(self, recipe_of):
        keys = {"optimizer__layer_decay": 0.5}
        decayed, plain = (
            measured(recipe_of("intent slots", **own), 1)["step_length"] for own in (keys, {})
        )
        assert 0.25 * plain < decayed < plain

    def test_only_tasks_that_share_weights_are_compared(self, recipe_of):
        """A frozen encoder, an adapter for two tasks and one for the third."""
        keys = {
            "freeze__encoder": True,
            "tasks__intent__adapter": {**LORA, "name": "both"},
            "tasks__slots__adapter": "both",
            "tasks__near__adapter": LORA,
        }
        result = affinity(recipe_of("intent slots near", **keys), steps=2)
        assert [found["tasks"] for found in result["cosines"]] == [["intent", "slots"]]
        verdicts = {tuple(pair["tasks"]): pair["verdict"] for pair in result["pairs"]}
        assert verdicts["intent", "near"] == verdicts["near", "slots"] == "separate"
        assert verdicts["intent", "slots"] == "unclear"
        assert {found["follows"] for found in result["affinities"]} == {"intent", "slots"}
        assert result["advice"]["near"]["verdict"] == "separate"

    def test_frozen_layers_are_not_shared_and_layers_that_join_later_are(self, recipe_of):
        counts = [
            measured(recipe_of("intent slots", **keys), 1)["shared_weights"]
            for keys in (
                {},
                {"freeze__layers": [0]},
                {"freeze__layers": [0], "freeze__unfreeze": {"every": 1}},
            )
        ]
        assert counts[1] < counts[0] == counts[2]

    def test_a_loss_that_is_not_finite_is_named(self, recipe_of):
        recipe = recipe_of("intent slots")
        found = prepare(recipe)
        with torch.no_grad():
            next(found.model.heads["slots"].parameters()).fill_(math.nan)
        with pytest.raises(UserError, match="loss of task slots is nan in step 1; lower"):
            measure(found, steps=2)


class TestFaults:
    @pytest.mark.parametrize(
        ("names", "keys", "options", "message"),
        [
            ("intent", {}, {}, "tasks: intent alone; affinity compares two or more"),
            ("intent slots", {"freeze__encoder": True}, {}, "freeze: no two tasks share weights"),
            (
                "intent near",
                {
                    "freeze__encoder": True,
                    "tasks__intent__adapter": LORA,
                    "tasks__near__adapter": LORA,
                },
                {},
                "freeze: no two tasks share weights",
            ),
            ("intent slots", {}, {"steps": 0}, "--steps: 0; it must be 1 or more"),
            ("intent slots", {"freeze__layers": [7]}, {}, "freeze.layers"),
            ("intent slots", {"training__max_steps": 3}, {"full": True}, "training.max_steps"),
            (
                "intent near",
                {"tasks__near__data__data_files": files_of("pairs", "train")},
                {"full": True},
                "tasks.near.data: no test or validation rows to score",
            ),
        ],
    )
    def test_are_told_before_anything_is_written(self, recipe_of, names, keys, options, message):
        recipe = recipe_of(names, **keys)
        with pytest.raises(UserError, match=re.escape(message)):
            affinity(recipe, **options)
        assert not folder_of(recipe).exists()


# ---- conclusions ----


def number(mean: float, error: float, compared: int = 30) -> dict[str, Any]:
    return {"mean": mean, "standard_error": error, "negative": 0.5, "compared": compared}


def result_of(
    cosine: float, to: float, back: float, *, compared: int = 30, own: float = 1.0
) -> dict[str, Any]:
    """Tasks x and y, all standard errors 0.1: beyond 0.2 is a finding."""
    gains = {("x", "x"): own, ("x", "y"): to, ("y", "x"): back, ("y", "y"): 1.0}
    return {
        "tasks": ["x", "y"],
        "steps": 120,
        "measurements": compared,
        "cosines": [{"tasks": ["x", "y"], **number(cosine, 0.1, compared)}],
        "affinities": [
            {"follows": i, "gains": j, **number(mean, 0.1, compared)}
            for (i, j), mean in gains.items()
        ],
        "scores": None,
    }


class TestConclude:
    @pytest.mark.parametrize(
        ("numbers", "verdict", "advice"),
        [
            ((0.3, 0.3, 0.3), "help", ["share", "share"]),
            ((0.0, 0.3, 0.1), "help", ["either", "share"]),
            ((0.3, 0.1, 0.1), "help", ["either", "either"]),
            ((-0.3, -0.1, 0.1), "fight", ["apart", "apart"]),
            ((0.0, -0.3, 0.0), "fight", ["either", "apart"]),
            ((-0.3, 0.3, 0.0), "mixed", ["apart", "share"]),
            ((0.19, -0.19, 0.2), "unclear", ["either", "either"]),
        ],
    )
    def test_verdicts(self, numbers, verdict, advice):
        """Numbers: cosine, what x's step does to y, what y's does to x."""
        found = conclude(result_of(*numbers))
        assert [pair["verdict"] for pair in found["pairs"]] == [verdict]
        assert [found["advice"][name]["verdict"] for name in ("x", "y")] == advice

    def test_a_pair_in_words(self):
        found = conclude(result_of(-0.3, -0.25, 0.0))
        assert found["pairs"][0]["sentence"] == (
            "x and y: they fight (cosine -0.30 ± 0.10, negative in 50%; a step of x takes "
            "-25 ± 10 % off the loss of y, one of y +0 ± 10 % off that of x)."
        )
        assert found["advice"]["x"]["sentence"] == (
            "x: it fights with y and gains from no task; an adapter of its own on a frozen "
            "encoder, or a model of its own, may serve it better; --full tells."
        )

    @pytest.mark.parametrize(
        ("numbers", "words"),
        [
            ((0.0, 0.3, 0.3), "they help each other"),
            ((0.0, 0.3, 0.0), "x helps y"),
            ((0.0, 0.0, 0.3), "y helps x"),
            ((0.0, -0.3, 0.0), "x harms y"),
            ((0.0, 0.0, -0.3), "y harms x"),
            ((0.0, -0.3, -0.3), "they fight"),
            ((0.3, 0.0, -0.3), "the evidence is divided"),
        ],
    )
    def test_who_does_what_to_whom(self, numbers, words):
        sentence = conclude(result_of(*numbers))["pairs"][0]["sentence"]
        assert sentence.startswith(f"x and y: {words} (")

    def test_a_task_between_a_friend_and_a_rival(self):
        result = result_of(0.3, 0.3, 0.3)
        result["tasks"] = ["x", "y", "z"]
        result["cosines"] += [{"tasks": ["x", "z"], **number(-0.3, 0.1)}]
        result["cosines"] += [{"tasks": ["y", "z"], **number(0.0, 0.1)}]
        for i, j, mean in (("x", "z", 0), ("z", "x", -0.3), ("y", "z", 0), ("z", "y", 0)):
            result["affinities"].append({"follows": i, "gains": j, **number(mean, 0.1)})
        advice = conclude(result)["advice"]
        assert advice["x"]["verdict"] == "divided"
        assert advice["x"]["sentence"].startswith("x: it gains from y and fights with z; ")
        assert [advice[name]["verdict"] for name in ("y", "z")] == ["share", "apart"]

    def test_nothing_beyond_two_standard_errors_is_said_to_be_nothing(self):
        found = conclude(result_of(0.2, -0.2, 0.2))
        assert found["cautions"][0].startswith("Nothing in the short run is beyond 2 standard")
        assert "nothing beyond 2 standard errors" in found["pairs"][0]["sentence"]
        assert found["cautions"][-1].startswith("120 steps show the beginning of training only")

    def test_few_measurements_are_no_evidence(self):
        found = conclude(result_of(0.0, 0.9, 0.9, compared=7))
        assert found["pairs"][0]["verdict"] == "unclear"
        assert found["cautions"][0].startswith("7 measurements are too few for a finding on gains")

    def test_a_step_that_is_no_help_to_its_own_task_is_told(self):
        found = conclude(result_of(0.3, 0.3, 0.3, own=0.1))
        assert "A step of x does not surely lower its own loss" in found["cautions"][1]

    def test_one_measurement_has_no_standard_error(self, recipe_of):
        result = measured(recipe_of("intent slots"), 1)
        assert result["cosines"][0]["standard_error"] is None
        found = conclude({**result, "scores": None})
        assert found["pairs"][0]["verdict"] == "unclear"

    @pytest.mark.parametrize(
        ("single", "joint", "metric", "verdict"),
        [  # over 100 rows; standard error of a difference: some 0.07 of a share of a half
            (0.5, 0.6, "accuracy", "either"),
            (0.5, 0.9, "accuracy", "share"),
            (0.9, 0.5, "accuracy", "apart"),
            (0.5, 0.6, "spearman", "either"),  # 0.0985
            (0.2, 0.9, "spearman", "share"),
            (0.5, 0.1, "mse", "either"),  # lower is better; how sure it is nobody knows
            (math.nan, 0.9, "pearson", "either"),
        ],
    )
    def test_scores_decide(self, single, joint, metric, verdict):
        found = side_by_side({metric: single}, {metric: joint}, 100, "test")
        result = result_of(-0.3, -0.3, -0.3) | {"scores": {"x": found}}
        advice = conclude(result)["advice"]["x"]
        assert advice["verdict"] == verdict
        assert "nan" not in advice["sentence"]

    def test_standard_errors_of_scores(self):
        found = side_by_side({"accuracy": 0.9}, {"accuracy": 0.5}, 100, "test")
        assert found["gain"] == pytest.approx(-0.4)
        share = 92 / 104
        variances = share * (1 - share) / 104, 0.25 / 104
        assert found["standard_error"] == pytest.approx(math.sqrt(sum(variances)))
        found = side_by_side({"mcc": 0.0}, {"mcc": 0.6}, 100, "test")
        assert found["standard_error"] == pytest.approx(math.hypot(0.1, 0.064))
        found = side_by_side({"mse": 0.5}, {"mse": 0.1}, 100, "test")
        assert (found["gain"], found["standard_error"]) == (pytest.approx(0.4), None)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00123, "0.0012"), (0.996, "1.00"), (1.25, "1.2"), (99.6, "100"), (1234, "1200"), (0, "0")],
)
def test_two_digits_tell(value, text):
    assert affinity_advice._digits(value) == text


# ---- each task alone, and all jointly ----


@pytest.fixture(scope="module")
def both(recipe_of) -> tuple[Path, dict[str, Any]]:
    """A recipe with what belongs to the joint run only, and its full comparison."""
    keys = {
        "sampling": {"strategy": "uniform", "rows_per_epoch": 30},
        "balancing": {"method": "uncertainty"},
        "freeze": {"heads": ["intent"], "layers": [0], "unfreeze": {"every": 0.5}},
        "training__num_train_epochs": 1,
        "training__metric_for_best_model": "intent_accuracy",
        "tasks__intent__adapter": "both",
        "tasks__near__adapter": {**LORA, "name": "both"},
    }
    recipe = recipe_of("intent near", **keys)
    return recipe, affinity(recipe, steps=2, full=True)


@pytest.mark.slow
class TestFull:
    def test_gives_the_scores_of_training_each_task_alone(self, both, recipe_of):
        _, result = both
        own = {"training__num_train_epochs": 1, "freeze": {"layers": [0]}}
        own["freeze"]["unfreeze"] = {"every": 0.5}
        adapter = {**LORA, "name": "both"}
        recipes = {
            "near": recipe_of("near", tasks__near__adapter=adapter, **own),
            "intent": recipe_of("intent", tasks__intent__adapter=adapter, **own),
        }
        set_key(own, "freeze.heads", ["intent"])
        recipes["intent"] = recipe_of("intent", tasks__intent__adapter=adapter, **own)
        for name, recipe in recipes.items():
            scores = run.train(recipe)["tasks"][name]
            found = result["scores"][name]
            assert found["single"] == scores[found["metric"]]

    def test_gives_the_scores_of_the_joint_training(self, both):
        recipe, result = both
        scores = run.train(recipe)
        for name, found in result["scores"].items():
            assert found["joint"] == scores["tasks"][name][found["metric"]]
            sign = 1 if found["joint"] >= found["single"] else -1
            assert found["gain"] == pytest.approx(sign * abs(found["joint"] - found["single"]))
            assert (found["split"], found["rows"]) == ("test", 5)

    def test_leaves_runs_that_can_be_started_again(self, both):
        recipe, result = both
        folder = folder_of(recipe) / "affinity"
        assert {path.name for path in folder.iterdir()} == {"intent", "near", "all-tasks"}
        assert set(result["wall_seconds"]) == {"intent", "near", "all-tasks"}
        assert all(seconds > 0 for seconds in result["wall_seconds"].values())
        alone = load_recipe(folder / "intent" / "recipe.yaml")
        assert list(alone.tasks) == ["intent"]
        assert alone.sampling.strategy == "proportional"
        assert alone.balancing.method is None
        joint = load_recipe(folder / "all-tasks" / "recipe.yaml")
        given = load_recipe(recipe)
        assert replace(joint, output_dir=given.output_dir) == given

    def test_does_not_repeat_finished_runs(self, both, monkeypatch):
        recipe, result = both
        started = []
        monkeypatch.setattr(
            run, "train_run", lambda run, **_: started.append(Path(run.recipe.output_dir).name)
        )
        again = affinity(recipe, steps=2, full=True)
        assert not started
        assert again["scores"] == result["scores"]
        assert again["wall_seconds"] == result["wall_seconds"]

    def test_repeats_a_run_whose_recipe_has_changed(self, both, monkeypatch):
        recipe, result = both
        started = []

        def train_run(run: PreparedRun, *, overwrite: bool) -> None:
            folder = Path(run.recipe.output_dir)
            started.append(folder.name)
            assert not (folder / "scores.json").exists()
            (folder / "scores.json").write_text(json.dumps(kept[folder.name]))

        folder = folder_of(recipe) / "affinity"
        kept = {
            name: json.loads((folder / name / "scores.json").read_text())
            for name in result["wall_seconds"]
        }
        monkeypatch.setattr(run, "train_run", train_run)
        affinity(recipe, ["tasks.near.loss_weight=2"], steps=1, full=True)
        assert started == ["near", "all-tasks"]
