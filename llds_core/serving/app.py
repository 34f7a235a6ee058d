"""The search engine as a service: what it answers, and what it refuses.

    POST /retrieve   search, see `llds_core.retrieval.wire`
    GET  /health     what is searched, and since when; 503 while loading or stopping
    GET  /metrics    counters for Prometheus

A request that is not as agreed gets a 4xx and one line of JSON, `{"error": …}`. Whatever comes, the
memory it takes is bounded: a body is counted while it arrives and given up after some seconds, the
bodies of all requests together have a limit, and so have the queries that wait (503 with
Retry-After).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from llds_core.config import ServiceConfig
from llds_core.retrieval.base import Retriever
from llds_core.retrieval.wire import (
    IDENTITY_HEADER,
    BadRequestError,
    SearchRequest,
    ServiceIdentity,
    parse_request,
    render_answer,
)
from llds_core.serving.batching import Batcher, OverloadedError
from llds_core.serving.service_metrics import ServiceMetrics

_BODIES = 8  # requests of the largest size that may be in memory at a time
_WAITING = 4  # batches of the largest size that may wait

_logger = logging.getLogger("llds_core")


@dataclass(frozen=True)
class _Open:
    retriever: Retriever
    identity: ServiceIdentity
    batcher: Batcher


class _RefusedError(Exception):
    """Ends a request with a status other than 200."""

    def __init__(self, status: int, message: str, *, close: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"Connection": "close"} if close else {}
        if status == 503:
            self.headers["Retry-After"] = "1"


class RetrieverService:
    """A service that answers from its first moment, and searches once it is opened.

    Args:
        settings: limits of requests, and how long they are collected.
        body_seconds: how long a request may take to arrive.

    Attributes:
        app: the ASGI application.
        stopping: set it to refuse new requests; those accepted are finished.
    """

    def __init__(self, settings: ServiceConfig, *, body_seconds: float = 10.0) -> None:
        self._settings = settings
        self._body_seconds = body_seconds
        self._body_limit = int(settings.max_body_mib * 2**20)
        self._body_bytes = 0  # of all requests in flight
        self._open: _Open | None = None
        self._metrics = ServiceMetrics()
        self._metrics.body_bytes.set_function(lambda: self._body_bytes)
        self._started = time.monotonic()
        self.stopping = False
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_api_route("/retrieve", self._retrieve, methods=["POST"])
        self.app.add_api_route("/health", self._health, methods=["GET"])
        self.app.add_api_route("/metrics", self._report, methods=["GET"])
        self.app.add_exception_handler(HTTPException, _http_error)

    def open(self, retriever: Retriever, identity: ServiceIdentity) -> None:
        """Search with `retriever` from now on; safe from any thread."""
        settings = self._settings
        batcher = Batcher(
            self._search,
            window_seconds=settings.batch_window_ms / 1000,
            max_queries=settings.max_queries,
            max_hits=settings.max_hits,
            max_waiting=_WAITING * settings.max_queries,
        )
        self._metrics.waiting_queries.set_function(lambda: batcher.waiting)
        self._open = _Open(retriever, identity, batcher)

    async def _health(self) -> Response:
        status = "stopping" if self.stopping else "ready" if self._open else "loading"
        row = {"status": status, "uptime_seconds": round(time.monotonic() - self._started, 3)}
        if status != "ready":
            return JSONResponse(row, 503, {"Retry-After": "1"})
        return JSONResponse(row | asdict(self._open.identity))

    async def _report(self) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _retrieve(self, request: Request) -> Response:
        started = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            try:
                response = await self._answer(request)
            except _RefusedError as refused:
                response = JSONResponse({"error": str(refused)}, refused.status, refused.headers)
            except ClientDisconnect:
                response = Response(status_code=400)  # nobody is there to read it
            except Exception as error:
                _logger.exception("a search failed")
                message = f"the search failed ({type(error).__name__}): see the service's log"
                response = JSONResponse({"error": message}, 500)
        self._metrics.requests.labels(response.status_code).inc()
        self._metrics.request_seconds.observe(time.perf_counter() - started)
        return response

    async def _answer(self, request: Request) -> Response:
        if self._open is None or self.stopping:
            raise _RefusedError(503, f"{'stopping' if self.stopping else 'loading'}: ask later")
        opened = self._open
        body = bytearray()
        try:
            await self._receive(request, body)
            try:
                search = parse_request(bytes(body), self._settings)
            except BadRequestError as error:
                raise _RefusedError(400, str(error)) from None
            try:
                # Some clients ask nothing when no trajectory of theirs searches.
                answer = (
                    await _unless_gone(request, opened.batcher.submit(search))
                    if search.queries
                    else render_answer([], return_scores=False)
                )
            except OverloadedError:
                raise _RefusedError(503, "too many queries are waiting: ask later") from None
        finally:
            self._body_bytes -= len(body)
        headers = {IDENTITY_HEADER: opened.identity.index}
        return Response(answer, headers=headers, media_type="application/json")

    async def _receive(self, request: Request, body: bytearray) -> None:
        """Append the body of `request` to `body`, within the limits of size and time."""
        too_large = int(request.headers.get("content-length", "0")) > self._body_limit
        if too_large and "expect" in request.headers:
            raise self._refuse_size(close=True)  # the client waits for leave to send it
        try:
            await asyncio.wait_for(self._collect(request, body), self._body_seconds)
        except TimeoutError:
            if too_large:
                raise self._refuse_size(close=True) from None
            raise _RefusedError(
                408, f"no whole body within {self._body_seconds:g} s: send it faster", close=True
            ) from None

    async def _collect(self, request: Request, body: bytearray) -> None:
        refused: _RefusedError | None = None
        async for part in request.stream():
            # Who sends too much reads the answer only after that, so it is taken and dropped.
            if refused is not None:
                continue
            if len(body) + len(part) > self._body_limit:
                refused = self._refuse_size()
            elif self._body_bytes + len(part) > _BODIES * self._body_limit:
                refused = _RefusedError(503, "too much is being sent at once: ask later")
            else:
                body += part
                self._body_bytes += len(part)
        if refused is not None:
            raise refused

    def _refuse_size(self, *, close: bool = False) -> _RefusedError:
        limit = self._settings.max_body_mib
        message = f"a body of more than {limit:g} MiB: send fewer queries in one request"
        return _RefusedError(413, message, close=close)

    def _search(self, requests: Sequence[SearchRequest]) -> list[bytes]:
        """Answers of a batch: one search for the most passages any of its requests wants."""
        queries = [query for request in requests for query in request.queries]
        started = time.perf_counter()
        found = self._open.retriever.search(queries, max(request.k for request in requests))
        self._metrics.search_seconds.observe(time.perf_counter() - started)
        self._metrics.batch_queries.observe(len(queries))
        self._metrics.batch_requests.observe(len(requests))
        self._metrics.queries.inc(len(queries))
        if len(found) != len(queries):
            raise RuntimeError(f"{len(found)} results for {len(queries)} queries")
        hits = iter(found)
        return [
            render_answer(
                [next(hits)[: request.k] for _ in request.queries],
                return_scores=request.return_scores,
            )
            for request in requests
        ]


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Unknown paths and methods."""
    message = f"{error.detail} ({request.method} {request.url.path}): POST /retrieve searches"
    return JSONResponse({"error": message}, error.status_code, error.headers)


async def _unless_gone(request: Request, answer: Awaitable[bytes]) -> bytes:
    """Wait for `answer` while the client does; a search that nobody waits for is left out.

    Raises:
        ClientDisconnect: when the client closes the connection first.
    """
    asked = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientDisconnect
        return asked.result()
    finally:
        asked.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
