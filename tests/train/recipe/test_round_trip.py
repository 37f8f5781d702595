"""A recipe is a way to write objects down: to YAML and back."""

import re
from pathlib import Path

import pytest
from polyhead.modeling import PolyheadConfig
from polyhead.train import Recipe
from polyhead.train.errors import UserError
from polyhead.train.recipe import load_recipe
from polyhead.train.recipe.data_config import DataConfig, RowsInMemory
from polyhead.train.recipe.schema import TaskRecipe
from polyhead.train.recipe.sections import Average, Freeze, Retain, Unfreeze

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))


@pytest.fixture
def files(tmp_path, monkeypatch) -> None:
    """The files that the recipes name are there; what is in them, nobody asks here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYHEAD_DATA", str(tmp_path / "data"))
    for recipe in RECIPES:
        for name in re.findall(r"[^\s,{}:]*\$\{POLYHEAD_DATA\}[^\s,{}]*", recipe.read_text()):
            path = Path(name.replace("${POLYHEAD_DATA}", str(tmp_path / "data")))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_configs(path, files):
    onto = None
    if path.stem.startswith("add_"):
        onto = PolyheadConfig()
        onto.name_or_path = "model"
    recipe = load_recipe(path, onto=onto)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def recipe_of(**options) -> Recipe:
    data = DataConfig(path="some/data", text="text", label="label")
    task = TaskRecipe(head="sequence_classification", data=data, **options)
    return Recipe(encoder="encoder", tasks={"intent": task}, output_dir="runs/x")


@pytest.mark.parametrize(
    "label",
    ["no", "yes", "true", "null", "~", "1e3", "001", "0x1F", "2024-05-06", " a ", "a: b", "#x"]
    + [
        "",
        "é",
        "a\nb",
        "- a",
        "{",
        "'",
        '"',
        "<<",
        "!tag",
        "*a",
        "&a",
        "%",
        "@",
        "\u2028",
        "1_000",
    ],
)
def test_labels_stay_as_they_are(label):
    recipe = recipe_of(labels=[label, "other"])
    assert Recipe.from_yaml(recipe.to_yaml()).tasks["intent"].labels == [label, "other"]


def test_sections_and_numbers_stay_as_they_are():
    recipe = recipe_of(loss_weight=1e-7, dropout=0.1 + 0.2, adapter={"r": 8, "layers": "top 2"})
    recipe.freeze = Freeze(layers=[0, 1], unfreeze=Unfreeze(**{"every": 0.5, "from": "bottom"}))
    recipe.training = {"learning_rate": 3e-05, "optim": "sgd", "report_to": ["none"], "bf16": False}
    text = recipe.to_yaml()
    assert Recipe.from_yaml(text) == recipe
    assert "from: bottom" in text
    assert "sampling" not in text


@pytest.mark.parametrize("retain", [None, Retain(), Retain(weight=2.0)])
def test_what_the_encoder_retains_stays_as_it_is(retain):
    recipe = recipe_of()
    recipe.retain = retain
    recipe.average = Average(start=0.2)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_what_is_no_key_is_not_written(tmp_path):
    text = recipe_of().to_yaml()
    assert "rows" not in text
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    recipe = Recipe.from_yaml(path)
    assert recipe.path == str(path)
    assert recipe == Recipe.from_yaml(str(path)) == recipe_of()
    assert recipe.to_yaml() == text


def test_rows_in_memory_cannot_be_written():
    recipe = recipe_of()
    recipe.tasks["intent"].data.rows = RowsInMemory([{"text": "a"}])
    with pytest.raises(UserError) as error:
        recipe.to_yaml()
    assert error.value.faults == [
        "tasks.intent.data: its rows are in memory (list); write them to a file, as "
        "datasets.Dataset.to_parquet('intent.parquet') does, and give its name as data_files"
    ]


def test_a_text_with_faults_tells_all_of_them():
    with pytest.raises(UserError) as error:
        Recipe.from_yaml("encoder: x\ntasks: {}\n")
    assert str(error.value).startswith("recipe: 2 faults")


def test_rows_are_no_key_of_a_recipe():
    text = recipe_of().to_yaml().replace("path: some/data", "path: some/data\n      rows: 7")
    with pytest.raises(UserError, match=r"tasks.intent.data.rows: unknown key; allowed: path, "):
        Recipe.from_yaml(text)
