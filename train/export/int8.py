"""An exported graph in int8, calibrated on the rows that its tasks train on, and what it costs.

NNCF's post-training quantisation, for ONNX and OpenVINO alike: weights and activations in 8 bits,
ranges found on real rows. Embeddings suffer most, and only a score on the task's own data says how
much; so a table of scores before and after belongs to every int8 export.
"""

import contextlib
import dataclasses
import importlib.metadata
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ...modeling.modeling_polyhead import PolyheadModel
from ..artifacts import write_aside, write_json
from ..commands.scoring import evaluate
from ..data.loading import Source, load_sources
from ..data.tokenization import tokenize
from ..errors import UserError
from ..inference.exported import FILE, ExportedModel, missing_packages
from ..recipe.reader import load_recipe
from ..recipe.schema import Recipe
from .graph import export_graph
from .plain import output_faults

ROWS = 64  # of each source, to find the ranges of activations
SEED = 42


def export_int8(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    *,
    tasks: list[str],
    folder: str | Path,
    recipe: str | Path,
    overrides: list[str] | None = None,
    bundle: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write tasks of a model as one int8 graph, and score it against the fp32 graph.

    Args:
        model: the model; it stays as it is.
        tokenizer: its tokenizer.
        kind: `onnx` or `openvino`.
        tasks: the tasks whose heads the graph gets.
        folder: folder to write.
        recipe: its training rows calibrate, its validation rows (test, where a source has none)
            are scored; it has some or all of `tasks`.
        overrides: `key=value` with dotted keys, for the recipe.
        bundle: as `export_graph`.
        overwrite: replace an export, or a model, that stands there.

    Returns:
        what `export.json` holds; under `int8` the main metric of each task before and after.

    Raises:
        UserError: as `export_graph`, faults of the recipe, or it has a task that is not exported.
    """
    folder = Path(folder)
    loaded_recipe = load_recipe(recipe, overrides)
    if faults := _faults(loaded_recipe, tasks) + output_faults(model, folder, overwrite=overwrite):
        raise UserError("export", faults)
    sources = load_sources(loaded_recipe)
    split = "validation" if all("validation" in s.splits for s in sources) else "test"
    with write_aside(folder) as small, tempfile.TemporaryDirectory() as scratch:
        full = Path(scratch) / "fp32"
        about = export_graph(model, tokenizer, kind, tasks=tasks, folder=full, bundle=bundle)
        before = evaluate(full, recipe, overrides, split=split)["tasks"]
        rows = calibration_rows(sources, tokenizer, ExportedModel(full))
        shutil.copytree(full, small)
        QUANTIZE[kind](small, rows)
        after = evaluate(small, recipe, overrides, split=split)["tasks"]
        about["precision"] = "int8"
        about["made_with"]["nncf"] = importlib.metadata.version("nncf")
        about["int8"] = {
            "calibrated_on": f"{len(rows)} training rows",
            "scored_on": split,
            "tasks": {name: _cost(before[name], after[name]) for name in before},
        }
        write_json(small / FILE, about)
    return about


def _faults(recipe: Recipe, tasks: list[str]) -> list[str]:
    """What is missing, or asked for and not exported."""
    return [
        *missing_packages("int8"),
        *(
            f"tasks.{name}: is not exported; exported are: {', '.join(tasks)}"
            for name in recipe.tasks
            if name not in tasks
        ),
    ]


def _cost(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The task's first metric before and after."""
    metric = next(iter(before))
    return {"metric": metric, "fp32": before[metric], "int8": after[metric]}


def calibration_rows(
    sources: list[Source], tokenizer: PreTrainedTokenizerBase, model: ExportedModel
) -> list[dict[str, np.ndarray]]:
    """Inputs of the graph, one text each and without padding, from every source's training rows."""
    inputs = []
    for source in sources:
        rows = source.splits["train"].shuffle(seed=SEED)
        few = rows.select(range(min(ROWS, len(rows))))
        part = dataclasses.replace(source, splits={"train": few})
        for row in tokenize(part, "train", tokenizer):
            for number, ids in enumerate(row["input_ids"]):  # pyright: ignore
                types = row.get("token_type_ids")  # pyright: ignore
                task = model.task_names.index(next(iter(source.tasks)))
                values = {
                    "input_ids": [ids],
                    "attention_mask": [[1] * len(ids)],
                    "token_type_ids": [types[number] if types else [0] * len(ids)],
                    "task_ids": [task],
                }
                names = model.about["inputs"]
                inputs.append({name: np.array(values[name], dtype=np.int64) for name in names})
    return inputs


def _quantize_onnx(folder: Path, rows: list[dict[str, np.ndarray]]) -> None:
    import onnx

    path = folder / "model.onnx"
    quantized: Any = _quantized(onnx.load(path), rows)
    for written in folder.glob("model.onnx*"):
        written.unlink()
    onnx.save(quantized, path)


def _quantize_openvino(folder: Path, rows: list[dict[str, np.ndarray]]) -> None:
    import openvino

    quantized = _quantized(openvino.Core().read_model(folder / "model.xml"), rows)
    openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)
    for ending in ("xml", "bin"):
        (folder / f"int8.{ending}").replace(folder / f"model.{ending}")


QUANTIZE = {"onnx": _quantize_onnx, "openvino": _quantize_openvino}


def _quantized(model: Any, rows: list[dict[str, np.ndarray]]) -> Any:
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            model, nncf.Dataset(rows), subset_size=len(rows), model_type=nncf.ModelType.TRANSFORMER
        )
