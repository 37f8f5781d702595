"""What a server's process does beside answering: it stops without a loss, and logs no texts."""

import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import uvicorn

LOGGERS = ("uvicorn.error", "asyncio")
FRAMES = 3  # of an error, that the log names


class PlacesOnly(logging.Filter):
    """Of an error the log gets its kind and where it was raised; its message may hold a text."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record with an error; let all pass."""
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
            places = ", ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in frames)
            record.msg, record.args = f"{type(error).__name__} at {places}", ()
            record.exc_info = record.exc_text = None
        return True


def hide_texts() -> None:
    """Let uvicorn's and asyncio's logs say where an error was, and not what it read."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(f, PlacesOnly) for f in logger.filters):
            logger.addFilter(PlacesOnly())


def on_stop(tell: Callable[[], None]) -> None:
    """Call `tell` as soon as uvicorn is told to stop; it goes on until requests are answered."""
    if threading.current_thread() is not threading.main_thread():
        return  # of tests; signals are the main thread's
    for number in (signal.SIGTERM, signal.SIGINT):
        usual: Any = signal.getsignal(number)
        if isinstance(getattr(usual, "__self__", None), uvicorn.Server):
            signal.signal(number, _told(tell, usual))


def _told(tell: Callable[[], None], usual: Callable[..., Any]) -> Callable[..., None]:
    def handle(number: int, frame: Any) -> None:
        tell()
        usual(number, frame)

    return handle
