"""Runs the search service: Search-R1's clients work with it unchanged.

There is no password and no encryption, so it listens on this machine alone unless told otherwise.
"""

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from llds_core.config import ServiceConfig
from llds_core.errors import ConfigError
from llds_core.retrieval.base import Retriever
from llds_core.retrieval.wire import ServiceIdentity
from llds_core.serving.app import RetrieverService

Load = Callable[[], tuple[Retriever, ServiceIdentity]]

_HEAD_SECONDS = 10.0  # for the head of a request
_KEEP_ALIVE_SECONDS = 30.0  # that a connection may be idle between two requests
_STOP_SECONDS = 60  # for clients to take their answers before the service ends without them


def _say(line: str) -> None:
    print(line, flush=True)  # a pipe would keep it


def create_app(
    retriever: Retriever, settings: ServiceConfig, *, identity: ServiceIdentity
) -> FastAPI:
    """Return a service over `retriever` as an ASGI application."""
    service = RetrieverService(settings)
    service.open(retriever, identity)
    return service.app


def serve(
    load: Load,
    settings: ServiceConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    announce: Callable[[str], None] = _say,
) -> None:
    """Serve until SIGTERM or SIGINT; return when every accepted request is answered.

    Args:
        load: makes the search engine; `/health` says that it is loading meanwhile.
        settings: limits of the service.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        announce: gets one line when the service is ready.

    Raises:
        ConfigError: when it cannot listen there.
        LLDSError: whatever `load` raises.
    """
    with _listen(host, port) as listener:
        service = RetrieverService(settings)
        server = StoppableServer(service)
        failure: list[BaseException] = []

        def open_service() -> None:
            try:
                retriever, identity = load()
            except BaseException as error:  # raised again below
                failure.append(error)
                server.should_exit = True
                return
            service.open(retriever, identity)
            announce(
                f"retriever ready at {url_of(listener)}: {identity.backend}, "
                f"{identity.passages} passages, index {identity.index}"
            )

        # Not waited for: a stop while an index of hours is being built is a stop.
        threading.Thread(target=open_service, name="load", daemon=True).start()
        server.run(sockets=[listener])
    if failure:
        raise failure[0]


class StoppableServer(uvicorn.Server):
    """A uvicorn server that refuses requests once it is told to stop, and then returns.

    uvicorn's own kills its process with the signal it was stopped by, so that no exit code is 0.
    """

    def __init__(self, service: RetrieverService) -> None:
        self._service = service
        super().__init__(
            uvicorn.Config(
                service.app,
                # Named, as uvicorn chooses by what else happens to be installed.
                http=_PatientNoLongerProtocol,
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a second SIGINT does not wait for anyone."""
        self._service.stopping = True
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals while serving, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM)
        handlers = {sig: signal.signal(sig, self.handle_exit) for sig in wanted}
        try:
            yield
        finally:
            for sig, handler in handlers.items():
                signal.signal(sig, handler)


class _PatientNoLongerProtocol(H11Protocol):
    """Closes connections over which nothing is asked: uvicorn waits for ever for a first line."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(_HEAD_SECONDS, self._close_if_silent)

    def on_response_complete(self) -> None:
        """Wait for the head of the next request as long as for its first byte, and no longer."""
        answered = self.cycle  # of pipelined requests, the next one begins in here
        super().on_response_complete()
        patience = _KEEP_ALIVE_SECONDS + _HEAD_SECONDS
        self.loop.call_later(patience, self._close_if_silent, answered)

    def _close_if_silent(self, answered: RequestResponseCycle | None = None) -> None:
        """Close unless a request has come after `answered`, or after the connection."""
        if self.cycle is answered:
            self.transport.close()


def url_of(listener: socket.socket) -> str:
    """The address a listening socket is reached at."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    advice = "choose another with --host and --port"
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} does not exist: {advice}, from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use: stop what listens there, or {advice}"
            ) from None
        reason = error.strerror or error
        raise ConfigError(f"cannot listen on port {port} of {host} ({reason}): {advice}") from None
