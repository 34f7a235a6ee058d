"""Which questions are asked; scores by hand: answers, samples, sets and averages."""

import numpy as np
import pytest
from evaluation_worlds import environment
from scipy.stats import bootstrap

from llds_core.evaluation import scores as module
from llds_core.evaluation.scores import averages, choose, choose_questions, summarise
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
    members = module.AVERAGE_MEMBERS["atlas"]
    one, two = ({(kind, i) for kind in members[f"{n}_hop"]} for i, n in ((1, "one"), (2, "two")))
    assert one | two == hops and set(members["all"]) == set(KINDS)


def test_questions_of_chosen_benchmarks_only_and_all_of_them():
    names = ("city-country", "city-capital")
    chosen = choose(WORLD, "test", names, None, 0)
    expected = [q for q in WORLD.test if q.metadata["kind"] in names]
    assert sorted(q.id for q in chosen) == sorted(q.id for q in expected)
    assert len(choose(WORLD, "test", (), None, 0)) == len(WORLD.test)


def test_a_limit_is_spread_evenly_and_a_larger_one_begins_with_the_smaller():
    seven, fourteen = (choose_questions(WORLD.train, limit, 0) for limit in (7, 14))
    assert sorted(kinds(seven)) == sorted(KINDS)
    assert sorted(kinds(fourteen)) == sorted(KINDS * 2)
    assert fourteen[:7] == seven and fourteen == choose_questions(WORLD.train, 14, 0)
    assert len(choose_questions(WORLD.train, None, 0)) == len(WORLD.train)


@pytest.mark.parametrize(
    ("prediction", "golden", "em", "f1", "sub_em"),
    [
        ("The Beatles.", ["beatles"], 1, 1, 1),
        ("the Beatles of Liverpool", ["Beatles"], 0, 0.5, 1),  # 1 of 3 and 1 of 1 tokens
        ("Liverpool", ["The Beatles"], 0, 0, 0),
        ("New York", ["New York City", "NYC"], 0, 0.8, 0),  # 2 of 2 and 2 of 3
        ("york york", ["new york"], 0, 0.5, 0),  # a repeated token counts once
        ("1,000 people", ["1000"], 0, 2 / 3, 1),
        ("", ["Paris"], 0, 0, 0),
        (None, ["Paris"], 0, 0, 0),
    ],
)
def test_one_answer(prediction, golden, em, f1, sub_em):
    expected = {"em": em, "f1": f1, "sub_em": sub_em}
    assert module.score_answer(prediction, golden) == pytest.approx(expected)


def row(kind, number, em, mode="greedy", sample=0, status="answer"):
    asked = {"benchmark": kind, "id": f"{kind}-{number}", "mode": mode, "sample": sample}
    scores = {"em": em, "f1": em / 2, "sub_em": em}
    return asked | scores | {"status": status, "searches": 2, "seconds": 0.25}


def test_a_set_counts_questions_and_an_average_counts_sets():
    rows = [row(kind, 0, 1.0) for kind in KINDS]
    rows += [row("city-country", number, 0.0) for number in range(1, 4)]
    found = summarise(rows, "atlas")["greedy"]
    of_set, means = found["benchmarks"]["city-country"], found["averages"]
    assert (of_set["n"], of_set["em"], of_set["seconds"]) == (4, 0.25, 1.0)
    em = [means[name]["em"] for name in ("one_hop", "two_hop", "all")]
    assert em == pytest.approx([(0.25 + 3) / 4, 1.0, (0.25 + 6) / 7])
    assert means["all"]["searches"] == 2
    for scores in (of_set, means["all"]):
        assert scores["em_low"] <= scores["em"] <= scores["em_high"]
        assert scores["f1"] == pytest.approx(scores["em"] / 2)
    rows = [each for each in rows if each["benchmark"] != "city-capital"]
    means = summarise(rows, "atlas")["greedy"]["averages"]
    assert means["one_hop"]["em"] == em[0] and means["two_hop"] is None and means["all"] is None


def test_samples_of_a_question_are_averaged_first_and_untagged_answers_counted_apart():
    rows = [
        row("city-country", number, em, "sampled", sample, status)
        for number, outcomes in enumerate([(1.0, 0.0), (1.0, 1.0)])
        for sample, em, status in zip((1, 2), outcomes, ("answer", "fallback"), strict=True)
    ]
    found = summarise(rows, "atlas")["sampled"]["benchmarks"]["city-country"]
    assert (found["n"], found["em"], found["em_low"], found["em_high"]) == (2, 0.75, 0.5, 1.0)
    assert (found["em_tagged"], found["valid_answers"]) == (0.5, 0.5)


def test_intervals_are_those_of_the_bootstrap_of_the_mean():
    values = np.column_stack([np.arange(100) < 30, np.arange(100) % 2, np.ones(100)]).astype(float)
    made = module.resampled_means(values, np.random.default_rng(0))
    assert made.shape == (2000, 3)
    assert made.mean(0) == pytest.approx([0.3, 0.5, 1.0], abs=0.005)
    assert made.std(0) == pytest.approx([np.sqrt(0.21 / 100), np.sqrt(0.25 / 100), 0.0], rel=0.06)
    options = {"method": "percentile", "n_resamples": 2000, "rng": np.random.default_rng(0)}
    (low, high) = bootstrap((values,), np.mean, **options).confidence_interval
    found = module.entry(np.zeros(len(module.METRICS)), made)
    for column, name in enumerate(module.METRICS[:2]):
        ends = [found[f"{name}_low"], found[f"{name}_high"]]
        assert ends == pytest.approx([low[column], high[column]], abs=1e-12)
    assert found["sub_em_low"] == found["sub_em_high"] == 1
