"""`serve run polyhead.train.serving.ray:app model=FOLDER`: the server on a cluster, by Ray Serve.

Two deployments. `Model` holds the application of `polyhead serve`; each replica has the model, and
batches what comes to it by tokens, which Ray's own batching does not know. `Front` holds no model:
it reads a request whole, gives it to a replica of `Model`, and to another where that one dies. Ray
itself answers 500 then: a handle has no retries.
"""

import asyncio
import logging
import os

from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .app import create_app
from .faults import Refusal
from .gate import Gate
from .process import PlacesOnly
from .settings import TOKEN, Settings

logger = logging.getLogger(__name__)
logger.addFilter(PlacesOnly())

ONGOING = 256  # requests at a replica, so that its passes are full
BUSY = 64  # requests a replica from which on another is started
QUEUED = 4096  # requests that wait for a replica; more are refused (429)
DEATHS = 3  # replicas that may die of one request
ONE_PROCESS = {  # routes that speak of one process, or change it alone
    "/metrics": "the cluster's metrics are Ray's: /metrics of each node's own port",
    "/admin/reload": "on Ray a model is replaced by `serve deploy` with another `model`",
}
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]  # status, headers, body


class Options(BaseModel):
    """What `serve run` takes as `key=value`, and `serve deploy` as `args`.

    Args:
        model: folder or Hub id of a saved or exported Polyhead, found on every node.
        min_replicas: processes with the model, from the start on.
        max_replicas: the most that autoscaling starts.
        num_cpus: cores of each, and its threads.
        num_gpus: of each; may be a part of one.

    The others are those of `Settings`; the token comes from POLYHEAD_TOKEN, as in `polyhead serve`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    min_replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    num_cpus: float = Field(1, gt=0)
    num_gpus: float = Field(0, ge=0)
    compute: str = "auto"
    cache: int = Field(0, ge=0)
    allow_code: bool = False
    batch_tokens: int | None = Field(None, ge=1)
    max_texts: int = Field(1024, ge=1)
    max_waiting: int = Field(8192, ge=1)
    timeout: float = Field(60.0, gt=0)


def app(options: Options) -> Application:
    """The application for `serve run` and `serve deploy`.

    Raises:
        ValueError: `max_replicas` is below `min_replicas`.
    """
    low, high = options.min_replicas, options.max_replicas or options.min_replicas
    if high < low:
        raise ValueError(f"max_replicas is {high}, below min_replicas, {low}")
    own = options.model_dump(exclude={"min_replicas", "max_replicas", "num_cpus", "num_gpus"})
    settings = Settings(**own, token=os.environ.get(TOKEN))
    model = serve.deployment(
        Model,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        autoscaling_config={
            "min_replicas": low,
            "max_replicas": high,
            "target_ongoing_requests": BUSY,
        },
        max_ongoing_requests=ONGOING,
        max_queued_requests=QUEUED,
    )
    front = serve.deployment(
        Front,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=2 * QUEUED,
    )
    return front.bind(settings, model.bind(settings))


class Model:
    """A replica: the application of `polyhead serve` without a port.

    Args:
        settings: the model and the limits.
    """

    async def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings)
        self.service = self.app.state.service
        await self.service.start()

    async def answer(self, scope: Scope, body: bytes) -> Answer:
        """What the application says to a request."""
        delivered = False

        async def receive() -> Message:
            nonlocal delivered
            if delivered:
                await asyncio.Event().wait()  # who has gone is known to Front, which cancels
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        return await _answer(self.app, scope, receive)

    def check_health(self) -> None:
        """Ray starts another replica in the place of one that raises here."""
        if self.service.batcher.ended:
            raise RuntimeError("the batcher has ended")


class Front:
    """What clients reach: it reads requests within the limits and sees each answered.

    Args:
        settings: the limits.
        model: replicas that answer.
    """

    def __init__(self, settings: Settings, model: DeploymentHandle) -> None:
        self.settings, self.model = settings, model
        self.stopping = False  # Ray sends nothing to a replica that stops
        self.gate = Gate(self._forward, self)

    async def __call__(self, request: Request) -> Response:
        """Answer a request of HTTP."""
        status, headers, body = await _answer(self.gate, request.scope, request.receive)
        response = Response(body, status)
        response.raw_headers = headers
        return response

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]  # whole, from the gate
        try:
            if reason := ONE_PROCESS.get(scope["path"]):
                raise Refusal(404, reason)
            sent = {key: scope[key] for key in SENT if key in scope}
            async with asyncio.timeout(self.settings.timeout):
                status, headers, content = await self._ask(sent, body)
        except TimeoutError:
            reason = f"no answer within {self.settings.timeout:g} seconds; send less, or try later"
            await Refusal(504, reason).response()(scope, receive, send)
        except BackPressureError:
            refusal = Refusal(
                429, f"{QUEUED:,} requests are waiting; try again later", retry_after=1
            )
            await refusal.response()(scope, receive, send)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content})

    async def _ask(self, scope: Scope, body: bytes) -> Answer:
        """The answer of a replica, or of another where one dies with the request."""
        for _ in range(DEATHS):
            try:
                return await self.model.answer.remote(scope, body)
            except (RayActorError, ObjectLostError):
                logger.warning("a replica has gone with a request; another is asked")
        raise Refusal(503, f"{DEATHS} replicas have gone with this request; send less")


# What routes, the gate and the examples read of a request; the rest of a scope is of its process.
SENT = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)


async def _answer(app: ASGIApp, scope: Scope, receive: Receive) -> Answer:
    """What an application sends, whole."""
    status, headers, parts = 500, [], []

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
        else:
            parts.append(message.get("body", b""))

    # An application raises what it has told the client: for the server's log, which is ours here
    (error,) = await asyncio.gather(app(scope, receive, send), return_exceptions=True)
    if isinstance(error, BaseException):
        logger.error("no answer", exc_info=error)
    return status, headers, b"".join(parts)
