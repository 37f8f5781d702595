"""FSDP2: each rank holds a share of the weights, their gradients and the optimizer's state.

accelerate cuts the model up and puts it together. Here is what several tasks need beside that:
heads and adapters that idle on a rank, or in a whole step, and folders that hold our own classes.
It costs an exchange of weights per layer and pays where a model does not fit into one device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from torch.distributed.fsdp import StateDictType
from transformers import TrainerCallback, TrainingArguments

from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.routing import layers_of
from ..adapters import is_adapter_weight
from ..balancing.methods import METHODS, reads_tasks_apart
from ..recipe.sections import MultiTaskArguments


def prepare_sharding(
    model: PolyheadModel, plugin: Any, multitask: MultiTaskArguments, args: TrainingArguments
) -> None:
    """Check what FSDP2 cannot do here, and shard by the encoder's layers.

    Args:
        model: the model, not sharded yet.
        plugin: accelerate's options of FSDP.
        multitask: sampling, balancing, what trains.
        args: arguments with torch_compile.

    Raises:
        ValueError: with all that does not fit.
    """
    faults = [*_faults(model, plugin, multitask, args), *_needs_whole(multitask)]
    faults += _idle_layers(model)
    if faults:
        raise ValueError(f"FSDP: {'; '.join(faults)}")
    if plugin.transformer_cls_names_to_wrap is None:
        # transformers names the embeddings too, but accelerate shards those by themselves
        layers = layers_of(model.encoder, model.encoder.config.num_hidden_layers)
        plugin.transformer_cls_names_to_wrap = sorted({type(m).__name__ for m in layers or []})


def check_deepspeed(
    model: PolyheadModel, multitask: MultiTaskArguments, args: TrainingArguments
) -> None:
    """Check what ZeRO cannot do here.

    Raises:
        ValueError: with all that does not fit.
    """
    faults = [*_needs_whole(multitask), *_idle_layers(model)]
    if multitask.sampling.batches == "mixed" and args.world_size > 1:
        # It exchanges gradients in the order that they come: with heads that idle on a rank the
        # ranks would wait for each other, or add up gradients of different weights.
        faults.append("mixed batches do not go with it; write sampling.batches: pure")
    if faults:
        raise ValueError(f"DeepSpeed: {'; '.join(faults)}")


def _needs_whole(multitask: MultiTaskArguments) -> list[str]:
    method, faults = multitask.balancing.method, []
    if method is not None and reads_tasks_apart(METHODS[method]):
        faults.append(f"balancing.method: {method} needs whole gradients; take another")
    if multitask.optimizer.by_task:
        faults.append("optimizer.by_task needs whole gradients; take it out")
    return faults


def _idle_layers(model: PolyheadModel) -> Iterator[str]:
    """In steps whose tasks all read a lower layer, those above have no gradient."""
    low = [name for name in model.task_names if model.config.tasks[name].layer is not None]
    if low:
        yield f"layer (of {', '.join(low)}) lets layers of the encoder idle; take it out"


def _faults(
    model: PolyheadModel, plugin: Any, multitask: MultiTaskArguments, args: TrainingArguments
) -> Iterator[str]:
    if plugin.fsdp_version != 2:
        yield "version 1 is not supported; write fsdp_version: 2"
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        yield "checkpoints are whole folders; write fsdp_state_dict_type: FULL_STATE_DICT"
    if Version(torch.__version__).release < (2, 13):
        yield f"tasks that idle on a rank need torch 2.13, this is {torch.__version__}"
    if plugin.activation_checkpointing:
        yield "fsdp_activation_checkpointing: write training.activation_checkpointing: true"
    if args.torch_compile:
        yield "torch_compile does not go with it; take it out"
    if sum(task.head_class.ties(task) for task in model.config.tasks.values()) > 1:
        yield "one masked_lm task at most, whose weights are those of the embeddings"
    frozen = any(
        not parameter.requires_grad and not is_adapter_weight(model, name)
        for name, parameter in model.encoder.named_parameters()
    )
    if multitask.freeze.unfreeze is not None:
        yield "freeze.unfreeze does not go with it; take it out"
    if frozen and model.loaded_adapters and multitask.sampling.batches == "mixed":
        # Ranks whose rows go through other adapters would exchange layers in another order, as
        # that order follows from which inputs have gradients: they would wait, or mix layers up.
        yield "adapters on frozen weights need sampling.batches: pure"


class ShardedTasks(TrainerCallback):
    """Tasks without rows on a rank, or in a whole step.

    Args:
        idle: gives the tasks that have no rows in the optimizer step on any rank.
    """

    def __init__(self, idle: Callable[[], list[str]]) -> None:
        self.idle = idle

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Ranks exchange all gradients of a layer at once: weights without one send zeros."""
        model.set_reduce_scatter_unused_params(True)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """No gradient where none was: with zeros the optimizer would still decay and move them."""
        for parameter in idle_parameters(model, self.idle()):
            parameter.grad = None


def idle_parameters(model: PolyheadModel, idle: list[str]) -> list[nn.Parameter]:
    """Weights that only idle tasks read: their heads, and adapters that no other task reads."""
    shared = {id(parameter) for parameter in model.encoder.parameters()}
    unused = [p for name in idle for p in model.heads[name].parameters() if id(p) not in shared]
    used = {model.config.tasks[name].adapter for name in model.task_names if name not in idle}
    adapters = set(model.loaded_adapters) - used
    for name, parameter in model.encoder.named_parameters():
        if adapters & set(name.split(".")):
            unused.append(parameter)
    return unused


@contextmanager
def unsharded_class(model: PolyheadModel) -> Iterator[None]:
    """FSDP2 gives a module a class of its own, whose name and code would be saved for ours."""
    sharded, model.__class__ = model.__class__, PolyheadModel
    try:
        yield
    finally:
        model.__class__ = sharded
