"""Training tokens a second on real text of mixed length, beside plain HF Trainer.

One task, four classes (which source a text is from), MiniLM, fp32, AdamW, dropout on, 32 rows a
step, on one thread. Both train BERT's own classifier: in Polyhead that is pooling `cls` with a
tanh layer. Three sides:

    HF Trainer                    pads each batch to its longest text; the batches that ours draws
    HF Trainer, group_by_length   its documented way against padding; draws batches of its own
    Polyhead                      packs the same batches as the first

Each run is a fresh trainer: a step to warm up, then those that count, in turns; each turn has a
seed, and so batches, of its own. Real tokens count, padding does not. First, with dropout off, the
losses of each batch are compared. Needs `POLYHEAD_DATA`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from common import Clock, encoder_folder, keep, quiet, ratio_spread, real_rows, summary
from polyhead.train.batches.collator import model_inputs
from polyhead.train.commands.fitting import make_trainer
from polyhead.train.commands.setup import prepare
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

WARM_UP = 1  # steps
PEER, GROUPED, OURS = "HF Trainer", "HF Trainer, group_by_length", "Polyhead"
ARGUMENTS = {  # of all sides
    "learning_rate": 5e-5,
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "disable_tqdm": True,
}


def main() -> None:
    """Compare losses, then train in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2000, help="there are to draw from")
    parser.add_argument("--steps", type=int, default=2, help="that count in a run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compared", type=int, default=3, help="batches, in their losses")
    options = parser.parse_args()
    quiet()
    arguments = {**ARGUMENTS, "per_device_train_batch_size": 32, "use_cpu": True}
    arguments["max_steps"] = WARM_UP + options.steps
    rows = real_rows(options.rows)
    rates: dict[str, list[float]] = {PEER: [], GROUPED: [], OURS: []}
    padding: dict[str, list[float]] = {name: [] for name in rates}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.repeats):
            sides = sides_of(rows, encoder_folder(), folder, {**arguments, "seed": turn})
            if turn == 0:
                compare(sides[PEER], sides[OURS], options.compared)
            for name, trainer in sides.items():
                rate, padded, _ = train(trainer)
                rates[name].append(rate)
                padding[name].append(padded)
                print(f"turn {turn}, {name}: {rate:.0f} tokens a second", flush=True)
    what = f"training, {options.steps} steps of 32 real texts: tokens a second"
    keep("training", what, {"engines": table(rates, padding)})


def table(rates: dict[str, list[float]], padding: dict[str, list[float]]) -> dict[str, Any]:
    """Rates of each side, and how many times a peer's rate ours is."""
    results: dict[str, Any] = {}
    for name, values in rates.items():
        results[name] = {"tokens a second": summary(values)}
        results[name]["padding"] = round(statistics.mean(padding[name]), 3)
        ratio = statistics.median(rates[OURS]) / statistics.median(values)
        results[name] |= {
            "ratio": round(ratio, 3),
            "ratio spread": ratio_spread(rates[OURS], values),
        }
        print(f"{name}: {results[name]}", flush=True)
    return results


# ---- the trainers ----


class Counted:
    """A collator that counts the real tokens and the places of each batch it makes.

    Args:
        collate: the collator.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate
        self.tokens: list[int] = []
        self.places: list[int] = []
        self.lengths: list[list[int]] = []

    def __call__(self, rows: list[Any]) -> Any:
        """Collate and count."""
        batch = self.collate(rows)
        packed = "cu_seq_lens_q" in batch
        lengths = batch["cu_seq_lens_q"].diff() if packed else batch["attention_mask"].sum(1)
        self.lengths.append(lengths.tolist())
        self.tokens.append(int(lengths.sum()))
        self.places.append(batch["input_ids"].numel())
        return batch


class Replayed(Trainer):
    """HF's Trainer on batches that somebody else drew."""

    batches: list[list[int]]

    def get_train_dataloader(self) -> DataLoader:
        """These batches, collated as ever."""
        loader = DataLoader(
            self.train_dataset,  # pyright: ignore
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
        )
        return self.accelerator.prepare(loader)


def sides_of(
    rows: list[tuple[str, str]], encoder: str, folder: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """A fresh trainer of each side.

    Args:
        rows: text and class.
        encoder: folder of a BERT and its tokenizer.
        folder: for the recipe and its data.
        arguments: fields of TrainingArguments.
    """
    ours = polyhead(rows, encoder, folder, arguments)
    batches = [list(batch) for batch in ours.sampler]
    labels = ours.model.config.tasks["source"].labels
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    data = datasets.Dataset.from_dict(
        {
            **tokenizer([text for text, _ in rows], truncation=True, max_length=512),
            "label": [labels.index(name) for _, name in rows],
        }
    )
    sides = {}
    for name, kind, more in (
        (PEER, Replayed, {}),
        (GROUPED, Trainer, {"train_sampling_strategy": "group_by_length"}),
    ):
        sides[name] = kind(
            model=AutoModelForSequenceClassification.from_pretrained(
                encoder, num_labels=len(labels)
            ),
            args=TrainingArguments(output_dir=folder, **arguments, **more),
            train_dataset=data,
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
    sides[PEER].batches = batches
    return {**sides, OURS: ours}


def polyhead(
    rows: list[tuple[str, str]], encoder: str, folder: str, arguments: dict[str, Any]
) -> Any:
    """Our trainer of a recipe with one task."""
    datasets.Dataset.from_dict(
        {"text": [text for text, _ in rows], "label": [name for _, name in rows]}
    ).to_parquet(f"{folder}/rows.parquet")
    task = {"head": "sequence_classification", "pooling": "cls", "activation": "tanh"}
    task["data"] = {"data_files": {"train": f"{folder}/rows.parquet"}, "text": "text"}
    task["data"]["label"] = "label"
    recipe = {"encoder": encoder, "tasks": {"source": task}, "output_dir": folder}
    recipe |= {"max_length": 512, "training": arguments}
    path = Path(folder, "recipe.yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return make_trainer(prepare(path))


def train(trainer: Any, warm_up: int = WARM_UP) -> tuple[float, float, list[int]]:
    """Real tokens a second, the share of padding, and the lengths of all texts that count."""
    clock, counted = Clock(warm_up), Counted(trainer.data_collator)
    trainer.data_collator = counted
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    timed = slice(warm_up, trainer.args.max_steps)  # batches fetched ahead are not trained
    tokens, places = sum(counted.tokens[timed]), sum(counted.places[timed])
    lengths = [length for batch in counted.lengths[timed] for length in batch]
    return tokens / clock.seconds, 1 - tokens / places, lengths


def compare(theirs: Any, ours: Any, count: int) -> None:
    """With the same weights and dropout off the same batches have the same losses."""
    head: Any = ours.model.heads["source"]
    head.out.load_state_dict(theirs.model.classifier.state_dict())
    head.dense.load_state_dict(theirs.model.bert.pooler.dense.state_dict())
    theirs.model.eval()
    ours.model.eval()
    batches: Iterator[Any] = zip(
        theirs.get_train_dataloader(), ours.get_train_dataloader(), strict=True
    )
    for one, other in islice(batches, count):
        with torch.no_grad():
            expected = theirs.model(**one).loss
            loss = ours.model(**model_inputs(ours._prepare_inputs(other))).loss
        torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)
    print(f"the same losses within 1e-4, the last {float(expected):.5f}", flush=True)


if __name__ == "__main__":
    main()
