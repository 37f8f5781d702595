"""One task of a Polyhead as a plain transformers model: adapter merged, head in HF's own class.

HF's classes differ in how they pool and what stands before the output layer, so not every head has
one. Layers are matched by kind and shape, and the written model is read again and must give the
task's logits: what does not fit is refused, not approximated.
"""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...modeling.causal import is_causal
from ...modeling.heads import HEADS
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.task_config import TaskConfig
from ..adapters import merged_encoder
from ..artifacts import write_aside
from ..errors import UserError
from ..hub.proof import probe_rows
from ..hub.sentence_transformers import save_sentence_transformers
from ..kinds import kind_of
from ..outputs import source_fault, target_faults

BARE = "AutoModel"  # transformers' class without a head
TOLERANCE = 1e-4  # of logits: merging rounds the sum of two weights once, instead of two products

logger = logging.getLogger(__name__)


def export_hf(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: str,
    folder: str | Path,
    overwrite: bool = False,
) -> str:
    """Write a task as a folder that stock transformers loads, without peft and without remote code.

    An embedding task becomes its encoder, with the files that sentence-transformers reads.

    Args:
        model: the model; it stays as it is.
        tokenizer: its tokenizer.
        task: name of the task.
        folder: folder to write.
        overwrite: replace an export, or a model, that stands there.

    Returns:
        name of the class that loads it.

    Raises:
        UserError: the task is unknown, `folder` is taken, or HF's class cannot hold the head.
    """
    folder = Path(folder)
    faults = task_faults(model, [task]) + output_faults(model, folder, overwrite=overwrite)
    if faults:
        raise UserError("export", faults)
    config, head = model.config.tasks[task], model.heads[task]
    kind = kind_of(config)
    if kind.auto_class is None:
        raise UserError("export", [f"{task}: transformers has no class for head {config.head}"])
    if config.answers_apart:
        fault = f"{task}: it {config.answers_apart}, which transformers does not know"
        raise UserError("export", [f"{fault}; export onnx or openvino"])
    if model.experts is not None:
        fault = f"{task}: transformers has no place for experts between encoder and head"
        raise UserError("export", [f"{fault}; export onnx or openvino"])
    bare = kind.auto_class == BARE
    if bare and config.projection:
        raise UserError("export", [f"{task}: a plain encoder has no place for its projection"])
    plain = merged_encoder(model, config.adapter)
    exported = plain if bare else _with_head(plain, config, head)
    with write_aside(folder) as aside:
        exported.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if bare:
            pooled = replace(config, pooling=config.pooling or model.config.pooling)
            width = model.config.hidden_size
            save_sentence_transformers(tokenizer, aside, plain=(pooled, width))
        difference = _difference(model, task, aside)
        if not difference <= TOLERANCE:
            raise UserError("export", [_misfit(type(exported).__name__, task, config, difference)])
    if config.decided_apart:
        logger.warning(
            f"{task}: a plain model has logits alone; its {config.decided_apart} "
            "(config.json of the Polyhead) are yours to apply"
        )
    return type(exported).__name__


def task_faults(model: PolyheadModel, tasks: list[str]) -> list[str]:
    """Tasks that the model lacks, or none at all; a mask that an export would lose."""
    known, encoder = ", ".join(model.task_names), model.encoder
    decodes = any(getattr(module, "is_causal", False) for module in encoder.modules())
    if is_causal(encoder.config) and not decodes:
        return [
            f"{encoder.config.model_type} has no causal mask of its own: exported it would see "
            "later tokens; a decoder (llama, ...) can be exported"
        ]
    unknown = [name for name in tasks if name not in model.task_names]
    faults = [f"--task: there is no task {name!r}; there are: {known}" for name in unknown]
    return faults if tasks else [f"--task: names none; there are: {known}"]


def output_faults(model: PolyheadModel, folder: Path, *, overwrite: bool) -> list[str]:
    """What keeps an export of a model from being written."""
    if fault := source_fault(str(model.config.name_or_path), folder, may_lie_inside=True):
        return [fault]
    return target_faults(folder, overwrite=overwrite)


def _with_head(encoder: PreTrainedModel, task: TaskConfig, head: nn.Module) -> PreTrainedModel:
    """HF's class for this kind of task on the encoder's weights, with the head's in it."""
    config = encoder.config
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: number for number, label in enumerate(task.labels)}
    elif kind_of(task).label_type == "number":
        config.num_labels = 1
    config.problem_type = task.problem_type  # pyright: ignore[reportAttributeAccessIssue]
    try:
        whole = _auto_class(task).from_config(config)
    except ValueError as error:
        reason = f"transformers has no {task.head} model for {config.model_type}"
        raise UserError("export", [reason]) from error
    whole.base_model.load_state_dict(encoder.state_dict(), strict=False)
    base_ids = {id(parameter) for parameter in whole.base_model.parameters()}
    known = dict(encoder.named_parameters())
    added = {id(p) for name, p in whole.base_model.named_parameters() if name not in known}
    layers = [
        module
        for module in whole.modules()
        if isinstance(module, (nn.Linear, nn.LayerNorm))
        and (id(module.weight) not in base_ids - added or module is whole.get_output_embeddings())
    ]
    parts = [m for m in head.children() if isinstance(m, (nn.Linear, nn.LayerNorm))]
    if task.grown:
        parts[-1] = _one_layer([parts[-1], *head.more])  # pyright: ignore
    if task.calibration is not None:
        parts[-1] = _divided(parts[-1], task.calibration)
    for layer, part in zip(layers, parts, strict=False):
        if layer.weight.shape == part.weight.shape:  # else the check of the logits tells
            layer.load_state_dict(part.state_dict(), strict=False)
    return whole.eval()


def _one_layer(layers: list[nn.Linear]) -> nn.Linear:
    """Output layers of a task that has grown as one."""
    whole = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers))
    weight = torch.cat([layer.weight for layer in layers]).detach()
    bias = torch.cat([layer.bias for layer in layers]).detach()
    whole.load_state_dict({"weight": weight, "bias": bias})
    return whole


def _divided(layer: Any, temperature: float) -> Any:
    """An output layer whose logits are those of another, divided."""
    divided = copy.deepcopy(layer)
    for parameter in divided.parameters():
        parameter.data /= temperature
    return divided


@torch.no_grad()
def _difference(model: PolyheadModel, task: str, folder: Path) -> float:
    """Largest difference of the task's logits (token states for embeddings) on the probe."""
    config = model.config.tasks[task]
    probe, written = probe_rows(model), _auto_class(config).from_pretrained(folder).eval()
    training = model.training
    expected = model.eval()(**probe, tasks=[task])
    model.train(training)
    real = probe["attention_mask"].bool()
    kind = kind_of(config)
    pairs: tuple[Tensor, Tensor] = (
        (written(**probe).last_hidden_state[real], expected.last_hidden_state[real])
        if kind.auto_class == BARE
        else (kind.plain_logits(written, probe), expected.logits[task])
    )
    if pairs[0].shape != pairs[1].shape:
        return float("inf")
    if HEADS[config.head].per_token:
        pairs = (pairs[0][real], pairs[1][real])
    return float((pairs[0] - pairs[1]).abs().max())


def _auto_class(task: TaskConfig) -> Any:
    return getattr(transformers, str(kind_of(task).auto_class))


def _misfit(name: str, task: str, config: TaskConfig, difference: float) -> str:
    head = f"pooling {config.pooling or 'of the model'}, activation {config.activation}"
    head += f", layers {config.layers}" if config.layers else ""
    head += ", layer_mix" if config.layer_mix else ""
    head += f", layer {config.layer}" if config.layer else ""
    return (
        f"{task}: {name} cannot hold this head ({head}): its logits would differ by "
        f"{difference:.2g}. It has a pooling and layers of its own; a task trained with those "
        "(BERT: pooling: cls, activation: tanh) can be exported"
    )
