"""Short trainings of a recipe, scored on validation rows; nothing of them is left on disk."""

import gc
import logging
import math
import tempfile
import time
from dataclasses import dataclass, field, replace
from typing import Any

from ..data.loading import Source
from ..errors import UserError
from ..evaluation.alone import side_by_side
from ..evaluation.metrics import main_metric
from ..evaluation.scoring import macro
from ..recipe.decide import undecided
from ..recipe.parts import epochs_of, rate_of, rows_per_step
from ..recipe.schema import Recipe
from .fitting import fit
from .setup import PreparedRun, prepare

logger = logging.getLogger(__name__)
SCORED = 1_000  # validation rows of a task, at most
FIRST = 20  # optimizer steps that the time of a step is taken from
FEWEST = 30  # optimizer steps of a trial
NOT_SAVED = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": "none",
    "logging_strategy": "no",
}


class Scored:
    """What has scores on validation, and rows that were scored, by task."""

    scores: dict[str, dict[str, Any]]
    rows: dict[str, int]

    @property
    def macro(self) -> float:
        """Mean of the tasks' main metrics; -inf where one of them is not defined."""
        value = macro(self.scores)
        return value if math.isfinite(value) else -math.inf

    @property
    def noise(self) -> float:
        """Standard error of `macro` over the scored rows; 0 where it is not known."""
        return noise_of(self.scores, self.rows)

    def main_scores(self) -> dict[str, Any]:
        """JSON-ready: `tasks`, the main metric of each, and `macro`; None where not defined."""
        main = {name: row[main_metric(list(row))] for name, row in self.scores.items()}
        tasks = {name: value if math.isfinite(value) else None for name, value in main.items()}
        return {"tasks": tasks, "macro": self.macro if math.isfinite(self.macro) else None}


@dataclass(frozen=True)
class Trial(Scored):
    """A short training.

    Args:
        name: what is tried.
        learning_rate: of it.
        rows_per_step: of it.
        share: of each task's training rows, in one epoch; above 1, epochs.
        scores: task to its metrics on validation.
        rows: task to how many rows were scored.
        seconds: with preparation and scoring.
    """

    name: str
    learning_rate: float
    rows_per_step: int
    share: float
    scores: dict[str, dict[str, Any]]
    rows: dict[str, int]
    seconds: float

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "trial": self.name,
            "learning_rate": self.learning_rate,
            "rows_per_step": self.rows_per_step,
            "share": round(self.share, 4),
            **self.main_scores(),
            "seconds": round(self.seconds, 1),
        }


@dataclass
class Trials:
    """The trials of a recipe, until the time is over.

    Args:
        recipe: without what the trials leave out.
        share: of the rows.
        rows: task to how many of its validation rows are scored.
        deadline: by `time.monotonic`; what may be left out is not begun after it.
    """

    recipe: Recipe
    share: float
    rows: dict[str, int]
    deadline: float
    done: list[Trial] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(
        self, name: str, recipe: Recipe, *, part: float = 1.0, optional: bool = True
    ) -> Trial | None:
        """Train a recipe on a part of the share; None where the time is over."""
        if optional and time.monotonic() > self.deadline:
            self.skipped.append(name)
            return None
        began, share = time.perf_counter(), part * self.share
        scores = scores_of(recipe, share)
        trial = Trial(
            name=name,
            learning_rate=rate_of(recipe),
            rows_per_step=rows_per_step(recipe),
            share=share,
            scores=scores,
            rows={task: self.rows[task] for task in scores},
            seconds=time.perf_counter() - began,
        )
        self.done.append(trial)
        logger.info(f"{name}: macro {trial.macro:.4f}, {trial.seconds:.0f} s")
        return trial

    def against(self, single: Trial, joint: Trial, task: str) -> dict[str, Any]:
        """A task's scores alone and jointly."""
        both = single.scores[task], joint.scores[task]
        return side_by_side(*both, self.rows[task], "validation")


def noise_of(scores: dict[str, dict[str, Any]], rows: dict[str, int]) -> float:
    """Standard error of the macro score over the scored rows; 0 where it is not known."""
    same = (side_by_side(row, row, rows[name], "") for name, row in scores.items())
    errors = [(row["standard_error"] or 0.0) / math.sqrt(2) for row in same]
    return math.hypot(*errors) / len(errors)


def scores_of(recipe: Recipe, share: float) -> dict[str, dict[str, Any]]:
    """Scores on validation after training on a share of the rows; nothing is left on disk."""
    training = {k: v for k, v in recipe.training.items() if k not in NOT_SAVED}
    for key in ("metric_for_best_model", "greater_is_better", "resume_from_checkpoint"):
        training.pop(key, None)
    training |= NOT_SAVED | {"num_train_epochs": max(1.0, share)}
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(undecided(recipe), output_dir=folder, training=training)
        run = prepare(recipe)
        sources = [part_of(source, min(1.0, share), run.args.seed) for source in run.sources]
        _, scores, _ = fit(replace(run, sources=sources))
    gc.collect()  # a trainer and its parts name each other
    return scores["tasks"]


def part_of(source: Source, share: float, seed: int) -> Source:
    """A share of a source's training rows, and some of its validation rows."""
    parts = {}
    for split, count in (("train", share * len(source.splits["train"])), ("validation", SCORED)):
        rows = source.splits[split]
        count = min(len(rows), max(1, round(count)))
        parts[split] = rows if count == len(rows) else rows.shuffle(seed=seed).select(range(count))
    return replace(source, splits=parts)


def unscored_faults(sources: list[Source], what: str) -> list[str]:
    """Sources without validation rows, by which something is chosen: `what` says by whom."""
    return [
        f"tasks.{source.name}.data: no validation rows; {what} by them, as splits: "
        "{train: 'train[:90%]', validation: 'train[90%:]'}"
        for source in sources
        if "validation" not in source.splits
    ]


def rows_scored(run: PreparedRun, task: str) -> int:
    """How many validation rows of a task a trial is scored on."""
    return min(SCORED, run.rows_of(task)["validation"])


def affordable_share(run: PreparedRun, minutes: float, trials: int) -> float:
    """The share of the rows that a trial may read: epochs, where it is above 1.

    Args:
        run: the recipe, prepared.
        minutes: for all trials.
        trials: as many joint trainings as they are.

    Raises:
        UserError: the minutes are too few for trials of `FEWEST` steps.
    """
    recipe, rows = run.recipe, sum(len(source.splits["train"]) for source in run.sources)
    step = rows_per_step(recipe)
    few, more = (min(1.0, steps * step / rows) for steps in (2, FIRST))
    times = []
    for share in (few, few, more):  # the first pays for what is done once in a process
        began = time.perf_counter()
        scores_of(recipe, share)
        times.append(time.perf_counter() - began)
    around = times[1]  # preparing and scoring
    by_row = max(times[2] - around, 1e-9) / max((more - few) * rows, 1.0)
    affordable = (60 * minutes - sum(times) - trials * around) / (trials * by_row)
    epochs = epochs_of(recipe)
    if affordable < FEWEST * step and affordable < epochs * rows:
        least = (trials * (FEWEST * step * by_row + around) + sum(times)) / 60
        raise UserError(
            "plan",
            [
                f"--minutes: {minutes:g} leave {max(0, int(affordable / step))} steps for a trial; "
                f"{FEWEST} need {math.ceil(least)} minutes"
            ],
        )
    return min(affordable / rows, epochs)
