# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What transformers asks of a model: loading, saving, pushing, tied weights, checkpointing.

The folder holds the encoder with all heads as plain weights and each adapter in PEFT's format.
"""

import copy
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import hf_api

from .adapters import check_not_merged, load_adapter, plain_state, save_adapter
from .causal import make_causal, trained_causal
from .configuration_polyhead import PolyheadConfig
from .encoder import (
    HOOKED,
    check_reads_texts,
    load_encoder,
    read_encoder_config,
    without_capturing_hooks,
)
from .experts import ZeroLinear
from .first_use import FIRST_USE
from .head_layers import LayerMix
from .own_heads import load_own_heads
from .routing import checkpoint_contexts
from .rows import check_tasks
from .stacks import line_up
from .task_config import TaskConfig
from .task_mixin import TaskMixin
from .weights import (
    REPORTED,
    check_complete,
    check_files,
    check_finite_tensors,
    check_folder,
    check_no_stray_adapters,
    remove_saved,
)

try:
    from safetensors import SafetensorError
except ImportError:
    SafetensorError = ValueError

AUTO_MAP = {
    "AutoModel": "modeling_polyhead.PolyheadModel",
    "AutoModelForSequenceClassification": "views.PolyheadForSequenceClassification",
    "AutoModelForTokenClassification": "views.PolyheadForTokenClassification",
}
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "code_revision")


def _hub(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that say where on the Hub files lie."""
    return {key: value for key, value in arguments.items() if key in HUB_ARGUMENTS}


def _encoder_of(
    model_class: "type[PolyheadPreTrainedModel]", name_or_path: str, causal: bool, /, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedConfig, str]:
    """An encoder with its mask set, its config as it was saved, and the pooling that it had."""
    config = read_encoder_config(name_or_path, **_hub(kwargs))
    if config.model_type == PolyheadConfig.model_type:
        whole: Any = model_class.from_pretrained(name_or_path, tasks=(), **kwargs)
        told = copy.copy(whole.encoder.config)
        whole.encoder.config.is_causal = causal
        return whole.encoder, told, whole.config.pooling
    told = copy.copy(config)
    config.is_causal = causal
    return load_encoder(name_or_path, config, **kwargs), told, "mean"


def _adapters_of(model: "PolyheadPreTrainedModel", tasks: Iterable[str] | None) -> list[str]:
    """The adapters of these tasks, None for all.

    Raises:
        ValueError: a task is unknown, or an adapter is no task's.
    """
    config = model.config
    names = None if tasks is None else list(tasks)
    if names is not None:
        check_tasks(model.task_names, names)
    used = {task.adapter for task in config.tasks.values()}
    unused = [name for name in config.adapters or [] if name not in used]
    if unused:  # its task would answer through the bare encoder
        raise ValueError(f"config.json: no task goes through adapter {', '.join(unused)}")
    if names is None:
        return list(config.adapters or [])
    return sorted({a for n in names if (a := config.tasks[n].adapter) is not None})


class PolyheadPreTrainedModel(TaskMixin, PreTrainedModel):
    """Loading and saving of a `PolyheadModel`."""

    config_class = PolyheadConfig
    config: PolyheadConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the trainer gives counts by task (`num_items`), not one number
    # What the encoder does not support, it refuses or replaces itself.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    encoder: PreTrainedModel
    heads: nn.ModuleDict

    # ---- making, loading and saving ----

    @classmethod
    def from_encoder(
        cls,
        name_or_path: str,
        tasks: dict[str, TaskConfig],
        *,
        pooling: str | None = None,
        experts: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Put new heads on a pretrained encoder.

        A head over the vocabulary starts from the checkpoint's own, where that has one of its form.
        Of a saved Polyhead its encoder is taken, without heads and adapters, and its pooling.

        Args:
            name_or_path: Hub id or folder of any encoder that AutoModel knows. It attends in both
                directions, a decoder (Llama, Qwen, ...) too; under `causal_lm` to earlier tokens
                only, whatever it was trained with.
            tasks: task name to its config.
            pooling: pooling of every task that names none; default mean, or the Polyhead's.
            experts: what stands between encoder and heads, fields of `ExpertOptions`.
            **kwargs: given to AutoModel.from_pretrained (`revision`, `dtype`, ...). Weights are
                read from safetensors, unless `use_safetensors=False` is among them.

        Raises:
            OSError: there is no such folder or repository, or it has no safetensors.
            ValueError: a task name or task is not valid, or does not fit the encoder; its config
                is damaged, or that of a model that reads no texts; its weights are not all there,
                of other shapes, integers, NaN or infinite.
        """
        PolyheadConfig(tasks=tasks, pooling=pooling or "mean")  # refuse before loading anything
        causal = any(task.head_class.causal for task in tasks.values())
        encoder, told, its_pooling = _encoder_of(cls, name_or_path, causal, **kwargs)
        pooling = pooling or its_pooling
        check_reads_texts(encoder)
        if causal:
            make_causal(encoder)
        if os.path.isdir(name_or_path):  # a path of this machine is nobody's business
            encoder.config.name_or_path = ""
        config = PolyheadConfig(
            encoder_config=encoder.config,
            pooling=pooling,
            trained_causal=trained_causal(encoder, told),
            dtype=encoder.dtype,
        )
        with torch.device("meta"):  # the encoder made here is replaced at once
            model: Any = cls(config)
        model.encoder = encoder
        model.set_experts(experts, tasks)
        for name, task in tasks.items():
            model.add_task(name, task)
        load_own_heads(model, name_or_path, told.architectures or [], **kwargs)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        tasks: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As PreTrainedModel.from_pretrained, and the adapters with it.

        Each weight gets memory of its own: in the file's memory its alignment depends on what is
        saved before it, and the last bit of a dot product on the alignment, so that another task
        would change a regression's score.

        A folder that is not whole is refused: nothing is filled with random numbers, and no pickle
        is read.

        Args:
            pretrained_model_name_or_path: folder or Hub id of a saved Polyhead.
            args: arguments of PreTrainedModel.from_pretrained.
            tasks: load the adapters of these tasks only; None for all. The others' heads are
                there, but running them raises.
            kwargs: arguments of PreTrainedModel.from_pretrained. Two of them ask for
                weights that are not the file's: `ignore_mismatched_sizes=True`, and
                `output_loading_info=True`, whose report then tells what is missing or left over.

        Raises:
            ImportError: the model has adapters and peft is missing.
            OSError: there is no such folder or repository, or it lacks a file.
            ValueError: a task is unknown; config.json is not valid; a weight is missing, left over,
                of another shape or type, NaN or infinite; an adapter is missing, damaged, another
                one than was saved, or does not fit the encoder; the tokenizer's file is missing.
        """
        with FIRST_USE:  # transformers exchanges functions of torch while it loads
            return cls._from_pretrained(pretrained_model_name_or_path, *args, tasks=tasks, **kwargs)

    @classmethod
    def _from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        tasks: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        if kwargs.get("use_safetensors") is False:
            raise ValueError("use_safetensors=False would read a pickle, which can run any code")
        kwargs["use_safetensors"] = True
        folder = os.path.join(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        check_folder(folder)
        reported = REPORTED.set(bool(kwargs.get("output_loading_info")))
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"{folder}: a file of weights is damaged: {error}") from error
        finally:
            REPORTED.reset(reported)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for parameter in model.parameters():
            if not parameter.is_meta:
                parameter.data = parameter.data.clone()
        adapters = _adapters_of(model, tasks)
        check_no_stray_adapters(folder, model.config.adapters or [])
        hashes = model.config.adapter_hashes or {}
        for name in adapters:
            repo, expected = str(pretrained_model_name_or_path), hashes.get(name)
            load_adapter(model.encoder, name, repo, expected=expected, **_hub(kwargs))
        line_up(model.encoder)
        return loaded

    @staticmethod
    def _load_pretrained_model(
        model: "PolyheadPreTrainedModel",
        state_dict: dict[str, Any] | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Of PreTrainedModel: between reading files and filling what they lack, where we refuse.

        Weights given as `state_dict` are the caller's own affair.
        """
        if checkpoint_files and load_config.hf_quantizer is None:
            check_files(model, checkpoint_files)
        info, offloaded = PreTrainedModel._load_pretrained_model(
            model,  # pyright: ignore[reportArgumentType]
            state_dict,
            checkpoint_files,
            load_config,
            *args,
            **kwargs,
        )
        if checkpoint_files:
            source = os.path.dirname(checkpoint_files[0])
            model._adjust_missing_and_unexpected_keys(info)  # what the encoder's class may ignore
            differ = load_config.ignore_mismatched_sizes
            check_complete(model, source, info, sizes_may_differ=differ)
            check_finite_tensors(source, model.state_dict())
        return info, offloaded

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """As PreTrainedModel.save_pretrained, with each adapter in `adapters/<name>/`.

        A model that lies there goes first, and config.json and the weights come last: a saving that
        is cut off leaves a folder that does not load, never one that is half of each.

        Raises:
            ValueError: an adapter of the model is not loaded, saving would lose it; or is merged
                into the encoder's weights, which would be saved with it; or a head, pooling or
                loss of a user's own cannot travel.
        """
        check_not_merged(self.encoder)
        self.config.extension_files()  # refuses what cannot travel
        absent = set(self.config.adapters or []) - set(self.loaded_adapters)
        if absent:
            raise ValueError(f"adapter {', '.join(sorted(absent))} is not loaded; saving loses it")
        encoder_state = None
        if state_dict is not None:
            tied = self.all_tied_weights_keys  # of a state gathered from several ranks: copies
            state_dict = {k: v for k, v in state_dict.items() if k not in tied}
            encoder_state = {k.removeprefix("encoder."): v for k, v in state_dict.items()}
        if self.loaded_adapters:
            state_dict = plain_state(self, state_dict or self.state_dict())
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **AUTO_MAP}
        if is_main_process:
            remove_saved(save_directory)
            hashes = {}
            for name in self.loaded_adapters:
                folder = os.path.join(save_directory, "adapters", name)
                hashes[name] = save_adapter(self.encoder, name, folder, encoder_state)
            self.config.adapter_hashes = hashes or None
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def _upload_modified_files(
        self,
        working_dir: Any,
        repo_id: str,
        files_timestamps: dict[str, float],
        commit_message: str | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
    ) -> Any:
        """For `push_to_hub`: as PushToHubMixin's, which knows no folders in folders (adapters)."""
        if revision is not None and not create_pr:
            hf_api().create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        return hf_api().upload_folder(
            repo_id=repo_id,
            folder_path=working_dir,
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            token=token,
            create_pr=create_pr,
            revision=revision,
        )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: transformers' hooks for hidden states, which cannot go, stay here.

        They are set at the first call that asks for hidden states, and so they will be again.
        """
        state = super().__getstate__()
        if getattr(self.encoder, HOOKED, False):
            encoder = without_capturing_hooks(self.encoder)
            state["_modules"] = {**state["_modules"], "encoder": encoder}
        return state

    # ---- parts that transformers asks for ----

    def _init_weights(self, module: nn.Module) -> None:
        """As PreTrainedModel's; experts give 0 at first."""
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            nn.init.zeros_(module.weight)  # transformers leaves weights that were read
        if isinstance(module, LayerMix):
            module.reset()

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's token embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's token embeddings."""
        self.encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The decoder of the head that is tied to the input embeddings, where it is one."""
        tied = self._tied_tasks
        return self.heads.get_submodule(f"{tied[0]}.decoder") if len(tied) == 1 else None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the decoder of the head that is tied to the input embeddings."""
        self.heads.get_submodule(self._tied_tasks[0]).decoder = new_embeddings

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable = checkpoint,
        **kwargs: Any,
    ) -> None:
        """As PreTrainedModel's; the recomputation goes through the adapters of its forward."""
        if enable and self.config.adapters:
            if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
                raise ValueError("adapters need checkpointing with use_reentrant=False")
            gradient_checkpointing_func = partial(
                gradient_checkpointing_func, context_fn=checkpoint_contexts
            )
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)
