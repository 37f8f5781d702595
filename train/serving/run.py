"""uvicorn around the application: processes, logs that hold no texts, a stop that loses nothing."""

import os
import tempfile
from dataclasses import replace
from typing import Any

import uvicorn

from .app import create_app
from .loaded import load
from .settings import Settings

KEEP_ALIVE = 30  # seconds that an idle connection is kept
GRACE = 30  # seconds that requests in flight get when the server stops
APP = "polyhead.train.serving.app:create_app"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(settings: Settings, *, host: str, port: int, workers: int) -> None:
    """Serve until told to stop.

    Args:
        settings: the model and the limits.
        host: address to listen on.
        port: 0 for any that is free.
        workers: processes, each with the model; one that dies is started anew.

    Raises:
        UserError: there is no model, or it cannot compute as asked.
    """
    loaded = load(settings.model, settings)  # a fault is told before anything listens
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "workers": workers,
        "log_level": "info",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": GRACE,
        "timeout_keep_alive": KEEP_ALIVE,
        "lifespan": "on",
        "ws": "none",
    }
    if workers == 1:
        uvicorn.run(create_app(settings, loaded), **options)
        return
    del loaded  # each process has its own
    with tempfile.TemporaryDirectory(prefix="polyhead-serve-") as board:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = board
        replace(settings, board=board).to_environment()
        uvicorn.run(APP, factory=True, **options)
