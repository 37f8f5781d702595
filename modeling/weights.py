# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Weights read from files, checked: none missing, none left over, of a floating type, finite.

transformers fills what is missing with random numbers and says so in a table; it takes integers for
what they are in the file; a NaN goes through to every answer. The check costs one pass over the
weights, next to the copy that `from_pretrained` makes of them.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .reading import FLOATS, TensorHeader, few, read_json, read_tensor_headers

REPAIR = "Copy or download the folder again, or save the model again"
NO_HEADS = (
    "A bare encoder has no heads: PolyheadModel.from_encoder(name_or_path, tasks={...}) puts new "
    "ones on it"
)

# The caller asked for transformers' report of the loading (`output_loading_info=True`): it tells
# what is missing and what is left over, instead of our refusing it.
REPORTED: ContextVar[bool] = ContextVar("polyhead_loading_reported", default=False)
INDEX = "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
# A tokenizer of one of these names is in the folder; each family of tokenizers has its own.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "bpe.codes",
    "source.spm",
    "vocab.tsv",
    "byte_maps.json",
)
# What tokenizer_config.json may hold; transformers takes any value, and stumbles over it later.
SPECIAL_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
MAY_BE_NULL = ("strip_accents", "add_prefix_space", "add_bos_token", "add_eos_token")
SWITCHES = ("do_lower_case", "tokenize_chinese_chars", *MAY_BE_NULL)
SHORTEST = 4  # tokens that a text may have: two special ones, and room to step on
WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")


def check_folder(folder: str) -> None:
    """Raise ValueError when a folder on disk is not whole, as far as names of files tell.

    Args:
        folder: a saved model; what is no folder (a Hub id) is left to transformers.
    """
    if not os.path.isdir(folder):
        return
    names = set(os.listdir(folder))
    if "adapter_config.json" in names:  # transformers would load the model that this one names
        raise ValueError(f"{folder} holds an adapter of PEFT beside config.json; take it out")
    if INDEX in names:
        _check_index(os.path.join(folder, INDEX), names)
    check_tokenizer_files(folder)


def check_tokenizer_files(folder: str) -> None:
    """Raise ValueError for half a tokenizer, or one whose config holds what no tokenizer can use.

    Args:
        folder: a saved model; a folder without a tokenizer is left to who needs one.
    """
    names, path = set(os.listdir(folder)), os.path.join(folder, "tokenizer_config.json")
    if "tokenizer_config.json" not in names:
        if names & {"modules.json", "tokenizer.json"}:
            raise ValueError(
                f"{folder}: the tokenizer is missing (tokenizer_config.json). {REPAIR}"
            )
        return
    config = read_json(path)
    kind = config.get("tokenizer_class")
    if not names & set(VOCABULARIES) and kind not in WITHOUT_VOCABULARY:
        raise ValueError(
            f"{folder}: the tokenizer has no vocabulary (tokenizer.json is missing); every "
            f"word would be unknown. {REPAIR}"
        )
    for key, value in config.items():
        if expected := _expected_in_tokenizer(key, value):
            raise ValueError(f"{path}: {key} is {value!r:.80}; it must be {expected}. {REPAIR}")
    if "tokenizer.json" in names:
        _check_special_tokens(config, os.path.join(folder, "tokenizer.json"), path)


def _expected_in_tokenizer(key: str, value: Any) -> str | None:
    """What a key of tokenizer_config.json must be; None where its value may stay."""
    if key in SPECIAL_TOKENS:
        token = value.get("content") if isinstance(value, dict) else value
        return None if value is None or (isinstance(token, str) and token) else "a token"
    if key in SWITCHES:
        allowed = isinstance(value, bool) or (value is None and key in MAY_BE_NULL)
        return None if allowed else "true or false"
    if key == "model_max_length":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        whole = number and value == int(value) and value >= SHORTEST
        return None if value is None or whole else f"a whole number from {SHORTEST}"
    if key == "tokenizer_class":
        return None if value is None or isinstance(value, str) else "a name"
    return None


def _check_special_tokens(config: dict[str, Any], vocabulary: str, path: str) -> None:
    """Another token in the place of a special one would be set around every text."""
    whole = read_json(vocabulary)
    added, template = whole.get("added_tokens"), whole.get("post_processor")
    if not isinstance(added, list):
        raise ValueError(f"{vocabulary}: added_tokens must be a list. {REPAIR}")
    known = {token.get("content") for token in added if isinstance(token, dict)}
    roles = set()
    for key in SPECIAL_TOKENS:
        value = config.get(key)
        token = value["content"] if isinstance(value, dict) else value
        if token is not None and token not in known:
            raise ValueError(
                f"{path}: {key} is {token!r:.80}, which is no special token of tokenizer.json. "
                f"{REPAIR}"
            )
        roles.add(token)
    around = template.get("special_tokens") if isinstance(template, dict) else None
    empty = [key for key in SPECIAL_TOKENS if key in config and config[key] is None]
    if empty and isinstance(around, dict) and not around.keys() <= roles:
        raise ValueError(
            f"{path}: {few(empty)} is null, and tokenizer.json sets {few(around.keys() - roles)} "
            f"around a text. {REPAIR}"
        )


def _check_index(path: str, names: set[str]) -> None:
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ValueError(f"{path}: weight_map must tell the file of each weight. {REPAIR}")
    absent = set(files.values()) - names
    if absent:
        raise ValueError(f"{path}: missing: {few(absent)}. {REPAIR}")


def check_no_stray_adapters(folder: str, adapters: Iterable[str]) -> None:
    """Raise ValueError when an adapter lies in a folder on disk that config.json does not name."""
    stray = set(_adapters_in(folder)) - set(adapters)
    if stray:
        raise ValueError(
            f"{folder}/adapters: {few(stray)} is not among the adapters that config.json names, so "
            "no task would go through it. Take it out, or copy or download the folder again"
        )


def _adapters_in(folder: str) -> list[str]:
    path = os.path.join(folder, "adapters")
    if not os.path.isdir(path):
        return []
    return [n for n in os.listdir(path) if os.path.exists(f"{path}/{n}/adapter_config.json")]


def remove_saved(folder: str) -> None:
    """Take a model saved before out of a folder: config first, so that it does not load in part."""
    if not os.path.isdir(folder):
        return
    for name in ["config.json", *filter(WEIGHTS.fullmatch, os.listdir(folder))]:
        if os.path.lexists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    for name in _adapters_in(folder):
        shutil.rmtree(os.path.join(folder, "adapters", name))


def check_files(model: PreTrainedModel, files: Iterable[str]) -> None:
    """Raise ValueError for a file that is cut short, or holds integers where numbers belong.

    Args:
        model: the model that they are for; where it has integers itself they are allowed.
        files: safetensors files.
    """
    state = model.state_dict()
    whole = {key for key, value in state.items() if not value.is_floating_point()}
    for path in files:
        headers = read_tensor_headers(path)
        # what a reported loading leaves unused is in its report
        unused = headers.keys() - state.keys() if REPORTED.get() else ()
        _check_floats(path, headers, {*whole, *unused})


def check_float_tensors(path: str) -> None:
    """Raise ValueError for a safetensors file that is damaged or holds quantised weights."""
    _check_floats(path, read_tensor_headers(path), set())


def _check_floats(path: str, headers: dict[str, TensorHeader], allowed: set[str]) -> None:
    odd = {name: h.dtype for name, h in headers.items() if h.dtype not in FLOATS}
    odd = {name: dtype for name, dtype in odd.items() if name not in allowed and not _ids(name)}
    if odd:
        kinds = ", ".join(sorted(set(odd.values())))
        raise ValueError(
            f"{path}: weights of type {kinds}, which are not numbers as trained "
            f"({', '.join(FLOATS)}): {few(odd)}. Save the model in one of these"
        )


def _ids(name: str) -> bool:
    """Buffers that older releases of transformers saved, and newer ones make themselves."""
    return name.rpartition(".")[2] in ("position_ids", "token_type_ids")


def check_finite_tensors(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for NaN and infinity in weights; what is on the meta device is left out.

    Args:
        what: names them in the message.
        tensors: weights by name.
    """
    odd = [
        name
        for name, value in tensors.items()
        if value.is_floating_point()
        and not value.is_meta
        and value.numel()
        and not torch.stack(value.detach().aminmax()).isfinite().all()
    ]
    if odd:
        raise ValueError(
            f"{what}: NaN or infinite weights, which answer anything: {few(odd)}. {REPAIR}"
        )


def check_complete(model: Any, source: str, info: Any, *, sizes_may_differ: bool = False) -> None:
    """Raise ValueError unless what was loaded is the whole model and nothing else.

    Args:
        model: the model.
        source: folder or file of its weights, for the message.
        info: transformers' account of the loading.
        sizes_may_differ: the user has said so (`ignore_mismatched_sizes=True`).
    """
    missing, tied = set(info.missing_keys), model.all_tied_weights_keys or {}
    for key, other in tied.items():
        if key not in info.missing_keys:  # transformers takes the other way round too
            missing.discard(other)
    missing -= tied.keys()
    mismatched = [f"{key} {tuple(a)} for {tuple(b)}" for key, a, b in info.mismatched_keys]
    parts = (
        ("missing", [] if REPORTED.get() else missing),
        ("not part of what config.json describes", [] if REPORTED.get() else info.unexpected_keys),
        ("other shapes than config.json describes", [] if sizes_may_differ else mismatched),
    )
    faults = [f"{what}: {few(keys)}" for what, keys in parts if keys]
    faults += [str(error) for error in [*info.error_msgs, *info.conversion_errors.values()]]
    if faults:
        heads = {k for k in model.state_dict() if k.startswith("heads.") and k not in tied}
        advice = NO_HEADS if heads and heads <= missing else REPAIR
        raise ValueError(f"{source}: {'; '.join(faults)}. {advice}")
