"""HTTP calls that are tried again: one address, bounded tries, growing pauses."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from llds_core.config import ServiceConfig
from llds_core.errors import ConfigError, RetrieverError
from llds_core.retrieval.wire import BadAnswerError
from llds_core.seeding import numpy_generator

_LONGEST_PAUSE = 10.0  # seconds between two tries
_LONGEST_RETRY_AFTER = 60.0  # seconds that a service may ask for
_LARGEST_ANSWER = 1 << 28  # bytes
_LATER = (408, 429)  # refusals that are about this moment, not about the request

_logger = logging.getLogger("llds_core")
_T = TypeVar("_T")


class RefusedError(RetrieverError):
    """A request that the service does not take, now or later."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _TryAgainError(Exception):
    """A try that failed, and how long the service asked to wait."""

    def __init__(self, cause: str, retry_after: float = 0.0) -> None:
        super().__init__(cause)
        self.retry_after = retry_after


class Transport:
    """Sends requests until one is answered as it should be; safe from any number of threads.

    Args:
        settings: address and patience.
        seed: root of the jitter of the pauses.
        sleep: waits some seconds.

    Raises:
        ConfigError: when the address is no URL.

    Attributes:
        url: the address, without a path.
        requests: requests sent.
        retries: those that were sent because another had failed.
    """

    def __init__(
        self, settings: ServiceConfig, *, seed: int = 0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.url = _base(settings.url)
        self._settings = settings
        self._sleep = sleep
        self._jitter = numpy_generator(seed, "retriever-client")
        self._session = requests.Session()
        # Environment variables are no configuration here, and a proxy cannot reach this machine.
        self._session.trust_env = False
        self._session.mount(self.url, HTTPAdapter(pool_connections=1, pool_maxsize=64))
        self._lock = threading.Lock()
        self.requests = self.retries = 0

    def call(
        self,
        method: str,
        path: str,
        read: Callable[[requests.Response, bytes], _T],
        data: bytes | None = None,
    ) -> _T:
        """Return what `read` makes of the answer; a `BadAnswerError` of it is a failed try.

        Raises:
            RefusedError: for a status that no repetition changes.
            RetrieverError: when the last try failed too.
        """
        tries = self._settings.tries
        for number in range(1, tries + 1):
            try:
                return read(*self._exchange(method, path, data))
            except BadAnswerError as error:
                failure = _TryAgainError(f"a broken answer: {error}")
            except _TryAgainError as error:
                failure = error
            if number < tries:
                seconds = self._pause(number, failure.retry_after)
                _logger.info(
                    "retriever at %s, try %d of %d: %s; again in %.2f s",
                    self.url,
                    number,
                    tries,
                    failure,
                    seconds,
                )
                self._sleep(seconds)
        raise RetrieverError(
            f"retriever at {self.url} gave no valid answer ({tries} tries, the last: {failure}): "
            'start it with "make retriever PROFILE=…" or set retrieval.backend=bm25'
        )

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._session.close()

    def _exchange(
        self, method: str, path: str, data: bytes | None
    ) -> tuple[requests.Response, bytes]:
        """One request and its whole answer."""
        settings = self._settings
        patience = settings.timeout_seconds
        with self._lock:
            self.requests += 1
        try:
            with self._session.request(
                method,
                self.url + path,
                data=data,
                headers={"Content-Type": "application/json"},
                timeout=patience,
                allow_redirects=False,
                stream=True,
            ) as response:
                body = _read(response, time.monotonic() + patience)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise _TryAgainError(f"no answer within {patience:g} s") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            refused = "refused" in str(error)
            cause = "connection refused" if refused else f"connection lost, {_short(str(error))}"
            raise _TryAgainError(cause) from None
        self._check_status(response, body)
        return response, body

    def _check_status(self, response: requests.Response, body: bytes) -> None:
        status = response.status_code
        if status == 200:
            return
        cause = f"status {status} {_short(body[:400].decode('utf-8', 'replace'))}".rstrip()
        if status >= 500 or status in _LATER:
            raise _TryAgainError(cause, _seconds(response.headers.get("Retry-After")))
        raise RefusedError(
            f"retriever at {self.url} refuses {urlsplit(response.url).path} ({cause}): check "
            "service.url and the limits it was started with",
            status,
        )

    def _pause(self, number: int, retry_after: float) -> float:
        """Seconds after try `number`, from 1: half to all of the doubled pause."""
        settings = self._settings
        with self._lock:
            self.retries += 1
            share = 0.5 + self._jitter.random() / 2
        longest = min(settings.backoff_seconds * 2.0 ** (number - 1), _LONGEST_PAUSE)
        return max(longest * share, min(retry_after, _LONGEST_RETRY_AFTER))


def _base(url: str) -> str:
    """The address without the path that Search-R1's settings end with."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f'service.url is "{url}": write it as http://127.0.0.1:8000')
    return url.rstrip("/").removesuffix("/retrieve").rstrip("/")


def _read(response: requests.Response, deadline: float) -> bytes:
    """The whole body; a server that sends a byte now and then does not hold us for ever."""
    body = bytearray()
    while part := response.raw.read1(1 << 16, decode_content=True):
        body += part
        if len(body) > _LARGEST_ANSWER:
            raise _TryAgainError(f"an answer of more than {_LARGEST_ANSWER} bytes")
        if time.monotonic() > deadline:
            raise requests.Timeout
    return bytes(body)


def _seconds(retry_after: str | None) -> float:
    """Seconds of a Retry-After header; a date, or nonsense, asks for nothing."""
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < float("inf") else 0.0


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:119]}…"
