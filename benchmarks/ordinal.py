"""Labels in order beside plain classes: the stars of clothing_reviews, 1 to 5.

Each seed of the MiniLM encoder is trained twice, with `problem_type: ordinal` and without; both are
scored by the distance of their answers. Of the plain classes the middle of the distribution is
scored too: what decoding alone gives.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import data_folder, encoder_folder, keep, quiet

KINDS = {"classes": "single_label_classification", "ordinal": "ordinal"}


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=3000, help="of train")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    quiet()
    scores: dict[str, list[Any]] = {}
    for seed in range(options.seeds):
        for name, problem in KINDS.items():
            for how, values in scored(problem, options.rows, options.epochs, seed).items():
                scores.setdefault(f"{name}, {how}", []).append(values)
                print(seed, name, how, values, flush=True)
    what = f"stars on test, {options.rows} rows of train, {options.epochs} epochs, by seed"
    keep("ordinal", what, {"scores": scores})


def scored(problem: str, rows: int, epochs: int, seed: int) -> dict[str, dict[str, float]]:
    """Metrics on test of the likeliest class and of the one in the middle."""
    from polyhead.modeling.pipeline_polyhead import PolyheadPipeline
    from polyhead.modeling.problem_types import middle_class
    from polyhead.train.commands.fitting import fit
    from polyhead.train.commands.setup import prepare
    from polyhead.train.evaluation.metrics import METRICS
    from polyhead.train.recipe.reader import build_recipe

    folder = data_folder() / "clothing_reviews"
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}
    data = {"data_files": files, "text": "text", "label": "rating"}
    task = {"head": "sequence_classification", "problem_type": problem, "data": data}
    with tempfile.TemporaryDirectory() as runs:
        recipe = build_recipe(
            {
                "encoder": encoder_folder(),
                "tasks": {"stars": {**task, "max_rows": rows}},
                "training": {
                    "num_train_epochs": epochs,
                    "learning_rate": 1e-4,
                    "per_device_train_batch_size": 16,
                    "seed": seed,
                    "disable_tqdm": True,
                    "use_cpu": True,
                    "eval_strategy": "no",
                    "save_strategy": "no",
                },
                "output_dir": str(Path(runs) / "run"),
            },
            "ordinal",
        )
        run = prepare(recipe)
        trainer, _, _ = fit(run)
        model = trainer.model_for_tasks.eval()
    pipe = PolyheadPipeline(model=model, tokenizer=run.tokenizer, compute="exact")
    test = run.sources[0].splits["test"][:]
    labels = run.configs["stars"].labels or []
    answers: Any = pipe(test["text"], top_k=None)
    ranked = [{a["label"]: a["score"] for a in answer["stars"]} for answer in answers]
    chances = torch.tensor([[row[label] for label in labels] for row in ranked])
    scores: dict[str, dict[str, float]] = {}
    for how, ids in (("likeliest", chances.argmax(-1)), ("middle", middle_class(chances.log()))):
        sides = {"predictions": [labels[i] for i in ids.tolist()], "references": test["rating"]}
        scores[how] = {}
        for name in ("mae", "quadratic_kappa", "accuracy"):
            scores[how] |= METRICS[name]().compute(**sides)
    return scores


if __name__ == "__main__":
    main()
