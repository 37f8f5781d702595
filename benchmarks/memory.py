"""Peak memory of training eight tasks jointly against one: the same rows in the same batches.

Real text of mixed length in packed batches of 32 rows, MiniLM, AdamW. One task: classes of all
rows. Eight tasks: an eighth of the rows each, five with classes and three with a tag for each word,
all in each batch. Labels are made by rule; memory does not depend on what they say. Eight tasks are
trained as they come, and with one comparison of the tasks' gradients, which a longer training makes
every 128 steps by default: it keeps a sketch of each task's gradient.

Each run is a process of its own, in turns, that takes the peak of its resident memory, and the peak
above what it holds before the first step (the model and the libraries). Needs `POLYHEAD_DATA`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import psutil
import yaml
from common import SEED, encoder_folder, keep, quiet, ratio_spread, real_rows, summary
from transformers import PrinterCallback

ROWS = 32  # a step
ONE, EIGHT, COMPARED = "1 task", "8 tasks", "8 tasks, gradients compared"
SIDES = {ONE: 1, EIGHT: 8, COMPARED: 8}


def main() -> None:
    """Run each side in processes of its own, in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        work(options.side, options.steps)
        return
    runs_by_side: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for _ in range(options.repeats):
        for name, runs in runs_by_side.items():
            command = [sys.executable, __file__, "--side", name, "--steps", str(options.steps)]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(run.stdout.splitlines()[-1]))
            print(f"{name}: {runs[-1]}", flush=True)
    seen = {name: {str(run["tokens"]) for run in runs} for name, runs in runs_by_side.items()}
    assert len(set.union(*seen.values())) == 1, f"batches differ: {seen}"
    what = f"peak memory of {options.steps} training steps of {ROWS} rows, MiB"
    keep("memory", what, {"sides": table(runs_by_side)})


def table(runs_by_side: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Peaks of each side, as multiples of those of one task."""
    sides = {}
    for name, runs in runs_by_side.items():
        sides[name] = {}
        for key in ("peak", "above the model"):
            values, unit = ([run[key] for run in part] for part in (runs, runs_by_side[ONE]))
            ratio = round(statistics.median(values) / statistics.median(unit), 3)
            spread = ratio_spread(values, unit)
            sides[name][key] = {**summary(values), "ratio": ratio, "ratio spread": spread}
        shown = (
            f"{key} {v['median']:.0f} MiB ({v['ratio']:.2f})" for key, v in sides[name].items()
        )
        print(f"{name}: {', '.join(shown)}", flush=True)
    return sides


# ---- in each process ----


def work(side: str, steps: int) -> None:
    """Train; print MiB and the tokens of each step."""
    from polyhead.train.batches.sampler import MultiTaskBatchSampler
    from polyhead.train.commands.fitting import make_trainer
    from polyhead.train.commands.setup import prepare

    quiet()
    tasks = SIDES[side]
    rows = real_rows(ROWS * steps)
    training = {"per_device_train_batch_size": ROWS, "max_steps": steps, "use_cpu": True}
    training |= {"disable_tqdm": True, "save_strategy": "no", "report_to": "none"}
    with tempfile.TemporaryDirectory() as folder:
        recipe = {"encoder": encoder_folder(), "output_dir": folder, "training": training}
        recipe |= {"max_length": 512, "tasks": tasks_of(rows, tasks, folder)}
        recipe["balancing"] = {"gradient_steps": steps // 2 if side == COMPARED else 0}
        path = Path(folder, "recipe.yaml")
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        trainer = make_trainer(prepare(path))
        # The eight tasks' own draw, of the same rows in the same order, for one task too.
        parts = {f"task{n}": range(part.start, part.stop) for n, part in enumerate(cut(rows, 8))}
        trainer.sampler = MultiTaskBatchSampler(parts, batch_size=ROWS, seed=SEED)
        lengths = trainer.train_dataset.lengths
        tokens = [sum(lengths[row] for row in batch) for batch in trainer.sampler]
        trainer.remove_callback(PrinterCallback)
        before = psutil.Process().memory_info().rss / 2**20
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"peak": round(peak), "above the model": round(peak - before), "tokens": tokens}
    print(json.dumps(result), flush=True)


def cut(rows: list[Any], parts: int) -> list[range]:
    """Consecutive parts of nearly one size."""
    ends = [len(rows) * n // parts for n in range(parts + 1)]
    return [range(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def tasks_of(rows: list[tuple[str, str]], count: int, folder: str) -> dict[str, Any]:
    """The tasks of a recipe, each with its part of the rows; the last three of eight tag words."""
    tasks = {}
    for number, part in enumerate(cut(rows, count)):
        rows_of_task = [rows[row] for row in part]
        words = [text.split() for text, _ in rows_of_task]
        tags = [["B-name" if word[0].isupper() else "O" for word in row] for row in words]
        table = {
            "text": [text for text, _ in rows_of_task],
            "label": [name for _, name in rows_of_task],
        }
        file = f"{folder}/{number}.parquet"
        datasets.Dataset.from_dict({**table, "tokens": words, "tags": tags}).to_parquet(file)
        data = {"data_files": {"train": file}, "text": "text", "label": "label"}
        head = "sequence_classification" if number < 5 else "token_classification"
        if head == "token_classification":
            data |= {"tokens": "tokens", "label": "tags"}
        tasks[f"task{number}"] = {"head": head, "data": data}
    return tasks


if __name__ == "__main__":
    main()
