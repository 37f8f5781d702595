"""A training killed again and again ends as it would have undisturbed. Run by `make test-all`.

    python tests/crash.py [--kills 20] [--seed 0] [--ranks 1] [key=value ...]

Trains four small tasks once undisturbed, then once more in processes that SIGKILL ends at random
moments of starting, training, saving and finishing; each goes on where the one before was. Weights,
adapters, scores and logs are compared to the bit, with several ranks to 1e-6. Some 5 minutes.
"""

import argparse
import contextlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from conftest import make_tokenizer
from polyhead.train.artifacts import REPLACED, UNFINISHED
from polyhead.train.trainer.checkpoints import is_intact, latest_intact
from safetensors.torch import load_file
from train_helpers import files_of, messages, pairs, write_recipe, write_rows

SAVE_STEPS = 4
STEPS_BY_KILL = 7  # the run is so long that all kills find room
ROWS = {"train": 40, "validation": 8, "test": 8}
RESUME = "training.resume_from_checkpoint=true"
POLL = 0.001  # seconds
FILES = 20  # there are some more in a model's folder


def make_recipe(folder: Path, steps: int, ranks: int) -> Path:
    """Data, tokenizer and recipe: four kinds of heads, dropout, an adapter, accumulation."""
    make_tokenizer("wordpiece").save_pretrained(folder / "tokenizer")
    start = 0
    for split, count in ROWS.items():
        write_rows(folder / f"messages_{split}.jsonl", messages(count, start))
        write_rows(folder / f"pairs_{split}.jsonl", pairs(count, start))
        start += count
    text = {"data_files": files_of("messages"), "text": "text"}
    pair = {"data_files": files_of("pairs"), "text": "text1", "text_pair": "text2"}
    encoder = {
        "model_type": "bert",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    }
    recipe = {
        "encoder": {"config": encoder, "tokenizer": "${RECIPE_DIR}/tokenizer"},
        "output_dir": "${RECIPE_DIR}/whole",
        "tasks": {
            "intent": {"head": "sequence_classification", "data": {**text, "label": "intent"}},
            "slots": {
                "head": "token_classification",
                "data": {**text, "tokens": "tokens", "label": "tags"},
                "adapter": {"r": 4, "lora_dropout": 0.1},
            },
            "near": {"head": "embedding", "data": {**pair, "label": "score"}, "loss": "cosine_mse"},
            "words": {"head": "masked_lm", "data": text},
        },
        "training": {
            "use_cpu": True,
            "max_steps": steps,
            "learning_rate": 3.0e-3,
            "per_device_train_batch_size": 8 // ranks,
            "gradient_accumulation_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": SAVE_STEPS,
            "save_strategy": "steps",
            "save_steps": SAVE_STEPS,
            "save_total_limit": 2,
            "logging_steps": 1,
        },
    }
    return write_recipe(folder / "recipe.yaml", recipe)


class Process:
    """One start of the command; `output` is the run's folder."""

    def __init__(
        self, recipe: Path, output: Path, *, ranks: int = 1, overrides: Sequence[str] = ()
    ) -> None:
        self.output = output
        self.ranks = ranks
        self.began = time.time()
        self.log = recipe.with_name("log.txt")
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
        command = [sys.executable, "-m", *(torchrun if ranks > 1 else []), "polyhead.train"]
        variables = {"HF_DATASETS_CACHE": str(recipe.with_name("cache")), "OMP_NUM_THREADS": "1"}
        variables |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, str(recipe), f"output_dir={output}", RESUME, *overrides],
                stdout=log,
                stderr=log,
                env={**os.environ, **variables},
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs."""
        if self.is_alive():
            self.kill()

    def cpu_seconds(self) -> float:
        """Computing time of it and its children; unlike hours, others on the machine take none."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [psutil.Process(self.process.pid)]
            if self.ranks > 1:
                family += family[0].children(recursive=True)
            return sum(sum(one.cpu_times()[:2]) for one in family)
        return 0.0  # one of them has just ended

    def is_alive(self) -> bool:
        """Whether it is still running."""
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL to it and all its children, workers of torchrun among them."""
        parent = psutil.Process(self.process.pid)
        family = [*(parent.children(recursive=True) if self.ranks > 1 else []), parent]
        for one in family:
            one.kill()
        psutil.wait_procs(family)
        self.process.wait()

    def written(self) -> tuple[str | None, int]:
        """The name of what this process is saving just now, and how many files of it there are."""
        unfinished = self.output / UNFINISHED
        try:
            if unfinished.stat().st_mtime < self.began:  # left by the process before
                return None, 0
            name = next((name for name in os.listdir(unfinished) if name != REPLACED), None)
            return name, 0 if name is None else len(os.listdir(unfinished / name))
        except (FileNotFoundError, NotADirectoryError):  # just renamed, or a file
            return None, 0

    def last_step(self, steps: int) -> str:
        """The step that the progress bar showed last; it is drawn ten times a second at most."""
        steps_logged = re.findall(rf"(\d+)/{steps} \[", self.log.read_text(errors="replace"))
        return f"about step {steps_logged[-1]}" if steps_logged else "before the first step"


@dataclass
class Times:
    """How long the undisturbed run took, in seconds of computing.

    Args:
        start: until the first save began.
        gap: from one checkpoint to the next, on average.
        end: from the last checkpoint until the end.
    """

    start: float
    gap: float
    end: float


def train_whole(start: Callable[[str], Process], steps: int) -> Times:
    """Train undisturbed and measure."""
    with start("whole") as process:
        first = last = now = 0.0
        while process.is_alive():
            now = max(now, process.cpu_seconds())
            if process.written()[0] is not None:
                first = first or now
            if not last and (process.output / f"checkpoint-{steps}").is_dir():
                last = now
            time.sleep(POLL)
    if process.process.returncode or not last:
        sys.exit(f"the undisturbed run failed:\n{process.log.read_text()[-3000:]}")
    saves = math.ceil(steps / SAVE_STEPS)
    return Times(first, (last - first) / saves, now - last)


@dataclass
class Kill:
    """When to kill a process.

    Args:
        phase: start; train, after a checkpoint of `step` or more; save, while one is written; end,
            after the last one; model, while the finished model is written.
        step: see `phase`.
        delay: share of the phase to wait, by the time it took in the undisturbed run, or by the
            files that are there.
    """

    phase: str
    step: int = 0
    delay: float = field(default=0.0, kw_only=True)


def plan(kills: int, steps: int, chance: random.Random) -> list[Kill]:
    """Moments in the order of the run."""
    ends = ["end", "model"][: kills // 4]
    starts, saves = ["start"] * (kills // 10), ["save"] * math.ceil(kills * 0.4)
    trains = ["train"] * (kills - len(starts) - len(saves) - len(ends))
    phases = chance.sample([*starts, *saves, *trains], kills - len(ends))
    targets = sorted(chance.randrange(steps - 2 * SAVE_STEPS) for _ in phases)
    kills_planned = [Kill(phase, step) for phase, step in zip(phases, targets, strict=True)]
    kills_planned += [Kill(phase, steps) for phase in ends]
    for kill in kills_planned:
        kill.delay = chance.random()
    return kills_planned


def wait_for(kill: Kill, process: Process, resumed: int, times: Times) -> None:
    """Wait until the moment of a kill has come, or the process has ended."""
    target = kill.step if kill.phase == "end" else max(kill.step, resumed + 1)

    def has_come() -> bool:
        written, files = process.written()
        name, _, step = (written or "").partition("-")
        if kill.phase == "save":
            return name == "checkpoint" and int(step) >= target and files > kill.delay * FILES
        if kill.phase == "model":
            return name == "model" and files > kill.delay * FILES
        return kill.phase == "start" or step_of(process.output) >= target

    while process.is_alive() and not has_come():
        time.sleep(POLL)
    usual = {"start": times.start, "train": times.gap, "end": times.end / 2}
    until = process.cpu_seconds() + kill.delay * usual.get(kill.phase, 0.0)
    while process.is_alive() and process.cpu_seconds() < until:
        time.sleep(POLL)


def step_of(output: Path) -> int:
    """Steps of the latest checkpoint; 0 where there is none."""
    names = [path.name for path in output.glob("checkpoint-*")]
    return max((int(name.partition("-")[2]) for name in names), default=0)


def train_killed(
    start: Callable[[str], Process], steps: int, kills: list[Kill], times: Times
) -> list[str]:
    """Train in processes that are killed, the last one excepted; the faults found on the way."""
    faults, saving, standing = [], 0, 0
    for number, kill in enumerate(kills, 1):
        with start("killed") as process:
            wait_for(kill, process, standing, times)
            if not process.is_alive():
                return [*faults, f"kill {number} came too late:\n{process.log.read_text()[-3000:]}"]
            process.kill()
        before, standing = standing, step_of(process.output)
        broken = [path.name for path in process.output.glob("checkpoint-*") if not is_intact(path)]
        faults += [f"kill {number}: {name} is broken" for name in broken]
        if standing < before:
            faults.append(f"kill {number}: checkpoint-{before} is lost")
        written, _ = process.written()
        saving += written is not None
        moment = f"while {written} was written" if written else f"({kill.phase})"
        step = process.last_step(steps)
        say(f"kill {number:2}: {step}, {moment}; checkpoint-{standing} stands")
    with start("killed") as process:
        if process.process.wait():
            faults.append(f"the last process failed:\n{process.log.read_text()[-3000:]}")
    say(f"{len(kills)} kills, {saving} of them while something was being saved")
    return faults


TIMES = ("seconds", "resumed")  # in training.json
TIMED = re.compile(r"[\d.]+ minutes( since it was resumed)?")  # in the card


def untimed(record: Path, *, exact: bool) -> list[dict]:
    """The entries of a file, less what tells the time, or what is the hash of that."""
    left = [*TIMES, "time", "version", "files"]
    left += [] if exact else ["encoder", "tasks"] * (record.name == "history.json")
    return [{**entry, **dict.fromkeys(left)} for entry in json.loads(record.read_text())]


def compare(whole: Path, killed: Path, tolerance: float) -> list[str]:
    """What differs between two runs: files of the model, tensors, scores, logs."""
    faults = []
    names = [sorted(files_in(run / "model")) for run in (whole, killed)]
    if names[0] != names[1]:
        faults.append(f"the model's folders hold other files: {names[0]} and {names[1]}")
    for name in (name for name in names[0] if name in names[1]):
        one, other = whole / "model" / name, killed / "model" / name
        if name.endswith(".safetensors"):
            faults += [f"model/{name}: {fault}" for fault in compare_tensors(one, other, tolerance)]
        elif name.endswith("adapter_config.json"):  # PEFT writes sets, in any order
            both = [json.loads(path.read_text()) for path in (one, other)]
            for config in both:
                config["target_modules"].sort()
            faults += compare_values(f"model/{name}", *both, tolerance)
        elif name in ("training.json", "history.json"):
            both = [untimed(path, exact=not tolerance) for path in (one, other)]
            faults += compare_values(f"model/{name}", *both, tolerance)
        elif name == "README.md" and not tolerance:
            texts = [TIMED.sub("", path.read_text()) for path in (one, other)]
            faults += [] if texts[0] == texts[1] else [f"model/{name} differs"]
        elif not tolerance and one.read_bytes() != other.read_bytes():
            faults.append(f"model/{name} differs")
    names = [sorted(path.name for path in run.iterdir()) for run in (whole, killed)]
    faults += compare_values("the run's folder", *names, tolerance)
    scores = [json.loads((run / "scores.json").read_text()) for run in (whole, killed)]
    faults += compare_values("scores.json", *scores, tolerance)
    logs = [log_of(run) for run in (whole, killed)]
    return faults + compare_values("log", *logs, tolerance)


def files_in(folder: Path) -> list[str]:
    """Files by their path in the folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def compare_tensors(one: Path, other: Path, tolerance: float) -> list[str]:
    """Tensors of two files that are not alike; to the bit where nothing is tolerated."""
    first, second = load_file(one), load_file(other)
    if first.keys() != second.keys():
        return ["holds other tensors"]
    return [
        f"{name} differs by {float((first[name] - second[name]).abs().max()):.1e}"
        for name in first
        if not first[name].equal(second[name])
        and not (first[name] - second[name]).abs().max() <= tolerance
    ]


def compare_values(where: str, one: Any, other: Any, tolerance: float) -> list[str]:
    """Differences of nested dicts, lists and numbers."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs_of = [(f"{where}: {key}", one[key], other[key]) for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs_of = [(f"{where} {n}", *both) for n, both in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, float) and isinstance(other, float) and abs(one - other) <= tolerance:
        return []
    else:
        return [] if one == other else [f"{where}: {one} and {other}"]
    return [fault for names in pairs_of for fault in compare_values(*names, tolerance)]


def log_of(run: Path) -> list[dict[str, float]]:
    """What training logged up to its last step, without times."""
    state = json.loads(Path(str(latest_intact(run)), "trainer_state.json").read_text())
    timed = ("train_", "eval_runtime", "eval_samples", "eval_steps")
    lines = state["log_history"]
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a training, resume it, compare.")
    parser.add_argument("overrides", nargs="*", help="of the recipe, as balancing.method=famo")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no process behind
    steps = math.ceil(options.kills * STEPS_BY_KILL / SAVE_STEPS) * SAVE_STEPS + 6
    kills = plan(options.kills, steps, random.Random(options.seed))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = make_recipe(folder, steps, options.ranks)

        def start(output: str) -> Process:
            settings = {"ranks": options.ranks, "overrides": options.overrides}
            return Process(recipe, folder / output, **settings)

        times = train_whole(start, steps)
        say(
            f"undisturbed: {steps} steps; {times.start:.1f} s of computing to the first "
            f"checkpoint, {times.gap:.2f} s from one to the next, {times.end:.1f} s to finish"
        )
        faults = train_killed(start, steps, kills, times)
        if not faults:
            tolerance = 0.0 if options.ranks == 1 else 1e-6
            faults = compare(folder / "whole", folder / "killed", tolerance)
    say(f"{time.monotonic() - started:.0f} s")
    if faults:
        sys.exit("\n".join(["DIFFERENT:", *faults]))
    say("the same: weights, adapters, scores and logs")


if __name__ == "__main__":
    main()
