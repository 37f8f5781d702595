"""What trains, and from which epoch.

What is frozen for good has no gradient and is not in the optimizer. A layer that joins later is in
the optimizer from the start, so that a checkpoint of any epoch fits; torch's optimizers leave
weights without a gradient as they are, weight decay included.
"""

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainingArguments

from ...modeling.modeling_polyhead import PolyheadModel
from ..recipe.sections import Freeze, OptimizerOptions, Unfreeze
from .model_parts import Part, model_parts

logger = logging.getLogger(__name__)
EPSILON = 1e-6  # of an epoch: sums of fractions are not exact
Scheduled = list[tuple[Part, float | None]]  # each with the epoch it trains from; None: never


def _counted(numbers: Iterable[int], count: int) -> list[int]:
    """Numbers of layers as counted from the bottom: negative ones count from the top."""
    return [number % count for number in numbers]


def layer_count(parts: Iterable[Part]) -> int:
    """How many of the parts are layers of the encoder."""
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


def schedule_of(parts: list[Part], freeze: Freeze) -> Scheduled:
    """Each part with the epoch from which it trains; None for never."""
    layers = _layer_starts(freeze, layer_count(parts))
    scheduled: Scheduled = []
    for part in parts:
        start = layers.get(part.layers[0], 0.0) if part.kind == "layer" else 0.0
        if (
            (freeze.encoder and part.of_encoder)
            or (freeze.embeddings and part.kind == "embeddings")
            or (part.kind == "head" and part.name in freeze.heads)
        ):
            start = None
        scheduled.append((part, start))
    return scheduled


def checked_schedule(
    model: PolyheadModel, freeze: Freeze, options: OptimizerOptions | None = None
) -> Scheduled:
    """The parts with their epochs; ValueError where the model has not what is named."""
    parts = model_parts(model)
    faults = misfits(model, parts, freeze, options or OptimizerOptions())
    if faults:
        raise ValueError("\n".join(faults))
    return schedule_of(parts, freeze)


def trained_weights(part: Part, start: float | None) -> dict[str, nn.Parameter]:
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
    for part, start in checked_schedule(model, freeze):
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
        joining = [(p, s) for p, s in checked_schedule(model, freeze) if p.kind == "layer" and s]
        self.starts = {part.layers[0]: start for part, start in joining}
        self.frozen: list[int] = []  # the layers that wait now
        self._weights = {p.layers[0]: list(trained_weights(p, s).values()) for p, s in joining}
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
            logger.debug(f"epoch {epoch:.2f}: layer {', '.join(joined)} trains from here on")

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
        whole = {id(parameter) for parameter in model.parameters()}
        joining = [weight for weights in self._weights.values() for weight in weights]
        if joining and (
            args.deepspeed_plugin or any(id(weight) not in whole for weight in joining)
        ):
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


def misfits(
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
    count = layer_count(parts)
    values = {
        "freeze.layers": freeze.layers,
        "freeze.unfreeze": freeze.unfreeze,
        "optimizer.layer_decay": options.layer_decay,
        "freeze.embeddings": freeze.embeddings,
    }
    named = [key for key, value in values.items() if value]
    more = [key for key in named if key.startswith("freeze.")]
    if freeze.encoder and more:
        return [f"freeze.encoder: freezes all of the encoder; take out {', '.join(more)}"]
    possible = {"freeze.embeddings"} if any(part.kind == "embeddings" for part in parts) else set()
    missing = [key for key in named if not count and key not in possible]
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
    key, frozen_layers = "freeze.unfreeze.layers", _counted(frozen, count)
    if not unfreeze.layers:
        return [f"{key}: names no layer; take it out for all of freeze.layers"]
    faults = _number_faults(key, unfreeze.layers, count)
    loose = [n for n in unfreeze.layers if -count <= n < count and n % count not in frozen_layers]
    if loose:
        faults.append(f"{key}: {_listed(loose)} not frozen; freeze.layers: {_listed(frozen)}")
    return faults


def _number_faults(key: str, numbers: list[int], count: int) -> list[str]:
    wrong = [number for number in numbers if not -count <= number < count]
    there = f"the encoder has layers 0 to {count - 1}, or -1 for the last"
    return [f"{key}: {_listed(wrong)} not there; {there}"] if wrong else []


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
