"""Pairs of rows with and without the same label train the encoder first: `few_shot` of a task.

SetFit (arXiv:2209.11055): some rows of each class say little to a new head, but pairs of them are
many. A pair of one class is to have cosine 1, a pair of two classes 0, by squared error, on the
encoder that all tasks share; then the training goes on as the recipe says, most often of the heads
alone (`freeze.encoder`). A checkpoint comes after this stage: a resumed run leaves it out.
"""

import logging
import random
from collections import defaultdict
from copy import copy
from dataclasses import replace
from typing import Any

import datasets
import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.task_config import TaskConfig
from ..data.dataset import MultiTaskDataset
from ..errors import UserError
from ..recipe.sections import FewShot, MultiTaskArguments, Sampling
from ..trainer.trainer import MultiTaskTrainer
from .setup import PreparedRun

logger = logging.getLogger(__name__)
READ = ("input_ids", "token_type_ids", "window_counts")  # columns of a row that pairs join


def train_on_pairs(trainer: MultiTaskTrainer, run: PreparedRun) -> None:
    """Train the encoder of a run on pairs of rows of its tasks with `few_shot`, once through.

    Args:
        trainer: of the run, with its rows tokenized; its encoder is trained, nothing else in it.
        run: some of its tasks have `few_shot`.

    Raises:
        UserError: rows of one class only; weights are in shards.
    """
    recipe, stages = run.recipe, run.few_shot
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError(recipe.path, ["few_shot: does not go with FSDP or DeepSpeed; take it out"])
    dataset: Any = trainer.train_dataset
    pairs = {}
    for task, options in stages.items():
        source = next(name for name, tasks in trainer.sources.items() if task in tasks)
        rows = dataset.parts[source]
        pairs[task] = pairs_of(rows, task, options.pairs, run.args.seed)
        if pairs[task] is None:
            fault = f"tasks.{task}.few_shot: its training rows have one label; pairs need two"
            raise UserError(recipe.path, [fault])
        shared = [name for name in run.configs if name != task]
        note = f", which {', '.join(shared)} read too" if shared else ""
        count = f"{len(pairs[task]):,} pairs of {len(rows):,} rows"
        logger.info(f"few_shot: {task}: {count} train the encoder first{note}")
    trains = {weight: weight.requires_grad for weight in run.model.encoder.parameters()}
    if recipe.freeze.encoder:  # of the training that follows
        for weight in trains:
            weight.requires_grad_(weight.is_floating_point())
    stage = MultiTaskTrainer(
        model=_embedding_model(run, list(pairs)),
        args=_arguments(run.args, stages),
        processing_class=run.tokenizer,
        sources={task: [task] for task in pairs},
        train_dataset=MultiTaskDataset(pairs),
        multitask=MultiTaskArguments(
            sampling=Sampling(packing=recipe.sampling.packing),
            freeze=replace(recipe.freeze, encoder=False, heads=[], unfreeze=None),
            nan_loss=recipe.nan_loss,
        ),
    )
    stage.train()
    for weight, trained in trains.items():
        weight.grad = None
        weight.requires_grad_(trained)


def pairs_of(rows: datasets.Dataset, task: str, count: int, seed: int) -> datasets.Dataset | None:
    """Pairs of tokenized rows, with 1 for the same label and 0 for another.

    Each labelled row has `count` pairs with another row of its class, where there is one, and as
    many with rows of other classes, by chance.

    Args:
        rows: tokenized rows of the task's source.
        task: with one label for each text.
        count: pairs of each sort for a row.
        seed: of chance.

    Returns:
        None where all rows have one label.
    """
    columns = rows[:]
    labels, windows = columns[f"labels_{task}"], columns["window"]
    by_class: dict[int, list[int]] = defaultdict(list)
    for number, (label, window) in enumerate(zip(labels, windows, strict=True)):
        if label >= 0 and window == 0:
            by_class[label].append(number)
    labelled = [number for members in by_class.values() for number in members]
    if len(by_class) < 2:
        return None
    chance = random.Random(seed)
    pairs: list[tuple[int, int, float]] = []
    for label, members in sorted(by_class.items()):
        others = [number for number in labelled if labels[number] != label]
        for place, number in enumerate(members):
            for _ in range(count):
                if len(members) > 1:
                    same = members[(place + chance.randrange(1, len(members))) % len(members)]
                    pairs.append((number, same, 1.0))
                pairs.append((number, chance.choice(others), 0.0))
    joined: dict[str, list] = {
        key: [columns[key][one] + columns[key][other] for one, other, _ in pairs]
        for key in READ
        if key in columns
    }
    joined |= {"row": list(range(len(pairs))), "window": [0] * len(pairs)}
    return datasets.Dataset.from_dict({**joined, f"labels_{task}": [same for *_, same in pairs]})


def _embedding_model(run: PreparedRun, tasks: list[str]) -> PolyheadModel:
    """A model over the run's encoder whose tasks give the vectors that their heads read."""
    encoder, config = run.model.encoder, run.model.config
    with torch.device("meta"):  # the encoder made here is replaced at once
        model = PolyheadModel(
            PolyheadConfig(
                encoder_config=encoder.config, pooling=config.pooling, dtype=encoder.dtype
            )
        )
    model.encoder = encoder
    for name in tasks:
        task = run.configs[name]
        options: dict[str, Any] = {"pooling": task.pooling, "long_texts": task.long_texts}
        model.add_task(name, TaskConfig(head="embedding", loss="cosine_mse", **options))
    return model


def _arguments(args: TrainingArguments, stages: dict[str, FewShot]) -> TrainingArguments:
    """The arguments of a run for one pass over pairs, of which nothing is scored or saved."""
    args = copy(args)
    args.num_train_epochs, args.max_steps = 1, -1
    args.learning_rate = next(iter(stages.values())).learning_rate
    args.eval_strategy, args.eval_on_start = IntervalStrategy.NO, False
    args.save_strategy, args.load_best_model_at_end = SaveStrategy.NO, False
    args.report_to, args.push_to_hub, args.resume_from_checkpoint = [], False, None
    return args
