"""The client of the search service: right answers or a named error, whatever the server does."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from client_scripts import (
    DEAD,
    client_of,
    health,
    right,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from services import (
    ENGINE,
    PASSAGES,
    SETTINGS,
    Scripted,
    running,
)

from llds_core.errors import ConfigError
from llds_core.retrieval import FailingRetriever, Hit, SearchKey
from llds_core.retrieval.wire import parse_answer, render_answer


@pytest.fixture(scope="module")
def url():
    with running() as address:
        yield address


# What it finds


def test_it_finds_what_the_engine_finds(url) -> None:
    queries = ["word1 word2", "", "xyzzy", "text", "word5", "word1 word2", "é 北京 \x00\ud800"]
    assert client_of(url).search(queries, 4) == ENGINE.search(queries, 4)
    assert client_of(url).search([], 4) == []
    assert client_of(url).identity == ENGINE.identity


@pytest.mark.parametrize("k", [0, -1, 2.0, True])
def test_a_bad_k_is_refused_before_anything_is_sent(k) -> None:
    client = client_of(DEAD)
    with pytest.raises(ConfigError, match=r"retrieval\.top_k"):
        client.search(["a"], k)
    assert client.requests == 0


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n"), max_size=20),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_hit_survives_the_journey(title: str, text: str, score: float) -> None:
    hit = Hit("id", title, text, score)
    assert parse_answer(render_answer([[hit]], return_scores=True), 1, 1, need_ids=True) == [[hit]]


def test_failures_on_purpose_wrap_it_as_any_engine(url) -> None:
    """Same hits and same failures as around the engine itself."""
    queries = [f"word{i}" for i in range(60)]
    keys = [SearchKey(0, 1, str(i), 0, 0) for i in range(60)]
    found = [
        FailingRetriever(engine, failure_rate=0.4, passages=PASSAGES, seed=3).search_keyed(
            queries, 2, keys
        )
        for engine in (client_of(url), ENGINE)
    ]
    assert found[0] == found[1]
    assert 0 < sum(found[0][1]) < 60


# Requests


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({"max_queries": 4}, [4, 4, 2]),
        ({"max_hits": 9}, [3, 3, 3, 1]),
        ({"max_hits": 1}, [1] * 10),
        # 256 bytes are for the rest of the request, and a query of one letter takes 5.
        ({"max_body_mib": (256 + 26) / 2**20}, [5, 5]),
    ],
)
def test_large_batches_are_split_into_requests_the_service_takes(
    limits: dict, sizes: list[int]
) -> None:
    queries = list("abcdefghij")
    server = Scripted(health, right)
    with server.serve() as url:
        client = client_of(url, **limits)
        assert client.search(queries, 3) == ENGINE.search(queries, 3)
    sent = [request["queries"] for _, path, request in server.requests if path == "/retrieve"]
    assert [len(part) for part in sent] == sizes
    assert [query for part in sent for query in part] == queries


def test_a_service_with_lower_limits_than_ours_gets_smaller_requests() -> None:
    with running(settings=replace(SETTINGS, max_queries=3)) as url:
        queries = [f"word{i}" for i in range(20)]
        assert client_of(url).search(queries, 2) == ENGINE.search(queries, 2)


def test_connections_are_used_again(url) -> None:
    server = Scripted(health, right)
    with server.serve() as url:
        client = client_of(url, cache_size=0)
        for i in range(20):
            client.search([f"word{i}"], 1)
    assert len(server.requests) == 21 and server.connections == 1


def test_a_repeated_query_is_asked_once_and_answered_everywhere(url) -> None:
    server = Scripted(health, right)
    with server.serve() as url:
        client = client_of(url, cache_size=3)
        first = client.search(["word1", "word2", "word1"], 2)
        assert first[0] == first[2] and first == ENGINE.search(["word1", "word2", "word1"], 2)
        first[0].clear()  # a caller's own list
        assert client.search(["word1"], 2) == ENGINE.search(["word1"], 2)
        assert client.requests == 2
        client.search(["word1"], 3)  # more passages are another search
        client.search(["word3"], 2)  # the fourth answer; word2 was used longest ago
        assert client.requests == 4
        client.search(["word1"], 2)
        assert client.requests == 4
        client.search(["word2"], 2)
        assert client.requests == 5
    assert server.requests[1][2]["queries"] == ["word1", "word2"]


def test_threads_may_share_a_client(url) -> None:
    client = client_of(url, cache_size=10)
    queries = [f"word{i % 60}" for i in range(400)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: client.search([query], 2)[0], queries))
    assert found == ENGINE.search(queries, 2)


@pytest.mark.parametrize("tail", ["", "/", "/retrieve", "/retrieve/"])
def test_addresses_may_end_as_those_of_search_r1(url, tail: str) -> None:
    assert client_of(url + tail).search(["word1"], 1) == ENGINE.search(["word1"], 1)


@pytest.mark.parametrize("bad", ["", "localhost:8000", "ftp://a", "http://", "http://a:99999"])
def test_an_address_that_is_none_is_refused_at_once(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"service\.url"):
        client_of(bad)


def test_environment_variables_do_not_lead_elsewhere(url, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    monkeypatch.setenv("ALL_PROXY", DEAD)
    monkeypatch.setenv("NO_PROXY", "")
    assert client_of(url).search(["word1"], 1) == ENGINE.search(["word1"], 1)
