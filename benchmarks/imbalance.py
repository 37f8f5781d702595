"""Imbalanced labels: ten positive sentences of sst2 for a negative one, with and without weights.

    python benchmarks/imbalance.py --workers 12         on a GPU, where there is one
    python benchmarks/imbalance.py --rows 110 --seeds 1 --epochs 1     a try

Each seed draws its rows of train; test is as it is, half of each. Macro F1, and recall and
precision of the rare class, of the MiniLM encoder after the same number of steps.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
from common import data_folder, device, in_processes, keep, prepared, quiet

RARE, OFTEN, TIMES = "negative", "positive", 10
WAYS: dict[str, dict[str, Any]] = {  # options of the task
    "plain": {},
    "class_weight: balanced": {"class_weight": "balanced"},
    "balance: label": {"sampling": {"balance": "label"}},
    "focal: 2": {"focal": 2.0},
    "both": {"class_weight": "balanced", "focal": 2.0},
}


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=3300, help="of train, both classes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--way", action="append", choices=list(WAYS), help="default all")
    parser.add_argument("--workers", type=int, default=1, help="trainings at once")
    options = parser.parse_args()
    quiet()
    jobs = [
        (way, options.rows, seed, options.epochs)
        for seed in range(1, options.seeds + 1)
        for way in options.way or WAYS
    ]
    scores: dict[str, dict[str, Any]] = {}
    what = f"sst2, {TIMES} to 1, {options.rows} rows of train, {options.epochs} epochs"
    for (way, _, seed, _), values in in_processes(scored, jobs, options.workers):
        print(f"{way}, seed {seed}: {values}", flush=True)
        scores.setdefault(way, {})[str(seed)] = values
        keep("imbalance", what, {"device": device(), "workers": options.workers, "test": scores})
    for way in options.way or WAYS:
        for name in ("f1_macro", "recall", "precision"):
            values = [run[name] for run in scores[way].values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{way}: {name} {statistics.mean(values):.2f} +- {spread:.2f}")


def scored(way: str, rows: int, seed: int, epochs: int) -> dict[str, float]:
    """Points on test and seconds of one training."""
    quiet()
    from polyhead.train.commands.fitting import fit

    options = dict(WAYS[way])
    sampling = {"sampling": options.pop("sampling")} if "sampling" in options else {}
    with tempfile.TemporaryDirectory() as folder:
        data = {"data_files": drawn(Path(folder), rows, seed), "text": "text", "label": "sentiment"}
        task = {"head": "sequence_classification", "data": data, **options}
        sizes: Any = {"seed": seed, "epochs": epochs, "batch": 32}
        run = prepared({"sentiment": task}, f"{folder}/run", **sizes, **sampling)
        begin = time.perf_counter()
        _, scores, reports = fit(run)
        seconds = round(time.perf_counter() - begin, 1)
    points = dict(scores["tasks"]["sentiment"])
    of_rare = reports["sentiment"]["confusion"]["per_label"][RARE]
    points |= {name: of_rare[name] for name in ("recall", "precision")}
    return {name: round(100 * value, 2) for name, value in points.items()} | {"seconds": seconds}


def drawn(folder: Path, rows: int, seed: int) -> dict[str, str]:
    """Files with so many rows of train, and all of test."""
    chance, files = random.Random(seed), {}
    whole = pyarrow.parquet.read_table(data_folder() / "sst2/train.parquet")
    labels = whole["sentiment"].to_pylist()
    rare = rows // (TIMES + 1)
    chosen = []
    for label, count in ((RARE, rare), (OFTEN, rare * TIMES)):
        chosen += chance.sample([n for n, x in enumerate(labels) if x == label], count)
    files["train"] = str(folder / "train.parquet")
    pyarrow.parquet.write_table(whole.take(sorted(chosen)), files["train"])
    return {**files, "test": str(data_folder() / "sst2/test.parquet")}


if __name__ == "__main__":
    main()
