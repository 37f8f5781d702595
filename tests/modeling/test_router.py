"""`tasks="auto"`: the router's tasks, each answered as if it had been asked for by name."""

import json
from dataclasses import replace

import pytest
import torch
from polyhead.modeling import PolyheadConfig, PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.router import route_of
from router_fixtures import CLASSES, KNOWN, LONG, MANY, ROUTER, TASKS, make_routed  # noqa: F401
from test_pipeline import assert_same


@pytest.fixture
def pipe(routed):
    return routed


def by_name(pipe, route, text, **options):
    """The answers that asking for the router's tasks by name gives."""
    names = [name for name in KNOWN if name in route["tasks"]]
    return pipe(text, names, **options) if names else {}


@pytest.mark.parametrize(
    "options", [{}, {"top_k": None}, {"document": True}, {"batch_size": 1}, {"threshold": 0.6}]
)
def test_answers_are_those_of_the_tasks_asked_for_by_name(pipe, options):
    answers = pipe(MANY, "auto", **options)
    for text, answer in zip(MANY, answers, strict=True):
        named = pipe(text, ["router"], threshold=0.0)["router"]
        route = answer.pop("router")
        assert_same(route["scores"], {entry["label"]: entry["score"] for entry in named})
        threshold = options.get("threshold", 0.5)
        assert route["tasks"] == [n for n, score in route["scores"].items() if score >= threshold]
        assert_same(answer, by_name(pipe, route, text, **options))
    named = [set(answer) for answer in answers]
    assert set().union(*named) == set(KNOWN)  # each is asked for, none of them always
    assert not set.intersection(*named)


def test_a_text_for_no_task_says_so(pipe):
    with torch.no_grad():
        pipe.model.heads["router"].out.bias.sub_(1000)
    answer = pipe("Book a table", "auto")
    assert list(answer) == ["router"]
    assert answer["router"]["tasks"] == []
    assert sorted(answer["router"]["scores"]) == KNOWN


def test_tasks_that_read_the_routers_pass_need_no_other(pipe, monkeypatch):
    from polyhead.modeling import pipeline_polyhead

    windows = []
    encode = pipeline_polyhead.encode_entries

    def counted(model, tokenizer, entries, encodings):
        windows.extend(entry.tasks for entry in entries)
        return encode(model, tokenizer, entries, encodings)

    monkeypatch.setattr(pipeline_polyhead, "encode_entries", counted)
    apart = {"far", "vector"}  # an adapter; a prompt
    short = [text for text in MANY if len(text) < 100]
    routes = [set(answer["router"]["tasks"]) for answer in pipe(short, "auto")]
    assert len(windows) == len(short) + sum(
        bool(r & {"far"}) + bool(r & {"vector"}) for r in routes
    )
    assert all(set(tasks) <= apart for tasks in windows[len(short) :])


def test_windows_of_a_long_text_are_read_only_for_tasks_that_are_named(pipe):
    pipe.model.heads["router"].out.bias.data.fill_(-1000.0)
    call = pipe.read([LONG], "auto")
    first = call.more()
    assert [entry.window.first for entry in first] == [True]
    assert len(call.part.entries) > 1
    for entry, values in zip(first, pipe.encode(first), strict=True):
        entry.take(values)
    assert call.more() == []
    assert call.tasks == ["router"]
    assert [list(answer) for answer in call.answers()] == [["router"]]


def test_a_generator_and_one_text(pipe):
    assert_same(list(pipe(iter(MANY), "auto")), pipe(MANY, "auto"))
    assert_same(pipe(MANY[0], "auto"), pipe(MANY[:1], "auto")[0])


def test_without_a_router_auto_is_refused(pipe):
    pipe.model.config.router = None
    message = "tasks is 'auto', but this model has no router.*train one with router: true"
    for texts in (["a"], iter(["a"])):
        with pytest.raises(ValueError, match=message):
            list(pipe(texts, "auto"))
    with pytest.raises(ValueError, match=message):
        pipe.read(["a"], "auto")


def test_pairs_are_refused(pipe):
    with pytest.raises(ValueError, match="tasks is 'auto', which finds the tasks of single texts"):
        pipe([("a", "b")], "auto")


def test_it_is_never_the_default(pipe):
    assert list(pipe("Play music")) == [n for n in TASKS if n != "same"]


# ---- the config ----


def test_the_router_is_saved_with_the_model(pipe, tmp_path):
    pipe.model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["router"] == "router"
    model = PolyheadModel.from_pretrained(tmp_path)
    again = PolyheadPipeline(model=model, tokenizer=pipe.tokenizer, device="cpu")
    assert_same(again(MANY, "auto"), pipe(MANY, "auto"))
    pipe.model.config.router = None
    assert "router" not in pipe.model.config.to_dict()


@pytest.mark.parametrize(
    ("router", "message"),
    [
        ("other", "router is 'other'; it must be a multi_label_classification task.*tasks: kind"),
        ("kind", "router is 'kind'; it must be a multi_label"),
        ("own", "router 'own' has a label of its own name"),
        (3, "router is 3; it must be str"),
    ],
)
def test_a_router_is_a_task_that_can_find_others(router, message):
    multi = {"problem_type": "multi_label_classification"}
    tasks = {
        "kind": TaskConfig(**CLASSES, labels=["x", "y"]),
        "own": TaskConfig(**CLASSES, **multi, labels=["kind", "own"]),
    }
    with pytest.raises(ValueError, match=message):
        PolyheadConfig(tasks=tasks, router=router)


def test_texts_for_a_task_that_was_removed_are_for_none(pipe):
    before = pipe(MANY, "auto")
    pipe.model.config.tasks["router"] = replace(ROUTER, thresholds={"intent": 0.5, "slots": 0.5})
    pipe.model.remove_task("intent")
    labels = pipe.model.config.tasks["router"].labels
    assert labels == [n if n != "intent" else "intent (removed)" for n in KNOWN]
    assert pipe.model.config.tasks["router"].thresholds == {"intent (removed)": 0.5, "slots": 0.5}
    # another task of the name is not what the router has learned
    pipe.model.add_task("intent", TaskConfig(**CLASSES, labels=["p", "q"]))
    for answer in before:
        answer.pop("intent", None)
        answer["router"]["scores"].pop("intent")
        answer["router"]["tasks"] = [n for n in answer["router"]["tasks"] if n != "intent"]
    assert_same(pipe(MANY, "auto"), before)


def test_without_its_router_a_model_has_none(pipe):
    pipe.model.remove_task("router")
    assert pipe.model.config.router is None


def test_a_route_by_thresholds():
    task = TaskConfig(
        **CLASSES,
        problem_type="multi_label_classification",
        labels=["a", "b (removed)", "c"],
        thresholds={"a": 0.9, "c": 0.1},
    )
    logits = torch.tensor([0.8, 0.75, 0.2]).logit()
    route = route_of(task, {"a": None, "c": None, "d": None}, logits, None)
    assert route["tasks"] == ["c"]
    assert_same(route["scores"], {"a": 0.8, "c": 0.2})
    assert route_of(task, {"a": None, "c": None}, logits, 0.5)["tasks"] == ["a"]
