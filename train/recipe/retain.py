"""Which rows `retain` reads, and what of a recipe it does not go with."""

from collections.abc import Mapping
from dataclasses import replace

from ...modeling.configuration_polyhead import TaskConfig
from ...modeling.heads import HEADS
from ..adapters import adapter_name
from ..kinds import kind_of
from .schema import Recipe, TaskRecipe
from .sections import Retain

Tasks = Mapping[str, TaskRecipe] | Mapping[str, TaskConfig]
NAME = "retain"  # of its loss in the log, beside those of the tasks


def retained_sources(retain: Retain, sources: dict[str, list[str]], tasks: Tasks) -> list[str]:
    """The sources whose texts keep their vectors.

    Args:
        retain: the recipe's options.
        sources: source name to its tasks.
        tasks: by name.
    """

    def is_read(task: TaskRecipe | TaskConfig) -> bool:
        per_token = HEADS[task.head].per_token and retain.rows == "sentences"
        return not (per_token or kind_of(task).labels_from_tokens or task.adapter)

    return [name for name, names in sources.items() if all(is_read(tasks[task]) for task in names)]


def row_faults(retain: Retain, sources: dict[str, list[str]], tasks: Tasks) -> list[str]:
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
    if not retained_sources(retain, sources, tasks):
        others = retained_sources(replace(retain, rows="all"), sources, tasks)
        more = "write rows: all, or " if others else ""
        faults.append(
            f"retain.rows: {retain.rows} has no rows here without adapter or masks; {more}"
            "take retain out"
        )
    return faults


def retain_faults(recipe: Recipe, sources: dict[str, list[str]]) -> list[str]:
    """What is wrong with `retain`, and with other keys of the recipe that it cannot do with.

    Args:
        recipe: the recipe.
        sources: source name to its tasks.
    """
    if recipe.retain is None:
        return []
    faults = row_faults(recipe.retain, sources, recipe.tasks)
    if recipe.freeze.encoder:
        faults.append("retain: without effect on an encoder that freeze.encoder keeps; take it out")
    faults += [
        f"training.{key}: does not go with retain; take one of them out"
        for key in ("fsdp", "deepspeed")
        if recipe.training.get(key)
    ]
    return faults
