"""What pretraining gives: heads on a base trained by masks, by next tokens, and on none.

The recipes are configs/pretrain_mlm.yaml, pretrain_next_token.yaml and heads_on_base.yaml; the
encoder without pretraining has the same sizes and the same tokenizer. All are fine-tuned alike, on
2,000 rows of each task. `--steps` is the length of the pretraining; the recipes have 1,500.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import ROOT, data_folder, keep, quiet
from polyhead.train.commands import train

SEEDS = (0, 1)
BASES = {"masks": "pretrain_mlm", "next tokens": "pretrain_next_token"}
FEW = ["tasks.intent.max_rows=2000", "tasks.entities.max_rows=2000", "training.num_train_epochs=5"]
QUIET = ["training.report_to=none", "training.disable_tqdm=true", "training.save_strategy=no"]


def scores_of(recipe: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """Train a recipe into a folder; its scores and its time in seconds."""
    start = time.perf_counter()
    path = ROOT / f"configs/{recipe}.yaml"
    train(path, [f"output_dir={folder}", *QUIET, *overrides], overwrite=True)
    tasks = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["tasks"]
    kept = {
        f"{task} {metric}": round(value, 4)
        for task, values in tasks.items()
        for metric, value in values.items()
        if isinstance(value, float)
    }
    return {**kept, "seconds": round(time.perf_counter() - start)}


def main() -> None:
    """Two bases, then two seeds of fine-tuning on each and on none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    quiet()
    data_folder()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pretraining = {}
        for base, recipe in BASES.items():
            pretraining[base] = scores_of(recipe, folder / base, f"training.max_steps={steps}")
            print(f"pretraining by {base}: {pretraining[base]}", flush=True)
        recipe = yaml.safe_load((ROOT / "configs/pretrain_mlm.yaml").read_text(encoding="utf-8"))
        tokenizer = str(folder / "masks/model")
        encoders = {base: json.dumps(str(folder / base / "model")) for base in BASES}
        encoders["none"] = json.dumps({**recipe["encoder"], "tokenizer": tokenizer})
        heads: dict[str, list[Any]] = {base: [] for base in encoders}
        for seed in SEEDS:
            for base, encoder in encoders.items():
                options = [f"encoder={encoder}", f"training.seed={seed}", "max_length=128", *FEW]
                heads[base].append(scores_of("heads_on_base", folder / "heads", *options))
                print(f"heads on {base}, seed {seed}: {heads[base][-1]}", flush=True)
    tables = {"pretraining": pretraining, "heads": heads, "seeds": SEEDS, "steps": steps}
    keep("pretraining", "heads on a pretrained base", tables)


if __name__ == "__main__":
    main()
