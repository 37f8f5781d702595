"""What a recipe decides after training: which task gets what, and what does not go together."""

from dataclasses import replace

from ...modeling.heads import HEADS
from ..kinds import kind_of
from .schema import Recipe, TaskRecipe
from .sections import Decide

PARTS = {  # of the section, and which tasks read it
    "calibrate": "tasks with probabilities of labels",
    "threshold": "tasks with several labels a row (problem_type: multi_label_classification)",
    "abstain": "tasks with one label a row, of entities, and those that choose",
}


OPTIONS = {"calibrate": "calibration", "threshold": "thresholds", "abstain": "abstain"}  # of heads


def can_decide(task: TaskRecipe) -> list[str]:
    """The parts that tasks of this kind, with this head, can take."""
    return [p for p in kind_of(task).decides if OPTIONS[p] in HEADS[task.head].options]


def wishes_of(decide: Decide | None) -> list[str]:
    """The parts that a section asks for."""
    return [] if decide is None else [part for part in PARTS if getattr(decide, part)]


def decisions_of(recipe: Recipe) -> dict[str, Decide]:
    """By task what is decided for it: its own section, else what of the recipe's it can."""
    decisions = {}
    for name, task in recipe.tasks.items():
        decide = task.decide or recipe.decide or Decide()
        options = {part: getattr(decide, part) for part in can_decide(task)}
        if any(options.values()):
            decisions[name] = Decide(**options)
    return decisions


def undecided(recipe: Recipe) -> Recipe:
    """The recipe, deciding nothing: for trials, which are scored on the same validation rows."""
    tasks = {name: replace(task, decide=None) for name, task in recipe.tasks.items()}
    return replace(recipe, tasks=tasks, decide=None)


def decide_faults(recipe: Recipe) -> list[str]:
    """Decisions that no task can take, or that another key takes already."""
    faults = []
    if recipe.decide is not None and not wishes_of(recipe.decide):
        faults.append(f"decide: asks for nothing; write {', '.join(PARTS)}, or take it out")
    of_all = [task for task in recipe.tasks.values() if task.decide is None]
    for part in wishes_of(recipe.decide):
        if not any(part in can_decide(task) for task in of_all):
            why = "none is here without a decide of its own"
            faults.append(f"decide.{part}: only for {PARTS[part]}; {why}, take it out")
    for name, task in recipe.tasks.items():
        faults += [f"tasks.{name}.{fault}" for fault in _task_faults(recipe, task)]
    return faults


def _task_faults(recipe: Recipe, task: TaskRecipe) -> list[str]:
    if task.decide is not None and recipe.decide is None and not wishes_of(task.decide):
        return [f"decide: asks for nothing; write {', '.join(PARTS)}, or take it out"]
    faults = [
        f"decide.{part}: only for {PARTS[part]}; take it out"
        for part in wishes_of(task.decide)
        if part not in can_decide(task)
    ]
    decide = task.decide or recipe.decide
    finds = decide is not None and decide.threshold and "threshold" in can_decide(task)
    if finds and task.threshold != 0.5:
        faults.append("threshold: decide finds one for each label; take one of them out")
    return faults
