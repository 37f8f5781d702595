"""`polyhead predict --input` over many rows: constant memory, and resumed after SIGKILL.

    python benchmarks/soak.py --rows 100000

Real short texts (snips and goemotions, repeated with a running number), two layers of MiniLM, a
classification and an embedding head. One undisturbed run, one of a tenth of the rows, and one that
SIGKILL ends at a third and at two thirds and that then goes on to the end; its table has to be that
of the undisturbed one. Memory is what the system counts for the process (`VmRSS`, and `VmHWM` for
the peak; getrusage would count this script's own memory in). Linux only; needs `POLYHEAD_DATA`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import encoder_folder, keep
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.train.hub import save_folder
from polyhead.train.inference.files import SHARD
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

DATA = ("snips", "goemotions")
LABELS = [f"label_{number}" for number in range(7)]
SAMPLED = (0.1, 0.5, 1.0)  # of the rows
POLL = 0.02  # seconds


def main() -> None:
    """Run, kill, resume, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        make_rows(folder / "all.parquet", rows)
        make_rows(folder / "tenth.parquet", rows // 10)
        tenth = predict(folder, "tenth", rows // 10, folder / "tenth_out.parquet")
        whole = predict(folder, "all", rows, folder / "whole.parquet")
        target = folder / "out.parquet"
        killed = [predict(folder, "all", rows, target, kill=n * rows // 3) for n in (1, 2)]
        last = predict(folder, "all", rows, target)
        equal = pq.read_table(target).equals(pq.read_table(folder / "whole.parquet"))
        tables: dict[str, Any] = {
            "rows": rows,
            f"undisturbed, {rows // 10} rows": tenth,
            f"undisturbed, {rows} rows": whole,
            "killed at rows": [run["rows at the end"] for run in killed],
            "resumed to the end": last,
            "tables equal": equal,
            "peak ratio": round(whole["peak MiB"] / tenth["peak MiB"], 3),
        }
    for key, value in tables.items():
        print(f"{key}: {value}")
    keep("soak", f"polyhead predict --input of {rows} rows, killed twice and resumed", tables)
    if not equal:
        sys.exit("the resumed output differs")


def make_model(folder: Path) -> None:
    """`folder/model`: the first two layers of MiniLM, untrained heads."""
    encoder = AutoModel.from_pretrained(encoder_folder(), num_hidden_layers=2)
    encoder.save_pretrained(folder / "encoder")
    tasks = {
        "intent": TaskConfig(head="sequence_classification", labels=LABELS),
        "similarity": TaskConfig(head="embedding"),
    }
    model = PolyheadModel.from_encoder(str(folder / "encoder"), tasks=tasks)
    save_folder(model, AutoTokenizer.from_pretrained(encoder_folder()), folder / "model")


def make_rows(path: Path, rows: int) -> None:
    """A file of so many texts, all different."""
    data = Path(os.environ["POLYHEAD_DATA"])
    files = [data / name / "train.parquet" for name in DATA]
    texts = [text for file in files for text in pq.read_table(file)["text"].to_pylist()]
    numbered = (f"{texts[number % len(texts)]} {number}" for number in count())
    pq.write_table(pa.table({"text": list(islice(numbered, rows)), "id": range(rows)}), path)


def predict(
    folder: Path, source: str, rows: int, target: Path, *, kill: int | None = None
) -> dict[str, Any]:
    """One start of the command; `kill` is the number of finished rows to send SIGKILL at."""
    files = ["--input", str(folder / f"{source}.parquet"), "--output", str(target)]
    command = [sys.executable, "-m", "polyhead.train.cli", "predict", str(folder / "model")]
    log = target.with_suffix(".log")
    parts = target.with_name(f".{target.name}.parts")
    began, marks, memory_at = time.perf_counter(), [], {}
    variables = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    peak, memory, done = 0.0, {}, finished(parts, rows)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *files], stderr=errors, env={**os.environ, **variables}
        )
    while process.poll() is None:
        memory = memory_of(process.pid) or memory
        peak = max(peak, memory.get("VmHWM", 0.0))
        now = finished(parts, rows)
        if now > done:
            done = now
            marks.append((time.perf_counter(), done))
            for share in SAMPLED:
                if done >= share * rows:
                    memory_at.setdefault(f"MiB at {share:.0%}", memory.get("VmRSS"))
        if kill is not None and done >= kill:
            process.kill()
        time.sleep(POLL)
    if kill is None and process.returncode:
        sys.exit(log.read_text())
    (first, begun), (last, ended) = marks[0], marks[-1]  # after start and first shard
    return {
        **memory_at,
        "peak MiB": peak,
        "rows at the end": done,
        "rows a second": round((ended - begun) / (last - first)) if last > first else None,
        "seconds in all": round(time.perf_counter() - began, 1),
    }


def finished(parts: Path, rows: int) -> int:
    """Rows of the finished shards."""
    return min(rows, len(list(parts.glob("*.parquet"))) * SHARD)


def memory_of(process: int) -> dict[str, float]:
    """VmRSS and VmHWM in MiB; nothing once the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {
        key: round(int(fields[key].split()[0]) / 1024, 1)
        for key in ("VmRSS", "VmHWM")
        if key in fields
    }


if __name__ == "__main__":
    main()
