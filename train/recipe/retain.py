"""Which rows `retain` reads, and what of a recipe it does not go with."""

from collections.abc import Mapping

from ...modeling.task_config import TaskConfig
from ..adapters import adapter_name
from ..kinds import kind_of
from .schema import Recipe, TaskRecipe

Tasks = Mapping[str, TaskRecipe] | Mapping[str, TaskConfig]
NAME = "retain"  # of its loss in the log, beside those of the tasks


def retained_sources(sources: dict[str, list[str]], tasks: Tasks) -> list[str]:
    """The sources whose texts keep their vectors.

    Args:
        sources: source name to its tasks.
        tasks: by name.
    """

    def is_read(task: TaskRecipe | TaskConfig) -> bool:
        return not (kind_of(task).labels_from_tokens or task.adapter)

    return [name for name, names in sources.items() if all(is_read(tasks[task]) for task in names)]


def row_faults(sources: dict[str, list[str]], tasks: Tasks) -> list[str]:
    """Why there are no vectors to keep, or none to compare them with."""
    faults = []
    if NAME in tasks:
        faults.append(f"retain: loss_{NAME} would be that of task {NAME} too; rename the task")
    for name, names in sources.items():
        if len({adapter_name(task, tasks[task].adapter) for task in names}) > 1:
            faults.append(
                f"retain: the texts of {name} are read through several adapters; give its tasks "
                "one adapter, or take retain out"
            )
    if not retained_sources(sources, tasks):
        faults.append("retain: no rows here are without adapter or masks; take it out")
    return faults


def retain_faults(recipe: Recipe, sources: dict[str, list[str]]) -> list[str]:
    """What is wrong with `retain`, and with other keys of the recipe that it cannot do with.

    Args:
        recipe: the recipe.
        sources: source name to its tasks.
    """
    if recipe.retain is None:
        return []
    faults = row_faults(sources, recipe.tasks)
    if recipe.freeze.encoder:
        faults.append("retain: without effect on an encoder that freeze.encoder keeps; take it out")
    faults += [
        f"training.{key}: does not go with retain; take one of them out"
        for key in ("fsdp", "deepspeed")
        if recipe.training.get(key)
    ]
    return faults
