"""Learning rates of parts of the model, and what of them does not fit a model."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import Trainer, TrainingArguments

from ...modeling.modeling_polyhead import PolyheadModel
from ..recipe.sections import Freeze, OptimizerOptions
from .freezing import (
    EPSILON,
    Unfreezing,
    checked_schedule,
    layer_count,
    misfits,
    schedule_of,
    trained_weights,
)
from .model_parts import Part, model_parts, own_adapters

# ---- learning rates ----


def _rate(
    part: Part,
    options: OptimizerOptions,
    args: TrainingArguments,
    count: int,
    special: dict[str, float],
) -> float:
    """Its learning rate: that of its title in `special`, or one by its kind.

    A layer's is that of the layer above times `layer_decay`, the embeddings' one step below layer 0
    (arXiv:1801.06146, arXiv:2003.10555). Adapters have one rate whatever their layer.
    """
    steps = 0
    if part.title in special:
        return special[part.title]
    if part.kind == "embeddings":
        steps = count
    elif part.kind == "layer":
        steps = count - 1 - part.layers[0]
    elif part.kind in ("experts", "head") and options.head_lr is not None:
        return options.head_lr
    elif part.kind == "adapter" and options.adapter_lr is not None:
        return options.adapter_lr
    return args.learning_rate * (options.layer_decay or 1.0) ** steps


def _rates_by_title(model: PolyheadModel, rates: Mapping[str, float] | None) -> dict[str, float]:
    """The rates of tasks for their heads, and for the adapters that they alone read."""
    adapters = own_adapters(model)
    special = {f"head {task}": rate for task, rate in (rates or {}).items()}
    return special | {
        f"adapter {adapters[task]}": rate
        for task, rate in (rates or {}).items()
        if task in adapters
    }


def _decay_names(model: PolyheadModel) -> list[str]:
    """What `Trainer.get_decay_parameter_names` gives: all but biases and norms."""
    return Trainer.get_decay_parameter_names(None, model)  # pyright: ignore - reads only the model


def optimizer_groups(
    model: PolyheadModel,
    freeze: Freeze,
    options: OptimizerOptions,
    args: TrainingArguments,
    decay_names: Iterable[str],
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: each weight that trains, now or later, in one.

    Up to two for each part, with and without weight decay: from the top of the encoder down, so
    that the rate that the trainer logs, the first group's, is `learning_rate`; then heads and
    adapters by name. A checkpoint's optimizer state fits as long as `freeze` is the same.

    Args:
        model: the model, not wrapped.
        freeze: what does not train.
        options: learning rates of parts of the model.
        args: arguments with `learning_rate` and `weight_decay`.
        decay_names: the weights that decay, as `Trainer.get_decay_parameter_names(model)` gives.
        rates: learning rates by task.

    Returns:
        `{"name": "layer 3", "params": [...], "lr": ..., "weight_decay": ...}`; the name of a group
        without weight decay ends with `, no decay`.

    Raises:
        ValueError: `freeze` or `options` do not fit the model, or `decay_names` has names that are
            not the model's.
    """
    decayed = set(decay_names)
    strange = decayed - {n for n, _ in model.named_parameters(remove_duplicate=False)}
    if strange:
        raise ValueError(f"decay_names: {min(strange)!r} is no weight of the model; unwrap it")
    scheduled = checked_schedule(model, freeze, options)
    count, special = layer_count(p for p, _ in scheduled), _rates_by_title(model, rates)
    encoder = [entry for entry in scheduled if entry[0].of_encoder]
    groups = []
    for part, start in [*reversed(encoder), *scheduled[len(encoder) :]]:
        trained = trained_weights(part, start)
        for title, value, decays in (
            (part.title, args.weight_decay, True),
            (f"{part.title}, no decay", 0.0, False),
        ):
            weights = [w for name, w in trained.items() if (name in decayed) == decays]
            rate = _rate(part, options, args, count, special)
            group = {"name": title, "params": weights, "lr": rate, "weight_decay": value}
            groups += [group] if weights else []
    return groups


def logged_rates(groups: list[dict[str, Any]], unfreezing: Unfreezing) -> dict[str, float]:
    """`lr_<part>` of each part of the model, 0 while it waits; none where all have one rate.

    Args:
        groups: of the optimizer, as `optimizer_groups` made them; those of others have no names.
        unfreezing: knows the layers that wait.
    """
    if not all("name" in group for group in groups):  # a caller's optimizer
        return {}
    waiting = {id(weight) for weight in unfreezing.frozen_weights}
    rates = {
        f"lr_{group['name'].removesuffix(', no decay').replace(' ', '_')}": (
            0.0 if id(group["params"][0]) in waiting else float(group["lr"])
        )
        for group in groups
    }
    started = {group.get("initial_lr", group["lr"]) for group in groups}
    return rates if len(started) > 1 or unfreezing.starts else {}


def parameter_table(
    model: PolyheadModel,
    freeze: Freeze,
    options: OptimizerOptions,
    args: TrainingArguments,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """What trains, how fast and from when: a row for each part, from the bottom up.

    Returns:
        by row: `name`; `layers`, those that hold its weights; `trainable` and `frozen`, numbers of
        parameters (those that join later are trainable); `learning_rate`; `weight_decay` and
        `decayed`, the number of parameters that it pulls on; `from_epoch`. Rate and epoch are None
        for what never trains. Ready for JSON.

    Raises:
        ValueError: `freeze` or `options` do not fit the model.
    """
    scheduled, decayed = checked_schedule(model, freeze, options), set(_decay_names(model))
    count, special = layer_count(p for p, _ in scheduled), _rates_by_title(model, rates)
    rows = []
    for part, start in scheduled:
        trained = trained_weights(part, start)
        trainable = sum(p.numel() for p in trained.values())
        pulled = sum(p.numel() for name, p in trained.items() if name in decayed)
        rows.append(
            {
                "name": part.title,
                "layers": part.layers,
                "trainable": trainable,
                "frozen": sum(p.numel() for p in part.weights.values()) - trainable,
                "learning_rate": _rate(part, options, args, count, special) if trained else None,
                "weight_decay": args.weight_decay if pulled else 0.0,
                "decayed": pulled,
                "from_epoch": start if trained else None,
            }
        )
    return rows


# ---- faults of a recipe ----


def freeze_faults(
    model: PolyheadModel,
    freeze: Freeze,
    options: OptimizerOptions,
    args: TrainingArguments | None = None,
) -> list[str]:
    """What of a recipe's `freeze` and `optimizer` does not fit the model, by dotted key.

    Args:
        model: the model, with all its heads and adapters.
        freeze: what does not train.
        options: learning rates of parts of the model.
        args: training arguments; with them, layers that would join after the end are found too.
    """
    parts = model_parts(model)
    faults = misfits(model, parts, freeze, options)
    if faults:  # what would follow from them says nothing
        return faults
    scheduled = schedule_of(parts, freeze)
    epochs = args.num_train_epochs if args is not None and args.max_steps <= 0 else float("inf")
    faults += [
        f"freeze.unfreeze.every: {part.title} would join at epoch {start:g}; the last ends at "
        f"{epochs:g}"
        for part, start in scheduled
        if start and start >= epochs - EPSILON
    ]
    trains = {
        "encoder" if p.of_encoder else p.kind for p, at in scheduled if trained_weights(p, at)
    }
    if not trains:
        return [*faults, "freeze: nothing is left to train; take something out"]
    rates = {
        "layer_decay": ("encoder", options.layer_decay),
        "head_lr": ("head", options.head_lr),
        "adapter_lr": ("adapter", options.adapter_lr),
    }
    return faults + [
        f"optimizer.{key}: no weight of any {kind} trains; take it out"
        for key, (kind, value) in rates.items()
        if value is not None and kind not in trains
    ]


def idle_faults(model: PolyheadModel, freeze: Freeze, tasks: Iterable[str]) -> list[str]:
    """Tasks with rows that nothing learns from: no weight that they read ever trains.

    Args:
        model: the model, with all its heads and adapters.
        freeze: what does not train, as `freeze_faults` found it to fit.
        tasks: those with rows.
    """
    scheduled = schedule_of(model_parts(model), freeze)
    trains = [part for part, start in scheduled if trained_weights(part, start)]
    if any(part.of_encoder or part.kind == "experts" for part in trains):
        return []
    known = {(part.kind, part.name) for part in trains}
    faults = []
    for name in tasks:
        task = model.config.tasks[name]
        if not {("head", name), ("adapter", task.adapter)} & known:
            more = " or a projection" if "projection" in task.head_class.options else ""
            fault = f"tasks.{name}: no weight that it reads trains; give it an adapter{more}"
            faults.append(f"{fault}, let more of the encoder train, or take it out")
    return faults
