"""`compare: single`: each task is trained alone too, and the card shows both scores."""

import json
from pathlib import Path

import pytest
from polyhead.modeling import PolyheadModel
from polyhead.train import Task
from polyhead.train import train as train_objects
from polyhead.train.commands import training as run
from polyhead.train.errors import UserError
from polyhead.train.evaluation.alone import in_words, side_by_side
from safetensors.torch import load_file
from train_helpers import (
    messages,
    private_cache,  # noqa: F401
    recipe_of,
    write_recipe,
    write_rows,
    write_seven,
)

JOINT = {"sampling": {"strategy": "uniform", "rows_per_epoch": 40}, "retain": {"weight": 1.0}}


@pytest.fixture
def folder(tmp_path, tokenizer_of) -> Path:
    write_seven(tmp_path, tokenizer_of)
    return tmp_path


def write(folder: Path, tasks: str, name: str = "out", **keys) -> Path:
    recipe = recipe_of(folder / "tokenizer") | {"output_dir": str(folder / name)} | keys
    recipe["tasks"] = {task: recipe["tasks"][task] for task in tasks.split()}
    recipe["training"] = recipe["training"] | {"num_train_epochs": 1}
    return write_recipe(folder / f"{name}.yaml", recipe)


def weights_of(folder: Path):
    return load_file(folder / "model/model.safetensors")


@pytest.mark.slow
class TestTrain:
    def test_the_joint_model_is_the_same_to_the_bit(self, folder):
        run.train(write(folder, "intent near", "plain", **JOINT))
        run.train(write(folder, "intent near", compare="single", **JOINT))
        plain, compared = weights_of(folder / "plain"), weights_of(folder / "out")
        assert all(compared[key].equal(value) for key, value in plain.items())

    def test_card_and_record_show_the_scores_of_one_task_runs(self, folder):
        scores = run.train(write(folder, "intent near", compare="single", **JOINT))
        (record,) = json.loads((folder / "out/model/training.json").read_text(encoding="utf-8"))
        card = (folder / "out/model/README.md").read_text(encoding="utf-8")
        for name in ("intent", "near"):
            single = run.train(write(folder, name, f"{name}_alone"))["tasks"][name]
            joint = scores["tasks"][name]
            row = record["alone"][name]
            assert row == side_by_side(single, joint, 5, "test")
            assert row["single"] == single[row["metric"]]
            line = f"| `{name}` | {row['metric']} | {row['single']:.4f} | {row['joint']:.4f} |"
            assert line in card
        assert "alone" not in (folder / "out/model/config.json").read_text(encoding="utf-8")

    def test_finished_runs_are_kept_until_recipe_or_rows_change(self, folder, monkeypatch):
        recipe = write(folder, "intent near", compare="single")
        run.train(recipe)
        trained = []
        train_run = run.train_run

        def counted(prepared, **options):
            trained.append(Path(prepared.recipe.output_dir).name)
            return train_run(prepared, **options)

        monkeypatch.setattr(run, "train_run", counted)
        run.train(recipe, overwrite=True)
        assert trained == ["out"]
        trained.clear()
        run.train(recipe, ["tasks.near.loss_weight=2"], overwrite=True)
        assert trained == ["out", "near"]
        trained.clear()
        write_rows(folder / "messages_validation.jsonl", messages(6))
        run.train(recipe, ["tasks.near.loss_weight=2"], overwrite=True)
        assert trained == ["out", "intent"]

    def test_a_run_without_end_is_not_taken_for_a_finished_one(self, folder, monkeypatch):
        recipe = write(folder, "intent near", compare="single")
        fit = run.fit

        def killed(prepared, **options):
            if prepared.recipe.output_dir.endswith("near"):
                raise KeyboardInterrupt
            return fit(prepared, **options)

        monkeypatch.setattr(run, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            run.train(recipe)
        assert not (folder / "out/model").exists()
        monkeypatch.setattr(run, "fit", fit)
        run.train(recipe)  # nothing stands in output_dir but what was trained alone
        assert PolyheadModel.from_pretrained(folder / "out/model").task_names == ["intent", "near"]

    def test_rows_in_memory(self, folder):
        rows = {"train": messages(12), "test": messages(5)}
        task = {"head": "sequence_classification", "text": "text"}
        tasks = {
            "intent": Task(data=rows, label="intent", **task),
            "urgency": Task(data=rows, label="urgency", problem_type="regression", **task),
        }
        options = recipe_of(folder / "tokenizer")
        result = train_objects(
            tasks=tasks,
            encoder=options["encoder"],
            training=options["training"] | {"num_train_epochs": 1},
            output_dir=folder / "out",
            compare="single",
        )
        (record,) = json.loads((result.folder / "training.json").read_text(encoding="utf-8"))
        assert set(record["alone"]) == {"intent", "urgency"}


def test_what_cannot_be_compared_is_one_message(folder):
    recipe = write(folder, "intent near", compare="single")
    with pytest.raises(UserError, match=r"max_steps: a task alone would see more"):
        run.train(recipe, ["training.max_steps=3"])
    with pytest.raises(UserError, match="compare: the recipe has one task"):
        run.train(write(folder, "intent", "one", compare="single"))
    with pytest.raises(UserError, match=r"compare: .*'single'"):
        run.train(write(folder, "intent near", "two", compare="double"))
    assert not (folder / "out").exists()


def test_hooks_of_a_caller_are_not_part_of_the_runs_alone(folder):
    with pytest.raises(UserError) as error:
        train_objects(
            tasks={},
            encoder="x",
            output_dir=folder / "out",
            compare="single",
            compute_metrics=lambda *_: {},
        )
    assert "compare: the tasks alone are trained without compute_metrics" in str(error.value)


def test_words_for_scores():
    numbers = side_by_side({"accuracy": 0.8}, {"accuracy": 0.9}, 100, "test")
    assert in_words(numbers) == (
        "accuracy alone 0.8000, jointly 0.9000; +0.1000 ± 0.0508 over 100 rows of test"
    )
    assert in_words(numbers | {"standard_error": None}).endswith("jointly 0.9000")
    assert in_words(numbers | {"gain": None}) == "no accuracy to compare"
