"""Peak memory of a contrastive step of 1,024 pairs: in one batch, and cached over 32 of 32 pairs.

GradCache (arXiv:2101.06983) embeds all micro-batches first and trains them one by one after: one
more forward pass, the memory of one micro-batch. Captions of `POLYHEAD_DATA`, MiniLM, one step in a
process of each side, dropout off so that both have one loss, which is compared; memory is counted
above what the process holds before the step. A step takes a minute, so there is one of each.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml
from common import data_folder, encoder_folder, keep, quiet
from torch import nn
from transformers import PrinterCallback

MICRO = 32  # pairs of a micro-batch
PEER, OURS = "one batch", "cached"


def main() -> None:
    """Run each side in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--side", choices=[PEER, OURS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        work(options.side, options.pairs)
        return
    data_folder()
    results = {}
    for name in (PEER, OURS):
        command = [sys.executable, __file__, "--side", name, "--pairs", str(options.pairs)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = json.loads(run.stdout.splitlines()[-1])
        print(f"{name}: {results[name]}", flush=True)
    losses = [side["loss"] for side in results.values()]
    assert abs(losses[0] - losses[1]) < 1e-4, f"losses differ: {losses}"
    ratio = round(results[PEER]["MiB"] / results[OURS]["MiB"], 2)
    print(f"{PEER} / {OURS}: {ratio} times the memory")
    what = f"a contrastive step of {options.pairs} pairs: memory above the model's"
    keep("cached", what, {"sides": results, "ratio": ratio})


def work(side: str, pairs: int) -> None:
    """Train a step; print MiB, seconds and the loss."""
    from polyhead.train.commands.fitting import make_trainer
    from polyhead.train.commands.setup import prepare

    quiet()
    size = pairs if side == PEER else MICRO
    files = {"train": f"{data_folder()}/multi30k_captions/train.parquet"}
    task = {"head": "embedding", "loss": "contrastive", "cached": side == OURS, "max_rows": pairs}
    task["data"] = {"data_files": files, "text": "anchor", "text_pair": "positive"}
    training = {"per_device_train_batch_size": size, "max_steps": 1, "disable_tqdm": True}
    training |= {"gradient_accumulation_steps": pairs // size, "use_cpu": True}
    training |= {"save_strategy": "no", "logging_steps": 1, "report_to": "none"}
    with tempfile.TemporaryDirectory() as folder:
        recipe = {"encoder": encoder_folder(), "tasks": {"captions": task}, "training": training}
        recipe |= {"output_dir": folder, "balancing": {"gradient_steps": 0}}
        path = Path(folder, "recipe.yaml")
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        trainer = make_trainer(prepare(path))
        trainer.remove_callback(PrinterCallback)
        for module in trainer.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        before = psutil.Process().memory_info().rss / 2**20
        start = time.perf_counter()
        trainer.train()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    loss = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    print(json.dumps({"MiB": round(peak), "seconds": round(seconds, 1), "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
