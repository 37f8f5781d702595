"""What trains, at which learning rate, and from which epoch.

What is frozen for good has no gradient and is not in the optimizer. A layer that joins later is in
the optimizer from the start, so that a checkpoint of any epoch fits; torch's optimizers leave
weights without a gradient as they are, weight decay included.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from ..modeling.modeling_polyhead import PolyheadModel
from .parts import Part, model_parts
from .schema import Freeze, OptimizerOptions, Unfreeze

logger = logging.get_logger(__name__)
EPSILON = 1e-6  # of an epoch: sums of fractions are not exact


# ---- what is frozen, and until when ----

Scheduled = list[tuple[Part, float | None]]  # each with the epoch it trains from; None: never


def _counted(numbers: Iterable[int], count: int) -> list[int]:
    """Numbers of layers as counted from the bottom: negative ones count from the top."""
    return [number % count for number in numbers]


def _layer_count(parts: Iterable[Part]) -> int:
    return sum(part.kind == "layer" for part in parts)


def _layer_starts(freeze: Freeze, count: int) -> dict[int, float | None]:
    """Each frozen layer -> the epoch at which it joins, None for never."""
    starts: dict[int, float | None] = dict.fromkeys(_counted(freeze.layers, count))
    if freeze.unfreeze is not None:
        chosen = freeze.unfreeze.layers
        joining = set(starts if chosen is None else _counted(chosen, count))
        order = sorted(joining, reverse=freeze.unfreeze.from_ == "top")
        every = freeze.unfreeze.every
        starts |= {layer: round((i + 1) * every, 9) for i, layer in enumerate(order)}
    return starts


def _schedule(parts: list[Part], freeze: Freeze) -> Scheduled:
    layers = _layer_starts(freeze, _layer_count(parts))
    found: Scheduled = []
    for part in parts:
        start = layers.get(part.layers[0], 0.0) if part.kind == "layer" else 0.0
        if (
            (freeze.encoder and part.of_encoder)
            or (freeze.embeddings and part.kind == "embeddings")
            or (part.kind == "head" and part.name in freeze.heads)
        ):
            start = None
        found.append((part, start))
    return found


def _scheduled(
    model: PolyheadModel, freeze: Freeze, options: OptimizerOptions | None = None
) -> Scheduled:
    """The parts with their epochs; ValueError where the model has not what is named."""
    parts = model_parts(model)
    faults = _misfits(model, parts, freeze, options or OptimizerOptions())
    if faults:
        raise ValueError("\n".join(faults))
    return _schedule(parts, freeze)


def _trained(part: Part, start: float | None) -> dict[str, nn.Parameter]:
    """The weights of a part that train, now or from `start` on."""
    return {
        name: parameter
        for name, parameter in part.weights.items()
        if start is not None
        and (parameter.requires_grad or (start > 0 and parameter.is_floating_point()))
    }


def apply_freeze(model: PolyheadModel, freeze: Freeze) -> None:
    """Freeze what never trains; nothing that is frozen already is made to train.

    Layers that join later are left as they are: DDP and the optimizer must see them as weights that
    train. `Unfreezing` keeps them still until their time.

    Raises:
        ValueError: `freeze` does not fit the model, which is left as it was.
    """
    for part, start in _scheduled(model, freeze):
        if start is None:
            for parameter in part.weights.values():
                parameter.requires_grad_(False)


class Unfreezing(TrainerCallback):
    """Lets frozen layers join one after the other (ULMFiT, arXiv:1801.06146).

    Which layers wait is a function of the epoch alone, so a resumed run needs nothing saved. One
    process turns their `requires_grad` off and on, which saves the work of their gradients. DDP
    reads `requires_grad` only when it wraps the model: there the weights keep it, and their
    gradients are thrown away.

    Args:
        model: the model to be trained.
        freeze: what does not train; without `unfreeze` no layer ever waits.

    Raises:
        ValueError: `freeze` does not fit the model.
    """

    def __init__(self, model: PolyheadModel, freeze: Freeze) -> None:
        joining = [(p, s) for p, s in _scheduled(model, freeze) if p.kind == "layer" and s]
        self.starts = {part.layers[0]: start for part, start in joining}
        self.frozen: list[int] = []  # the layers that wait now
        self._weights = {p.layers[0]: list(_trained(p, s).values()) for p, s in joining}
        self._keeps_gradients = False

    def waiting(self, epoch: float) -> list[int]:
        """The layers that have not joined at an epoch, counted from 0, fractions included."""
        return [layer for layer, start in self.starts.items() if epoch < start - EPSILON]

    def set_epoch(self, epoch: float) -> None:
        """Freeze the layers that wait at this epoch, and let the others train."""
        before, self.frozen = self.frozen, self.waiting(epoch)
        for layer, weights in self._weights.items():
            for weight in weights:
                weight.requires_grad_(self._keeps_gradients or layer not in self.frozen)
        joined = [str(layer) for layer in before if layer not in self.frozen]
        if joined:
            logger.info(f"epoch {epoch:.2f}: layer {', '.join(joined)} trains from here on")

    @property
    def frozen_weights(self) -> list[nn.Parameter]:
        """The weights of the layers that wait now; under DDP their `requires_grad` is on."""
        return [weight for layer in self.frozen for weight in self._weights[layer]]

    def clear_frozen(self) -> None:
        """Throw away the gradients of the layers that wait.

        To be called after the backward pass of the last micro-batch and before the gradients are
        clipped or their norm is logged; after every backward pass does no harm.
        """
        for weight in self.frozen_weights:
            weight.grad = None

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Set the epoch that a run starts or resumes at.

        Raises:
            ValueError: layers wait, and the model is split over processes (DeepSpeed, FSDP).
        """
        own = {id(parameter) for parameter in model.parameters()}
        held = [weight for weights in self._weights.values() for weight in weights]
        if held and (args.deepspeed_plugin or any(id(weight) not in own for weight in held)):
            raise ValueError("freeze.unfreeze: not with DeepSpeed or FSDP; take it out")
        self._keeps_gradients = args.world_size > 1
        self.set_epoch(state.epoch or 0.0)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Set the epoch of the next step, before anything asks what will train in it."""
        self.set_epoch(state.epoch)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: Any, control: Any, **_: Any
    ) -> None:
        """Frozen weights stay as they are even where nobody called `clear_frozen`."""
        self.clear_frozen()


# ---- learning rates ----


def _rate(part: Part, options: OptimizerOptions, args: TrainingArguments, count: int) -> float:
    """Its learning rate.

    A layer's is that of the layer above times `layer_decay`, the embeddings' one step below layer 0
    (arXiv:1801.06146, arXiv:2003.10555). Adapters have one rate whatever their layer.
    """
    steps = 0
    if part.kind == "embeddings":
        steps = count
    elif part.kind == "layer":
        steps = count - 1 - part.layers[0]
    elif part.kind == "head" and options.head_lr is not None:
        return options.head_lr
    elif part.kind == "adapter" and options.adapter_lr is not None:
        return options.adapter_lr
    return args.learning_rate * (options.layer_decay or 1.0) ** steps


def _decay_names(model: PolyheadModel) -> list[str]:
    """What `Trainer.get_decay_parameter_names` gives: all but biases and norms."""
    return Trainer.get_decay_parameter_names(None, model)  # pyright: ignore - reads only the model


def optimizer_groups(
    model: PolyheadModel,
    freeze: Freeze,
    options: OptimizerOptions,
    args: TrainingArguments,
    decay_names: Iterable[str],
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: each weight that trains, now or later, in one.

    Up to two for each part, with and without weight decay: from the top of the encoder down, so
    that the rate that the trainer logs, the first group's, is `learning_rate`; then heads and
    adapters by name. A checkpoint's optimizer state fits as long as `freeze` is the same.

    Args:
        model: the model, not wrapped.
        freeze: what does not train.
        options: learning rates of parts of the model.
        args: for `learning_rate` and `weight_decay`.
        decay_names: the weights that decay, as `Trainer.get_decay_parameter_names(model)` gives.

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
    scheduled = _scheduled(model, freeze, options)
    count = _layer_count(part for part, _ in scheduled)
    encoder = [entry for entry in scheduled if entry[0].of_encoder]
    groups = []
    for part, start in [*reversed(encoder), *scheduled[len(encoder) :]]:
        trained = _trained(part, start)
        for title, value, wanted in (
            (part.title, args.weight_decay, True),
            (f"{part.title}, no decay", 0.0, False),
        ):
            weights = [w for name, w in trained.items() if (name in decayed) == wanted]
            rate = _rate(part, options, args, count)
            group = {"name": title, "params": weights, "lr": rate, "weight_decay": value}
            groups += [group] if weights else []
    return groups


def parameter_table(
    model: PolyheadModel, freeze: Freeze, options: OptimizerOptions, args: TrainingArguments
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
    scheduled, decayed = _scheduled(model, freeze, options), set(_decay_names(model))
    count = _layer_count(part for part, _ in scheduled)
    rows = []
    for part, start in scheduled:
        trained = _trained(part, start)
        trainable = sum(p.numel() for p in trained.values())
        pulled = sum(p.numel() for name, p in trained.items() if name in decayed)
        rows.append(
            {
                "name": part.title,
                "layers": part.layers,
                "trainable": trainable,
                "frozen": sum(p.numel() for p in part.weights.values()) - trainable,
                "learning_rate": _rate(part, options, args, count) if trained else None,
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
        args: with them, layers that would join after the end are found too.
    """
    parts = model_parts(model)
    faults = _misfits(model, parts, freeze, options)
    if faults:  # what would follow from them says nothing
        return faults
    scheduled = _schedule(parts, freeze)
    epochs = args.num_train_epochs if args is not None and args.max_steps <= 0 else float("inf")
    faults += [
        f"freeze.unfreeze.every: {part.title} would join at epoch {start:g}; the last ends at "
        f"{epochs:g}"
        for part, start in scheduled
        if start and start >= epochs - EPSILON
    ]
    trains = {"encoder" if p.of_encoder else p.kind for p, at in scheduled if _trained(p, at)}
    if not trains:
        return [*faults, "freeze: nothing is left to train; take something out"]
    given = {
        "layer_decay": ("encoder", options.layer_decay),
        "head_lr": ("head", options.head_lr),
        "adapter_lr": ("adapter", options.adapter_lr),
    }
    return faults + [
        f"optimizer.{key}: no weight of any {kind} trains; take it out"
        for key, (kind, value) in given.items()
        if value is not None and kind not in trains
    ]


def _misfits(
    model: PolyheadModel, parts: list[Part], freeze: Freeze, options: OptimizerOptions
) -> list[str]:
    """What names something that the model has not, or that goes against something else."""
    faults = _encoder_faults(model.encoder.config.model_type, parts, freeze, options)
    known = sorted(model.task_names)
    unknown = [repr(name) for name in freeze.heads if name not in known]
    if unknown:
        faults.append(f"freeze.heads: {', '.join(unknown)} is no task; known: {', '.join(known)}")
    return faults


def _encoder_faults(
    model_type: str, parts: list[Part], freeze: Freeze, options: OptimizerOptions
) -> list[str]:
    count = _layer_count(parts)
    given = {
        "freeze.layers": freeze.layers,
        "freeze.unfreeze": freeze.unfreeze,
        "optimizer.layer_decay": options.layer_decay,
        "freeze.embeddings": freeze.embeddings,
    }
    named = [key for key, value in given.items() if value]
    more = [key for key in named if key.startswith("freeze.")]
    if freeze.encoder and more:
        return [f"freeze.encoder: freezes all of the encoder; take out {', '.join(more)}"]
    held = {"freeze.embeddings"} if any(part.kind == "embeddings" for part in parts) else set()
    missing = [key for key in named if not count and key not in held]
    if missing:
        why = f"the layers of {model_type} cannot be told apart; take it out"
        return [f"{key}: {why}" for key in missing]
    faults = _number_faults("freeze.layers", freeze.layers, count)
    return [*faults, *_unfreeze_faults(freeze.unfreeze, freeze.layers, count)]


def _unfreeze_faults(unfreeze: Unfreeze | None, frozen: list[int], count: int) -> list[str]:
    if unfreeze is None:
        return []
    if not frozen:
        return ["freeze.unfreeze: no layer is frozen; name them in freeze.layers"]
    if unfreeze.layers is None:
        return []
    key, held = "freeze.unfreeze.layers", _counted(frozen, count)
    if not unfreeze.layers:
        return [f"{key}: names no layer; take it out for all of freeze.layers"]
    faults = _number_faults(key, unfreeze.layers, count)
    loose = [n for n in unfreeze.layers if -count <= n < count and n % count not in held]
    if loose:
        faults.append(f"{key}: {_listed(loose)} not frozen; freeze.layers: {_listed(frozen)}")
    return faults


def _number_faults(key: str, numbers: list[int], count: int) -> list[str]:
    wrong = [number for number in numbers if not -count <= number < count]
    there = f"the encoder has layers 0 to {count - 1}, or -1 for the last"
    return [f"{key}: {_listed(wrong)} not there; {there}"] if wrong else []


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
