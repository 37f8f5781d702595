"""Eight heads on one encoder pass against eight fine-tuned models in transformers' pipelines.

Theirs: five AutoModelForSequenceClassification and three AutoModelForTokenClassification of one
MiniLM, each saved and loaded by a stock `pipeline`, called one after another on all texts: at the
default, text by text, and with `batch_size=32`. Ours: one Polyhead with the same eight heads,
weight for weight (BERT's pooler and classifier are pooling `cls` with a tanh layer), in
`PolyheadPipeline`. Tokenisation counts for both; first labels, scores and entities of 16 texts are
compared. Needs `POLYHEAD_DATA`.
"""

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from common import SEED, alternate, encoder_folder, keep, quiet, ratios, real_texts
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

CLASSES = [f"class {number}" for number in range(20)]
TAGS = ["O", "B-person", "B-place"]
SEQUENCE = [f"sequence{number}" for number in range(5)]
TOKEN = [f"token{number}" for number in range(3)]


def main() -> None:
    """Compare results, then time in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    quiet()
    torch.manual_seed(SEED)
    texts = real_texts(options.texts)
    with tempfile.TemporaryDirectory() as folder:
        pipes = stock(folder)
    ours = polyhead(pipes)
    compare(pipes, ours, texts[:16])
    runs: dict[str, Callable[[], object]] = {
        "pipelines, default": lambda: [pipe(texts) for pipe in pipes.values()],
        "pipelines, batch_size=32": lambda: [pipe(texts, batch_size=32) for pipe in pipes.values()],
        "Polyhead": lambda: ours(texts),
    }
    what = f"8 heads on {len(texts)} real texts against 8 models"
    table = ratios(what, "Polyhead", alternate(runs, options.repeats))
    keep("pipelines", what, {"engines": table})


def stock(folder: str) -> dict[str, Any]:
    """A pipeline for each task, each with a model of its own, saved and loaded."""
    pipes = {}
    for name in [*SEQUENCE, *TOKEN]:
        sequence = name in SEQUENCE
        labels = CLASSES if sequence else TAGS
        auto = AutoModelForSequenceClassification if sequence else AutoModelForTokenClassification
        model: Any = auto.from_pretrained(
            encoder_folder(),
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
        torch.nn.init.normal_(model.classifier.weight)  # fine-tuned: its answers differ by text
        if not sequence:
            model.classifier.bias.data[0] += 25  # most words are no entity
        model.save_pretrained(f"{folder}/{name}")
        AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(f"{folder}/{name}")
        kind = "text-classification" if sequence else "token-classification"
        grouped = {} if sequence else {"aggregation_strategy": "first"}
        pipes[name] = pipeline(kind, model=f"{folder}/{name}", device="cpu", **grouped)
    return pipes


def polyhead(pipes: dict[str, Any]) -> PolyheadPipeline:
    """One encoder with the heads of all these models."""
    tasks = {
        name: TaskConfig(
            head="sequence_classification", labels=CLASSES, pooling="cls", activation="tanh"
        )
        for name in SEQUENCE
    }
    tasks |= {name: TaskConfig(head="token_classification", labels=TAGS) for name in TOKEN}
    model = PolyheadModel.from_encoder(encoder_folder(), tasks)
    for name, pipe in pipes.items():
        head: Any = model.heads[name]
        head.out.load_state_dict(pipe.model.classifier.state_dict())
        if name in SEQUENCE:
            head.dense.load_state_dict(pipe.model.bert.pooler.dense.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")


def compare(pipes: dict[str, Any], ours: PolyheadPipeline, texts: list[str]) -> None:
    """Labels and entities are the same, scores within 1e-4."""
    answers: Any = ours(texts)
    entities = 0
    for name, pipe in pipes.items():
        for expected in (pipe(texts), pipe(texts, batch_size=32)):
            for text, one, other in zip(texts, expected, answers, strict=True):
                known = flat(one, text)
                assert known == flat(other[name], text), (name, text, one, other[name])
                entities += name in TOKEN and len(known)
                if name in SEQUENCE:
                    assert abs(one["score"] - other[name]["score"]) < 1e-4, (name, text)
    print(f"the same labels and entities ({entities // 2} of them) from both", flush=True)


def flat(answer: Any, text: str) -> Any:
    """A label, or the entities of a text."""
    if isinstance(answer, dict):
        return answer["label"]
    return [(e["entity_group"], text[e["start"] : e["end"]]) for e in answer]


if __name__ == "__main__":
    main()
