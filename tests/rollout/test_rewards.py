"""Measures of answers: normalisation, exact match, F1, containment. Rewards: see `test_loop`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llds_core.rollout.rewards import exact_match, f1_score, normalize_answer, sub_exact_match


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Beatles.", "beatles"),
        ("a  man, an apple", "man apple"),
        ("well-known", "wellknown"),
        ("U.S.A.", "usa"),
        ("1,000", "1000"),
        ("A", ""),
        ("O’Brien", "o’brien"),
        ("O'Brien", "obrien"),
        ("Theodore\tAnn\n", "theodore ann"),
        ("x–a–b", "x– –b"),  # a space takes the article's place
        ("São Tomé", "são tomé"),
    ],
)
def test_normalisation_matches_published_examples(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("metric", "prediction", "golden", "expected"),
    [
        (exact_match, "the beatles", ["Queen", "Beatles"], 1.0),
        (exact_match, "beatles band", ["Beatles"], 0.0),
        (exact_match, "A", ["the"], 1.0),  # nothing is left of either
        (exact_match, "O’Brien", ["O'Brien"], 0.0),
        (exact_match, "", ["Paris"], 0.0),
        (sub_exact_match, "in Paris, France", ["Lyon", "paris"], 1.0),
        (sub_exact_match, "Paris", ["Paris France"], 0.0),
        (sub_exact_match, "Paris", ["The"], 0.0),  # an empty string is contained in every text
        (sub_exact_match, "an", ["The"], 1.0),
        (f1_score, "The Beatles", ["beatles"], 1.0),
        (f1_score, "john paul", ["john lennon"], 0.5),
        (f1_score, "john", ["john winston lennon"], 0.5),
        (f1_score, "b b c", ["b c c"], 2 / 3),  # repeated tokens match once each
        (f1_score, "john", ["paul", "john lennon"], 2 / 3),  # best over the golden answers
        (f1_score, "paul", ["john"], 0.0),
        (f1_score, "the", ["an"], 1.0),
        (f1_score, "the", ["john"], 0.0),
    ],
)
def test_metrics_compare_normalised_strings(metric, prediction, golden, expected):
    assert metric(prediction, golden) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="abc ", max_size=8), st.text(alphabet="abc ", max_size=8))
def test_f1_is_symmetric_bounded_and_one_on_exact_match(left, right):
    score = f1_score(left, [right])
    assert 0.0 <= score <= 1.0
    assert score == pytest.approx(f1_score(right, [left]))
    if exact_match(left, [right]):
        assert score == 1.0


def test_both_sides_are_brought_to_one_unicode_form() -> None:
    for made, gold in (("e\u0301", "\u00e9"), ("\u00c9", "e\u0301"), ("S\u00e3o", "Sa\u0303o")):
        for measure in (exact_match, f1_score, sub_exact_match):
            assert measure(made, [gold]) == 1
    assert exact_match("e", ["\u00e9"]) == 0
