"""A finished Polyhead as the start of another: encoder, an adapter merged, some of its tasks."""

import logging
from dataclasses import asdict, fields
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from ...modeling.causal import is_causal, make_causal
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.options import DECIDED
from ...modeling.task_config import TaskConfig
from ..adapters import merged_encoder
from ..data.loading import Source
from ..errors import UserError
from ..inference.load import load_model
from ..recipe.schema import FinishedEncoder, Recipe

logger = logging.getLogger(__name__)
# Compared apart, or not at all.
FOUND = (*DECIDED, "labels", "signs", "scheme", "adapter", "loss_weight")


def take_finished(
    recipe: Recipe, spec: FinishedEncoder, configs: dict[str, TaskConfig], sources: list[Source]
) -> tuple[PolyheadModel, Tokenizer]:
    """The encoder of a finished Polyhead with the recipe's tasks, some of them its own.

    Args:
        recipe: the recipe.
        spec: what of the model is wanted.
        configs: the recipe's tasks, with labels found in the data.
        sources: the rows; a task that goes on has its labels in the order of the model's.

    Raises:
        UserError: there is no such model, or what is kept of it does not go together.
    """
    model, tokenizer = load_model(spec.model)
    if faults := _faults(recipe, spec, model, configs):
        raise UserError(recipe.path, faults)
    if spec.merge is not None:
        model.encoder = merged_encoder(model, spec.merge)
        model.config.adapters = []
        for task in model.config.tasks.values():
            task.adapter = None
    _leave_tasks(model, spec)
    if not spec.keep_tasks:
        model.set_experts(experts_of(recipe), configs)
    _set_mask(model, causal=any(t.head_class.causal for t in configs.values()))
    model.config.pooling = recipe.pooling or model.config.pooling
    model.config.name_or_path = ""
    for name, task in configs.items():
        if name not in spec.keep_tasks:
            model.add_task(name, task)
    old = {name: model.config.tasks[name] for name in spec.keep_tasks}
    for source in sources:
        source.configs |= {name: task for name, task in old.items() if name in source.configs}
    for name, task in old.items():
        if name in configs:
            _undecide(name, task)
        else:
            _freeze(model, name)
    return model, tokenizer


def _leave_tasks(model: PolyheadModel, spec: FinishedEncoder) -> None:
    """Take out the tasks that are not kept, and with all of them the experts that they read."""
    if not spec.keep_tasks:
        model.experts, model.config.experts = None, None
    for name in set(model.task_names) - set(spec.keep_tasks):
        model.remove_task(name)


def experts_of(recipe: Recipe) -> dict[str, Any] | None:
    """What a recipe says of experts, as a model's config takes it."""
    return None if recipe.experts is None else asdict(recipe.experts)


def _set_mask(model: PolyheadModel, *, causal: bool) -> None:
    """The mask that the new tasks read with; the one before is noted."""
    model.config.trained_causal = is_causal(model.encoder.config)
    model.encoder.config.is_causal = causal  # pyright: ignore[reportAttributeAccessIssue]
    if causal:
        make_causal(model.encoder)


def _undecide(name: str, task: TaskConfig) -> None:
    """Leave out what was decided for the weights that a task goes on from."""
    decided = task.decided
    for option in decided:
        setattr(task, option, None)
    if decided:
        logger.info(f"{name}: it trains on, so its {', '.join(decided)} are dropped; see decide")


def _freeze(model: PolyheadModel, task: str) -> None:
    """Keep a task's head and adapter as they are."""
    model.heads[task].requires_grad_(requires_grad=False)
    adapter = model.config.tasks[task].adapter
    for key, parameter in model.encoder.named_parameters():
        if adapter is not None and adapter in key.split("."):
            parameter.requires_grad = False


def _faults(
    recipe: Recipe, spec: FinishedEncoder, model: PolyheadModel, configs: dict[str, TaskConfig]
) -> list[str]:
    """What does not go together, all of it."""
    faults, tasks = [], model.config.tasks
    known = model.config.adapters or []
    if spec.merge is not None and spec.merge not in known:
        there = ", ".join(known) or "none"
        faults.append(f"encoder.merge: {spec.model} has no adapter {spec.merge}; it has: {there}")
    if spec.keep_tasks and model.config.experts is not None:
        faults.append(
            f"encoder.keep_tasks: the heads of {spec.model} read its experts, which its other "
            "tasks read too; leave keep_tasks out, or add tasks to it by polyhead add-task"
        )
    for name in spec.keep_tasks:
        if name not in tasks:
            there = ", ".join(tasks) or "none"
            faults.append(f"encoder.keep_tasks: {spec.model} has no task {name}; it has: {there}")
            continue
        if spec.merge is not None and tasks[name].adapter != spec.merge:
            faults.append(
                f"encoder.keep_tasks: {name} does not go through adapter {spec.merge}, which is "
                "merged into the encoder that it reads; leave one of them out"
            )
        if name not in configs and not recipe.freeze.encoder:
            faults.append(
                f"encoder.keep_tasks: {name} has no rows here, and its head would read an encoder "
                "that has changed; give it rows under tasks, or write freeze: {encoder: true}"
            )
        if name in configs:
            faults += _changes(recipe, name, tasks[name], configs[name])
    old = {name: tasks[name] for name in spec.keep_tasks if name in tasks}
    pooled = [name for name, task in old.items() if task.pooling is None]
    if pooled and recipe.pooling not in (None, model.config.pooling):
        faults.append(
            f"pooling: {recipe.pooling}, but the head of {pooled[0]} was trained on "
            f"{model.config.pooling}; take it out"
        )
    return faults


def _changes(recipe: Recipe, name: str, old: TaskConfig, new: TaskConfig) -> list[str]:
    """Options of a task that goes on which are not those of its head."""
    key, faults = f"tasks.{name}", []
    if recipe.tasks[name].adapter is not None:
        faults.append(f"{key}.adapter: encoder.keep_tasks brings the model's along; take it out")
    missing = sorted(set(new.labels or []) - set(old.labels or []))
    if missing:
        faults.append(f"{key}: its head knows no label {', '.join(missing)}")
    for option in fields(TaskConfig):
        values: list[Any] = [getattr(task, option.name) for task in (old, new)]
        if option.name not in FOUND and values[0] != values[1]:
            faults.append(f"{key}.{option.name}: {values[1]!r}, but its head has {values[0]!r}")
    return faults
