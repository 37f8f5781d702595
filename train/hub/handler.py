"""Inference Endpoints: `{"inputs": text or texts, "parameters": {...}}` in, answers out."""

from typing import Any

import numpy as np
from transformers import pipeline


class EndpointHandler:
    """What the service makes once and calls for each request.

    Args:
        path: folder of the repository.
    """

    def __init__(self, path: str = "") -> None:
        self.pipeline: Any = pipeline(  # pyright: ignore[reportCallIssue]
            model=path, trust_remote_code=True
        )

    def __call__(self, data: dict[str, Any]) -> Any:
        """Predict; `parameters` are the pipeline's: tasks, top_k, threshold, batch_size."""
        return _plain(self.pipeline(data["inputs"], **data.get("parameters", {})))


def _plain(value: Any) -> Any:
    """Vectors as lists, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
