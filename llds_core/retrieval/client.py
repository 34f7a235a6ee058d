"""A search engine that is somewhere else: the client of the search service.

What goes wrong on the way is tried again a bounded number of times, with growing pauses: refused
and dropped connections, silence, server errors, answers that are not as agreed. What stays wrong is
an error that says what to do, or, where `service.on_failure` says so, an empty list of hits that is
logged and counted. A service that comes back with another corpus is an error always: a run whose
hits come from two corpora would be worse than none.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from requests import Response

from llds_core.config import ServiceConfig
from llds_core.errors import RetrieverChangedError, RetrieverError
from llds_core.retrieval.base import Hit, check_k
from llds_core.retrieval.transport import RefusedError, Transport
from llds_core.retrieval.wire import (
    IDENTITY_HEADER,
    ServiceIdentity,
    parse_answer,
    parse_identity,
    query_bytes,
    render_request,
)

UNKNOWN = "unknown"
"""Identity of a service that does not tell, such as Search-R1's own."""

_OVERHEAD = 256  # bytes of a request beside its queries
_SMALLER = (400, 413, 422)  # refusals that part of the request may not deserve

_logger = logging.getLogger("llds_core")


class RetrieverClient:
    """Searches with a service; any number of threads may share a client.

    Args:
        settings: address, patience and limits.
        corpus: what the service must search, as it names its corpus; None takes any.
        seed: root of the jitter of the pauses, which changes no result.
        sleep: waits some seconds.

    Raises:
        ConfigError: when the address is no URL.

    Attributes:
        failed: queries answered with an empty list because the service did not answer them.
    """

    def __init__(
        self,
        settings: ServiceConfig,
        *,
        corpus: str | None = None,
        seed: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._corpus = corpus
        self._transport = Transport(settings, seed=seed, sleep=sleep)
        self._lock = threading.Lock()
        self._identity: str | None = None
        self._cache: OrderedDict[tuple[str, int, str], list[Hit]] = OrderedDict()
        self.failed = 0

    @property
    def identity(self) -> str:
        """The index that is searched, asked once; `UNKNOWN` when the service does not tell.

        Raises:
            RetrieverChangedError: when it searches another corpus than it should.
            RetrieverError: when the service does not answer.
        """
        if self._identity is None:
            identity = self._ask_identity()
            with self._lock:
                self._identity = self._identity or identity
        return self._identity

    @property
    def requests(self) -> int:
        """HTTP requests sent."""
        return self._transport.requests

    @property
    def retries(self) -> int:
        """HTTP requests that were sent because another had failed."""
        return self._transport.retries

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return up to `k` hits per query, best first.

        Raises:
            ConfigError: when `k` is not a positive integer.
            RetrieverChangedError: when the service searches another corpus than it did or should.
            RetrieverError: when it gave no valid answer, unless `service.on_failure` is "empty".
        """
        check_k(k)
        found: dict[str, list[Hit]] = {}
        missing = []
        for query in dict.fromkeys(queries):
            hits = self._remembered(query, k)
            if hits is None:
                missing.append(query)
            else:
                found[query] = hits
        for part in self._parts(missing, k):
            found |= self._search_part(part, k)
        return [list(found[query]) for query in queries]

    def close(self) -> None:
        """Close the connections; a later search opens new ones."""
        self._transport.close()

    def _parts(self, queries: list[str], k: int) -> Iterator[list[str]]:
        """`queries` in requests of a size that the service takes."""
        settings = self._settings
        most = min(settings.request_queries, settings.max_queries, settings.max_hits // k)
        most = max(1, most)
        room = settings.max_body_mib * 2**20 - _OVERHEAD
        part: list[str] = []
        taken = 0
        for query in queries:
            size = query_bytes(query)
            if part and (len(part) == most or taken + size > room):
                yield part
                part, taken = [], 0
            part.append(query)
            taken += size
        if part:
            yield part

    def _search_part(self, part: list[str], k: int) -> dict[str, list[Hit]]:
        settings = self._settings
        try:
            results = self._ask(part, k, self.identity)
        except RetrieverChangedError:
            raise
        except RetrieverError as error:
            if isinstance(error, RefusedError) and error.status in _SMALLER and len(part) > 1:
                # The service's limits are lower than ours, or a single query is at fault.
                half = len(part) // 2
                return self._search_part(part[:half], k) | self._search_part(part[half:], k)
            if settings.on_failure == "raise":
                raise
            _logger.warning("%d searches find nothing: %s", len(part), error)
            with self._lock:
                self.failed += len(part)
            return {query: [] for query in part}
        self._remember(part, k, results)
        return dict(zip(part, results, strict=True))

    def _ask(self, part: list[str], k: int, identity: str) -> list[list[Hit]]:
        def read(response: Response, body: bytes) -> list[list[Hit]]:
            serving = response.headers.get(IDENTITY_HEADER, UNKNOWN)
            if serving != identity:
                raise RetrieverChangedError(
                    f"retriever at {self._transport.url} now searches index {serving}, this run "
                    f'began with {identity}: start that one with "make retriever PROFILE=…"'
                )
            return parse_answer(body, len(part), k, need_ids=identity != UNKNOWN)

        return self._transport.call("POST", "/retrieve", read, render_request(part, k))

    def _ask_identity(self) -> str:
        def read(response: Response, body: bytes) -> ServiceIdentity | None:
            return parse_identity(body)

        url = self._transport.url
        try:
            found = self._transport.call("GET", "/health", read)
        except RefusedError as error:
            if error.status not in (404, 405):
                raise
            found = None
        if found is None:
            _logger.warning(
                "retriever at %s does not say what it searches: a change would go unnoticed", url
            )
            return UNKNOWN
        if self._corpus is not None and found.corpus != self._corpus:
            raise RetrieverChangedError(
                f"retriever at {url} searches corpus {found.corpus}, this run is about "
                f'{self._corpus}: start one for its profile with "make retriever PROFILE=…"'
            )
        return found.index

    def _remembered(self, query: str, k: int) -> list[Hit] | None:
        key = (query, k, self._identity or UNKNOWN)
        with self._lock:
            if key not in self._cache:
                return None
            self._cache.move_to_end(key)
            return self._cache[key]

    def _remember(self, part: list[str], k: int, results: list[list[Hit]]) -> None:
        settings = self._settings
        with self._lock:
            for query, hits in zip(part, results, strict=True):
                self._cache[query, k, self._identity or UNKNOWN] = hits
            while len(self._cache) > settings.cache_size:
                self._cache.popitem(last=False)
