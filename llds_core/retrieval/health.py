"""What is at the address of a search service, asked once and without patience.

`RetrieverClient` waits for a service that should be there; who wants to start one, or to say
whether one is there, asks here.
"""

import json
import socket
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import requests

from llds_core.errors import ConfigError
from llds_core.retrieval.wire import (
    BadAnswerError,
    ServiceIdentity,
    parse_answer,
    parse_identity,
    render_request,
)

State = Literal["ready", "loading", "stopping", "unnamed", "foreign", "silent"]
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Health:
    """What was found at an address.

    Attributes:
        state: `ready`, `loading` or `stopping` for a service of ours; `unnamed` for one that
            searches but does not say what, such as Search-R1's own; `foreign` for anything else
            that listens there; `silent` when nothing does.
        identity: what a ready service searches.
    """

    state: State
    identity: ServiceIdentity | None = None


def ask_health(url: str, *, timeout: float = 3.0) -> Health:
    """Ask what is at `url`, waiting at most `timeout` seconds for each answer."""
    with requests.Session() as session:
        session.trust_env = False  # as the client: a proxy cannot reach this machine
        try:
            answer = session.get(f"{url}/health", timeout=timeout, allow_redirects=False)
            if answer.status_code in (404, 405):
                return _unnamed(session, url, timeout)
            if answer.status_code == 200:
                identity = parse_identity(answer.content)
                return Health("ready", identity) if identity else Health("foreign")
            status = json.loads(answer.content)["status"]
            return Health(status if status in ("loading", "stopping") else "foreign")
        except requests.ConnectionError:
            return Health("silent")
        except (requests.RequestException, BadAnswerError, ValueError, TypeError, KeyError):
            return Health("foreign")


def _unnamed(session: requests.Session, url: str, timeout: float) -> Health:
    answer = session.post(f"{url}/retrieve", data=render_request(["capital"], 1), timeout=timeout)
    parse_answer(answer.content, 1, 1, need_ids=False)
    return Health("unnamed")


def local_address(url: str) -> tuple[str, int] | None:
    """Host and port of `url` when it is on this machine (a loopback address, or its own name), else
    None.

    Raises:
        ConfigError: when `url` is no address.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host = None
    if not host:
        raise ConfigError(f'service.url is "{url}": write it as http://127.0.0.1:8000')
    names = {*_LOCAL, socket.gethostname().lower(), socket.getfqdn().lower()}
    # Slurm names nodes without their domain.
    names |= {name.split(".")[0] for name in names if not name[:1].isdigit()}
    return (host, port) if host in names else None
