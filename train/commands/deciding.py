"""After training: what a recipe wishes to be decided is found on validation rows.

It costs one pass over them. First the temperature, as thresholds are of calibrated probabilities.
What is found is put into the model's config, which pipeline, exports and server read.
"""

import logging
from dataclasses import replace
from typing import Any

import torch

from ...modeling.task_config import TaskConfig
from ..evaluation.decisions import (
    NEVER,
    UNSURE,
    best_threshold,
    precise_threshold,
    temperature_of,
)
from ..evaluation.scoring import EvalSplit, as_tensor, eval_splits
from ..kinds import Answers, SplitRows, TaskKind
from ..recipe.decide import decisions_of
from ..recipe.sections import Decide, Precision
from ..trainer.trainer import MultiTaskTrainer
from .setup import PreparedRun

logger = logging.getLogger(__name__)


def decide(trainer: MultiTaskTrainer, run: PreparedRun) -> None:
    """Put the decisions of a recipe into the config of its trained model, and log them.

    Args:
        trainer: after training.
        run: what was trained; it is known that the tasks have labelled validation rows.
    """
    wishes = decisions_of(run.recipe)
    sources = [
        replace(source, tasks={n: task for n, task in source.tasks.items() if n in wishes})
        for source in run.sources
        if set(source.tasks) & set(wishes)
    ]
    parts = eval_splits(sources, "validation", run.tokenizer, run.configs)
    for name, part, values in trainer.evaluation.values(parts, "decide"):
        config = trainer.model_for_tasks.config.tasks[name]
        for line in _decide(config, part, name, as_tensor(values), wishes[name]):
            logger.info(f"decide: {name}: {line}")
        if "test" not in part.source.splits:
            logger.warning(
                f"decide: {name}: it has no test rows; what its decisions are worth is counted on "
                "the validation rows that they were made by, which flatters them"
            )


def _decide(
    config: TaskConfig, part: EvalSplit, name: str, values: torch.Tensor, wish: Decide
) -> list[str]:
    """Change the task's config as the recipe wishes.

    Args:
        config: of the task.
        part: its validation rows.
        name: of the task.
        values: one entry for each row, as evaluation gathers them, before any decision.
        wish: what to decide.

    Returns:
        what was decided, in words.
    """
    kind, rows = part.of_task(name, config)
    lines = []
    if wish.calibrate:
        config.calibration = temperature_of(*kind.truth(kind.answers(rows, values)))
        if config.calibration is None:
            lines.append(
                "no temperature is best on its validation rows, as where all answers are right; "
                "its probabilities stay as they are"
            )
        else:
            values = values / config.calibration
            lines.append(f"temperature {config.calibration:.4g}")
    if wish.threshold is not None:
        config.thresholds = _thresholds(kind, rows, values, wish.threshold)
        lines += _told(config.thresholds, wish.threshold)
    if wish.abstain is not None:
        scored = kind.scored(kind.answers(rows, values))
        config.abstain = precise_threshold(scored, wish.abstain.precision)
        kept = sum(score >= config.abstain for score, _ in scored)
        said = f"no answer below {config.abstain:.4g}: {kept:,} of {len(scored):,} are given"
        if config.abstain == NEVER:
            said = (
                f"a precision of {wish.abstain.precision:g} is reached nowhere on {len(scored):,} "
                "validation answers; it never answers"
            )
        lines.append(said)
    return lines


def _thresholds(
    kind: TaskKind, rows: SplitRows, values: torch.Tensor, wish: Any
) -> dict[str, float]:
    """By label, from which probability a multi-label task sets it."""
    answers: Answers = kind.answers(rows, values)
    logits, truth = kind.truth(answers)
    chances = kind.chances(logits)
    thresholds = {}
    for number, label in enumerate(kind.labels):
        right = truth[:, number].bool().tolist()
        scored = list(zip(chances[:, number].tolist(), right, strict=True))
        if isinstance(wish, Precision):
            thresholds[label] = precise_threshold(scored, wish.precision)
        else:
            thresholds[label] = best_threshold(scored, sum(right))
    return thresholds


def _told(thresholds: dict[str, float], wish: Any) -> list[str]:
    """Thresholds in words, and the labels that have none of their own."""
    known = [value for value in thresholds.values() if value not in (NEVER, UNSURE)]
    others = {
        value: ", ".join(label for label, other in thresholds.items() if other == value)
        for value in (NEVER, UNSURE)
    }
    lines = [f"thresholds {min(known):.3g} to {max(known):.3g}"] if known else []
    if others[NEVER]:
        precision = f"a precision of {wish.precision:g} is reached nowhere"
        lines.append(f"{others[NEVER]}: {precision}; never set")
    if others[UNSURE]:
        lines.append(f"{others[UNSURE]}: no validation row tells; set from {UNSURE} on")
    return lines
