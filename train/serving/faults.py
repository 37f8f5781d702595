"""What a client is told when it gets no answer: one shape, no path, no text of another client."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

TOLD = 5  # faults of one request
KINDS = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "too_large",
    422: "invalid_request",
    429: "overloaded",
    499: "client_gone",
    500: "internal",
    503: "unavailable",
    504: "timeout",
}


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what was found, what is allowed, what to type.
        retry_after: seconds after which to try again.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after

    def response(self) -> JSONResponse:
        """As HTTP says it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        error = {
            "message": self.message,
            "type": KINDS.get(self.status, "error"),
            "code": self.status,
        }
        return JSONResponse({"error": error}, self.status, headers)


async def show_refusal(_: Any, error: Exception) -> JSONResponse:
    """A handler for `Refusal`."""
    assert isinstance(error, Refusal)
    return error.response()


async def show_http(_: Any, error: Exception) -> JSONResponse:
    """A handler for what the framework refuses: an unknown route, another method."""
    assert isinstance(error, HTTPException)
    response = Refusal(error.status_code, str(error.detail)).response()
    response.headers.update(error.headers or {})
    return response


async def show_invalid(_: Any, error: Exception) -> JSONResponse:
    """A handler for bodies of another shape; the body itself is not repeated."""
    assert isinstance(error, RequestValidationError)
    faults = []
    for fault in error.errors()[:TOLD]:
        if fault["type"] == "json_invalid":
            reason = fault.get("ctx", {}).get("error", "")
            return Refusal(400, f"the body is no JSON: {reason} at {fault['loc'][-1]}").response()
        where = ".".join(str(part) for part in fault["loc"] if part != "body")
        faults.append(f"{where or 'the body'}: {fault['msg']}")
    return Refusal(422, "; ".join(dict.fromkeys(faults))).response()


async def show_failure(_: Any, __: Exception) -> JSONResponse:
    """A handler for our own bugs."""
    return Refusal(500, "the server failed to answer; its log says where").response()
