"""Peak memory of a contrastive step of 1,024 pairs: in one batch, and cached over 32 of 32 pairs.

GradCache (arXiv:2101.06983) embeds all micro-batches first and trains them one by one after: one
more forward pass, the memory of one micro-batch. Each side is a process of its own; captions of
`POLYHEAD_DATA`, 2 steps.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import yaml
from common import encoder_folder, keep, trainer_of

PAIRS = 1024
SIDES = {"one batch": (PAIRS, False), "cached": (32, True)}


def work(side: str) -> None:
    """Train two steps; print MiB and seconds."""
    from polyhead.train.preparation import prepare

    size, cached = SIDES[side]
    files = {"train": os.environ["POLYHEAD_DATA"] + "/multi30k_captions/train.parquet"}
    task = {"head": "embedding", "loss": "contrastive", "cached": cached, "max_rows": 2 * PAIRS}
    task["data"] = {"data_files": files, "text": "anchor", "text_pair": "positive"}
    training = {"per_device_train_batch_size": size, "max_steps": 2, "disable_tqdm": True}
    training |= {"gradient_accumulation_steps": PAIRS // size, "use_cpu": True}
    training |= {"save_strategy": "no", "logging_steps": 1}
    with tempfile.TemporaryDirectory() as folder:
        recipe = {"encoder": encoder_folder(), "tasks": {"captions": task}, "training": training}
        recipe |= {"output_dir": folder, "balancing": {"gradient_steps": 0}}
        path = f"{folder}/recipe.yaml"
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(recipe, file)
        trainer = trainer_of(prepare(path))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        trainer.train()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    found = {"MiB": round(peak / 1024), "seconds": round(seconds, 1), "losses": losses}
    print(json.dumps(found), flush=True)


def main() -> None:
    """Run each side in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=list(SIDES))
    side = parser.parse_args().side
    if side is not None:
        work(side)
        return
    found = {}
    for name in SIDES:
        command = [sys.executable, __file__, "--side", name]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(run.stdout.splitlines()[-1])
        print(f"{name}: {found[name]}", flush=True)
    keep("cached", f"two contrastive steps of {PAIRS} pairs: memory above the model's", found)


if __name__ == "__main__":
    main()
