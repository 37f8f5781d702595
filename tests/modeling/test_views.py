"""Single-task views: HF's classes, outputs and stock pipelines give what the whole model gives."""

import copy

import pytest
import torch
from polyhead.modeling import (
    PolyheadForSequenceClassification,
    PolyheadForTokenClassification,
    PolyheadModel,
    PolyheadPipeline,
    TaskConfig,
)
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)

SEQUENCE = {"head": "sequence_classification"}
TASKS = {
    "intent": TaskConfig(**SEQUENCE, labels=["book", "play", "ask"], dropout=0.0),
    "topics": TaskConfig(
        **SEQUENCE, problem_type="multi_label_classification", labels=["a", "b"], dropout=0.0
    ),
    "urgency": TaskConfig(**SEQUENCE, problem_type="regression", dropout=0.0),
    "slots": TaskConfig(head="token_classification", labels=["O", "B-x", "B-y"], dropout=0.0),
    "vector": TaskConfig(head="embedding"),
}
TEXTS = ["Book a table for two in Paris.", "Play music", "What is the weather like tomorrow?"]


@pytest.fixture
def folder(make_model, tokenizer_of, tmp_path):
    make_model("bert", TASKS).save_pretrained(tmp_path / "model")
    tokenizer_of("wordpiece").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def batch(tokenizer_of):
    return dict(tokenizer_of("wordpiece")(TEXTS, padding=True, return_tensors="pt"))


LABELS = {
    "intent": torch.tensor([2, -100, 0]),
    "topics": torch.tensor([[1.0, 0], [0, 1], [1, 1]]),
    "urgency": torch.tensor([0.5, 2.0, -1.0]),
}


@pytest.mark.parametrize("task", LABELS)
def test_sequence_tasks_by_auto_class(folder, batch, task):
    view = AutoModelForSequenceClassification.from_pretrained(folder, task=task)
    whole = PolyheadModel.from_pretrained(folder)
    assert type(view) is PolyheadForSequenceClassification
    found = view(**batch, labels=LABELS[task])
    expected = whole(**batch, tasks=[task], labels={task: LABELS[task]})
    assert_close(found.logits, expected.logits[task], rtol=0, atol=0)
    assert_close(found.loss, expected.losses[task], rtol=0, atol=0)
    assert view.config.problem_type == TASKS[task].problem_type
    assert view.config.num_labels == TASKS[task].num_labels


def test_token_tasks_by_auto_class(folder, batch):
    view = AutoModelForTokenClassification.from_pretrained(folder)  # the model has one
    expected = PolyheadModel.from_pretrained(folder)(**batch, tasks=["slots"]).logits["slots"]
    assert type(view) is PolyheadForTokenClassification
    assert_close(view(**batch).logits, expected, rtol=0, atol=0)
    assert_close(view(**batch, return_dict=False)[0], expected, rtol=0, atol=0)
    assert view.config.id2label == {0: "O", 1: "B-x", 2: "B-y"}


def test_stock_pipelines_give_what_ours_gives(folder, tokenizer_of):
    tokenizer = tokenizer_of("wordpiece")
    ours = PolyheadPipeline(model=PolyheadModel.from_pretrained(folder), tokenizer=tokenizer)
    expected = ours(TEXTS, tasks=["intent", "urgency", "slots"])

    def stock_of(task):
        view = AutoModelForSequenceClassification.from_pretrained(folder, task=task)
        return pipeline("text-classification", model=view, tokenizer=tokenizer)

    stock = stock_of("intent")
    for found, other in zip(stock(TEXTS), expected, strict=True):
        assert found["label"] == other["intent"]["label"]
        assert found["score"] == pytest.approx(other["intent"]["score"], abs=1e-5)
    scores = [found["score"] for found in stock_of("urgency")(TEXTS)]
    assert scores == pytest.approx([other["urgency"]["score"] for other in expected], abs=1e-5)
    stock = pipeline("token-classification", model=str(folder), aggregation_strategy="first")
    for found, other in zip(stock(TEXTS), expected, strict=True):
        spans = [(e["entity_group"], e["start"], e["end"]) for e in found]
        assert spans == [(e["entity_group"], e["start"], e["end"]) for e in other["slots"]]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            None,
            "task is None; tasks of this model for sequence_classification: intent, topics, urg",
        ),
        ("slots", "task is 'slots'; tasks of this model for sequence_classification: intent"),
        ("mood", "task is 'mood'"),
    ],
)
def test_another_task_is_refused(folder, task, message):
    with pytest.raises(ValueError, match=message):
        AutoModelForSequenceClassification.from_pretrained(folder, task=task)


def test_a_view_shares_the_weights_and_leaves_the_config_alone(make_model, batch):
    model = make_model("bert", TASKS)
    before = copy.deepcopy(model.config.to_dict())
    view = model.view("intent")
    assert model.config.to_dict() == before
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    view(**batch, labels=LABELS["intent"]).loss.backward()
    assert model.heads["intent"].out.weight.grad is not None
    with pytest.raises(ValueError, match="'vector' is embedding; there are views of seq"):
        model.view("vector")
    with pytest.raises(ValueError, match="unknown task 'mood'"):
        model.view("mood")


def test_a_view_of_before_an_adapter_came_does_not_answer_without_it(make_model, batch):
    peft = pytest.importorskip("peft")
    model = make_model("bert", TASKS)
    before = model.view("intent")
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    model.attach_adapter("late", config, ["intent"])
    with pytest.raises(ValueError, match=r"adapter late .* make it anew by model.view\(task\)"):
        before(**batch)
    with torch.no_grad():
        expected = model(**batch, tasks=["intent"]).logits["intent"]
        assert torch.equal(model.view("intent")(**batch).logits, expected)


def test_a_saved_view_is_the_whole_model(folder, tmp_path):
    view = AutoModelForTokenClassification.from_pretrained(folder, task="slots")
    view.save_pretrained(tmp_path / "again")
    files = [load_file(path / "model.safetensors") for path in (folder, tmp_path / "again")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())
    names = [{file.name for file in path.glob("*.py")} for path in (folder, tmp_path / "again")]
    assert names[0] == names[1]
    again = PolyheadModel.from_pretrained(tmp_path / "again")
    assert again.task_names == list(TASKS)
    assert set(again.config.auto_map) == set(PolyheadModel.from_pretrained(folder).config.auto_map)


@pytest.mark.parametrize(
    "option",
    [
        {"num_labels": 5},
        {"id2label": {0: "x"}},
        {"label2id": {"x": 0}},
        {"problem_type": "regression"},
        {"task_names": ["slots"]},
        {"format_version": 3},
        {"hidden_size": 3},
        {"vocab_size": 3},
    ],
    ids=str,
)
def test_options_that_contradict_the_weights_are_refused(folder, option):
    for load in (
        lambda: AutoModelForSequenceClassification.from_pretrained(folder, task="intent", **option),
        lambda: PolyheadForSequenceClassification.from_pretrained(folder, task="intent", **option),
        lambda: PolyheadModel.from_pretrained(folder, **option),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: a saved Polyhead says that"):
            load()


def test_unknown_options_are_refused(folder):
    with pytest.raises(TypeError, match="nonsense"):
        AutoModelForSequenceClassification.from_pretrained(folder, task="intent", nonsense=1)


def test_options_of_loading_have_their_effect(folder):
    options = {"dtype": torch.float64, "output_attentions": True, "attn_implementation": "eager"}
    view = AutoModelForSequenceClassification.from_pretrained(folder, task="intent", **options)
    assert view.dtype == torch.float64
    assert view.config.output_attentions


def test_tasks_are_chosen_by_auto_class_as_by_ours(folder):
    model = AutoModel.from_pretrained(folder, tasks=["intent"])
    assert list(model.config.tasks) == list(TASKS)
    with pytest.raises(ValueError, match="unknown task 'nope'"):
        AutoModel.from_pretrained(folder, tasks=["nope"])


def test_a_view_of_a_task_that_was_removed_or_replaced_does_not_answer(make_model, batch_of):
    task = TaskConfig(head="sequence_classification", labels=["a", "b"])
    model = make_model("bert", {"intent": task, "mood": task})
    view, tokens = model.view("intent"), batch_of(model, [4, 3])
    model.remove_task("intent")
    with pytest.raises(ValueError, match=r"removed or replaced .*model.view\('intent'\)"):
        view(**tokens)
    model.add_task("intent", TaskConfig(head="sequence_classification", labels=["b", "a"]))
    with pytest.raises(ValueError, match="removed or replaced"):
        view(**tokens)
    assert model.view("intent")(**tokens).logits.shape == (2, 2)
