"""What is wrong with the sections of a recipe: keys that do not go with what the others say."""

from ...modeling.heads import HEADS
from ...modeling.pooling import layers_needed
from ...modeling.task_config import mask_fault
from ..kinds import kind_of
from .schema import FinishedEncoder, Recipe
from .sections import Distill


def section_faults(recipe: Recipe) -> list[str]:
    """What is wrong with sections that need no more than the recipe's other keys."""
    faults = [*_average_faults(recipe), *_distill_faults(recipe), *_stopping_faults(recipe)]
    faults += _few_shot_faults(recipe)
    if mask := mask_fault(recipe.tasks):
        faults.append(f"tasks: {mask}")
    if recipe.compare is not None and len(recipe.tasks) < 2:
        faults.append("compare: the recipe has one task; take it out")
    return [*faults, *_experts_faults(recipe)]


def _experts_faults(recipe: Recipe) -> list[str]:
    """What does not go with experts, which read the encoder's last states."""
    if recipe.experts is None:
        return []
    faults = []
    if recipe.experts.kind == "mmoe" and recipe.experts.per_task is not None:
        faults.append("experts.per_task: belongs to cgc and ple, not to mmoe; take it out")
    named = {"pooling": recipe.pooling}
    named |= {f"tasks.{name}.pooling": task.pooling for name, task in recipe.tasks.items()}
    faults += [
        f"{key}: {pooling} reads layers of the encoder below the experts; write another"
        for key, pooling in named.items()
        if pooling is not None and layers_needed(pooling) > 1
    ]
    faults += [
        f"tasks.{name}.{option}: reads layers of the encoder below the experts; take it out"
        for name, task in recipe.tasks.items()
        for option in ("layer_mix", "layer")
        if getattr(task, option)
    ]
    if isinstance(recipe.encoder, FinishedEncoder) and recipe.encoder.keep_tasks:
        faults.append(
            "encoder.keep_tasks: these heads were trained without the experts; take one out"
        )
    return faults


def _average_faults(recipe: Recipe) -> list[str]:
    """Keys that leave `average` without effect, or whole weights out of its reach."""
    if recipe.average is None:
        return []
    faults = [
        f"training.{key}: does not go with average; take one of them out"
        for key in ("fsdp", "deepspeed")
        if recipe.training.get(key)
    ]
    if recipe.freeze.encoder:
        faults.append(
            "average: without effect on an encoder that freeze.encoder keeps; take it out"
        )
    return faults


def _distill_faults(recipe: Recipe) -> list[str]:
    """Teachers of no task, or of one that cannot learn from them."""
    if recipe.distill is None:
        return []
    faults = []
    for name in recipe.distill.teachers:
        if name not in recipe.tasks:
            known = ", ".join(recipe.tasks)
            faults.append(f"distill.teachers.{name}: no task of this name; tasks: {known}")
        elif not kind_of(recipe.tasks[name]).has_teachers:
            head = recipe.tasks[name].head
            faults.append(f"distill.teachers.{name}: {head} has no teachers; take it out")
        elif recipe.distill.rows == "own":
            task = recipe.tasks[name]
            weighing = {
                "class_weight": task.class_weight,
                "data.weight": task.data.weight,
                "data.soft_label": task.data.soft_label,
            }
            faults += [
                f"distill.teachers.{name}: all of its rows count alike for the teacher, not with "
                f"{key}; take one of them out"
                for key, value in weighing.items()
                if value is not None
            ]
    if recipe.distill.rows == "others":
        faults += _taught_elsewhere_faults(recipe, recipe.distill)
    faults += [
        f"training.{key}: does not go with distill; take one of them out"
        for key in ("fsdp", "deepspeed")
        if recipe.training.get(key)
    ]
    return faults


def _taught_elsewhere_faults(recipe: Recipe, distill: Distill) -> list[str]:
    """What does not go with teachers that tag the rows of other tasks."""
    faults = [
        f"distill.{key}: without effect beside rows: others, whose tags are labels; take it out"
        for key, usual in (("anneal", True), ("weight", 1.0))
        if getattr(distill, key) != usual
    ]
    for name in distill.teachers:
        task = recipe.tasks.get(name)
        if task is not None and not HEADS[task.head].decodes_spans:
            fault = f"rows: others is for tasks over tokens, {task.head} is none"
            faults.append(f"distill.teachers.{name}: {fault}; retain keeps what others knew")
        elif task is not None and task.adapter is not None:
            fault = "rows: others would send other tasks' rows through its adapter too"
            faults.append(f"distill.teachers.{name}: {fault}; take one of them out")
    if recipe.optimizer.by_task:
        faults.append("distill.rows: others does not go with optimizer.by_task; take one out")
    return faults


def _few_shot_faults(recipe: Recipe) -> list[str]:
    """Tasks without classes to make pairs of, and what cannot go before a training."""
    stages = {name: task.few_shot for name, task in recipe.tasks.items() if task.few_shot}
    if not stages:
        return []
    faults = []
    for name in stages:
        kind = kind_of(recipe.tasks[name])
        plain = kind.label_type == "class" and not (kind.tree or kind.ordered)
        if not plain or recipe.tasks[name].data.marks is not None:
            fault = "only for classification with one label for each text, in no order or tree"
            faults.append(f"tasks.{name}.few_shot: {fault}; take it out")
    if len({options.learning_rate for options in stages.values()}) > 1:
        fault = f"{' and '.join(stages)} train in one stage; write one learning_rate for all"
        faults.append(f"few_shot: {fault}")
    adapters = [name for name, task in recipe.tasks.items() if task.adapter is not None]
    if adapters:
        fault = f"the pairs train the encoder, {', '.join(adapters)} an adapter"
        faults.append(f"few_shot: {fault}; take one of them out")
    if isinstance(recipe.encoder, FinishedEncoder) and set(recipe.encoder.keep_tasks) - set(
        recipe.tasks
    ):
        fault = "the pairs would change the encoder of encoder.keep_tasks that have no rows here"
        faults.append(f"few_shot: {fault}; take one of them out")
    faults += [
        f"{key}: does not go with few_shot; take one of them out"
        for key in ("retain", "average", "experts")
        if getattr(recipe, key) is not None
    ]
    return faults + [
        f"training.{key}: does not go with few_shot; take one of them out"
        for key in ("fsdp", "deepspeed")
        if recipe.training.get(key)
    ]


def stages_on_model_faults(recipe: Recipe) -> list[str]:
    """Stages that would change the finished model that the tasks are added to."""
    return [
        f"tasks.{name}.few_shot: would train the encoder, which the model's tasks read; take it out"
        for name, task in recipe.tasks.items()
        if task.few_shot is not None
    ]


def _stopping_faults(recipe: Recipe) -> list[str]:
    """What `stopping` and `training` say against each other."""
    if recipe.stopping is None:
        return []
    faults, training = [], recipe.training
    if recipe.stopping.by == "macro":
        if training.get("load_best_model_at_end") is False:
            faults.append("stopping.by: macro needs training.load_best_model_at_end")
        if training.get("metric_for_best_model", "macro") != "macro":
            faults.append("stopping.by: macro, but training.metric_for_best_model is another")
    return faults
