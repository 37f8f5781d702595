"""A saved or exported model as a pipeline."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ...modeling.pipeline_polyhead import PolyheadPipeline
from ..artifacts import RUNS, SCORES
from ..errors import UserError
from .exported import ExportedModel, load_any


def load_pipeline(model: str, compute: str, device: Any = None) -> PolyheadPipeline:
    """A saved or exported model as a pipeline.

    Args:
        model: folder or Hub id.
        compute: how to compute.
        device: where; None for the pipeline's own choice.

    Raises:
        UserError: there is no such model, or it cannot compute so.
    """
    loaded, tokenizer = load_any(model)
    parts: Any = {"model": loaded, "tokenizer": tokenizer}
    try:
        loaded.set_compute(compute)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise UserError("--compute", [str(error)]) from error
    if isinstance(loaded, ExportedModel):
        device = -1  # its engine knows where it runs
    elif device is not None:
        loaded.to(device)  # beside other processes a Pipeline takes the model's device
    return PolyheadPipeline(**parts, device=device, compute=compute)  # pyright: ignore


def folder_of(model: str) -> Path:
    """The folder with a model's scores and trainings: itself, or where its Hub files are cached."""
    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, allow_patterns=["config.json", SCORES, RUNS]))
