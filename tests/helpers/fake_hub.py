"""A model hub on the loopback: the few answers that `huggingface_hub` asks for, over real HTTP.

Faults are switched on by attributes.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_API = re.compile(r"/api/(dataset|model)s/([^/]+/[^/]+)/(revision|tree|auth-check)/?(.*)")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class FakeHub(ThreadingHTTPServer):
    """The server."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}  # (kind, repository) to files
        self.revisions: dict[tuple[str, str], str] = {}  # the only commit of each
        self.gated: set[str] = set()  # repositories that give no file
        self.corrupt: set[str] = set()  # paths whose first byte is wrong
        self.stall_after: dict[str, int] = {}  # bytes of a path after which nothing more comes
        self.asked: list[str] = []  # paths of all contents sent
        self.released = threading.Event()

    def handle_error(self, request, client_address) -> None:
        """A client that went away is part of the tests."""


@contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = urlsplit(self.path).path, self.server
        file = _FILE.fullmatch(path)
        kind, repo, topic, rest = (_API.fullmatch(path) or file).groups()
        if file:
            kind = "dataset" if kind else "model"
        files, revision = hub.repos.get((kind, repo)), hub.revisions.get((kind, repo))
        if files is None:
            self._send(404, {"X-Error-Code": "RepoNotFound"})
        elif repo in hub.gated and (file or topic == "auth-check"):
            self._send(403, {"X-Error-Code": "GatedRepo"})
        elif (topic if file else rest or revision) != revision:
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        elif file:
            self._send_file(rest, files[rest], revision)
        else:
            entries = [_entry(name, content) for name, content in files.items()]
            info = {"id": repo, "sha": revision, "gated": repo in hub.gated, "siblings": entries}
            body = json.dumps(entries if topic == "tree" else info).encode()
            self._send(200, {"Content-Type": "application/json"}, body)

    def _send_file(self, path: str, content: bytes, revision: str) -> None:
        entry, hub = _entry(path, content), self.server
        if path in hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        stall = hub.stall_after.get(path)
        if self.command == "GET":
            hub.asked.append(path)
        self._send(200, {"X-Repo-Commit": revision, "ETag": etag}, content, stall)
        if self.command == "GET" and stall:
            self.wfile.flush()
            hub.released.wait(30)

    def _send(self, status: int, headers: dict[str, str], body=b"", stall=None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:stall])


def _entry(path: str, content: bytes) -> dict:
    """As of a tree and of `siblings` at once; what is not text is large."""
    size, oid = len(content), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "rfilename": path, "size": size, "oid": oid}
    if not path.endswith((".json", ".txt")):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 134}
    return entry
