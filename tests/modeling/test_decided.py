"""Temperature, thresholds and abstention: what is in a task's config is what is answered."""

import json

import pytest
import torch
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.configuration_polyhead import PolyheadConfig
from polyhead.modeling.decoding import if_sure, sure_entities
from polyhead.modeling.heads import DECISIONS

SEQUENCE, TOKENS = "sequence_classification", "token_classification"
MULTI = "multi_label_classification"
TASKS = {
    "intent": {"head": SEQUENCE, "labels": ["book", "play", "ask"]},
    "topics": {"head": SEQUENCE, "labels": ["food", "music"], "problem_type": MULTI},
    "kinds": {"head": SEQUENCE, "labels": ["a/x", "a/y", "b"], "hierarchy": True},
    "slots": {"head": TOKENS, "labels": ["O", "B-city", "I-city"]},
    "best": {"head": "multiple_choice"},
}
TEXTS = ["Book a table in Paris", "Play some music by the Beatles", "The train leaves Berlin"]
CHOICES = [("What is it?", ["a train", "a table", "an alarm"])]
T = 1.7


@pytest.fixture
def model(make_model) -> PolyheadModel:
    return make_model("bert", {name: TaskConfig(**task) for name, task in TASKS.items()}).eval()


@pytest.fixture
def ask(tokenizer_of):
    def ask(model, texts=TEXTS, **options):
        pipe = PolyheadPipeline(model=model, tokenizer=tokenizer_of("wordpiece"), device="cpu")
        return pipe(texts, **options)

    return ask


def decide(model, **options) -> None:
    """Set options of all tasks that have them."""
    for task in model.config.tasks.values():
        for name, value in options.items():
            allowed = DECISIONS[name] if task.problem_type else (None,)
            if name in task.head_class.options and task.problem_type in allowed:
                setattr(task, name, value)


@torch.no_grad()
def test_a_temperature_divides_the_logits(model, batch_of):
    batch = batch_of(model, [5, 9])
    before = model(**batch).logits
    decide(model, calibration=T)
    after = model(**batch).logits
    assert {n for n in after if after[n].equal(before[n] / T)} == set(TASKS)


def test_the_labels_stay_and_the_scores_are_those_of_divided_logits(model, ask):
    before = ask(model, top_k=None)
    decide(model, calibration=T)
    after = ask(model, top_k=None)
    for one, other in zip(before, after, strict=True):
        scores = {answer["label"]: answer["score"] for answer in one["intent"]}
        logs = torch.tensor([scores[label] for label in TASKS["intent"]["labels"]]).log()
        expected = dict(zip(TASKS["intent"]["labels"], (logs / T).softmax(0), strict=True))
        assert [a["label"] for a in other["intent"]] == [a["label"] for a in one["intent"]]
        for answer in other["intent"]:
            assert answer["score"] == pytest.approx(float(expected[answer["label"]]), abs=1e-6)


def test_below_its_score_an_answer_has_no_label(model, ask):
    before = ask(model)
    scores = sorted(answer["intent"]["score"] for answer in before)
    cut = (scores[0] + scores[1]) / 2
    model.config.tasks["intent"].abstain = cut
    after = ask(model)
    for one, other in zip(before, after, strict=True):
        kept = one["intent"]["score"] >= cut
        assert other["intent"]["score"] == one["intent"]["score"]
        assert other["intent"]["label"] == (one["intent"]["label"] if kept else None)
        assert other["kinds"] == one["kinds"]
    ranked = ask(model, top_k=2)  # a list has all, with their scores
    assert all(entry["label"] for answer in ranked for entry in answer["intent"])


def test_a_leaf_has_none_but_the_nodes_above_stay(model, ask):
    model.config.tasks["kinds"].abstain = 2.0
    answer = ask(model)[0]["kinds"]
    assert answer["label"] is None
    assert set(answer) == {"label", "score", "path"}


def test_choices(model, ask):
    before = ask(model, CHOICES)[0]["best"]
    model.config.tasks["best"].abstain = 2.0
    assert ask(model, CHOICES)[0]["best"] == {**before, "label": None, "choice": None}


def test_entities_below_are_left_out(model, ask):
    before = [entity for answer in ask(model) for entity in answer["slots"]]
    assert len(before) > 1
    cut = sorted(entity["score"] for entity in before)[1]
    model.config.tasks["slots"].abstain = cut
    after = [entity for answer in ask(model) for entity in answer["slots"]]
    assert after == [entity for entity in before if entity["score"] >= cut]


def test_each_label_is_set_by_its_own_threshold(model, ask):
    every = ask(model, top_k=None)
    task = model.config.tasks["topics"]
    task.thresholds = {"food": 0.0, "music": 2.0}
    assert {entry["label"] for answer in ask(model) for entry in answer["topics"]} == {"food"}
    task.thresholds = {"music": 2.0}  # food by the task's own
    task.threshold = 1.0
    assert [answer["topics"] for answer in ask(model)] == [[], [], []]
    given = ask(model, threshold=0.0)  # what a call asks for goes first
    assert [answer["topics"] for answer in given] == [answer["topics"] for answer in every]
    assert ask(model, top_k=None) == every


def test_labels_with_thresholds_of_their_own_are_not_held_back():
    low = {"label": "new", "score": 0.1}
    assert if_sure(low, 0.5, {"new": 0.05}) == low
    assert if_sure({"label": "old", "score": 0.1}, 0.5, {"new": 0.05})["label"] is None
    entities = [{"entity_group": "new", "score": 0.1}, {"entity_group": "old", "score": 0.1}]
    assert sure_entities(entities, 0.5, {"new": 0.05}) == entities[:1]
    assert sure_entities(entities, None) == entities


@pytest.mark.slow
def test_a_saved_model_answers_as_before(model, ask, tmp_path):
    decide(model, calibration=T, abstain=0.4, thresholds={"food": 0.4, "music": 0.6})
    model.save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path).eval()
    assert ask(again) == ask(model)
    assert ask(again, CHOICES) == ask(model, CHOICES)
    tasks = json.loads((tmp_path / "config.json").read_text())["tasks"]
    assert tasks["topics"]["thresholds"] == {"food": 0.4, "music": 0.6}
    assert (tasks["intent"]["abstain"], tasks["intent"]["calibration"]) == (0.4, T)


def test_a_task_without_decisions_is_saved_as_before(model):
    for task in model.config.to_dict()["tasks"].values():
        assert not {"calibration", "thresholds", "abstain"} & set(task)


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        ("intent", {"calibration": 0.0}, "calibration is 0.0; it must be above 0"),
        ("intent", {"calibration": float("nan")}, "calibration is nan"),
        ("intent", {"calibration": True}, "calibration is True"),
        ("intent", {"abstain": -0.1}, "abstain is -0.1; it must be 0 or more"),
        ("intent", {"abstain": "high"}, "abstain is 'high'"),
        ("intent", {"thresholds": {"book": 0.4}}, f"thresholds belongs to problem_type: {MULTI}"),
        ("topics", {"abstain": 0.4}, "abstain belongs to problem_type: single_label"),
        ("topics", {"thresholds": {"book": 0.4}}, "thresholds names 'book', which is no label"),
        ("topics", {"thresholds": {"food": "x"}}, "thresholds has 'food': 'x'; write 0 or more"),
        ("topics", {"thresholds": {"food": -1}}, "thresholds has 'food': -1; write 0 or more"),
        ("topics", {"thresholds": [0.4, 0.4]}, "thresholds is"),
    ],
)  # fmt: skip
def test_a_damaged_config_is_told(task, options, says):
    config = {"encoder_config": {"model_type": "bert"}, "tasks": {task: TASKS[task] | options}}
    with pytest.raises(ValueError, match=says):
        PolyheadConfig.from_dict(config)


def test_numbers_have_none():
    message = "calibration belongs to problem_type: single_label_classification or multi"
    with pytest.raises(ValueError, match=message):
        TaskConfig(head=SEQUENCE, problem_type="regression", calibration=2.0)
    with pytest.raises(ValueError, match="abstain belongs to .*, not to embedding"):
        TaskConfig(head="embedding", abstain=0.5)


class TestGrowing:
    def test_old_logits_stay_and_abstention_is_dropped_with_a_word(self, model, batch_of, caplog):
        decide(model, calibration=T, abstain=0.4)
        batch = batch_of(model, [5, 9])
        with torch.no_grad():
            before = model(**batch).logits["intent"]
            model.extend_task("intent", ["new"])
            after = model(**batch).logits["intent"]
        assert after[:, :3].equal(before)
        task = model.config.tasks["intent"]
        assert (task.calibration, task.abstain) == (T, None)
        assert (
            "'intent': its abstain 0.4 was found among fewer labels and is dropped" in caplog.text
        )
        assert model.config.tasks["slots"].abstain == 0.4

    def test_beside_labels_with_thresholds_it_stays(self, model, caplog):
        decide(model, calibration=T, abstain=0.4)
        model.extend_task("intent", ["new"], strict={"new": 0.5})
        assert model.config.tasks["intent"].abstain == 0.4
        assert caplog.text == ""


def test_a_view_says_what_transformers_does_not_know(model, caplog):
    model.view("intent")
    assert caplog.text == ""
    model.config.tasks["topics"].thresholds = {"food": 0.3}
    model.view("topics")
    assert "'topics': transformers' pipelines see the logits alone, and not its thr" in caplog.text
