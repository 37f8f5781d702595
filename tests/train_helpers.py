"""Small rows, recipes in YAML and calls of the command, for the tests of `polyhead.train`."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from polyhead.train.balancing.methods import OPTIONS
from polyhead.train.cli import app as cli
from polyhead.train.data.loading import Source, load_sources
from polyhead.train.evaluation.metrics import FOR_LABELS, LOWER_IS_BETTER
from polyhead.train.kinds import KINDS
from polyhead.train.recipe.code import TABLES
from polyhead.train.recipe.data_config import DataConfig
from polyhead.train.recipe.schema import Recipe, TaskRecipe

INTENTS = ["book", "cancel", "play"]
CITIES = ["Paris", "New York", "Berlin"]
SEQUENCE, TOKENS = "sequence_classification", "token_classification"
MULTI = "multi_label_classification"
QUIET = {  # training arguments of a run that nothing is watched or kept of
    "disable_tqdm": True,
    "eval_strategy": "no",
    "save_strategy": "no",
    "use_cpu": True,
}
SPLITS = {"train": 12, "validation": 4, "test": 5}


def messages(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows that carry every kind of label over one text."""
    rows = []
    for number in range(start, start + count):
        intent, city = INTENTS[number % 3], CITIES[number // 3 % 3]
        tokens = [intent, "the", "train", *["now"] * (number % 4), "to", *city.split(), "!"]
        tags = ["O"] * tokens.index("to") + ["O", "B-city", *["I-city"] * (" " in city), "O"]
        rows.append(
            {
                "text": " ".join(tokens[:-1]) + "!",
                "tokens": tokens,
                "tags": tags,
                "intent": intent,
                "topics": ["travel", "music"][: number % 3],
                "urgency": number % 5 / 4,
            }
        )
    return rows


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows of two texts, with whether and how much they say the same."""
    rows = []
    for number in range(start, start + count):
        one, other = INTENTS[number % 3], INTENTS[number % 2]
        same = ["no", "yes"][one == other]
        score = (number % 4) / 3
        rows.append({"text1": f"{one} it", "text2": f"{other} this", "same": same, "score": score})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One row a line, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_splits(folder: Path, name: str, make: Callable[..., list]) -> None:
    """Rows of three splits, different in each."""
    start = 0
    for split, count in SPLITS.items():
        write_rows(folder / f"{name}_{split}.jsonl", make(count, start))
        start += count


def files_of(name: str, *splits: str) -> dict[str, str]:
    """`data_files` of a recipe that lies beside the files of `write_splits`."""
    return {split: f"${{RECIPE_DIR}}/{name}_{split}.jsonl" for split in splits or SPLITS}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """The recipe as YAML, in the order given and without anchors."""
    path.write_text(yaml.dump(recipe, Dumper=_Dumper, sort_keys=False), encoding="utf-8")
    return path


def set_key(recipe: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        recipe = recipe.setdefault(parent, {})
    recipe[last] = value


def task(head: str, **options: Any) -> TaskRecipe:
    """One task of a recipe; options named as keys of `data` (`text=`, `label=`, ...) go there."""
    data = {key: options.pop(key) for key in list(options) if key in DataConfig.__annotations__}
    return TaskRecipe(head=head, data=DataConfig(**data), **options)  # pyright: ignore


def sources_of(**tasks: TaskRecipe) -> list[Source]:
    """The checked data of some tasks."""
    return load_sources(Recipe(encoder="-", tasks=tasks, output_dir="-"))


def run_cli(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def in_a_fork(function: Callable[[], Any]) -> int:
    """Run a function in a child process; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def message_of(stderr: str) -> list[str]:
    """The lines of a message, without the bars that `datasets` draws while it reads files."""
    return [line for line in re.sub(r"\r.*", "", stderr).splitlines() if line.strip()]


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory) -> Iterator[None]:
    """Datasets are cached for this session only, and not among the user's own."""
    usual = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = usual


def write_seven(folder: Path, tokenizer_of: Callable[[str], Any]) -> dict:
    """`recipe_of`, with its rows and its tokenizer in the folder."""
    write_splits(folder, "messages", messages)
    write_splits(folder, "pairs", pairs)
    tokenizer_of("wordpiece").save_pretrained(folder / "tokenizer")
    return recipe_of(folder / "tokenizer")


def recipe_of(tokenizer: Path) -> dict:
    """A random encoder and seven tasks, of every kind."""
    text = {"data_files": files_of("messages"), "text": "text"}
    pair = {"data_files": files_of("pairs"), "text": "text1", "text_pair": "text2"}
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}
    return {
        "encoder": {"config": config, "tokenizer": str(tokenizer)},
        "tasks": {
            "slots": {"head": TOKENS, "data": {**text, "tokens": "tokens", "label": "tags"}},
            "intent": {
                "head": SEQUENCE,
                "data": {**text, "label": "intent"},
                "metrics": ["mcc", "accuracy"],
            },
            "topics": {
                "head": SEQUENCE,
                "problem_type": MULTI,
                "data": {**text, "label": "topics"},
            },
            "urgency": {
                "head": SEQUENCE,
                "problem_type": "regression",
                "data": {**text, "label": "urgency"},
            },
            "words": {"head": "masked_lm", "data": text},
            "same": {"head": SEQUENCE, "data": {**pair, "label": "same"}},
            "near": {"head": "embedding", "data": {**pair, "label": "score"}},
        },
        "training": {
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
        },
        "output_dir": "${RECIPE_DIR}/out",
    }


@pytest.fixture
def tables() -> Iterator[None]:
    """What a test adds to the tables of the process, and the files that it imports, go again."""
    opened = [*TABLES.values(), KINDS]
    states = [*((t, dict(t)) for t in opened), *((t.sources, dict(t.sources)) for t in opened)]
    states += [(OPTIONS, dict(OPTIONS)), (FOR_LABELS, dict(FOR_LABELS))]
    lower = set(LOWER_IS_BETTER)
    yield
    for state, before in states:
        state.clear()
        state.update(before)
    LOWER_IS_BETTER.intersection_update(lower)
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]
