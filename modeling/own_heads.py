# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""The head over the vocabulary that a checkpoint brings along, put into a task's head.

Its layers are found by kind, as HF's classes name and order them differently, and are taken only if
the logits come out as HF's own; a head of another form starts from random weights, with a warning.
The checkpoint is read once more for that.
"""

import os
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)
CLASSES = {  # head: transformers' class, endings of the architectures that have such a head
    "masked_lm": (AutoModelForMaskedLM, ("ForMaskedLM", "ForPreTraining")),
    "causal_lm": (AutoModelForCausalLM, ("ForCausalLM", "LMHeadModel")),
}
TOLERANCE = 1e-3  # of logits
PROBE = 8  # tokens


def load_own_heads(model: Any, name_or_path: str, architectures: list[str], **kwargs: Any) -> None:
    """Give the heads over the vocabulary the weights of the checkpoint's own, where it has one.

    Args:
        model: a PolyheadModel on the checkpoint's encoder.
        name_or_path: Hub id or folder.
        architectures: of its config.
        kwargs: arguments of AutoModel.from_pretrained.
    """
    for head, (auto, endings) in CLASSES.items():
        tasks = [name for name, task in model.config.tasks.items() if task.head == head]
        if not tasks or not any(name.endswith(endings) for name in architectures):
            continue
        whole = _load(auto, name_or_path, causal=head == "causal_lm", **kwargs)
        if whole is None:
            continue
        for name in tasks:
            before = {k: v.clone() for k, v in model.heads[name].state_dict().items()}
            tied = model.config.tasks[name].tied
            fits = _copy_layers(whole, model.heads[name], tied=tied)
            if not fits or not _same(model, name, whole):
                model.heads[name].load_state_dict(before)
                logger.warning(
                    f"task {name!r}: the {architectures[0]} of {os.path.basename(name_or_path)} "
                    "has a head of another form; this one starts from random weights"
                )


def _load(auto: Any, name_or_path: str, *, causal: bool, **kwargs: Any) -> Any:
    """The checkpoint with its head; None where weights of the head are missing."""
    options = {"use_safetensors": True, **kwargs, "output_loading_info": True}
    whole, info = auto.from_pretrained(name_or_path, **options)
    if causal:
        whole.config.is_causal = True
    tied = whole.all_tied_weights_keys or {}
    base = f"{whole.base_model_prefix}."
    missing = [k for k in info["missing_keys"] if k not in tied and not k.startswith(base)]
    return None if missing else whole.eval()


@torch.no_grad()
def _copy_layers(whole: PreTrainedModel, head: nn.Module, *, tied: bool) -> bool:
    """Copy the layers outside of the base model; False where there are others than the head has."""
    inside = {id(module) for module in whole.base_model.modules()}
    outside = [module for module in whole.modules() if id(module) not in inside]
    theirs, ours = map(_layers, (outside, list(head.children())))
    if [layer.weight.shape for layer in theirs] != [layer.weight.shape for layer in ours]:
        return False
    decoder = head.get_submodule("decoder")
    for source, target in zip(theirs, ours, strict=True):
        if not (tied and target is decoder):  # else they are the encoder's
            target.weight.copy_(source.weight)
        if target.bias is not None and source.bias is not None:
            target.bias.copy_(source.bias)
        elif target.bias is not None:
            target.bias.zero_()
    return True


def _layers(modules: list[nn.Module]) -> list[Any]:
    kinds = (nn.Linear, nn.LayerNorm)
    return [module for kind in kinds for module in modules if isinstance(module, kind)]


@torch.no_grad()
def _same(model: Any, task: str, whole: PreTrainedModel) -> bool:
    """The task's logits of a few tokens are those of HF's class."""
    ids = torch.arange(PROBE)[None].to(model.encoder.device) % model.config.vocab_size
    training = model.training
    logits = model.eval()(ids, tasks=[task]).logits[task]
    model.train(training)
    expected = whole(input_ids=ids, use_cache=False, return_dict=True).logits
    return logits.shape == expected.shape and bool((logits - expected).abs().max() <= TOLERANCE)
