"""The parts that a model's weights fall into: embeddings, layers, what lies above, experts, heads.

Adapters are parts of their own.

Where the layers are, `layers_of` tells; what lies below and above them, the encoder tells by one
pass over four tokens, of which only the graph is read: a weight outside the layers lies below the
first layer whose input depends on it. Names would be wrong for the next encoder, and the order of
calls for tables that are read without one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call
from transformers import PreTrainedModel

from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.routing import layers_of


@dataclass
class Part:
    """Weights that are frozen together and train at one rate.

    Args:
        kind: `layers` stands for all layers of an encoder whose layers cannot be told apart.
        name: number of a layer, task of a head, name of an adapter.
        layers: numbers of the encoder's layers that hold its weights.
        weights: weights by the name that the model has for them.
    """

    kind: Literal["embeddings", "layer", "layers", "above the layers", "experts", "head", "adapter"]
    name: str = ""
    layers: list[int] = field(default_factory=list)
    weights: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """As `embeddings`, `layer 3`, `head intent`."""
        return f"{self.kind} {self.name}".strip()

    @property
    def of_encoder(self) -> bool:
        """The encoder's own; what a head shares with it (masked LM) is among that."""
        return self.kind not in ("experts", "head", "adapter")


def model_parts(model: PolyheadModel) -> list[Part]:
    """The parts of a model from the bottom up, then heads and adapters in alphabetical order.

    What tasks share of experts is one part; gates and own experts are their heads'.

    Each weight is in one part. The encoder's parts without weights are left out.
    """
    encoder, layers = model.encoder, range(model.encoder.config.num_hidden_layers)
    blocks = _blocks(encoder)
    if len(blocks) == 1 < len(layers):
        middle = [Part("layers", layers=list(layers))]
    else:
        middle = [Part("layer", str(number), [number]) for number in range(len(blocks))]
    parts = [Part("embeddings"), *middle, Part("above the layers")]
    adapters = {name: Part("adapter", name) for name in sorted(model.loaded_adapters)}
    inside: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for parameter in nn.ModuleList(block).parameters():
            inside.setdefault(id(parameter), number)
    readers = _first_readers(encoder, blocks)
    for name, parameter in encoder.named_parameters():
        outside = readers.get(name, len(blocks) + 1)  # read by block n: in the part below it
        part = parts[inside.get(id(parameter), outside - 1) + 1]
        for adapter in set(adapters).intersection(name.split(".")):
            adapters[adapter].layers = sorted({*adapters[adapter].layers, *part.layers})
            part = adapters[adapter]
        part.weights[f"encoder.{name}"] = parameter
    experts = Part("experts")
    if model.experts is not None:
        experts.weights = {f"experts.{n}": w for n, w in model.experts.named_parameters()}
    parts.append(experts)
    heads = [Part("head", task) for task in sorted(model.task_names)]
    shared = {id(parameter) for parameter in encoder.parameters()}
    for part in heads:
        for name, parameter in model.heads[part.name].named_parameters():
            if id(parameter) not in shared:
                part.weights[f"heads.{part.name}.{name}"] = parameter
    return [*(part for part in parts if part.weights), *heads, *adapters.values()]


def own_adapters(model: PolyheadModel) -> dict[str, str]:
    """Task to its adapter, for the adapters that one task alone reads."""
    adapters = {name: task.adapter for name, task in model.config.tasks.items() if task.adapter}
    names = list(adapters.values())
    return {task: name for task, name in adapters.items() if names.count(name) == 1}


def _blocks(encoder: PreTrainedModel) -> list[list[nn.Module]]:
    """The modules of each layer.

    XLM keeps a list for each kind of sublayer: lists as long, beside the layers, are theirs too.
    Where no list is as long as there are layers (ALBERT shares one) the largest is a single block.
    """
    layers = layers_of(encoder, encoder.config.num_hidden_layers)
    if layers is None:
        lists = [m for m in encoder.modules() if isinstance(m, nn.ModuleList)]
        sizes = [sum(p.numel() for p in m.parameters()) for m in lists]
        return [[lists[sizes.index(max(sizes))]]] if lists else []
    beside = next(c for m in encoder.modules() if layers in (c := list(m.children())))
    lists = [m for m in beside if isinstance(m, nn.ModuleList) and len(m) == len(layers)]
    return [list(modules) for modules in zip(*lists, strict=True)]


def _first_readers(encoder: PreTrainedModel, blocks: list[list[nn.Module]]) -> dict[str, int]:
    """Each weight that the input of a block depends on -> the lowest such block."""
    weights = {
        name: parameter.detach().requires_grad_()  # the same memory; the encoder is not touched
        for name, parameter in encoder.named_parameters()
        if parameter.is_floating_point()
    }
    inputs: dict[int, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(_noter(inputs, number), with_kwargs=True)
        for number, block in enumerate(blocks)
        for module in nn.ModuleList(block).modules()  # SqueezeBERT does not call its layers
    ]
    training = [module for module in encoder.modules() if module.training]
    encoder.eval()  # no random numbers are drawn, and no layer is dropped
    ids = torch.zeros(1, 4, dtype=torch.long, device=encoder.device)
    try:
        with torch.enable_grad():
            tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            functional_call(encoder, weights, (), tokens)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    names, seen = {id(weight): name for name, weight in weights.items()}, set()
    return {
        names[id(leaf)]: number
        for number in sorted(inputs)
        for leaf in _leaves(inputs[number], seen)
        if id(leaf) in names
    }


def _noter(inputs: dict[int, list[Tensor]], number: int) -> Callable[..., None]:
    """A hook that keeps the first inputs of a block."""

    def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs.setdefault(number, _tensors([args, kwargs]))

    return note


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for entry in value for tensor in _tensors(entry)]
    return [value] if isinstance(value, Tensor) and value.requires_grad else []


def _leaves(tensors: list[Tensor], seen: set[Any]) -> list[Tensor]:
    """The leaves of the graph behind these tensors, less its nodes in `seen`, which are added."""
    nodes, leaves = [get_gradient_edge(tensor).node for tensor in tensors], []
    while nodes:
        node: Any = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name().endswith("AccumulateGrad"):
            leaves.append(node.variable)
        nodes += [behind for behind, _ in node.next_functions if behind is not None]
    return leaves
