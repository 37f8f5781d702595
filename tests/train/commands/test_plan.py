"""`polyhead plan`: what short trainings choose, and the recipes that they write."""

import json
import math
from pathlib import Path

import pytest
from polyhead.train.commands import plan as planning
from polyhead.train.commands import trials
from polyhead.train.commands.plan import plan
from polyhead.train.errors import UserError
from polyhead.train.recipe import load_recipe
from train_helpers import (
    SPLITS,
    files_of,
    private_cache,  # noqa: F401
    run_cli,
    write_recipe,
    write_seven,
)

LORA = {"r": 2, "target_modules": ["query", "value"]}
MAIN = {"intent": "mcc", "near": "spearman", "urgency": "spearman"}


@pytest.fixture
def recipe(tmp_path, tokenizer_of):
    """Writes a recipe of some tasks with further keys."""
    seven = write_seven(tmp_path, tokenizer_of) | {"output_dir": str(tmp_path / "out")}

    def write(tasks: str = "intent near urgency", **keys) -> Path:
        chosen = {name: dict(seven["tasks"][name]) for name in tasks.split()}
        recipe = {**seven, "tasks": chosen, **keys}
        return write_recipe(tmp_path / "recipe.yaml", recipe)

    return write


def scores(intent: float, near: float, urgency: float) -> dict:
    values = {"intent": intent, "near": near, "urgency": urgency}
    return {name: {MAIN[name]: value} for name, value in values.items()}


@pytest.fixture
def trained(monkeypatch):
    """Trials that score what `answers` say of a recipe, in the order that they were asked."""
    asked = []

    def answer_by(answers):
        def score(recipe, share):
            asked.append((recipe, share))
            known = answers(recipe, share)
            return {name: known[name] for name in recipe.tasks}

        monkeypatch.setattr(trials, "scores_of", score)
        monkeypatch.setattr(planning, "affordable_share", lambda run, minutes, trials: 0.5)
        monkeypatch.setattr(planning, "rows_scored", lambda run, name: 400)
        return asked

    return answer_by


def rate_of(recipe):
    return recipe.training["learning_rate"]


class TestChoices:
    def test_a_better_rate_is_taken_and_noise_is_not(self, recipe, trained):
        def by_rate(best):
            return lambda recipe, share: scores(*[0.9 if rate_of(recipe) == best else 0.6] * 3)

        trained(by_rate(2e-2))
        result = plan(recipe(), minutes=1)
        assert result["learning_rate"] == 2e-2
        trained(lambda recipe, share: scores(*[0.601 if rate_of(recipe) == 2e-2 else 0.6] * 3))
        assert plan(recipe(), minutes=1, overwrite=True)["learning_rate"] == 1e-2

    def test_rates_go_on_while_the_highest_is_best(self, recipe, trained):
        asked = trained(lambda recipe, share: scores(*[0.5 + 5 * rate_of(recipe)] * 3))
        result = plan(recipe(), minutes=1)
        joint = [rate_of(one) for one, _ in asked if len(one.tasks) == 3]
        assert joint[:5] == [0.5e-2, 1e-2, 2e-2, 4e-2, 8e-2]
        assert result["learning_rate"] == 8e-2

    def test_a_smaller_step_is_taken_where_it_pays(self, recipe, trained):
        def by_rows(recipe, share):
            rows = recipe.training.get("per_device_train_batch_size", 8)
            return scores(*[0.9 if rows == 4 else 0.6] * 3)

        trained(by_rows)
        result = plan(recipe(), minutes=1)
        assert result["rows_per_step"] == 4
        written = load_recipe(Path(result["folder"]) / "recipe.yaml")
        assert written.training["per_device_train_batch_size"] == 4

    def test_who_loses_gets_an_adapter_or_goes_apart(self, recipe, trained):
        def answers(recipe, share):
            if len(recipe.tasks) == 1:
                return scores(0.9, 0.9, 0.6)
            adapted = recipe.tasks["near"].adapter is not None
            return scores(0.5, 0.89 if adapted else 0.5, 0.6)

        asked = trained(answers)
        result = plan(recipe(), minutes=1)
        verdicts = {name: row["verdict"] for name, row in result["tasks"].items()}
        assert verdicts == {"intent": "apart", "near": "adapter", "urgency": "share"}
        tried = asked[-1][0]
        assert tried.tasks["intent"].adapter == tried.tasks["near"].adapter == planning.ADAPTER
        assert tried.tasks["urgency"].adapter is None
        folder = Path(result["folder"])
        assert sorted(path.name for path in folder.iterdir()) == [
            "intent.yaml",
            "plan.json",
            "recipe.yaml",
        ]
        together, single = (load_recipe(folder / f"{name}.yaml") for name in ("recipe", "intent"))
        assert list(together.tasks) == ["near", "urgency"]
        assert together.tasks["near"].adapter == planning.ADAPTER
        assert together.optimizer.adapter_lr == planning.ADAPTER_LR
        assert list(single.tasks) == ["intent"]
        assert single.output_dir == str(Path(result["folder"]).parent / "apart" / "intent")
        assert json.loads((folder / "plan.json").read_text(encoding="utf-8")) == result

    def test_the_adapter_that_another_defined_goes_with_the_one_that_stays(self, recipe, trained):
        def answers(recipe, share):
            return scores(0.9 if len(recipe.tasks) == 1 else 0.2, 0.6, 0.6)

        trained(answers)
        overrides = [f"tasks.intent.adapter={json.dumps({**LORA, 'name': 'both'})}"]
        result = plan(recipe(), [*overrides, "tasks.near.adapter=both"], minutes=1)
        written = load_recipe(Path(result["folder"]) / "recipe.yaml")
        assert written.tasks["near"].adapter == {**LORA, "name": "both"}

    def test_what_trials_leave_out_is_in_the_recipe_again(self, recipe, trained):
        asked = trained(lambda recipe, share: scores(0.6, 0.6, 0.6))
        result = plan(recipe(average={"start": 0.2}, compare="single"), minutes=1)
        assert all(one.average is one.compare is None for one, _ in asked)
        written = load_recipe(Path(result["folder"]) / "recipe.yaml")
        assert written.average.start == 0.2
        assert written.compare == "single"

    def test_scores_that_are_not_defined_are_beaten_by_any(self, recipe, trained):
        def answers(recipe, share):
            return scores(0.6, math.nan if rate_of(recipe) > 5e-3 else 0.6, 0.6)

        trained(answers)
        result = plan(recipe(), minutes=1)
        assert result["learning_rate"] == 5e-3
        assert json.dumps(result, allow_nan=False)

    def test_what_the_time_left_out_is_told(self, recipe, trained, monkeypatch):
        trained(lambda recipe, share: scores(0.6, 0.6, 0.6))
        monkeypatch.setattr(planning.time, "monotonic", iter(range(0, 10**6, 100)).__next__)
        result = plan(recipe(), minutes=1)
        assert "half the rows in a step" in result["skipped"]
        assert any("the time was over" in line for line in result["sentences"])

    def test_other_rates_keep_their_ratio(self, recipe, trained):
        asked = trained(lambda recipe, share: scores(0.6, 0.6, 0.6))
        plan(recipe(optimizer={"head_lr": 3e-2}), ["tasks.intent.learning_rate=5e-2"], minutes=1)
        for one, _ in asked:
            assert one.optimizer.head_lr == pytest.approx(3 * rate_of(one))
            if "intent" in one.tasks:
                assert one.tasks["intent"].learning_rate == pytest.approx(5 * rate_of(one))


@pytest.mark.slow
class TestRuns:
    def test_trains_writes_and_prints(self, recipe, capsys):
        path = recipe("intent near")
        assert run_cli("plan", path, "--minutes", "5") == 0
        printed = capsys.readouterr().out
        out = path.parent / "out"
        assert sorted(p.name for p in out.iterdir()) == ["plan"]
        written = sorted((out / "plan").glob("*.yaml"))
        assert written
        for file in written:
            assert load_recipe(file)
            assert str(file) in printed.replace("\n", "")
        result = json.loads((out / "plan/plan.json").read_text(encoding="utf-8"))
        assert {"intent", "near"} == set(result["tasks"])
        assert result["share"] == 2  # all of the recipe's epochs: its rows are few

    def test_a_trial_of_all_rows_is_the_training(self, recipe):
        from polyhead.train.commands.training import train

        path = recipe("intent near")
        full = load_recipe(path)
        found = trials.scores_of(full, 1.0)
        options = ["training.num_train_epochs=1", "training.eval_strategy=no"]
        one = train(path, [*options, "training.save_strategy=no", *without_test()])
        assert found == one["tasks"]


def without_test() -> list[str]:
    splits = [split for split in SPLITS if split != "test"]
    return [
        f"tasks.{task}.data.data_files={json.dumps(files_of(name, *splits))}".replace(
            "${RECIPE_DIR}", "${RECIPE_DIR}"
        )
        for task, name in (("intent", "messages"), ("near", "pairs"))
    ]


def test_what_cannot_be_planned_is_one_message(recipe, tmp_path):
    with pytest.raises(UserError, match="plan chooses for two or more"):
        plan(recipe("intent"), minutes=1)
    with pytest.raises(UserError, match="--minutes: 0; give a number above 0"):
        plan(recipe(), minutes=0)
    with pytest.raises(UserError) as error:
        plan(
            recipe(),
            ["training.max_steps=5", 'tasks.near.data.splits={"train": "train"}'],
            minutes=1,
        )
    assert "max_steps" in str(error.value)
    with pytest.raises(UserError, match="steps for a trial; 30 need"):
        plan(recipe(), ["training.num_train_epochs=10000"], minutes=1e-3)
    assert not (tmp_path / "out").exists()


def test_a_plan_that_stands_is_not_replaced_unasked(recipe, trained):
    trained(lambda recipe, share: scores(0.6, 0.6, 0.6))
    plan(recipe(), minutes=1)
    with pytest.raises(UserError, match="type --overwrite"):
        plan(recipe(), minutes=1)
    plan(recipe(), minutes=1, overwrite=True)
