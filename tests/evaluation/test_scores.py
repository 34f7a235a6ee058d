"""Scores by hand: single answers, means over samples and sets, and that nothing is left out."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from llds_core.evaluation.scores import interval, resampled_means, score_answer, summarise
from llds_core.worlds.atlas_questions import KINDS


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
    assert score_answer(prediction, golden) == pytest.approx(expected)


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
    for entry in (of_set, means["all"]):
        assert entry["em_low"] <= entry["em"] <= entry["em_high"]
        assert entry["f1"] == pytest.approx(entry["em"] / 2)
    rows = [each for each in rows if each["benchmark"] != "city-capital"]
    means = summarise(rows, "atlas")["greedy"]["averages"]
    assert means["one_hop"]["em"] == em[0] and means["two_hop"] is None and means["all"] is None


def test_samples_of_a_question_are_averaged_first():
    rows = [
        row("city-country", number, em, "sampled", sample)
        for number, outcomes in enumerate([(1.0, 0.0), (1.0, 1.0)])
        for sample, em in enumerate(outcomes, start=1)
    ]
    entry = summarise(rows, "atlas")["sampled"]["benchmarks"]["city-country"]
    assert (entry["n"], entry["em"]) == (2, 0.75)
    assert (entry["em_low"], entry["em_high"]) == (0.5, 1.0)


def test_untagged_answers_are_counted_apart():
    rows = [row("city-country", 0, 1.0), row("city-country", 1, 1.0, status="fallback")]
    entry = summarise(rows, "atlas")["greedy"]["benchmarks"]["city-country"]
    assert (entry["em"], entry["em_tagged"], entry["valid_answers"]) == (1.0, 0.5, 0.5)


def test_intervals_are_those_of_the_bootstrap_of_the_mean():
    values = np.column_stack([np.arange(100) < 30, np.arange(100) % 2]).astype(float)
    made = resampled_means(values, np.random.default_rng(0))
    assert made.shape == (2000, 2)
    assert made.mean(0) == pytest.approx([0.3, 0.5], abs=0.005)
    assert made.std(0) == pytest.approx([np.sqrt(0.21 / 100), np.sqrt(0.25 / 100)], rel=0.06)
    options = {"method": "percentile", "n_resamples": 2000, "rng": np.random.default_rng(0)}
    scipys = bootstrap((values,), np.mean, **options).confidence_interval
    assert interval(made) == pytest.approx(np.stack(scipys), abs=1e-12)
    assert (interval(np.ones((5, 1))) == 1).all()
