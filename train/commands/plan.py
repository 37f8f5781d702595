"""A recipe chosen by short trainings: learning rate, rows of a step, and who shares the encoder.

Each trial trains the recipe on the same share of every task's rows and is scored on validation:

1. jointly, at half, once and twice the recipe's learning rate, and on while the highest is best;
2. at the best rate, with half as many rows in a step, and with half as many rows in all;
3. each task alone, at the recipe's rate and at the best one, the better of which counts;
4. with an adapter of its own for each task that scores lower jointly, by more than 2 standard
   errors; what it does not help is a recipe of its own.

The share is as large as the minutes allow. What is chosen between trials is chosen on validation
rows, of one seed; the plan says how far these can tell.
"""

import gc
import logging
import math
import os
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..adapters import adapter_name
from ..artifacts import read_json, write_aside, write_json, write_text
from ..data.loading import Source
from ..errors import UserError
from ..evaluation.alone import alone, in_words, side_by_side
from ..evaluation.metrics import main_metric
from ..evaluation.scoring import macro
from ..outputs import unwritable
from ..recipe.schema import Recipe
from .setup import PreparedRun, prepare
from .training import fit

logger = logging.getLogger(__name__)
FOLDER = "plan"  # in output_dir
PLAN = "plan.json"
JOINT = 9.0  # joint trainings of the share that all trials may take, those of single tasks too
RATES = (0.5, 1.0, 2.0)
HIGHEST = 8.0  # times the recipe's rate
ADAPTER = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
ADAPTER_LR = 1e-3
SCORED = 1_000  # validation rows of a task, at most
FIRST = 20  # optimizer steps that the time of a step is taken from
FEWEST = 30  # optimizer steps of a trial
UNTRIED = ("average", "distill", "stopping", "compare")
NOT_SAVED = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": "none",
    "logging_strategy": "no",
}


@dataclass(frozen=True)
class Trial:
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

    @property
    def macro(self) -> float:
        """Mean of the tasks' main metrics; -inf where one of them is not defined."""
        value = macro(self.scores)
        return value if math.isfinite(value) else -math.inf

    @property
    def noise(self) -> float:
        """Standard error of `macro` over the scored rows; 0 where it is not known."""
        own = (side_by_side(row, row, self.rows[name], "") for name, row in self.scores.items())
        errors = [(row["standard_error"] or 0.0) / math.sqrt(2) for row in own]
        return math.hypot(*errors) / len(errors)

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        main = {name: row[main_metric(list(row))] for name, row in self.scores.items()}
        main = {name: value if math.isfinite(value) else None for name, value in main.items()}
        return {
            "trial": self.name,
            "learning_rate": self.learning_rate,
            "rows_per_step": self.rows_per_step,
            "share": round(self.share, 4),
            "tasks": main,
            "macro": self.macro if math.isfinite(self.macro) else None,
            "seconds": round(self.seconds, 1),
        }


@dataclass
class _Trials:
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
        scores = _scores_of(recipe, share)
        trial = Trial(
            name=name,
            learning_rate=_rate(recipe),
            rows_per_step=_rows_per_step(recipe),
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


def plan(
    path: str | Path,
    overrides: list[str] | None = None,
    *,
    minutes: float,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Choose rate, rows of a step and sharing of a recipe; write them as recipes.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        minutes: that the trials take together, about.
        overwrite: replace a plan that stands in `output_dir/plan`.

    Returns:
        JSON-ready, as in `output_dir/plan/plan.json`: `share` of the rows that a trial reads,
        `trials`, `learning_rate`, `rows_per_step`, `tasks` (each with the scores alone and jointly,
        with an adapter where that was tried, and `verdict`: share, adapter or apart), `sentences`,
        `recipes` that were written, `skipped` trials, `seconds`.

    Raises:
        UserError: faults of the recipe, its data or its encoder; a task without validation rows;
            minutes that are too few. Nothing has been written then.
    """
    if not minutes > 0 or not math.isfinite(minutes):
        raise UserError("plan", [f"--minutes: {minutes}; give a number above 0"])
    began = time.monotonic()
    run = prepare(path, overrides)
    folder = Path(run.recipe.output_dir) / FOLDER
    if faults := [*_faults(run), *_folder_faults(folder, overwrite=overwrite)]:
        raise UserError(run.recipe.path, faults)
    recipe = replace(run.recipe, **dict.fromkeys(UNTRIED))
    share = _affordable_share(replace(run, recipe=recipe), minutes)
    rows = {name: _rows_scored(run, name) for name in recipe.tasks}
    trials = _Trials(recipe, share, rows, began + 60 * minutes)
    result = _choose(trials)
    texts = _recipes(run.recipe, result)
    with write_aside(folder) as aside:
        for name, text in texts.items():
            write_text(aside / name, text)
        result |= {"folder": str(folder), "recipes": list(texts)}
        result |= {"seconds": round(time.monotonic() - began, 1)}
        write_json(aside / PLAN, result)
    return result


def _faults(run: PreparedRun) -> list[str]:
    """What keeps tasks from being compared by short trainings."""
    faults = []
    if len(run.recipe.tasks) < 2:
        faults.append(f"tasks: {', '.join(run.recipe.tasks)} alone; plan chooses for two or more")
    if run.args.world_size > 1:
        faults.append(f"plan runs in one process, not {run.args.world_size}; start it without them")
    if run.args.max_steps > 0:
        faults.append("training.max_steps: write num_train_epochs; trials read a share of the rows")
    if run.recipe.sampling.rows_per_epoch or run.recipe.sampling.batch_tokens:
        faults.append(
            "sampling: rows_per_epoch and batch_tokens set what plan chooses; take them out"
        )
    for source in run.sources:
        if "validation" not in source.splits:
            what = f"tasks.{source.name}.data: no validation rows; plan chooses by them"
            faults.append(f"{what}, as splits: {{train: 'train[:90%]', validation: 'train[90%:]'}}")
    return faults


def _folder_faults(folder: Path, *, overwrite: bool) -> list[str]:
    """What keeps a plan from being written: another, or files that are none of a plan's."""
    if not os.path.lexists(folder):
        reason = unwritable(folder)
        return [f"output_dir: {folder} cannot be written: {reason}"] if reason else []
    if not overwrite:
        return [f"output_dir: {folder} holds a plan; type --overwrite to replace it"]
    written = {PLAN, *read_json(folder / PLAN, {}).get("recipes", [])}
    others = sorted(path.name for path in folder.iterdir() if path.name not in written)
    return (
        [f"output_dir: {folder} holds {others[0]}, which is no plan's; move it"] if others else []
    )


# ---- a short training ----


def _scores_of(recipe: Recipe, share: float) -> dict[str, dict[str, Any]]:
    """Scores on validation after training on a share of the rows; nothing is left on disk."""
    training = {k: v for k, v in recipe.training.items() if k not in NOT_SAVED}
    for key in ("metric_for_best_model", "greater_is_better", "resume_from_checkpoint"):
        training.pop(key, None)
    training |= NOT_SAVED | {"num_train_epochs": max(1.0, share)}
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(recipe, output_dir=folder, training=training)
        run = prepare(recipe)
        sources = [_part_of(source, min(1.0, share), run.args.seed) for source in run.sources]
        _, scores, _ = fit(replace(run, sources=sources))
    gc.collect()  # a trainer and its parts name each other
    return scores["tasks"]


def _part_of(source: Source, share: float, seed: int) -> Source:
    """A share of a source's training rows, and some of its validation rows."""
    parts = {}
    for split, count in (("train", share * len(source.splits["train"])), ("validation", SCORED)):
        rows = source.splits[split]
        count = min(len(rows), max(1, round(count)))
        parts[split] = rows if count == len(rows) else rows.shuffle(seed=seed).select(range(count))
    return replace(source, splits=parts)


def _rows_scored(run: PreparedRun, task: str) -> int:
    return min(SCORED, run.rows_of(task)["validation"])


def _affordable_share(run: PreparedRun, minutes: float) -> float:
    """The share of the rows that a trial may read: epochs, where it is above 1.

    Raises:
        UserError: the minutes are too few for trials of `FEWEST` steps.
    """
    recipe, rows = run.recipe, sum(len(source.splits["train"]) for source in run.sources)
    step = _rows_per_step(recipe)
    few, more = (min(1.0, steps * step / rows) for steps in (2, FIRST))
    times = []
    for share in (few, few, more):  # the first pays for what is done once in a process
        began = time.perf_counter()
        _scores_of(recipe, share)
        times.append(time.perf_counter() - began)
    around = times[1]  # preparing and scoring
    by_row = max(times[2] - around, 1e-9) / max((more - few) * rows, 1.0)
    count = len(RATES) + 6  # the tasks alone score as many rows as one joint trial
    affordable = (60 * minutes - sum(times) - count * around) / (JOINT * by_row)
    epochs = _epochs(recipe)
    if affordable < FEWEST * step and affordable < epochs * rows:
        least = (FEWEST * step * JOINT * by_row + count * around + sum(times)) / 60
        raise UserError(
            "plan",
            [
                f"--minutes: {minutes:g} leave {max(0, int(affordable / step))} steps for a trial; "
                f"{FEWEST} need {math.ceil(least)} minutes"
            ],
        )
    return min(affordable / rows, epochs)


def _epochs(recipe: Recipe) -> float:
    return float(recipe.training.get("num_train_epochs", 3))


def _rate(recipe: Recipe) -> float:
    return float(recipe.training.get("learning_rate", 5e-5))


def _rows_per_step(recipe: Recipe) -> int:
    training = recipe.training
    rows = int(training.get("per_device_train_batch_size", 8))
    return rows * int(training.get("gradient_accumulation_steps", 1))


def _with(recipe: Recipe, **training: Any) -> Recipe:
    return replace(recipe, training=recipe.training | training)


def _at_rate(recipe: Recipe, times: float) -> Recipe:
    """The recipe at another learning rate; other rates that it names keep their ratio to it."""
    options, training = recipe.optimizer, {"learning_rate": _rate(recipe) * times}
    scaled = {
        key: value * times
        for key in ("head_lr", "adapter_lr")
        if (value := getattr(options, key)) is not None
    }
    tasks = {
        name: task
        if task.learning_rate is None
        else replace(task, learning_rate=task.learning_rate * times)
        for name, task in recipe.tasks.items()
    }
    return replace(_with(recipe, **training), optimizer=replace(options, **scaled), tasks=tasks)


# ---- the choices ----


def _choose(trials: _Trials) -> dict[str, Any]:
    best, rated = _best_rate(trials)
    rows = int(rated.training.get("per_device_train_batch_size", 8))
    smaller = _with(rated, per_device_train_batch_size=max(1, rows // 2))
    trial = trials.add("half the rows in a step", smaller) if rows > 1 else None
    if trial is not None and trial.macro > best.macro + best.noise:
        best, rated = trial, smaller
    less = trials.add("half the rows in all", rated, part=0.5)
    singles = _singles(trials, rated)
    tasks = {
        name: trials.against(single, best, name) | {"alone_at": single.learning_rate}
        for name, single in singles.items()
    }
    losers = [name for name, row in tasks.items() if _loses(row)]
    adapted = (
        trials.add(f"an adapter for {', '.join(losers)}", _adapted(rated, losers))
        if (any(rated.tasks[name].adapter is None for name in losers) and not rated.freeze.encoder)
        else None
    )
    for name, row in tasks.items():
        row["verdict"] = "apart" if name in losers else "share"
        if name in losers and adapted is not None:
            with_adapter = trials.against(singles[name], adapted, name)
            row["with_adapter"] = with_adapter["joint"]
            row["verdict"] = "apart" if _loses(with_adapter) else "adapter"
    return {
        "share": round(trials.share, 4),
        "learning_rate": best.learning_rate,
        "rows_per_step": best.rows_per_step,
        "rows_per_device": int(rated.training.get("per_device_train_batch_size", 8)),
        "trials": [trial.record() for trial in trials.done],
        "tasks": tasks,
        "sentences": _sentences(trials, best, less, tasks),
        "skipped": trials.skipped,
    }


def _best_rate(trials: _Trials) -> tuple[Trial, Recipe]:
    """The joint trial at the best rate, and its recipe; the recipe's own within the noise of it."""
    tried: list[tuple[Trial, Recipe]] = []

    def attempt(times: float, *, optional: bool) -> None:
        rated = _at_rate(trials.recipe, times)
        trial = trials.add(f"together, rate {_rate(rated):.3g}", rated, optional=optional)
        tried.extend([] if trial is None else [(trial, rated)])

    for times in RATES:
        attempt(times, optional=times != 1)
    usual = next(pair for pair in tried if _rate(pair[1]) == _rate(trials.recipe))
    times = RATES[-1]
    while times < HIGHEST and max(tried, key=_macro) is tried[-1] and not trials.skipped:
        times *= 2
        attempt(times, optional=True)
    best = max(tried, key=_macro)
    return best if best[0].macro > usual[0].macro + usual[0].noise else usual


def _macro(pair: tuple[Trial, Recipe]) -> float:
    return pair[0].macro


def _singles(trials: _Trials, rated: Recipe) -> dict[str, Trial]:
    """Each task alone, at the better of the recipe's rate and the joint run's."""
    singles = {}
    for name in trials.recipe.tasks:
        options = [rated] if _rate(rated) == _rate(trials.recipe) else [rated, trials.recipe]
        done = [
            trials.add(
                f"{name} alone, rate {_rate(option):.3g}",
                alone(option, name),
                optional=option is not rated,
            )
            for option in options
        ]
        singles[name] = max(filter(None, done), key=lambda trial: trial.macro)
    return singles


def _adapted(recipe: Recipe, names: list[str]) -> Recipe:
    """The recipe with an adapter for each of some tasks that has none."""
    tasks = {
        name: replace(task, adapter=dict(ADAPTER))
        if name in names and task.adapter is None
        else task
        for name, task in recipe.tasks.items()
    }
    options = recipe.optimizer
    if options.adapter_lr is None:
        options = replace(options, adapter_lr=ADAPTER_LR)
    return replace(recipe, tasks=tasks, optimizer=options)


def _loses(row: dict[str, Any]) -> bool:
    """Jointly it scores lower than alone, by more than 2 standard errors."""
    if row["gain"] is None:
        return row["single"] is not None  # jointly there is no score at all
    return row["gain"] < -2 * (row["standard_error"] or 0.0)


# ---- in words, and as recipes ----


def _sentences(
    trials: _Trials, best: Trial, less: Trial | None, tasks: dict[str, dict[str, Any]]
) -> list[str]:
    usual, epochs = _rate(trials.recipe), _epochs(trials.recipe)
    together = [trial for trial in trials.done if trial.name.startswith("together")]
    scores = ", ".join(f"{trial.macro:.4f} at {trial.learning_rate:.3g}" for trial in together)
    change = "the recipe's" if best.learning_rate == usual else f"not {usual:.3g}"
    lines = [
        f"learning_rate {best.learning_rate:.3g} ({change}), {best.rows_per_step} rows in a step: "
        f"macro {scores}; ± {best.noise:.4f} over the scored rows"
    ]
    if less is not None:
        gain = best.macro - less.macro
        text = f"half the rows cost {gain:.4f} of macro"
        if gain <= 2 * best.noise:
            text += ", no more than the scored rows can tell"
        elif trials.share < epochs:
            text += f"; the recipe's {epochs:g} epochs read {epochs / trials.share:.1f} times more"
        else:
            text += f"; more epochs than {epochs:g} are likely to help"
        lines.append(text)
    means = {
        "share": "it shares the encoder",
        "adapter": "an adapter of its own makes up for it",
        "apart": "a recipe of its own",
    }
    for name, row in tasks.items():
        extra = row.get("with_adapter")
        extra = "" if extra is None else f", with an adapter {extra:.4f}"
        lines.append(f"{name}: {means[row['verdict']]} ({in_words(row)}{extra})")
    lines.append(
        f"trials read {trials.share:.2g} of each task's rows, with one seed; `compare: single` in "
        "a recipe checks the whole"
    )
    if trials.skipped:
        lines.append(f"the time was over before: {'; '.join(trials.skipped)}")
    return lines


def _recipes(recipe: Recipe, result: dict[str, Any]) -> dict[str, str]:
    """Name of a file to the text of a recipe; what the trials left out is in it again."""
    tasks, usual = result["tasks"], _rate(recipe)
    rated = _at_rate(recipe, result["learning_rate"] / usual)
    rated = _with(rated, per_device_train_batch_size=result["rows_per_device"])
    adapted = [name for name, row in tasks.items() if row["verdict"] == "adapter"]
    if adapted:
        rated = _adapted(rated, adapted)
    apart = [name for name, row in tasks.items() if row["verdict"] == "apart"]
    together = [name for name in tasks if name not in apart]
    texts = {}
    if len(together) == 1:
        texts["recipe.yaml"] = alone(rated, together[0]).to_yaml()
    elif together:
        texts["recipe.yaml"] = _only(rated, together).to_yaml()
    for name in apart:
        single = alone(_at_rate(recipe, tasks[name]["alone_at"] / usual), name)
        folder = str(Path(recipe.output_dir) / "apart" / name)
        texts[f"{name}.yaml"] = replace(single, output_dir=folder).to_yaml()
    return texts


def _only(recipe: Recipe, names: list[str]) -> Recipe:
    """The recipe with some of its tasks; an adapter that one left out defines goes to the next."""
    tasks, sampling = {}, recipe.sampling
    sections = {
        adapter_name(name, task.adapter): task.adapter
        for name, task in recipe.tasks.items()
        if isinstance(task.adapter, dict)
    }
    defined = {
        adapter_name(name, recipe.tasks[name].adapter)
        for name in names
        if isinstance(recipe.tasks[name].adapter, dict)
    }
    for name in names:
        task = recipe.tasks[name]
        if isinstance(task.adapter, str) and task.adapter not in defined:
            defined.add(task.adapter)
            task = replace(task, adapter={**sections[task.adapter], "name": task.adapter})
        tasks[name] = task
    if sampling.weights is not None:
        sampling = replace(sampling, weights=_of(names, sampling.weights))
    if sampling.schedule is not None:
        points = [
            replace(point, weights=_of(names, point.weights))
            if isinstance(point.weights, dict)
            else point
            for point in sampling.schedule
        ]
        sampling = replace(sampling, schedule=points)
    heads = [name for name in recipe.freeze.heads if name in names]
    teachers = {} if recipe.distill is None else recipe.distill.teachers
    teachers = _of(names, teachers)
    distill = replace(recipe.distill, teachers=teachers) if recipe.distill and teachers else None
    freeze = replace(recipe.freeze, heads=heads)
    return replace(recipe, tasks=tasks, sampling=sampling, freeze=freeze, distill=distill)


def _of(names: list[str], values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}
