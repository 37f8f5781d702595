"""Dynamic batching by tokens: windows of any requests, tasks and adapters share encoder passes.

While one pass runs on the model's thread, requests are tokenized on others and their windows wait;
the next pass takes a window of each request in turn, until it holds `batch_tokens`. So nothing
waits for a batch to fill, a long request delays a short one by a pass, and the load makes the
batch. All that is shared is held by the event loop's thread: there are no locks.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ...modeling.calls import AutoCall, Call, Entry
from ...modeling.passes import BATCH_TOKENS, MORE_TOKENS
from ...modeling.pipeline_polyhead import PolyheadPipeline
from . import metrics

TEXT_THREADS = 2  # that tokenize and decode
SMOOTHING = 0.2  # share of the latest pass in the rate that `Retry-After` goes by
LONGEST_RETRY = 60  # seconds


@dataclass(eq=False)
class Job:
    """A request's windows on their way.

    Args:
        pipe: the pipeline that was serving when it came.
        call: what it asks for.
        waiting: windows that no pass has taken.
        left: windows that are not read back yet.
        done: resolves when all are.
    """

    pipe: PolyheadPipeline
    call: Call | AutoCall
    waiting: deque[Entry]
    left: int
    done: asyncio.Future


@dataclass(eq=False)
class Batcher:
    """One per process: a model thread, some text threads, and the requests between them.

    Args:
        batch_tokens: tokens in one pass; None for what the pipeline takes on its device.
    """

    batch_tokens: int | None = None
    jobs: deque[Job] = field(default_factory=deque)
    rate: float | None = None  # windows a second

    def __post_init__(self) -> None:
        self.runner: asyncio.Task | None = None
        self.reading: set[asyncio.Task] = set()

    async def start(self) -> None:
        """Begin to serve, on the running event loop."""
        self.model_thread = ThreadPoolExecutor(1, "polyhead-model")
        self.text_threads = ThreadPoolExecutor(TEXT_THREADS, "polyhead-text")
        self.arrived = asyncio.Event()
        self.runner = asyncio.create_task(self._run())

    @property
    def ended(self) -> bool:
        """It runs no passes any more."""
        return self.runner is None or self.runner.done()

    async def stop(self) -> None:
        """End; what has not been answered is dropped."""
        if self.runner is not None:
            self.runner.cancel()
            await asyncio.gather(self.runner, return_exceptions=True)
        for job in self.jobs:
            job.done.cancel()
        self.model_thread.shutdown(wait=False)
        self.text_threads.shutdown(wait=False)

    async def on_text_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run what takes time beside the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.text_threads, function, *arguments)

    def submit(self, pipe: PolyheadPipeline, call: Call | AutoCall) -> Job:
        """Let a call's windows wait for the encoder."""
        entries = call.more()
        done = asyncio.get_running_loop().create_future()
        job = Job(pipe, call, deque(entries), len(entries), done)
        self.jobs.append(job)
        self.arrived.set()
        return job

    def drop(self, job: Job) -> None:
        """Take out what has not begun of a request that nobody waits for."""
        job.waiting.clear()
        if job in self.jobs:
            self.jobs.remove(job)
        job.done.cancel()

    def retry_after(self) -> int:
        """Seconds in which what is waiting will have gone."""
        windows = sum(len(job.waiting) for job in self.jobs)
        seconds = windows / self.rate if self.rate else 1.0
        return max(1, min(LONGEST_RETRY, round(seconds)))

    def _next_batch(self) -> tuple[PolyheadPipeline, list[tuple[Job, Entry]]]:
        """A window of each request in turn, of those of one pipeline, up to a pass's tokens."""
        pipe = self.jobs[0].pipe
        budget = self.batch_tokens or BATCH_TOKENS.get(pipe.model.device.type, MORE_TOKENS)
        batch: list[tuple[Job, Entry]] = []
        others: list[Job] = []  # of the model before a reload, or after
        longest = total = 0
        while self.jobs:
            job = self.jobs.popleft()
            if job.pipe is not pipe:
                others.append(job)
                continue
            length = job.waiting[0].length
            longest, total = max(longest, length), total + length
            cost = total if pipe.packs else (len(batch) + 1) * longest
            if batch and cost > budget:
                self.jobs.appendleft(job)
                break
            batch.append((job, job.waiting.popleft()))
            if job.waiting:
                self.jobs.append(job)
        self.jobs.extendleft(reversed(others))
        return pipe, batch

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self.jobs:
                self.arrived.clear()
                await self.arrived.wait()
            pipe, batch = self._next_batch()
            entries = [entry for _, entry in batch]
            start = time.perf_counter()
            passed = loop.run_in_executor(self.model_thread, pipe.encode, entries)
            (values,) = await asyncio.gather(passed, return_exceptions=True)
            if isinstance(values, BaseException):
                self._fail(batch, values)
                continue
            rate = len(batch) / (time.perf_counter() - start)
            self.rate = rate if self.rate is None else self.rate + SMOOTHING * (rate - self.rate)
            metrics.BATCH_TOKENS.observe(sum(entry.length for entry in entries))
            metrics.BATCH_REQUESTS.observe(len({id(job) for job, _ in batch}))
            metrics.TOKENS.inc(sum(entry.length for entry in entries))
            task = asyncio.create_task(self._read_back(batch, values))
            self.reading.add(task)
            task.add_done_callback(self.reading.discard)

    async def _read_back(
        self, batch: list[tuple[Job, Entry]], values: list[dict[str, Any]]
    ) -> None:
        """Give the values of a pass to their requests; those that are whole are answered."""
        taken = [
            (job, entry, value)
            for (job, entry), value in zip(batch, values, strict=True)
            if not job.done.done()
        ]
        read = self.on_text_thread(_take_all, [(entry, value) for _, entry, value in taken])
        (fault,) = await asyncio.gather(read, return_exceptions=True)
        if fault is not None:
            self._fail(batch, fault)
            return
        for job, _, _ in taken:
            job.left -= 1
        whole = [job for job in {id(job): job for job, _, _ in taken}.values() if job.left == 0]
        finish = self.on_text_thread(_go_on, [job.call for job in whole])
        (results,) = await asyncio.gather(finish, return_exceptions=True)
        if isinstance(results, BaseException):
            self._fail(batch, results)
            return
        for job, (more, answers) in zip(whole, results, strict=True):
            if job.done.done():
                continue
            if not more:
                job.done.set_result(answers)
                continue
            job.waiting.extend(more)
            job.left = len(more)
            self.jobs.append(job)
            self.arrived.set()

    def _fail(self, batch: list[tuple[Job, Entry]], error: BaseException) -> None:
        for job, _ in batch:
            if not job.done.done():
                job.done.set_exception(error)
            job.waiting.clear()
            if job in self.jobs:
                self.jobs.remove(job)


def _take_all(taken: list[tuple[Entry, dict[str, Any]]]) -> None:
    for entry, values in taken:
        entry.take(values)


def _go_on(calls: list[Call | AutoCall]) -> list[tuple[list[Entry], list[dict[str, Any]]]]:
    """Of calls whose windows are read, those to encode next; where there are none, the answers."""
    return [((more := call.more()), [] if more else call.answers()) for call in calls]
