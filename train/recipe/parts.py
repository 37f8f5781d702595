"""Recipes made of a recipe: of one of its tasks, of some, at another learning rate."""

from dataclasses import replace
from typing import Any

from ..adapters import adapter_name
from ..kinds import kind_of
from .data_config import ROUTER
from .schema import Recipe
from .sections import Balancing, Sampling

BEST_MODEL = ("metric_for_best_model", "greater_is_better")


def alone(recipe: Recipe, name: str) -> Recipe:
    """The recipe with one of its tasks; what mixes and weighs several is left out, experts too."""
    task, training = recipe.tasks[name], dict(recipe.training)
    if isinstance(task.adapter, str):  # the name of one that another task defines
        sections = {
            adapter_name(t, other.adapter): other.adapter
            for t, other in recipe.tasks.items()
            if isinstance(other.adapter, dict)
        }
        task = replace(task, adapter={**sections[task.adapter], "name": task.adapter})
    best = str(training.get("metric_for_best_model", "macro")).removeprefix("eval_")
    if best not in ("macro", "loss"):  # a metric of one task; macro is the main one of the task
        training = {k: v for k, v in training.items() if k not in BEST_MODEL}
    return replace(
        recipe,
        tasks={name: task},
        sampling=Sampling(
            packing=recipe.sampling.packing,
            order=recipe.sampling.order,
            balance=recipe.sampling.balance if kind_of(task).label_type == "class" else None,
        ),
        balancing=Balancing(),
        optimizer=replace(recipe.optimizer, by_task=False),
        retain=None,
        average=None,
        distill=None,
        compare=None,
        experts=None,
        router=False,
        freeze=replace(recipe.freeze, heads=[head for head in recipe.freeze.heads if head == name]),
        training=training,
    )


def only(recipe: Recipe, names: list[str]) -> Recipe:
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
    router = recipe.router and ROUTER in names
    return replace(
        recipe, tasks=tasks, sampling=sampling, freeze=freeze, distill=distill, router=router
    )


def _of(names: list[str], values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def epochs_of(recipe: Recipe) -> float:
    """Its epochs, or HF's default."""
    return float(recipe.training.get("num_train_epochs", 3))


def rate_of(recipe: Recipe) -> float:
    """Its learning rate, or HF's default."""
    return float(recipe.training.get("learning_rate", 5e-5))


def rows_per_step(recipe: Recipe) -> int:
    """Rows of an optimizer step of one process."""
    training = recipe.training
    rows = int(training.get("per_device_train_batch_size", 8))
    return rows * int(training.get("gradient_accumulation_steps", 1))


def with_training(recipe: Recipe, **training: Any) -> Recipe:
    """The recipe with other fields of `training`."""
    return replace(recipe, training=recipe.training | training)


def at_rate(recipe: Recipe, times: float) -> Recipe:
    """The recipe at another learning rate; other rates that it names keep their ratio to it."""
    options, training = recipe.optimizer, {"learning_rate": rate_of(recipe) * times}
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
    return replace(
        with_training(recipe, **training), optimizer=replace(options, **scaled), tasks=tasks
    )
