"""The search service over real sockets: the contract, what it refuses, how it starts and stops."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import requests
import services
from services import ENGINE, IDENTITY, PATIENCE, SETTINGS, Recorder, eventually, post, running

from llds_core.retrieval import ask_health
from llds_core.retrieval import service as module
from llds_core.retrieval.client import IDENTITY_HEADER
from llds_core.retrieval.service import SearchService


@pytest.fixture(scope="module")
def url():
    with running() as address:
        yield address


def test_search_r1_client_code_works_unchanged(url) -> None:
    """The line of Search-R1's `generation.py`, and what it reads from the answer."""
    payload = {"queries": ["word3", "word7"], "topk": 2, "return_scores": True}
    result = requests.post(f"{url}/retrieve", json=payload).json()["result"]
    assert result[1][0]["document"]["contents"] == "title7\ntext about word7 and all"
    assert result[0][0]["document"]["id"] == "p3"
    scores = [[hit.score for hit in found] for found in ENGINE.search(payload["queries"], 2)]
    assert [[item["score"] for item in items] for items in result] == scores
    # Without scores the items are the documents.
    rows = post(url, queries=["word3"], topk=1).json()["result"]
    assert rows == [[{"id": "p3", "contents": "title3\ntext about word3 and all"}]]


def test_three_passages_unless_told_otherwise_and_other_fields_are_ignored(url) -> None:
    for more in ({}, {"topk": 0}, {"topk": None}, {"user": "me", "more": {"a": [1]}}):
        assert len(post(url, queries=["text"], **more).json()["result"][0]) == 3
    assert post(url, queries=[], topk=3, return_scores=True).json() == {"result": []}


def test_health_says_what_is_searched(url) -> None:
    row = requests.get(f"{url}/health").json()
    assert row.pop("uptime_seconds") >= 0
    assert row == {"status": "ready"} | IDENTITY.model_dump()
    assert post(url, queries=["a"]).headers[IDENTITY_HEADER] == IDENTITY.index


def test_unknown_paths_and_methods_are_one_line_of_json(url) -> None:
    asked = ("GET", "retrieve", 405), ("GET", "docs", 404), ("POST", "health", 405)
    for method, path, status in asked:
        response = requests.request(method, f"{url}/{path}")
        assert response.status_code == status
        assert "POST /retrieve" in response.json()["error"] and "server" not in response.headers


@contextmanager
def blocked(before=lambda queries: None, **limits) -> Iterator[tuple]:
    """A service whose engine is held by a first request, until it is released."""
    release = threading.Event()

    def hold(queries) -> None:
        release.wait(PATIENCE)
        before(queries)

    engine, service = Recorder(hold), SearchService(replace(SETTINGS, **limits))
    service.open(engine, IDENTITY)
    with services.serving(service) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, queries=["word1"])
        eventually(lambda: engine.calls)
        yield service, engine, url, release
        assert first.result().status_code == 200


def test_concurrent_requests_share_a_search_and_get_their_own_answers() -> None:
    """Different numbers of passages, with and without scores, in one search for the most."""
    asked_for = [
        {"queries": [f"word{i}", "text"], "topk": i + 1, "return_scores": i % 2 == 1}
        for i in range(8)
    ]
    with blocked() as (service, engine, url, release), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(post, url, **request) for request in asked_for]
        eventually(lambda: len(service._batcher._waiting) == 8)
        release.set()
        answers = [future.result().json()["result"] for future in asked]
    assert len(engine.calls) == 2
    assert len(engine.calls[1][0]) == 16 and engine.calls[1][1] == 8
    for i, (own, common) in enumerate(answers):
        first = own[0]["document"] if i % 2 else own[0]
        assert first["id"] == f"p{i}" and len(common) == i + 1


def test_batches_are_bounded_and_too_many_waiting_queries_are_told_to_come_later() -> None:
    """4 × 2 queries may wait, the next is refused; health answers."""
    small = blocked(max_queries=2, max_hits=6)
    with small as (service, engine, url, release), ThreadPoolExecutor(8) as pool:
        waiting = [
            pool.submit(post, url, queries=["word1"], topk=6 if i % 3 == 2 else 3) for i in range(8)
        ]
        eventually(lambda: len(service._batcher._waiting) == 8)
        refused = post(url, queries=["word3"])
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        assert requests.get(f"{url}/health", timeout=PATIENCE).status_code == 200
        release.set()
        assert {future.result().status_code for future in waiting} == {200}
        assert post(url, queries=["word3"]).status_code == 200
        assert post(url, queries=["word3", "word4"], topk=3).status_code == 200  # 6, just allowed
    assert max(len(queries) for queries, _ in engine.calls) == 2
    assert all(len(queries) * k <= 6 for queries, k in engine.calls)


def test_nobody_searches_for_a_client_that_gave_up() -> None:
    with blocked() as (_, engine, url, release):
        with pytest.raises(requests.Timeout):
            requests.post(f"{url}/retrieve", json={"queries": ["word2"]}, timeout=0.3)
        release.set()
        assert post(url, queries=["word3"]).status_code == 200
    assert [queries for queries, _ in engine.calls] == [["word1"], ["word3"]]


def test_a_query_that_breaks_the_engine_breaks_its_own_request_only(caplog) -> None:
    def refuse(queries) -> None:
        if "poison" in queries:
            raise ValueError("as told")

    with blocked(refuse) as (service, _, url, release), ThreadPoolExecutor(4) as pool:
        queries = ["word1", "poison", "word2", "word3"]
        asked = [pool.submit(post, url, queries=[query]) for query in queries]
        eventually(lambda: len(service._batcher._waiting) == 4)
        release.set()
        answers = [future.result() for future in asked]
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
    assert "ValueError" in answers[1].json()["error"]
    assert "as told" in caplog.text


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "Invalid JSON"),
        (b"{}", "queries"),
        (b'{"queries": "word1"}', "valid array"),
        (b'{"queries": [["a"]]}', "valid string"),
        (b'{"queries": ["a"], "topk": -1}', "topk"),
        (b'{"queries": ["a"], "topk": "3"}', "topk"),
        (b'{"queries": ["a"], "topk": NaN}', "topk"),
        (b'{"queries": ["a"], "topk": 1000000000}', "less than or equal to 100"),
        (b'{"queries": ["a"], "topk": 1' + b"0" * 5000 + b"}", "number"),
        (b'{"queries": ["a"], "return_scores": "yes"}', "return_scores"),
        (b'{"queries": ["\xff\xfe"]}', "Invalid JSON"),
        (json.dumps({"queries": ["a"]}).encode("utf-16"), "Invalid JSON"),
        (b'{"queries": ["\\ud800"]}', "hex escape"),
        (b'{"queries": ["' + b"a" * 70_000 + b'"]}', "65536 characters"),
        (json.dumps({"queries": ["a"] * 4097}).encode(), "at most 4096"),
        (json.dumps({"queries": ["a"] * 1_000_000}).encode(), "more than 4096 queries"),
        (json.dumps({"queries": ["a"] * 1000, "topk": 51}).encode(), "50000 passages"),
        (b'{"queries": ' + b"[" * 20 + b"]" * 20 + b"}", "valid string"),
        (b'{"queries": ' + b"[" * 100_000, "more than 4096 queries"),
        (b'{"queries": [' + b"[]," * 1_000_000 + b"[]]}", "queries"),
        (b'{"queries": ["\\\\", "\\"", "[[[[,,,,"], "topk": "}"}', "topk"),
    ],
    ids=range(21),
)
def test_what_is_not_as_agreed_is_refused_in_one_line(url, body: bytes, named: str) -> None:
    response = requests.post(f"{url}/retrieve", data=body, timeout=PATIENCE)
    assert response.status_code == 400 and [*response.json()] == ["error"]
    assert named in response.json()["error"] and "\n" not in response.json()["error"]
    assert post(url, queries=["word3"], topk=1).json()["result"][0][0]["id"] == "p3"


def test_punctuation_of_json_within_queries_is_text(url) -> None:
    queries = ["[" * 5000, '"' * 5000, "\\" * 4999, "{,}" * 5000, 'word9 \\" ] \n \x00 é 北京 😀']
    rows = post(url, queries=queries, topk=1).json()["result"]
    assert [len(row) for row in rows] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("length", [40, 99999999])
def test_a_body_that_does_not_come_is_given_up(monkeypatch, url, length: int) -> None:
    monkeypatch.setattr(module, "_BODY_SECONDS", 0.2)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        head = f"POST /retrieve HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b'{"que')
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))  # until it is closed
    assert answer.split()[1] == b"408" and b'{"error":' in answer
    assert post(url, queries=["word1"]).status_code == 200


def test_loading_is_said() -> None:
    service = SearchService(SETTINGS)
    with services.serving(service) as url:
        for response in (requests.get(f"{url}/health"), post(url, queries=["word1"])):
            assert response.status_code == 503 and response.headers["Retry-After"] == "1"
        assert requests.get(f"{url}/health").json()["status"] == "loading"
        service.open(ENGINE, IDENTITY)
        assert requests.get(f"{url}/health").json()["status"] == "ready"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_was_accepted_and_is_a_success(how: int) -> None:
    with services.Process(search_seconds=3.0) as process, ThreadPoolExecutor(1) as pool:
        searching = pool.submit(post, process.url, queries=["word3"], topk=1)
        time.sleep(1.5)  # sent by then, and not answered
        assert process.stop(how) == (0, "")
        assert searching.result().json()["result"][0][0]["id"] == "p3"
        with pytest.raises(requests.ConnectionError):
            requests.get(process.url)


def test_a_stop_while_loading_is_a_stop() -> None:
    process = services.Process(load_seconds=600.0)
    process.start()
    eventually(lambda: ask_health(process.url).state == "loading")
    assert process.stop(signal.SIGTERM) == (0, "")
