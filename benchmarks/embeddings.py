"""Training sentence embeddings beside sentence-transformers' own trainer: STS-B Spearman and time.

The same encoder, losses, rows, batches and steps: stsb (CoSENT), entailed nli pairs and captions of
one image (in-batch contrastive), task-pure batches in proportion to rows, one pass.
sentence-transformers replays the batches that our sampler draws, so that only dropout and the order
of sums differ; the first seed is run without dropout too. In turns. Needs `POLYHEAD_DATA`.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import yaml
from common import encoder_folder, keep
from scipy.stats import spearmanr
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
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
    tables = {
        "sts": sts.select_columns(["sentence1", "sentence2", "score"]),
        "nli": nli.select_columns(["sentence1", "sentence2"]),
        "captions": captions.select_columns(["sentence1", "sentence2"]),
    }
    return {name: rows.shuffle(seed=0).select(range(count)) for name, rows in tables.items()}


class Replay(MultiDatasetDefaultBatchSampler):
    """The batches given, as numbers over all data sets end to end."""

    batches: list[list[int]]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def theirs(
    rows: dict[str, datasets.Dataset], batches: list[list[int]], seed: int, start: str, folder: str
) -> tuple[Any, float]:
    """Train with sentence-transformers; the model and seconds of training."""
    encoder = Transformer(start, max_seq_length=LENGTH)
    pooling = Pooling(encoder.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[encoder, pooling, Normalize()], device="cpu")
    contrastive = losses.MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=folder,
            seed=seed,
            multi_dataset_batch_sampler=type("Drawn", (Replay,), {"batches": batches}),
            report_to="none",
            **TRAINING,
        ),
        train_dataset=datasets.DatasetDict(rows),
        loss={"sts": losses.CoSENTLoss(model), "nli": contrastive, "captions": contrastive},
    )
    begin = time.perf_counter()
    trainer.train()
    return model, time.perf_counter() - begin


def our_trainer(rows: dict[str, datasets.Dataset], seed: int, start: str, folder: str) -> Any:
    """Our trainer of the same rows."""
    from polyhead.train.commands.fitting import make_trainer
    from polyhead.train.commands.setup import prepare

    tasks = {}
    for name, part in rows.items():
        file = f"{folder}/{name}.parquet"
        part.to_parquet(file)
        data = {"data_files": {"train": file}, "text": "sentence1", "text_pair": "sentence2"}
        tasks[name] = {"head": "embedding", "data": data, "loss": "contrastive"}
    tasks["sts"] |= {"loss": "cosent"}
    tasks["sts"]["data"] |= {"label": "score"}
    recipe = {
        "encoder": start,
        "tasks": tasks,
        "max_length": LENGTH,
        "sampling": {"batches": "pure"},
        "balancing": {"gradient_steps": 0},
        "training": {**TRAINING, "seed": seed},
        "output_dir": folder,
    }
    path = Path(folder, "recipe.yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return make_trainer(prepare(path))


def ours(trainer: Any, folder: str) -> tuple[Any, float]:
    """Train with Polyhead; its folder as sentence-transformers loads it, and seconds."""
    from polyhead.train.hub import save_folder

    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    save_folder(trainer.model, trainer.processing_class, f"{folder}/model")
    return SentenceTransformer(f"{folder}/model", trust_remote_code=True, device="cpu"), seconds


def without_dropout(folder: str) -> str:
    """A copy of the encoder whose config drops nothing."""
    path = Path(shutil.copytree(encoder_folder(), f"{folder}/encoder")) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path.parent)


def score(model: SentenceTransformer, **options: Any) -> float:
    """Spearman of the cosines on STS-B test, in points."""
    file = str(DATA / "stsb/test.parquet")
    rows: Any = datasets.load_dataset("parquet", data_files=file, split="train")
    texts = [list(rows[name]) for name in ("sentence1", "sentence2")]
    one, two = (model.encode(part, batch_size=64, **options) for part in texts)
    return 100 * float(spearmanr((one * two).sum(1), rows["score"]).statistic)


def compare(
    rows: dict[str, datasets.Dataset], seed: int, *, dropout: bool
) -> dict[str, tuple[float, float]]:
    """(score, seconds) of both trainers on the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        start = encoder_folder() if dropout else without_dropout(folder)
        for name in ("theirs", "ours"):
            Path(folder, name).mkdir()
        trainer = our_trainer(rows, seed, start, f"{folder}/ours")
        batches = list(trainer.sampler)
        model, theirs_took = theirs(rows, batches, seed, start, f"{folder}/theirs")
        results = {"sentence-transformers": (score(model), theirs_took)}
        model, ours_took = ours(trainer, f"{folder}/ours")
        results["Polyhead"] = (score(model, task="sts"), ours_took)
    shown = (f"{name} {points:.2f}, {took:.0f} s" for name, (points, took) in results.items())
    print(f"seed {seed}, dropout {dropout}: {'; '.join(shown)}", flush=True)
    return results


def main() -> None:
    """Train both in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    rows = dict(sorted(rows_of(options.rows).items()))  # as our sampler counts them
    print(f"start: {score(SentenceTransformer(encoder_folder())):.2f}", flush=True)
    plain = compare(rows, options.seeds[0], dropout=False)
    runs = [compare(rows, seed, dropout=True) for seed in options.seeds]
    scores = {name: [round(run[name][0], 2) for run in runs] for name in plain}
    seconds = {name: [round(run[name][1], 1) for run in [plain, *runs]] for name in plain}
    exact = {name: round(points, 2) for name, (points, _) in plain.items()}
    means = {name: round(statistics.mean(values), 2) for name, values in scores.items()}
    ratio = sum(seconds["sentence-transformers"]) / sum(seconds["Polyhead"])
    print(f"without dropout {exact}; means {means}; {ratio:.2f} times as fast")
    what = f"sentence embeddings, 3 x {options.rows} rows, batches of 32: STS-B test Spearman"
    tables = {"seeds": options.seeds, "scores": scores, "without_dropout": exact}
    keep("embeddings", what, {**tables, "seconds": seconds, "speed": round(ratio, 3)})


if __name__ == "__main__":
    main()
