"""Inference Endpoints: `{"inputs": text or texts, "parameters": {...}}` in, answers out."""

from typing import Any

import numpy as np
from transformers import pipeline

PARAMETERS = ("tasks", "top_k", "threshold", "batch_tokens", "batch_size", "document")


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
        """Predict; `parameters` are the pipeline's: tasks, top_k, threshold, batch_size.

        Raises:
            ValueError: the request has other keys, or a parameter is unknown or not in its range.
        """
        keys = set(data) if isinstance(data, dict) else None
        if keys is None or "inputs" not in keys or not keys <= {"inputs", "parameters"}:
            what = type(data).__name__ if keys is None else f"the keys {sorted(map(str, keys))}"
            raise ValueError(f'the request has {what}; give {{"inputs": ..., "parameters": ...}}')
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters is {parameters!r:.80}; give an object of names")
        unknown = sorted(map(str, set(parameters) - set(PARAMETERS)))
        if unknown:
            raise ValueError(
                f"unknown parameter {', '.join(unknown)}; allowed: {', '.join(PARAMETERS)}"
            )
        return _plain(self.pipeline(data["inputs"], **parameters))


def _plain(value: Any) -> Any:
    """Vectors as lists, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
