"""A Polyhead written for ONNX Runtime or OpenVINO, and run from there with the same decoding.

The folder holds the graph (`model.onnx`, or `model.xml` and `model.bin`), the tokenizer, the tasks'
config and `export.json`: what goes in, what comes out, what made it. Both kinds come from one ONNX
graph. optimum is not used: it pins transformers of a year ago.
"""

import copy
import importlib.metadata
import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..modeling.configuration_polyhead import PolyheadConfig
from ..modeling.modeling_polyhead import PolyheadModel, PolyheadOutput
from .errors import RecipeError
from .files import write_json
from .graph import Graph
from .preparation import load_model
from .proof import probe_rows

FILE = "export.json"
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "int8": ("nncf",),
}
TOLERANCE = 1e-4  # of fp32 outputs against torch's


# ---- writing ----


def export_graph(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    *,
    tasks: list[str],
    folder: str | Path,
) -> dict[str, Any]:
    """Write tasks of a model as one graph; it is run and compared before it gets its name.

    Args:
        model: the model; it stays as it is.
        tokenizer: its tokenizer.
        kind: `onnx` or `openvino`.
        tasks: the tasks whose heads the graph gets. With one adapter (or none) among them it is
            merged; with several the graph takes `task_ids`.
        folder: folder to write; must not be there.

    Returns:
        what `export.json` holds.

    Raises:
        RecipeError: a task is unknown, `folder` is taken, a package is missing, adapters do not fit
            one graph, or the graph does not give the model's outputs.
    """
    folder = Path(folder)
    aside = folder.with_name(f"{folder.name}.unchecked")
    faults = missing_packages(kind) + [
        f"--task: there is no task {name!r}; there are: {', '.join(model.task_names)}"
        for name in tasks
        if name not in model.task_names
    ]
    faults += [f"--output: {p} exists; name a new folder" for p in (folder, aside) if p.exists()]
    if faults:
        raise RecipeError("export", faults)
    aside.mkdir(parents=True)
    try:
        graph = Graph(model, tasks).eval()
        _write_graph(graph, kind, probe_rows(model), model.usable_length, aside)
        found = _describe(model, graph, kind)
        write_json(aside / FILE, found)
        _config_of(model, tasks).save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        difference = largest_difference(model, ExportedModel(aside))
        if not difference <= TOLERANCE:
            raise ValueError(f"the graph's outputs differ from the model's by {difference:.2g}")
        found["difference"] = difference
        write_json(aside / FILE, found)
        aside.rename(folder)
    except (ValueError, torch.onnx.OnnxExporterError) as error:
        kind_of = "" if isinstance(error, ValueError) else "torch cannot export this encoder: "
        raise RecipeError("export", [f"{kind_of}{str(error).splitlines()[0]}"]) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found


def missing_packages(kind: str) -> list[str]:
    """What to type when a package that `kind` needs is not there."""
    absent = [name for name in PACKAGES[kind] if importlib.util.find_spec(name) is None]
    return (
        [f'{kind} needs {", ".join(absent)}; type: pip install "polyhead[{kind}]"']
        if absent
        else []
    )


def _write_graph(
    graph: Graph, kind: str, probe: dict[str, Tensor], limit: int | None, folder: Path
) -> None:
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=limit)
    probe["token_type_ids"] = torch.zeros_like(probe["input_ids"])
    probe["task_ids"] = torch.arange(len(probe["input_ids"])) % len(graph.heads)
    given = tuple(probe[name] for name in graph.inputs)
    shapes = tuple(
        {0: batch} if name == "task_ids" else {0: batch, 1: length} for name in graph.inputs
    )
    path = folder / "model.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own parts
        graph(*given)  # faults of adapters show here, in their own words
        torch.onnx.export(
            graph,
            given,
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


# ---- running ----


# Runs a graph: arrays by input name in, arrays by task out.
Engine = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def onnx_engine(folder: Path) -> Engine:
    """ONNX Runtime on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=onnxruntime.get_available_providers()
    )
    names = [output.name for output in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(names, given), strict=True))


def openvino_engine(folder: Path) -> Engine:
    """OpenVINO on as many threads as torch has, in fp32: by itself it would take bf16."""
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled(given)
        return {name: found[name] for name in names}

    return run


ENGINES = {"onnx": onnx_engine, "openvino": openvino_engine}


class ExportedModel(nn.Module):
    """An exported graph in the place of a `PolyheadModel`, for the pipeline and for evaluation.

    Args:
        folder: what `export_graph` wrote.

    Raises:
        RecipeError: a package is missing that runs the graph.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.about = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        faults = missing_packages(self.about["kind"])
        if faults:
            raise RecipeError(str(folder), faults)
        self.config = PolyheadConfig.from_pretrained(folder)
        self.engine = ENGINES[self.about["kind"]](Path(folder))
        self.device = torch.device("cpu")
        with torch.device("meta"):  # what to run and its losses; no weights, and no part of this
            self.__dict__["shell"] = PolyheadModel(self.config)

    @property
    def task_names(self) -> list[str]:
        """The tasks in the order that `task_ids` counts them."""
        return self.about["tasks"]

    @property
    def usable_length(self) -> int | None:
        """Number of tokens that the graph takes; None where it has no limit."""
        return self.about["usable_length"]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Iterable[str] | None = None,
        task_ids: Tensor | None = None,
        labels: dict[str, Tensor] | None = None,
    ) -> PolyheadOutput:
        """As `PolyheadModel.forward`; the encoder runs once for each adapter of the rows."""
        shell: PolyheadModel = self.__dict__["shell"]
        names = shell._names_to_run(tasks, labels)
        rows = shell._rows_by_task(names, task_ids, len(input_ids))
        names = [name for name in names if (own := rows[name]) is None or len(own)]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        found = self._outputs(names, rows, given)
        losses = {}
        for name in labels or {}:
            target = shell._labels_of(name, labels, rows[name], len(input_ids))
            losses[name] = shell._head(name).loss(found[name], target)  # pyright: ignore
        weights = self.config.tasks
        embeds = [name for name in found if self.config.tasks[name].head == "embedding"]
        return PolyheadOutput(
            loss=sum(weights[n].loss_weight * x for n, x in losses.items()) if losses else None,  # pyright: ignore
            logits={name: found[name] for name in found if name not in embeds} or None,
            embeddings={name: found[name] for name in embeds} or None,
            losses=losses or None,
        )

    def _outputs(
        self, names: list[str], rows: dict[str, Tensor | None], given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Outputs of each task's own rows, one run for each adapter among the tasks."""
        adapters, found = self.about["adapters"], {}
        for adapter in dict.fromkeys(adapters[name] for name in names):
            group = [name for name in names if adapters[name] == adapter]
            wanted = [rows[name] for name in group]
            every = torch.arange(len(given["input_ids"]))
            taken = every if None in wanted else torch.cat(wanted).unique()  # pyright: ignore
            feed = {
                name: given[name][taken].numpy() for name in given if name in self.about["inputs"]
            }
            if "task_ids" in self.about["inputs"]:
                number = self.task_names.index(group[0])
                feed["task_ids"] = np.full(len(taken), number, dtype=np.int64)
            output = self.engine(feed)
            for name in group:
                own = rows[name]
                values = torch.from_numpy(output[name])
                found[name] = values if own is None else values[torch.searchsorted(taken, own)]
        return found

    def count_items(self, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `PolyheadModel.count_items`."""
        return self.__dict__["shell"].count_items(labels)


def load_any(path: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """A saved Polyhead, or an exported one, and its tokenizer.

    Raises:
        RecipeError: there is neither at `path`, or a package is missing that runs it.
    """
    if not (Path(path) / FILE).is_file():
        return load_model(path)
    return ExportedModel(path), AutoTokenizer.from_pretrained(path)
