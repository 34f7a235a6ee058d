"""Scripted rounds of searching with any tokenizer."""

from toy_groups import TOKENIZER

from llds_core.diagnostics.rounds import scripted_rounds
from llds_core.retrieval.bm25 import BM25Retriever
from llds_core.worlds.atlas import build_atlas

WORLD = build_atlas(cities=60)
ENGINE = BM25Retriever(WORLD.passages, title_weight=2)


def question(hops):
    return next(q for q in WORLD.train if q.metadata["hops"] == hops)


def test_every_script_searches_as_often_as_told_and_answers():
    asked = [question(1), question(2)]
    made = scripted_rounds(TOKENIZER, ENGINE, asked, rounds=(2, 1, 4, 3), top_k=2)
    assert [t.searches for t in made] == [2, 2, 1, 1, 4, 4, 3, 3]
    assert [t.question for t in made] == asked * 4
    for t in made:
        assert t.stop_reason == "answer" and t.answer == t.question.golden_answers[0]
        assert all(action.hits for action in t.actions[:-1])
        written = [t.completion_ids[a.start : a.end] for a in t.actions]
        assert [TOKENIZER.decode(ids) for ids in written] == [a.text for a in t.actions]


def test_scripts_look_up_the_hops_in_order_and_then_confirm():
    (made,) = scripted_rounds(TOKENIZER, ENGINE, [question(2)], rounds=(3,), top_k=1)
    hops = made.question.metadata["steps"]
    queries = [action.content for action in made.actions]
    assert queries[:2] == [hop["query"] for hop in hops]
    assert queries[2] not in queries[:2] and hops[1]["query"] in queries[2]
    assert made.actions[0].hits[0].id == hops[0]["passage_id"]
