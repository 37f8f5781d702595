"""Texts of 100 to 100,000 tokens in windows: time, memory, and scores beside the first window.

Texts are made of real ones and read, or trained on for a step, the shortest first, each way in a
process of its own, whose largest memory the kernel tells. For the scores a task is trained twice on
the same rows, with `long_texts: first` and `windows`, and tested on rows of the test split.

    python benchmarks/long_texts.py                          time and memory, with the picture
    python benchmarks/long_texts.py --scores imdb --rows 160 --max-length 128
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from common import RESULTS, data_folder, encoder_folder, keep, quiet, real_texts
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.windows import encode_windows
from polyhead.train.commands.training import train
from transformers import AutoTokenizer

LENGTHS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
TASK = {"head": "sequence_classification", "labels": ["a", "b"], "long_texts": "windows"}
SETS = {  # columns and metric
    "imdb": ({"text": "text", "label": "sentiment"}, "accuracy"),
    "contract_nli": ({"text": "hypothesis", "text_pair": "text", "label": "label"}, "f1_macro"),
}


def measured(way: str, longest: int) -> None:
    """Print, for each length, seconds of CPU to read or to train on it, and MB of memory so far."""
    quiet()
    tokenizer: Any = AutoTokenizer.from_pretrained(encoder_folder(), model_max_length=512)
    model = PolyheadModel.from_encoder(encoder_folder(), {"topic": TaskConfig(**TASK)})
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu", compute="exact")
    pipe("a short text first")
    words = " ".join(real_texts(2000))
    words *= 1 + longest * 6 // len(words)
    ids = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
    for length in [n for n in LENGTHS if n <= longest]:
        text = tokenizer.decode(ids[:length])
        start = time.process_time()  # of this process alone: others may share the machine
        if way == "read":
            pipe(text)
        else:
            (windows,) = encode_windows(tokenizer, [text], [[]], 512)
            rows = [{"input_ids": window.input_ids} for window in windows]
            batch = tokenizer.pad(rows, return_tensors="pt")
            counts, labels = torch.tensor([len(windows)]), {"topic": torch.tensor([1])}
            model.train()(**batch, window_counts=counts, labels=labels).loss.backward()
        seconds = round(time.process_time() - start, 3)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        line = {"tokens": length, "seconds": seconds, "memory": round(memory, 1)}
        print(json.dumps(line), flush=True)


def curves(most: dict[str, int]) -> dict[str, list[dict[str, float]]]:
    """By way, what each length up to its longest took, shortest first, in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {}
    for way, longest in most.items():
        command = [sys.executable, __file__, "--one", str(longest), "--way", way]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[way] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        print(way, *found[way], sep="\n", flush=True)
    return found


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Time and memory against length, both axes in powers of ten."""
    import matplotlib.pyplot as plt

    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    names = {"read": "pipeline", "train": "forward and backward"}
    for way, points in found.items():
        tokens = [point["tokens"] for point in points]
        times.plot(tokens, [point["seconds"] for point in points], "o-", label=names[way])
        memory.plot(tokens, [point["memory"] for point in points], "o-", label=names[way])
    last = found["read"][-1]
    line = [last["seconds"] * n / last["tokens"] for n in LENGTHS]
    times.plot(LENGTHS, line, ":", color="grey", label="in proportion")
    for axes, what in ((times, "seconds of CPU"), (memory, "largest memory, MB")):
        axes.set(xscale="log", xlabel="tokens of the text", ylabel=what)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    times.set_yscale("log")
    memory.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)


def scores(
    name: str,
    *,
    rows: int,
    tests: int,
    length: int,
    seeds: list[int],
    epochs: float,
    frozen: bool,
) -> Any:
    """By reading, the score of each seed; rows are drawn by the seed, the same for both."""
    columns, metric = SETS[name]
    folder = data_folder() / name
    found: dict[str, list[float]] = {"first": [], "windows": []}
    seconds: dict[str, list[float]] = {"first": [], "windows": []}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as place:
            for split, count in (("train", rows), ("test", tests)):
                every: Any = datasets.load_dataset(
                    "parquet", data_files=str(folder / f"{split}.parquet"), split="train"
                )
                chosen = every.shuffle(seed=seed).select(range(min(count, len(every))))
                chosen.to_parquet(f"{place}/{split}.parquet")
            for reading in found:
                recipe = {
                    "encoder": encoder_folder(),
                    "max_length": length,
                    "tasks": {
                        "task": {
                            "head": "sequence_classification",
                            "data": {
                                "data_files": {
                                    split: f"{place}/{split}.parquet" for split in ("train", "test")
                                },
                                **columns,
                            },
                            "metrics": [metric],
                            "long_texts": reading,
                        }
                    },
                    "training": {
                        "num_train_epochs": epochs,
                        "learning_rate": 1e-2 if frozen else 1e-4,
                        "per_device_train_batch_size": 8,
                        "per_device_eval_batch_size": 8,
                        "seed": seed,
                        "disable_tqdm": True,
                        "save_strategy": "no",
                    },
                    "freeze": {"encoder": frozen},
                    "output_dir": f"{place}/{reading}",
                }
                path = Path(place) / f"{reading}.yaml"
                path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
                start = time.perf_counter()
                result = train(path)["tasks"]["task"][metric]
                found[reading].append(round(result, 4))
                seconds[reading].append(round(time.perf_counter() - start, 1))
                print(name, reading, seed, found[reading][-1], seconds[reading][-1], flush=True)
    summary = {
        reading: {
            "mean": round(statistics.mean(values), 4),
            "seeds": values,
            "seconds": seconds[reading],
        }
        for reading, values in found.items()
    }
    sizes = {"rows": rows, "test_rows": tests, "max_length": length, "epochs": epochs}
    return {"metric": metric, **sizes, "encoder trains": not frozen, **summary}


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=("read", "train"), default="read")
    parser.add_argument("--train-to", type=int, default=LENGTHS[-1], help="tokens, of training")
    parser.add_argument("--scores", choices=tuple(SETS))
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--test-rows", type=int, default=160)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--frozen", action="store_true", help="train the head alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.one is not None:
        measured(options.way, options.one)
        return
    quiet()
    if options.scores is not None:
        what = f"{options.scores}: the first window beside all"
        sizes = {"rows": options.rows, "tests": options.test_rows, "length": options.max_length}
        runs: dict[str, Any] = {"seeds": options.seeds, "epochs": options.epochs}
        runs["frozen"] = options.frozen
        table = scores(options.scores, **sizes, **runs)
        keep(f"long_texts_{options.scores}", what, {options.scores: table})
        return
    found = curves({"read": LENGTHS[-1], "train": options.train_to})
    draw(found, RESULTS / "long_texts.png")
    keep("long_texts", "time and memory against the length of a text", found)


if __name__ == "__main__":
    main()
