"""A server in front of a retriever service that fails as often as it is told to.

Everything goes over real sockets, so that a client meets what a bad network and a bad server do:
connections that end without a word, errors, half answers, and silence.
"""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from llds_core.seeding import numpy_generator

FAULTS: Mapping[str, float] = {"drop": 0.10, "error": 0.10, "broken": 0.05, "stall": 0.05}
"""Share of requests whose connection is dropped, that get status 500, half an answer, silence."""


class FaultyFront:
    """Passes requests on to a service and its answers back; a context that ends with the server.

    Args:
        service: address of the service.
        stall_seconds: length of a silence, after which the right answer comes.
        faults: share of requests per fault.
        seed: root of the stream the faults are drawn from, in the order of the requests.

    Attributes:
        url: its own address.
        counts: requests per fault; "none" for those passed through.
    """

    def __init__(
        self,
        service: str,
        *,
        stall_seconds: float,
        faults: Mapping[str, float] = FAULTS,
        seed: int = 0,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.stall_seconds = stall_seconds
        self._service = urlsplit(service)
        self._faults = faults
        self._draws = numpy_generator(seed, "service-faults")
        self._lock = threading.Lock()
        front = self

        class Handler(_Handler):
            owner = front

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> "FaultyFront":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Give the address back, when it was never entered."""
        self._server.server_close()

    def draw(self) -> str:
        """The fault of the next request, or "none"."""
        with self._lock:
            draw = self._draws.random()
            fault = "none"
            for name, share in self._faults.items():
                if 0 <= draw < share:
                    fault = name
                draw -= share
            self.counts[fault] += 1
        return fault

    def ask(self, method: str, path: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body of the service's answer."""
        connection = http.client.HTTPConnection(self._service.hostname, self._service.port)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyFront
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.owner.draw()
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "error":
            self._reply(500, [], b'{"error": "as told"}')
            return
        if fault == "stall":
            time.sleep(self.owner.stall_seconds)
        status, headers, answer = self.owner.ask(self.command, self.path, body)
        if fault == "broken":
            answer = answer[: len(answer) // 2]
        with suppress(ConnectionError):  # who waited for a silence has gone
            self._reply(status, headers, answer)

    def _reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower().startswith(("x-", "content-type", "retry-after")):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a silence would hold the end of the server
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go without a word as well."""
