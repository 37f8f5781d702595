"""The command `serve`: a model behind HTTP."""

import importlib.util
import os
from typing import Annotated

import typer

from ..errors import UserError
from .console import note
from .predict import AllowCode, BatchTokens, ComputeMode, ModelPath

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def serve(  # noqa: PLR0913 - each is an option of the command line
    model: ModelPath,
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the model.")] = 1,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="POLYHEAD_TOKEN", help="What clients must give; best set as the variable."
        ),
    ] = None,
    max_texts: Annotated[int, typer.Option(min=1, help="Of one request.")] = 1024,
    max_waiting: Annotated[int, typer.Option(min=1, help="Texts; more are refused, 429.")] = 8192,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds until 504.")] = 60.0,
    batch_tokens: BatchTokens = None,
    compute: ComputeMode = "auto",
    cache: Annotated[
        int, typer.Option(min=0, help="Encodings kept of the last texts, for other tasks of them.")
    ] = 0,
    allow_code: AllowCode = False,
) -> None:
    """Serve a model over HTTP: /predict, /v1/embeddings, /docs, ..."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        fault = f'serve needs {", ".join(absent)}; type: pip install "polyhead[serve]"'
        raise UserError("serve", [fault])
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise UserError("--token", ["a token is printable ASCII, and not empty"])
    from ..serving.run import LOOPBACK
    from ..serving.run import serve as run
    from ..serving.settings import Settings

    settings = Settings(
        model=model,
        compute=compute,
        cache=cache,
        token=token,
        allow_code=allow_code,
        batch_tokens=batch_tokens,
        max_texts=max_texts,
        max_waiting=max_waiting,
        timeout=timeout,
    )
    if host not in LOOPBACK and token is None:
        note(f"{host} is open to others and there is no token: all who reach it may ask")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    run(settings, host=host, port=port, workers=workers)
