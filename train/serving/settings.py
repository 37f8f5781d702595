"""What a server is told once, and the limits that it holds its clients to."""

import os
from dataclasses import asdict, dataclass, fields
from typing import Any

ENVIRONMENT = "POLYHEAD_SERVE_"  # how the processes of a server are told
TOKEN = "POLYHEAD_TOKEN"


@dataclass(frozen=True)
class Settings:
    """A server's model and limits.

    Args:
        model: folder or Hub id of a saved or exported Polyhead.
        compute: how the encoder computes; see `PolyheadPipeline`.
        cache: encodings kept of the last windows; see `PolyheadPipeline`.
        token: what clients give as `Authorization: Bearer ...`; None lets all in.
        allow_code: run the files with heads of makers' own that models name.
        batch_tokens: tokens in one encoder pass; None for the pipeline's own.
        max_texts: texts of a request.
        max_characters: of all texts of a request.
        max_body: bytes of a request.
        max_waiting: texts of all requests that are not answered; more are refused (429).
        timeout: seconds until an answer; later it is 504, and the work is dropped.
        body_timeout: seconds in which a request has to arrive.
        board: folder in which the processes of a server tell each other of a reload.
    """

    model: str
    compute: str = "auto"
    cache: int = 0
    token: str | None = None
    allow_code: bool = False
    batch_tokens: int | None = None
    max_texts: int = 1024
    max_characters: int = 1_000_000
    max_body: int = 8 << 20
    max_waiting: int = 8192
    timeout: float = 60.0
    body_timeout: float = 30.0
    board: str | None = None

    def to_environment(self) -> None:
        """Leave them for processes that this one starts; a list of processes does not show it."""
        for name, value in asdict(self).items():
            key = TOKEN if name == "token" else ENVIRONMENT + name.upper()
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = str(value)

    @classmethod
    def from_environment(cls) -> "Settings":
        """As `to_environment` left them."""
        values: dict[str, Any] = {}
        for option in fields(cls):
            key = TOKEN if option.name == "token" else ENVIRONMENT + option.name.upper()
            if key in os.environ:
                values[option.name] = _READ.get(option.name, str)(os.environ[key])
        return cls(**values)


_READ: dict[str, Any] = {
    "allow_code": "True".__eq__,
    **dict.fromkeys(("timeout", "body_timeout"), float),
    **dict.fromkeys(
        ("cache", "batch_tokens", "max_texts", "max_characters", "max_body", "max_waiting"), int
    ),
}
