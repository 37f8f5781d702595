"""A server and a map over files on a local Ray cluster of two workers, some of which are killed."""

import asyncio
import json
import os
import signal
import threading
import time

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CORPUS
from polyhead.train.distributed import Ranks
from polyhead.train.inference import PolyheadPredictor
from polyhead.train.inference.files import FileJob, plain, predict_file
from polyhead.train.serving.settings import Settings
from pydantic import ValidationError
from serving_fixtures import SINGLE, make_pipe, make_served, same  # noqa: F401
from starlette.requests import Request
from test_processes import free_port

ray = pytest.importorskip("ray", reason='needs Ray: pip install "polyhead[ray]"')
from polyhead.train.serving.ray import DEATHS, Front, Options, app  # noqa: E402
from ray import serve  # noqa: E402
from ray.exceptions import RayActorError, UserCodeException  # noqa: E402
from ray.serve.exceptions import BackPressureError  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROWS, BATCH, CLIENTS = 60, 5, 8
TEXTS = [f"{number}. {CORPUS[number % len(CORPUS)]}" for number in range(ROWS)]


# ---- what clients reach, without a cluster ----


class Replicas:
    """A handle whose replicas do this or that, in turn."""

    def __init__(self, *results):
        self.results, self.asked, self.answer = list(results), 0, self

    async def remote(self, scope, body):
        self.asked += 1
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return await result if asyncio.iscoroutine(result) else result


def ask(replicas, path="/predict", headers=(), **settings):
    """(status, body) of a request to a Front of these replicas."""

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    front = Front(Settings("m", **settings), replicas)
    response = asyncio.run(front(Request(scope, receive)))
    return response.status_code, bytes(response.body)


ANSWER = (200, [(b"content-type", b"application/json")], b"[]")


class TestFront:
    def test_asks_another_replica_where_one_dies(self):
        replicas = Replicas(RayActorError(), RayActorError(), ANSWER)
        assert ask(replicas) == (200, b"[]")
        assert replicas.asked == 3

    def test_gives_up_a_request_of_which_replicas_die(self):
        replicas = Replicas(*[RayActorError()] * DEATHS)
        status, body = ask(replicas)
        assert (status, replicas.asked) == (503, DEATHS)
        assert json.loads(body)["error"]["message"] == (
            f"{DEATHS} replicas have gone with this request; send less"
        )

    def test_refuses_what_is_late_or_too_much(self):
        assert ask(Replicas(asyncio.sleep(9)), timeout=0.05)[0] == 504
        full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
        assert ask(Replicas(full))[0] == 429

    def test_lets_no_one_in_without_the_token_or_with_too_much(self):
        replicas = Replicas(ANSWER)
        assert ask(replicas, token="secret")[0] == 401
        assert ask(replicas, max_body=1)[0] == 413
        assert replicas.asked == 0
        known = [(b"authorization", b"Bearer secret")]
        assert ask(replicas, headers=known, token="secret") == (200, b"[]")

    @pytest.mark.parametrize("path", ["/metrics", "/admin/reload"])
    def test_refuses_routes_that_speak_of_one_process(self, path):
        assert ask(Replicas(), path)[0] == 404


def test_options_are_checked_before_anything_starts(served):
    with pytest.raises(ValidationError, match="replicas"):
        Options(model=str(served), replicas=2)
    with pytest.raises(ValueError, match="max_replicas is 1, below min_replicas, 2"):
        app(Options(model=str(served), min_replicas=2, max_replicas=1))


# ---- a cluster ----


@pytest.fixture(scope="module", name="cluster")
def make_cluster():
    """Ray with room for two workers of a server and two of a map, and a small object store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        options = {"include_dashboard": False, "log_to_driver": False}
        ray.init(num_cpus=5, object_store_memory=80 * 2**20, **options)
        yield
        ray.shutdown()


@pytest.fixture(scope="module", name="url")
def make_url(cluster, served):
    """Where two replicas answer."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    options = Options(model=str(served), min_replicas=2, compute="exact", timeout=90)
    serve.run(app(options), name="polyhead")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def replicas() -> list[psutil.Process]:
    """The processes that hold the model."""
    own = psutil.Process().children(recursive=True)
    return [one for one in own if "ServeReplica:polyhead:Model" in " ".join(one.cmdline())]


@pytest.mark.slow
def test_a_killed_replica_loses_no_request(url, pipe):
    expected = json.loads(json.dumps(plain(pipe(TEXTS, SINGLE))))
    enough, wrong, answered = threading.Event(), [], []

    def client(number: int) -> None:
        rows = list(range(number, ROWS, CLIENTS))
        body = {"texts": [TEXTS[row] for row in rows], "tasks": SINGLE}
        with httpx.Client(timeout=120) as session:
            while not enough.is_set():
                answer = session.post(f"{url}/predict", json=body)
                good = answer.status_code == 200 and all(
                    map(same, answer.json(), [expected[row] for row in rows])
                )
                (answered if good else wrong).append(answer.text[:300])

    clients = [threading.Thread(target=client, args=[number]) for number in range(CLIENTS)]
    for one in clients:
        one.start()
    wait_for(lambda: len(answered) > 2 * CLIENTS or wrong)
    first, _ = replicas()
    os.kill(first.pid, signal.SIGKILL)
    before = len(answered)
    wait_for(lambda: len(answered) > before + 4 * CLIENTS or wrong)
    wait_for(lambda: len(replicas()) == 2 or wrong)  # another has been started
    enough.set()
    for one in clients:
        one.join(120)
    assert not wrong
    assert first.pid not in [one.pid for one in replicas()]


def wait_for(true, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_refusals_are_those_of_one_process(url):
    def error(path, **request):
        answer = httpx.post(url + path, timeout=60, **request)
        return answer.status_code, answer.json()["error"]["message"]

    assert error("/predict", json={"texts": []}) == (422, "there are no texts; give one or more")
    assert error("/predict/nothing", json={"texts": ["a"]})[0] == 404
    assert error("/predict", content=b"x" * (9 << 20))[0] == 413
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


@pytest.mark.slow
def test_a_killed_worker_loses_no_row(cluster, served, pipe, tmp_path):
    source, target, mark = (tmp_path / name for name in ("texts.parquet", "one.parquet", "died"))
    middle = TEXTS[ROWS // 2]

    class DiesOnce(PolyheadPredictor):
        """Is killed in the middle of the file, the first time."""

        def __call__(self, rows):
            if middle in rows.column("text").to_pylist() and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return PolyheadPredictor.__call__(self, rows)

    pq.write_table(pa.table({"text": TEXTS}), source)
    job = FileJob(
        model=str(served),
        source=source,
        target=target,
        tasks=SINGLE,
        text="text",
        text_pair=None,
        options={},
    )
    predict_file(pipe, job, ranks=Ranks(str))
    mapped = ray.data.read_parquet(str(source)).map_batches(
        DiesOnce,
        fn_constructor_kwargs={"model": str(served), "compute": "exact"},
        batch_format="pyarrow",
        batch_size=BATCH,
        concurrency=2,
    )
    mapped.write_parquet(str(tmp_path / "many"))
    assert mark.exists()
    one = pq.read_table(target).to_pylist()
    many = sorted(
        pq.read_table(tmp_path / "many").to_pylist(), key=lambda row: TEXTS.index(row["text"])
    )
    assert len(many) == ROWS
    assert all(map(same, many, one))


@pytest.mark.slow
def test_a_fault_of_a_worker_is_told_whole(cluster, served):
    rows = ray.data.from_items([{"body": "a"}])
    mapped = rows.map_batches(
        PolyheadPredictor,
        fn_constructor_kwargs={"model": str(served)},
        batch_format="pyarrow",
        concurrency=1,
    )
    with pytest.raises(UserCodeException, match="text: no column 'text'; the file has: body"):
        mapped.take_all()
