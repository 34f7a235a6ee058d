"""Real services on loopback, in a thread or a process, and servers that misbehave."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

from llds_core.config import ServiceConfig
from llds_core.retrieval import BM25Retriever, Hit, ServiceIdentity
from llds_core.retrieval.service import SearchService, http_server
from llds_core.worlds.records import Passage

PASSAGES = tuple(Passage(f"p{i}", f"title{i}", f"text about word{i} and all") for i in range(60))
ENGINE = BM25Retriever(PASSAGES)
IDENTITY = ServiceIdentity(
    index=ENGINE.identity, corpus="corpus-a", backend="bm25", passages=len(PASSAGES)
)
PATIENCE = 120.0  # seconds until a test gives up; a busy machine only makes it later
# Short pauses: what is tested is how often and what, not how long.
SETTINGS = ServiceConfig(timeout_seconds=PATIENCE, backoff_seconds=0.001, batch_window_ms=1.0)
_PROGRAM = """
import time
from services import ENGINE, IDENTITY, Recorder, ServiceConfig
from llds_core.retrieval.service import serve

def load():
    time.sleep({load})
    return Recorder(lambda queries: time.sleep({search})), IDENTITY

serve(load, ServiceConfig(), port={port})
"""


class Recorder:
    """An engine that remembers its calls and does something before each."""

    def __init__(self, before: Callable[[Sequence[str]], None] = lambda queries: None) -> None:
        self.calls: list[tuple[list[str], int]] = []
        self._before = before

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append((list(queries), k))
        self._before(queries)
        return ENGINE.search(queries, k)


@contextmanager
def serving(service: SearchService) -> Iterator[str]:
    """Run `service` in a thread; yield its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        server = http_server(service)
        thread = threading.Thread(target=server.run, args=([listener],))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def running(engine=ENGINE, identity: ServiceIdentity = IDENTITY) -> Iterator[str]:
    """A service that is open already."""
    service = SearchService(SETTINGS)
    service.open(engine, identity)
    with serving(service) as url:
        yield url


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Process:
    """A service in a process of its own, on a port that stays its own when it starts again."""

    def __init__(self, *, search_seconds: float = 0.0, load_seconds: float = 0.0) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._program = _PROGRAM.format(search=search_seconds, load=load_seconds, port=port)

    def __enter__(self) -> "Process":
        self.start()
        line = self._process.stdout.readline()
        assert "ready" in line, self._process.communicate()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._program],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()
        self._process.communicate()

    def stop(self, how: int) -> tuple[int, str]:
        """Exit code and standard error, once a signal has ended it."""
        self._process.send_signal(how)
        _, errors = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, errors


def post(url: str, **payload) -> requests.Response:
    return requests.post(f"{url}/retrieve", json=payload, timeout=PATIENCE)


def eventually(check: Callable[[], bool]) -> None:
    """Wait until `check` holds; a slow machine only makes it later."""
    until = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


class Scripted:
    """A server that answers each request with the next of some scripts, the last one for ever: they
    make of method, path and request a status, headers and body, or None to hang up.
    """

    def __init__(self, *scripts: Callable) -> None:
        self.scripts = list(scripts)
        self.requests: list[tuple[str, str, dict]] = []
        self.connections = 0

    @contextmanager
    def serve(self) -> Iterator[str]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                owner.connections += 1

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = json.loads(body) if body else {}
                owner.requests.append((self.command, self.path, request))
                script = owner.scripts.pop(0) if len(owner.scripts) > 1 else owner.scripts[0]
                if (answer := script(self.command, self.path, request)) is None:
                    self.close_connection = True
                    return
                status, headers, text = answer
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(text))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET  # noqa: N815

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.block_on_close = True, False
        server.handle_error = lambda *_: None
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
