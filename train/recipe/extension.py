"""A recipe that gives old tasks of a finished model new labels."""

from dataclasses import fields

from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.options import TaskOptions
from ...modeling.task_config import TaskConfig
from ..kinds import kind_of
from .schema import Recipe, TaskRecipe

OF_RECIPE = ("head", "labels", "problem_type", "loss_weight")  # options that it may name
HEADS = ("sequence_classification", "token_classification")


def extend_recipe(recipe: Recipe, config: PolyheadConfig) -> list[str]:
    """Give the tasks of a recipe the options that they have in a model, and their new labels.

    Args:
        recipe: its tasks are changed.
        config: of the model.

    Returns:
        faults.
    """
    faults = []
    if recipe.distill is not None:
        faults.append("distill: the teacher is the model itself; take it out")
    decides = {"decide": recipe.decide} | {
        f"tasks.{name}.decide": task.decide for name, task in recipe.tasks.items()
    }
    faults += [
        f"{key}: the rows mark new labels only, and tell nothing of the old ones; take it out"
        for key, decide in decides.items()
        if decide is not None
    ]
    for name, task in recipe.tasks.items():
        key, old = f"tasks.{name}", config.tasks.get(name)
        if old is None:
            known = ", ".join(config.task_names or [])
            faults.append(f"{key}: the model has no such task; it has: {known}")
        elif more := _misfits(task, old):
            faults += [f"{key}.{fault}" for fault in more]
        else:
            for option in fields(TaskOptions):
                if option.name not in OF_RECIPE:
                    setattr(task, option.name, getattr(old, option.name))
            task.problem_type = old.problem_type  # pyright: ignore[reportAttributeAccessIssue]
            task.labels = [*(old.labels or []), *new_labels(task, old)]
    return faults


def new_labels(task: TaskRecipe, old: TaskConfig) -> list[str]:
    """The labels of `data.marks` that a task has not yet; of entities their tags.

    Args:
        task: names what its rows mark.
        old: as the model has it.
    """
    marks = [str(label) for label in task.data.marks or []]
    if old.scheme is None:
        tags = marks
    else:
        parts = "BIES" if old.scheme == "bioes" else "BI"
        tags = [f"{part}-{kind}" for kind in marks for part in parts]
    return [tag for tag in tags if tag not in (old.labels or [])]


def _misfits(task: TaskRecipe, old: TaskConfig) -> list[str]:
    """Why a task cannot grow as the recipe says."""
    if task.head != old.head:
        return [f"head: {task.head}; the model's is {old.head}"]
    if task.head not in HEADS or kind_of(old).label_type not in ("class", "tags"):
        return ["head: only tasks with one label for each text or word grow"]
    faults = [
        f"{option.name}: it is the model's; take it out"
        for option in fields(TaskOptions)
        if option.name not in OF_RECIPE and getattr(task, option.name) != option.default
    ]
    if task.labels is not None:
        faults.append("labels: data.marks names the new ones; take it out")
    if task.problem_type not in (None, old.problem_type):
        faults.append(f"problem_type: the model's is {old.problem_type}; take it out")
    return faults + _data_faults(task, old) + _state_faults(task, old)


def _data_faults(task: TaskRecipe, old: TaskConfig) -> list[str]:
    """What of the data does not say which labels are new."""
    if task.data.more:
        return ["data: name one place of rows"]
    if not isinstance(task.data.marks, list):
        return ["data.marks: missing; list the labels that the rows mark, the new ones"]
    if not new_labels(task, old):
        return [f"data.marks: the model has {', '.join(map(str, task.data.marks))} already"]
    return []


def _state_faults(task: TaskRecipe, old: TaskConfig) -> list[str]:
    """What would change the states that old labels read, or their thresholds."""
    faults = []
    if task.adapter is not None and old.adapter is not None:
        faults.append(f"adapter: the task reads adapter {old.adapter}, which stays; take it out")
    if isinstance(task.adapter, str):
        faults.append("adapter: give its options, as {r: 8}; it is the task's alone")
    if old.strict:
        labels = ", ".join(old.strict)
        faults.append(f"{labels} came with thresholds of their own; extend the model before that")
    return faults
