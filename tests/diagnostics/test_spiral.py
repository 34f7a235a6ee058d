"""The death-spiral test on hand-made series."""

import numpy as np
import pandas as pd
import pytest

from llds_core.diagnostics.spiral import death_spiral

FALLING = [-1.0, -1.1, -1.2, -1.3, -1.4]
ALIKE = [0.9] * 5
M = [-0.1, -0.2, -0.3, -0.4, -0.5]


def run(m, p, c, reward=None):
    steps = range(1, len(m) + 1)
    columns = {"loglik_change_correct": m, "loglik_incorrect": p, "hidden_similarity": c}
    reward = [0.5] * len(m) if reward is None else reward
    return pd.DataFrame({"step": steps, "reward": reward, **columns}, dtype=float)


def onsets(m, p, c):
    """Of the literal test."""
    return tuple(death_spiral(run(m, p, c), window=1).onsets.values())


@pytest.mark.parametrize(
    ("m", "p", "c", "expected"),
    [
        # Decay from the first negative value on.
        ([0.01, -0.01, -0.02, -0.05, -0.11], FALLING, ALIKE, (2, 1, 1)),
        # A change that comes back does not amplify itself.
        ([-0.01, -0.03, -0.02], FALLING[:3], ALIKE[:3], (1, 1, None)),
        # Incorrect responses may not gain likelihood, nor states part.
        ([0.5, *M[1:]], [-1.0, -0.9, -1.0, -1.1, -1.1], ALIKE, (2, 3, 1)),
        (M, FALLING, [0.9, 0.9, 0.0, 0.9, 0.9], (1, None, 1)),
    ],
)
def test_conditions_hold_from_their_onset_on(m, p, c, expected):
    assert onsets(m, p, c) == expected


@pytest.mark.parametrize("gap", range(5))
def test_what_was_not_measured_fulfils_no_condition(gap):
    for place, condition in enumerate((0, 1, 1)):
        broken = [[-1.0, -2.0, -3.0, -4.0, -5.0], [*FALLING], [*ALIKE]]
        broken[place][gap] = np.nan
        onset = onsets(*broken)[condition]
        assert onset is None or onset > gap + 1


def test_window_means_see_a_spiral_that_noise_hides_from_the_literal_test():
    noise = np.tile([0.3, -0.3, 0.0], 4)
    trend = -np.repeat([1.0, 2.0, 4.0, 8.0], 3)
    test = death_spiral(run(trend + noise, trend - noise, [0.9] * 12), window=3)
    assert test.fires and test.judged
    assert (test.onset, test.failed) == (1, ())
    literal = death_spiral(run(trend + noise, trend - noise, [0.9] * 12), window=1)
    assert literal.onset is None and "self-amplification" in literal.failed


def test_positions_are_steps_and_the_oldest_incomplete_window_is_left_out():
    m = [9.0, 1, 1, 1, -1, -1, -1, -2, -2, -2, -4, -4, -4]
    metrics = run(m, -np.arange(13.0), [0.5] * 13)
    metrics["step"] += 100
    test = death_spiral(metrics[::-1], window=3)
    assert (test.onsets["persistent decay"], test.onset, test.fires) == (105, 105, True)


def test_what_comes_after_the_collapse_is_not_judged():
    m = [-1] * 3 + [-2] * 3 + [-4] * 3 + [5.0] * 9
    reward = [0.6] * 8 + [0.0] * 10
    test = death_spiral(run(m, -np.arange(18.0), [0.5] * 18, reward), window=3)
    # The mean of steps 8-10 is the first below half of 0.6.
    assert test.collapse == 10 and test.fires
    assert not death_spiral(run(m, -np.arange(18.0), [0.5] * 18), window=3).fires


def test_fewer_than_three_windows_give_no_verdict():
    test = death_spiral(run([-1.0, -2, -3, -4], [-1.0, -2, -3, -4], [0.9] * 4), window=2)
    assert not test.judged and not test.fires
    assert not death_spiral(run([], [], []), window=3).judged


def test_gaps_inside_a_window_are_skipped():
    m = [-1, np.nan, np.nan, -2, -2, np.nan, -4, -4, -4]
    assert death_spiral(run(m, -np.arange(9.0), [0.9] * 9), window=3).fires
    m[3:6] = [np.nan] * 3
    assert not death_spiral(run(m, -np.arange(9.0), [0.9] * 9), window=3).fires
