"""`polyhead serve` under load, against the servers that people write: requests a second, latency.

One MiniLM with eight tasks, four of them through adapters of their own; clients on the loopback ask
as soon as they have an answer: `mixed`, one to four real texts of all lengths about one to eight
tasks; `short`, one message about one task. Servers of one process and one core answer the same
requests in turns:

- `polyhead serve`;
- (a) a FastAPI handler that calls `PolyheadPipeline` once a request;
- (b) one that calls eight stock pipelines, each on a plain model of its task, adapter merged in.

`embed`, the vectors of one to four texts by OpenAI's route, goes to `polyhead serve` and to
infinity-emb, whose executable `POLYHEAD_INFINITY` names: it needs an environment of its own.

Every answer of ours and of (a) is compared with the offline pipeline's, to 1e-5, and infinity's
vectors to 1e-4. The clients have another core than the servers, where there are two. Needs
`POLYHEAD_DATA`.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from common import SEED, encoder_folder, keep, messages, quiet, real_texts

CLASSES = [f"class {number}" for number in range(20)]
TAGS = ["O", "B-person", "B-place"]
SEQUENCE = [f"sequence{number}" for number in range(5)]
TOKEN = [f"token{number}" for number in range(3)]
TASKS = [*SEQUENCE, *TOKEN]
ADAPTED = [*SEQUENCE[:2], *TOKEN[:2]]
OURS, PLAIN, STOCK = "polyhead serve", "a handler on the pipeline", "a handler on 8 pipelines"
INFINITY = "infinity-emb"
SIDES = {OURS: None, PLAIN: "plain", STOCK: "stock"}
TOLERANCE = {OURS: 1e-5, PLAIN: 1e-5, INFINITY: 1e-4}
EMBEDDER = "embedder"  # task of a model of its own, and infinity's name for the encoder
LONGEST = 250  # tokens of a text to embed; both read so many
SAMPLES = 10  # of a server's memory in a run


def main() -> None:
    """Start the servers, ask them in turns, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=10_000, help="of ours, in all turns")
    parser.add_argument("--peer-requests", type=int, default=1_000, help="of each other")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--load", choices=list(LOADS), default="mixed")
    parser.add_argument("--serve", choices=["plain", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.serve is not None:
        serve_peer(options.serve, options.folder, options.port)
        return
    requests = LOADS[options.load](options.requests)
    embeds = options.load == "embed"
    sides = [OURS, INFINITY] if embeds else list(SIDES)
    if embeds and "POLYHEAD_INFINITY" not in os.environ:
        sys.exit("POLYHEAD_INFINITY is not set: name the executable of infinity-emb")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        (make_embedder if embeds else make_models)(Path(folder))
        answers = (offline_vectors if embeds else offline)(Path(folder) / "model", requests)
        route = "/v1/embeddings" if embeds else "/predict"
        servers = {name: Server(name, Path(folder), route) for name in sides}
        for server in servers.values():
            stack.callback(server.stop)
        give_cores(servers)
        for server in servers.values():
            server.wait()
            asyncio.run(ask(server, requests[:64], answers[:64], min(options.clients, 16), False))
        for turn in range(options.turns):
            for name, server in servers.items():
                count = options.requests if name == OURS else options.peer_requests
                each = count // options.turns
                part = slice(turn * each, (turn + 1) * each)
                run = ask(server, requests[part], answers[part], options.clients, True)
                asyncio.run(run)
        table = {name: server.summary() for name, server in servers.items()}
    ours = table[OURS]["rates"]
    for name, row in table.items():
        ratios = [one / other for one, other in zip(ours, row["rates"], strict=True)]
        row["ratio"] = round(statistics.median(ratios), 2)
        row["ratio spread"] = [round(min(ratios), 2), round(max(ratios), 2)]
        shown = ", ".join(f"{key} {value}" for key, value in row.items() if key != "rates")
        print(f"{name}: {shown}", flush=True)
    tasks = "vectors of MiniLM" if embeds else "8 tasks of MiniLM, 4 with adapters"
    what = f"{options.clients} clients, {tasks}, one core"
    keep(f"serve_{options.load}", what, {"load": options.load, "servers": table})


def mixed_requests(count: int) -> list[dict[str, Any]]:
    """Mostly one text, up to four; one to eight tasks."""
    chance, texts = random.Random(SEED), real_texts(400)
    requests = []
    for _ in range(count):
        texts_asked = chance.sample(texts, chance.choice((1, 1, 1, 1, 2, 4)))
        tasks = chance.sample(TASKS, chance.randint(1, len(TASKS)))
        requests.append({"texts": texts_asked, "tasks": tasks})
    return requests


def short_requests(count: int) -> list[dict[str, Any]]:
    """One message about one task."""
    chance, texts = random.Random(SEED), messages(400)
    return [
        {"texts": [chance.choice(texts)], "tasks": [chance.choice(TASKS)]} for _ in range(count)
    ]


def embed_requests(count: int) -> list[dict[str, Any]]:
    """Mostly one text, up to four."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    chance, texts = random.Random(SEED), real_texts(400)
    lengths = map(len, tokenizer(texts, truncation=True).input_ids)
    texts = [text for text, length in zip(texts, lengths, strict=True) if length <= LONGEST]
    return [
        {"model": EMBEDDER, "input": chance.sample(texts, chance.choice((1, 1, 1, 1, 2, 4)))}
        for _ in range(count)
    ]


LOADS = {"mixed": mixed_requests, "short": short_requests, "embed": embed_requests}


def make_embedder(folder: Path) -> None:
    """`model`, MiniLM with one embedding task."""
    from polyhead.modeling import PolyheadModel, TaskConfig
    from polyhead.train.hub import save_folder
    from transformers import AutoTokenizer

    task = TaskConfig(head="embedding", pooling="mean", normalize=True)
    model = PolyheadModel.from_encoder(encoder_folder(), {EMBEDDER: task})
    save_folder(model, AutoTokenizer.from_pretrained(encoder_folder()), folder / "model")


def offline_vectors(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    """The vectors of each request, made without a server."""
    from polyhead.train.inference.files import plain

    texts = list(dict.fromkeys(text for request in requests for text in request["input"]))
    known = dict(zip(texts, plain(load_pipe(folder)(texts)), strict=True))
    return [[known[text][EMBEDDER] for text in request["input"]] for request in requests]


def make_models(folder: Path) -> None:
    """`model`, and a plain model of each task with the same logits."""
    from peft import LoraConfig
    from polyhead.modeling import PolyheadModel, TaskConfig
    from polyhead.train.export import export_hf
    from polyhead.train.hub import save_folder
    from transformers import AutoTokenizer

    torch.manual_seed(SEED)
    like_bert: Any = {"labels": CLASSES, "pooling": "cls", "activation": "tanh"}
    tasks = {n: TaskConfig(head="sequence_classification", **like_bert) for n in SEQUENCE}
    tasks |= {n: TaskConfig(head="token_classification", labels=TAGS) for n in TOKEN}
    model: Any = PolyheadModel.from_encoder(encoder_folder(), tasks)
    for name in ADAPTED:
        model.attach_adapter(name, LoraConfig(r=8, target_modules=["query", "value"]), [name])
    with torch.no_grad():
        for key, weight in model.encoder.named_parameters():
            if "lora_B" in key:
                weight.normal_(std=0.02)
        for name in TOKEN:
            model.heads[name].out.bias[0] += 2  # most words are no entity
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    save_folder(model, tokenizer, folder / "model")
    for name in TASKS:
        export_hf(model, tokenizer, task=name, folder=folder / name)


def load_pipe(folder: Path) -> Any:
    """The pipeline on a saved model, computing as the servers do."""
    from polyhead.modeling import PolyheadPipeline
    from polyhead.train.inference import load_model

    model, tokenizer = load_model(folder)
    return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")


def offline(folder: Path, requests: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The answers, made without a server: all tasks of each text once."""
    from polyhead.train.inference.files import plain

    pipe = load_pipe(folder)
    texts = list(dict.fromkeys(text for request in requests for text in request["texts"]))
    known = dict(zip(texts, plain(pipe(texts)), strict=True))
    return [
        [{task: known[text][task] for task in request["tasks"]} for text in request["texts"]]
        for request in requests
    ]


def serve_peer(side: str, folder: Path, port: int) -> None:
    """A server as people write it."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from transformers import pipeline

    class Body(BaseModel):
        texts: list[str]
        tasks: list[str]

    app = FastAPI()
    if side == "plain":
        pipe = load_pipe(folder / "model")

        def answer(texts: list[str], tasks: list[str]) -> Any:
            return pipe(texts, tasks)
    else:
        kinds = {**dict.fromkeys(SEQUENCE, "text"), **dict.fromkeys(TOKEN, "token")}
        pipes = {}
        for name, kind in kinds.items():
            grouped = {} if kind == "text" else {"aggregation_strategy": "first"}
            long = {"truncation": True} if kind == "text" else {}
            pipes[name] = pipeline(
                f"{kind}-classification",  # pyright: ignore[reportArgumentType]
                model=str(folder / name),
                device="cpu",
                **grouped,
                **long,
            )

        def answer(texts: list[str], tasks: list[str]) -> Any:
            by_task = {task: pipes[task](texts) for task in tasks}
            rows = [{task: by_task[task][n] for task in tasks} for n in range(len(texts))]
            return json.loads(json.dumps(rows, default=float))

    @app.post("/predict")
    def predict(body: Body) -> Any:
        return answer(body.texts, body.tasks)

    @app.get("/health")
    def health() -> str:
        return "ok"

    uvicorn.run(app, port=port, log_level="warning")


@dataclass
class Server:
    """A server's process, and what its clients saw.

    Args:
        name: a key of `SIDES`, or infinity-emb.
        folder: with the models.
        route: that is asked.
    """

    name: str
    folder: Path
    route: str
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MiB
    compared: int = 0

    def __post_init__(self) -> None:
        self.port = free_port()
        side = SIDES.get(self.name)
        command = [sys.executable, "-m", "polyhead.train.cli", "serve", str(self.folder / "model")]
        if side is not None:
            command = [sys.executable, __file__, "--serve", side, "--folder", str(self.folder)]
        if self.name == INFINITY:
            command = [os.environ["POLYHEAD_INFINITY"], "v2", "--model-id", encoder_folder()]
            command += ["--served-model-name", EMBEDDER, "--device", "cpu", "--engine", "torch"]
            command += ["--url-prefix", "/v1", "--no-bettertransformer", "--dtype", "float32"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], env=environment, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        """Until it answers."""
        import httpx

        for _ in range(1200):
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200:
                    return
            except httpx.HTTPError:
                assert self.process.poll() is None, f"{self.name} has ended"
                time.sleep(0.1)
        raise AssertionError(f"{self.name} does not answer")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)

    def summary(self) -> dict[str, Any]:
        """Requests a second, milliseconds and memory."""
        ordered = sorted(self.seconds)
        places = {f"p{p}": ordered[min(len(ordered) * p // 100, len(ordered) - 1)] for p in PERCENT}
        return {
            "requests": len(self.seconds),
            "requests/s": round(statistics.median(self.rates), 1),
            "rates": [round(rate, 2) for rate in self.rates],
            **{f"{key} ms": round(value * 1000, 1) for key, value in places.items()},
            "MiB": [round(self.memory[0]), round(max(self.memory)), round(self.memory[-1])],
            "compared": self.compared,
        }


PERCENT = (50, 95, 99)


def free_port() -> int:
    """A port of the loopback that nobody has."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def give_cores(servers: dict[str, Server]) -> None:
    """The servers on one core, the clients on another."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    os.sched_setaffinity(0, cores[1:2])
    for server in servers.values():
        for thread in psutil.Process(server.process.pid).threads():
            os.sched_setaffinity(thread.id, cores[:1])


async def ask(
    server: Server, requests: list[dict], answers: list[Any], clients: int, counted: bool
) -> None:
    """All requests, by clients that each wait for their answer; what is counted is kept."""
    waiting = iter(zip(requests, answers, strict=True))
    process = psutil.Process(server.process.pid)
    seconds: list[float] = []
    every = max(1, len(requests) // SAMPLES)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for request, expected in waiting:
            start = time.perf_counter()
            answer = await post(reader, writer, server.route, request)
            seconds.append(time.perf_counter() - start)
            if server.name != STOCK:
                check(vectors_of(answer), expected, TOLERANCE[server.name])
                server.compared += counted
            if counted and len(seconds) % every == 1:
                server.memory.append(process.memory_info().rss / 2**20)
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    if counted:
        server.rates.append(len(requests) / (time.perf_counter() - begin))
        server.seconds += seconds


async def post(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    route: str,
    request: dict[str, Any],
) -> Any:
    """The answer to a request: HTTP by hand, so that the clients cost little."""
    body = json.dumps(request).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    length = 0
    while (line := await reader.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    answer = await reader.readexactly(length)
    assert b" 200 " in status, (status, answer[:200])
    return json.loads(answer)


def vectors_of(answer: Any) -> Any:
    """The vectors of OpenAI's answer, in the order of the texts; another answer as it is."""
    if not isinstance(answer, dict):
        return answer
    return [row["embedding"] for row in sorted(answer["data"], key=lambda row: row["index"])]


def check(answer: Any, expected: Any, tolerance: float) -> None:
    """The same answers, scores within a tolerance."""
    if isinstance(expected, float):
        assert abs(answer - expected) <= tolerance, (answer, expected)
    elif isinstance(expected, dict):
        assert list(answer) == list(expected), (answer, expected)
        for key, value in expected.items():
            check(answer[key], value, tolerance)
    elif isinstance(expected, list):
        assert len(answer) == len(expected), (answer, expected)
        for one, other in zip(answer, expected, strict=True):
            check(one, other, tolerance)
    else:
        assert answer == expected, (answer, expected)


if __name__ == "__main__":
    main()
