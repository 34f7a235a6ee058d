"""The search service over real sockets: the contract, what it refuses, how it starts and stops."""

import asyncio
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from services import (
    ENGINE,
    IDENTITY,
    PASSAGES,
    PATIENCE,
    SETTINGS,
    Process,
    Recorder,
    eventually,
    metric,
    post,
    running,
    serving,
)

from llds_core.__main__ import main
from llds_core.errors import ConfigError
from llds_core.retrieval import Hit
from llds_core.retrieval.wire import IDENTITY_HEADER, SearchRequest
from llds_core.serving.app import RetrieverService
from llds_core.serving.batching import Batcher, OverloadedError
from llds_core.serving.server import create_app, serve


@pytest.fixture(scope="module")
def url():
    with running() as address:
        yield address


# The contract


def test_search_r1_client_code_works_unchanged(url) -> None:
    """The line of Search-R1's `generation.py`, and what it reads from the answer."""
    payload = {"queries": ["word3", "word7"], "topk": 2, "return_scores": True}
    result = requests.post(f"{url}/retrieve", json=payload).json()["result"]
    assert result[1][0]["document"]["contents"] == '"title7"\ntext about word7 and all'
    assert result[0][0]["document"]["id"] == "p3"


def test_answers_are_those_of_the_engine_best_first(url) -> None:
    queries = ["word1 word2", "", "xyzzy", "WORD5"]
    rows = post(url, queries=queries, topk=4, return_scores=True).json()["result"]
    expected = [
        [{"document": {"id": h.id, "contents": h.contents}, "score": h.score} for h in hits]
        for hits in ENGINE.search(queries, 4)
    ]
    assert rows == expected


def test_without_scores_the_items_are_the_documents(url) -> None:
    rows = post(url, queries=["word3"], topk=1).json()["result"]
    assert rows == [[{"id": "p3", "contents": PASSAGES[3].contents}]]
    assert rows == post(url, queries=["word3"], topk=1, return_scores=False).json()["result"]


@pytest.mark.parametrize("more", [{}, {"topk": 0}, {"topk": None}])
def test_three_passages_unless_told_otherwise(url, more: dict) -> None:
    assert len(post(url, queries=["text"], **more).json()["result"][0]) == 3


def test_no_queries_give_no_lists_and_other_fields_are_ignored(url) -> None:
    assert post(url, queries=[], topk=3, return_scores=True).json() == {"result": []}
    assert post(url, queries=["word1"], topk=1, user="me", more={"a": [1]}).status_code == 200


def test_health_says_what_is_searched(url) -> None:
    row = requests.get(f"{url}/health").json()
    assert row.pop("uptime_seconds") >= 0
    assert row == {
        "status": "ready",
        "index": IDENTITY.index,
        "corpus": "corpus-a",
        "backend": "bm25",
        "passages": 60,
    }
    assert post(url, queries=["a"]).headers[IDENTITY_HEADER] == IDENTITY.index


def test_metrics_are_in_the_format_of_prometheus() -> None:
    with running() as url:
        post(url, queries=["word1", "word2"])
        post(url, queries=3)
        values = {
            (sample.name, sample.labels.get("status", "")): sample.value
            for family in text_string_to_metric_families(requests.get(f"{url}/metrics").text)
            for sample in family.samples
        }
    assert values["retriever_requests_total", "200"] == 1
    assert values["retriever_requests_total", "400"] == 1
    assert values["retriever_queries_total", ""] == 2
    assert values["retriever_in_flight", ""] == 0
    assert values["retriever_request_seconds_count", ""] == 2
    assert values["retriever_batch_queries_sum", ""] == 2


def test_unknown_paths_and_methods_are_one_line_of_json(url) -> None:
    for response, status in (
        (requests.get(f"{url}/retrieve"), 405),
        (requests.get(f"{url}/docs"), 404),
        (requests.post(f"{url}/health"), 405),
    ):
        assert response.status_code == status
        assert "POST /retrieve" in response.json()["error"]


# Batches


def test_concurrent_requests_share_a_search_and_get_their_own_answers() -> None:
    """Different numbers of passages, with and without scores, in one search for the most."""
    engine = Recorder()
    with (
        running(engine, replace(SETTINGS, batch_window_ms=2000.0)) as url,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(
            pool.map(
                lambda i: post(
                    url, queries=[f"word{i}", "text"], topk=i + 1, return_scores=i % 2 == 1
                ).json()["result"],
                range(8),
            )
        )
    assert len(engine.calls) == 1
    assert len(engine.calls[0][0]) == 16 and engine.calls[0][1] == 8
    for i, (own, common) in enumerate(answers):
        first = own[0]["document"] if i % 2 else own[0]
        assert first["id"] == f"p{i}" and len(common) == i + 1


def test_health_answers_while_a_search_runs() -> None:
    release = threading.Event()
    engine = Recorder(lambda queries: release.wait(PATIENCE))
    with running(engine) as url, ThreadPoolExecutor(1) as pool:
        searching = pool.submit(post, url, queries=["word1"])
        eventually(lambda: engine.calls)
        assert requests.get(f"{url}/health", timeout=PATIENCE).status_code == 200
        assert metric(url, "retriever_in_flight") == 1
        release.set()
        assert searching.result().status_code == 200


def test_nobody_searches_for_a_client_that_gave_up() -> None:
    release = threading.Event()
    engine = Recorder(lambda queries: release.wait(PATIENCE))
    with (
        running(engine, replace(SETTINGS, batch_window_ms=0.0)) as url,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(post, url, queries=["word1"])
        eventually(lambda: engine.calls)
        with pytest.raises(requests.Timeout):
            requests.post(f"{url}/retrieve", json={"queries": ["word2"]}, timeout=0.3)
        eventually(lambda: metric(url, "retriever_in_flight") == 1)
        last = pool.submit(post, url, queries=["word3"])
        eventually(lambda: metric(url, "retriever_in_flight") == 2)
        release.set()
        assert (first.result().status_code, last.result().status_code) == (200, 200)
        eventually(lambda: metric(url, "retriever_waiting_queries") == 0)
    assert [queries for queries, _ in engine.calls] == [["word1"], ["word3"]]


def test_too_many_waiting_queries_are_told_to_come_later() -> None:
    """One of 2 queries is searched, 4 × 2 may wait, and the next is refused."""
    release = threading.Event()
    engine = Recorder(lambda queries: release.wait(PATIENCE))
    settings = replace(SETTINGS, max_queries=2, batch_window_ms=0.0)
    with running(engine, settings) as url, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(post, url, queries=["word1", "word2"])]
        eventually(lambda: engine.calls)
        waiting += [pool.submit(post, url, queries=["word1", "word2"]) for _ in range(4)]
        eventually(lambda: metric(url, "retriever_waiting_queries") == 8)
        refused = post(url, queries=["word3"])
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        release.set()
        assert {future.result().status_code for future in waiting} == {200}
        assert post(url, queries=["word3"]).status_code == 200


def test_a_query_that_breaks_the_engine_breaks_its_own_request_only(caplog) -> None:
    def refuse(queries) -> None:
        if "poison" in queries:
            raise ValueError("as told")

    with (
        running(Recorder(refuse), replace(SETTINGS, batch_window_ms=300.0)) as url,
        ThreadPoolExecutor(4) as pool,
    ):
        queries = ["word1", "poison", "word2", "word3"]
        answers = list(pool.map(lambda query: post(url, queries=[query]), queries))
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
    assert "ValueError" in answers[1].json()["error"]
    assert "as told" in caplog.text


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_an_engine_with_impossible_scores_is_an_error(score: float, caplog) -> None:
    class Broken:
        def search(self, queries, k):
            return [[Hit("p", "t", "x", score)] for _ in queries]

    with running(Broken()) as url:
        assert post(url, queries=["a"], return_scores=True).status_code == 500


def batches(requests_: list[SearchRequest], **limits: int) -> list[list[int]]:
    """Sizes of the batches that requests which come together are searched in."""
    seen: list[list[int]] = []

    def work(batch) -> list[bytes]:
        seen.append([len(request.queries) for request in batch])
        return [b"" for _ in batch]

    async def run() -> None:
        limits_ = {"max_queries": 10, "max_hits": 100, "max_waiting": 100} | limits
        batcher = Batcher(work, window_seconds=0.01, **limits_)
        await asyncio.gather(*(batcher.submit(request) for request in requests_))

    asyncio.run(run())
    return seen


def test_batches_are_bounded_in_queries_and_in_passages() -> None:
    def request(size: int, k: int) -> SearchRequest:
        return SearchRequest(["q"] * size, k, True)

    assert batches([request(4, 1)] * 5) == [[4, 4], [4, 4], [4]]
    assert batches([request(20, 1), request(1, 1)]) == [[20], [1]]
    # Four queries with 30 passages each would be 120, though they asked for 33 together.
    assert batches([request(3, 1), request(1, 30)]) == [[3], [1]]
    with pytest.raises(OverloadedError):
        batches([request(4, 1)] * 5, max_waiting=12)


# Start and stop


def test_loading_and_stopping_are_said() -> None:
    service = RetrieverService(SETTINGS)
    with serving(service) as url:
        for response in (requests.get(f"{url}/health"), post(url, queries=["word1"])):
            assert response.status_code == 503 and response.headers["Retry-After"] == "1"
        assert requests.get(f"{url}/health").json()["status"] == "loading"
        service.open(ENGINE, IDENTITY)
        assert requests.get(f"{url}/health").json()["status"] == "ready"
        service.stopping = True
        assert requests.get(f"{url}/health").json()["status"] == "stopping"
        assert post(url, queries=["word1"]).status_code == 503


def test_the_application_alone_is_ready_at_once() -> None:
    async def ask() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(create_app(ENGINE, SETTINGS, identity=IDENTITY))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            query = {"queries": ["word1"], "topk": 1}
            return await client.get("/health"), await client.post("/retrieve", json=query)

    health, found = asyncio.run(ask())
    assert health.status_code == 200
    assert found.json() == {"result": [[{"id": "p1", "contents": PASSAGES[1].contents}]]}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_was_accepted_and_is_a_success(tmp_path: Path, how: int) -> None:
    with Process(tmp_path, search_seconds=3.0) as process, ThreadPoolExecutor(1) as pool:
        searching = pool.submit(post, process.url, queries=["word3"], topk=1)
        eventually(lambda: metric(process.url, "retriever_in_flight") == 1)
        process.stop(how)
        assert searching.result().json()["result"][0][0]["id"] == "p3"
        assert process.ended() == (0, "")
        with pytest.raises(requests.ConnectionError):
            requests.get(process.url)


def test_a_stop_while_loading_is_a_stop(tmp_path: Path) -> None:
    process = Process(tmp_path, load_seconds=600.0)
    process.start()

    def loading() -> bool:
        try:
            return requests.get(f"{process.url}/health").json()["status"] == "loading"
        except requests.ConnectionError:
            return False

    eventually(loading)
    process.stop()
    assert process.ended() == (0, "")


def test_an_address_that_cannot_be_listened_on_is_one_line_of_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use.*--port"):
            serve(lambda: pytest.fail("loaded"), SETTINGS, port=port)
    with pytest.raises(ConfigError, match="port 70000 does not exist"):
        serve(lambda: pytest.fail("loaded"), SETTINGS, port=70000)
    with pytest.raises(ConfigError, match=r"cannot listen .* of 203\.0\.113\.1"):
        serve(lambda: pytest.fail("loaded"), SETTINGS, host="203.0.113.1", port=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["dsk"], "desk"),
        (["smoke", "--backend", "bm52"], "bm25"),
        (["smoke", "--backend", "bm25", "service.max_querys=3"], "service.max_queries"),
        (["smoke", "retrieval.backend=server"], "--backend bm25"),
        (["smoke", "--port", "x"], "--port"),
        (["smoke", "--port", "65536"], "from 0 to 65535"),
    ],
)
def test_mistakes_of_the_command_are_one_line(capsys, arguments: list[str], named: str) -> None:
    assert main(["retriever", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and named in line


def test_the_command_says_that_a_port_is_in_use(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["retriever", "smoke", "--port", port]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"port {port}" in line


def test_what_goes_wrong_while_loading_ends_the_service_with_it() -> None:
    def load():
        raise ConfigError("no such encoder: name another")

    with pytest.raises(ConfigError, match="no such encoder"):
        serve(load, SETTINGS, port=0)
