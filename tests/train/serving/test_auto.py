"""`tasks: auto` of a request: the same answers as offline, in passes that others share."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from polyhead.train.inference.files import plain
from polyhead.train.serving import Settings, create_app
from polyhead.train.serving.loaded import Loaded
from router_fixtures import MANY, make_routed  # noqa: F401
from serving_fixtures import same
from starlette.testclient import TestClient


@pytest.fixture(name="client")
def make_client(routed):
    app = create_app(Settings("model", compute="exact"), Loaded(routed, "model"))
    with TestClient(app) as client:
        yield client


def counted(client, task):
    """How many texts the task has read, of all servers of this process."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(x.split()[1]) for x in lines if f'texts_total{{task="{task}"}}' in x)


def test_answers_are_those_of_the_pipeline(client, routed):
    body = {"texts": MANY, "tasks": "auto"}
    before = counted(client, "intent")
    answers = client.post("/predict", json=body).json()
    assert same(answers, plain(routed(MANY, "auto")))
    assert client.get("/info").json()["router"] == "router"
    assert counted(client, "intent") - before == sum("intent" in answer for answer in answers)


def test_many_clients_at_once(client, routed):
    requests = [{"texts": MANY[n % 5 :], **({"tasks": "auto"} if n % 3 else {})} for n in range(40)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda r: client.post("/predict", json=r).json(), requests))
    for request, answer in zip(requests, answers, strict=True):
        assert same(answer, plain(routed(request["texts"], request.get("tasks"))))


def test_without_a_router_it_is_refused(client, routed):
    routed.model.config.router = None
    answer = client.post("/predict", json={"texts": ["a"], "tasks": "auto"})
    assert answer.status_code == 422
    assert "this model has no router" in answer.json()["error"]["message"]
    answer = client.post("/predict", json={"texts": ["a"], "tasks": "other"})
    assert answer.status_code == 422
