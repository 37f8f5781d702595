"""Any recipe is refused in one message, or trains to its end and answers as it was scored.

Tasks, options and sections are drawn by chance, over rows of all lengths; what the parts do alone,
other tests hold. Of a finished run `evaluate` gives the scores again, a text's answer is the same
alone, in a batch and beside other tasks, and what is answered has the score.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CORPUS
from fuzzing import TIMES
from polyhead.modeling import PolyheadPipeline
from polyhead.train.commands import evaluate, train
from polyhead.train.errors import UserError
from polyhead.train.inference.load import load_model
from train_helpers import MULTI, SEQUENCE, TOKENS, files_of, write_recipe, write_rows

pytestmark = pytest.mark.fuzz

ENCODERS = ("bert", "modernbert", "distilbert", "roberta", "mpnet", "deberta-v2", "electra")
WORDS = sorted({word for text in CORPUS for word in text.split()})
ROWS = {"validation": 8, "test": 9}
CLOSE = 1e-4
Chance = random.Random


def text_of(chance: Chance, longest: int) -> str:
    """So many words at most; encoders of this tier read 64 tokens."""
    count = chance.choice([n for n in (1, 2, 3, 5, 8, 12, 60, 120) if n <= longest])
    return " ".join(chance.choices(WORDS, k=count))


def row(chance: Chance, longest: int) -> dict[str, Any]:
    """A row with every kind of label."""
    text = text_of(chance, longest)
    words = text.split()
    tags = [chance.choice(["O", "O", "O", "B-city", "B-name"]) for _ in words]
    for number in range(1, len(tags)):
        if tags[number - 1] != "O" and chance.random() < 0.3:
            tags[number] = f"I-{tags[number - 1][2:]}"
    return {
        "text": text,
        "other": text_of(chance, longest),
        "tokens": words,
        "tags": tags,
        "parts": [chance.choice("NV") for _ in words],
        "intent": chance.choice("abc"),
        "branch": chance.choice(["x/a", "x/b", "y/c"]),
        "stars": chance.choice("1234"),
        "topics": sorted(chance.sample("pqr", chance.randint(0, 3))),
        "number": round(4 * chance.random(), 2),
        "same": chance.choice(["yes", "no"]),
        "score": round(5 * chance.random(), 2),
        "negative": text_of(chance, 12),
        "choices": [text_of(chance, 12) for _ in range(3)],
        "answer": chance.randrange(3),
        "weight": round(0.2 + chance.random(), 2),
        "language": chance.choice(["en", "de"]),
    }


PAIR = {"text": "text", "text_pair": "other"}
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name: task, columns
    "single": ({"head": SEQUENCE}, {"text": "text", "label": "intent"}),
    "several": ({"head": SEQUENCE, "problem_type": MULTI}, {"text": "text", "label": "topics"}),
    "number": (
        {"head": SEQUENCE, "problem_type": "regression"},
        {"text": "text", "label": "number"},
    ),
    "stars": (
        {"head": SEQUENCE, "problem_type": "ordinal", "labels": list("1234")},
        {"text": "text", "label": "stars"},
    ),
    "branch": ({"head": SEQUENCE, "hierarchy": True}, {"text": "text", "label": "branch"}),
    "pair": ({"head": SEQUENCE}, {**PAIR, "label": "same"}),
    "tags": ({"head": TOKENS}, {"tokens": "tokens", "label": "tags"}),
    "parts": ({"head": TOKENS}, {"tokens": "tokens", "label": "parts"}),
    "choice": (
        {"head": "multiple_choice"},
        {"text": "text", "text_pair": "choices", "label": "answer"},
    ),
    "near": ({"head": "embedding"}, {**PAIR, "label": "score", "label_range": [0, 5]}),
    "close": ({"head": "embedding", "loss": "contrastive"}, PAIR),
    "apart": ({"head": "embedding", "loss": "triplet"}, {**PAIR, "negative": "negative"}),
    "words": ({"head": "masked_lm"}, {"text": "text"}),
    "next": ({"head": "causal_lm"}, {"text": "text"}),
}
OPTIONS: list[tuple[str, list[Any], str]] = [  # of a task, its values, tasks that may have it
    ("class_weight", ["balanced"], "single several tags"),
    ("focal", [2.0], "single several tags"),
    ("label_smoothing", [0.1], "single pair stars choice"),
    ("layers", [1, 2], "single several number pair tags parts"),
    ("layer_mix", [True], "single pair tags parts choice"),
    ("pooling", ["cls", "max", "mean_last_4", "last_token"], "single pair near choice"),
    ("long_texts", ["windows", "first"], "single several number stars branch pair near words"),
    ("window_pooling", ["max", "mean"], "single several pair"),
    ("loss", ["cosine_mse", "angle"], "near"),
    ("matryoshka", [[16, 8]], "near close"),
    ("prompts", [["to be:"], ["to be:", "or not:"]], "near close apart"),
    ("projection", [8], "near close apart"),
    ("blocks", [True], "words next"),
    ("whole_word", [True], "words"),
    ("adapter", [{"r": 2}, {"r": 2, "layers": "top 1"}, {"type": "ia3"}], " ".join(TASKS)),
    ("max_rows", [5], " ".join(TASKS)),
    ("data.weight", ["weight"], "single several number"),
    ("data.group_by", ["language"], "single pair number"),
]
SECTIONS: dict[str, list[Any]] = {
    "sampling": [
        {"batches": "pure"},
        {"packing": False},
        {"batches": "mixed", "strategy": "temperature"},
        {"strategy": "round_robin"},
        {"balance": "label"},
    ],
    "balancing": [{"method": name} for name in ("none", "uncertainty", "dwa", "gradnorm")],
    "retain": [{"weight": 1.0}],
    "average": [{"start": "auto"}, {"start": 0.3}],
    "decide": [{"calibrate": True}, {"calibrate": True, "abstain": {"precision": 0.5}}],
    "experts": [{"kind": kind, "experts": 2, "size": 16} for kind in ("mmoe", "cgc", "ple")],
    "freeze": [{"encoder": True}, {"layers": [0], "embeddings": True, "unfreeze": {"every": 0.2}}],
    "optimizer": [{"head_lr": 1e-2}, {"layer_decay": 0.9}, {"by_task": "moments"}],
    "train_scores": [4],
    "nan_loss": ["skip"],
    "compute": ["auto"],
}


def recipe_by(chance: Chance, folder: Path, encoder: Path) -> dict[str, Any]:
    """A recipe over files in the folder; not all that can be drawn goes together."""
    for name in ("one", "two"):
        longest = chance.choice([12, 120])
        for split, count in {"train": chance.choice([5, 14, 30]), **ROWS}.items():
            rows = [row(chance, longest) for _ in range(count)]
            write_rows(folder / f"{name}_{split}.jsonl", rows)
    names = chance.sample(sorted(TASKS.keys() - {"next"}), chance.choice([1, 2, 3, 4]))
    tasks = {}
    for name in ["next"] if chance.random() < 0.05 else names:
        task, columns = TASKS[name]
        task = {**task, "data": {"data_files": files_of(chance.choice(["one", "two"])), **columns}}
        for option, values, fits in OPTIONS:
            if name in fits.split() and chance.random() < 0.2:
                place = task["data"] if option.startswith("data.") else task
                place[option.removeprefix("data.")] = chance.choice(values)
        tasks[name] = task
    chosen = {k: chance.choice(values) for k, values in SECTIONS.items() if chance.random() < 0.12}
    training = {
        "max_steps": chance.choice([1, 3, 4]),
        "per_device_train_batch_size": chance.choice([2, 4, 8]),
        "gradient_accumulation_steps": chance.choice([1, 2]),
        "eval_strategy": chance.choice(["no", "steps"]),
        "eval_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    length = chance.choice([16, 32, 48])
    whole = {"encoder": str(encoder), "max_length": length, "tasks": tasks, "training": training}
    return {**whole, **chosen, "output_dir": str(folder / "out")}


def assert_same(one: Any, other: Any) -> None:
    """Equal answers, numbers within `CLOSE`."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, (float, np.ndarray)):
        np.testing.assert_allclose(one, other, atol=CLOSE, rtol=CLOSE)
    else:
        assert one == other


def answers_of(pipe: PolyheadPipeline, task: dict[str, Any], name: str, rows: list) -> list:
    """One for each row, the same in a batch, alone and beside the tasks that read such texts."""
    pair = "text_pair" in task["data"] and task["head"] != "embedding"
    texts = [(r["text"], r[task["data"]["text_pair"]]) if pair else r["text"] for r in rows]
    together: Any = [answer[name] for answer in pipe(texts, tasks=[name])]  # pyright: ignore
    alone: Any = [pipe([text], tasks=[name])[0][name] for text in texts]  # pyright: ignore
    beside: Any = [answer[name] for answer in pipe(texts)]  # pyright: ignore
    assert_same(together, alone)
    assert_same(together, beside)
    return together


def check_score(task: dict[str, Any], answers: list, rows: list, scores: dict[str, Any]) -> None:
    """The metric of the answers is the one that evaluation gave."""
    label = task["data"].get("label")
    if "mse" in scores:
        errors = [(a["score"] - r[label]) ** 2 for a, r in zip(answers, rows, strict=True)]
        assert np.mean(errors) == pytest.approx(scores["mse"], rel=1e-3, abs=1e-3)
    elif "accuracy" in scores and task["head"] == SEQUENCE and not task.get("hierarchy"):
        right = [a["label"] == r[label] for a, r in zip(answers, rows, strict=True)]
        assert np.mean(right) == pytest.approx(scores["accuracy"])


@pytest.mark.parametrize("seed", range(24 * TIMES))
def test_a_recipe_by_chance(seed, tmp_path, encoder_folder):
    chance = random.Random(seed)
    recipe = recipe_by(chance, tmp_path, encoder_folder(chance.choice(ENCODERS)))
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    try:
        train(path)
    except UserError as error:
        assert error.faults
        return
    scores = json.loads((tmp_path / "out/scores.json").read_text(encoding="utf-8"))["tasks"]
    again = evaluate(tmp_path / "out/model", path)["tasks"]
    assert scores.keys() == again.keys() == recipe["tasks"].keys()
    for name, values in scores.items():
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float))}
        assert numbers
        assert_same(numbers, {key: float(again[name][key]) for key in numbers})
    model, tokenizer = load_model(tmp_path / "out/model")
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, compute="exact")
    for name, task in recipe["tasks"].items():
        if task["head"] in (SEQUENCE, TOKENS, "embedding", "multiple_choice"):
            file = task["data"]["data_files"]["test"].replace("${RECIPE_DIR}", str(tmp_path))
            rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
            answers = answers_of(pipe, task, name, rows)
            if "decide" not in recipe:
                check_score(task, answers, rows, again[name])
