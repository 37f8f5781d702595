"""Rows a second of `configs/snips.yaml` in two processes of one thread each, against one of them.

Each run is a fresh start by torchrun: 2 steps to warm up, then those that count, 32 rows a batch
and process, as a recipe trains under DDP; with `--accumulation 4` the gradients of four batches are
exchanged at once. After its steps each run multiplies matrices for two seconds,
in all its processes at once: where two cores share caches and memory, or are one core's two halves,
that is what two processes can reach at most. Needs `POLYHEAD_DATA`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, Clock, data_folder, keep
from polyhead.train.commands.fitting import make_trainer
from polyhead.train.commands.setup import PreparedRun, prepare
from polyhead.train.trainer import MultiTaskTrainer

ROWS = 32  # a step and process
WARM_UP = 2  # steps
SHAPE = 2048, 384, 1536  # of the product: tokens, hidden size, its fourfold


def main() -> None:
    """Alternate between one process and two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker, options.steps, options.accumulation)
        return
    runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for processes, rates in runs.items():
            rates.append(start(processes, options.steps, options.accumulation))
    tables = {name: table(name, runs) for name in ("rows a second", "GFLOP/s")}
    batches = f"{options.accumulation} x {ROWS}"
    what = (
        f"training in 1 and 2 processes of 1 thread, {options.steps} steps of {batches} rows each"
    )
    name = "processes" if options.accumulation == 1 else f"processes_{options.accumulation}_batches"
    keep(name, what, tables)


def table(name: str, runs: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians with spread, and how many times that of one process two reach."""
    medians: dict[str, Any] = {}
    for processes, each in runs.items():
        values = sorted(run[name] for run in each)
        shown = {"median": statistics.median(values), "spread": [values[0], values[-1]]}
        medians[f"{processes} processes"] = shown
    medians["ratio"] = round(medians["2 processes"]["median"] / medians["1 processes"]["median"], 3)
    print(f"{name}: {medians}", flush=True)
    return medians


def start(processes: int, steps: int, accumulation: int) -> dict[str, float]:
    """One run in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        counts = ["--steps", str(steps), "--accumulation", str(accumulation)]
        subprocess.run(
            [sys.executable, *launch, __file__, "--worker", str(target), *counts],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )
        return json.loads(target.read_text(encoding="utf-8"))


# ---- in each process ----


def work(target: Path, steps: int, accumulation: int) -> None:
    """Train, multiply, and let the first process write both rates of all."""
    assert torch.get_num_threads() == 1
    data = f"{{train: {data_folder()}/snips/train.parquet}}"  # nothing to score
    run = prepare(
        f"{ROOT}/configs/snips.yaml",
        [
            f"tasks.intent.data.data_files={data}",
            f"tasks.slots.data.data_files={data}",
            f"training.per_device_train_batch_size={ROWS}",
            f"training.gradient_accumulation_steps={accumulation}",
            f"training.max_steps={WARM_UP + steps}",
            "training.save_strategy=no",
            "training.disable_tqdm=true",
            "training.use_cpu=true",
            "training.report_to=none",
            f"output_dir={target.parent}",
        ],
    )
    clock = Clock(WARM_UP)
    trainer = timed(run, clock)
    processes = trainer.args.world_size
    trainer.accelerator.wait_for_everyone()
    rate = torch.tensor(products())
    rates = {
        "rows a second": round(steps * accumulation * ROWS * processes / clock.seconds, 2),
        "GFLOP/s": round(float(trainer.accelerator.reduce(rate, "sum")), 1),
    }
    if trainer.is_world_process_zero():
        target.write_text(json.dumps(rates), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def timed(run: PreparedRun, clock: Clock) -> MultiTaskTrainer:
    """Train with a clock; the trainer afterwards."""
    trainer = make_trainer(run)
    trainer.add_callback(clock)
    trainer.train()
    return trainer


def products(seconds: float = 2.0) -> float:
    """GFLOP/s of this process in a matrix product as MiniLM's largest."""
    tokens, hidden, inner = SHAPE
    x, weight = torch.randn(tokens, hidden), torch.randn(hidden, inner)
    x @ weight
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        x @ weight
        count += 1
    return 2 * tokens * hidden * inner * count / (time.perf_counter() - begin) / 1e9


if __name__ == "__main__":
    main()
