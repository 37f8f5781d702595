"""Six tasks trained one by one and together: scores on test rows, and what each way costs.

    python benchmarks/quality.py              train what is not there yet, print the table
    python benchmarks/quality.py --time       steps per second of each way, on a quiet machine

Every run is `polyhead train` on `configs/six_tasks.yaml` with the overrides below; its scores are
kept in `runs/quality/<setting>/<seed>/`, so that a run cut short goes on where it was. A single
task has batches of 16, the joint runs of 32 rows of all tasks. Needs `POLYHEAD_DATA`.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from common import ROOT, keep

RECIPE = ROOT / "configs/six_tasks.yaml"
SEEDS = (1, 2)
TASKS = ("banking", "entities", "intent", "sentiment", "similarity", "slots")
SINGLE = {task: [f"tasks={task}", "training.per_device_train_batch_size=16"] for task in TASKS}
JOINT = {
    "proportional": [],
}


def train(setting: str, overrides: list[str], seed: int, runs: Path) -> dict[str, Any]:
    """Scores of one run, from the file that an earlier call left or from a new process."""
    folder = runs / setting / str(seed)
    kept = folder / "scores.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        recipe, given = chosen(overrides, folder)
        given += [f"training.seed={seed}", f"output_dir={folder}"]
        start = time.time()
        with open(folder / "log.txt", "w") as log:
            command = [sys.executable, "-m", "polyhead.train", str(recipe), *given]
            subprocess.run(command, check=True, stdout=log, stderr=log)
        print(f"{setting}, seed {seed}: {time.time() - start:.0f} s", flush=True)
    return json.loads(kept.read_text(encoding="utf-8"))


def chosen(overrides: list[str], folder: Path) -> tuple[Path, list[str]]:
    """The recipe, with one task only where an override says `tasks=NAME`."""
    names = [o.removeprefix("tasks=") for o in overrides if o.startswith("tasks=")]
    rest = [o for o in overrides if not o.startswith("tasks=")]
    if not names:
        return RECIPE, rest
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["tasks"] = {name: recipe["tasks"][name] for name in names}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path, rest


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/quality")
    options = parser.parse_args()
    for seed in SEEDS:
        for task in TASKS:
            train(f"single_{task}", SINGLE[task], seed, options.runs)
        for name, overrides in JOINT.items():
            train(name, overrides, seed, options.runs)
