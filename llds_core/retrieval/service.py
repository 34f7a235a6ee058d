"""The search engine as a service that Search-R1's clients work with unchanged.

    POST /retrieve   search, see `llds_core.retrieval.client`; `topk` 0 or null is three passages
    GET  /health     what is searched, and since when; 503 while loading

Concurrent requests are searched together, one batch at a time, beside the event loop. A request
that is not as agreed gets a 4xx and one line of JSON, `{"error": …}`, and memory stays bounded: a
body is counted while it arrives, read strictly, and so many queries may wait. There is no password
and no encryption, so the service listens on this machine alone unless told otherwise.
"""

import asyncio
import logging
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, FailFast, Field, ValidationError, create_model
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from llds_core.config import ServiceConfig
from llds_core.errors import ConfigError
from llds_core.retrieval.base import Hit, Retriever
from llds_core.retrieval.client import IDENTITY_HEADER, ServiceIdentity

_TOP_K = 3  # passages when a request does not say
_WAITING = 4  # batches of the largest size that may wait
_CONNECTIONS = 1024
_BODY_SECONDS = 10.0  # for a body to arrive
_KEEP_ALIVE_SECONDS = 30
_STOP_SECONDS = 60  # for clients to take their answers before the service ends without them
# A value of JSON that holds others, a string, or a comma: each costs far more as an object of
# Python than as text.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{,]', re.DOTALL)
_LATER, _CLOSING = {"Retry-After": "1"}, {"Connection": "close"}
_logger = logging.getLogger("llds_core")


class SearchService:
    """A service that answers from its first moment, and searches once it is opened; `app` is the
    ASGI application.
    """

    def __init__(self, settings: ServiceConfig) -> None:
        self._settings = settings
        query = Annotated[str, Field(max_length=settings.max_query_chars)]
        queries = Annotated[list[query], Field(max_length=settings.max_queries), FailFast()]
        top_k = Annotated[int, Field(ge=0, le=settings.max_top_k)]
        self._form = create_model(
            "SearchRequest",
            __config__=ConfigDict(strict=True),
            queries=queries,
            topk=(top_k | None, None),
            return_scores=(bool, False),
        )
        self._identity: ServiceIdentity | None = None
        self._batcher: _Batcher | None = None
        self._started = time.monotonic()
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_api_route("/retrieve", self._retrieve, methods=["POST"])
        self.app.add_api_route("/health", self._health, methods=["GET"])
        self.app.exception_handler(HTTPException)(_refusal)

    def open(self, retriever: Retriever, identity: ServiceIdentity) -> None:
        """Search with `retriever` from now on; safe from any thread."""
        self._batcher = _Batcher(retriever, self._settings)
        self._identity = identity

    async def _health(self) -> JSONResponse:
        row: dict[str, Any] = {"uptime_seconds": round(time.monotonic() - self._started, 3)}
        if self._identity is None:
            return JSONResponse({"status": "loading"} | row, 503, _LATER)
        return JSONResponse({"status": "ready"} | row | self._identity.model_dump())

    async def _retrieve(self, request: Request) -> JSONResponse:
        body = await self._read_body(request)
        if self._batcher is None or self._identity is None:
            raise HTTPException(503, "loading: ask later", _LATER)
        search = self._parse(body)
        k = search.topk or _TOP_K
        if len(search.queries) * k > self._settings.max_hits:
            raise HTTPException(
                400,
                f"{len(search.queries)} queries with topk {k} ask for more than "
                f"{self._settings.max_hits} passages: send fewer queries in one request",
            )
        found = await self._batcher.search(search.queries, k, request.is_disconnected)
        rows = [[_row(hit, with_score=search.return_scores) for hit in hits] for hits in found]
        return JSONResponse({"result": rows}, headers={IDENTITY_HEADER: self._identity.index})

    async def _read_body(self, request: Request) -> bytearray:
        """The whole body, whether or not its length was announced, unless it is too large."""
        body, size, limit = bytearray(), 0, self._settings.max_body_mib
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                # Who sends too much reads the answer only after that: it is taken and dropped.
                async for part in request.stream():
                    size += len(part)
                    if size <= limit * 2**20:
                        body += part
        except (TimeoutError, ClientDisconnect):
            said = f"no whole body within {_BODY_SECONDS:g} s: send it faster"
            raise HTTPException(408, said, _CLOSING) from None
        if size > limit * 2**20:
            said = f"a body of more than {limit:g} MiB: send fewer queries"
            raise HTTPException(413, said, _CLOSING)
        return body

    def _parse(self, body: bytearray) -> Any:
        most = self._settings.max_queries
        if next(islice(_TOKENS.finditer(body), 2 * most + 100, None), None):
            raise HTTPException(400, f"more than {most} queries: send fewer in one request")
        try:
            return self._form.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise HTTPException(
                400, f'{where}: {first["msg"]}: send {{"queries": ["…"]}}'
            ) from None


def _row(hit: Hit, *, with_score: bool) -> dict[str, Any]:
    document = {"id": hit.id, "contents": f"{hit.title}\n{hit.text}"}
    return {"document": document, "score": hit.score} if with_score else document


def _refusal(request: Request, error: HTTPException) -> JSONResponse:
    advice = ": POST /retrieve searches" if error.status_code in (404, 405) else ""
    return JSONResponse({"error": f"{error.detail}{advice}"}, error.status_code, error.headers)


@dataclass(frozen=True)
class _Waiting:
    queries: Sequence[str]
    k: int
    is_gone: Callable[[], Awaitable[bool]]
    answer: "asyncio.Future[list[list[Hit]]]"


class _Batcher:
    """Searches for concurrent requests together, in a thread, never twice at a time."""

    def __init__(self, retriever: Retriever, settings: ServiceConfig) -> None:
        self._retriever, self._settings = retriever, settings
        self._waiting: deque[_Waiting] = deque()
        self._running: asyncio.Task[None] | None = None

    async def search(
        self, queries: Sequence[str], k: int, is_gone: Callable[[], Awaitable[bool]]
    ) -> list[list[Hit]]:
        """Search in the next batch; 503 when too many queries are waiting already."""
        waiting = sum(len(request.queries) for request in self._waiting)
        if waiting and waiting + len(queries) > _WAITING * self._settings.max_queries:
            raise HTTPException(503, "too many queries are waiting: ask later", _LATER)
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(queries, k, is_gone, answer))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._settings.batch_window_ms / 1000)
            if batch := await self._take():
                await self._answer(batch)

    async def _take(self) -> list[_Waiting]:
        """The next requests, within the limits of one; what nobody waits for is left out."""
        batch: list[_Waiting] = []
        queries = k = 0
        while self._waiting:
            request = self._waiting[0]
            queries, k = queries + len(request.queries), max(k, request.k)
            limits = self._settings
            if batch and (queries > limits.max_queries or queries * k > limits.max_hits):
                break
            self._waiting.popleft()
            if await request.is_gone():
                queries -= len(request.queries)
                request.answer.set_exception(HTTPException(408, "nobody waits for the answer"))
            else:
                batch.append(request)
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        queries = [query for request in batch for query in request.queries]
        try:
            k = max(request.k for request in batch)
            found = await asyncio.to_thread(self._retriever.search, queries, k)
        except Exception as error:
            if len(batch) > 1:  # what is wrong with one request stays its own affair
                for request in batch:
                    await self._answer([request])
            else:
                _logger.exception("a search failed")
                said = f"the search failed ({type(error).__name__}): see the service's log"
                batch[0].answer.set_exception(HTTPException(500, said))
            return
        hits = iter(found)
        for request in batch:
            answer = [next(hits)[: request.k] for _ in request.queries]
            request.answer.set_result(answer)


def serve(
    load: Callable[[], tuple[Retriever, ServiceIdentity]],
    settings: ServiceConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Serve until SIGTERM or SIGINT; return when every accepted request is answered.

    `load` makes the search engine; `/health` says that it is loading meanwhile, and what it raises
    ends the service. One line on standard output says when it is ready. Port 0 takes a free one.
    """
    with _listen(host, port) as listener:
        service = SearchService(settings)
        server = http_server(service)
        failure: list[BaseException] = []

        def open_service() -> None:
            try:
                retriever, identity = load()
            except BaseException as error:  # raised again below
                failure.append(error)
                server.should_exit = True
                return
            service.open(retriever, identity)
            address = ":".join(map(str, listener.getsockname()[:2]))
            print(
                f"retriever ready at http://{address}: {identity.backend}, {identity.passages} "
                f"passages, index {identity.index}",
                flush=True,
            )

        # Not waited for: a stop while an index of hours is being built is a stop.
        threading.Thread(target=open_service, daemon=True).start()
        # uvicorn ends by raising the signal that stopped it again, which would be its exit code.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    if failure:
        raise failure[0]


def http_server(service: SearchService) -> uvicorn.Server:
    """The HTTP server of `service`, within limits."""
    return uvicorn.Server(
        uvicorn.Config(
            service.app,
            http="h11",  # named, as uvicorn chooses by what else happens to be installed
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:  # the latter for a port above 65535
        raise ConfigError(
            f"cannot listen on port {port} of {host} ({error}): stop what listens there, or "
            "choose another with --host and --port, from 0 to 65535"
        ) from None
