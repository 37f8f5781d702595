"""What a task or a config accepts and refuses; adding and removing tasks."""

import json

import pytest
import torch
from conftest import tiny_encoder_config
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from polyhead.modeling.configuration_polyhead import scheme_of

SEQUENCE = {"head": "sequence_classification"}
LABELS = ["book", "cancel"]
TAGS = ["O", "B-city", "I-city"]

# ---- one task ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "crf"}, "head is 'crf'; allowed: embedding, sequence_classification, "),
        ({**SEQUENCE, "labels": LABELS, "pooling": "sum"}, "pooling is 'sum'; allowed: mean, cls"),
        ({**SEQUENCE, "labels": LABELS, "activation": "swish"}, "activation is 'swish'; .*tanh"),
        ({**SEQUENCE, "problem_type": "ranking"}, "problem_type is 'ranking'; .*regression"),
        ({"head": "embedding", "loss": "mae"}, "loss is 'mae'; allowed: .*cosent"),
        ({"head": "token_classification", "labels": TAGS, "scheme": "iob3"}, "iob3.*allowed: iob1"),
        ({**SEQUENCE}, "needs labels or problem_type: regression"),
        ({**SEQUENCE, "labels": ["one"]}, "needs 2 labels or more"),
        ({**SEQUENCE, "labels": [], "problem_type": "multi_label_classification"}, "needs 1 label"),
        ({**SEQUENCE, "labels": LABELS, "problem_type": "regression"}, "has no labels"),
        ({**SEQUENCE, "labels": ["a", "b", "a"]}, "labels repeat: a"),
        ({"head": "token_classification"}, "needs labels"),
        ({"head": "token_classification", "labels": LABELS, "scheme": "iob2"}, "needs tags like"),
        ({"head": "embedding", "labels": LABELS}, "embedding task has no labels"),
        ({"head": "masked_lm", "labels": LABELS}, "masked_lm task has no labels"),
        ({"head": "masked_lm", "loss": "cosent"}, "loss belongs to embedding, not to masked_lm"),
        (
            {**SEQUENCE, "labels": LABELS, "scheme": "iob2"},
            "scheme belongs to token_class",
        ),
        ({"head": "embedding", "problem_type": "regression"}, "problem_type belongs to sequence"),
        (
            {**SEQUENCE, "labels": LABELS, "dropout": 1.0},
            r"dropout is 1.0; .* in \[0, 1\)",
        ),
        ({"head": "embedding", "temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({**SEQUENCE, "labels": LABELS, "threshold": 1.5}, "threshold is 1.5"),
        ({**SEQUENCE, "labels": LABELS, "loss_weight": -1.0}, "loss_weight is -1.0"),
        ({**SEQUENCE, "labels": LABELS, "label_smoothing": 1.0}, "label_smoothing is 1.0"),
        (
            {**SEQUENCE, "problem_type": "regression", "label_smoothing": 0.1},
            "label_smoothing is for one class of several, not regression",
        ),
        (
            {
                "head": "token_classification",
                "labels": ["a", "book"],
                "label_smoothing": 0.1,
                "partial": [["book"]],
            },
            "label_smoothing spreads one label",
        ),
        ({"head": "embedding", "projection": 0}, "projection is 0"),
        ({"head": "embedding", "margin": 0.0}, "margin is 0.0; it must be above 0"),
        ({"head": "embedding", "symmetric": True}, "symmetric .* belong to loss: contrastive"),
        (
            {"head": "embedding", "loss": "contrastive", "false_negative_margin": -0.1},
            "false_negative_margin is -0.1",
        ),
        ({"head": "embedding", "matryoshka": []}, r"matryoshka is \[\]; give widths"),
        ({"head": "embedding", "matryoshka": [8, 16]}, "from the largest to the smallest"),
        ({"head": "embedding", "matryoshka": [8, 0]}, "a width is 1 or more"),
        ({"head": "masked_lm", "matryoshka": [8]}, "matryoshka belongs to embedding"),
        ({"head": "token_classification", "labels": TAGS, "pair": True}, "pair"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        TaskConfig(**options)


def test_defaults_follow_the_kind_of_head():
    single = TaskConfig(**SEQUENCE, labels=LABELS)
    assert single.problem_type == "single_label_classification"
    assert (single.num_labels, single.id2label) == (2, {0: "book", 1: "cancel"})
    number = TaskConfig(**SEQUENCE, problem_type="regression")
    assert (number.num_labels, number.id2label) == (1, {})
    assert TaskConfig(head="embedding").loss == "cosent"
    assert TaskConfig(head="token_classification", labels=TAGS).scheme == "iob2"
    assert TaskConfig(head="token_classification", labels=["NOUN", "VERB"]).scheme is None


def test_labels_become_strings():
    assert TaskConfig(**SEQUENCE, labels=[0, 1]).labels == ["0", "1"]


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (["O", "B-x", "I-x"], "iob2"),
        (["O", "B-x"], "iob2"),
        (["O", "I-x", "I-y"], "iob1"),  # without any B- these can only be IOB1
        (["O", "B-x", "I-x", "E-x", "S-x"], "bioes"),
        (["O", "S-x"], "bioes"),
        (["NOUN", "VERB", "O"], None),
        (["O"], None),
        (["O", "B-x", "NOUN"], None),
    ],
)
def test_scheme_is_found_from_the_labels(labels, scheme):
    assert scheme_of(labels) == scheme


# ---- the config ----

NAMES_REFUSED = [
    "a.b", "Intent", "2nd", "_x", "", "in tent", "in-tent", "été", "intent\n", 3,
    "lora", "a", "r", "o", "ra", "lora_", "keys", "items", "forward", "pop", "training", "type",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES_REFUSED)
def test_a_bad_task_name_is_refused(name):
    with pytest.raises(ValueError, match="task name"):
        PolyheadConfig(tasks={name: TaskConfig(head="embedding")})


@pytest.mark.parametrize("name", ["x", "intent", "task_2", "lora_b", "aspect", "l2"])
def test_a_good_task_name_is_taken(name):
    assert PolyheadConfig(tasks={name: TaskConfig(head="embedding")}).task_names == [name]


def test_every_good_name_can_be_a_head(make_model):
    names = ["x", "lora_b", "encoder", "heads", "weight"]
    model = make_model("bert", {name: TaskConfig(head="embedding") for name in names})
    assert list(model.heads) == names


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling is 'sum'; allowed: mean, cls, max"):
        PolyheadConfig(pooling="sum")


def test_task_names_must_match_the_tasks():
    with pytest.raises(ValueError, match=r"task_names \['x'\] and tasks \['y'\] differ"):
        PolyheadConfig(tasks={"y": TaskConfig(head="embedding")}, task_names=["x"])


def test_config_survives_the_file_with_tasks_in_order(tmp_path):
    tasks = {
        "zeta": TaskConfig(**SEQUENCE, labels=["yes", "no"], pair=True, loss_weight=2.0),
        "alpha": TaskConfig(head="token_classification", labels=TAGS, scheme="iob1"),
        "mid": TaskConfig(head="embedding", projection=8, normalize=False, loss="contrastive"),
    }
    config = PolyheadConfig(
        encoder_config=tiny_encoder_config("electra"), tasks=tasks, pooling="cls"
    )
    config.save_pretrained(tmp_path)
    again = PolyheadConfig.from_pretrained(tmp_path)
    assert again.task_names == ["zeta", "alpha", "mid"]
    assert again.tasks == tasks
    assert again.pooling == "cls"
    assert type(again.encoder_config) is type(config.encoder_config)
    assert again.encoder_config.embedding_size == 16


def test_label_order_is_kept_in_the_file(tmp_path):
    labels = [f"label {number}" for number in range(12)]  # as keys, "10" would sort before "2"
    PolyheadConfig(tasks={"big": TaskConfig(**SEQUENCE, labels=labels)}).save_pretrained(tmp_path)
    assert PolyheadConfig.from_pretrained(tmp_path).tasks["big"].labels == labels


def test_sizes_are_those_of_the_encoder():
    config = PolyheadConfig(encoder_config=tiny_encoder_config("distilbert"))
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    assert sizes == (32, 2, 4)
    assert (config.vocab_size, config.max_position_embeddings) == (160, 64)


def test_code_to_trust_is_dropped_from_the_encoder_config(tmp_path):
    encoder = {
        **tiny_encoder_config("bert").to_dict(),
        "trust_remote_code": True,
        "auto_map": {"AutoModel": "elsewhere--code.Model"},
    }
    config = PolyheadConfig(encoder_config=encoder)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["encoder_config"]
    assert saved["hidden_size"] == 32
    assert not {"trust_remote_code", "auto_map"} & set(saved)


def test_no_path_of_the_encoder_is_left_in_the_file(tmp_path, make_model):
    model = make_model("bert", {})
    model.save_pretrained(tmp_path)
    assert "encoders0" not in (tmp_path / "config.json").read_text()


def test_a_config_does_not_change_the_tasks_it_is_given():
    tasks = {"mood": TaskConfig(head="embedding")}
    PolyheadConfig(tasks=tasks).set_task("more", TaskConfig(head="embedding"))
    assert list(tasks) == ["mood"]


# ---- adding and removing tasks ----

TASKS = {
    "intent": TaskConfig(**SEQUENCE, labels=LABELS),
    "urgency": TaskConfig(**SEQUENCE, problem_type="regression"),
    "slots": TaskConfig(head="token_classification", labels=TAGS),
    "words": TaskConfig(head="masked_lm"),
}


@pytest.fixture
def model(make_model):
    return make_model("bert", TASKS)


def logits_of(model, batch_of):
    with torch.no_grad():
        return model(**batch_of(model, [6, 4])).logits


def snapshot(model):
    return model.config.to_dict(), {k: v.clone() for k, v in model.state_dict().items()}


def assert_unchanged(model, before):
    config, weights = before
    assert model.config.to_dict() == config
    assert list(model.heads) == model.task_names
    found = model.state_dict()
    assert list(found) == list(weights)
    assert all(torch.equal(found[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    "task",
    [
        TaskConfig(head="embedding", projection=8),
        TaskConfig(head="masked_lm"),
        TaskConfig(**SEQUENCE, labels=["a", "b", "c"], activation="gelu"),
        TaskConfig(head="token_classification", labels=TAGS),
    ],
    ids=lambda task: task.head,
)
def test_added_task_leaves_the_others_bit_identical(task, model, batch_of):
    before = logits_of(model, batch_of)
    model.add_task("extra", task)
    after = logits_of(model, batch_of)
    assert model.task_names == [*TASKS, "extra"]
    for name in TASKS:
        assert torch.equal(after[name], before[name]), name


def test_removed_task_leaves_the_others_bit_identical(model, batch_of):
    before = logits_of(model, batch_of)
    model.remove_task("urgency")
    after = logits_of(model, batch_of)
    assert list(after) == ["intent", "slots", "words"] == model.task_names
    assert not [name for name in model.state_dict() if "urgency" in name]
    for name, value in after.items():
        assert torch.equal(value, before[name]), name


def test_task_ids_count_the_tasks_that_are_left(model, batch_of):
    model.remove_task("intent")
    out = model(**batch_of(model, [6, 4]), task_ids=torch.tensor([1, 1]))
    assert list(out.logits) == ["slots"]


def test_a_task_may_be_added_again_after_removal(model, batch_of):
    model.remove_task("slots")
    model.add_task("slots", TASKS["slots"])
    assert model.task_names == ["intent", "urgency", "words", "slots"]
    assert logits_of(model, batch_of)["slots"].shape == (2, 6, 3)


def test_new_heads_start_small_and_are_drawn_from_the_seed(model):
    heads = []
    for name in ("one", "two"):
        torch.manual_seed(3)
        model.add_task(name, TaskConfig(**SEQUENCE, labels=LABELS, activation="tanh"))
        heads.append(model.heads[name])
    assert torch.equal(heads[0].dense.weight, heads[1].dense.weight)
    assert 0.015 < heads[0].dense.weight.std() < 0.025
    assert (heads[0].out.bias == 0).all()


def test_new_head_follows_mode_and_type_of_the_model(model):
    model.bfloat16().train()
    model.add_task("extra", TaskConfig(head="embedding", projection=8))
    assert model.heads["extra"].out.weight.dtype == torch.bfloat16
    assert model.heads["extra"].training
    model.eval().add_task("more", TaskConfig(head="embedding"))
    assert not model.heads["more"].training


def test_masked_lm_output_is_the_input_embeddings_also_when_added_later(make_model):
    model = make_model("electra", {})
    model.add_task("words", TaskConfig(head="masked_lm"))
    assert model.heads["words"].decoder.weight is model.get_input_embeddings().weight
    parameters = [name for name, _ in model.named_parameters()]
    assert "heads.words.decoder.weight" not in parameters


def test_masked_lm_follows_a_grown_vocabulary(model, batch_of):
    assert logits_of(model, batch_of)["words"].shape == (2, 6, 160)
    model.resize_token_embeddings(170, mean_resizing=False)
    batch = batch_of(model, [4])
    batch["input_ids"][0, 0] = 169
    assert model(**batch).logits["words"].shape == (1, 4, 170)
    assert model.heads["words"].decoder.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["intent", "a.b", "lora", "keys", ""])
def test_a_refused_name_leaves_the_model_as_it_was(name, model):
    before = snapshot(model)
    with pytest.raises(ValueError, match="task"):
        model.add_task(name, TaskConfig(head="embedding"))
    assert_unchanged(model, before)


def test_a_head_that_cannot_be_built_leaves_the_model_as_it_was(model):
    before = snapshot(model)
    with pytest.raises(ValueError, match="mean_last_4"):
        model.add_task("deep", TaskConfig(head="embedding", pooling="mean_last_4"))
    assert_unchanged(model, before)


def test_removing_an_unknown_task_lists_the_known_ones_and_changes_nothing(model):
    before = snapshot(model)
    with pytest.raises(ValueError, match="unknown task 'mood'; this model has: intent, urgency, "):
        model.remove_task("mood")
    assert_unchanged(model, before)


def test_taken_name_says_what_to_do(model):
    with pytest.raises(ValueError, match="task 'intent' exists already; remove it first"):
        model.add_task("intent", TaskConfig(head="embedding"))


def test_a_bad_task_is_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match="task name 'keys'"):
        PolyheadModel.from_encoder("/nowhere", tasks={"keys": TaskConfig(head="embedding")})


def test_a_model_without_tasks_is_the_encoder(make_model, batch_of):
    model = make_model("bert", {})
    batch = batch_of(model, [6, 4])
    out = model(**batch)
    assert list(out) == ["last_hidden_state"]
    assert torch.equal(out.last_hidden_state, model.encoder(**batch).last_hidden_state)
    with pytest.raises(ValueError, match="unknown task 'mood'; this model has: none"):
        model(**batch, tasks=["mood"])


WITHOUT_EFFECT = {
    "pooling": ({"head": "token_classification", "labels": ["x", "y"]}, "cls"),
    "activation": ({"head": "token_classification", "labels": ["x", "y"]}, "tanh"),
    "projection": ({"head": "token_classification", "labels": ["x", "y"]}, 64),
    "threshold": ({"head": "sequence_classification", "labels": ["x", "y"]}, 0.9),
    "temperature": ({"head": "embedding"}, 0.1),
    "margin": ({"head": "embedding", "loss": "contrastive"}, 0.1),
    "normalize": ({"head": "masked_lm"}, False),
    "dropout": ({"head": "embedding"}, 0.3),
}


@pytest.mark.parametrize("option", WITHOUT_EFFECT)
def test_an_option_that_a_task_does_not_read_is_refused_for_a_new_task(option, make_model):
    options, value = WITHOUT_EFFECT[option]
    task = TaskConfig(**options, **{option: value})  # a saved model may have it
    model = make_model("bert", {"topic": TaskConfig(**options)})
    with pytest.raises(ValueError, match=rf"task 'extra': {option}: only for .*; take it out"):
        model.add_task("extra", task)
    assert model.task_names == ["topic"]
