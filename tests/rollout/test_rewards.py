"""Rewards: normalisation, exact match, F1, containment, and the format reward's table."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llds_core.config import RewardConfig
from llds_core.rollout.rewards import (
    exact_match,
    f1_score,
    format_reward,
    normalize_answer,
    sub_exact_match,
    valid_block_sequence,
)

ONE_SEARCH = ("think", "search", "information", "think", "answer")


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


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="aAnNtThHeE .,-’'xé\n", max_size=20))
def test_exact_match_ignores_case_ascii_punctuation_and_outer_space(text):
    assert exact_match(f"  {text.upper()} !", [text]) == 1.0


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


def reward(prediction, golden=("Paris",), valid=True, retrieved=False, **credits):
    config = RewardConfig(**credits)
    return format_reward(prediction, golden, config, valid_format=valid, retrieved=retrieved)


@pytest.mark.parametrize("metric", [exact_match, sub_exact_match, f1_score, reward])
@pytest.mark.parametrize("golden", [[], (), "Paris"])
def test_a_missing_list_of_golden_answers_is_refused(metric, golden):
    with pytest.raises(ValueError, match=r"golden_answers is .*: give a list of at least one"):
        metric("Paris", golden)
    with pytest.raises(ValueError, match="golden_answers is"):
        reward(None, golden)


@pytest.mark.parametrize(
    ("prediction", "valid", "retrieved", "expected"),
    [
        ("Paris", True, False, 1.0),
        ("Paris", True, True, 1.0),
        ("Paris", False, True, 0.8),
        ("Lyon", True, False, 0.2),
        ("Lyon", True, True, 0.25),
        ("Lyon", False, True, 0.1),
        ("", False, False, 0.1),  # wrong, and not missing
        (None, True, False, 0.2),
        (None, True, True, 0.25),
        (None, False, True, 0.0),
    ],
)
def test_format_reward_follows_its_table(prediction, valid, retrieved, expected):
    found = reward(prediction, valid=valid, retrieved=retrieved, retrieval=0.05)
    assert found == pytest.approx(expected)
    if retrieved and valid and prediction != "Paris":
        assert reward(prediction, valid=valid, retrieved=True) == 0.2  # earns nothing by default


def test_short_sequences_are_valid_only_as_the_automaton_allows():
    names = ["think", "search", "information", "answer", "text"]
    short = itertools.chain.from_iterable(itertools.product(names, repeat=n) for n in range(6))
    assert [s for s in short if valid_block_sequence(s)] == [("think", "answer"), ONE_SEARCH]
    assert valid_block_sequence(["think", *["search", "information", "think"] * 5, "answer"])
