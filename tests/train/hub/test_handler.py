"""Requests to the Inference Endpoints' handler: answered as the pipeline does, or refused."""

import inspect
import json

import pytest
from polyhead.modeling import PolyheadPipeline, TaskConfig
from polyhead.train.hub import handler as module

TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["book", "play", "ask"]),
    "vector": TaskConfig(head="embedding"),
}
TEXTS = ["Play some music", "six"]


@pytest.fixture
def handler(make_model, tokenizer_of, monkeypatch):
    pipe = PolyheadPipeline(
        model=make_model("bert", TASKS), tokenizer=tokenizer_of("wordpiece"), compute="exact"
    )
    monkeypatch.setattr(module, "pipeline", lambda **_: pipe)
    return module.EndpointHandler("folder")


def test_answers_are_those_of_the_pipeline(handler):
    for parameters in ({}, {"tasks": ["intent"], "top_k": None}, None):
        answer = handler({"inputs": TEXTS, "parameters": parameters})
        expected = handler.pipeline(TEXTS, **(parameters or {}))
        assert [one["intent"] for one in answer] == [one["intent"] for one in expected]
        json.dumps(answer)
    assert handler({"inputs": TEXTS[0]})["vector"] == handler.pipeline(TEXTS[0])["vector"].tolist()


def test_the_parameters_are_those_of_the_pipeline():
    options = list(inspect.signature(PolyheadPipeline.__call__).parameters)
    assert list(module.PARAMETERS) == options[2:]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({}, "the request has the keys"),
        ({"input": "six"}, r"keys \['input'\]"),
        ({"inputs": "six", "top_k": 3}, r"keys \['inputs', 'top_k'\]"),
        (["six"], "the request has list"),
        (None, "the request has NoneType"),
        ({"inputs": "six", "parameters": ["top_k"]}, "parameters is .* give an object"),
        ({"inputs": "six", "parameters": {"top": 3}}, "unknown parameter top; allowed: tasks"),
        ({"inputs": "six", "parameters": {"texts": "x"}}, "unknown parameter texts"),
        ({"inputs": None}, "texts is None"),
        ({"inputs": "six", "parameters": {"top_k": 0}}, "top_k is 0"),
    ],
)
def test_other_requests_are_refused(handler, request_, says):
    with pytest.raises(ValueError, match=says):
        handler(request_)
