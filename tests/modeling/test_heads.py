"""Heads equal HF's own with the same weights, and run only on the rows that need them."""

import pytest
import torch
from conftest import shake, tiny_encoder_config
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from torch.testing import assert_close
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

LENGTHS = [9, 5, 12, 7]
LABELS = ["a", "b", "c"]

# fmt: off
SEQUENCE = {  # kind: (options of our task, our submodule -> HF's)
    "bert": ({"pooling": "cls", "activation": "tanh"},
             {"dense": "bert.pooler.dense", "out": "classifier"}),
    "albert": ({"pooling": "cls", "activation": "tanh"},
               {"dense": "albert.pooler", "out": "classifier"}),
    "roberta": ({"pooling": "cls", "activation": "tanh"},
                {"dense": "classifier.dense", "out": "classifier.out_proj"}),
    "xlm-roberta": ({"pooling": "cls", "activation": "tanh"},
                    {"dense": "classifier.dense", "out": "classifier.out_proj"}),
    "mpnet": ({"pooling": "cls", "activation": "tanh"},
              {"dense": "classifier.dense", "out": "classifier.out_proj"}),
    "distilbert": ({"pooling": "cls", "activation": "relu"},
                   {"dense": "pre_classifier", "out": "classifier"}),
    "electra": ({"pooling": "cls", "activation": "gelu"},
                {"dense": "classifier.dense", "out": "classifier.out_proj"}),
    "deberta-v2": ({"pooling": "cls", "activation": "gelu"},
                   {"dense": "pooler.dense", "out": "classifier"}),
    "eurobert": ({"pooling": "mean", "activation": "gelu"},
                 {"dense": "dense", "out": "classifier"}),
    "llama": ({"pooling": "last_token"}, {"out": "score"}),
}
TOKEN = {"bert": "classifier", "roberta": "classifier", "distilbert": "classifier",
         "electra": "classifier", "deberta-v2": "classifier", "albert": "classifier",
         "mpnet": "classifier", "camembert": "classifier", "eurobert": "classifier",
         "llama": "score"}
MASKED = {
    "bert": {"dense": "cls.predictions.transform.dense",
             "norm": "cls.predictions.transform.LayerNorm", "decoder": "cls.predictions.decoder"},
    "roberta": {"dense": "lm_head.dense", "norm": "lm_head.layer_norm",
                "decoder": "lm_head.decoder"},
    "distilbert": {"dense": "vocab_transform", "norm": "vocab_layer_norm",
                   "decoder": "vocab_projector"},
    "electra": {"dense": "generator_predictions.dense", "norm": "generator_predictions.LayerNorm",
                "decoder": "generator_lm_head"},
    "albert": {"dense": "predictions.dense", "norm": "predictions.LayerNorm",
               "decoder": "predictions.decoder"},
}
# fmt: on


def twins(kind, auto, task, modules, *, scale=0.2, **changes):
    """HF's model and a one-task Polyhead with the same weights, both in training mode."""
    changes |= {"classifier_pooling": "mean", "is_causal": False, "pooler_hidden_act": "gelu"}
    theirs = auto.from_config(tiny_encoder_config(kind, **changes))
    shake(theirs, scale=scale)
    ours = PolyheadModel(
        PolyheadConfig(encoder_config=tiny_encoder_config(kind, **changes), tasks={"task": task})
    )
    missing, _ = ours.encoder.load_state_dict(theirs.base_model.state_dict(), strict=False)
    assert missing == []
    head = ours.heads["task"]
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            module, _, part = name.rpartition(".")
            source = theirs.get_submodule(modules[module])
            if getattr(source, part) is None:  # the output layer of HF's decoders has no bias
                parameter.zero_()
            else:
                parameter.copy_(getattr(source, part))
    return theirs.train(), ours.train()


def assert_same_loss_and_gradients(theirs, ours, modules, batch, labels):
    expected = theirs(**batch, labels=labels).loss
    found = ours(**batch, labels={"task": labels}).loss
    assert_close(found, expected)
    expected.backward()
    found.backward()
    encoder = dict(theirs.base_model.named_parameters())
    pairs = [(name, p, encoder[name]) for name, p in ours.encoder.named_parameters()]
    for name, parameter in ours.heads["task"].named_parameters():
        module, _, part = name.rpartition(".")
        source = getattr(theirs.get_submodule(modules[module]), part)
        if source is not None:
            pairs.append((name, parameter, source))
    for name, mine, other in pairs:
        assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# ---- the same as HF's own heads ----


@pytest.mark.parametrize("kind", list(SEQUENCE))
def test_sequence_classification_equals_hf(kind, batch_of):
    options, modules = SEQUENCE[kind]
    task = TaskConfig(head="sequence_classification", labels=LABELS, dropout=0.0, **options)
    auto = AutoModelForSequenceClassification
    theirs, ours = twins(kind, auto, task, modules, num_labels=3)
    batch, labels = batch_of(ours, LENGTHS), torch.tensor([0, 2, 1, 2])
    assert_close(ours(**batch).logits["task"], theirs(**batch).logits)
    assert_same_loss_and_gradients(theirs, ours, modules, batch, labels)


@pytest.mark.parametrize(
    ("problem", "width", "labels"),
    [
        ("multi_label_classification", 3, [[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]),
        ("regression", 1, [0.5, -1.0, 3.0, 0.0]),
    ],
)
def test_other_problem_types_equal_hf(problem, width, labels, batch_of):
    options, modules = SEQUENCE["bert"]
    names = LABELS if width > 1 else None
    task = TaskConfig(
        head="sequence_classification", problem_type=problem, labels=names, dropout=0.0, **options
    )
    auto = AutoModelForSequenceClassification
    theirs, ours = twins("bert", auto, task, modules, num_labels=width, problem_type=problem)
    batch = batch_of(ours, LENGTHS)
    assert_close(ours(**batch).logits["task"], theirs(**batch).logits)
    assert_same_loss_and_gradients(theirs, ours, modules, batch, torch.tensor(labels))


@pytest.mark.parametrize("kind", list(TOKEN))
def test_token_classification_equals_hf(kind, batch_of):
    task = TaskConfig(head="token_classification", labels=LABELS, dropout=0.0)
    modules = {"out": TOKEN[kind]}
    theirs, ours = twins(kind, AutoModelForTokenClassification, task, modules, num_labels=3)
    batch = batch_of(ours, LENGTHS)
    labels = torch.randint(0, 3, batch["input_ids"].shape)
    labels[batch["attention_mask"] == 0] = -100
    labels[:, 0] = -100
    assert_close(ours(**batch).logits["task"], theirs(**batch).logits)
    assert_same_loss_and_gradients(theirs, ours, modules, batch, labels)


CHOICE = {  # as SEQUENCE, for the encoders whose heads differ there
    "bert": SEQUENCE["bert"],
    "distilbert": SEQUENCE["distilbert"],
    "deberta-v2": SEQUENCE["deberta-v2"],
    "roberta": (
        {"pooling": "cls", "activation": "tanh"},
        {"dense": "roberta.pooler.dense", "out": "classifier"},
    ),
    "mpnet": (
        {"pooling": "cls", "activation": "tanh"},
        {"dense": "mpnet.pooler.dense", "out": "classifier"},
    ),
}


@pytest.mark.parametrize("kind", list(CHOICE))
def test_multiple_choice_equals_hf(kind, batch_of):
    options, modules = CHOICE[kind]
    task = TaskConfig(head="multiple_choice", dropout=0.0, **options)
    theirs, ours = twins(kind, AutoModelForMultipleChoice, task, modules)
    batch = batch_of(ours, [9, 5, 12, 7, 3, 8])
    grouped = {name: values.view(2, 3, -1) for name, values in batch.items()}
    labels = torch.tensor([2, 0])
    expected = theirs(**grouped, labels=labels)
    found = ours(**batch, labels={"task": labels})
    assert found.logits["task"].shape == (6, 1)
    assert_close(found.logits["task"].view(2, 3), expected.logits)
    assert_close(found.loss, expected.loss)
    expected.loss.backward()
    found.loss.backward()
    encoder = dict(theirs.base_model.named_parameters())
    for name, parameter in ours.encoder.named_parameters():
        assert_close(parameter.grad, encoder[name].grad, atol=1e-5, rtol=1e-4)
    for part, module in modules.items():
        mine = ours.heads["task"].get_submodule(part).weight.grad
        assert_close(mine, theirs.get_submodule(module).weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", list(MASKED))
def test_masked_lm_equals_hf(kind, batch_of):
    # small weights: the epsilon of the layer norm counts
    modules = MASKED[kind]
    theirs, ours = twins(
        kind, AutoModelForMaskedLM, TaskConfig(head="masked_lm"), modules, scale=0.02
    )
    batch = batch_of(ours, LENGTHS)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 2], labels[0, 5], labels[2, 11] = 7, 20, 33
    expected = theirs(**batch).logits
    assert_close(ours(**batch).logits["task"], expected)
    in_training = ours(**batch, labels={"task": labels}).logits["task"]
    assert_close(in_training, expected[labels != -100])
    assert_same_loss_and_gradients(theirs, ours, modules, batch, labels)


# ---- which heads run, on which rows ----

TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=LABELS, dropout=0.0),
    "slots": TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"], dropout=0.0),
    "pairs": TaskConfig(head="embedding", loss="cosine_mse"),
}


@pytest.fixture
def model(make_model):
    return make_model("bert", TASKS)


def rows_seen(model):
    """Rows that each head is given, filled as the model runs."""
    seen = {}
    for name, head in model.heads.items():
        head.register_forward_hook(lambda _, given, __, n=name: seen.__setitem__(n, len(given[0])))
    return seen


def test_every_head_reads_every_row_by_default(model, batch_of):
    seen = rows_seen(model)
    out = model(**batch_of(model, LENGTHS))
    assert seen == {"intent": 4, "slots": 4, "pairs": 4}
    assert {name: tuple(x.shape) for name, x in out.logits.items()} == {
        "intent": (4, 3), "slots": (4, 12, 3)
    }  # fmt: skip
    assert {name: tuple(x.shape) for name, x in out.embeddings.items()} == {"pairs": (4, 32)}


def test_chosen_heads_run_alone(model, batch_of):
    seen = rows_seen(model)
    batch = batch_of(model, LENGTHS)
    out = model(**batch, tasks=["slots"])
    assert seen == {"slots": 4}
    assert list(out.logits) == ["slots"]
    assert out.embeddings is None
    assert torch.equal(out.logits["slots"], model(**batch).logits["slots"])


def test_no_tasks_is_the_encoder_alone(model, batch_of):
    seen = rows_seen(model)
    batch = batch_of(model, LENGTHS)
    out = model(**batch, tasks=())
    assert seen == {}
    assert list(out) == ["last_hidden_state"]
    assert torch.equal(out.last_hidden_state, model.encoder(**batch).last_hidden_state)


def test_encoder_runs_once_for_all_tasks(model, batch_of):
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    model(**batch_of(model, LENGTHS))
    assert calls == [1]


def test_task_ids_send_each_row_to_its_head(model, batch_of):
    seen = rows_seen(model)
    batch = batch_of(model, LENGTHS)
    out = model(**batch, task_ids=torch.tensor([1, 0, 1, 1]))
    assert seen == {"intent": 1, "slots": 3}
    every = model(**batch)
    assert_close(out.logits["intent"], every.logits["intent"][[1]])
    assert_close(out.logits["slots"], every.logits["slots"][[0, 2, 3]])
    assert out.embeddings is None


def test_a_row_may_go_to_several_heads(model, batch_of):
    seen = rows_seen(model)
    batch = batch_of(model, LENGTHS)
    ids = torch.tensor([[0, -1], [0, 1], [2, 1], [2, -1]])
    out = model(**batch, task_ids=ids)
    assert seen == {"intent": 2, "slots": 2, "pairs": 2}
    every = model(**batch)
    assert_close(out.logits["intent"], every.logits["intent"][[0, 1]])
    assert_close(out.logits["slots"], every.logits["slots"][[1, 2]])
    assert_close(out.embeddings["pairs"], every.embeddings["pairs"][[2, 3]])


def test_a_row_with_no_task_goes_to_no_head(model, batch_of):
    seen = rows_seen(model)
    model(**batch_of(model, LENGTHS), task_ids=torch.tensor([-1, 0, -1, -1]))
    assert seen == {"intent": 1}


def test_tasks_and_task_ids_together_run_the_heads_in_both(model, batch_of):
    seen = rows_seen(model)
    model(**batch_of(model, LENGTHS), tasks=["intent"], task_ids=torch.tensor([1, 0, 1, 0]))
    assert seen == {"intent": 2}


def test_masked_lm_scores_labelled_tokens_only_in_training(make_model, batch_of):
    model = make_model("bert", {"words": TaskConfig(head="masked_lm")})
    seen = rows_seen(model)
    batch = batch_of(model, LENGTHS)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 1] = labels[3, 2] = 9
    whole = model(**batch, labels={"words": labels})
    assert seen == {"words": 4}
    assert whole.logits["words"].shape == (4, 12, 160)
    chosen = model.train()(**batch, labels={"words": labels})
    assert seen == {"words": 2}
    assert_close(chosen.logits["words"], whole.logits["words"][labels != -100])
    assert_close(chosen.loss, whole.loss)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"tasks": ["intent", "mood"]},
            "unknown task 'mood'; this model has: intent, slots, pairs",
        ),
        ({"labels": {"mood": torch.zeros(4)}}, "unknown task 'mood'; .*: intent, slots, pairs"),
        ({"task_ids": torch.tensor([0, 1, 3, 0])}, "task_ids holds 3; .*: intent, slots, pairs"),
        ({"task_ids": torch.tensor([0, 1])}, "task_ids"),  # two ids for four rows
        ({"tasks": "intent"}, r"tasks=\['intent'\]"),
        ({"labels": torch.zeros(4)}, "labels is a Tensor; give a dict"),
        (
            {"tasks": ["slots"], "labels": {"intent": torch.zeros(4).long()}},
            "labels for intent, but",
        ),
    ],
)
def test_wrong_tasks_are_refused_with_what_is_allowed(model, batch_of, given, message):
    with pytest.raises(ValueError, match=message):
        model(**batch_of(model, LENGTHS), **given)


# ---- a step on one task leaves the others ----


def state_of(model, optimizer, task):
    """Parameters of the task's head with their optimizer state, copied."""
    found = {}
    for name, parameter in model.heads[task].named_parameters():
        found[name] = parameter.detach().clone()
        for key, value in optimizer.state[parameter].items():
            found[f"{name}.{key}"] = value.clone()
    return found


@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_on_one_task_leaves_other_heads_and_their_optimizer_state(mixed, model, batch_of):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    batch = batch_of(model, LENGTHS)
    intent, slots = torch.tensor([0, 2, 1, 2]), batch["input_ids"] % 3
    scores = torch.tensor([0.5, -0.5])
    model(**batch, labels={"intent": intent, "slots": slots, "pairs": scores}).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    before = {task: state_of(model, optimizer, task) for task in ("intent", "slots")}
    encoder = model.get_input_embeddings().weight.detach().clone()
    route = {"task_ids": torch.tensor([0, 0, 2, 2])} if mixed else {"tasks": ["intent", "pairs"]}
    rows = slice(2) if mixed else slice(4)
    count = slice(1) if mixed else slice(2)
    labels = {"intent": intent[rows], "pairs": scores[count]}
    model(**batch, **route, labels=labels).loss.backward()
    optimizer.step()
    after = {task: state_of(model, optimizer, task) for task in ("intent", "slots")}
    assert set(before["slots"]) == {
        f"out.{part}{key}"
        for part in ("weight", "bias")
        for key in ("", ".step", ".exp_avg", ".exp_avg_sq")
    }
    for name, value in before["slots"].items():
        assert torch.equal(after["slots"][name], value), name
    assert not torch.equal(after["intent"]["out.weight"], before["intent"]["out.weight"])
    assert not torch.equal(model.get_input_embeddings().weight, encoder)


# ---- rows that are groups of choices ----


@pytest.fixture
def chooser(make_model):
    return make_model("bert", {"which": TaskConfig(head="multiple_choice", dropout=0.0)})


def test_a_group_without_a_label_is_left_out(chooser, batch_of):
    batch = batch_of(chooser, [9, 5, 12, 7, 3, 8])
    out = chooser(**batch, labels={"which": torch.tensor([-100, 1])})
    scores = out.logits["which"].view(2, 3)
    assert_close(out.loss, -scores[1].log_softmax(0)[1])
    assert chooser.count_items({"which": torch.tensor([-100, 1])}) == {"which": torch.tensor(1)}
    none = chooser(**batch, labels={"which": torch.tensor([-100, -100])})
    assert none.loss == 0


def test_groups_lie_among_rows_of_other_tasks(make_model, batch_of):
    tasks = {"intent": TASKS["intent"], "which": TaskConfig(head="multiple_choice", dropout=0.0)}
    model = make_model("bert", tasks)
    batch = batch_of(model, [9, 5, 12, 7, 3, 8])
    rows = torch.tensor([1, 2, 4, 5])
    labels = {"intent": torch.tensor([0, 2]), "which": torch.tensor([1, 0])}
    out = model(**batch, task_ids=torch.tensor([0, 1, 1, 0, 1, 1]), labels=labels)
    own = {name: values[rows] for name, values in batch.items()}
    expected = model(**own, tasks=["which"], labels={"which": labels["which"]})
    assert_close(out.losses["which"], expected.loss)


@pytest.mark.parametrize("count", [4, 7])
def test_rows_that_do_not_divide_into_groups_are_refused(chooser, batch_of, count):
    batch = batch_of(chooser, [9, 5, 12, 7, 3, 8])
    with pytest.raises(ValueError, match=f"6 rows for {count} labels: each group has as many"):
        chooser(**batch, labels={"which": torch.zeros(count, dtype=torch.long)})


@pytest.mark.parametrize("option", [{"labels": ["a"]}, {"pair": True}, {"prompts": ["q: "]}])
def test_options_that_a_chooser_does_not_read_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        TaskConfig(head="multiple_choice", **option)
