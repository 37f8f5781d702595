"""`make bench`: the benchmarks that run on a CPU, and the table of what they reach.

Each script is a process of its own with one thread; a failure of one is told and the others go on.
Then the table "Numbers to reach" of `README.md` is written from `results/`: long runs whose results
are kept there (training of hours, two processes) are not repeated. `--table` only writes it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, conditions, cpu

FOLDER = Path(__file__).resolve().parent
BEGIN, END = "<!-- numbers -->\n", "<!-- /numbers -->\n"
SCRIPTS = {  # with fewer repeats than by themselves: 20 minutes in all
    "heads.py": [],
    "packing.py": [],
    "adapters.py": ["--quick"],
    "pipelines.py": ["--repeats", "2"],
    "embed.py": ["--texts", "160", "--repeats", "3"],
    "training.py": ["--steps", "1", "--repeats", "2", "--compared", "1"],
    "memory.py": ["--repeats", "1"],
    "growth.py": ["--repeats", "2"],
    "cold_start.py": ["--repeats", "5"],
}
EXPORTS = ("Polyhead, bf16", "Polyhead, onnx", "Polyhead, openvino", "Polyhead, openvino bf16")


@dataclass
class Row:
    """A number to reach.

    Args:
        what: what is measured.
        peer: against what.
        target: the ratio to reach.
        at_least: the ratio should be as large or larger; else as small or smaller.
        result: name of the file in `results/`.
        find: its ratio, and the least and largest where several were taken.
    """

    what: str
    peer: str
    target: float
    at_least: bool
    result: str
    find: Callable[[dict[str, Any]], tuple[float, list[float] | None]]


def best(engines: dict[str, Any]) -> tuple[float, list[float]]:
    """The fastest of bf16 and the exports."""
    fastest = max((engines[n] for n in EXPORTS if n in engines), key=lambda row: row["ratio"])
    return fastest["ratio"], fastest["spread"]


def engine(name: str) -> Callable[[dict[str, Any]], tuple[float, list[float] | None]]:
    """Ratio of one engine."""
    return lambda r: (r["engines"][name]["ratio"], r["engines"][name]["ratio spread"])


def server(name: str) -> Callable[[dict[str, Any]], tuple[float, list[float] | None]]:
    """How many times the requests a second of one server."""
    return lambda r: (r["servers"][name]["ratio"], r["servers"][name]["ratio spread"])


ADAPTERS, FAN_OUT = "16x16, 16 adapters, even", "fan-out"
COMPARED = "8 tasks, gradients compared"
ROWS = [
    Row(
        "embed real sentences, fp32",
        "`SentenceTransformer.encode`",
        2.5,
        True,
        "embed",
        lambda r: (r["engines"]["Polyhead"]["ratio"], r["engines"]["Polyhead"]["spread"]),
    ),
    Row(
        "the same, bf16 or exported",
        "`SentenceTransformer.encode`",
        4.5,
        True,
        "embed",
        lambda r: best(r["engines"]),
    ),
    Row(
        "8 heads on one text",
        "1 head",
        1.05,
        False,
        "heads",
        lambda r: (r["ratio"], r.get("ratio spread")),
    ),
    Row(
        "8 heads on one text",
        "8 models in transformers' pipelines",
        7.5,
        True,
        "pipelines",
        engine("pipelines, default"),
    ),
    Row(
        "the same",
        "the same with `batch_size=32`",
        7.5,
        True,
        "pipelines",
        engine("pipelines, batch_size=32"),
    ),
    Row(
        "mixed rows, 16 adapters, 16 x 16 tokens",
        "the bare encoder",
        1.2,
        False,
        "adapters",
        lambda r: (r[ADAPTERS]["Polyhead"]["ratio"], r[ADAPTERS]["Polyhead"]["ratio spread"]),
    ),
    Row(
        "8 adapter tasks on one text, adapters in the top third",
        "8 forwards",
        2.0,
        True,
        "adapters",
        lambda r: (r[FAN_OUT]["8 forwards"]["ratio"], r[FAN_OUT]["8 forwards"]["ratio spread"]),
    ),
    Row(
        "training, tokens a second",
        "HF Trainer, the same batches",
        4.0,
        True,
        "training",
        engine("HF Trainer"),
    ),
    Row(
        "training, tokens a second",
        "HF Trainer, `group_by_length`",
        4.0,
        True,
        "training",
        engine("HF Trainer, group_by_length"),
    ),
    Row(
        "tasks trained jointly to the single-task score, wall time",
        "a training for each",
        0.35,
        False,
        "quality_time",
        lambda r: (min(v["ratio"] for k, v in r.items() if k.startswith("joint")), None),
    ),
    Row(
        "2 processes",
        "1 process",
        1.8,
        True,
        "processes",
        lambda r: (r["rows a second"]["ratio"], None),
    ),
    Row(
        "2 processes, gradients of 4 batches accumulated",
        "1 process",
        1.8,
        True,
        "processes_4_batches",
        lambda r: (r["rows a second"]["ratio"], None),
    ),
    Row(
        "peak memory of joint training, 8 tasks, their gradients compared",
        "1 task",
        1.1,
        False,
        "memory",
        lambda r: (
            r["sides"][COMPARED]["peak"]["ratio"],
            r["sides"][COMPARED]["peak"]["ratio spread"],
        ),
    ),
    Row(
        "requests a second of `polyhead serve`, mixed texts, 1 to 8 tasks",
        "a handler that calls the pipeline",
        4.0,
        True,
        "serve_mixed",
        server("a handler on the pipeline"),
    ),
    Row(
        "the same, a message and a task a request",
        "a handler that calls the pipeline",
        4.0,
        True,
        "serve_short",
        server("a handler on the pipeline"),
    ),
    Row(
        "requests a second of `polyhead serve`, mixed texts, 1 to 8 tasks",
        "a handler that calls 8 pipelines",
        8.0,
        True,
        "serve_mixed",
        server("a handler on 8 pipelines"),
    ),
    Row(
        "cold start: a text to `runner.py` of a bundle, MiniLM, seconds",
        "a second",
        1.0,
        False,
        "cold_start",
        lambda r: (r["wall"]["median"], r["wall"]["spread"]),
    ),
    Row(
        "GPU: training tokens a second, bf16",
        "HF Trainer, bf16, sdpa",
        2.0,
        True,
        "gpu",
        lambda r: (r["training"]["ratio"], r["training"]["ratio spread"]),
    ),
    Row(
        "GPU: share of peak in training (MFU)",
        "the device's bf16 peak",
        0.45,
        True,
        "gpu",
        lambda r: (r["training"]["MFU"], None),
    ),
    Row(
        "GPU: embed",
        "sentence-transformers, bf16",
        1.5,
        True,
        "gpu",
        lambda r: (r["embedding"]["ratio"], r["embedding"]["ratio spread"]),
    ),
]


def main() -> None:
    """Run the scripts, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the table")
    failed = [] if parser.parse_args().table else run_all()
    write_table()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run_all(results: Path = RESULTS) -> list[str]:
    """Run each script, their results in a folder; the names of those that failed."""
    failed = []
    print(f"{cpu()}; {conditions()['machine']}, 1 thread", flush=True)
    begun = time.perf_counter()
    for number, (name, options) in enumerate(SCRIPTS.items(), 1):
        minutes = (time.perf_counter() - begun) / 60
        print(f"== {number}/{len(SCRIPTS)} {name}, after {minutes:.1f} minutes", flush=True)
        command = [sys.executable, str(FOLDER / name), *options]
        variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        variables["POLYHEAD_RESULTS"] = str(results)
        if subprocess.run(command, env={**os.environ, **variables}, check=False).returncode:
            failed.append(name)
            print(f"== {name} FAILED", flush=True)
    print(f"== {(time.perf_counter() - begun) / 60:.1f} minutes in all", flush=True)
    return failed


def write_table() -> None:
    """Put the numbers between the marks in `README.md`."""
    lines = ["| what | against | reach | measured | | `results/` |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        sign = "≥" if row.at_least else "≤"
        measured, verdict = "not measured", ""
        path = RESULTS / f"{row.result}.json"
        if path.is_file():
            ratio, spread = row.find(json.loads(path.read_text(encoding="utf-8")))
            measured = f"{ratio:.3g}"
            if spread and spread[0] != spread[1]:
                measured += f" ({spread[0]:.3g} to {spread[1]:.3g})"
            reached = ratio >= row.target if row.at_least else ratio <= row.target
            verdict = "reached" if reached else "**missed**"
        cells = (row.what, row.peer, f"{sign} {row.target:g}", measured, verdict, row.result)
        lines.append(f"| {' | '.join(cells)} |")
    readme = FOLDER / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = "\n".join(lines)
    readme.write_text(f"{before}{BEGIN}\n{table}\n\n{END}{after}", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
