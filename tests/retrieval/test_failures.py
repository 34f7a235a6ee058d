import pytest

from llds_core.retrieval import BM25Retriever, FailingRetriever, Hit, SearchKey
from llds_core.retrieval.base import format_hits
from llds_core.worlds.records import Passage

# Every title twice, so that "another title" is more than "another passage".
PASSAGES = tuple(Passage(str(i), f"title{i // 2}", f"text about word{i // 2}") for i in range(80))
ENGINE = BM25Retriever(PASSAGES)


def _failing(rate: float, seed: int = 0) -> FailingRetriever:
    return FailingRetriever(ENGINE, failure_rate=rate, passages=PASSAGES, seed=seed)


def _searches(count: int) -> tuple[list[str], list[SearchKey]]:
    keys = [SearchKey(i % 5, f"q{i % 7}", i, i % 3) for i in range(count)]
    return [f"word{i % 40}" for i in range(count)], keys


def test_failed_searches_show_as_many_passages_of_other_titles():
    queries, keys = _searches(200)
    true_hits = ENGINE.search(queries, 3)
    hits, failed = _failing(1.0).search_keyed(queries, 3, keys)
    assert failed == [True] * 200
    for shown, true in zip(hits, true_hits, strict=True):
        titles = {hit.title for hit in shown}
        assert len(titles) == len(shown) == len(true)
        assert not titles & {hit.title for hit in true}
        assert {Passage(hit.id, hit.title, hit.text) for hit in shown} <= {*PASSAGES}


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_the_measured_share_is_the_rate(rate: float):
    queries, keys = _searches(3000)
    _, failed = _failing(rate).search_keyed(queries, 1, keys)
    assert sum(failed) / 3000 == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 3000) ** 0.5)


def test_outcomes_depend_on_the_key_and_not_on_the_order():
    queries, keys = _searches(100)
    retriever = _failing(0.4)
    hits, failed = retriever.search_keyed(queries, 2, keys)
    for shown, true, fails in zip(hits, ENGINE.search(queries, 2), failed, strict=True):
        assert (shown == true) is not fails
    for i in reversed(range(100)):  # in another order, one by one
        alone = retriever.search_keyed([queries[i]], 2, [keys[i]])
        assert alone == ([hits[i]], [failed[i]])
    for place in range(4):  # every part of a key counts
        parts = [[0, "q", 0, 0] for _ in keys]
        for i, part in enumerate(parts):
            part[place] = str(i) if place == 1 else i
        fails = retriever.search_keyed(queries, 2, [SearchKey(*part) for part in parts])[1]
        assert 0 < sum(fails) < 100
    assert _failing(0.4, seed=1).search_keyed(queries, 2, keys)[1] != failed
    # Paired runs meet the same failures even when their policies word queries differently.
    assert retriever.search_keyed(["text title1 word2"] * 100, 2, keys)[1] == failed


def test_a_search_without_hits_cannot_fail_and_without_other_titles_shows_fewer():
    _, keys = _searches(1)
    assert _failing(1.0).search_keyed(["xyzzy"], 2, keys) == ([[]], [False])
    two = [Passage("1", "a", "word one"), Passage("2", "a", "word two")]
    retriever = FailingRetriever(BM25Retriever(two), failure_rate=1.0, passages=two, seed=0)
    assert retriever.search_keyed(["word"], 2, keys) == ([[]], [True])


def test_hits_are_shown_in_the_document_format_of_search_r1():
    hits = [Hit("1", "Homs", "A city in Syria.", 2.0), Hit("2", '"The X"', "Two\nlines.", 1.0)]
    expected = 'Doc 1(Title: Homs) A city in Syria.\nDoc 2(Title: "The X") Two\nlines.\n'
    assert format_hits(hits) == expected
    assert [hit.contents for hit in hits] == ['"Homs"\nA city in Syria.', '"The X"\nTwo\nlines.']
