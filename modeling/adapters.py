# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""PEFT adapters in and out of an encoder, and to and from files in PEFT's format.

The encoder keeps its class and its own weights: PEFT's layers take the place of some of its layers,
and a state dict without them is always at hand. How rows find their adapter is `routing.py`.
"""

import copy
import os
import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from .adapter_options import NAME, check_adapter_options, make_peft_config
from .reading import digest, few, read_json
from .routing import Routed, has_adapter, route
from .weights import check_finite_tensors, check_float_tensors

try:
    import peft
    from safetensors.torch import load_file, save_file
except ImportError:
    peft = None

PREFIX = "base_model.model."  # of the keys in PEFT's files
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def require_peft() -> None:
    """Raise ImportError with what to type when peft is missing."""
    if peft is None:
        raise ImportError("this model has adapters; type: pip install peft")


def inject(encoder: PreTrainedModel, name: str, config: Any, state: dict | None = None) -> None:
    """Put an adapter into the encoder's layers.

    Args:
        encoder: the encoder; its own weights stay as they are.
        name: name of the adapter.
        config: a peft config.
        state: weights in PEFT's file format, or None for new ones.

    Raises:
        ImportError: peft is missing.
        ValueError: the name is taken, another kind of adapter is there, or weights do not fit;
            the encoder is left as it was.
    """
    require_peft()
    adapters = getattr(encoder, "peft_config", {})
    if name in adapters:
        raise ValueError(f"adapter {name!r} exists already; the encoder has: {', '.join(adapters)}")
    kinds = {other.peft_type for other in adapters.values()}
    if kinds and config.peft_type not in kinds:
        raise ValueError(
            f"adapter {name!r} is {config.peft_type.value}; those here are {kinds.pop().value}"
        )
    modules = {part for path, _ in encoder.named_modules() for part in path.split(".")}
    if name in modules:  # its parameters could not be told from the encoder's
        raise ValueError(f"adapter name {name!r} is that of a module in the encoder; take another")
    check_adapter_options(f"adapter {name!r}", config.to_dict())
    requested, config = config, copy.copy(config)
    trainable = {n for n, p in encoder.named_parameters() if p.requires_grad}
    try:
        with warnings.catch_warnings():  # that there are several adapters is the point
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            peft.inject_adapter_in_model(config, encoder, adapter_name=name)  # pyright: ignore
    except PEFT_ERRORS as error:
        route(encoder)
        remove(encoder, name)
        raise ValueError(f"adapter {name!r} does not fit this encoder: {error}") from error
    route(encoder)
    _write_out(encoder, name, requested)
    for module in encoder.modules():
        if isinstance(module, Routed):
            module.train(encoder.training)  # PEFT's new dropout is on  # pyright: ignore
    for key, parameter in encoder.named_parameters():
        new = f".{name}." in key or key.endswith(f".{name}")
        parameter.requires_grad_(
            new or key.replace(".base_layer.", ".") in trainable or key in trainable
        )
    if state is not None:
        try:
            _fill(encoder, name, state)
        except ValueError:
            remove(encoder, name)
            raise


def _write_out(encoder: PreTrainedModel, name: str, requested: Any) -> None:
    """Give its config full names of modules instead of patterns.

    What adapter_config.json then says is matched by nobody, and depends neither on the release of
    PEFT nor on the order of a set.
    """
    config: Any = encoder.peft_config[name]
    layers = {path: m for path, m in encoder.named_modules() if has_adapter(m, name)}
    narrowed = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if isinstance(requested.target_modules, (list, tuple, set)) and not any(
        getattr(requested, option, None) for option in narrowed
    ):
        config.target_modules = set(requested.target_modules)  # PEFT shortens them
    else:
        config.target_modules = set(layers)
        for option in narrowed:
            if hasattr(config, option):
                setattr(config, option, None)
    if config.peft_type == "IA3":
        config.feedforward_modules = {p for p, m in layers.items() if m.is_feedforward}
        config.target_modules = set(layers)
        return
    for option, table, usual in (
        ("rank_pattern", "r", config.r),
        ("alpha_pattern", "lora_alpha", config.lora_alpha),
    ):
        if all(NAME.fullmatch(key) for key in getattr(config, option) or {}):
            continue
        values = {path: getattr(layer, table)[name] for path, layer in layers.items()}
        setattr(config, option, {p: v for p, v in values.items() if v != usual})


def _fill(encoder: PreTrainedModel, name: str, state: dict[str, Tensor]) -> None:
    """Put weights into an adapter that is there; ValueError unless they are all of its weights."""
    check_finite_tensors(f"adapter {name!r}", state)
    try:
        report = peft.set_peft_model_state_dict(encoder, state, adapter_name=name)  # pyright: ignore
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"adapter {name!r} does not fit this encoder: {error}") from error
    missing = [k for k in report.missing_keys if f".{name}." in k or k.endswith(f".{name}")]
    for what, keys in (("missing", missing), ("unexpected", report.unexpected_keys)):
        if keys:
            raise ValueError(f"adapter {name!r} does not fit this encoder: {what}: {few(keys)}")


def remove(encoder: PreTrainedModel, name: str) -> None:
    """Take an adapter out; the last one takes PEFT's layers with it."""
    for path, module in list(encoder.named_modules()):
        if not isinstance(module, Routed):
            continue
        layer: Any = module
        layer.delete_adapter(name)
        if not any(len(getattr(layer, part)) for part in layer.adapter_layer_names):
            parent, _, child = path.rpartition(".")
            setattr(encoder.get_submodule(parent), child, layer.get_base_layer())
    getattr(encoder, "peft_config", {}).pop(name, None)  # PEFT may have refused before it is there
    encoder.__dict__.get("_polyhead_first", {}).pop(name, None)


def check_not_merged(encoder: nn.Module) -> None:
    """Raise ValueError when PEFT has added adapters to the encoder's own weights."""
    layers: Any = [module for module in encoder.modules() if isinstance(module, Routed)]
    merged = sorted({name for layer in layers for name in layer.merged_adapters})
    if merged:
        raise ValueError(
            f"adapter {', '.join(merged)} is merged into the encoder's weights; unmerge it first"
        )


def adapter_state(
    encoder: PreTrainedModel, name: str, state: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """An adapter's weights with the keys of PEFT's files, relative to the plain encoder.

    Args:
        encoder: the encoder.
        name: name of the adapter.
        state: the encoder's weights where they are not its own (gathered from several ranks).
    """
    # an embedding layer's own weights are the encoder's, adapted or not
    state = peft.get_peft_model_state_dict(  # pyright: ignore
        encoder, state, adapter_name=name, save_embedding_layers=False
    )
    return {PREFIX + key: value.contiguous() for key, value in state.items()}


def plain_state(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A state dict as if there were no adapters: their weights out, base layers under own names."""
    layers = [f"{n}." for n, m in model.named_modules() if isinstance(m, Routed)]
    plain = {}
    for key, value in state.items():
        owner = next((path for path in layers if key.startswith(path)), None)
        if owner is None:
            plain[key] = value
        elif key.startswith(f"{owner}base_layer."):
            plain[owner + key.removeprefix(f"{owner}base_layer.")] = value
    return plain


def load_plain(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook of load_state_dict: weights saved without adapters into a model that has them."""
    for path, module in model.named_modules():
        if isinstance(module, Routed):
            for key in [k for k in state if k.startswith(f"{prefix}{path}.")]:
                rest = key.removeprefix(f"{prefix}{path}.")
                if rest in ("weight", "bias"):
                    state[f"{prefix}{path}.base_layer.{rest}"] = state.pop(key)


def save_adapter(
    encoder: PreTrainedModel, name: str, folder: str, state: dict[str, Tensor] | None = None
) -> str:
    """Write adapter_config.json and adapter_model.safetensors, as PEFT does.

    Returns:
        the hash of both files, for config.json.
    """
    os.makedirs(folder, exist_ok=True)
    weights = {k: v.detach().cpu() for k, v in adapter_state(encoder, name, state).items()}
    save_file(weights, os.path.join(folder, WEIGHTS), metadata={"format": "pt"})
    config = copy.copy(encoder.peft_config[name])
    config.inference_mode = True
    config.base_model_name_or_path = encoder.config.name_or_path or None
    for option, value in vars(config).items():
        if isinstance(value, set):  # whose order would differ between two processes
            setattr(config, option, sorted(value))
    config.save_pretrained(folder)
    return digest(os.path.join(folder, CONFIG), os.path.join(folder, WEIGHTS))


@dataclass(frozen=True)
class AdapterFiles:
    """What lies in the folder of an adapter.

    Args:
        config: path of adapter_config.json.
        weights: path of adapter_model.safetensors.
        options: what the config holds, as it is.
        state: the weights, with the keys of PEFT's files.
    """

    config: str
    weights: str
    options: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def hash(self) -> str:
        """As `save_adapter` gave it."""
        return digest(self.config, self.weights)


def read_adapter_files(repo: str, subfolder: str = "", **hub: Any) -> AdapterFiles:
    """An adapter's config and its weights; no pickle is ever read.

    Args:
        repo: folder or Hub id.
        subfolder: folder of the adapter in it.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ValueError: a file is missing or damaged.
    """
    files = []
    for name in (CONFIG, WEIGHTS):
        try:
            files.append(cached_file(repo, name, subfolder=subfolder, **hub))
        except OSError as error:
            where = "/".join(part for part in (repo, subfolder) if part)
            raise ValueError(
                f"{where}: {name} cannot be had (adapters are read from safetensors only): "
                f"{str(error).splitlines()[0]}"
            ) from error
    options = read_json(files[0])
    check_float_tensors(files[1])
    return AdapterFiles(files[0], files[1], options, load_file(files[1]))


def changed_adapters(folder: str, hashes: dict[str, str]) -> list[str]:
    """The adapters in a saved model's folder whose files are not those of the hashes."""
    changed = []
    for name, expected in hashes.items():
        paths = [os.path.join(folder, "adapters", name, part) for part in (CONFIG, WEIGHTS)]
        if all(map(os.path.isfile, paths)) and digest(*paths) != expected:
            changed.append(name)
    return changed


def load_adapter(
    encoder: PreTrainedModel, name: str, repo: str, *, expected: str | None = None, **hub: Any
) -> None:
    """Read `adapters/<name>` of a folder or Hub repository into the encoder.

    Args:
        encoder: the encoder.
        name: name of the adapter.
        repo: folder or Hub id.
        expected: hash of its files, from config.json.
        hub: `revision`, `subfolder` of the model in the repository, and the like.

    Raises:
        ImportError: peft is missing.
        ValueError: a file is missing, damaged or another one, an option is not allowed, or the
            adapter does not fit the encoder.
    """
    require_peft()
    hub.pop("code_revision", None)
    subfolder = "/".join(part for part in (hub.pop("subfolder", ""), "adapters", name) if part)
    files = read_adapter_files(repo, subfolder, **hub)
    check_adapter_options(files.config, files.options)
    if expected is not None and files.hash != expected:
        raise ValueError(
            f"{files.weights} or its {CONFIG} is not the one that was saved with the model: "
            "another adapter's, or changed since. Copy or download the folder again; to use it as "
            "it is, delete its entry of adapter_hashes in config.json"
        )
    config = make_peft_config(resolved_options(encoder, files.options, files.state))
    if name in getattr(encoder, "peft_config", {}):
        _fill(encoder, name, files.state)
    else:
        inject(encoder, name, config, files.state)


def resolved_options(
    encoder: PreTrainedModel, options: dict[str, Any], state: dict[str, Tensor]
) -> dict[str, Any]:
    """Options of a file with names of modules where the file has patterns: those of its weights.

    Raises:
        ValueError: the file names layers of which it has no weights.
    """
    sign = f".{options['peft_type'].lower()}_"
    modules = {k.removeprefix(PREFIX).partition(sign)[0]: value for k, value in state.items()}
    options, targets = dict(options), options.get("target_modules")
    if not isinstance(targets, (list, tuple)):
        options |= {"target_modules": sorted(modules), "exclude_modules": None}
    if options["peft_type"] == "IA3":  # a feed-forward layer scales what goes in, (1, in)
        endings = tuple(f".{t}" for t in targets) if isinstance(targets, (list, tuple)) else ()
        named = {n for n, _ in encoder.named_modules() if f".{n}".endswith(endings)}
        if named - set(modules) and not options.get("exclude_modules"):
            raise ValueError(f"the adapter lacks weights of {few(named - set(modules))}")
        forward = [name for name, value in modules.items() if len(value) == 1]
        options |= {"target_modules": sorted(modules), "feedforward_modules": sorted(forward)}
    return options
