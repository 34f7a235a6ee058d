import os
import subprocess
import sys

import pytest

from llds_core.retrieval.bm25 import BM25Retriever
from llds_core.worlds.atlas import build_atlas
from llds_core.worlds.records import Passage

PASSAGES = (
    Passage("1", "São Paulo", "A city in Brazil."),
    Passage("2", "Brazil", "A country. Its capital is Brasilia."),
    Passage("3", "N'Djamena", "The capital of Chad, with 1,230,000 people."),
    Passage("4", "Twin", "equal words"),
    Passage("5", "Twin", "equal words"),
    Passage("6", "Blank", ""),
)


RETRIEVER = BM25Retriever(PASSAGES)


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("sao PAULO?", "1"),
        ("where is Brazil", "2"),
        ("N’Djamena", "3"),
        ("1230000 people", "3"),
        ("blank", "6"),
    ],
)
def test_case_accents_and_punctuation_do_not_matter(query: str, best: str):
    assert RETRIEVER.search([query], 1)[0][0].id == best


def test_equal_scores_rank_in_corpus_order():
    assert [hit.id for hit in RETRIEVER.search(["twin"], 2)[0]] == ["4", "5"]
    same = [Passage(str(i), "same", "words") for i in range(500)]
    hits = BM25Retriever(same).search(["words"], 7)[0]
    assert [hit.id for hit in hits] == [str(i) for i in range(7)]


def test_a_query_without_a_known_word_finds_nothing():
    # "answer" is not a word of this corpus either.
    assert RETRIEVER.search(["", "   ", "?!", "xyzzy", "<answer></answer> 北京"], 3) == [[]] * 5


def test_identity_tells_corpora_and_settings_apart():
    assert len(RETRIEVER.identity) == 16
    assert RETRIEVER.identity == BM25Retriever(list(PASSAGES)).identity
    changed = [*PASSAGES[:-1], Passage("6", "Blank", "x")]
    others = [BM25Retriever(corpus) for corpus in (PASSAGES[:-1], PASSAGES[::-1], changed)]
    others += [RETRIEVER, BM25Retriever(PASSAGES, title_weight=3)]
    assert len({engine.identity for engine in others}) == 5


def test_another_process_finds_the_same():
    code = (
        "from llds_core.retrieval.bm25 import BM25Retriever\n"
        "from llds_core.worlds.records import Passage\n"
        "texts = [f'word{i % 11} and word{i % 13}' for i in range(60)]\n"
        "p = [Passage(str(i), f'name{i % 7}', text) for i, text in enumerate(texts)]\n"
        "r = BM25Retriever(p)\n"
        "print(r.identity, r.search(['name3 word5 word7 and', 'word1 name2'], 9))"
    )
    words = [sys.executable, "-c", code]
    zero, one = (
        subprocess.check_output(words, env=os.environ | {"PYTHONHASHSEED": seed}) for seed in "01"
    )
    assert zero == one


def test_searches_of_the_desk_world_find_their_passage():
    world = build_atlas(cities=1200)
    retriever = BM25Retriever(world.passages)
    questions = [*world.train, *world.dev, *world.test]
    for hop in (0, 1):
        steps = [q.metadata["steps"][hop] for q in questions if q.metadata["hops"] > hop]
        pairs = zip(steps, retriever.search([step["query"] for step in steps], 2), strict=True)
        hits = [step["passage_id"] in {hit.id for hit in found} for step, found in pairs]
        assert sum(hits) > 0.99 * len(hits)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("北京是中华人民共和国的首都", "中华人民共和国的首都"),
        ("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "เมืองหลวง"),
        ("東京は日本の首都です", "日本の首都"),
        ("नई दिल्ली भारत की राजधानी है", "राजधानी"),
        ("서울은 대한민국의 수도이다", "수도이다"),
        ("Việt Nam", "viet nam"),
    ],
)
def test_scripts_without_spaces_and_with_marks_are_found(text: str, query: str) -> None:
    corpus = [Passage(other, "", other) for other in ("上海是一个城市", "दिल", "か", "other")]
    engine = BM25Retriever([*corpus, Passage("p", "", text)])
    assert [hit.id for hit in engine.search([query], 1)[0]] == ["p"]
