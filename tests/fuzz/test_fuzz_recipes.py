"""Any recipe is read or refused in one message, whatever stands at any key of it."""

import copy

import pytest
import yaml
from fuzzing import TREES, examples, in_time, places_in, value_at
from hypothesis import given
from hypothesis import strategies as st
from polyhead.train.errors import UserError
from polyhead.train.recipe import load_recipe
from polyhead.train.recipe.schema import Recipe
from train_helpers import recipe_of, write_seven

pytestmark = pytest.mark.fuzz

WHOLE = recipe_of("tokenizer") | {  # pyright: ignore
    "pooling": "mean",
    "sampling": {"strategy": "temperature", "temperature": 2.0, "batches": "mixed"},
    "balancing": {"method": "uncertainty"},
    "freeze": {"encoder": False, "layers": [0], "heads": [], "unfreeze": {"every": 0.5}},
    "optimizer": {"layer_decay": 0.95, "head_lr": 1e-3},
    "card": {"language": ["en"], "license": "mit", "limits": "few"},
}
WHOLE["tasks"]["intent"] |= {"adapter": {"r": 4, "lora_alpha": 8}, "loss_weight": 1.0}
WHOLE["encoder"]["tokenizer"] = "${RECIPE_DIR}/tokenizer"
PLACES = sorted(places_in(WHOLE), key=str)
ODD_YAML = st.lists(
    st.sampled_from(
        ["a", "b", ":", " ", "\n", "  ", "- ", "&a ", "*a", "!!python/object:os.system ", "{", "}"]
        + ["[", "]", "'", '"', "|", ">", "<<: ", "? ", "tasks", "encoder", "1", "~", "#", "%", "\t"]
    ),
    max_size=30,
).map("".join)


@pytest.fixture(scope="module")
def path(tmp_path_factory, tokenizer_of):
    folder = tmp_path_factory.mktemp("recipes")
    write_seven(folder, tokenizer_of)
    return folder / "recipe.yaml"


def read(path, text):
    """The recipe, or None where it was refused by one message."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with in_time():
        try:
            recipe = load_recipe(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            assert error.faults
            assert all(fault.strip() for fault in error.faults)
            return None
    assert isinstance(recipe, Recipe)
    return recipe


def test_the_whole_recipe_is_read(path):
    assert read(path, yaml.safe_dump(WHOLE)) is not None


@examples(1000)
@given(place=st.sampled_from(PLACES), value=TREES)
def test_one_value_exchanged(path, place, value):
    recipe = copy.deepcopy(WHOLE)
    value_at(recipe, place[:-1])[place[-1]] = value  # pyright: ignore
    read(path, yaml.safe_dump(recipe))


@examples(150)
@given(place=st.sampled_from(PLACES), key=st.text("abz_.", min_size=1, max_size=4), value=TREES)
def test_an_unknown_key_is_refused(path, place, key, value):
    recipe = copy.deepcopy(WHOLE)
    inner = value_at(recipe, place[:-1])
    free = {"encoder", "training", "adapter"}
    if isinstance(inner, dict) and key not in inner:
        inner[key] = value
        found = read(path, yaml.safe_dump(recipe))
        if not free & set(place) and place != ("tasks",) and len(place) > 1:
            assert found is None or place[0] == "tasks"


@examples(150)
@given(place=st.sampled_from(PLACES))
def test_one_value_left_out(path, place):
    recipe = copy.deepcopy(WHOLE)
    del value_at(recipe, place[:-1])[place[-1]]  # pyright: ignore
    read(path, yaml.safe_dump(recipe))


@examples(300)
@given(text=ODD_YAML | st.text(st.characters(codec=None), max_size=40))
def test_any_text_as_recipe(path, text):
    assert read(path, text) is None


@examples(150)
@given(override=st.text(max_size=20) | st.tuples(st.sampled_from(PLACES), TREES))
def test_any_override(path, override):
    path.write_text(yaml.safe_dump(WHOLE))
    if not isinstance(override, str):
        override = f"{'.'.join(map(str, override[0]))}={yaml.safe_dump(override[1], width=9999)}"
    with in_time():
        try:
            load_recipe(path, [override])
        except UserError as error:
            assert error.faults
