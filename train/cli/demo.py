"""The command `demo`: a model on a page."""

import importlib.util
from typing import Annotated

import typer

from ..errors import UserError
from .console import note, say
from .predict import AllowCode, ComputeMode, ModelPath, run_code

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def demo(
    model: ModelPath,
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 7860,
    compute: ComputeMode = "auto",
    allow_code: AllowCode = False,
) -> None:
    """Show a model on a page in the browser: texts, similarity, maps, scores."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("demo", ['needs gradio; type: pip install "polyhead[page]"'])
    run_code(allow_code, model)
    from ..page import open_page

    if host not in LOOPBACK:
        note(f"{host} is open to others: all who reach it may use the page")
    open_page(
        model,
        host=host,
        port=port,
        compute=compute,
        opened=lambda address: say(f"{address} (Ctrl+C ends it)"),
    )
