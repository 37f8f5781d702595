"""Requests that share passes; those dropped, refused or late; models exchanged under them."""

import asyncio
import threading

import httpx
import pytest
from conftest import CORPUS
from polyhead.modeling import PolyheadPipeline
from polyhead.train.commands.edit_tasks import remove_task
from polyhead.train.hub import save_folder
from polyhead.train.inference import load_model
from polyhead.train.inference.files import plain
from polyhead.train.serving import Settings, create_app
from polyhead.train.serving.loaded import Loaded
from safetensors.torch import load_file, save_file
from serving_fixtures import make_pipe, make_served, same  # noqa: F401


@pytest.fixture
def slow(pipe, monkeypatch):
    """Passes wait until the test lets them go; what went into each is kept."""
    state = type("State", (), {})()
    state.go, state.passes, usual = threading.Event(), [], pipe.encode

    def encode(entries):
        state.passes.append(entries)
        assert state.go.wait(20)
        return usual(entries)

    monkeypatch.setattr(pipe, "encode", encode)
    yield state
    state.go.set()


def run(served, pipe, use, **settings):
    """Run `use(client, service)` against a server in this loop."""

    async def main():
        app = create_app(Settings(str(served), compute="exact", **settings), Loaded(pipe, "-"))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://here", timeout=30) as client,
        ):
            await use(client, app.state.service)

    asyncio.run(main())


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_requests_of_different_tasks_share_a_pass(served, pipe, slow):
    bodies = [
        {"texts": CORPUS[:1], "tasks": ["words"]},
        {"texts": CORPUS[:2], "tasks": ["intent"]},
        {"texts": CORPUS[1:4], "tasks": ["slots", "near"]},
        {"texts": [["a", "b c"]], "tasks": ["same"]},
    ]

    async def use(client, service):
        first = asyncio.create_task(client.post("/predict", json=bodies[0]))
        await until(lambda: slow.passes)
        others = [asyncio.create_task(client.post("/predict", json=b)) for b in bodies[1:]]
        await until(lambda: len(service.batcher.jobs) == 3)
        slow.go.set()
        found = [response.json() for response in await asyncio.gather(first, *others)]
        for body, answers in zip(bodies, found, strict=True):
            texts = [tuple(t) if isinstance(t, list) else t for t in body["texts"]]
            assert same(answers, plain(pipe(texts, body["tasks"])))

    run(served, pipe, use)
    # the embedding reads its texts with a prompt before them
    assert [len(entries) for entries in slow.passes] == [1, 2 + 3 + 3 + 1]


def test_a_long_request_lets_a_short_one_pass(served, pipe, slow):
    async def use(client, service):
        body = {"texts": CORPUS * 8, "tasks": ["intent"]}
        long = asyncio.create_task(client.post("/predict", json=body))
        await until(lambda: slow.passes)
        short = asyncio.create_task(client.post("/predict/urgency", json={"texts": ["a"]}))
        await until(lambda: len(service.batcher.jobs) == 2)
        slow.go.set()
        await short
        assert not long.done()
        assert (await long).status_code == 200

    run(served, pipe, use, batch_tokens=40)


def test_a_full_queue_is_429_and_says_when_to_come_again(served, pipe, slow):
    async def use(client, service):
        first = asyncio.create_task(client.post("/predict", json={"texts": ["a"] * 6}))
        await until(lambda: slow.passes)
        refused = await client.post("/predict", json={"texts": ["a"] * 5})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        slow.go.set()
        assert (await first).status_code == 200
        assert (await client.post("/predict", json={"texts": ["a"] * 5})).status_code == 200
        assert service.waiting == 0

    run(served, pipe, use, max_waiting=10)


def test_what_takes_too_long_is_504_and_is_dropped(served, pipe, slow):
    async def use(client, service):
        body = {"texts": CORPUS, "tasks": ["intent"]}
        late = [client.post("/predict", json=body) for _ in range(3)]
        assert [response.status_code for response in await asyncio.gather(*late)] == [504] * 3
        assert not service.batcher.jobs
        slow.go.set()
        answer = await client.post("/predict", json=body)
        assert answer.status_code == 200

    run(served, pipe, use, timeout=0.3, batch_tokens=20)
    assert sum(len(entries) for entries in slow.passes) < 3 * 5 + 5  # not all was encoded


def test_the_work_of_a_client_that_has_gone_is_dropped(served, pipe, slow):
    async def use(client, service):
        app, sent, gone = client._transport.app, [], asyncio.Event()
        whole = b'{"texts": ["a b", "c d", "e f"], "tasks": ["intent"]}'
        messages = iter([{"type": "http.request", "body": whole, "more_body": False}])

        async def receive():
            for message in messages:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
        scope |= {"headers": [(b"content-type", b"application/json")], "http_version": "1.1"}
        request = asyncio.create_task(app(scope, receive, send))
        await until(lambda: slow.passes)
        assert len(service.batcher.jobs) == 1
        gone.set()
        await request
        assert sent[0]["status"] == 499
        assert not service.batcher.jobs
        assert service.waiting == 0
        slow.go.set()
        assert (await client.post("/predict", json={"texts": ["a"]})).status_code == 200

    run(served, pipe, use, batch_tokens=4)
    assert len(slow.passes[0]) == 1


def test_a_body_that_does_not_arrive_is_408(served, pipe):
    async def drip():
        yield b'{"texts": '
        await asyncio.sleep(5)

    async def use(client, service):
        response = await client.post("/predict", content=drip())
        assert response.status_code == 408

    run(served, pipe, use, body_timeout=0.1)


@pytest.fixture(scope="module")
def changed(served, tokenizer_of, tmp_path_factory):
    """The served model with another `intent`, without `urgency`."""
    model, tokenizer = load_model(served)
    model.heads["intent"].out.weight.data *= -1
    model.remove_task("urgency")
    folder = tmp_path_factory.mktemp("changed") / "model"
    save_folder(model, tokenizer, folder)
    return folder


def test_a_model_is_exchanged_under_load_and_no_request_is_lost(served, changed, pipe):
    token = {"Authorization": "Bearer t"}
    old, new = (plain(load(folder)(CORPUS[:2], ["intent"])) for folder in (served, changed))
    seen = []

    async def use(client, service):
        body = {"texts": CORPUS[:2], "tasks": ["intent"]}
        running = True

        async def ask():
            while running:
                seen.append(await client.post("/predict", json=body, headers=token))

        clients = [asyncio.create_task(ask()) for _ in range(8)]
        await until(lambda: len(seen) > 8)
        reload = {"model": str(changed)}
        refused = await client.post("/admin/reload", json=reload, headers=token)
        assert refused.status_code == 409
        assert "it lacks urgency, which are served now" in refused.text
        assert str(changed) not in refused.text
        reload["allow_removed"] = True
        told = (await client.post("/admin/reload", json=reload, headers=token)).json()
        assert told["changed"] == ["intent"]
        assert told["removed"] == ["urgency"]
        assert told["unchanged"] == ["topics", "slots", "near", "words", "same"]
        count = len(seen)
        await until(lambda: len(seen) > count + 16)
        running = False
        await asyncio.gather(*clients)
        wrong = await client.post("/predict/urgency", json={"texts": ["a"]}, headers=token)
        assert wrong.status_code == 404
        for path in ("nowhere/at-all", str(served.parent)):
            reload = {"model": path}
            refused = await client.post("/admin/reload", json=reload, headers=token)
            assert refused.status_code == 409
            assert path not in refused.text

    run(served, pipe, use, token="t")
    assert {response.status_code for response in seen} == {200}
    kinds = ["old" if same(r.json(), old) else "new" if same(r.json(), new) else "?" for r in seen]
    assert set(kinds) == {"old", "new"}
    assert kinds[0] == "old"
    assert kinds[-1] == "new"


@pytest.mark.slow
def test_what_a_proof_says_is_the_same_is_compared_with_what_serves(
    served, changed, pipe, tmp_path
):
    remove_task(str(served), ["urgency"], tmp_path / "less")  # writes a proof
    reload = {"model": str(tmp_path / "less"), "allow_removed": True}
    others = ["intent", "topics", "slots", "near", "words", "same"]
    token = {"Authorization": "Bearer t"}

    async def agrees(client, service):
        told = (await client.post("/admin/reload", json=reload, headers=token)).json()
        assert sorted(told["proven"]) == sorted(others)
        assert service.current.generation == 1

    async def differs(client, service):
        refused = await client.post("/admin/reload", json=reload, headers=token)
        assert refused.status_code == 409
        assert "task intent: its weights changed; task intent: its logits changed" in refused.text
        assert service.current.generation == 0

    async def is_not_what_it_says(client, service):
        weights = tmp_path / "less/model.safetensors"
        tensors = load_file(weights)
        tensors["heads.topics.out.bias"] += 1
        save_file(tensors, weights, {"format": "pt"})
        refused = await client.post("/admin/reload", json=reload, headers=token)
        assert refused.status_code == 409
        assert "task topics: its weights changed" in refused.text

    run(served, pipe, agrees, token="t")
    run(served, load(changed), differs, token="t")
    run(served, pipe, is_not_what_it_says, token="t")


def load(folder):
    model, tokenizer = load_model(folder)
    return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
