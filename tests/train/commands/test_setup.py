"""A recipe is made ready by one function; what checks changes nothing."""

from dataclasses import asdict

import pytest
import torch
import yaml
from polyhead.train.affinity import measure
from polyhead.train.commands import setup
from polyhead.train.commands.fitting import fit
from polyhead.train.commands.setup import PreparedRun, prepare
from polyhead.train.errors import UserError
from polyhead.train.recipe import checks
from train_helpers import write_recipe, write_seven


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tokenizer_of):
    folder = tmp_path_factory.mktemp("setup")
    return write_recipe(folder / "recipe.yaml", write_seven(folder, tokenizer_of))


@pytest.fixture(scope="module")
def run(recipe) -> PreparedRun:
    return prepare(recipe, ["training.seed=7", "tasks.intent.adapter={r: 2}"])


def test_a_prepared_run_has_all_that_training_needs(run, recipe):
    assert run.recipe.path == str(recipe)
    assert run.args.seed == 7
    assert run.args.output_dir == run.recipe.output_dir == f"{recipe.parent}/out"
    assert sorted(run.model.task_names) == sorted(run.recipe.tasks)
    assert run.model.loaded_adapters == ["intent"]
    assert run.tokenizer.model_max_length == 64
    assert {name for source in run.sources for name in source.tasks} == set(run.recipe.tasks)


def test_nothing_is_set_on_a_prepared_run_later(run):
    with pytest.raises(AttributeError):
        run.args = None


def test_arguments_that_do_not_fit_are_told_before_there_is_a_run(recipe):
    overrides = ["training.metric_for_best_model=speed", "freeze.layers=[7]"]
    with pytest.raises(UserError) as error:
        prepare(recipe, overrides)
    assert str(error.value).startswith(f"{recipe}: 2 faults")
    assert "speed" in error.value.faults[0]
    assert error.value.faults[1].startswith("freeze.layers")


def test_the_checks_of_a_run_change_nothing(run):
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    trains = [parameter.requires_grad for parameter in run.model.parameters()]
    plain = asdict(run.recipe)
    assert setup._argument_faults(run) == []
    assert measure._faults(run, full=True) == []
    assert checks.output_dir_faults(run.recipe.output_dir) == []
    assert asdict(run.recipe) == plain
    assert [parameter.requires_grad for parameter in run.model.parameters()] == trains
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_the_path_of_a_recipe_is_no_key_of_it(recipe, tmp_path):
    keys = yaml.safe_load(recipe.read_text()) | {"path": "elsewhere"}
    path = write_recipe(tmp_path / "more.yaml", keys)
    with pytest.raises(UserError) as error:
        prepare(path)
    [fault] = [fault for fault in error.value.faults if fault.startswith("path: ")]
    assert fault.startswith("path: unknown key")
    assert "path" not in fault.partition(";")[2]


def test_a_task_that_nothing_would_learn_from_is_refused(recipe):
    with pytest.raises(UserError) as error:
        prepare(recipe, ["freeze.encoder=true"])
    [fault] = error.value.faults
    assert fault.startswith("tasks.near: no weight that it reads trains; give it an adapter or a")
    for key in ("adapter={r: 2}", "projection=8"):
        prepare(recipe, ["freeze.encoder=true", f"tasks.near.{key}"])


def test_a_step_whose_rows_read_only_weights_that_wait_changes_nothing(recipe, tmp_path):
    waits = ["freeze.embeddings=true", "freeze.layers=[0]", "freeze.unfreeze.every=1"]
    more = ["sampling.batches=pure", "balancing.method=none", f"output_dir={tmp_path}/out"]
    run = prepare(recipe, [*waits, *more, "training.num_train_epochs=2"])
    start = {name: value.clone() for name, value in run.model.encoder.state_dict().items()}
    fit(run)
    changed = {n for n, v in run.model.encoder.state_dict().items() if not torch.equal(v, start[n])}
    assert changed
    assert all(name.startswith("encoder.layer.0.") for name in changed)
