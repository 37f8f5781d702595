"""Six tasks trained one by one and together: scores on test rows, and what each way costs.

    python benchmarks/quality.py              train what is not there yet, then the table
    python benchmarks/quality.py --kept       the table of what is there
    python benchmarks/quality.py --time       seconds of a step of each way, on a quiet machine

Every run is `polyhead train` on `configs/six_tasks.yaml` with the overrides below; it leaves its
scores in `runs/quality/<setting>/<seed>/`, so that a benchmark cut short goes on where it was. A
task alone has batches of 16 rows, the joint runs batches of 32 rows of all tasks, each as many
epochs. The time of a way is its number of steps times the seconds of a step, measured in turns: the
runs themselves may share the machine with other work. Tasks alone are timed padded, as HF's Trainer
batches them, and packed. Needs `POLYHEAD_DATA`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from common import ROOT, alternate, keep, trainer_of

RECIPE = ROOT / "configs/six_tasks.yaml"
SEEDS = (1, 2)
TASKS = ("banking", "entities", "intent", "sentiment", "similarity", "slots")
SINGLE = {f"single {task}": (task, ["training.per_device_train_batch_size=16"]) for task in TASKS}
SINGLE["single similarity"][1].append("optimizer.head_lr=null")  # a head without weights
TEMPERATURE = ["sampling.strategy=temperature", "sampling.temperature=3"]
ADAPTERS = [
    *(f"tasks.{name}.adapter={{r: 16, lora_alpha: 32, layers: top 4}}" for name in TASKS[:-1]),
    "tasks.slots.adapter=intent",  # of the same rows: one pass for both
    "freeze.encoder=true",
    "training.learning_rate=1e-3",
    "optimizer.head_lr=2e-3",
]
JOINT = {
    "joint, proportional": (None, ["training.learning_rate=1e-4"]),
    "joint, temperature": (None, ["training.learning_rate=1e-4", *TEMPERATURE]),
    "joint, gradnorm": (None, ["training.learning_rate=1e-4", "balancing.method=gradnorm"]),
    "joint, adapters": (None, ADAPTERS),
}
SETTINGS: dict[str, tuple[str | None, list[str]]] = {**SINGLE, **JOINT}
TIMED = 8  # steps


def recipe_of(task: str | None, folder: Path) -> Path:
    """The recipe, or one with this task alone."""
    if task is None:
        return RECIPE
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["tasks"] = {task: recipe["tasks"][task]}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def folder_of(setting: str, seed: int, runs: Path) -> Path:
    """Where a run leaves its scores."""
    return runs / setting.replace(", ", "_").replace(" ", "_") / str(seed)


def train(setting: str, seed: int, runs: Path) -> dict[str, Any]:
    """Scores of one run, from the file that an earlier call left or from a new process."""
    task, overrides = SETTINGS[setting]
    folder = folder_of(setting, seed, runs)
    file = folder / "scores.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        options = [*overrides, f"training.seed={seed}", f"output_dir={folder}"]
        command = [sys.executable, "-m", "polyhead.train", str(recipe_of(task, folder)), *options]
        command.append("--overwrite")  # of a run that was cut off
        start = time.time()
        with open(folder / "log.txt", "w", encoding="utf-8") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        print(f"{setting}, seed {seed}: {time.time() - start:.0f} s", flush=True)
    return json.loads(file.read_text(encoding="utf-8"))["tasks"]


def scores(runs: Path, *, kept: bool) -> dict[str, dict[str, list[float]]]:
    """Main metric of each task by way, in points, one for each seed.

    Args:
        runs: folder of the runs.
        kept: leave out what is not there yet, instead of training it.
    """
    points: dict[str, dict[str, list[float]]] = {}
    for seed in SEEDS:
        for setting, (task, _) in SETTINGS.items():
            way = "single" if task else setting
            if kept and not folder_of(setting, seed, runs).joinpath("scores.json").is_file():
                continue
            for name, values in train(setting, seed, runs).items():
                main = next(iter(values.values()))
                points.setdefault(way, {}).setdefault(name, []).append(round(100 * main, 2))
    return points


def show(table: dict[str, dict[str, list[float]]]) -> None:
    """Means over the seeds as a table in Markdown, and differences from the single-task runs."""
    print("| |", " | ".join(TASKS), "| mean | worst against single | seeds |")
    print("|---" * (len(TASKS) + 4) + "|")
    single = {name: statistics.mean(table["single"][name]) for name in TASKS}
    for way, values in table.items():
        means = {name: statistics.mean(values[name]) for name in TASKS}
        worst = min(TASKS, key=lambda name: means[name] - single[name])
        cells = " | ".join(f"{means[name]:.2f}" for name in TASKS)
        lost = f"{means[worst] - single[worst]:+.2f} ({worst})" if way != "single" else ""
        seeds = len(values[TASKS[0]])
        print(f"| {way} | {cells} | {statistics.mean(means.values()):.2f} | {lost} | {seeds} |")


def steps(task: str | None, overrides: list[str], folder: Path) -> tuple[Callable[[], None], int]:
    """A run of some optimizer steps of the trainer, and the number of steps of a whole training."""
    from polyhead.train.commands.setup import prepare

    folder.mkdir(parents=True, exist_ok=True)
    path = recipe_of(task, folder)
    timed = [f"training.max_steps={TIMED}", "training.disable_tqdm=true", f"output_dir={folder}"]
    timed.append("balancing.gradient_steps=0")  # else one comparison in so few steps
    run = prepare(path, [*overrides, *timed])
    trainer = trainer_of(run)
    epochs = float(run.recipe.training["num_train_epochs"])
    return lambda: trainer.train(), round(epochs * len(trainer.get_train_dataloader()))


def times(runs: Path) -> dict[str, Any]:
    """Seconds of a whole training by way: steps times the median seconds of a step."""
    ways: dict[str, list[tuple[str, str | None, list[str]]]] = {"single, padded": []}
    ways["single, packed"] = [(name, *SINGLE[name]) for name in SINGLE]
    for name, (task, overrides) in SINGLE.items():
        ways["single, padded"].append((name, task, [*overrides, "sampling.packing=false"]))
    ways |= {name: [(name, *JOINT[name])] for name in JOINT}
    made = {
        (way, name): steps(task, overrides, runs / "timing" / f"{way} {name}")
        for way, parts in ways.items()
        for name, task, overrides in parts
    }
    seconds = alternate({str(key): run for key, (run, _) in made.items()}, repeats=3)
    results = {}
    for way in ways:
        steps_of_way = {key: count for key, (_, count) in made.items() if key[0] == way}
        total = sum(statistics.median(seconds[str(k)]) / TIMED * n for k, n in steps_of_way.items())
        results[way] = {"seconds": round(total, 1), "steps": sum(steps_of_way.values())}
    for way, values in results.items():
        ratio = values["seconds"] / results["single, padded"]["seconds"]
        results[way]["ratio"] = round(ratio, 3)
        print(f"{way}: {values['steps']} steps, {values['seconds']:.0f} s, {ratio:.2f}", flush=True)
    return results


def main() -> None:
    """Train and score, or time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/quality")
    parser.add_argument("--time", action="store_true", help="seconds of a step, on a quiet machine")
    parser.add_argument("--kept", action="store_true", help="train nothing")
    options = parser.parse_args()
    if options.time:
        keep("quality_time", "six tasks alone and together: time", times(options.runs))
        return
    table = scores(options.runs, kept=options.kept)
    show(table)
    keep("quality", "six tasks alone and together: scores on test rows", {"scores": table})


if __name__ == "__main__":
    main()
