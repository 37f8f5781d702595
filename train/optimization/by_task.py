"""What goes with `optimizer.by_task` and `tasks.x.learning_rate`, and the rates that follow."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from ...modeling.modeling_polyhead import PolyheadModel
from ..recipe.schema import Recipe
from ..recipe.sections import Freeze, MultiTaskArguments
from .freezing import schedule_of, trained_weights
from .model_parts import Part, model_parts, own_adapters
from .source_gradients import SourceGradients, readers_of, sparse_table

OPTIMS = ("adamw_torch", "adamw_torch_fused")
# Of balancing: equal_norms weighs tasks over the same rows, and all against what is retained.
METHODS = (None, "none", "equal_norms")
# Fields of TrainingArguments that do not go with it, and why.
UNFIT = {
    "fp16": "optimizer.by_task does not scale gradients; write bf16: true instead",
    "fsdp": "optimizer.by_task needs whole gradients; take it out",
    "deepspeed": "optimizer.by_task needs whole gradients; take it out",
    "torch_compile": "optimizer.by_task has passes of all sizes; take it out",
    "torch_compile_backend": "optimizer.by_task has passes of all sizes; take it out",
    "torch_compile_mode": "optimizer.by_task has passes of all sizes; take it out",
}


def learning_rates(recipe: Recipe) -> dict[str, float]:
    """`learning_rate` of the tasks that have one."""
    rates = {name: task.learning_rate for name, task in recipe.tasks.items()}
    return {name: rate for name, rate in rates.items() if rate is not None}


def by_task_faults(recipe: Recipe, sources: dict[str, list[str]]) -> list[str]:
    """What of a recipe does not go with `optimizer.by_task`.

    Args:
        recipe: the recipe.
        sources: source name to its tasks.
    """
    if not recipe.optimizer.by_task:
        return []
    faults = _clashes(recipe.training, recipe.balancing.method, sources)
    return faults + _shared_rows_faults(learning_rates(recipe), sources)


def _clashes(
    training: Mapping[str, Any], method: str | None, sources: dict[str, list[str]]
) -> list[str]:
    faults = []
    if len(sources) < 2:
        faults.append("optimizer.by_task: all rows are of one source, one gradient; take it out")
    optim = training.get("optim", OPTIMS[0])
    optim = str(getattr(optim, "value", optim))
    if optim not in OPTIMS:
        faults.append(
            f"training.optim: {optim}, but optimizer.by_task is an AdamW; allowed: "
            f"{', '.join(OPTIMS)}"
        )
    faults += [f"training.{key}: {why}" for key, why in UNFIT.items() if training.get(key)]
    if method not in METHODS:
        faults.append(
            f"balancing.method: {method} changes the size of losses or gradients, which "
            "optimizer.by_task takes out again; write equal_norms or none"
        )
    return faults


def _shared_rows_faults(rates: dict[str, float], sources: dict[str, list[str]]) -> list[str]:
    return [
        f"tasks.{tasks[0]}.learning_rate: {', '.join(tasks)} share their rows, so one gradient "
        "with optimizer.by_task; give all of them the same, or none"
        for tasks in sources.values()
        if len({rates.get(name) for name in tasks}) > 1
    ]


def model_faults(
    model: PolyheadModel, multitask: MultiTaskArguments, sources: dict[str, list[str]]
) -> list[str]:
    """What of `optimizer.by_task` and the tasks' learning rates has no effect on this model.

    Args:
        model: the model, with all its heads and adapters.
        multitask: what trains, and how fast; `freeze` fits the model.
        sources: source name to its tasks.
    """
    if not multitask.optimizer.by_task and not multitask.rates:
        return []
    trained = _trained_parts(model, multitask.freeze)
    readers = {
        name: {s for s, tasks in sources.items() for t in tasks if _adapter(model, t) == name}
        for name in model.loaded_adapters
    }
    shared = any(_pooled(p, readers) for p in trained)
    if multitask.optimizer.by_task:
        if shared:
            return []
        return ["optimizer.by_task: no weights that tasks share train; take it out"]
    titles = {part.title for part in trained}
    owners = own_adapters(model)
    return [
        f"tasks.{name}.learning_rate: no head or adapter of its own trains; take it out"
        for name in multitask.rates
        if not {f"head {name}", f"adapter {owners.get(name)}"} & titles
    ]


def _pooled(part: Part, readers: Mapping[str, set[str]]) -> bool:
    """Several tasks read it; `readers` are those of adapters."""
    if part.kind == "adapter":
        return len(readers[part.name]) > 1
    return part.kind != "head"


def _adapter(model: PolyheadModel, task: str) -> str | None:
    return model.config.tasks[task].adapter


def _trained_parts(model: PolyheadModel, freeze: Freeze) -> list[Part]:
    return [p for p, at in schedule_of(model_parts(model), freeze) if trained_weights(p, at)]


def make_source_gradients(
    model: PolyheadModel,
    multitask: MultiTaskArguments,
    args: TrainingArguments,
    sources: dict[str, list[str]],
) -> SourceGradients | None:
    """Where the gradients of an `optimizer.by_task` gather; None without.

    Args:
        model: the model, frozen as it will train.
        multitask: the options.
        args: arguments with `max_grad_norm`.
        sources: source name to its tasks.

    Raises:
        ValueError: with all that does not go with it.
    """
    if not multitask.optimizer.by_task:
        return None
    faults = _clashes(vars(args), multitask.balancing.method, sources)
    faults += _shared_rows_faults(multitask.rates, sources)
    gradients = SourceGradients(
        list(sources),
        readers_of(model, sources),
        max_norm=args.max_grad_norm,
        table=sparse_table(model),
    )
    if not gradients.shared:
        faults.append("optimizer.by_task: no weights that tasks share train; take it out")
    if faults:
        raise ValueError("; ".join(faults))
    return gradients


def rates_of_sources(
    rates: dict[str, float], sources: dict[str, list[str]], learning_rate: float
) -> list[float]:
    """Each source's learning rate on shared weights, as a multiple of that of the run."""
    if not learning_rate:
        return [1.0] * len(sources)
    return [rates.get(tasks[0], learning_rate) / learning_rate for tasks in sources.values()]
