"""What each request passes before any route sees it: is it let in, and is it whole?

A body is read here, up to a number of bytes and within some seconds, so that neither a large nor a
slow client costs more than that.
"""

import asyncio
import hmac
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import metrics
from .faults import Refusal
from .settings import Settings

OPEN = ("/health",)  # without the token, and while the server stops


class Served(Protocol):
    """What lies behind the gate: limits, and whether it takes requests no more."""

    settings: Settings
    stopping: bool


@dataclass
class Gate:
    """Middleware: counts requests, and refuses those without token, too large or too slow ones."""

    app: ASGIApp
    service: Served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # nothing was sent

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            body = await self._read(scope, receive)
        except Refusal as refusal:
            await refusal.response()(scope, receive, counted)
        else:
            await self.app(scope, _replayed(body, receive), counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            metrics.REQUESTS.labels(route, str(status)).inc()

    def _check(self, scope: Scope) -> None:
        settings = self.service.settings
        if scope["path"] in OPEN:
            return
        if self.service.stopping:
            raise Refusal(503, "the server is stopping; ask another", retry_after=1)
        if settings.token is not None:
            header = _header(scope, b"authorization")
            expected = b"Bearer " + settings.token.encode()
            if not hmac.compare_digest(header, expected):
                raise Refusal(401, "give the server's token, as Authorization: Bearer TOKEN")

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.service.settings.max_body
        too_large = Refusal(413, f"the body has more than {limit:,} bytes; send several requests")
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > limit:
            raise too_large
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self.service.settings.body_timeout):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(499, "the client has gone")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError as error:
            seconds = f"{self.service.settings.body_timeout:g}"
            raise Refusal(408, f"the body did not arrive within {seconds} seconds") from error
        return b"".join(parts)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that has been read, and then what the connection says."""
    delivered = False

    async def replay() -> Any:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
