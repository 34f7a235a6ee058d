"""Figure 5 and 6 counts on hand-made trajectories."""

import pandas as pd
import pytest
import torch
from toy_groups import trajectory

from llds_core.diagnostics.likelihood import Scored, policy_actions
from llds_core.diagnostics.searches import SearchMatches, first_search_matches, nll_by_round
from llds_core.errors import ConfigError


def searched(*found, correct=False):
    """Actions that searched and found ids, or None where an action did not search."""
    return trajectory([[1]] * len(found), found=found, correct=correct)


def scored(actions, *, found=None, entropy=0.0):
    """One list of log-probabilities per action."""
    made = trajectory([[1] * len(values) for values in actions], found=found)
    flat = torch.tensor([value for values in actions for value in values])
    return Scored(made, flat, torch.full_like(flat, entropy), policy_actions(made))


RIGHT = searched("123", None, correct=True)


def test_matches_count_sets_not_lists():
    """Found 1 2 3; the wrong ones 3 2 1 (equal), 1 2 4 (2 of 4 in common), and no search."""
    wrong = [searched("321", None), searched("124", None), searched(None)]
    assert first_search_matches([RIGHT, *wrong], 4) == SearchMatches(3, 1, 2)


def test_groups_of_one_outcome_do_not_count():
    wrong = searched("123", None)
    assert first_search_matches([RIGHT, RIGHT, wrong, wrong], 2) == SearchMatches(0, 0, 0)
    assert first_search_matches([RIGHT, wrong, wrong, wrong], 2) == SearchMatches(1, 1, 1)


def test_only_the_first_action_can_match():
    late = searched("9", "123", None)
    invalid_first = searched(None, "123", None)
    assert first_search_matches([RIGHT, late, invalid_first], 3) == SearchMatches(2, 0, 0)


def test_any_correct_response_of_the_group_can_be_matched():
    other = searched("789", None, correct=True)
    unsearched = searched(None, correct=True)
    wrong = searched("987", None)
    assert first_search_matches([RIGHT, unsearched, other, wrong], 4) == SearchMatches(1, 1, 1)


def test_two_searches_that_find_nothing_are_equal():
    nothing = searched((), None, correct=True)
    assert first_search_matches([nothing, searched((), None)], 2) == SearchMatches(1, 1, 1)
    assert first_search_matches([nothing, searched("1", None)], 2) == SearchMatches(1, 0, 0)


def test_trajectories_have_to_divide_into_groups():
    with pytest.raises(ConfigError, match="3 trajectories do not divide into groups of 2"):
        first_search_matches([RIGHT] * 3, 2)


ITEMS = [
    scored([[-1.0, -3.0], [-5.0]], entropy=0.5),  # one round
    scored([[-2.0], [-4.0], [-9.0]], entropy=1.5),  # two rounds
    scored([[-7.0]]),  # no search
]


def test_positions_are_actions_with_a_search_round_to_follow():
    expected = pd.DataFrame(
        {
            "view": "position",
            "rounds": [0, 1],
            "nll": [2.0, 4.0],
            "entropy": [(0.5 + 0.5 + 1.5) / 3, 1.5],
            "tokens": [3, 1],
            "trajectories": [2, 1],
        }
    )
    pd.testing.assert_frame_equal(nll_by_round(ITEMS), expected)


def test_totals_are_whole_responses_by_their_rounds():
    made = nll_by_round(ITEMS, "total")
    assert made["rounds"].tolist() == [0, 1, 2]
    assert made["nll"].tolist() == [7.0, 3.0, 5.0]
    assert made["tokens"].tolist() == [1, 3, 3]
    assert made["trajectories"].tolist() == [1, 1, 1]


def test_an_action_that_did_not_search_adds_no_round():
    invalid = scored([[-1.0], [-2.0], [-3.0]], found=[None, ("p0",), None])
    assert nll_by_round([invalid], "total")["rounds"].tolist() == [1]
    assert nll_by_round([invalid])["nll"].tolist() == [1.0]


def test_nothing_scored_makes_an_empty_frame():
    assert nll_by_round([]).columns.tolist() == nll_by_round(ITEMS).columns.tolist()


def test_an_unknown_view_is_refused():
    with pytest.raises(ConfigError, match='view is "positon": did you mean "position"'):
        nll_by_round(ITEMS, "positon")
