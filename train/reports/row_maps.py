"""The rows of a task on a plane, as its head sees them: what it can tell apart, and what not.

For each task over whole texts the vectors that its head reads (through its adapter, pooled), and
for embeddings what it gives, of 300 validation rows at most, by PCA. It costs a pass over them.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...modeling.modeling_polyhead import PolyheadModel
from ..batches.collator import MultiTaskCollator, model_inputs
from ..data.dataset import MultiTaskDataset
from ..errors import UserError
from ..evaluation.scoring import EvalSplit
from .projection import project

ROWS = 300
ROWS_A_PASS = 16


def row_maps(
    model: PolyheadModel,
    splits: dict[str, EvalSplit],
    collator: MultiTaskCollator,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Task to the section `map` of its report: tasks over tokens and choices have none.

    Args:
        model: the model, its weights whole on this rank.
        splits: rows by source.
        collator: makes the batches; a copy is changed.
        prepare: moves a batch to the device.
        seed: chooses the rows.

    Returns:
        JSON-ready: `title`, `split`, `points` (two numbers for each text), `labels`, one for each.
    """
    collator = replace(
        collator,
        packed=False,
        sources={name: list(split.source.tasks) for name, split in splits.items()},
    )
    maps: dict[str, dict[str, Any]] = {}
    for name, split in splits.items():
        windows = [i for i, window in enumerate(split.rows["window"]) if window == 0]
        chosen = sorted(random.Random(seed).sample(windows, min(ROWS, len(windows))))
        tasks = [t for t in split.source.tasks if _has_vectors(model.heads[t])]
        if not tasks or len(chosen) < 2:
            continue
        dataset = MultiTaskDataset({name: split.rows.select(chosen)})
        vectors = _vectors(model, dataset, collator, prepare, tasks)
        raw = split.source.splits[split.split]
        numbers = split.rows.select(chosen)["row"]
        for task, rows in vectors.items():
            section = _section(model, task, split, rows, raw.select(numbers))
            if section is not None:
                maps[task] = section
    return maps


def _has_vectors(head: Any) -> bool:
    return not (head.per_token or head.chooses or head.decodes_spans)


def _vectors(
    model: PolyheadModel,
    dataset: MultiTaskDataset,
    collator: MultiTaskCollator,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    tasks: list[str],
) -> dict[str, np.ndarray]:
    """By task what its head reads, (rows, D), or, of embeddings, gives, (texts, D).

    Of a text in several windows it is their mean.
    """
    parts: dict[str, list[Tensor]] = {task: [] for task in tasks}

    def note(task: str) -> Callable[..., None]:
        def hook(head: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            grouped = model.config.tasks[task].head_class.output == "embeddings"
            parts[task].append((output if grouped else inputs[0]).detach().float().cpu())

        return hook

    hooks = [model.heads[task].register_forward_hook(note(task)) for task in tasks]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for start in range(0, len(dataset), ROWS_A_PASS):
            numbers = list(range(start, min(start + ROWS_A_PASS, len(dataset))))
            batch = prepare(collator(dataset.__getitems__(numbers)))
            inputs = {key: value for key, value in model_inputs(batch).items() if key != "labels"}
            with torch.no_grad():
                model(**inputs, tasks=tasks)
            if "window_counts" in batch:
                for rows in parts.values():
                    rows[-1] = means_by_text(rows[-1], batch["window_counts"].cpu())
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    return {task: torch.cat(rows).numpy() for task, rows in parts.items() if rows}


def means_by_text(vectors: Tensor, counts: Tensor) -> Tensor:
    """(N, D) vectors of windows to (M, D) of the texts that `counts`, (M,), puts them in."""
    if len(vectors) == len(counts):  # the first window of each is read
        return vectors
    text = torch.arange(len(counts)).repeat_interleave(counts)
    sums = torch.zeros(len(counts), vectors.shape[1]).index_add(0, text, vectors)
    return sums / counts[:, None]


def _section(
    model: PolyheadModel, task: str, split: EvalSplit, vectors: np.ndarray, rows: Any
) -> dict[str, Any] | None:
    """The map of one task; None where its vectors cannot be put on a plane."""
    data, texts = split.source.tasks[task].data, len(vectors) // max(1, len(rows))
    if model.config.tasks[task].head_class.output == "embeddings" and texts > 1:
        names = [data.text or "text", data.text_pair or "text_pair", "negative"]
        labels: list[Any] = [names[min(i, 2)] for i in range(texts)] * len(rows)
        title = "column"
    elif data.label is None or texts != 1:
        labels, title = [None] * len(vectors), ""
    else:
        labels, title = list(map(_shown, rows[data.label])), data.label
    try:
        shown = project(vectors, "pca")
    except UserError:  # all alike, or not finite
        return None
    return {
        "title": shown.title,
        "column": title if isinstance(title, str) else "label",
        "split": split.split,
        "points": np.round(shown.points, 4).tolist(),
        "labels": labels,
    }


def _shown(label: Any) -> Any:
    """A raw label as one value: several are one text, a vector is none."""
    if isinstance(label, (list, tuple)):
        texts = [str(part) for part in label if isinstance(part, str)]
        return ", ".join(texts) if texts or not label else None
    return None if isinstance(label, float) and not np.isfinite(label) else label
