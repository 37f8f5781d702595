"""Which options a task may have: each head says what it reads, and all else is refused."""

from dataclasses import fields

import pytest
from polyhead.modeling import PolyheadConfig, TaskConfig, TaskOptions
from polyhead.modeling.heads import HEADS
from polyhead.modeling.losses import LOSSES
from polyhead.modeling.options import ONCE_ALLOWED, HeadTask, check_option_names
from polyhead.modeling.unread_options import options_without_effect
from polyhead.train.recipe.schema import TaskRecipe

LEAST = {  # the fewest options of a task of each kind
    "embedding": {},
    "sequence_classification": {"labels": ["x", "y"]},
    "token_classification": {"labels": ["x", "y"]},
    "masked_lm": {},
    "causal_lm": {},
    "multiple_choice": {},
}
OTHER = {  # a value of each option that is not its default
    "labels": ["x", "y"],
    "problem_type": "single_label_classification",
    "hierarchy": True,
    "pooling": "cls",
    "activation": "tanh",
    "layers": 2,
    "layer_mix": True,
    "layer": 1,
    "dropout": 0.3,
    "scheme": "iob2",
    "signs": ["("],
    "partial": [["x", "y"]],
    "grown": [1],
    "strict": {"y": 0.3},
    "threshold": 0.9,
    "loss": "cosine_mse",
    "temperature": 0.1,
    "symmetric": True,
    "false_negative_margin": 0.1,
    "margin": 0.1,
    "prompts": ["query: "],
    "matryoshka": [8, 4],
    "projection": 8,
    "label_smoothing": 0.1,
    "class_weight": {"y": 2.0},
    "focal": 2.0,
    "mlm_probability": 0.3,
    "mask_shares": [1.0, 0.0, 0.0],
    "whole_word": True,
    "blocks": True,
    "tied": False,
    "normalize": False,
    "long_texts": "windows",
    "window_pooling": "max",
    "head_options": {"depth": 2},
    "pair": True,
    "calibration": 1.5,
    "thresholds": {"y": 0.3},
    "abstain": 0.7,
}
COMMON = ("head", "loss_weight", "adapter")


def test_these_tests_know_every_head_and_option():
    assert set(LEAST) == set(HEADS)
    assert {*OTHER, *COMMON} == {option.name for option in fields(TaskConfig)}


@pytest.mark.parametrize("head", LEAST)
@pytest.mark.parametrize("option", OTHER)
def test_an_option_is_taken_by_the_heads_that_read_it_alone(head, option):
    options = {"head": head, **LEAST[head], option: OTHER[option]}
    read = option in HEADS[head].options
    if head == "token_classification" and option == "scheme":
        options["labels"] = ["O", "B-x", "I-x"]
    if read and option == "strict":  # of the labels that came last
        options["grown"] = [1]
    if read and option == "thresholds":
        options["problem_type"] = "multi_label_classification"
    if option in HEADS[head].only_with():
        other, values = HEADS[head].only_with()[option]
        options[other] = values[0]
    if read or option in ONCE_ALLOWED:
        assert (options_without_effect(TaskConfig(**options)) == []) == read
    else:
        with pytest.raises(ValueError, match=rf"{option} belongs to .*, not to {head}|no labels"):
            TaskConfig(**options)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_says_which_options_it_reads(loss):
    for option in ("temperature", "margin"):
        task = TaskConfig(head="embedding", loss=loss, **{option: OTHER[option]})
        assert (options_without_effect(task) == []) == (option in LOSSES[loss].options)
    for option in ("symmetric", "false_negative_margin"):
        options = {"head": "embedding", "loss": loss, option: OTHER[option]}
        if option in LOSSES[loss].options:
            TaskConfig(**options)
        else:
            message = "symmetric and false_negative_margin belong to loss: contrastive"
            with pytest.raises(ValueError, match=message):
                TaskConfig(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head": "masked_lm", "pooling": "cls"},
         "pooling: only for embedding, sequence_classification and multiple_choice; take it out"),
        ({"head": "sequence_classification", "labels": ["x", "y"], "threshold": 0.9},
         "threshold: only for problem_type: multi_label_classification; take it out"),
        ({"head": "masked_lm", "temperature": 0.1},
         "temperature: only for loss: contrastive; take it out"),
        ({"head": "masked_lm", "normalize": False},
         "normalize: only for embedding; take it out"),
    ],
)  # fmt: skip
def test_a_fault_says_where_the_option_belongs(options, says):
    assert options_without_effect(TaskConfig(**options)) == [says]


def test_no_dropout_holds_for_every_head():
    assert options_without_effect(TaskConfig(head="masked_lm", dropout=0.0)) == []


def test_head_options_belong_to_heads_of_ones_own():
    message = "head_options belongs to heads of your own whose `options` name it, not to masked_lm"
    with pytest.raises(ValueError, match=message):
        TaskConfig(head="masked_lm", head_options={})


@pytest.mark.parametrize(
    "value", [{"a": (1, 2)}, {"a": {1: 2}}, {"a": float("nan")}, {"a": object()}, {1: 2}]
)
def test_head_options_are_what_json_has(value):
    with pytest.raises(ValueError, match="head_options is .*; it must be what JSON has"):
        TaskConfig(head="masked_lm", head_options=value)


def test_a_recipe_and_a_config_share_the_options_and_their_defaults():
    shared = {option.name: option.default for option in fields(TaskOptions)}
    for kind in (TaskConfig, TaskRecipe):
        defaults = {option.name: option.default for option in fields(kind)}
        assert (
            shared.items()
            <= {
                name: getattr(default, "default", default) for name, default in defaults.items()
            }.items()
        )


def test_unset_options_are_left_out_of_the_file():
    tasks = {"topic": TaskConfig(head="sequence_classification", labels=["x", "y"])}
    saved = PolyheadConfig(tasks=tasks).to_dict()
    assert set(saved["tasks"]["topic"]) == {
        *("head", "labels", "problem_type", "dropout", "pair", "threshold", "temperature"),
        *("symmetric", "margin", "normalize", "loss_weight"),
    }
    assert "extensions" not in saved


def test_options_that_no_task_has_are_not_read():
    check_option_names("head 'crf'", [option.name for option in fields(HeadTask)])
    message = "head 'crf' reads depth, which is no option of a task; .*; those of your own go into"
    with pytest.raises(ValueError, match=message):
        check_option_names("head 'crf'", ["labels", "depth"])
