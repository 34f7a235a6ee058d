"""What the client makes of faults, refusals and other servers: another try, or a named error."""

import logging
import socketserver
import threading

import pytest
from client_scripts import (
    DEAD,
    answers,
    client_of,
    drops,
    health,
    item,
    right,
    says,
)
from services import (
    ENGINE,
    IDENTITY,
    Recorder,
    Scripted,
    running,
    settings_for,
)

from llds_core.errors import LLDSError, RetrieverChangedError, RetrieverError
from llds_core.retrieval.client import UNKNOWN, RetrieverClient
from llds_core.retrieval.wire import IDENTITY_HEADER


@pytest.fixture(scope="module")
def url():
    with running() as address:
        yield address


# What is tried again


PASSING = {
    "dropped": drops,
    "500": says(500, b"oh"),
    "502": says(502),
    "503": says(503, b'{"error": "loading"}'),
    "429": says(429),
    "half an answer": says(200, b'{"result": [[{"docu'),
    "fewer bytes than announced": says(200, b"{", {"Content-Length": "100", "Connection": "close"}),
    "no JSON": says(200, b"<html>"),
    "not UTF-8": says(200, b"\xff"),
    "too deep": says(200, b"[" * 100_000),
    "another object": says(200, b'{"hits": []}'),
    "no list": says(200, answers({})),
    "too few results": says(200, answers([[item()]])),
    "too many results": says(200, answers([[], [], []])),
    "too many passages": says(200, answers([[item()] * 3, []])),
    "results that are none": says(200, answers([[], "x"])),
    "an item that is none": says(200, answers([[], ["x"]])),
    "no document": says(200, answers([[], [{"score": 1.0}]])),
    "documents without scores": says(200, answers([[], [{"id": "p", "contents": "x"}]])),
    "no id": says(200, answers([[], [item(document={"id": None})]])),
    "an id that is none": says(200, answers([[], [item(document={"id": ["p"]})]])),
    "contents that are none": says(200, answers([[], [item(document={"contents": 3})]])),
    "a score that is none": says(200, answers([[], [item(score="1.0")]])),
    "a true score": says(200, answers([[], [item(score=True)]])),
    "NaN": says(200, answers([[], [item(score=float("nan"))]])),
    "infinity": says(200, answers([[], [item(score=float("inf"))]])),
    "garbled compression": says(200, b"xyz", {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(fault) -> None:
    server = Scripted(health, fault, fault, right)
    with server.serve() as url:
        client = client_of(url, tries=3)
        assert client.search(["word1", "word2"], 2) == ENGINE.search(["word1", "word2"], 2)
        assert (client.requests, client.retries, client.failed) == (4, 2, 0)


def test_silence_is_tried_again() -> None:
    release = threading.Event()

    def silent(method, path, request):
        release.wait(60)
        return drops(method, path, request)

    server = Scripted(health, silent, right)
    with server.serve() as url:
        client = client_of(url, timeout_seconds=2.0)
        assert client.search(["word1"], 2) == ENGINE.search(["word1"], 2)
        assert client.retries == 1
        release.set()


def test_an_answer_that_never_ends_is_given_up() -> None:
    """However often a byte comes."""
    release = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not release.wait(0.05):
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        client = client_of(
            f"http://127.0.0.1:{server.server_address[1]}", timeout_seconds=0.3, tries=2
        )
        with pytest.raises(RetrieverError, match=r"no answer within 0\.3 s"):
            client.search(["a"], 1)
        release.set()
        server.shutdown()
        thread.join()


def test_pauses_double_with_a_jitter_of_their_own() -> None:
    def pauses(seed: int) -> list[float]:
        sleeps: list[float] = []
        client = RetrieverClient(
            settings_for(DEAD, tries=9, backoff_seconds=0.2), seed=seed, sleep=sleeps.append
        )
        with pytest.raises(RetrieverError):
            client.search(["a"], 1)
        return sleeps

    first = pauses(0)
    assert len(first) == 8
    for number, pause in enumerate(first):
        longest = min(0.2 * 2**number, 10)
        assert longest / 2 <= pause <= longest
    assert pauses(0) == first != pauses(1)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("3", 3, 3), ("0.5", 0.5, 0.5), ("9999", 60, 60), ("-1", 0, 1), ("soon", 0, 1), ("nan", 0, 1)],
)
def test_the_service_may_ask_for_a_longer_pause(header: str, least: float, most: float) -> None:
    sleeps: list[float] = []
    with Scripted(health, says(503, b"", {"Retry-After": header}), right).serve() as url:
        client_of(url, sleeps).search(["word1"], 1)
    assert len(sleeps) == 1 and least <= sleeps[0] <= most


# What ends


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 422])
def test_a_refusal_is_not_repeated(status: int) -> None:
    server = Scripted(health, says(status, b'{"error": "as told"}'))
    with server.serve() as url:
        client = client_of(url)
        with pytest.raises(RetrieverError, match=rf"status {status}.*as told.*service\.url"):
            client.search(["word1"], 1)
    assert len(server.requests) == 2 and client.retries == 0


def test_a_dead_service_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(RetrieverError) as caught:
        client_of(DEAD, tries=3).search(["word1"], 1)
    assert isinstance(caught.value, LLDSError) and isinstance(caught.value, ConnectionError)
    assert str(caught.value) == (
        f"retriever at {DEAD} gave no valid answer (3 tries, the last: connection refused): "
        'start it with "make retriever PROFILE=…" or set retrieval.backend=bm25'
    )


def test_failed_searches_may_be_empty_counted_and_logged(caplog) -> None:
    """And are not remembered: the next time the service may be there."""
    server = Scripted(health, says(500), says(500), right)
    with server.serve() as url:
        client = client_of(url, tries=2, on_failure="empty")
        with caplog.at_level(logging.WARNING, "llds_core"):
            assert client.search(["word1", "word2"], 2) == [[], []]
        assert client.failed == 2
        assert "2 searches find nothing" in caplog.text and url in caplog.text
        assert client.search(["word1", "word2"], 2) == ENGINE.search(["word1", "word2"], 2)
        assert client.failed == 2
    dead = client_of(DEAD, tries=1, on_failure="empty")
    assert dead.search(["a", "b", "a"], 1) == [[], [], []] and dead.failed == 2


def test_one_refused_query_costs_no_other_its_answer() -> None:
    queries = [*(f"word{i}" for i in range(10)), "x" * 70_000, *(f"word{i}" for i in range(10, 20))]
    with running() as url:
        client = client_of(url, on_failure="empty")
        found = client.search(queries, 2)
        expected = ENGINE.search(queries, 2)
        expected[10] = []
        assert found == expected
        assert client.failed == 1
        with pytest.raises(RetrieverError, match="70000 characters"):
            client_of(url).search(queries, 2)


def test_redirects_are_not_followed() -> None:
    elsewhere = Scripted(health, says(307, b"", {"Location": DEAD}))
    with elsewhere.serve() as url, pytest.raises(RetrieverError, match="status 307"):
        client_of(url).search(["word1"], 1)


# Whom it asks


@pytest.mark.parametrize("on_failure", ["raise", "empty"])
def test_another_corpus_in_the_middle_of_a_run_ends_it(on_failure: str) -> None:
    other = says(200, answers([[]]), {IDENTITY_HEADER: "another"})
    with Scripted(health, right, other).serve() as url:
        client = client_of(url, on_failure=on_failure)
        assert client.search(["word1"], 1) == ENGINE.search(["word1"], 1)
        with pytest.raises(RetrieverChangedError, match=rf"another.*{IDENTITY.index}"):
            client.search(["word2"], 1)


def test_the_wrong_corpus_is_refused_from_the_beginning(url) -> None:
    with pytest.raises(RetrieverChangedError, match=r"corpus-a.*corpus-b.*make retriever"):
        RetrieverClient(settings_for(url), corpus="corpus-b").search(["word1"], 1)
    assert RetrieverClient(settings_for(url), corpus="corpus-a").identity == IDENTITY.index


def official(method: str, path: str, request: dict):
    """Search-R1's own server: no `/health`, no header, numbers as ids or none at all."""
    if path != "/retrieve":
        return 404, {}, b'{"detail":"Not Found"}'
    hits = ENGINE.search(request["queries"], request["topk"])
    assert request["return_scores"] is True
    rows = [
        [
            {"document": {"title": h.title, "contents": h.contents}, "score": h.score}
            if place
            else {"document": {"id": 7, "contents": h.contents}, "score": h.score}
            for place, h in enumerate(found)
        ]
        for found in hits
    ]
    return 200, {}, answers(rows)


def test_search_r1s_own_server_is_asked_too(caplog) -> None:
    with Scripted(official).serve() as url, caplog.at_level(logging.WARNING, "llds_core"):
        client = client_of(url)
        (found,) = client.search(["text"], 3)
        assert client.identity == UNKNOWN
    expected = ENGINE.search(["text"], 3)[0]
    assert [(h.title, h.text, h.score) for h in found] == [
        (h.title, h.text, h.score) for h in expected
    ]
    assert found[0].id == "7" and len({h.id for h in found}) == 3
    assert "does not say what it searches" in caplog.text


def test_a_health_page_of_something_else_is_an_unknown_service(caplog) -> None:
    with Scripted(says(200, b'{"status": "UP"}')).serve() as url:
        assert client_of(url).identity == UNKNOWN


def test_recorded_queries_arrive_in_order(url) -> None:
    engine = Recorder()
    with running(engine) as address:
        client_of(address).search(["b", "a", "c", "a"], 5)
    assert engine.calls == [(["b", "a", "c"], 5)]
