"""Figure 5 and 6 counts on hand-made trajectories."""

import pandas as pd
import pytest
import torch
from toy_groups import trajectory

from llds_core.diagnostics.group_update import first_search_matches
from llds_core.diagnostics.likelihood import Scored, nll_by_round, policy_actions


def searched(*found, correct=False):
    """Actions that searched and found ids, or None where an action did not search."""
    return trajectory([[1]] * len(found), found=found, correct=correct)


def scored(actions, *, found=None, entropy=0.0):
    """One list of log-probabilities per action."""
    made = trajectory([[1] * len(values) for values in actions], found=found)
    flat = torch.tensor([value for values in actions for value in values])
    return Scored(made, flat, torch.full_like(flat, entropy), policy_actions(made))


RIGHT, WRONG = searched("123", None, correct=True), searched("123", None)
NOTHING, OTHER = searched((), None, correct=True), searched("789", None, correct=True)


@pytest.mark.parametrize(
    ("group", "counts"),
    [
        # Sets, not lists: 3 2 1 is equal, 1 2 4 has 2 of 4 in common, the last searched nothing.
        ([RIGHT, searched("321", None), searched("124", None), searched(None)], (3, 1, 2)),
        # Groups of one outcome do not count.
        ([RIGHT, RIGHT], (0, 0, 0)),
        ([WRONG, WRONG], (0, 0, 0)),
        # Only the first action can match, ...
        ([RIGHT, searched("9", "123", None), searched(None, "123", None)], (2, 0, 0)),
        # ... and any correct response of the group be matched.
        ([RIGHT, searched(None, correct=True), OTHER, searched("987", None)], (1, 1, 1)),
        # Two searches that find nothing are equal.
        ([NOTHING, searched((), None)], (1, 1, 1)),
        ([NOTHING, searched("1", None)], (1, 0, 0)),
    ],
)
def test_incorrect_responses_that_begin_like_a_correct_one_are_counted(group, counts):
    assert tuple(first_search_matches(group).values()) == counts


ITEMS = [
    scored([[-1.0, -3.0], [-5.0]], entropy=0.5),  # one round
    scored([[-2.0], [-4.0], [-9.0]], entropy=1.5),  # two rounds
    scored([[-7.0]]),  # no search
]


INVALID = scored([[-1.0], [-2.0], [-3.0]], found=[None, ("p0",), None])


@pytest.mark.parametrize(
    ("items", "rows"),
    [
        (
            ITEMS,
            [
                ("position", 0, 2.0, 2.5 / 3, 3, 2),  # actions with a search round to follow
                ("position", 1, 4.0, 1.5, 1, 1),
                ("total", 0, 7.0, 0.0, 1, 1),  # whole responses by their rounds
                ("total", 1, 3.0, 0.5, 3, 1),
                ("total", 2, 5.0, 1.5, 3, 1),
            ],
        ),
        # An action that did not search adds no round.
        ([INVALID], [("position", 0, 1.0, 0.0, 1, 1), ("total", 1, 2.0, 0.0, 3, 1)]),
        ([], []),
    ],
)
def test_likelihood_against_rounds(items, rows):
    columns = ["view", "rounds", "nll", "entropy", "tokens", "trajectories"]
    expected = pd.DataFrame(rows, columns=columns)
    pd.testing.assert_frame_equal(nll_by_round(items), expected)
