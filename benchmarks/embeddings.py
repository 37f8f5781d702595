"""Training sentence embeddings beside sentence-transformers' own trainer: STS-B Spearman and time.

The same encoder, losses, rows, batches and steps: stsb (CoSENT), entailed nli pairs and captions of
one image (in-batch contrastive), task-pure batches in proportion to rows, one pass. Two trainers
draw in their own order, so each is run with several seeds, in turns. Needs `POLYHEAD_DATA`.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import yaml
from common import encoder_folder, keep, trainer_of
from scipy.stats import spearmanr
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

DATA = Path(os.environ["POLYHEAD_DATA"])
TRAINING = {  # of both
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "learning_rate": 5.0e-5,
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "disable_tqdm": True,
    "save_strategy": "no",
    "use_cpu": True,
}
LENGTH = 128


def rows_of(count: int) -> dict[str, datasets.Dataset]:
    """Training rows by task: two texts, for sts a score from 0 to 1."""

    def read(name: str, split: str = "train") -> datasets.Dataset:
        file = str(DATA / name / f"{split}.parquet")
        return datasets.load_dataset("parquet", data_files=file, split="train")  # pyright: ignore

    sts = read("stsb").map(lambda row: {"score": row["score"] / 5})
    nli = read("nli").filter(lambda row: row["label"] == "entailment")
    nli = nli.rename_columns({"premise": "sentence1", "hypothesis": "sentence2"})
    captions = read("multi30k_captions")
    captions = captions.rename_columns({"anchor": "sentence1", "positive": "sentence2"})
    found = {
        "sts": sts.select_columns(["sentence1", "sentence2", "score"]),
        "nli": nli.select_columns(["sentence1", "sentence2"]),
        "captions": captions.select_columns(["sentence1", "sentence2"]),
    }
    return {name: rows.shuffle(seed=0).select(range(count)) for name, rows in found.items()}


def theirs(rows: dict[str, datasets.Dataset], seed: int, folder: str) -> tuple[Any, float]:
    """Train with sentence-transformers; the model and seconds of training."""
    encoder = Transformer(encoder_folder(), max_seq_length=LENGTH)
    pooling = Pooling(encoder.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[encoder, pooling, Normalize()], device="cpu")
    contrastive = losses.MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=folder,
            seed=seed,
            multi_dataset_batch_sampler="proportional",
            report_to="none",
            **TRAINING,
        ),
        train_dataset=datasets.DatasetDict(rows),
        loss={"sts": losses.CoSENTLoss(model), "nli": contrastive, "captions": contrastive},
    )
    start = time.perf_counter()
    trainer.train()
    return model, time.perf_counter() - start


def ours(rows: dict[str, datasets.Dataset], seed: int, folder: str) -> tuple[Any, float]:
    """Train with Polyhead; its folder as sentence-transformers loads it, and seconds."""
    from polyhead.train.hub import save_folder
    from polyhead.train.preparation import prepare

    tasks = {}
    for name, part in rows.items():
        file = f"{folder}/{name}.parquet"
        part.to_parquet(file)
        data = {"data_files": {"train": file}, "text": "sentence1", "text_pair": "sentence2"}
        tasks[name] = {"head": "embedding", "data": data, "loss": "contrastive"}
    tasks["sts"] |= {"loss": "cosent"}
    tasks["sts"]["data"] |= {"label": "score"}
    recipe = {
        "encoder": encoder_folder(),
        "tasks": tasks,
        "max_length": LENGTH,
        "sampling": {"batches": "pure"},
        "balancing": {"gradient_steps": 0},
        "training": {**TRAINING, "seed": seed},
        "output_dir": folder,
    }
    path = Path(folder, "recipe.yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    found = prepare(path)
    trainer = trainer_of(found)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    save_folder(found.model, found.tokenizer, f"{folder}/model")
    return SentenceTransformer(f"{folder}/model", trust_remote_code=True, device="cpu"), seconds


def score(model: SentenceTransformer, **options: Any) -> float:
    """Spearman of the cosines on STS-B test, in points."""
    file = str(DATA / "stsb/test.parquet")
    rows: Any = datasets.load_dataset("parquet", data_files=file, split="train")
    texts = [list(rows[name]) for name in ("sentence1", "sentence2")]
    one, two = (model.encode(part, batch_size=64, **options) for part in texts)
    return 100 * float(spearmanr((one * two).sum(1), rows["score"]).statistic)


def main() -> None:
    """Train both in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    rows = rows_of(options.rows)
    scores: dict[str, list[float]] = {"start": [score(SentenceTransformer(encoder_folder()))]}
    seconds: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name, run in {"sentence-transformers": theirs, "Polyhead": ours}.items():
            with tempfile.TemporaryDirectory() as folder:
                model, took = run(rows, seed, folder)
                task = {"task": "sts"} if name == "Polyhead" else {}
                scores.setdefault(name, []).append(round(score(model, **task), 2))
                seconds.setdefault(name, []).append(round(took, 1))
                print(f"seed {seed}, {name}: {scores[name][-1]:.2f}, {took:.0f} s", flush=True)
    means = {name: statistics.mean(values) for name, values in scores.items()}
    times = {name: statistics.mean(values) for name, values in seconds.items()}
    ratio = times["sentence-transformers"] / times["Polyhead"]
    print(f"{means}, {times}, {ratio:.2f} times as fast")
    what = f"sentence embeddings, 3 x {options.rows} rows, batches of 32: STS-B test Spearman"
    keep("embeddings", what, {"scores": scores, "seconds": seconds, "speed": round(ratio, 3)})


if __name__ == "__main__":
    main()
