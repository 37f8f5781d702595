"""A Polyhead as one graph for ONNX Runtime and OpenVINO: tensors in, one named output per head.

Tasks that read the same adapter (or none) give a graph with the adapter merged into the weights.
Tasks of several adapters give one graph with an input `task_ids` (N,): each adapted layer looks up
the low-rank factors of each row's adapter (the batched gather of S-LoRA, arXiv:2311.03285) and adds
their product to what the base layer gives. Every head runs on every row; only the heads of the
row's adapter mean anything there. OpenVINO's is made of the ONNX graph. optimum is not used: it
pins transformers of a year ago.

Shapes: `N` texts, `T` tokens, `K` adapters, `r` rank.
"""

import copy
import importlib.metadata
import inspect
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.early_exit import LayersRead
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.packing import TextLayout
from ...modeling.pooling import pool
from ...modeling.routing import Routed
from ..adapters import merged_encoder
from ..artifacts import write_aside, write_json
from ..errors import UserError
from ..hub.proof import probe_rows
from ..inference.exported import FILE, PACKAGES, ExportedModel, missing_packages
from .bundle import add_runners, bundle_faults, check_bundle
from .plain import output_faults, task_faults

TOLERANCE = 1e-4  # of fp32 outputs against torch's
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "task_ids")
ONE_TASK = "export one of these tasks at a time, its adapter is merged then"


class Graph(nn.Module):
    """What is exported.

    Args:
        model: the model; it stays as it is.
        tasks: the tasks whose heads the graph holds, in the order that `task_ids` counts.

    Raises:
        ValueError: adapters of different tasks that are no plain LoRA on linear layers.
    """

    def __init__(self, model: PolyheadModel, tasks: list[str]) -> None:
        super().__init__()
        adapter_by_task = [model.config.tasks[name].adapter for name in tasks]
        self.adapters = list(dict.fromkeys(adapter_by_task))
        self.rows = Rows()
        if len(self.adapters) == 1:
            encoder = merged_encoder(model, self.adapters[0])
        else:
            encoder = stacked_encoder(model, self.adapters, self.rows)
        self.encoder = encoder.float().eval().requires_grad_(requires_grad=False)
        self.encoder.set_attn_implementation("eager" if not encoder._supports_sdpa else "sdpa")
        heads = {name: copy.deepcopy(model.heads[name]).float().eval() for name in tasks}
        self.heads = nn.ModuleDict(heads)
        self.experts = copy.deepcopy(model.experts)
        if self.experts is not None:
            self.experts.float().eval()
        self.adapter_of: Tensor
        self.register_buffer(
            "adapter_of", torch.tensor([self.adapters.index(a) for a in adapter_by_task])
        )

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs that the graph takes."""
        known = inspect.signature(self.encoder.forward).parameters
        left_out = [name for name in ("token_type_ids",) if name not in known]
        left_out += ["task_ids"] if len(self.adapters) == 1 else []
        return [name for name in INPUTS if name not in left_out]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Logits (embeddings) by task: (N, L), (N, T, L) or (N, D); `tensors` as `inputs` says."""
        inputs = dict(zip(self.inputs, tensors, strict=True))
        if "task_ids" in inputs:
            self.rows.adapters = self.adapter_of[inputs.pop("task_ids")]
        heads: Any = self.heads
        read = LayersRead.of(self.encoder, list(heads.values()), whole=False, attentions=False)
        options: Any = {"output_hidden_states": read.whole, "return_dict": True}
        output = read.exported(partial(self.encoder, **inputs, **options))
        last, texts = output.last_hidden_state, TextLayout(mask=inputs["attention_mask"])
        outputs, parts = [], () if self.experts is None else self.experts(last)
        for name, head in heads.items():
            x = last if head.layer is None else output.hidden_states[head.layer]
            if self.experts is not None:
                x, _ = self.experts.of_task(name, head, parts)
            mixes = head.layer_mix is not None
            if mixes:
                x = head.layer_mix((*output.hidden_states[:-1], last))
            if head.per_token:
                outputs.append(head(x))
            else:
                states = output.hidden_states if head.states_needed > 1 and not mixes else (x,)
                outputs.append(head(pool(states, texts, head.pooling)))
        return tuple(outputs)


class Rows:
    """Which adapter each row of the batch goes through, for the layers of one graph."""

    adapters: Tensor  # (N,)


class StackedLoRA(nn.Module):
    """y = W x + B_k A_k x * scaling, with the adapter k of each row (arXiv:2106.09685).

    Args:
        layer: a linear layer with PEFT's LoRA.
        adapters: the adapters, in the order that `rows` counts; None for the bare encoder.
        rows: the adapter of each row.
    """

    def __init__(self, layer: Any, adapters: list[str | None], rows: Rows) -> None:
        super().__init__()
        self.base = layer.base_layer
        self.rows = rows
        width = max(layer.r[name] for name in adapters if name in layer.r)
        down = torch.zeros(len(adapters), width, layer.in_features)
        up = torch.zeros(len(adapters), layer.out_features, width)
        bias = torch.zeros(len(adapters), 1, layer.out_features)
        for number, name in enumerate(adapters):
            if name not in layer.r:
                continue
            rank, last = layer.r[name], layer.lora_B[name]
            down[number, :rank] = layer.lora_A[name].weight.detach()
            up[number, :, :rank] = last.weight.detach() * layer.scaling[name]
            if last.bias is not None:
                bias[number, 0] = last.bias.detach() * layer.scaling[name]
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.bias = nn.Parameter(bias) if bool(bias.any()) else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, in) -> (N, T, out)."""
        chosen = self.rows.adapters
        if x.shape[0] != chosen.shape[0]:  # DeBERTa's relative positions
            raise ValueError(f"an adapted layer is not applied to the batch's tokens; {ONE_TASK}")
        update = x @ self.down[chosen].mT @ self.up[chosen].mT
        if self.bias is not None:
            update = update + self.bias[chosen]
        return self.base(x) + update


def stacked_encoder(
    model: PolyheadModel, adapters: list[str | None], rows: Rows
) -> PreTrainedModel:
    """A copy of the encoder whose adapted layers hold all of `adapters` at once.

    Raises:
        ValueError: an adapted layer is no linear one or its adapter no plain LoRA, or the encoder
            applies it to something else than the batch's tokens.
    """
    encoder: Any = copy.deepcopy(model.encoder)
    for path, module in list(encoder.named_modules()):
        if isinstance(module, Routed):
            parent, _, child = path.rpartition(".")
            setattr(encoder.get_submodule(parent), child, _stacked(path, module, adapters, rows))
    return encoder


def _stacked(path: str, layer: Any, adapters: list[str | None], rows: Rows) -> nn.Module:
    """What takes the place of one of PEFT's layers."""
    here = {name for part in layer.adapter_layer_names for name in getattr(layer, part)}
    if not here.intersection(adapters):
        return layer.base_layer
    variants = getattr(layer, "lora_variant", {})
    plain = isinstance(layer.base_layer, nn.Linear) and hasattr(layer, "lora_A")
    if not plain or any(name in variants for name in adapters):
        raise ValueError(f"{path}: its adapter is no plain LoRA of a linear layer; {ONE_TASK}")
    return StackedLoRA(layer, adapters, rows)


# ---- writing ----


def export_graph(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    *,
    tasks: list[str],
    folder: str | Path,
    bundle: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write tasks of a model as one graph; it is run and compared before it gets its name.

    Args:
        model: the model; it stays as it is.
        tokenizer: its tokenizer.
        kind: `onnx` or `openvino`.
        tasks: the tasks whose heads the graph gets. With one adapter (or none) among them it is
            merged; with several the graph takes `task_ids`.
        folder: folder to write.
        bundle: put runners beside it that need neither torch nor transformers, for `onnx`.
        overwrite: replace an export, or a model, that stands there.

    Returns:
        what `export.json` holds.

    Raises:
        UserError: a task is unknown, `folder` is taken, a package is missing, adapters do not fit
            one graph, the graph does not give the model's outputs, or the runners cannot give its
            answers.
    """
    folder = Path(folder)
    faults = missing_packages(kind) + task_faults(model, tasks)
    faults += output_faults(model, folder, overwrite=overwrite)
    if bundle:
        faults += bundle_faults(model, tokenizer, [n for n in tasks if n in model.task_names])
        faults += [] if kind == "onnx" else ["--bundle is for onnx; the runners read nothing else"]
    if faults:
        raise UserError("export", faults)
    try:
        with write_aside(folder) as aside:
            return _write_checked(model, tokenizer, kind, tasks, aside, bundle=bundle)
    except UserError:
        raise
    except (ValueError, torch.onnx.OnnxExporterError) as error:
        kind_of = "" if isinstance(error, ValueError) else "torch cannot export this encoder: "
        raise UserError("export", [f"{kind_of}{str(error).splitlines()[0]}"]) from error


def _write_checked(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    tasks: list[str],
    folder: Path,
    *,
    bundle: bool,
) -> dict[str, Any]:
    """Write the folder, run its graph and compare."""
    folder.mkdir()
    graph = Graph(model, tasks).eval()
    _write_graph(graph, kind, probe_rows(model), model.usable_length, folder)
    about = _describe(model, graph, kind)
    if bundle:
        add_runners(model, tokenizer, about, folder)
    write_json(folder / FILE, about)
    _config_of(model, tasks).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    difference = largest_difference(model, ExportedModel(folder))
    if not difference <= TOLERANCE:
        raise ValueError(f"the graph's outputs differ from the model's by {difference:.2g}")
    about["difference"] = difference
    write_json(folder / FILE, about)
    if bundle:
        check_bundle(folder, tokenizer)
    return about


def _write_graph(
    graph: Graph, kind: str, probe: dict[str, Tensor], limit: int | None, folder: Path
) -> None:
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=limit)
    probe["token_type_ids"] = torch.zeros_like(probe["input_ids"])
    probe["task_ids"] = torch.arange(len(probe["input_ids"])) % len(graph.heads)
    example = tuple(probe[name] for name in graph.inputs)
    shapes = tuple(
        {0: batch} if name == "task_ids" else {0: batch, 1: length} for name in graph.inputs
    )
    path = folder / "model.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own parts
        graph(*example)  # faults of adapters show here, in their own words
        torch.onnx.export(
            graph,
            example,
            path,
            input_names=graph.inputs,
            output_names=list(graph.heads),
            dynamic_shapes=(shapes,),
            dynamo=True,
            verbose=False,
        )
    if kind == "openvino":
        import openvino

        converted = openvino.convert_model(path)
        openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
        for written in folder.glob("model.onnx*"):
            written.unlink()


def _describe(model: PolyheadModel, graph: Graph, kind: str) -> dict[str, Any]:
    """What `export.json` holds."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES[kind]}
    return {
        "kind": kind,
        "precision": "fp32",
        "inputs": graph.inputs,
        "tasks": list(graph.heads),
        "adapters": {name: model.config.tasks[name].adapter for name in graph.heads},
        "usable_length": model.usable_length,
        "made_with": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **versions,
        },
    }


def _config_of(model: PolyheadModel, tasks: list[str]) -> PolyheadConfig:
    """The model's config with these tasks only, and no code to load."""
    config = copy.deepcopy(model.config)
    config.tasks = {name: config.tasks[name] for name in tasks}
    config.task_names = list(tasks)
    config.adapters = sorted({t.adapter for t in config.tasks.values() if t.adapter})
    config.auto_map = None
    return config


@torch.no_grad()
def largest_difference(model: PolyheadModel, other: "ExportedModel") -> float:
    """Largest difference of outputs on the probe, over all tasks and real tokens."""
    probe, training, worst = probe_rows(model), model.training, 0.0
    real = probe["attention_mask"].bool()
    model.eval()
    for name in other.task_names:
        outputs = [m(**probe, tasks=[name]) for m in (model, other)]
        one, two = ((o.logits or o.embeddings or {})[name].float() for o in outputs)
        if one.shape != two.shape:
            raise ValueError(f"{name}: the graph gives {tuple(two.shape)}, not {tuple(one.shape)}")
        if one.dim() == 3:
            one, two = one[real], two[real]
        difference = float((one - two).abs().max())
        worst = difference if difference != difference else max(worst, difference)  # NaN stays
    model.train(training)
    return worst
