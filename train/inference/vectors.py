"""Vectors of texts to look at: of an embedding task, or of the encoder where there is none."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.pipeline_polyhead import PolyheadPipeline

TEXTS_A_PASS = 16


def text_vectors(
    pipe: PolyheadPipeline, texts: Sequence[str], task: str | None = None
) -> np.ndarray:
    """Vectors of texts, in their order.

    Args:
        pipe: the model and its tokenizer.
        texts: N.
        task: an embedding task. It may be left out where the model has one; where it has none the
            encoder's states are taken, pooled as the model pools and without adapters.

    Returns:
        (N, D) float32.

    Raises:
        ValueError: there is no such embedding task, or several and none is named.
    """
    model = pipe.model
    if model.config.embedding_tasks or task or not isinstance(model, PolyheadModel):
        name = model.config.embedding_task(task)
        answers: Any = pipe(list(texts), [name])
        return np.stack([answer[name] for answer in answers])
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    vectors: list[np.ndarray | None] = [None] * len(texts)
    for start in range(0, len(order), TEXTS_A_PASS):
        rows = order[start : start + TEXTS_A_PASS]
        part = [texts[row] for row in rows]
        tokens = pipe.tokenizer(part, padding=True, truncation=True, return_tensors="pt")
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs: Any = {name: tokens[name].to(model.device) for name in names if name in tokens}
        with torch.no_grad():
            states = model.embed(**inputs).float().cpu().numpy()
        for row, vector in zip(rows, states, strict=True):
            vectors[row] = vector
    return np.stack(vectors)  # pyright: ignore[reportArgumentType, reportCallIssue]
