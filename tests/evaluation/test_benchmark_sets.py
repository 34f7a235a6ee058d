"""Which questions are asked, and which averages are taken of them."""

import pytest
from evaluation_worlds import environment

from llds_core.evaluation import averages
from llds_core.evaluation.scores import AVERAGE_MEMBERS, choose, choose_questions
from llds_core.worlds import QUESTION_SETS
from llds_core.worlds.atlas import KINDS

WORLD = environment().world


def kinds(questions):
    return [question.metadata["kind"] for question in questions]


def test_averages_are_unweighted_means_of_sets_as_the_paper_prints_them():
    """GRPO+LLDS on Qwen2.5-3B-Instruct, LLDS Table 1: 0.519, 0.383, 0.441."""
    values = (0.462, 0.627, 0.468, 0.443, 0.447, 0.197, 0.444)
    scores = dict(zip(QUESTION_SETS, values, strict=True))
    found = averages("files", scores)
    assert found == pytest.approx({"general": 0.519, "multi_hop": 0.38275, "all": 0.4411}, abs=1e-4)
    found = averages("files", scores | {"2wiki": None})
    assert found == {"general": pytest.approx(0.519), "multi_hop": None, "all": None}


def test_averages_of_the_atlas_are_over_kinds_by_their_hops():
    hops = {(q.metadata["kind"], q.metadata["hops"]) for q in WORLD.train}
    members = AVERAGE_MEMBERS["atlas"]
    one, two = ({(kind, i) for kind in members[f"{n}_hop"]} for i, n in ((1, "one"), (2, "two")))
    assert one | two == hops and set(members["all"]) == set(KINDS)


def test_questions_of_chosen_benchmarks_only_and_all_of_them():
    chosen = choose(WORLD, "test", ("city-country", "city-capital"), None, 0)
    expected = [q for q in WORLD.test if q.metadata["kind"] in ("city-country", "city-capital")]
    assert sorted(q.id for q in chosen) == sorted(q.id for q in expected)
    assert len(choose(WORLD, "test", (), None, 0)) == len(WORLD.test)


def test_a_limit_is_spread_evenly_and_a_larger_one_begins_with_the_smaller():
    seven, fourteen = (choose_questions(WORLD.train, limit, 0) for limit in (7, 14))
    assert sorted(kinds(seven)) == sorted(KINDS)
    assert sorted(kinds(fourteen)) == sorted(KINDS * 2)
    assert fourteen[:7] == seven and fourteen == choose_questions(WORLD.train, 14, 0)
    assert len(choose_questions(WORLD.train, None, 0)) == len(WORLD.train)
