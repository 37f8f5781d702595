"""What each route answers, against the pipeline; what it refuses, and how."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import CORPUS
from polyhead.train.export.graph import export_graph
from polyhead.train.inference import load_model
from polyhead.train.inference.files import plain
from polyhead.train.serving import Settings
from polyhead.train.serving.loaded import load
from serving_fixtures import (  # noqa: F401
    LABELS,
    SINGLE,
    TASKS,
    make_client,
    make_client_of,
    make_pipe,
    make_served,
    same,
)

LONG = " ".join(CORPUS)  # several windows


def error_of(response) -> str:
    assert set(response.json()) == {"error"}
    assert response.json()["error"]["code"] == response.status_code
    return response.json()["error"]["message"]


def test_all_tasks_of_a_text_in_one_request(client, pipe):
    texts = [CORPUS[0], LONG, "", "a [MASK] \0 \u200f שלום 🙂"]
    answers = client.post("/predict", json={"texts": texts}).json()
    assert [list(answer) for answer in answers] == [SINGLE] * 4
    assert same(answers, plain(pipe(texts)))
    body = {"texts": texts, "tasks": ["topics", "intent"], "top_k": None, "threshold": 0.1}
    answers = client.post("/predict", json=body).json()
    assert same(answers, plain(pipe(texts, ["topics", "intent"], top_k=None, threshold=0.1)))


def test_pairs_in_both_forms(client, pipe):
    body = {"texts": [["a b", "c"], {"text": "d", "text_pair": "e f"}]}
    answers = client.post("/predict/same", json=body).json()
    assert same(answers, [a["same"] for a in plain(pipe([("a b", "c"), ("d", "e f")]))])


def test_mixed_requests_of_many_clients_are_answered_as_offline(client, pipe):
    requests = []
    for number in range(120):
        chosen = [name for k, name in enumerate(SINGLE) if number >> (k % 4) & 1] or ["slots"]
        texts = [CORPUS[number % 5], LONG[number:], CORPUS[number % 3][: number % 30]]
        requests.append({"texts": texts[: 1 + number % 3], "tasks": chosen})
        if number % 7 == 0:
            pair = [[CORPUS[number % 5], CORPUS[0]]]
            requests.append({"texts": pair, "tasks": ["same"]})
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda body: client.post("/predict", json=body), requests))
    assert {response.status_code for response in found} == {200}
    for body, response in zip(requests, found, strict=True):
        texts = [tuple(text) if isinstance(text, list) else text for text in body["texts"]]
        assert same(response.json(), plain(pipe(texts, body["tasks"])))
    metrics = client.get("/metrics").text
    assert 'polyhead_texts_total{task="slots"}' in metrics
    assert "polyhead_waiting_texts 0.0" in metrics


def test_openais_embeddings(client, pipe):
    body = {"input": CORPUS[:2], "model": "near"}
    answer = client.post("/v1/embeddings", json=body).json()
    vectors = [row["near"] for row in pipe(CORPUS[:2], ["near"])]
    assert [row["index"] for row in answer["data"]] == [0, 1]
    np.testing.assert_allclose([r["embedding"] for r in answer["data"]], vectors, atol=1e-5)
    tokens = sum(len(pipe.tokenizer("ask: " + text)["input_ids"]) for text in CORPUS[:2])
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    body |= {"encoding_format": "base64", "dimensions": 16, "document": True}
    answer = client.post("/v1/embeddings", json=body).json()
    (vector,) = (row["near"] for row in pipe(CORPUS[:1], ["near"], document=True))
    found = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(found, vector[:16] / np.linalg.norm(vector[:16]), atol=1e-5)
    response = client.post("/v1/embeddings", json={"input": "a", "dimensions": 17})
    assert response.status_code == 422
    assert error_of(response) == "dimensions is 17; task 'near' has: 32, 16"
    assert client.get("/v1/models").json()["data"][0]["id"] == "near"
    response = client.post("/v1/embeddings", json={"input": "a", "model": "gpt"})
    assert response.status_code == 404
    assert error_of(response) == "model is 'gpt'; embedding tasks of this model: near"


def test_text_embeddings_inferences_routes(client, pipe):
    vectors = np.stack([row["near"] for row in pipe(CORPUS[:3], ["near"])])
    found = client.post("/embed", json={"inputs": CORPUS[:3], "truncate": True}).json()
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    sentences = {"source_sentence": CORPUS[0], "sentences": CORPUS[1:3]}
    found = client.post("/similarity", json={"inputs": sentences}).json()
    np.testing.assert_allclose(found, vectors[1:] @ vectors[0], atol=1e-5)
    (tokens,) = client.post("/tokenize", json={"inputs": "Anna b"}).json()
    assert [token["text"] for token in tokens] == ["[CLS]", "Anna", "b", "[SEP]"]
    assert tokens[2] == {"id": tokens[2]["id"], "text": "b", "special": False} | {
        "start": 5,
        "stop": 6,
    }
    (tokens,) = client.post("/tokenize", json={"inputs": LONG * 2}).json()
    assert len(tokens) > 64
    info = client.get("/info").json()
    assert info["tasks"]["intent"]["labels"] == LABELS
    assert info["tasks"]["intent"]["decisions"] == {}
    assert info["max_input_length"] == 64
    assert client.get("/health").json() == {"status": "ok"}


def test_encodings_are_kept_where_that_is_asked_for(client_of, served, pipe):
    loaded = load(str(served), Settings(str(served), compute="exact", cache=50))
    client = client_of(loaded=loaded)
    for tasks in (["intent"], ["slots", "near"], ["intent"]):
        found = client.post("/predict", json={"texts": CORPUS, "tasks": tasks}).json()
        assert same(found, plain(pipe(CORPUS, tasks)))
    assert 0 < len(loaded.pipe.encodings) <= 50


def test_info_has_the_decisions_of_the_tasks(client_of, served):
    loaded = load(str(served), Settings(str(served), compute="exact"))
    tasks = loaded.pipe.model.config.tasks
    tasks["intent"].calibration, tasks["intent"].abstain = 1.5, 0.25
    tasks["topics"].thresholds = {"book": 0.2, "play": 1.5}
    tasks = client_of(loaded=loaded).get("/info").json()["tasks"]
    assert {name: task["decisions"] for name, task in tasks.items() if task["decisions"]} == {
        "intent": {"calibration": 1.5, "abstain": 0.25},
        "topics": {"thresholds": {"book": 0.2, "play": 1.5}},
    }


def test_the_page_shows_the_models_own_tasks(client):
    page = client.get("/openapi.json").json()
    content = page["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        assert client.post("/predict", json=example["value"]).status_code == 200
    (parameter,) = page["paths"]["/predict/{task}"]["post"]["parameters"]
    assert parameter["schema"]["enum"] == list(TASKS)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/predict", {"texts": []}, 422, "there are no texts; give one or more"),
        ("/predict", {"texts": ["a"] * 10_000}, 413, "10,000 texts; at most 1,024 in one request"),
        ("/predict", {"texts": [["a", ["b"] * 2000]]}, 413, "2,000 choices; at most 1,024"),
        ("/predict", {"texts": ["a" * 1_000_001]}, 413, "the texts have 1,000,001 characters"),
        ("/predict", {"texts": ["a"], "tasks": ["no"]}, 422, "unknown task 'no'; this model has"),
        ("/predict/no", {"texts": ["a"]}, 404, "unknown task 'no'; this model has: intent,"),
        ("/predict", {"texts": ["a"], "tasks": []}, 422, "tasks is empty"),
        ("/predict", {"texts": ["a"], "tasks": ["same"]}, 422, "task 'same' reads pairs"),
        ("/predict", {"texts": ["a", ["b", "c"]]}, 422, "texts and pairs of texts are mixed"),
        ("/predict", {"texts": [["a", "b", "c"]]}, 422, "text 0 is ('a', 'b', 'c'), a tuple of 3"),
        ("/predict", {"texts": "a"}, 422, "texts: Input should be a valid list"),
        ("/predict", {"texts": ["a"], "topk": 2}, 422, "topk: Extra inputs are not permitted"),
        ("/predict", {"texts": ["a"], "top_k": 0}, 422, "top_k: Input should be greater than"),
        ("/predict", {"texts": ["a"], "threshold": 2}, 422, "threshold: Input should be less"),
        ("/v1/embeddings", {"input": [[1, 2]]}, 422, "input.str: Input should be a valid string"),
        ("/embed", {"inputs": "a", "normalize": False}, 422, "task 'near' gives vectors of length"),
        ("/tokenize", {"inputs": []}, 422, "0 texts; give 1 to 1,024"),
        ("/admin/reload", {"model": "x"}, 403, "this server has no token"),
        ("/no", {}, 404, "Not Found"),
    ],
)
def test_what_is_refused_says_why(client, path, body, status, message):
    response = client.post(path, json=body)
    assert response.status_code == status
    assert error_of(response).startswith(message)


@pytest.mark.parametrize("body", [b'{"texts": [', b"\xff\xfe", b"", b'"a"', b"NaN"])
def test_what_is_no_json_object_is_refused_without_repeating_it(client, body):
    response = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert error_of(response)


def test_half_a_letter_is_read_as_the_pipeline_reads_it(client, pipe):
    body = b'{"texts": ["\\ud800 Berlin"]}'
    response = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200
    (expected,) = pipe(["\ud800 Berlin"])
    assert response.json()[0]["intent"]["label"] == expected["intent"]["label"]


def test_a_token_is_asked_for_everywhere_but_at_health(client_of):
    client = client_of(token="secret")
    for header in ({}, {"Authorization": "secret"}, {"Authorization": "Bearer secre"}):
        for path in ("/info", "/metrics", "/docs", "/openapi.json", "/nowhere"):
            response = client.get(path, headers=header)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").status_code == 200
    assert client.get("/info", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_large_bodies_are_refused_before_they_are_read(client_of):
    client = client_of(max_body=1000)
    response = client.post("/predict", json={"texts": ["a" * 2000]})
    assert response.status_code == 413
    assert error_of(response) == "the body has more than 1,000 bytes; send several requests"
    chunks = (b"x" * 400 for _ in range(9))  # without content-length
    assert client.post("/predict", content=chunks).status_code == 413


def test_a_failure_of_ours_tells_the_client_nothing(client_of, monkeypatch):
    client = client_of(raise_server_exceptions=False)
    service = client.app.state.service
    monkeypatch.setattr(service.current.pipe, "encode", lambda _: json.loads("secret text"))
    response = client.post("/predict", json={"texts": ["a"]})
    assert response.status_code == 500
    assert error_of(response) == "the server failed to answer; its log says where"
    monkeypatch.undo()
    assert client.post("/predict", json={"texts": ["a"]}).status_code == 200
    assert service.waiting == 0


def test_a_stopping_server_refuses(client):
    client.app.state.service.stopping = True
    response = client.post("/predict", json={"texts": ["a"]})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert client.get("/health").status_code == 503


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.slow
def test_an_exported_folder_answers_as_the_model_it_was_made_of(
    served, pipe, client_of, tmp_path, kind
):
    model, tokenizer = load_model(served)
    tasks = ["intent", "topics", "slots", "near"]
    export_graph(model, tokenizer, kind, tasks=tasks, folder=tmp_path / kind)
    client = client_of(loaded=load(str(tmp_path / kind), Settings("-", compute="exact")))
    bodies = [{"texts": CORPUS[n:], "tasks": tasks[n % 4 :]} for n in range(5) for _ in range(4)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda body: client.post("/predict", json=body), bodies))
    for body, response in zip(bodies, found, strict=True):
        assert same(response.json(), plain(pipe(body["texts"], body["tasks"])))
