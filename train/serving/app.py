"""The routes: Polyhead's own, OpenAI's for embeddings, and text-embeddings-inference's.

Each kind of client finds its own words; all go through one `Service`, so their texts share encoder
passes. The page `/docs` shows examples made of the model's own tasks.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ..inference.files import plain
from . import metrics, schemas
from .faults import Refusal, show_failure, show_http, show_invalid, show_refusal
from .gate import Gate
from .loaded import Loaded
from .process import hide_texts, on_stop
from .service import Service
from .settings import Settings

FEW = 16  # texts whose answers are put into JSON at once; of more, on another thread
EXAMPLES = {
    "text": ["Book a table in Paris", "Cancel my order"],
    "pair": [["A man plays a guitar", "Someone makes music"]],
    "choices": [["Where is the station?", ["Turn left.", "I like tea."]]],
}


def create_app(settings: Settings | None = None, loaded: Loaded | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        settings: of the server; None for what the environment says.
        loaded: its model, where it is loaded already.
    """
    service = Service(settings or Settings.from_environment(), loaded)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        hide_texts()
        on_stop(service.refuse)
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="Polyhead", version=metadata.version("polyhead"), lifespan=lifespan)
    app.state.service = service
    app.add_middleware(Gate, service=service)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(Refusal, show_refusal)
    app.add_exception_handler(HTTPException, show_http)
    app.add_exception_handler(RequestValidationError, show_invalid)
    app.add_exception_handler(Exception, show_failure)
    _add_predictions(app, service)
    _add_embeddings(app, service)
    _add_tei(app, service)
    _add_operations(app, service)
    app.openapi = lambda: _described(app, service)  # of the model that serves now
    return app


async def _json(value: Any, texts: int, service: Service) -> Response:
    """Many vectors take long enough to hold up other requests."""
    if texts <= FEW:
        return _rendered(value)
    return await service.batcher.on_text_thread(_rendered, value)


def _rendered(value: Any) -> Response:
    body = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))
    return Response(body.encode("utf-8", "replace"), media_type="application/json")


def _add_predictions(app: FastAPI, service: Service) -> None:
    @app.post("/predict", tags=["predict"], summary="All tasks of each text, from one pass")
    async def predict(request: Request, body: schemas.PredictRequest) -> Response:
        if isinstance(body.tasks, list):
            _check_tasks(service, body.tasks, 422)
        options = body.model_dump(include={"top_k", "threshold", "document"})
        _, answers = await service.ask(request, body.texts, body.tasks, **options)
        return await _json(answers, len(answers), service)

    @app.post("/predict/{task}", tags=["predict"], summary="One task of each text")
    async def predict_task(request: Request, task: str, body: schemas.Options) -> Response:
        _check_tasks(service, [task], 404)
        options = body.model_dump(include={"top_k", "threshold", "document"})
        _, answers = await service.ask(request, body.texts, [task], **options)
        return await _json([answer[task] for answer in answers], len(answers), service)


def _check_tasks(service: Service, names: list[str], status: int) -> None:
    known = service.current.tasks
    unknown = [name for name in names if name not in known]
    if unknown:
        shown = ", ".join(repr(name[:80]) for name in unknown[:3])
        raise Refusal(status, f"unknown task {shown}; this model has: {', '.join(known)}")


def _add_embeddings(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings", tags=["embed"], summary="OpenAI's embeddings")
    async def embeddings(request: Request, body: schemas.OpenAIRequest) -> Response:
        texts = [body.input] if isinstance(body.input, str) else body.input
        name = _embedding_task(service, body.model, "model")
        vectors, tokens = await _embed(
            request, service, texts, name, body.dimensions, document=body.document
        )
        encode = _base64 if body.encoding_format == "base64" else np.ndarray.tolist
        data = [
            {"object": "embedding", "index": number, "embedding": encode(vector)}
            for number, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": name, "usage": usage}
        return await _json(answer, len(texts), service)

    @app.get("/v1/models", tags=["embed"], summary="Embedding tasks, as OpenAI lists models")
    async def models() -> Any:
        names = service.current.pipe.model.config.embedding_tasks
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "polyhead"} for name in names
        ]
        return {"object": "list", "data": data}

    @app.post("/embed", tags=["embed"], summary="text-embeddings-inference's embeddings")
    async def embed(request: Request, body: schemas.EmbedRequest) -> Response:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        name = _embedding_task(service, body.task, "task")
        if body.normalize is False and service.current.pipe.model.config.tasks[name].normalize:
            raise Refusal(422, f"task {name!r} gives vectors of length 1; take normalize out")
        document = body.prompt_name == "document"
        vectors, _ = await _embed(request, service, texts, name, body.dimensions, document=document)
        vectors = [_unit(vector) for vector in vectors] if body.normalize else vectors
        return await _json(vectors, len(texts), service)

    @app.post("/similarity", tags=["embed"], summary="Cosine of one text with others")
    async def similarity(request: Request, body: schemas.SimilarityRequest) -> Response:
        name = _embedding_task(service, body.task, "task")
        if not body.inputs.sentences:
            raise Refusal(422, "inputs.sentences is empty; give one or more")
        texts = [body.inputs.source_sentence, *body.inputs.sentences]
        (first, *others), _ = await _embed(request, service, texts, name, None, document=False)
        return _rendered([float(_unit(first) @ _unit(other)) for other in others])


async def _embed(
    request: Request,
    service: Service,
    texts: list[str],
    name: str,
    dimensions: int | None,
    *,
    document: bool,
) -> tuple[list[np.ndarray], int]:
    """Vectors of a task, cut to `dimensions`, and how many tokens were read."""
    task = service.current.pipe.model.config.tasks[name]
    call, answers = await service.ask(request, texts, [name], document=document)
    vectors = [answer[name] for answer in answers]
    if dimensions is not None:
        width = len(vectors[0])
        allowed = sorted({*(task.matryoshka or ()), width}, reverse=True)
        if dimensions not in allowed:
            reason = "" if task.matryoshka else " (it was not trained with `matryoshka`)"
            known = ", ".join(map(str, allowed))
            raise Refusal(422, f"dimensions is {dimensions}; task {name!r} has: {known}{reason}")
        vectors = [vector[:dimensions] for vector in vectors]
        if task.normalize and dimensions < width:
            vectors = [_unit(vector) for vector in vectors]
    return vectors, sum(entry.length for entry in call.entries)


def _embedding_task(service: Service, name: str | None, key: str) -> str:
    try:
        return service.current.pipe.model.config.embedding_task(name)
    except ValueError as error:
        reason = str(error).removeprefix("task ")
        raise Refusal(404 if name else 422, f"{key} {reason}") from error


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _add_tei(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", tags=["model"], summary="Tokens of each text, uncut")
    async def tokenize(body: schemas.TokenizeRequest) -> Response:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        tokens = await service.tokenize(texts, special=body.add_special_tokens)
        return await _json(tokens, len(texts), service)

    @app.get("/info", tags=["model"], summary="The model's tasks and the server's limits")
    async def info() -> Any:
        return about(service)

    @app.get("/health", tags=["model"], summary="200 while it answers")
    async def health() -> Any:
        if service.stopping:
            raise Refusal(503, "the server is stopping")
        if service.batcher.ended:
            raise Refusal(503, "the server answers no more; start it anew")
        return {"status": "ok"}


def about(service: Service) -> dict[str, Any]:
    """The model's tasks and the server's limits; no folder, no token."""
    loaded, settings = service.current, service.settings
    model = loaded.pipe.model
    tasks = {
        name: {
            "head": task.head,
            "problem_type": task.problem_type,
            "reads": task.reads,
            "labels": task.labels,
            "decisions": task.decisions,
            "matryoshka": task.matryoshka,
            "prompts": task.prompts,
        }
        for name, task in ((name, model.config.tasks[name]) for name in loaded.tasks)
    }
    return {
        "version": metadata.version("polyhead"),
        "generation": loaded.generation,
        "router": model.config.router,
        "encoder": model.config.encoder_config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_input_length": loaded.pipe.tokenizer.model_max_length,
        "tasks": tasks,
        "limits": {
            "texts": settings.max_texts,
            "characters": settings.max_characters,
            "bytes": settings.max_body,
            "waiting": settings.max_waiting,
            "seconds": settings.timeout,
        },
    }


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/metrics", tags=["operations"], summary="For Prometheus")
    async def measured() -> Response:
        text, kind = await asyncio.to_thread(metrics.exposition)
        return Response(text, media_type=kind)

    @app.post("/admin/reload", tags=["operations"], summary="Serve from another folder")
    async def reload(body: schemas.ReloadRequest) -> Any:
        if service.settings.token is None:
            raise Refusal(403, "this server has no token; start it with one to reload models")
        return await service.reload(body.model, allow_removed=body.allow_removed)


def _described(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI page, with examples made of the tasks that are served now."""
    page = get_openapi(title=app.title, version=app.version, routes=app.routes)
    if service.loaded is None:
        return page
    configs = service.current.pipe.model.config.tasks
    by_form: dict[str, list[str]] = {}
    for name in service.current.tasks:
        by_form.setdefault(configs[name].reads, []).append(name)
    examples = {
        f"{form}: {', '.join(names)}"[:80]: {"value": {"texts": EXAMPLES[form], "tasks": names}}
        for form, names in by_form.items()
    }
    by_task = {
        name: {"value": {"texts": EXAMPLES[configs[name].reads], "top_k": 1}}
        for name in service.current.tasks
    }
    embedding = {
        name: {"value": {"input": EXAMPLES["text"], "model": name}}
        for name in service.current.pipe.model.config.embedding_tasks
    }
    for route, shown in (
        ("/predict", examples),
        ("/predict/{task}", by_task),
        ("/v1/embeddings", embedding),
    ):
        content = page["paths"][route]["post"]["requestBody"]["content"]["application/json"]
        content["examples"] = shown
    parameter = page["paths"]["/predict/{task}"]["post"]["parameters"][0]
    parameter["schema"]["enum"] = service.current.tasks
    return page
