# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""The encoder: how it is made, what is asked of it, and one pass through it.

A pass takes each text through the adapters of its tasks: texts are sorted and copied for them as
planned (`segments.py`), and the adapted layers follow the plan (`routing.py`).

Shapes: `N` texts of the caller, `M` after sorting and copying, `T` tokens, `P` tokens of a packed
batch, `H` hidden, `E` width of the token embeddings.
"""

import copy
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from itertools import chain
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .attention import no_compile, no_trace
from .checks import CONFIG_ERRORS, check_sizes
from .compute import Compute
from .early_exit import LayersRead
from .encoder_pass import EncoderPass, joined
from .first_use import FIRST_USE
from .packing import (
    TextLayout,
    encode_packed,
    moved_to,
    pad_inputs,
    position_embeddings,
    position_offset,
    unpad_output,
)
from .reading import few, read_json
from .routing import NotRoutable, Routing, adds_in_place, first_adapted_layer
from .segments import Plan, make_plan, move, moved_texts, parts_of
from .stacks import stack_products
from .weights import check_finite_tensors

HOOKED = "_output_capturing_hooks_installed"  # what transformers notes on an encoder
BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_encoder_config(name_or_path: str, **hub: Any) -> Any:
    """An encoder's config; a file on disk is checked before transformers reads it.

    Raises:
        OSError: there is no such folder or repository.
        ValueError: the config is damaged, or asks for sizes that no encoder has.
    """
    path = os.path.join(name_or_path, hub.get("subfolder") or "", "config.json")
    if os.path.exists(path):
        check_sizes(read_json(path, finite=False))
    try:
        return AutoConfig.from_pretrained(name_or_path, **hub)
    except CONFIG_ERRORS as error:
        raise ValueError(f"{name_or_path}: {type(error).__name__}: {error}") from error


def auto_class(encoder_config: Any) -> Any:
    """AutoModel, or for encoder-decoder models (T5) the class that holds their encoder."""
    return AutoModelForTextEncoding if encoder_config.is_encoder_decoder else AutoModel


def without_capturing_hooks(encoder: PreTrainedModel) -> PreTrainedModel:
    """An encoder of the same weights, without the hooks by which transformers takes its states."""
    tensors = chain(encoder.parameters(), encoder.buffers())
    encoder = copy.deepcopy(encoder, {id(tensor): tensor for tensor in tensors})
    for module in encoder.modules():
        module.__dict__.pop(HOOKED, None)
        for key, hook in list(module._forward_hooks.items()):
            if hook.__module__ == "transformers.utils.output_capturing":
                del module._forward_hooks[key]
    return encoder


def without_pooler(load: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Load an encoder without its pooler, whose parameters would never get a gradient."""
    try:
        return load(add_pooling_layer=False)
    except TypeError:  # this encoder has no pooler to leave out
        return load()


def build_encoder(encoder_config: Any) -> PreTrainedModel:
    """A new encoder with random weights, from its config.

    Raises:
        ValueError: the config makes no encoder, or none that reads texts.
    """
    auto = auto_class(encoder_config)
    try:
        encoder = without_pooler(lambda **more: auto.from_config(encoder_config, **more))
    except BUILD_ERRORS as error:  # an activation that is unknown, sizes that do not divide, ...
        raise ValueError(
            f"encoder_config makes no {encoder_config.model_type}: {type(error).__name__}: {error}"
        ) from error
    check_reads_texts(encoder)
    return encoder


def check_reads_texts(encoder: PreTrainedModel) -> None:
    """Raise ValueError for a model that reads no token ids, or has not one size and one depth."""
    config = encoder.config
    sizes = (getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None))
    if encoder.main_input_name != "input_ids" or not all(isinstance(n, int) for n in sizes):
        raise ValueError(
            f"a {config.model_type} model is no text encoder; give an encoder that AutoModel loads "
            "and that reads token ids (bert, roberta, deberta-v2, modernbert, ...)"
        )


def load_encoder(name_or_path: str, encoder_config: Any, **kwargs: Any) -> PreTrainedModel:
    """A pretrained encoder, whole: transformers fills what its files lack with random numbers.

    Args:
        name_or_path: Hub id or folder.
        encoder_config: its config.
        kwargs: arguments of AutoModel.from_pretrained.

    Raises:
        OSError: there is no such folder or repository, or it has no safetensors.
        ValueError: a weight is missing, of another shape, an integer, NaN or infinite.
    """
    auto = auto_class(encoder_config)
    options = {"use_safetensors": True, **kwargs, "output_loading_info": True}
    options["config"] = encoder_config
    with FIRST_USE:  # transformers exchanges functions of torch while it loads
        encoder, info = without_pooler(  # pyright: ignore[reportGeneralTypeIssues]
            lambda **more: auto.from_pretrained(name_or_path, **options, **more)
        )
    missing = {key for key in info["missing_keys"] if "pooler" not in key}  # we use none
    differ = [] if kwargs.get("ignore_mismatched_sizes") else info["mismatched_keys"]
    faults = {
        "missing": missing,
        "other shapes than config.json describes": [key for key, *_ in differ],
        "not numbers as trained": [
            name for name, weight in encoder.named_parameters() if not weight.is_floating_point()
        ],
    }
    told = "; ".join(f"{what}: {few(keys)}" for what, keys in faults.items() if keys)
    if told:
        raise ValueError(f"encoder {name_or_path}: weights {told}. Is it another model's folder?")
    check_finite_tensors(f"encoder {name_or_path}", encoder.state_dict())
    return encoder


def usable_length(encoder: PreTrainedModel) -> int | None:
    """Number of tokens that the encoder accepts; None where it has no limit.

    Learned position embeddings with a padding index (RoBERTa and its kin) count positions from
    padding_idx + 1, so they hold that many tokens fewer than rows.
    """
    table = position_embeddings(encoder)
    if table is not None:
        return table.num_embeddings - position_offset(encoder)
    limit = getattr(encoder.config, "max_position_embeddings", None)
    return limit if limit is not None and limit > 0 else None


@dataclass(frozen=True, kw_only=True)
class EncoderInputs:
    """What one pass reads.

    Args:
        input_ids: (N, T), or (1, P) packed.
        inputs_embeds: (N, T, E) or (1, P, E), instead of `input_ids`.
        attention_mask: (N, T), 1 for real tokens; None where all are, and packed.
        token_type_ids: as `input_ids`; left out for encoders without segments.
        position_ids: as `input_ids`.
        max_length_q: tokens of the longest text, of a packed batch.
        output_hidden_states: give every layer's states.
        output_attentions: give the attentions.
    """

    input_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    max_length_q: int | None = None
    output_hidden_states: bool | None = None
    output_attentions: bool | None = None

    def __post_init__(self) -> None:
        if self.input_ids is None and self.inputs_embeds is None:
            raise ValueError("give input_ids or inputs_embeds")

    @property
    def tokens(self) -> Tensor:
        """The ids, or the embeddings in their place."""
        return self.input_ids if self.inputs_embeds is None else self.inputs_embeds  # pyright: ignore

    def arguments(self) -> dict[str, Any]:
        """Those that are there, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def moved(self, plan: Plan) -> "EncoderInputs":
        """The same with texts sorted and copied."""
        return EncoderInputs(**move(self.arguments(), plan))


@no_trace
def encode(
    encoder: PreTrainedModel,
    inputs: EncoderInputs,
    *,
    cu_seq_lens: Tensor | None,
    adapters: list[list[str | None]] | str | None,
    routed: bool,
    compute: Compute,
    packs: bool,
    read: LayersRead,
) -> EncoderPass:
    """One pass that takes each text through the adapters it is wanted through.

    Args:
        encoder: the encoder.
        inputs: what it reads.
        cu_seq_lens: (N + 1,) on the CPU: the batch is packed.
        adapters: adapters of each text; or one for all texts; None for the bare encoder.
        routed: the encoder has adapters loaded.
        compute: how it computes.
        packs: it reads packed batches as they are; else they are padded for it.
        read: layers below the last whose states are read.
    """
    tokens = inputs.tokens
    if cu_seq_lens is None:
        mask = inputs.attention_mask
        texts = TextLayout(mask=tokens.new_ones(tokens.shape[:2]) if mask is None else mask)
    else:
        texts = TextLayout(cu_seq_lens=moved_to(cu_seq_lens, tokens), host=cu_seq_lens)
    lowest = 0 if inputs.output_hidden_states else min(read.layers, default=None)
    plan = _plan(encoder, adapters, texts, tokens.shape[1], lowest) if routed else None
    if texts.cu_seq_lens is None or packs:
        output = _encode_planned(encoder, plan, texts, inputs, compute, read)
    else:
        padded = EncoderInputs(**pad_inputs(inputs.arguments(), texts.cu_seq_lens))
        rows = TextLayout(mask=padded.attention_mask)
        width = padded.tokens.shape[1]
        plan_of_rows = _plan(encoder, adapters, rows, width, lowest) if routed else None
        output = _encode_planned(encoder, plan_of_rows, rows, padded, compute, read)
        packed_starts = moved_texts(plan, texts).cu_seq_lens
        output = unpad_output(output, packed_starts)  # pyright: ignore[reportArgumentType]
    return EncoderPass(output, moved_texts(plan, texts), texts, plan)


@no_compile
def _plan(
    encoder: PreTrainedModel,
    adapters: list[list[str | None]] | str | None,
    texts: TextLayout,
    width: int,
    lowest: int | None,
) -> Plan:
    """The plan of a pass; texts stand in its order from the layer `lowest` on."""
    if not isinstance(adapters, list):
        return Plan([(adapters, 0, 0)])
    names = {name for text in adapters for name in text}
    first = first_adapted_layer(encoder, names)
    plan = make_plan([names or [None] for names in adapters], texts, width=width, first=first)
    if plan.first is not None and lowest is not None:  # all states that are read in one order
        plan.first = min(plan.first, lowest) or None
    return plan


@no_trace
def _encode_planned(
    encoder: PreTrainedModel,
    plan: Plan | None,
    texts: TextLayout,
    inputs: EncoderInputs,
    compute: Compute,
    read: LayersRead,
) -> BaseModelOutput:
    """One pass as planned; one for each adapter where the encoder cannot take several."""
    try:
        return _encode_routed(encoder, plan, texts, inputs, compute, read)
    except NotRoutable:
        assert plan is not None
    parts = parts_of(plan, texts, inputs.tokens.shape[1])
    outputs = [_encode_routed(encoder, part, texts, inputs, compute, read) for part in parts]
    return joined(outputs, dim=0 if texts.cu_seq_lens is None else 1)


@no_trace
def _encode_routed(
    encoder: PreTrainedModel,
    plan: Plan | None,
    texts: TextLayout,
    inputs: EncoderInputs,
    compute: Compute,
    read: LayersRead,
) -> BaseModelOutput:
    """The encoder itself, its adapted layers following the plan."""
    if plan is not None and plan.source is not None and plan.first is None:
        inputs, texts = inputs.moved(plan), moved_texts(plan, texts)  # no layer does it later
    if inputs.token_type_ids is not None and not _has_segments(type(encoder)):
        inputs = replace(inputs, token_type_ids=None)
    arguments = inputs.arguments() | {"return_dict": True}
    dtype = encoder.dtype
    with Routing(plan), compute.context(encoder.device.type):
        if plan is not None and adds_in_place(encoder.device.type):
            stack_products(encoder, plan)
        if texts.cu_seq_lens is None:
            output = read.run(partial(encoder, **arguments))
        else:
            output = read.run(partial(encode_packed, encoder, arguments, texts.cu_seq_lens))
    return compute.cast_back(output, dtype)


@cache
def _has_segments(encoder_class: type) -> bool:
    return "token_type_ids" in inspect.signature(encoder_class.forward).parameters  # pyright: ignore
