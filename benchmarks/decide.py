"""Decisions made on validation rows, counted on test: thresholds, temperatures, no answer.

Each task is trained alone on the MiniLM encoder, on a GPU where there is one. goemotions: macro F1
with a threshold for each label beside 0.5. banking77, sst2, snips (intents) and wnut17: expected
calibration error before and after the temperature; the share of answers that is kept, and how many
of these are right, where so many were right on validation. `--rows 200` is a try of all of it.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import SEED, files_of, keep, prepared, quiet
from pyarrow import parquet

SEQUENCE, TEXT = "sequence_classification", {"text": "text"}
CALIBRATED: dict[str, Any] = {"calibrate": True, "abstain": {"precision": 0.95}}
TASKS: dict[str, dict[str, Any]] = {
    "goemotions": {
        "head": SEQUENCE,
        "problem_type": "multi_label_classification",
        "data": {**TEXT, "label": "emotions"},
        "metrics": ["f1_macro", "f1_micro"],
        "decide": {"calibrate": True, "threshold": "macro_f1"},
    },
    "banking77": {"head": SEQUENCE, "data": {**TEXT, "label": "intent"}, "decide": CALIBRATED},
    "sst2": {"head": SEQUENCE, "data": {**TEXT, "label": "sentiment"}, "decide": CALIBRATED},
    "snips": {"head": SEQUENCE, "data": {**TEXT, "label": "intent"}, "decide": CALIBRATED},
    "wnut17": {
        "head": "token_classification",
        "data": {"tokens": "tokens", "label": "ner_tags"},
        "decide": {"calibrate": True, "abstain": {"precision": 0.8}},
    },
}


def main() -> None:
    """Train and count; what is done is kept after each training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rows", type=int, help="of each split; default all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = options.device == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    quiet()
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for name in options.tasks:
            began = time.perf_counter()
            run = decided(name, seed, options)
            run["seconds"] = round(time.perf_counter() - began, 1)
            runs.setdefault(name, []).append(run)
            print(name, run, flush=True)
            rows = "all rows" if options.rows is None else f"{options.rows} rows of each split"
            how = f"{options.epochs} epochs in batches of {options.batch} at {options.rate:g}"
            what = f"decisions from validation, counted on test; {rows}, {how}, by seed"
            keep("decide" if options.rows is None else "decide_few", what, {
                "device": device, "scores": runs,
            })  # fmt: skip


def decided(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Scores on test with and without thresholds, and what the decisions are worth."""
    from polyhead.train.commands.fitting import final_scores, fit

    task = TASKS[name]
    with tempfile.TemporaryDirectory() as folder:
        data = {**task["data"], "data_files": drawn(name, options.rows, Path(folder))}
        training = {"dataloader_num_workers": options.workers}
        training["use_cpu"] = options.device == "cpu"
        run = prepared(
            {name: {**task, "data": data}},
            f"{folder}/run",
            seed=seed,
            epochs=options.epochs,
            batch=options.batch,
            rate=options.rate,
            training=training,
        )
        trainer, scores, _ = fit(run)
        decision = dict(scores["decisions"][name])
        result = {"seed": seed, "scores": _numbers(scores, name), "decision": decision}
        if decision.get("thresholds"):
            trainer.model_for_tasks.config.tasks[name].thresholds = None
            result["scores at 0.5"] = _numbers(final_scores(trainer, run)[0], name)
    return result


def drawn(name: str, rows: int | None, scratch: Path) -> dict[str, str]:
    """The files of a data set by split; with `rows` so many rows of each, put into `scratch`."""
    files = files_of(name)
    if rows is None:
        return files
    for split, path in files.items():
        table = parquet.read_table(path)
        chosen = random.Random(SEED).sample(range(len(table)), min(rows, len(table)))
        files[split] = str(scratch / f"{split}.parquet")
        parquet.write_table(table.take(chosen), files[split])
    return files


def _numbers(scores: dict[str, Any], name: str) -> dict[str, float]:
    """The metrics of a task that are one number."""
    return {k: round(v, 4) for k, v in scores["tasks"][name].items() if isinstance(v, float)}


if __name__ == "__main__":
    main()
