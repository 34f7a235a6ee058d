"""Concurrent requests are searched together, one batch at a time, in a thread of their own.

The event loop stays free to take requests and to say how it is. Whatever goes wrong with one
request of a batch stays its own affair.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llds_core.retrieval.wire import SearchRequest

Work = Callable[[Sequence[SearchRequest]], list[bytes]]


class OverloadedError(Exception):
    """Too many queries are waiting."""


@dataclass(frozen=True)
class _Waiting:
    request: SearchRequest
    answer: "asyncio.Future[bytes]"
    arrived: float


class Batcher:
    """Collects requests and hands them to `work` in batches.

    Args:
        work: answers of a batch, one per request; runs in a thread, never twice at a time.
        window_seconds: how long the first request of a batch waits for others.
        max_queries: queries in a batch; a request is never divided.
        max_hits: queries of a batch times the most passages one of its requests wants.
        max_waiting: queries that may wait; a single request may always.

    Attributes:
        waiting: queries that wait.
    """

    def __init__(
        self,
        work: Work,
        *,
        window_seconds: float,
        max_queries: int,
        max_hits: int,
        max_waiting: int,
    ) -> None:
        self._work = work
        self._window = window_seconds
        self._max_queries = max_queries
        self._max_hits = max_hits
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting] = deque()
        self.waiting = 0
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")

    async def submit(self, request: SearchRequest) -> bytes:
        """Return the answer of `request`.

        A caller that is cancelled while it waits is not searched for.

        Raises:
            OverloadedError: when too many queries are waiting already.
            Exception: whatever `work` raised for this request alone.
        """
        size = len(request.queries)
        if self._waiting and self.waiting + size > self._max_waiting:
            raise OverloadedError
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, loop.create_future(), loop.time())
        self._waiting.append(waiting)
        self.waiting += size
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run())
        return await waiting.answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            # What came while the last batch was searched has waited long enough.
            due = self._waiting[0].arrived + self._window - loop.time()
            if due > 0 and self.waiting < self._max_queries:
                await asyncio.sleep(due)
            if batch := self._take():
                await self._answer(batch)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        queries = k = 0
        while self._waiting:
            request = self._waiting[0].request
            if self._waiting[0].answer.done():  # who asked has gone
                self._waiting.popleft()
                self.waiting -= len(request.queries)
                continue
            queries, k = queries + len(request.queries), max(k, request.k)
            if batch and (queries > self._max_queries or queries * k > self._max_hits):
                break
            batch.append(self._waiting.popleft())
            self.waiting -= len(request.queries)
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        requests = [waiting.request for waiting in batch]
        try:
            answers = await loop.run_in_executor(self._thread, self._work, requests)
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    await self._answer([waiting])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            # The one who asked may have been cancelled.
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
