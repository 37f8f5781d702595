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

import math
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..artifacts import read_json, write_aside, write_json, write_text
from ..errors import UserError
from ..evaluation.alone import in_words
from ..outputs import unwritable
from ..recipe.parts import alone, at_rate, epochs_of, only, rate_of, with_training
from ..recipe.router import unrouted
from ..recipe.schema import Recipe
from .setup import PreparedRun, prepare
from .trials import Trial, Trials, affordable_share, rows_scored, unscored_faults

FOLDER = "plan"  # in output_dir
PLAN = "plan.json"
RATES = (0.5, 1.0, 2.0)
JOINT = len(RATES) + 6  # as much as all trials may be: the tasks alone make one joint training
HIGHEST = 8.0  # times the recipe's rate
ADAPTER = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
ADAPTER_LR = 1e-3
UNTRIED = ("average", "distill", "stopping", "compare")


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
    run = prepare(path, overrides, check=partial(unrouted, command="plan chooses for"))
    folder = Path(run.recipe.output_dir) / FOLDER
    if faults := [*_faults(run), *_folder_faults(folder, overwrite=overwrite)]:
        raise UserError(run.recipe.path, faults)
    recipe = replace(run.recipe, **dict.fromkeys(UNTRIED))
    share = affordable_share(replace(run, recipe=recipe), minutes, JOINT)
    rows = {name: rows_scored(run, name) for name in recipe.tasks}
    trials = Trials(recipe, share, rows, began + 60 * minutes)
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
    return faults + unscored_faults(run.sources, "plan chooses")


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


# ---- the choices ----


def _choose(trials: Trials) -> dict[str, Any]:
    best, rated = _best_rate(trials)
    rows = int(rated.training.get("per_device_train_batch_size", 8))
    smaller = with_training(rated, per_device_train_batch_size=max(1, rows // 2))
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


def _best_rate(trials: Trials) -> tuple[Trial, Recipe]:
    """The joint trial at the best rate, and its recipe; the recipe's own within the noise of it."""
    tried: list[tuple[Trial, Recipe]] = []

    def attempt(times: float, *, optional: bool) -> None:
        rated = at_rate(trials.recipe, times)
        trial = trials.add(f"together, rate {rate_of(rated):.3g}", rated, optional=optional)
        tried.extend([] if trial is None else [(trial, rated)])

    for times in RATES:
        attempt(times, optional=times != 1)
    usual = next(pair for pair in tried if rate_of(pair[1]) == rate_of(trials.recipe))
    times = RATES[-1]
    while times < HIGHEST and max(tried, key=_macro) is tried[-1] and not trials.skipped:
        times *= 2
        attempt(times, optional=True)
    best = max(tried, key=_macro)
    return best if best[0].macro > usual[0].macro + usual[0].noise else usual


def _macro(pair: tuple[Trial, Recipe]) -> float:
    return pair[0].macro


def _singles(trials: Trials, rated: Recipe) -> dict[str, Trial]:
    """Each task alone, at the better of the recipe's rate and the joint run's."""
    singles = {}
    for name in trials.recipe.tasks:
        options = [rated] if rate_of(rated) == rate_of(trials.recipe) else [rated, trials.recipe]
        done = [
            trials.add(
                f"{name} alone, rate {rate_of(option):.3g}",
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
    trials: Trials, best: Trial, less: Trial | None, tasks: dict[str, dict[str, Any]]
) -> list[str]:
    usual, epochs = rate_of(trials.recipe), epochs_of(trials.recipe)
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
    tasks, usual = result["tasks"], rate_of(recipe)
    rated = at_rate(recipe, result["learning_rate"] / usual)
    rated = with_training(rated, per_device_train_batch_size=result["rows_per_device"])
    adapted = [name for name, row in tasks.items() if row["verdict"] == "adapter"]
    if adapted:
        rated = _adapted(rated, adapted)
    apart = [name for name, row in tasks.items() if row["verdict"] == "apart"]
    together = [name for name in tasks if name not in apart]
    texts = {}
    if len(together) == 1:
        texts["recipe.yaml"] = alone(rated, together[0]).to_yaml()
    elif together:
        texts["recipe.yaml"] = only(rated, together).to_yaml()
    for name in apart:
        single = alone(at_rate(recipe, tasks[name]["alone_at"] / usual), name)
        folder = str(Path(recipe.output_dir) / "apart" / name)
        texts[f"{name}.yaml"] = replace(single, output_dir=folder).to_yaml()
    return texts
