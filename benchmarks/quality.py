"""Six tasks trained one by one and together: scores on test rows, and what each way costs.

    python benchmarks/quality.py              train what is not there yet, then the table
    python benchmarks/quality.py --workers 15 so many runs at once, as on a GPU
    python benchmarks/quality.py --way NAME   this way alone; may be given again
    python benchmarks/quality.py --table      the table of what is there
    python benchmarks/quality.py --time       seconds of a step of each way, on a quiet machine

Every run trains `configs/six_tasks.yaml` with the overrides below and leaves its scores in
`runs/quality/<way>/<seed>.json`, so that a benchmark cut short goes on where it was. A task alone
is trained at two learning rates; the one that is better on the mean of its validation scores
stands in the table. Alone as together: 3 epochs, packed. Test scores are means over the seeds with
95 % intervals (Student's t); differences from the task alone have Welch's.

The time of a way is its number of steps times the seconds of a step, measured in turns. Tasks alone
are timed padded, as HF's Trainer batches them, and packed. A teacher's
training is not counted. Needs `POLYHEAD_DATA`.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from common import ROOT, alternate, device, in_processes, keep, quiet
from scipy.stats import t as student

RECIPE = ROOT / "configs/six_tasks.yaml"
TASKS = ("banking", "entities", "intent", "sentiment", "similarity", "slots")
RATES = ("1e-4", "2e-4")  # of a task alone
TIMED = 8  # steps


@dataclass(frozen=True)
class Way:
    """One way to train some of the tasks.

    Args:
        tasks: names.
        overrides: of the recipe.
        seeds: of its runs.
    """

    tasks: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


def alone(task: str, rate: str) -> Way:
    """A task by itself, 16 rows a step, with none of what is for several tasks."""
    overrides = ["training.per_device_train_batch_size=16", f"training.learning_rate={rate}"]
    overrides += ["retain=null", "distill=null"]
    if task == "similarity":  # a head without weights; alone CoSENT is the better loss
        overrides += ["optimizer.head_lr=null", "tasks.similarity.loss=cosent"]
    return Way((task,), tuple(overrides))


SINGLE = {f"single {task}, {rate}": alone(task, rate) for task in TASKS for rate in RATES}
BEFORE = (  # without equal_norms, retain, rows_together and a teacher
    "distill=null",
    "training.learning_rate=1e-4",
    "balancing.method=none",
    "retain=null",
    "sampling.rows_together=1",
    "tasks.similarity.loss=cosent",
    "tasks.similarity.loss_weight=0.1",
)
JOINT = {
    "joint": Way(TASKS),
    "joint, no teacher": Way(TASKS, ("distill=null",)),
    "joint, before": Way(TASKS, BEFORE, seeds=(1, 2)),
}
WAYS = SINGLE | JOINT
Scores = dict[str, dict[str, list[float]]]  # split to task to points, one for each seed


def recipe_of(way: Way, folder: Path) -> Path:
    """The recipe with the way's tasks alone."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["tasks"] = {name: recipe["tasks"][name] for name in way.tasks}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def file_of(name: str, seed: int, runs: Path) -> Path:
    """Where a run leaves its scores."""
    return runs / name.replace(", ", "_").replace(" ", "_") / f"{seed}.json"


def train(name: str, seed: int, runs: Path) -> str:
    """Train and score one run, and say how long it took."""
    from polyhead.train.commands.fitting import make_trainer
    from polyhead.train.commands.setup import prepare
    from polyhead.train.commands.training import with_teachers
    from polyhead.train.evaluation.scoring import eval_splits

    quiet()
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = [f"training.seed={seed}", f"output_dir={folder}/run"]
        options += ["training.disable_tqdm=true", "training.logging_strategy=no"]
        options += ["training.per_device_eval_batch_size=128", "balancing.gradient_steps=0"]
        way = WAYS[name]
        run = with_teachers(prepare(recipe_of(way, Path(folder)), [*way.overrides, *options]))
        trainer = make_trainer(run)
        trainer.train()
        scores: dict[str, dict[str, float]] = {}
        for split in ("validation", "test"):
            rows = eval_splits(run.sources, split, run.tokenizer, run.configs)
            values, _ = trainer.evaluate_tasks(rows, split)
            scores[split] = {t: round(100 * next(iter(v.values())), 2) for t, v in values.items()}
    file = file_of(name, seed, runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(scores), encoding="utf-8")
    return f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s, {scores['test']}"


def train_missing(names: list[str], runs: Path, workers: int, seconds: float) -> None:
    """Train what is not there yet, several runs at once; none begins after so many seconds."""
    jobs = [
        (name, seed, runs)
        for seed in range(1, 6)
        for name in sorted(names, key=lambda n: -len(WAYS[n].tasks))
        if seed in WAYS[name].seeds and not file_of(name, seed, runs).is_file()
    ]
    for _, line in in_processes(train, jobs, workers, seconds):
        print(line, flush=True)


# ---- the table ----


def scores_of(name: str, runs: Path) -> Scores:
    """Points by split, task and seed of the runs that are there."""
    found: Scores = {"validation": {}, "test": {}}
    for seed in WAYS[name].seeds:
        file = file_of(name, seed, runs)
        if file.is_file():
            for split, values in json.loads(file.read_text(encoding="utf-8")).items():
                for task, value in values.items():
                    found[split].setdefault(task, []).append(value)
    return found


def best_alone(table: dict[str, Scores]) -> tuple[Scores, dict[str, str]]:
    """Of each task alone the learning rate with the better validation scores."""
    best: Scores = {"validation": {}, "test": {}}
    rates = {}
    for task in TASKS:
        parts = {rate: table[f"single {task}, {rate}"] for rate in RATES}
        rates[task] = max(RATES, key=lambda r: statistics.mean(parts[r]["validation"][task]))
        for split in best:
            best[split][task] = parts[rates[task]][split][task]
    return best, rates


def interval(values: list[float]) -> float:
    """Half of the 95 % interval of their mean."""
    if len(values) < 2:
        return math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(student.ppf(0.975, len(values) - 1)) * error


def difference(values: list[float], others: list[float]) -> tuple[float, float]:
    """Difference of two means, and half of its 95 % interval (Welch)."""
    gap = statistics.mean(values) - statistics.mean(others)
    if min(len(values), len(others)) < 2:
        return gap, math.nan
    parts = [statistics.variance(part) / len(part) for part in (values, others)]
    sizes = [len(values), len(others)]
    freedom = sum(parts) ** 2 / sum(v**2 / (n - 1) for v, n in zip(parts, sizes, strict=True))
    return gap, float(student.ppf(0.975, freedom)) * math.sqrt(sum(parts))


def macros(by_task: dict[str, list[float]]) -> list[float]:
    """The mean over the tasks, by seed."""
    return [statistics.mean(values) for values in zip(*by_task.values(), strict=False)]


def show(table: dict[str, Scores]) -> dict[str, Any]:
    """Print test scores in Markdown; the ways that have all tasks, and the best of each alone."""
    single, rates = best_alone(table)
    print("| | " + " | ".join(TASKS) + " | macro | seeds |")
    print("|---" * (len(TASKS) + 3) + "|")
    ways = {"single": single} | {name: table[name] for name in JOINT if table[name]["test"]}
    against: dict[str, Any] = {}
    for name, scores in ways.items():
        points = {task: scores["test"][task] for task in TASKS}
        points["macro"] = macros(points)
        cells = []
        for task, values in points.items():
            cell = f"{statistics.mean(values):.1f} ± {interval(values):.1f}"
            if name != "single":
                alone = single["test"].get(task) or macros(single["test"])
                gap, half = difference(values, alone)
                against.setdefault(name, {})[task] = [round(gap, 2), round(half, 2)]
                cell += f" ({gap:+.1f} ± {half:.1f})"
            cells.append(cell)
        print(f"| {name} | " + " | ".join(cells) + f" | {len(points[TASKS[0]])} |")
    print("learning rates of the tasks alone:", rates)
    return {"single": single, "rates": rates, "against single": against}


# ---- time ----


def steps(way: Way, more: list[str], folder: Path) -> tuple[Callable[[], None], int]:
    """A run of some optimizer steps of the trainer, and the number of steps of a whole training."""
    from polyhead.train.commands.fitting import make_trainer
    from polyhead.train.commands.setup import prepare
    from polyhead.train.commands.training import with_teachers

    folder.mkdir(parents=True, exist_ok=True)
    path = recipe_of(way, folder)
    timed = [f"training.max_steps={TIMED}", "training.disable_tqdm=true", f"output_dir={folder}"]
    timed.append("balancing.gradient_steps=0")  # else one comparison in so few steps
    run = with_teachers(prepare(path, [*way.overrides, *more, *timed]))
    trainer = make_trainer(run)
    epochs = float(run.recipe.training["num_train_epochs"])
    return lambda: trainer.train(), round(epochs * len(trainer.get_train_dataloader()))


def times(names: list[str], runs: Path) -> dict[str, Any]:
    """Seconds of a whole training by way: steps times the median seconds of a step."""
    padded = ["sampling.packing=false"]
    ways: dict[str, list[tuple[str, Way, list[str]]]] = {
        "single, padded": [(task, alone(task, RATES[0]), padded) for task in TASKS],
        "single, packed": [(task, alone(task, RATES[0]), []) for task in TASKS],
    }
    ways |= {name: [(name, JOINT[name], [])] for name in JOINT if name in names}
    made = {
        (kind, name): steps(way, more, runs / "timing" / f"{kind} {name}")
        for kind, parts in ways.items()
        for name, way, more in parts
    }
    seconds = alternate({str(key): run for key, (run, _) in made.items()}, repeats=3)
    results = {}
    for kind in ways:
        counts = {key: count for key, (_, count) in made.items() if key[0] == kind}
        total = sum(statistics.median(seconds[str(k)]) / TIMED * n for k, n in counts.items())
        results[kind] = {"seconds": round(total, 1), "steps": sum(counts.values())}
    for kind, values in results.items():
        ratio = values["seconds"] / results["single, padded"]["seconds"]
        values["ratio"] = round(ratio, 3)
        print(
            f"{kind}: {values['steps']} steps, {values['seconds']:.0f} s, {ratio:.2f}", flush=True
        )
    return results


def main() -> None:
    """Train and score, or time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/quality")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="default all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="no run begins later")
    parser.add_argument("--time", action="store_true", help="seconds of a step, on a quiet machine")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    names = options.way or list(WAYS)
    if options.time:
        keep("quality_time", "six tasks alone and together: time", times(names, options.runs))
        return
    if not options.table:
        train_missing(names, options.runs, options.workers, options.seconds)
    table = {name: scores_of(name, options.runs) for name in WAYS}
    if missing := [name for name in SINGLE if not table[name]["test"]]:
        print(f"no scores yet of {', '.join(missing)}", file=sys.stderr)
        sys.exit(2)
    kept = {"device of this call": device(), "scores": table, **show(table)}
    keep("quality", "six tasks alone and together: scores on test rows", kept)


if __name__ == "__main__":
    main()
