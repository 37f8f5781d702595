"""From a model and a recipe to scores."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ...modeling.task_config import TaskConfig
from ..data.loading import Source, load_sources, unseen_labels
from ..data.tokenization import cut_notes
from ..errors import UserError
from ..evaluation.scoring import eval_splits, macro
from ..inference.exported import load_any
from ..recipe.reader import load_recipe
from ..reports.task_report import decisions_in
from ..trainer.rows import misfit
from ..trainer.trainer import MultiTaskTrainer

logger = logging.getLogger(__name__)


def evaluate(
    model_path: str | Path,
    recipe_path: str | Path,
    overrides: list[str] | None = None,
    *,
    split: str = "test",
) -> dict[str, Any]:
    """Score a saved or exported model on a recipe's data.

    Args:
        model_path: folder of the model.
        recipe_path: YAML file.
        overrides: `key=value`, as in `load_recipe`.
        split: train, validation or test.

    Returns:
        `{"tasks": {task: {metric: value}}, "macro": value}`; `decisions` by task beside them, where
        the model has some, see `decision_scores`.

    Raises:
        UserError: faults of the recipe or data, a task that the model lacks, no rows in `split`.
    """
    model, tokenizer = load_any(model_path)
    recipe = load_recipe(recipe_path, overrides, scored=model.config)
    sources = load_sources(recipe)
    if faults := _source_faults(sources, model.config.tasks, split):
        raise UserError(recipe.path, faults)
    for line in unseen_labels(sources, model.config.tasks, split):
        logger.warning(line)
    with tempfile.TemporaryDirectory() as folder:  # a Trainer makes its output_dir
        args = TrainingArguments(
            output_dir=folder,
            remove_unused_columns=False,
            per_device_eval_batch_size=recipe.training.get("per_device_eval_batch_size", 32),
            seed=recipe.training.get("seed", 42),
            dataloader_pin_memory=torch.accelerator.is_available(),
        )
        trainer = MultiTaskTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            sources={source.name: list(source.tasks) for source in sources},
        )
        parts = eval_splits(sources, split, tokenizer, model.config.tasks)
        for part in parts.values():
            configs = {name: model.config.tasks[name] for name in part.source.tasks}
            for line in cut_notes(part.rows, split, configs, tokenizer.model_max_length):
                logger.warning(line)
        reports: dict[str, Any] = {}
        decided = any(task.decided for task in model.config.tasks.values())
        scores, _ = trainer.evaluate_tasks(parts, split, reports=reports if decided else None)
    decisions = {"decisions": found} if (found := decisions_in(reports)) else {}
    return {"tasks": scores, "macro": macro(scores), **decisions}


def _source_faults(sources: list[Source], tasks: Mapping[str, TaskConfig], split: str) -> list[str]:
    """Tasks that the model lacks or has otherwise, and sources without rows in `split`."""
    faults = []
    for source in sources:
        for name, config in source.configs.items():
            task = tasks.get(name)
            if task is None:
                known = ", ".join(tasks)
                faults.append(f"tasks.{name}: the model has no such task; it has: {known}")
            elif fault := misfit(task, config):
                faults.append(f"tasks.{name}.{fault}")
        if split not in source.splits:
            faults.append(f"tasks.{source.name}.data: has no split {split}")
    return faults
