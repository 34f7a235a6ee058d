"""A client that does not wait, and scripts of a server: what it answers to each request."""

import json

from services import ENGINE, IDENTITY, settings_for

from llds_core.retrieval.client import RetrieverClient
from llds_core.retrieval.wire import IDENTITY_HEADER, render_answer

DEAD = "http://127.0.0.1:9"  # the discard port, where nothing listens
HEADERS = {IDENTITY_HEADER: IDENTITY.index}


def client_of(url: str, sleeps: list[float] | None = None, **values) -> RetrieverClient:
    sleep = (lambda seconds: None) if sleeps is None else sleeps.append
    return RetrieverClient(settings_for(url, **values), sleep=sleep)


def health(method: str, path: str, request: dict):
    row = {"index": IDENTITY.index, "corpus": "corpus-a", "backend": "bm25", "passages": 60}
    return 200, {}, json.dumps(row).encode()


def right(method: str, path: str, request: dict):
    hits = ENGINE.search(request["queries"], request["topk"])
    return 200, HEADERS, render_answer(hits, return_scores=True)


def says(status: int, body: bytes = b"", headers: dict | None = None):
    return lambda method, path, request: (status, HEADERS | (headers or {}), body)


def drops(method: str, path: str, request: dict) -> None:
    return None


def answers(result) -> bytes:
    return json.dumps({"result": result}).encode()


def item(**changes) -> dict:
    document = {"id": "p", "contents": '"t"\nx'} | changes.pop("document", {})
    return {"document": document, "score": 1.0} | changes
