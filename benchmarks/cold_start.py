"""One text asked of a bundle's `runner.py`: a process from its start to its end.

The model has eight heads on MiniLM; the text is asked for an intent and entities, and the answer is
the pipeline's. Each run is a process of its own, on as many threads as ONNX Runtime takes, the
files in the system's cache.
Wall time is for a machine that does nothing else; the seconds of CPU say what was computed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import SEED, encoder_folder, keep, messages, quiet, summary
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.train.export.bundle import same_answers
from polyhead.train.export.graph import export_graph
from polyhead.train.inference.files import plain
from transformers import AutoTokenizer

ASKED = ["class0", "tags0"]


def main() -> None:
    """Export, compare the answers, take the time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    quiet()
    torch.manual_seed(SEED)
    (text,) = messages(1)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        pipe = write(bundle)
        tasks = [part for name in ASKED for part in ("--task", name)]
        call = [sys.executable, "-I", str(bundle / "runner.py"), "--text", text, *tasks]
        expected: Any = plain(pipe([text], ASKED))
        wall, cpu = [], []
        for turn in range(repeats + 1):
            before, start = os.times(), time.perf_counter()
            done = subprocess.run(call, check=True, capture_output=True, text=True)
            end, after = time.perf_counter(), os.times()
            if turn == 0:
                assert same_answers(expected, json.loads(done.stdout))
                continue
            wall.append(end - start)
            cpu.append(
                after.children_user
                + after.children_system
                - before.children_user
                - before.children_system
            )
    tables = {"wall": summary(wall, 3), "cpu": summary(cpu, 3)}
    tables["load"] = round(os.getloadavg()[0], 1)
    for name in ("wall", "cpu"):
        low, high = tables[name]["spread"]
        print(f"{name}: {tables[name]['median']:.2f} s ({low} to {high})")
    keep("cold_start", "one text to runner.py of a bundle, seconds", tables)


def write(bundle: Path) -> PolyheadPipeline:
    """Export a model as a bundle; the pipeline on it."""
    labels = [str(number) for number in range(20)]
    tasks = {
        f"class{i}": TaskConfig(head="sequence_classification", labels=labels) for i in range(4)
    }
    tags = ["O", "B-x", "I-x"]
    tasks |= {f"tags{i}": TaskConfig(head="token_classification", labels=tags) for i in range(3)}
    tasks["vector"] = TaskConfig(head="embedding")
    model = PolyheadModel.from_encoder(encoder_folder(), tasks).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    export_graph(model, tokenizer, "onnx", tasks=list(tasks), folder=bundle, bundle=True)
    parts: Any = {"model": model, "tokenizer": tokenizer}
    return PolyheadPipeline(**parts, device="cpu")


if __name__ == "__main__":
    main()
