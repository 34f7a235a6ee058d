"""A search engine that is somewhere else: the client of the search service, in Search-R1's terms.

    request   {"queries": [str, …], "topk": int, "return_scores": true}
    answer    {"result": [[{"document": {"id": str, "contents": str}, "score": float}, …], …]}

What goes wrong on the way is tried again a bounded number of times, with growing pauses: refused
and dropped connections, silence, server errors, answers that are not as agreed. What stays wrong is
an error that says what to do, or, where `service.on_failure` says so, an empty list of hits and a
line in the log. A service that comes back with another corpus is an error always: a run whose hits
come from two corpora would be worse than none.
"""

import hashlib
import json
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError
from pydantic_core import from_json
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError, MaxRetryError

from llds_core.config import ServiceConfig
from llds_core.config.given import address
from llds_core.errors import RetrieverChangedError, RetrieverError
from llds_core.retrieval.base import Hit
from llds_core.worlds.records import shown, split_contents

IDENTITY_HEADER = "X-Retriever-Identity"  # of every answer: which index was searched
UNKNOWN = "unknown"  # identity of a service that does not tell, such as Search-R1's own

_LATER = {408, 429, *range(500, 600)}  # statuses that are about this moment, not about the request
_NO_SUCH_PAGE = (404, 405)
_logger = logging.getLogger("llds_core")
_T = TypeVar("_T")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class ServiceIdentity(_Strict):
    """What a service searches, as `/health` says it."""

    index: str  # changes with corpus, search engine or settings
    corpus: str  # changes with the passages or their order
    backend: str
    passages: int


class _Document(_Strict):
    id: str | int | None = None  # some published corpora number their passages
    contents: str


class _Item(_Strict):
    document: _Document
    score: FiniteFloat | None = None  # Search-R1's services of web searches give none

    @property
    def hit(self) -> Hit:
        """The passage; without an id, as Search-R1's BM25 server sends it, by its text's hash."""
        id_, contents = self.document.id, self.document.contents
        if id_ is None:
            id_ = hashlib.sha256(contents.encode()).hexdigest()[:16]
        return Hit(str(id_), *split_contents(contents), self.score or 0.0)


class _Answer(_Strict):
    result: list[list[_Item]]


def _read_hits(response: requests.Response, queries: int) -> list[list[Hit]]:
    """The hits for each of so many `queries`, else a `ValueError`."""
    answer = _Answer.model_validate_json(response.content)
    if len(answer.result) != queries:
        raise ValueError(f"not {queries} lists of passages")
    return [[item.hit for item in items] for items in answer.result]


class RetrieverClient:
    """Searches with a service; any number of threads may share a client.

    Args:
        settings: address, patience and limits.
        corpus: what the service must search, as it names its corpus; None takes any.
    """

    def __init__(
        self, settings: ServiceConfig, *, corpus: str | None = None, profile: str = "…"
    ) -> None:
        self.url = settings.url
        self._start = f'"make retriever PROFILE={profile} BACKEND=dense"'
        self._settings = settings
        self._corpus = corpus
        # Without jitter: urllib3 draws it from Python's global generator.
        self._retry = Retry(
            total=settings.tries - 1,
            backoff_factor=settings.backoff_seconds,
            backoff_max=10,
            retry_after_max=60,
            allowed_methods=None,
        )
        self._session = _session()
        self._session.mount(self.url, HTTPAdapter(pool_connections=1, pool_maxsize=64))
        self._identity: str | None = None

    @property
    def identity(self) -> str:
        """The index that is searched, asked once; `UNKNOWN` when the service does not tell."""
        if self._identity is None:
            self._identity = self._call("GET", "/health", self._read_identity)
        return self._identity

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return up to `k` hits per query, best first; a repeated query is asked once.

        Raises:
            RetrieverChangedError: when the service searches another corpus than it did or should.
            RetrieverError: when it gave no valid answer, unless `service.on_failure` is "empty".
        """
        asked = list(dict.fromkeys(queries))
        limits = self._settings
        size = max(1, min(limits.request_queries, limits.max_queries, limits.max_hits // k))
        found: dict[str, list[Hit]] = {}
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            found |= zip(part, self._search_part(part, k), strict=True)
        return [list(found[query]) for query in queries]

    def _search_part(self, part: list[str], k: int) -> list[list[Hit]]:
        request = {"queries": part, "topk": k, "return_scores": True}
        # Half a surrogate pair, which a policy may write, becomes a question mark.
        body = json.dumps(request, ensure_ascii=False).encode("utf-8", "replace")
        try:
            identity = self.identity

            def read(response: requests.Response) -> list[list[Hit]]:
                self._check_status(response)
                serving = response.headers.get(IDENTITY_HEADER, UNKNOWN)
                if serving != identity:
                    raise RetrieverChangedError(
                        f"retriever at {self.url} now searches index {serving}, this run began "
                        f"with {identity}: start that one with {self._start}"
                    )
                return [hits[:k] for hits in _read_hits(response, len(part))]

            return self._call("POST", "/retrieve", read, body)
        except RetrieverChangedError:
            raise
        except RetrieverError as error:
            if self._settings.on_failure == "raise":
                raise
            _logger.warning("%d searches find nothing: %s", len(part), error)
            return [[] for _ in part]

    def _read_identity(self, response: requests.Response) -> str:
        found = None
        if response.status_code not in _NO_SUCH_PAGE:
            self._check_status(response)
            with suppress(ValidationError):  # a page of another kind of server
                found = ServiceIdentity.model_validate(from_json(response.content))
        if found is None:
            said = "retriever at %s does not say what it searches: a change would go unnoticed"
            _logger.warning(said, self.url)
            return UNKNOWN
        if self._corpus is not None and found.corpus != self._corpus:
            raise RetrieverChangedError(
                f"retriever at {self.url} searches corpus {found.corpus}, this run is about "
                f"{self._corpus}: start one for its profile with {self._start}"
            )
        return found.index

    def _check_status(self, response: requests.Response) -> None:
        if response.status_code != 200:
            raise RetrieverError(
                f"retriever at {self.url} refuses the request (status {response.status_code} "
                f"{shown(response.text)}): check service.url and the limits it was started with"
            )

    def _call(
        self, method: str, path: str, read: Callable[[requests.Response], _T], body: bytes = b""
    ) -> _T:
        """Return what `read` makes of the answer; a `ValueError` of it is a failed try."""
        retry = self._retry
        while True:
            answered = None
            try:
                response = self._session.request(
                    method,
                    self.url + path,
                    data=body,
                    headers={"Content-Type": "application/json"},
                    timeout=self._settings.timeout_seconds,
                    allow_redirects=False,
                )
                if response.status_code not in _LATER:
                    return read(response)
                answered = response.raw
                failure = f"status {response.status_code} {shown(response.text)}"
            except requests.Timeout:
                failure = f"no answer within {self._settings.timeout_seconds:g} s"
            except requests.RequestException as error:
                refused = "refused" in str(error)
                failure = f"connection {'refused' if refused else f'lost, {shown(str(error))}'}"
            except ValidationError as error:
                failure = f"a broken answer: {error.errors()[0]['msg']}"
            except ValueError as error:
                failure = f"a broken answer: {error}"
            try:
                retry = retry.increment(method, path, error=HTTPError(failure))
            except MaxRetryError:
                raise RetrieverError(
                    f"retriever at {self.url} gave no valid answer ({self._settings.tries} tries, "
                    f"the last: {failure}): start it with {self._start} or set "
                    "retrieval.backend=bm25"
                ) from None
            _logger.info("retriever at %s: %s; trying again", self.url, failure)
            with suppress(HTTPError):  # a Retry-After that is not a number
                retry.sleep(answered)


@dataclass(frozen=True)
class Health:
    """What is at an address: a service of ours (`ready` or `loading`), one that searches but does
    not say what, such as Search-R1's own (`unnamed`), anything else that listens there
    (`foreign`), or nothing (`silent`).
    """

    state: Literal["ready", "loading", "unnamed", "foreign", "silent"]
    identity: ServiceIdentity | None = None


def ask_health(url: str, *, timeout: float = 3.0) -> Health:
    """Ask once what is at `url`, waiting at most `timeout` seconds, for a search ten times that."""
    url = address(url)
    try:
        with _session() as session:
            answer = session.get(f"{url}/health", timeout=timeout, allow_redirects=False)
            if answer.status_code in _NO_SUCH_PAGE:
                query: dict[str, Any] = {"queries": ["capital"], "topk": 1, "return_scores": True}
                # An exact search of a large index takes its time.
                found = session.post(f"{url}/retrieve", json=query, timeout=10 * timeout)
                _read_hits(found, 1)
                return Health("unnamed")
        if answer.status_code == 200:
            return Health("ready", ServiceIdentity.model_validate_json(answer.content))
        return Health("loading" if answer.json()["status"] == "loading" else "foreign")
    except requests.ConnectionError:
        return Health("silent")
    except (requests.RequestException, ValueError, TypeError, KeyError):
        return Health("foreign")


def local_address(url: str) -> tuple[str, int] | None:
    """Host and port of `url` when it is on this machine (a loopback address or its own name), else
    None.
    """
    parts = urlsplit(address(url))
    host, port = str(parts.hostname), parts.port or 80
    names = {socket.gethostname().lower(), socket.getfqdn().lower()}
    # Slurm names nodes without their domain.
    names |= {name.split(".")[0] for name in names if not name[:1].isdigit()}
    here = host in names | {"localhost"}
    with suppress(ValueError):
        ip = ip_address(host)
        here = here or ip.is_loopback or ip.is_unspecified
    return (host, port) if here else None


def _session() -> requests.Session:
    session = requests.Session()
    # Environment variables are not configuration here, and a proxy cannot reach this machine.
    session.trust_env = False
    return session
