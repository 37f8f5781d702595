"""A model in service: admits requests within the limits, sees them answered, exchanges the model.

A request keeps the model that was serving when it came, so an exchange loses none.
"""

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from starlette.requests import Request

from ...modeling.calls import AutoCall, Call
from ...modeling.inputs import read_items
from ..artifacts import write_json
from ..errors import UserError
from . import metrics
from .batcher import Batcher
from .faults import Refusal
from .loaded import Loaded, load, replacement
from .schemas import size_of, text_of
from .settings import Settings

logger = logging.getLogger(__name__)
BOARD = "serving.json"  # what the processes of one server are told
FOLLOW = 0.5  # seconds between two looks at it


class Service:
    """One process's model and its requests.

    Args:
        settings: of the server.
        loaded: its model, where it is loaded already.
    """

    def __init__(self, settings: Settings, loaded: Loaded | None = None) -> None:
        self.settings = settings
        self.loaded = loaded
        self.batcher = Batcher(settings.batch_tokens)
        self.waiting = 0  # texts that are not answered
        self.stopping = False
        self._reloading = False
        self._follower: asyncio.Task | None = None

    @property
    def current(self) -> Loaded:
        """The model that new requests get."""
        assert self.loaded is not None
        return self.loaded

    async def start(self) -> None:
        """Load the model and begin to serve."""
        self.stopping = False
        if self.loaded is None:
            board = self._board()
            folder, generation = board or (self.settings.model, 0)
            self.loaded = await asyncio.to_thread(load, folder, self.settings, generation)
        await self.batcher.start()
        if self.settings.board is not None:
            self._follower = asyncio.create_task(self._follow())

    def refuse(self) -> None:
        """Take no new requests; those in flight are answered."""
        self.stopping = True

    async def stop(self) -> None:
        """End; the requests have been answered or given up."""
        self.refuse()
        if self._follower is not None:
            self._follower.cancel()
        await self.batcher.stop()

    # ---- requests ----

    async def ask(
        self, request: Request, items: list[Any], tasks: list[str] | str | None, **options: Any
    ) -> tuple[Call | AutoCall, list[dict[str, Any]]]:
        """Answers of the tasks for texts, pairs or texts with choices.

        Raises:
            Refusal: the texts are too many or not what the tasks read (413, 422), others are
                waiting (429), the client has gone (499), or it took too long (504).
        """
        start = time.perf_counter()
        texts = [text_of(item) for item in items]
        count = self._admit(texts)
        self._count(count)
        try:
            call, answers = await self._until_answered(request, self._work(texts, tasks, options))
        finally:
            self._count(-count)
        for name in call.tasks:
            metrics.LATENCY.labels(name).observe(time.perf_counter() - start)
            metrics.TEXTS.labels(name).inc(sum(name in answer for answer in answers))
        return call, answers

    def _admit(self, texts: list[Any]) -> int:
        """Number of texts that the pipeline reads; raises `Refusal` where they are too many."""
        settings = self.settings
        if not texts:
            raise Refusal(422, "there are no texts; give one or more")
        if len(texts) > settings.max_texts:
            raise Refusal(
                413, f"{len(texts):,} texts; at most {settings.max_texts:,} in one request"
            )
        try:
            read = read_items(texts)
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        sizes = [size_of(text) for text in read]
        count, characters = (sum(part) for part in zip(*sizes, strict=True))
        if count > settings.max_texts:
            raise Refusal(413, f"{count:,} choices; at most {settings.max_texts:,} in one request")
        if characters > settings.max_characters:
            raise Refusal(
                413,
                f"the texts have {characters:,} characters; at most "
                f"{settings.max_characters:,} in one request",
            )
        if self.waiting and self.waiting + count > settings.max_waiting:
            seconds = self.batcher.retry_after()
            metrics.DROPPED.labels("full").inc()
            raise Refusal(
                429, f"{self.waiting:,} texts are waiting; try again later", retry_after=seconds
            )
        return count

    def _count(self, texts: int) -> None:
        self.waiting += texts
        metrics.WAITING.set(self.waiting)

    async def _work(
        self, texts: list[Any], tasks: list[str] | str | None, options: dict[str, Any]
    ) -> tuple[Call | AutoCall, list[dict[str, Any]]]:
        pipe = self.current.pipe
        try:
            call = await self.batcher.on_text_thread(lambda: pipe.read(texts, tasks, **options))
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        job = self.batcher.submit(pipe, call)
        try:
            return call, await job.done
        except asyncio.CancelledError:
            self.batcher.drop(job)
            raise

    async def _until_answered(self, request: Request, work: Coroutine) -> Any:
        """The result of `work`, unless the client goes or the time is over: then it is dropped."""
        answer, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
        try:
            timeout = self.settings.timeout
            first = asyncio.FIRST_COMPLETED
            done, _ = await asyncio.wait({answer, gone}, timeout=timeout, return_when=first)
            if answer in done:
                return answer.result()
            if done:
                metrics.DROPPED.labels("client gone").inc()
                raise Refusal(499, "the client has gone")
            metrics.DROPPED.labels("timeout").inc()
            raise Refusal(504, f"no answer within {timeout:g} seconds; send less, or try later")
        finally:
            answer.cancel()
            gone.cancel()

    async def tokenize(self, texts: list[str], *, special: bool) -> list[list[dict[str, Any]]]:
        """Tokens of each text, whole, as text-embeddings-inference tells them."""
        if not texts or len(texts) > self.settings.max_texts:
            raise Refusal(
                413 if texts else 422,
                f"{len(texts):,} texts; give 1 to {self.settings.max_texts:,}",
            )
        tokenizer = self.current.plain_tokenizer
        return await self.batcher.on_text_thread(_tokens, tokenizer, texts, special)

    # ---- another model ----

    async def reload(self, folder: str, *, allow_removed: bool) -> dict[str, Any]:
        """Serve from another folder, once it is loaded and verified.

        Raises:
            Refusal: it is not what it should be (409), or another is being loaded.
        """
        if self._reloading:
            raise Refusal(409, "another model is being loaded; try again later", retry_after=5)
        self._reloading = True
        try:
            new, told = await asyncio.to_thread(
                replacement, self.current, folder, self.settings, allow_removed=allow_removed
            )
        except UserError as error:
            faults = "; ".join(error.faults).replace(folder, "the new model")
            raise Refusal(409, f"the old model goes on serving: {faults}") from error
        finally:
            self._reloading = False
        self.loaded = new
        metrics.RELOADS.inc()
        if self.settings.board is not None:
            board = {"model": folder, "generation": new.generation}
            write_json(Path(self.settings.board) / BOARD, board)
        logger.info(f"reloaded: {len(new.tasks)} tasks, generation {new.generation}")
        return {**told, "generation": new.generation}

    def _board(self) -> tuple[str, int] | None:
        """The folder that another process has been told to serve from."""
        if self.settings.board is None:
            return None
        path = Path(self.settings.board) / BOARD
        if not path.is_file():
            return None
        board = json.loads(path.read_text(encoding="utf-8"))
        return board["model"], board["generation"]

    async def _follow(self) -> None:
        """Serve what another process of this server was told to; that one has verified it."""
        while True:
            await asyncio.sleep(FOLLOW)
            board = self._board()
            if board is None or board[1] <= self.current.generation or self._reloading:
                continue
            try:
                self.loaded = await asyncio.to_thread(load, board[0], self.settings, board[1])
                logger.info(f"reloaded: generation {board[1]}")
            except UserError:
                logger.warning("the reloaded model cannot be loaded here; the old one goes on")
                await asyncio.sleep(10 * FOLLOW)


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _tokens(tokenizer: Any, texts: list[str], special: bool) -> list[list[dict[str, Any]]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    rows = []
    for number, ids in enumerate(encoded["input_ids"]):
        spans, masks = encoded["offset_mapping"][number], encoded["special_tokens_mask"][number]
        rows.append(
            [
                {
                    "id": token,
                    "text": tokenizer.convert_ids_to_tokens(token) if mask else texts[number][a:b],
                    "special": bool(mask),
                    "start": None if mask else a,
                    "stop": None if mask else b,
                }
                for token, (a, b), mask in zip(ids, spans, masks, strict=True)
            ]
        )
    return rows
