"""A model that serves: loaded, tried once, and checked against the one that it replaces."""

import copy
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ...modeling.first_use import FIRST_USE
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.pipeline_polyhead import PolyheadPipeline
from ..commands.edit_tasks import verify
from ..errors import UserError
from ..hub.proof import compare, fingerprint, read_proofs
from ..inference.exported import ExportedModel, load_any
from ..recipe.code import allow_code
from .settings import Settings

TRIAL = {"text": "a", "pair": ("a", "a"), "choices": ("a", ["a"])}  # by what a task reads


@dataclass
class Loaded:
    """A pipeline, where it came from, and how many came before it."""

    pipe: PolyheadPipeline
    folder: str
    generation: int = 0

    @cached_property
    def plain_tokenizer(self) -> PreTrainedTokenizerBase:
        """A copy that cuts nothing; the pipeline's own are set to cut."""
        with FIRST_USE:
            tokenizer = copy.deepcopy(self.pipe.tokenizer)
        tokenizer(["a"], truncation=False)
        return tokenizer

    @property
    def tasks(self) -> list[str]:
        """Names of its tasks."""
        return list(self.pipe.model.task_names)


def load(folder: str, settings: Settings, generation: int = 0) -> Loaded:
    """Load a model and answer once, so that no client waits for what is made at first use.

    Raises:
        UserError: there is no model, or it cannot compute as asked.
    """
    # oneDNN keeps what it compiled for each shape, and packed batches have ever new shapes
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    if settings.allow_code:
        allow_code(folder)
    model, tokenizer = load_any(folder)
    try:
        model.set_compute(settings.compute)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise UserError("--compute", [str(error)]) from error
    device: Any = None
    if isinstance(model, ExportedModel):
        device = -1  # its engine knows where it runs
    elif torch.cuda.is_available():
        device = 0
    if settings.cache and isinstance(model, ExportedModel):
        raise UserError("--cache", ["an exported model is one graph, without encodings to keep"])
    pipe = PolyheadPipeline(
        model=model,
        tokenizer=tokenizer,
        device=device,
        compute=settings.compute,  # pyright: ignore[reportArgumentType]
        cache=settings.cache,
    )
    for reads in {task.reads for task in model.config.tasks.values()}:
        call = pipe.read([TRIAL[reads]])
        entries = call.more()
        for entry, values in zip(entries, pipe.encode(entries), strict=True):
            entry.take(values)
        call.answers()
    return Loaded(pipe, folder, generation)


def replacement(
    old: Loaded, folder: str, settings: Settings, *, allow_removed: bool
) -> tuple[Loaded, dict[str, Any]]:
    """The model to serve after `old`, and what of it is the same.

    The tasks that the folder's latest proof names have not changed, it says: they are compared with
    those that are serving, weights and logits.

    Returns:
        the model, and `{"tasks", "added", "removed", "changed", "unchanged", "proven"}`; the last
        three are None where one of the two is exported, which has no weights to compare.

    Raises:
        UserError: the folder does not load or is not what its proof says, a task is gone, or one
            that should be the same is not.
    """
    if not Path(folder).is_dir():
        raise UserError("the new model", ["is no folder on the server; copy it there first"])
    new = load(folder, settings, old.generation + 1)
    removed = [name for name in old.tasks if name not in new.tasks]
    faults = []
    if removed and not allow_removed:
        gone = ", ".join(removed)
        faults.append(f"it lacks {gone}, which are served now; allow_removed: true lets them go")
    told: dict[str, Any] = {
        "tasks": new.tasks,
        "added": [name for name in new.tasks if name not in old.tasks],
        "removed": removed,
        **dict.fromkeys(("changed", "unchanged", "proven")),
    }
    models = [loaded.pipe.model for loaded in (old, new)]
    if not faults and all(isinstance(model, PolyheadModel) for model in models):
        proofs = read_proofs(folder)
        before, after = map(fingerprint, models)
        both = [name for name in old.tasks if name in new.tasks]
        same = [name for name in both if before["tasks"][name] == after["tasks"][name]]
        same = same if before["encoder"] == after["encoder"] else []
        told["unchanged"], told["changed"] = same, [name for name in both if name not in same]
        told["proven"] = []
        if proofs:
            proven = [name for name in verify(folder)["tasks"] if name in both]
            faults += compare(before, after, proven)
            told["proven"] = proven
    if faults:
        raise UserError("the new model", faults)
    return new, told
