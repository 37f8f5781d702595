"""`router: true` of a recipe: the task that it makes, and what it does not go with."""

import copy

import pytest
from polyhead.modeling import PolyheadConfig
from polyhead.train.errors import UserError
from polyhead.train.recipe.decide import decisions_of
from polyhead.train.recipe.parts import alone, only
from polyhead.train.recipe.reader import load_recipe, parse_recipe
from polyhead.train.recipe.router import with_rows

DATA = "{path: some/data, text: text, label: label}"
RECIPE = f"""
encoder: some/encoder
router: true
output_dir: runs/x
tasks:
  urgency: {{head: sequence_classification, problem_type: regression, data: {DATA}}}
  words: {{head: masked_lm, data: {{path: some/data, text: text}}}}
  intent: {{head: sequence_classification, data: {DATA}, adapter: {{r: 2}}}}
  same:
    head: sequence_classification
    data: {{path: some/pairs, text: text, text_pair: other, label: label}}
  near: {{head: embedding, data: {{path: some/pairs, text: text, text_pair: other, label: score}}}}
"""


def faults_of(text):
    with pytest.raises(UserError) as raised:
        parse_recipe(text)
    return raised.value.faults


def test_its_labels_are_the_tasks_that_read_single_texts():
    recipe = parse_recipe(RECIPE)
    assert list(recipe.tasks) == ["intent", "near", "router", "same", "urgency", "words"]
    router = recipe.tasks["router"]
    assert router.labels == ["intent", "near", "urgency"]
    assert router.problem_type == "multi_label_classification"
    assert with_rows(recipe) == [name for name in recipe.tasks if name != "router"]


def test_it_is_read_back_as_it_was_written():
    recipe = parse_recipe(RECIPE)
    assert "router: true" in recipe.to_yaml()
    assert "labels" not in recipe.to_yaml()
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_never_by_default():
    recipe = parse_recipe(RECIPE.replace("router: true\n", ""))
    assert not recipe.router
    assert "router" not in recipe.tasks


def test_decide_finds_its_thresholds():
    recipe = parse_recipe(RECIPE + "decide: {threshold: macro_f1}\n")
    assert decisions_of(recipe)["router"].threshold == "macro_f1"


def test_recipes_of_some_of_its_tasks_have_it_with_all_alone():
    recipe = parse_recipe(RECIPE)
    assert only(recipe, list(recipe.tasks)).router
    assert not only(recipe, with_rows(recipe)).router
    assert not alone(recipe, "intent").router


def test_two_tasks_are_needed_and_its_name():
    fault = "router: finds tasks that read single texts, two or more; there is: intent. Take it out"
    kept = [line for line in RECIPE.splitlines() if "urgency" not in line and "near" not in line]
    assert faults_of("\n".join(kept)) == [fault]
    assert faults_of(RECIPE.replace("urgency:", "router:")) == [
        "tasks.router: with router: true the name is taken; take another"
    ]
    assert faults_of(RECIPE.replace("urgency:", "auto:")) == [
        "tasks.auto: with router: true the name is taken; take another"
    ]


def test_faults_of_other_tasks_are_told_too():
    found = faults_of(RECIPE.replace("label: label}, adapter", "label: label, textt: a}, adapter"))
    assert found == ["tasks.intent.data.textt: unknown key; did you mean text?"]


def test_a_finished_model_gets_none_with_more_tasks(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("encoder: some/encoder\n", ""))
    model = PolyheadConfig()
    model.name_or_path = "model"
    with pytest.raises(UserError) as raised:
        load_recipe(path, onto=copy.deepcopy(model))
    assert raised.value.faults == [
        "router: it would know the new tasks alone; train all tasks anew with it, or take it out"
    ]
