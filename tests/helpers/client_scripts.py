"""Scripts of a server: what it answers to each request, faults among them."""

import json
import random
import threading
import time
from collections import Counter
from dataclasses import replace

import requests
from services import ENGINE, IDENTITY, SETTINGS

from llds_core.retrieval import RetrieverClient
from llds_core.retrieval.client import IDENTITY_HEADER

DEAD = "http://127.0.0.1:9"  # the discard port, where nothing listens
HEADERS = {IDENTITY_HEADER: IDENTITY.index}


def client_of(url: str, *, corpus: str | None = None, **values) -> RetrieverClient:
    return RetrieverClient(replace(SETTINGS, url=url, **values), corpus=corpus)


def health(method: str, path: str, request: dict):
    return 200, {}, IDENTITY.model_dump_json().encode()


def right(method: str, path: str, request: dict):
    hits = ENGINE.search(request["queries"], request["topk"])
    rows = [
        [
            {"document": {"id": h.id, "contents": f"{h.title}\n{h.text}"}, "score": h.score}
            for h in found
        ]
        for found in hits
    ]
    return 200, HEADERS, answers(rows)


def says(status: int, body: bytes = b"", headers: dict | None = None):
    return lambda method, path, request: (status, HEADERS | (headers or {}), body)


def drops(method: str, path: str, request: dict) -> None:
    return None


def answers(result) -> bytes:
    return json.dumps({"result": result}).encode()


def item(**changes) -> dict:
    document = {"id": "p", "contents": "t\nx"} | changes.pop("document", {})
    return {"document": document, "score": 1.0} | changes


class Faulty:
    """A script that passes requests on to a service, except for given shares of them."""

    def __init__(self, service: str, *, stall_seconds: float, **shares: float) -> None:
        self.counts: Counter[str] = Counter()
        self._service, self._stall = service, stall_seconds
        self._names, self._weights = [*shares, "none"], [*shares.values(), 1 - sum(shares.values())]
        self._random, self._lock = random.Random(0), threading.Lock()

    def __call__(self, method: str, path: str, request: dict):
        with self._lock:
            (fault,) = self._random.choices(self._names, self._weights)
            self.counts[fault] += 1
        if fault == "drop":
            return None
        if fault == "error":
            return 500, {}, b'{"error": "as told"}'
        if fault == "stall":
            time.sleep(self._stall)
        answer = requests.request(method, self._service + path, json=request or None, timeout=60)
        headers = {k: v for k, v in answer.headers.items() if k.lower().startswith("x-")}
        body = answer.content[: len(answer.content) // 2] if fault == "broken" else answer.content
        return answer.status_code, headers, body
