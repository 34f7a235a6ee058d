"""A model hub on the loopback: the few answers that `huggingface_hub` asks for, over real HTTP.

Large files are redirected to a content store that answers ranges, as on the real hub. Faults are
switched on by attributes.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_API = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/revision/([^/]+)|/(auth-check))")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class FakeHub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repos: content by (kind, repository), then by path.
        revisions: the only commit of each repository.
        gated: repositories that give no file.
        break_after: bytes of a content after which the connection is cut, once each.
        stall_after: bytes after which nothing more comes.
        down: hang up on every request.
        corrupt: paths whose first byte is wrong.
        ranges: path and `Range` header of every content asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.revisions: dict[tuple[str, str], str] = {}
        self.gated: set[str] = set()
        self.break_after: dict[str, int] = {}
        self.stall_after: dict[str, int] = {}
        self.down = False
        self.corrupt: set[str] = set()
        self.ranges: list[tuple[str, str | None]] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, kind: str, repo: str, revision: str, files: dict[str, bytes]) -> None:
        self.repos[kind, repo] = files
        self.revisions[kind, repo] = revision

    def handle_error(self, request, client_address) -> None:
        """A client that went away is part of the tests."""


def is_large(path: str) -> bool:
    return not path.endswith((".json", ".txt"))


@contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
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
        path = urlsplit(self.path).path
        if self.server.down:
            self.close_connection = True
        elif match := _API.fullmatch(path):
            self._api(*match.groups())
        elif match := _FILE.fullmatch(path):
            self._file(*match.groups())
        elif path.startswith("/store/"):
            _, _, kind, owner, name, rest = path.split("/", 5)
            self._content(rest, self.server.repos[kind, f"{owner}/{name}"][rest])
        else:
            self._refuse(404, "NotFound")

    def _api(self, folder: str, repo: str, revision: str | None, auth: str | None) -> None:
        kind = folder.removesuffix("s")
        if (kind, repo) not in self.server.repos:
            self._refuse(404, "RepoNotFound")
        elif auth:
            if repo in self.server.gated:
                self._refuse(403, "GatedRepo")
            else:
                self._send(b"{}", {})
        elif revision != self.server.revisions[kind, repo]:
            self._refuse(404, "RevisionNotFound")
        else:
            files = self.server.repos[kind, repo].items()
            body = {
                "id": repo,
                "sha": revision,
                "gated": "manual" if repo in self.server.gated else False,
                "siblings": [_entry(path, content) for path, content in files],
            }
            self._send(json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, dataset: str | None, repo: str, revision: str, path: str) -> None:
        kind = "dataset" if dataset else "model"
        content = self.server.repos.get((kind, repo), {}).get(path)
        if repo in self.server.gated:
            self._refuse(403, "GatedRepo")
        elif content is None:
            self._refuse(404, "EntryNotFound")
        elif is_large(path):
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/store/{kind}/{repo}/{path}")
            self.send_header("Content-Length", "0")
            self.send_header("X-Repo-Commit", revision)
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
        else:
            self._content(path, content, {"X-Repo-Commit": revision, "ETag": f'"{_blob(content)}"'})

    def _content(self, path: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        asked = self.headers.get("Range")
        if self.command == "GET":
            self.server.ranges.append((path, asked))
        if path in self.server.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self._send(content[start:], headers or {}, status=206 if asked else 200, path=path)

    def _send(
        self, body: bytes, headers: dict[str, str], *, status: int = 200, path: str = ""
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if path in self.server.break_after:
            self.wfile.write(body[: self.server.break_after.pop(path)])
            self.close_connection = True
        elif path in self.server.stall_after:
            self.wfile.write(body[: self.server.stall_after[path]])
            self.wfile.flush()
            self.server.released.wait(30)
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(path: str, content: bytes) -> dict:
    entry = {"rfilename": path, "size": len(content), "blobId": _blob(content)}
    if is_large(path):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return entry


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
