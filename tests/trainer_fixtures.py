"""Trainers over tiny rows of every kind of task, for the tests of training."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from polyhead.modeling import TaskConfig
from polyhead.train.data.dataset import MultiTaskDataset
from polyhead.train.data.loading import Source
from polyhead.train.data.tokenization import tokenize
from polyhead.train.evaluation.scoring import EvalSplit, eval_splits
from polyhead.train.recipe.schema import TaskRecipe
from polyhead.train.recipe.sections import MultiTaskArguments, Sampling
from polyhead.train.trainer import MultiTaskTrainer
from train_helpers import files_of, messages, pairs, sources_of, task, write_splits
from transformers import TrainingArguments

SEQUENCE, TOKENS = "sequence_classification", "token_classification"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Callable[[str], dict[str, str]]:
    """Name of the rows -> `data_files` of their splits."""
    folder = tmp_path_factory.mktemp("data")
    write_splits(folder, "messages", messages)
    write_splits(folder, "pairs", pairs)
    return lambda name: {
        split: path.replace("${RECIPE_DIR}", str(folder)) for split, path in files_of(name).items()
    }


@pytest.fixture(scope="module")
def usual_tasks(data) -> dict[str, TaskRecipe]:
    """Four tasks over messages, two over pairs; dropout is off."""
    text = {"data_files": data("messages"), "text": "text", "dropout": 0.0}
    pair = {"data_files": data("pairs"), "text": "text1", "text_pair": "text2"}
    multi = {"problem_type": "multi_label_classification", "threshold": 0.4}
    return {
        "intent": task(SEQUENCE, label="intent", loss_weight=0.5, **text),
        "slots": task(TOKENS, tokens="tokens", label="tags", **text),
        "topics": task(SEQUENCE, label="topics", **multi, **text),
        "urgency": task(SEQUENCE, label="urgency", problem_type="regression", **text),
        "same": task(SEQUENCE, label="same", dropout=0.0, **pair),
        "near": task("embedding", label="score", loss="cosine_mse", **pair),
    }


@dataclass
class Rows:
    """Checked sources and their tokenized rows."""

    sources: list[Source]
    train: MultiTaskDataset
    validation: dict[str, EvalSplit]
    configs: dict[str, TaskConfig]


@pytest.fixture(scope="module")
def rows_of(usual_tasks, tokenizer_of) -> Callable[[dict[str, TaskRecipe] | None], Rows]:
    """Tasks -> their rows; None for the usual tasks, which are read once."""

    def read(chosen):
        tokenizer = tokenizer_of("wordpiece")
        sources = sources_of(**chosen)
        configs = {name: config for s in sources for name, config in s.configs.items()}
        configs = {name: configs[name] for name in sorted(configs)}
        train = {source.name: tokenize(source, "train", tokenizer) for source in sources}
        splits = eval_splits(sources, "validation", tokenizer, configs)
        return Rows(sources, MultiTaskDataset(train), splits, configs)

    usual = read(usual_tasks)
    return lambda chosen: usual if chosen is None else read(chosen)


@pytest.fixture
def build(rows_of, make_model, tokenizer_of, tmp_path) -> Callable[..., MultiTaskTrainer]:
    """(tasks or None for the usual, size of a batch, accumulation, ...) -> trainer, model new."""

    def make(
        chosen=None,
        *,
        size=12,
        accumulation=1,
        batches="mixed",
        packing=True,
        evaluates=False,
        dropout=0.0,
        output="out",
        multitask=None,
        experts=None,
        **arguments,
    ):
        rows = rows_of(chosen)
        torch.manual_seed(0)  # the same heads each time
        configs = {  # only heads that read it may have it
            name: replace(config, dropout=dropout) if config.head in (SEQUENCE, TOKENS) else config
            for name, config in rows.configs.items()
        }
        model = make_model("bert", configs, experts=experts)
        usual = {
            "optim": "sgd",
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "max_steps": 3,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        args = TrainingArguments(
            output_dir=str(tmp_path / output),
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            **{**usual, **arguments},
        )
        return MultiTaskTrainer(
            model=model,
            args=args,
            processing_class=tokenizer_of("wordpiece"),
            sources={source.name: list(source.tasks) for source in rows.sources},
            train_dataset=rows.train,
            eval_dataset=rows.validation if evaluates else None,
            multitask=multitask
            or MultiTaskArguments(sampling=Sampling(batches=batches, packing=packing)),
        )

    return make


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def logged(trainer, prefix: str) -> list[dict[str, float]]:
    """The entries of each log line that begin so."""
    lines = [{k: v for k, v in line.items() if k.startswith(prefix)} for line in history(trainer)]
    return [line for line in lines if line]


def history(trainer) -> list[dict[str, float]]:
    return trainer.state.log_history
