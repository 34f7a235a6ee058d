"""The client of the search service: right answers or a named error, whatever the server does."""

import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from client_scripts import DEAD, answers, client_of, drops, health, item, right, says
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import refused
from scripted_rollouts import StubRetriever
from services import ENGINE, IDENTITY, Recorder, Scripted, running

from llds_core.errors import RetrieverChangedError, RetrieverError
from llds_core.retrieval import Hit, ask_health
from llds_core.retrieval.client import IDENTITY_HEADER, UNKNOWN, local_address


@pytest.fixture(scope="module")
def url():
    with running() as address:
        yield address


def test_hits_survive_the_journey() -> None:
    engine = StubRetriever()
    with running(engine) as url:
        client = client_of(url)

        @settings(max_examples=40, deadline=None)
        @given(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")),
            st.text(st.characters(exclude_categories=["Cs"])),
            st.floats(allow_nan=False, allow_infinity=False),
        )
        def survives(title: str, text: str, score: float) -> None:
            engine.hits = [Hit("id", title, text, abs(score)), Hit("é", "t", "", -abs(score))]
            assert client.search(["a"], 2) == [engine.hits]

        survives()
        client.search(["half a pair \ud83d"], 2)  # as a policy may write it
        assert engine.queries[-1] == "half a pair ?"


@pytest.mark.parametrize(
    ("limit", "value", "sizes"),
    [
        ("max_queries", 4, [4, 4, 2]),
        ("request_queries", 6, [6, 4]),
        ("max_hits", 9, [3, 3, 3, 1]),
        ("max_hits", 1, [1] * 10),
    ],
)
def test_large_batches_are_split_into_requests_the_service_takes(limit, value, sizes) -> None:
    queries = list("abcdefghij")
    server = Scripted(health, right)
    with server.serve() as url:
        assert client_of(url, **{limit: value}).search(queries, 3) == ENGINE.search(queries, 3)
    sent = [request["queries"] for _, path, request in server.requests if path == "/retrieve"]
    assert [len(part) for part in sent] == sizes
    assert [query for part in sent for query in part] == queries
    assert server.connections == 1


def test_a_repeated_query_is_asked_once_and_answered_everywhere() -> None:
    engine = Recorder()
    with running(engine) as address:
        found = client_of(address).search(["word2", "word1", "text", "word1"], 5)
    assert engine.calls == [(["word2", "word1", "text"], 5)]
    assert found == ENGINE.search(["word2", "word1", "text", "word1"], 5)
    assert found[1] is not found[3]  # a caller's own list


def test_threads_may_share_a_client(url) -> None:
    client = client_of(url)
    queries = [f"word{i % 60}" for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: client.search([query], 2)[0], queries))
    assert found == ENGINE.search(queries, 2)


def test_environment_variables_do_not_lead_elsewhere(url, monkeypatch) -> None:
    for name, value in {"HTTP_PROXY": DEAD, "ALL_PROXY": DEAD, "NO_PROXY": ""}.items():
        monkeypatch.setenv(name, value)
    assert client_of(url).search(["word1"], 1) == ENGINE.search(["word1"], 1)


PASSING = {
    "dropped": drops,
    "500": says(500, b"oh"),
    "408": says(408),
    "429": says(429),
    "503 until a time that is none": says(503, b"", {"Retry-After": "soon"}),
    "half an answer": says(200, b'{"result": [[{"docu'),
    "fewer bytes than announced": says(200, b"{", {"Content-Length": "100", "Connection": "close"}),
    "garbled compression": says(200, b"xyz", {"Content-Encoding": "gzip"}),
    "not UTF-8": says(200, b"\xff"),
    "too deep": says(200, b"[" * 100_000),
    "another object": says(200, b'{"hits": []}'),
    "too few results": says(200, answers([[item()]])),
    "too many results": says(200, answers([[], [], []])),
    "no document": says(200, answers([[], [{"id": "p", "contents": "x"}]])),
    "a true score": says(200, answers([[], [item(score=True)]])),
    "NaN": says(200, answers([[], [item(score=float("nan"))]])),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(fault) -> None:
    server = Scripted(health, fault, fault, right)
    with server.serve() as url:
        client = client_of(url, tries=3)
        assert client.search(["word1", "word2"], 2) == ENGINE.search(["word1", "word2"], 2)
    assert len(server.requests) == 4


def test_silence_is_tried_again() -> None:
    release, expired = threading.Event(), []

    def silent(method, path, request):
        expired.append(not release.wait(60))
        return drops(method, path, request)

    server = Scripted(health, silent, right)
    with server.serve() as url:
        client = client_of(url, timeout_seconds=2.0)
        assert client.search(["word1"], 2) == ENGINE.search(["word1"], 2)
        assert len(server.requests) == 3 and not expired  # the client gave up, not the server
        release.set()


@pytest.mark.parametrize(
    ("tries", "script", "pauses"),
    [
        (9, drops, [0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]),  # after a second try at once
        (2, says(503, b"", {"Retry-After": "3"}), [3]),
        (2, says(503, b"", {"Retry-After": "9999"}), [60]),
    ],
)
def test_pauses_double_up_to_ten_seconds_unless_told(monkeypatch, tries, script, pauses) -> None:
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    with Scripted(health, script).serve() as url, pytest.raises(RetrieverError):
        client_of(url, tries=tries, backoff_seconds=0.2).search(["a"], 1)
    assert slept == pytest.approx(pauses)


@pytest.mark.parametrize("status", [307, 400, 404, 422])
def test_a_refusal_is_not_repeated_and_a_redirect_not_followed(status: int) -> None:
    server = Scripted(health, says(status, b'{"error": "as told"}', {"Location": DEAD}))
    with server.serve() as url:
        named = rf"status {status}.*as told.*service\.url"
        refused(RetrieverError, named, client_of(url).search, ["word1"], 1)
    assert len(server.requests) == 2


def test_a_dead_service_is_one_line_that_says_what_to_do() -> None:
    # Who catches the standard type gets it, too.
    assert refused(ConnectionError, None, client_of(DEAD, tries=3).search, ["word1"], 1) == (
        f"retriever at {DEAD} gave no valid answer (3 tries, the last: connection refused): "
        'start it with "make retriever PROFILE=… BACKEND=dense" or set retrieval.backend=bm25'
    )


def test_failed_searches_may_be_empty_and_logged(caplog) -> None:
    """The next time the service may be there."""
    server = Scripted(health, says(500), says(500), says(500), right)
    with server.serve() as url:
        client = client_of(url, tries=2, on_failure="empty")
        with caplog.at_level(logging.WARNING, "llds_core"):
            assert client.search(["word1", "word2"], 2) == [[], []]
        assert "2 searches find nothing" in caplog.text and url in caplog.text
        assert client.search(["word1", "word2"], 2) == ENGINE.search(["word1", "word2"], 2)
    dead = client_of(DEAD, tries=1, on_failure="empty")
    assert dead.search(["a", "b", "a"], 1) == [[], [], []]


@pytest.mark.parametrize("on_failure", ["raise", "empty"])
@pytest.mark.parametrize("serving", ["another", UNKNOWN])
def test_another_corpus_in_the_middle_of_a_run_ends_it(on_failure: str, serving: str) -> None:
    headers = {} if serving == UNKNOWN else {IDENTITY_HEADER: serving}

    def other(method, path, request):
        return 200, headers, answers([[]])

    with Scripted(health, right, other).serve() as url:
        client = client_of(url, on_failure=on_failure)
        assert client.search(["word1"], 1) == ENGINE.search(["word1"], 1)
        named = rf"{serving}.*{IDENTITY.index}"
        refused(RetrieverChangedError, named, client.search, ["word2"], 1)


def test_the_wrong_corpus_is_refused_from_the_beginning(url) -> None:
    other, named = client_of(url, corpus="corpus-b"), "corpus-a.*corpus-b.*make retriever"
    refused(RetrieverChangedError, named, other.search, ["word1"], 1)
    assert client_of(url, corpus="corpus-a").identity == IDENTITY.index


def official(method: str, path: str, request: dict):
    """Search-R1's own server: no `/health`, no header, numbers as ids or none at all."""
    if path != "/retrieve":
        return 404, {}, b'{"detail":"Not Found"}'
    assert request["return_scores"] is True
    _, _, body = right(method, path, request)
    result = json.loads(body)["result"]
    for items in result:
        for place, row in enumerate(items):
            row["document"]["id"] = None if place else 7
    return 200, {}, answers(result)


def test_search_r1s_own_server_is_asked_too(caplog) -> None:
    with Scripted(official).serve() as url, caplog.at_level(logging.WARNING, "llds_core"):
        client = client_of(url)
        (found,) = client.search(["text"], 3)
        assert client.identity == UNKNOWN
        assert ask_health(url).state == "unnamed"
    assert found[0].id == "7" and len({h.id for h in found}) == 3
    assert [replace(hit, id="") for hit in found] == [
        replace(hit, id="") for hit in ENGINE.search(["text"], 3)[0]
    ]
    assert "does not say what it searches" in caplog.text
    with Scripted(health, says(200, answers([[item(), item()]]))).serve() as url:
        assert len(client_of(url).search(["a"], 1)[0]) == 1  # whatever was sent


def test_health_is_asked_without_patience(url) -> None:
    assert ask_health(url).identity == IDENTITY and ask_health(DEAD).state == "silent"
    page, up = says(200, b"<html>"), says(200, b'{"status": "UP"}')
    with Scripted(page, says(503, b'{"status": "loading"}'), up).serve() as other:
        assert [ask_health(other).state for _ in range(3)] == ["foreign", "loading", "foreign"]
        assert client_of(other).identity == UNKNOWN
    with Scripted(says(200, b'{"index": "'), health).serve() as other:
        assert client_of(other).identity == IDENTITY.index  # half a page is asked for again


def test_one_normalisation_of_addresses(url, monkeypatch) -> None:
    port = url.rpartition(":")[2]
    assert ask_health(f"{url}/").state == "ready"
    for host in ("127.0.0.1", "127.0.0.2", "0.0.0.0", "localhost", "[::1]"):
        assert local_address(f"http://{host}:{port}/retrieve") == (host.strip("[]"), int(port))
    assert local_address(f"http://{socket.gethostname()}:8000") is not None
    monkeypatch.setattr(socket, "gethostname", lambda: "node7.cluster.example")
    assert local_address("http://node7:8000") == ("node7", 8000)  # as Slurm names a node
    for other in ("http://node8:8000", "http://127:8000", "http://192.0.2.1:80"):
        assert local_address(other) is None
