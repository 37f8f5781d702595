"""The command in processes of its own: signals, kills, sockets that misbehave."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from conftest import CORPUS
from polyhead.train.inference.files import plain
from serving_fixtures import make_pipe, make_served, same  # noqa: F401

pytestmark = pytest.mark.slow
TOKEN = {"Authorization": "Bearer secret"}
BODY = {"texts": CORPUS[:2], "tasks": ["intent"]}
STARTED = re.compile(r"Started server process \[(\d+)\]")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def server(model: Path, log: Path, *options: str):
    """(process, its URL) of `polyhead serve`, ready."""
    port = free_port()
    command = [sys.executable, "-m", "polyhead.train.cli", "serve", str(model)]
    command += ["--port", str(port), "--compute", "exact", *options]
    environment = {**os.environ, "POLYHEAD_TOKEN": "secret"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield process, url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


class Load:
    """Clients that ask all the time; what they got."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self.url, self.seen, self.lost, self.go = url, [], [], True
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        with httpx.Client(headers=TOKEN, timeout=30) as client:
            while self.go:
                try:
                    self.seen.append(client.post(f"{self.url}/predict", json=BODY))
                except httpx.HTTPError as error:
                    self.lost.append(error)
                    time.sleep(0.05)

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go = False
        for thread in self.threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        count = len(self.seen)
        for _ in range(3000):
            if len(self.seen) >= count + more:
                return
            time.sleep(0.01)
        raise AssertionError(f"{len(self.seen) - count} of {more} answers")


def test_sigterm_under_load_loses_no_accepted_request(served, pipe, tmp_path):
    log = tmp_path / "log"
    with server(served, log) as (process, url), Load(url) as load:
        load.wait_for(50)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        load.go = False
    expected = plain(pipe(CORPUS[:2], ["intent"]))
    statuses = {response.status_code for response in load.seen}
    assert statuses <= {200, 503}
    assert all(same(r.json(), expected) for r in load.seen if r.status_code == 200)
    refused = (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)
    assert all(isinstance(error, refused) for error in load.lost)
    text = log.read_text()
    assert "Traceback" not in text
    assert not any(line in text for line in CORPUS)


def test_a_killed_worker_is_replaced_and_all_are_told_of_a_reload(served, pipe, tmp_path):
    log = tmp_path / "log"
    with server(served, log, "--workers", "2") as (_, url):
        pids = ()
        for _ in range(300):
            pids = [
                int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log.read_text())
            ]
            if len(pids) == 2 and log.read_text().count("startup complete") == 2:
                break
            time.sleep(0.1)
        with Load(url) as load:
            load.wait_for(30)
            os.kill(pids[0], signal.SIGKILL)
            load.wait_for(30)
            for _ in range(300):
                if log.read_text().count("startup complete") == 3:
                    break
                time.sleep(0.1)
            reload = {"model": str(served)}
            told = httpx.post(f"{url}/admin/reload", json=reload, headers=TOKEN, timeout=60).json()
            assert told["changed"] == []
            generations = set()
            for _ in range(200):
                generations = {
                    httpx.get(f"{url}/info", headers=TOKEN).json()["generation"] for _ in range(8)
                }
                if generations == {1}:
                    break
                time.sleep(0.1)
            assert generations == {1}
            metrics = httpx.get(f"{url}/metrics", headers=TOKEN).text
        assert 'polyhead_requests_total{route="/predict",status="200"}' in metrics
    assert {response.status_code for response in load.seen} == {200}
    assert len(load.lost) <= len(load.threads)  # those that the killed one had taken
    assert "secret" not in log.read_text()


def test_clients_that_misbehave(served, pipe, tmp_path):
    with server(served, tmp_path / "log") as (_, url):
        host, port = url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.putrequest("POST", "/predict")
        for name, value in TOKEN.items():
            connection.putheader(name, value)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(100 << 20))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        assert b"send several requests" in response.read()
        connection.close()
        whole = json.dumps({"texts": CORPUS * 100}).encode()
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(whole)
        for part in (whole, whole[:100], b""):  # gone before the answer, amid the body, before it
            with socket.create_connection((host, int(port))) as one:
                one.sendall(head + part)
                time.sleep(0.1)
        slow = socket.create_connection((host, int(port)))
        slow.sendall(head + whole[:10])
        answer = httpx.post(f"{url}/predict", json=BODY, headers=TOKEN, timeout=30)
        slow.close()
        assert same(answer.json(), plain(pipe(CORPUS[:2], ["intent"])))
        for _ in range(100):
            metrics = httpx.get(f"{url}/metrics", headers=TOKEN).text
            if "polyhead_waiting_texts 0.0" in metrics:
                break
            time.sleep(0.1)
        assert "polyhead_waiting_texts 0.0" in metrics
        assert 'polyhead_dropped_total{reason="client gone"} 1.0' in metrics


def test_a_wrong_folder_is_one_message(tmp_path):
    command = [sys.executable, "-m", "polyhead.train.cli", "serve", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "has no config.json" in done.stderr
    assert "Traceback" not in done.stderr
