"""Rewards: normalisation, exact match, F1, containment, and the format reward's table."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llds_core.rollout.rewards import (
    exact_match,
    f1_score,
    format_reward,
    normalize_answer,
    sub_exact_match,
    valid_block_sequence,
)

ONE_SEARCH = ["think", "search", "information", "think", "answer"]


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
    ("prediction", "golden", "expected"),
    [
        ("the beatles", ["Queen", "Beatles"], 1.0),
        ("beatles band", ["Beatles"], 0.0),
        ("A", ["the"], 1.0),  # nothing is left of either
        ("O’Brien", ["O'Brien"], 0.0),
        ("", ["Paris"], 0.0),
    ],
)
def test_exact_match_compares_normalised_strings(prediction, golden, expected):
    assert exact_match(prediction, golden) == expected


@pytest.mark.parametrize(
    ("prediction", "golden", "expected"),
    [
        ("in Paris, France", ["Lyon", "paris"], 1.0),
        ("Paris", ["Paris France"], 0.0),
        ("Paris", ["The"], 0.0),  # an empty string is contained in every text
        ("an", ["The"], 1.0),
    ],
)
def test_sub_exact_match_wants_a_golden_answer_inside(prediction, golden, expected):
    assert sub_exact_match(prediction, golden) == expected


@pytest.mark.parametrize(
    ("prediction", "golden", "expected"),
    [
        ("The Beatles", ["beatles"], 1.0),
        ("john paul", ["john lennon"], 0.5),
        ("john", ["john winston lennon"], 0.5),
        ("b b c", ["b c c"], 2 / 3),  # repeated tokens match once each
        ("john", ["paul", "john lennon"], 2 / 3),  # best over the golden answers
        ("paul", ["john"], 0.0),
        ("the", ["an"], 1.0),
        ("the", ["john"], 0.0),
    ],
)
def test_f1_scores_shared_tokens(prediction, golden, expected):
    assert f1_score(prediction, golden) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="abc ", max_size=8), st.text(alphabet="abc ", max_size=8))
def test_f1_is_symmetric_bounded_and_one_on_exact_match(left, right):
    score = f1_score(left, [right])
    assert 0.0 <= score <= 1.0
    assert score == pytest.approx(f1_score(right, [left]))
    if exact_match(left, [right]):
        assert score == 1.0


@pytest.mark.parametrize("metric", [exact_match, sub_exact_match, f1_score])
@pytest.mark.parametrize("golden", [[], (), "Paris"])
def test_metrics_refuse_a_missing_list_of_golden_answers(metric, golden):
    with pytest.raises(ValueError, match=r"golden_answers is .*: give a list of at least one"):
        metric("Paris", golden)


@pytest.mark.parametrize(
    ("prediction", "valid_format", "retrieved", "expected"),
    [
        ("Paris", True, False, 1.0),
        ("Paris", True, True, 1.0),
        ("Paris", False, True, 0.8),
        ("Lyon", True, False, 0.2),
        ("Lyon", True, True, 0.25),
        ("Lyon", False, True, 0.1),
        (None, True, False, 0.2),
        (None, True, True, 0.25),
        (None, False, True, 0.0),
    ],
)
def test_format_reward_follows_its_table(prediction, valid_format, retrieved, expected):
    reward = format_reward(
        prediction, ["Paris"], valid_format=valid_format, retrieved=retrieved, retrieval=0.05
    )
    assert reward == pytest.approx(expected)


def test_retrieval_earns_nothing_by_default():
    assert format_reward("Lyon", ["Paris"], valid_format=True, retrieved=True) == 0.2


def test_an_empty_answer_is_wrong_and_not_missing():
    assert format_reward("", ["Paris"], valid_format=False) == 0.1


@pytest.mark.parametrize("prediction", [None, "Paris"])
def test_format_reward_refuses_missing_golden_answers(prediction):
    with pytest.raises(ValueError, match="golden_answers is"):
        format_reward(prediction, [], valid_format=True)


@pytest.mark.parametrize("name", ["structure", "final", "retrieval"])
@pytest.mark.parametrize("credit", [-0.1, 1.1, float("nan")])
def test_format_reward_refuses_credits_outside_zero_and_one(name, credit):
    with pytest.raises(ValueError, match=rf"{name} is .*: give a number from 0 to 1"):
        format_reward("Paris", ["Paris"], valid_format=True, **{name: credit})


@pytest.mark.parametrize("searches", [0, 1, 2, 5])
def test_any_number_of_search_rounds_is_valid(searches):
    rounds = ["search", "information", "think"] * searches
    assert valid_block_sequence(["think", *rounds, "answer"])


@pytest.mark.parametrize("position", range(len(ONE_SEARCH) + 1))
def test_stray_text_anywhere_is_invalid(position):
    assert not valid_block_sequence([*ONE_SEARCH[:position], "text", *ONE_SEARCH[position:]])


def test_short_sequences_are_valid_only_as_the_automaton_allows():
    names = ["think", "search", "information", "answer", "text"]
    short = itertools.chain.from_iterable(itertools.product(names, repeat=n) for n in range(6))
    assert [s for s in short if valid_block_sequence(s)] == [("think", "answer"), tuple(ONE_SEARCH)]


def test_unknown_block_name_is_refused():
    with pytest.raises(ValueError, match='block is "thinking": choose from think, search'):
        valid_block_sequence(["thinking", "answer"])
