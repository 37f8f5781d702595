"""`few_shot` beside plain training: 77 intents of banking77, 8 and 32 rows of each.

    python benchmarks/few_shot.py --workers 12          on a GPU, where there is one
    python benchmarks/few_shot.py --rows 8 --seeds 1 --classes 5 --pairs 2     a try

Each seed draws its rows of train. Every way begins at the MiniLM encoder. `pairs, heads` is SetFit:
pairs of rows train the encoder, then the head alone. `heads` leaves the pairs out, `plain` trains
all at one of two learning rates. Nothing is chosen by test rows, which are all scored, once.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet
from common import data_folder, device, in_processes, keep, prepared, quiet

HEADS = {"freeze": {"encoder": True}, "optimizer": {"head_lr": 1e-2}}
HEAD_FIRST = {"optimizer": {"head_lr": 1e-2}}
WAYS: dict[str, dict[str, Any]] = {  # sections of the recipe; learning rate of the encoder
    "plain, 1e-4": {**HEAD_FIRST, "rate": 1e-4},
    "plain, 3e-4": {**HEAD_FIRST, "rate": 3e-4},
    "heads": HEADS,
    "pairs, heads": {**HEADS, "pairs": True},
    "pairs, all at 1e-4": {**HEAD_FIRST, "rate": 1e-4, "pairs": True},
}


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="after the pairs")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--classes", type=int, default=77)
    parser.add_argument("--way", action="append", choices=list(WAYS), help="default all")
    parser.add_argument("--workers", type=int, default=1, help="trainings at once")
    options = parser.parse_args()
    quiet()
    sizes = sorted(options.rows, reverse=True)  # the longest first
    ways = sorted(options.way or WAYS, key=lambda way: "pairs" not in WAYS[way])
    jobs = [
        (way, rows, seed, options.epochs, options.pairs, options.classes)
        for rows in sizes
        for way in ways
        for seed in range(1, options.seeds + 1)
    ]
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    what = f"banking77, {options.classes} classes, {options.pairs} pairs, {options.epochs} epochs"
    for (way, rows, seed, *_), values in in_processes(scored, jobs, options.workers):
        print(f"{way}, {rows} rows, seed {seed}: {values}", flush=True)
        by_seed = scores.setdefault(f"{rows} rows a class", {}).setdefault(way, {})
        by_seed[str(seed)] = values
        keep("few_shot", what, {"device": device(), "workers": options.workers, "test": scores})
    for rows, by_way in scores.items():
        for way, by_seed in sorted(by_way.items()):
            values = [run["accuracy"] for run in by_seed.values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{rows}, {way}: accuracy {statistics.mean(values):.2f} +- {spread:.2f}")


def scored(
    way: str, rows: int, seed: int, epochs: int, pairs: int, classes: int
) -> dict[str, float]:
    """Points on test and seconds of one training."""
    quiet()
    from polyhead.train.commands.fitting import fit

    options = dict(WAYS[way])
    rate = options.pop("rate", 1e-4)
    few_shot = {"few_shot": {"pairs": pairs}} if options.pop("pairs", False) else {}
    with tempfile.TemporaryDirectory() as folder:
        files = drawn(Path(folder), rows, seed, classes)
        data = {"data_files": files, "text": "text", "label": "intent"}
        task = {"head": "sequence_classification", "data": data, **few_shot}
        sizes: Any = {"seed": seed, "epochs": epochs, "batch": 32, "rate": rate}
        run = prepared({"intent": task}, f"{folder}/run", **sizes, **options)
        begin = time.perf_counter()
        _, scores, _ = fit(run)
        seconds = round(time.perf_counter() - begin, 1)
    points = {name: round(100 * value, 2) for name, value in scores["tasks"]["intent"].items()}
    return {**points, "rows": len(run.sources[0].splits["train"]), "seconds": seconds}


def drawn(folder: Path, rows: int, seed: int, classes: int) -> dict[str, str]:
    """Files with so many rows of each class, all where there are fewer, and with all of test."""
    chance = random.Random(seed)
    whole = {
        split: pyarrow.parquet.read_table(data_folder() / "banking77" / f"{split}.parquet")
        for split in ("train", "test")
    }
    by_class: dict[str, list[int]] = defaultdict(list)
    for number, label in enumerate(whole["train"]["intent"].to_pylist()):
        by_class[label].append(number)
    labels = sorted(by_class)[:classes]
    chosen = [n for x in labels for n in chance.sample(by_class[x], min(rows, len(by_class[x])))]
    tested = [n for n, x in enumerate(whole["test"]["intent"].to_pylist()) if x in labels]
    files = {}
    for split, numbers in (("train", chosen), ("test", tested)):
        files[split] = str(folder / f"{split}.parquet")
        pyarrow.parquet.write_table(whole[split].take(numbers), files[split])
    return files


if __name__ == "__main__":
    main()
