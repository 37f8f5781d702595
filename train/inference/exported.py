"""An exported graph, run by ONNX Runtime or OpenVINO in the place of the model it was made of.

The folder holds the graph (`model.onnx`, or `model.xml` and `model.bin`), the tokenizer, the tasks'
config and `export.json`: what goes in, what comes out, what made it. `export/graph.py` writes it.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...modeling.compute import Compute, Mode
from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.modeling_polyhead import PolyheadModel, PolyheadOutput
from ...modeling.rows import read_rows, tasks_to_run
from ...modeling.windows import window_length
from ..errors import UserError
from ..records import EXPORTED, read_record
from .load import load_model, load_tokenizer

FILE = "export.json"
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "int8": ("nncf",),
}


def missing_packages(kind: str) -> list[str]:
    """What to type when a package that `kind` needs is not there."""
    absent = [name for name in PACKAGES[kind] if importlib.util.find_spec(name) is None]
    return (
        [f'{kind} needs {", ".join(absent)}; type: pip install "polyhead[{kind}]"']
        if absent
        else []
    )


# Errors of ONNX Runtime for a file that holds no graph.
UNREADABLE = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel")
# Runs a graph: arrays by input name in, arrays by task out.
Engine = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def onnx_engine(folder: Path, mode: Mode = "exact") -> Engine:
    """ONNX Runtime on as many threads as torch has, in the graph's own precision."""
    import onnxruntime

    states = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    if mode == "bf16":
        raise ValueError("compute is 'bf16'; ONNX Runtime runs the graph in its own precision")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session: Any = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=onnxruntime.get_available_providers()
        )
    except tuple(getattr(states, name) for name in UNREADABLE) as error:
        raise ValueError(str(error)) from error
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def openvino_engine(folder: Path, mode: Mode = "exact") -> Engine:
    """OpenVINO on as many threads as torch has, in fp32 unless bf16 is asked for."""
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if mode == "bf16" else "f32",  # else it chooses
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = compiled.create_infer_request().infer(inputs)  # compiled(...) is for one thread
        return {name: outputs[name] for name in names}

    return run


ENGINES = {"onnx": onnx_engine, "openvino": openvino_engine}
GRAPHS = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin")}
AGAIN = "copy the folder again, or export the model again"


def read_about(folder: str | Path) -> dict[str, Any]:
    """What `export.json` holds, checked, and that the graph lies beside it.

    Raises:
        UserError: it cannot be read, is of an unknown kind, or the graph is missing.
    """
    about = read_record(Path(folder) / FILE, EXPORTED, {})
    kind = about.get("kind")
    if kind not in ENGINES:
        known = ", ".join(ENGINES)
        raise UserError(str(folder), [f"{FILE}: kind is {kind!r:.80}; allowed: {known}"])
    absent = [name for name in GRAPHS[kind] if not (Path(folder) / name).is_file()]
    faults = [f"{name} is missing; {AGAIN}" for name in absent]
    if set(about["adapters"]) != set(about["tasks"]):
        faults.append(f"{FILE}: adapters and tasks name other tasks; {AGAIN}")
    several = len(set(about["adapters"].values())) > 1
    needed = {"input_ids", "task_ids"} if several else {"input_ids"}
    if absent_inputs := needed - set(about["inputs"]):
        faults.append(f"{FILE}: inputs lack {', '.join(sorted(absent_inputs))}; {AGAIN}")
    if about["usable_length"] is not None and about["usable_length"] < 1:
        faults.append(f"{FILE}: usable_length is {about['usable_length']}; {AGAIN}")
    if faults:
        raise UserError(str(folder), faults)
    return about


class ExportedModel(nn.Module):
    """An exported graph in the place of a `PolyheadModel`, for the pipeline and for evaluation.

    Args:
        folder: what `export_graph` wrote.

    Raises:
        UserError: a package is missing that runs the graph.
    """

    can_pack = False

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.about = read_about(folder)
        faults = missing_packages(self.about["kind"])
        if faults:
            raise UserError(str(folder), faults)
        try:
            self.config = PolyheadConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(str(folder), [str(error).strip().splitlines()[0]]) from error
        if self.about["tasks"] != self.config.task_names:
            raise UserError(str(folder), [f"{FILE} and config.json name other tasks; {AGAIN}"])
        self.folder, self.runs_bf16, self.dtype = Path(folder), False, torch.float32
        self.compute = Compute("exact")
        try:
            self.engine = ENGINES[self.about["kind"]](self.folder)
        except (RuntimeError, ValueError) as error:
            fault = f"the graph cannot be opened ({str(error).strip().splitlines()[0]}); {AGAIN}"
            raise UserError(str(folder), [fault]) from error
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

    def set_compute(self, mode: Mode) -> Compute:
        """As `PolyheadModel.set_compute`; OpenVINO alone knows bf16.

        Raises:
            ValueError: bf16 is asked of ONNX Runtime.
        """
        if (mode == "bf16") != self.runs_bf16:
            self.engine = ENGINES[self.about["kind"]](self.folder, mode)
            self.runs_bf16 = mode == "bf16"
        self.compute = Compute(mode, reason=f"as {self.about['kind']} computes")
        return self.compute

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Iterable[str] | None = None,
        task_ids: Tensor | None = None,
        labels: dict[str, Tensor] | None = None,
        window_counts: Tensor | None = None,
    ) -> PolyheadOutput:
        """As `PolyheadModel.forward`; the encoder runs once for each adapter of the rows."""
        shell: PolyheadModel = self.__dict__["shell"]
        names = tasks_to_run(shell.task_names, tasks, labels)
        read = read_rows(
            self.config.tasks, shell.task_names, names, task_ids, len(input_ids), window_counts
        )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        outputs = self._outputs(read.names, read.rows, inputs)
        for name, rows in read.rows.items() if read.windows is not None else ():
            of_rows = attention_mask if rows is None else attention_mask[rows]
            outputs[name] = read.pool(name, outputs[name], of_rows.sum(1))
        losses = {}
        for name in labels or {}:
            target = read.labels(name, labels)
            losses[name] = shell._head(name).loss(outputs[name], target)  # pyright: ignore
        weights = self.config.tasks
        embeds = [name for name in outputs if name in self.config.embedding_tasks]
        return PolyheadOutput(
            loss=sum(weights[n].loss_weight * x for n, x in losses.items()) if losses else None,  # pyright: ignore
            logits={name: outputs[name] for name in outputs if name not in embeds} or None,
            embeddings={name: outputs[name] for name in embeds} or None,
            losses=losses or None,
        )

    def _outputs(
        self, names: list[str], rows: dict[str, Tensor | None], inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Outputs of each task's own rows, one run for each adapter among the tasks."""
        adapters, outputs = self.about["adapters"], {}
        for adapter in dict.fromkeys(adapters[name] for name in names):
            group = [name for name in names if adapters[name] == adapter]
            group_rows = [rows[name] for name in group]
            every = torch.arange(len(inputs["input_ids"]))
            taken = every if None in group_rows else torch.cat(group_rows).unique()  # pyright: ignore
            feed = {
                name: inputs[name][taken].numpy() for name in inputs if name in self.about["inputs"]
            }
            if "task_ids" in self.about["inputs"]:
                number = self.task_names.index(group[0])
                feed["task_ids"] = np.full(len(taken), number, dtype=np.int64)
            output = self.engine(feed)
            for name in group:
                task_rows = rows[name]
                values = torch.from_numpy(output[name])
                outputs[name] = (
                    values if task_rows is None else values[torch.searchsorted(taken, task_rows)]
                )
        return outputs

    def count_items(self, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `PolyheadModel.count_items`."""
        return self.__dict__["shell"].count_items(labels)


def load_any(path: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """A saved Polyhead, or an exported one, and its tokenizer.

    Raises:
        UserError: there is neither at `path`, or a package is missing that runs it.
    """
    if not (Path(path) / FILE).is_file():
        return load_model(path)
    model = ExportedModel(path)
    tokenizer = load_tokenizer(path, getattr(model.config, "vocab_size", None))
    tokenizer.model_max_length = window_length(tokenizer, model.usable_length)
    return model, tokenizer
