"""What the search service refuses, over real sockets: in one line, and it lives on."""

import json
import socket
import time
from dataclasses import replace

import pytest
import requests
from services import (
    PATIENCE,
    SETTINGS,
    eventually,
    metric,
    post,
    running,
    send_raw,
)


@pytest.fixture(scope="module")
def url():
    with running() as address:
        yield address


def deep(depth: int) -> bytes:
    return b'{"queries": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "queries"),
        (b'"queries"', "queries"),
        (b"{}", "queries"),
        (b'{"queries": "word1"}', "list of strings"),
        (b'{"queries": null}', "list of strings"),
        (b'{"queries": [1]}', "list of strings"),
        (b'{"queries": [["a"]]}', "list of strings"),
        (b'{"queries": ["a", null]}', "list of strings"),
        (b'{"queries": ["a"], "topk": -1}', "topk"),
        (b'{"queries": ["a"], "topk": "3"}', "topk"),
        (b'{"queries": ["a"], "topk": 3.0}', "topk"),
        (b'{"queries": ["a"], "topk": true}', "topk"),
        (b'{"queries": ["a"], "topk": NaN}', "NaN"),
        (b'{"queries": ["a"], "topk": -Infinity}', "Infinity"),
        (b'{"queries": ["a"], "topk": 1000000000}', "at most 100"),
        (b'{"queries": ["a"], "topk": 1' + b"0" * 5000 + b"}", "number too long"),
        (b'{"queries": ["a"], "return_scores": 1}', "return_scores"),
        (b'{"queries": ["a"], "return_scores": "yes"}', "return_scores"),
        (b'{"queries": ["\xff\xfe"]}', "not UTF-8 at byte 14"),
        (json.dumps({"queries": ["a"]}).encode("utf-16"), "not UTF-8"),
        (b'{"queries": ["\\ud800"]}', "surrogate"),
        (b'{"queries": ["' + b"a" * 70_000 + b'"]}', "70000 characters"),
        (json.dumps({"queries": ["a"] * 4097}).encode(), "at most 4096"),
        (json.dumps({"queries": ["a"] * 1_000_000}).encode(), "more than 4096 queries"),
        (json.dumps({"queries": ["a"] * 1000, "topk": 51}).encode(), "50000 passages"),
        (deep(20), "list of strings"),
        (deep(100_000), "100001 lists"),
        (b'{"queries": [' + b"[]," * 1_000_000 + b"[]]}", "queries"),
        (b'{"queries": [' + b"1," * 1_000_000 + b"1]}", "more than 4096 queries"),
        (b'{"queries": ["\\\\", "\\"", "[[[[,,,,"], "topk": "}"}', "topk"),
    ],
    ids=range(32),
)
def test_what_is_not_as_agreed_is_refused_in_one_line(url, body: bytes, named: str) -> None:
    response = send_raw(url, body)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert named in response.json()["error"] and "\n" not in response.json()["error"]
    assert post(url, queries=["word3"], topk=1).json()["result"][0][0]["id"] == "p3"


def test_punctuation_of_json_within_queries_is_text(url) -> None:
    queries = ["[" * 5000, '"' * 5000, "\\" * 4999, "{,}" * 5000, 'word9 \\" ] \n \x00 é 北京 😀']
    rows = post(url, queries=queries, topk=1).json()["result"]
    assert [len(row) for row in rows] == [0, 0, 0, 0, 1]


def test_a_body_over_the_limit_is_refused_with_and_without_its_length(url) -> None:
    large = b"x" * (9 << 20)
    assert send_raw(url, large).status_code == 413
    pieces = (large[i : i + (1 << 20)] for i in range(0, len(large), 1 << 20))
    response = requests.post(f"{url}/retrieve", data=pieces)
    assert response.status_code == 413
    assert "8 MiB" in response.json()["error"]


def exchange(url: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """Everything a server sends over one connection until it closes it."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    return received


def test_who_asks_before_sending_too_much_is_told_at_once(url) -> None:
    head = b"POST /retrieve HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n"
    assert b" 413 " in exchange(url, head + b"Expect: 100-continue\r\n\r\n").split(b"\r\n")[0]


@pytest.mark.parametrize("length", [b"40", b"99999999"])
def test_a_body_that_does_not_come_is_given_up(length: bytes) -> None:
    head = b"POST /retrieve HTTP/1.1\r\nHost: a\r\nContent-Length: " + length + b"\r\n\r\n"
    with running(body_seconds=0.2) as url:
        answer = exchange(url, head, b'{"que')
        assert answer.split(b"\r\n")[0].split()[1] == (b"408" if length == b"40" else b"413")
        assert b'{"error":' in answer
        assert post(url, queries=["word1"]).status_code == 200


def test_a_head_that_drips_after_an_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llds_core.serving.server._HEAD_SECONDS", 0.5)
    monkeypatch.setattr("llds_core.serving.server._KEEP_ALIVE_SECONDS", 0.5)
    with running() as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            for _ in range(2):  # an answered request is no reason to wait less for the next
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += connection.recv(1 << 16)
                assert b" 200 " in answer
            connection.sendall(b"GET /health HT")
            connection.settimeout(PATIENCE)
            assert connection.recv(100) == b""


def test_a_connection_that_asks_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llds_core.serving.server._HEAD_SECONDS", 0.2)
    with running() as url:
        assert exchange(url) == b""
        assert exchange(url, b"POST /retr") == b""
        assert post(url, queries=["word1"]).status_code == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"h" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"POST /retrieve HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /retrieve HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["huge header", "TLS", "negative length", "broken chunk"],
)
def test_what_is_no_http_ends_its_connection_only(url, garbage: bytes) -> None:
    try:
        answer = exchange(url, garbage)
    except ConnectionError:
        answer = b""
    assert not answer or b" 400 " in answer.split(b"\r\n")[0]
    assert post(url, queries=["word1"]).status_code == 200


def test_bodies_of_all_requests_together_are_bounded() -> None:
    """Eight bodies of the largest size fit; the ninth at the same time is told to come later."""
    settings = replace(SETTINGS, max_body_mib=0.01)
    body = b'{"queries": ["' + b"a" * 10_000 + b'"]}'
    head = f"POST /retrieve HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with running(settings=settings) as url:
        host, port = url.removeprefix("http://").split(":")
        held = [socket.create_connection((host, int(port))) for _ in range(8)]
        for connection in held:
            connection.sendall(head + body[:-1])
        eventually(lambda: metric(url, "retriever_body_bytes") == 8 * (len(body) - 1))
        refused = send_raw(url, body)
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        for connection in held:
            connection.sendall(body[-1:])
            assert b" 200 " in connection.recv(100)
            connection.close()
        assert send_raw(url, body).status_code == 200
