"""Labels in order beside plain classes: the stars of clothing_reviews, 1 to 5.

Each seed of the MiniLM encoder is trained twice, with `problem_type: ordinal` and without; both are
scored by the distance of their answers. Of the plain classes the middle of the distribution is
scored too: what decoding alone gives. `--frozen` trains the heads alone, on vectors of the encoder
as it is: minutes instead of hours.
"""

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import pyarrow.parquet
import torch
from common import encoder_folder, files_of, keep, prepared, quiet
from transformers import AutoTokenizer

DATA, TEXT, RATING = "clothing_reviews", "text", "rating"  # its columns
TESTED = 1000  # rows of test with --frozen
STARS = ["1", "2", "3", "4", "5"]
KINDS = {"classes": "single_label_classification", "ordinal": "ordinal"}


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=3000, help="of train")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frozen", action="store_true", help="train the heads alone")
    options = parser.parse_args()
    quiet()
    train = on_vectors(options.rows) if options.frozen else scored
    scores: dict[str, list[Any]] = {}
    for seed in range(options.seeds):
        for name, problem in KINDS.items():
            for how, values in train(problem, options.rows, options.epochs, seed).items():
                scores.setdefault(f"{name}, {how}", []).append(values)
                print(seed, name, how, values, flush=True)
    what = f"stars on test, {options.rows} rows of train, {options.epochs} epochs, by seed"
    keep("ordinal_frozen" if options.frozen else "ordinal", what, {"scores": scores})


def scored(problem: str, rows: int, epochs: int, seed: int) -> dict[str, dict[str, float]]:
    """Metrics on test of the likeliest class and of the one in the middle."""
    from polyhead.modeling.pipeline_polyhead import PolyheadPipeline
    from polyhead.train.commands.fitting import fit

    data = {"data_files": files_of(DATA), "text": TEXT, "label": RATING}
    task = {"head": "sequence_classification", "problem_type": problem, "data": data}
    with tempfile.TemporaryDirectory() as folder:
        tasks = {"stars": {**task, "max_rows": rows}}
        run = prepared(tasks, folder, seed=seed, epochs=epochs, batch=16)
        trainer, _, _ = fit(run)
        model = trainer.model_for_tasks.eval()
    pipe = PolyheadPipeline(model=model, tokenizer=run.tokenizer, compute="exact")
    test = run.sources[0].splits["test"][:]
    answers: Any = pipe(test["text"], top_k=None)
    ranked = [{a["label"]: a["score"] for a in answer["stars"]} for answer in answers]
    chances = torch.tensor([[row[star] for star in STARS] for row in ranked])
    return _both(chances.log(), test["rating"])


def on_vectors(rows: int) -> Callable[..., dict[str, dict[str, float]]]:
    """As `scored`, of a head alone; the encoder reads the first `rows` of train, once."""
    from polyhead.modeling import PolyheadModel, TaskConfig
    from polyhead.modeling.heads import HEADS
    from polyhead.modeling.pipeline_polyhead import PolyheadPipeline

    name = encoder_folder()
    vectors_of = TaskConfig(head="embedding", normalize=False)
    model = PolyheadModel.from_encoder(name, tasks={"near": vectors_of})
    tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=64)
    pipe: Any = PolyheadPipeline(model=model, tokenizer=tokenizer, compute="exact")
    inputs, stars = {}, {}
    for split, count in (("train", rows), ("test", TESTED)):
        table = pyarrow.parquet.read_table(files_of(DATA)[split]).slice(0, count).to_pydict()
        answers = [answer["near"] for answer in pipe(table[TEXT])]
        inputs[split] = torch.stack([torch.from_numpy(vector) for vector in answers])
        stars[split] = table[RATING]
    ids = torch.tensor([int(star) - 1 for star in stars["train"]])

    def trained(problem: str, rows: int, epochs: int, seed: int) -> dict[str, dict[str, float]]:
        torch.manual_seed(seed)
        task = TaskConfig(head="sequence_classification", labels=STARS, problem_type=problem)
        make = HEADS["sequence_classification"]
        head = make(task=task, encoder_config=model.encoder.config, pooling="mean")
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
        for _ in range(epochs):
            for part in torch.randperm(rows).split(64):
                optimizer.zero_grad()
                head.loss(head(inputs["train"][part]), ids[part]).backward()
                optimizer.step()
        with torch.no_grad():
            return _both(head.eval()(inputs["test"]), stars["test"])

    return trained


def _both(logits: torch.Tensor, true: list[str]) -> dict[str, dict[str, float]]:
    """Metrics of the likeliest class, and of the one in the middle."""
    from polyhead.modeling.problem_types import middle_class
    from polyhead.train.evaluation.metrics import METRICS

    scores: dict[str, dict[str, float]] = {}
    for how, ids in (("likeliest", logits.argmax(-1)), ("middle", middle_class(logits))):
        sides = {"predictions": [STARS[i] for i in ids.tolist()], "references": true}
        scores[how] = {}
        for name in ("mae", "quadratic_kappa", "accuracy"):
            scores[how] |= METRICS[name]().compute(**sides)
    return scores


if __name__ == "__main__":
    main()
