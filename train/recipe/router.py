"""The router of a recipe: a task whose labels are the others, and whose rows are their texts.

It is an ordinary multi-label task, so it has metrics, a report and a row in the card, and `decide`
finds its thresholds; `data/router_rows.py` makes its rows.
"""

from ...modeling.router import AUTO
from ..kinds import kind_of
from .data_config import ROUTER, ROUTER_LABELS, ROUTER_TEXT, DataConfig
from .schema import Recipe, TaskRecipe


def routed(recipe: Recipe) -> list[str]:
    """The tasks that texts can be for: they read one text, and are no language models."""
    names = []
    for name, task in recipe.tasks.items():
        kind = kind_of(task)
        try:
            config = task.task_config(task.labels or kind.stand_in_labels())
        except ValueError:  # told as a fault of the task
            continue
        if name != ROUTER and config.reads == "text" and not kind.labels_from_tokens:
            names.append(name)
    return names


def with_rows(recipe: Recipe) -> list[str]:
    """The tasks with rows of their own: all but a router."""
    return [name for name in recipe.tasks if not (recipe.router and name == ROUTER)]


def add_router(recipe: Recipe) -> list[str]:
    """Give a recipe with `router: true` that task; others stay as they are.

    Args:
        recipe: its tasks are changed.

    Returns:
        what keeps it from having one.
    """
    if not recipe.router:
        return []
    faults = [
        f"tasks.{name}: with router: true the name is taken; take another"
        for name in (ROUTER, AUTO)
        if name in recipe.tasks
    ]
    names = routed(recipe)
    if len(names) < 2:
        found = ", ".join(names) or "none"
        fault = f"router: finds tasks that read single texts, two or more; there is: {found}"
        faults.append(f"{fault}. Take it out")
    if not faults:
        task = TaskRecipe(
            head="sequence_classification",
            problem_type="multi_label_classification",
            labels=names,
            data=DataConfig(text=ROUTER_TEXT, label=ROUTER_LABELS),
        )
        recipe.tasks = dict(sorted({**recipe.tasks, ROUTER: task}.items()))
    return faults


def unrouted(recipe: Recipe, command: str) -> list[str]:
    """What to tell of a router where a command looks at the other tasks alone."""
    if not recipe.router:
        return []
    return [f"router: its rows are those of the other tasks, which {command}; type router=false"]
