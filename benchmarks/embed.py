"""Embedding real sentences of mixed length beside `SentenceTransformer.encode`, on one thread.

Texts of ag_news, snips, scitldr and goemotions (3 to 400 tokens), all-MiniLM-L6-v2, tokenisation
included. Peers: sentence-transformers at its default (batches of 32, sorted by length) and with
batches of 8, which waste less. Ours: the pipeline as it comes (packed, `compute="auto"`), in bf16
where this CPU has it, and exported to ONNX Runtime and OpenVINO. Vectors are compared first; the
speed of a matrix product on the encoder's shapes, measured in the same run, says what is possible.
Needs `POLYHEAD_DATA`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import alternate, encoder_folder, keep, quiet, real_texts
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.compute import set_compute
from polyhead.train.export.graph import export_graph
from polyhead.train.inference.exported import load_any
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

LENGTH = 512
IN_BF16 = 32  # texts whose vectors are made in bf16 too
PEER, OURS = "sentence-transformers", "Polyhead"
Run = Callable[[], np.ndarray]


def engines(texts: list[str], tokenizer: PreTrainedTokenizerBase, folder: str) -> dict[str, Run]:
    """Each way to embed the texts."""
    path = encoder_folder()
    theirs = SentenceTransformer(path, device="cpu")
    theirs.max_seq_length = LENGTH
    model = PolyheadModel.from_encoder(path, {"near": TaskConfig(head="embedding")})

    def vectors(engine: Any, compute: Any = "auto") -> Run:
        pipe = PolyheadPipeline(model=engine, tokenizer=tokenizer, device="cpu", compute=compute)
        return lambda: np.stack([answer["near"] for answer in pipe(texts, ["near"])])  # pyright: ignore

    runs: dict[str, Run] = {
        PEER: lambda: theirs.encode(texts, batch_size=32),
        f"{PEER}, batches of 8": lambda: theirs.encode(texts, batch_size=8),
        OURS: vectors(model),
    }
    low = PolyheadModel.from_encoder(path, {"near": TaskConfig(head="embedding")})
    if low.set_compute("bf16").runs_bf16:
        runs[f"{OURS}, bf16"] = vectors(low, "bf16")
    for kind in ("onnx", "openvino"):
        export_graph(model, tokenizer, kind, tasks=["near"], folder=f"{folder}/{kind}")
        runs[f"{OURS}, {kind}"] = vectors(load_any(f"{folder}/{kind}")[0])
    if low.compute.runs_bf16:
        runs[f"{OURS}, openvino bf16"] = vectors(load_any(f"{folder}/openvino")[0], "bf16")
    return runs


def cosine_in_bf16(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> float:
    """The least cosine between vectors in bf16 and in fp32, also where bf16 is slow."""
    model = PolyheadModel.from_encoder(encoder_folder(), {"near": TaskConfig(head="embedding")})
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
    plain = np.stack([answer["near"] for answer in pipe(texts, ["near"])])  # pyright: ignore
    with torch.autocast("cpu", torch.bfloat16):  # what `compute="bf16"` does where it is fast
        low = np.stack([answer["near"] for answer in pipe(texts, ["near"])])  # pyright: ignore
    return float((plain * low).sum(1).min())


def possible(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Seconds that the linear layers alone need at this CPU's speed, and that of tokenizing."""
    encoder = PolyheadModel.from_encoder(encoder_folder(), {}).encoder
    choice = set_compute(encoder, "auto")
    start = time.perf_counter()
    tokens = sum(map(len, tokenizer(texts, truncation=True)["input_ids"]))  # pyright: ignore
    tokenizing = time.perf_counter() - start
    linear = [m for m in encoder.modules() if isinstance(m, torch.nn.Linear)]
    speeds = {shape: max(speed.values()) for shape, speed in choice.speed.items()}
    work = {
        shape: 2e-9 * tokens * shape[0] * shape[1]
        for shape in ((m.in_features, m.out_features) for m in linear)
    }
    count = {s: sum((m.in_features, m.out_features) == s for m in linear) for s in work}
    seconds = sum(count[shape] * work[shape] / speeds[shape] for shape in work)
    return {
        "tokens": tokens,
        "GFLOP/s of the linear layers' products": round(
            sum(count[s] * work[s] for s in work) / seconds, 1
        ),
        "seconds of the linear layers": round(seconds, 2),
        "seconds of tokenizing": round(tokenizing, 2),
    }


def own_share(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of the pipeline's CPU time that is not the encoder's: tokenizing, sorting, answers."""
    model = PolyheadModel.from_encoder(encoder_folder(), {"near": TaskConfig(head="embedding")})
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
    pipe(texts[:32])  # what is made at first use
    begun, inside = [0.0], [0.0]

    def begin(*_: Any) -> None:
        begun[0] = time.process_time()

    def end(*_: Any) -> None:
        inside[0] += time.process_time() - begun[0]

    model.encoder.register_forward_pre_hook(begin)
    model.encoder.register_forward_hook(end)
    start = time.process_time()
    pipe(texts)
    return 1 - inside[0] / (time.process_time() - start)


def shares(run: Run) -> dict[str, float]:
    """Where the time of our pipeline goes: share of each operation, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)[:8]
    return {row.key: round(row.self_cpu_time_total / 1e6 / took, 3) for row in rows}


def main() -> None:
    """Compare vectors, then time in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    quiet()
    texts = real_texts(options.texts)
    tokenizer: Any = AutoTokenizer.from_pretrained(encoder_folder())
    tokenizer.model_max_length = LENGTH
    with tempfile.TemporaryDirectory() as folder:
        runs = engines(texts, tokenizer, folder)
        expected = runs[PEER]()
        cosines = {name: float((run() * expected).sum(1).min()) for name, run in runs.items()}
        assert min(cosines.values()) > 0.999, cosines
        limit = possible(texts, tokenizer)
        seconds = alternate(runs, options.repeats)
        where = shares(runs[OURS])
    share = own_share(texts, tokenizer)
    print(f"the pipeline's own share of its time: {share:.1%}", flush=True)
    low = cosine_in_bf16(texts[:IN_BF16], tokenizer)
    print(f"bf16: least cosine to fp32 {low:.6f}, of {IN_BF16} texts", flush=True)
    table = {}
    for name, values in seconds.items():
        pairs = [one / ours for one, ours in zip(seconds[PEER], values, strict=True)]
        median = statistics.median(values)
        table[name] = {
            "texts a second": round(len(texts) / median, 1),
            "ratio": round(statistics.median(seconds[PEER]) / median, 2),
            "spread": [round(min(pairs), 2), round(max(pairs), 2)],
            "least cosine": round(cosines[name], 6),
            "share of the possible": round(limit["seconds of the linear layers"] / median, 2),
        }
        print(f"{name}: {table[name]}", flush=True)
    print(limit, where, sep="\n")
    what = f"embedding {len(texts)} real texts"
    results = {"engines": table, "possible": limit, "profile": where}
    results["the pipeline's own share"] = round(share, 4)
    keep("embed", what, {**results, "least cosine in bf16": round(low, 6)})


if __name__ == "__main__":
    main()
