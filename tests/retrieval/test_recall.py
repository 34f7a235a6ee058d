"""BM25 finds what the scripted searches of the atlas look for."""

import pytest

from llds_core.retrieval.bm25 import BM25Retriever
from llds_core.worlds.atlas import World, build_atlas

SEARCHES = ("{query}", "where is {query}", "facts about {query}")


def _recall(world: World, hop: int, search: str, k: int = 2) -> float:
    """Share of questions whose hop `hop` finds its passage among the first `k` hits."""
    questions = [*world.train, *world.dev, *world.test]
    steps = [q.metadata["steps"][hop] for q in questions if q.metadata["hops"] > hop]
    wanted = sorted({(step["query"], step["passage_id"]) for step in steps})
    results = BM25Retriever(world.passages).search([search.format(query=q) for q, _ in wanted], k)
    found = {
        key: key[1] in [hit.id for hit in hits] for key, hits in zip(wanted, results, strict=True)
    }
    return sum(found[step["query"], step["passage_id"]] for step in steps) / len(steps)


@pytest.fixture(scope="module")
def desk_world() -> World:
    return build_atlas(cities=1200)


@pytest.fixture(scope="module")
def full_world() -> World:
    return build_atlas(cities=None)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("hop", [0, 1])
def test_desk_searches_find_their_passage(desk_world: World, hop: int, search: str):
    assert _recall(desk_world, hop, search) > 0.99


@pytest.mark.parametrize("topic", ["country", "capital", "currency"])
def test_desk_searches_with_a_topic_find_their_passage(desk_world: World, topic: str):
    assert _recall(desk_world, 0, f"{{query}} {topic}") > 0.98
    assert _recall(desk_world, 0, f"{topic} of {{query}}") > 0.98


@pytest.mark.parametrize("hop", [0, 1])
def test_full_world_searches_find_their_passage(full_world: World, hop: int):
    assert _recall(full_world, hop, "{query}") > 0.99
