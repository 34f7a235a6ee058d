"""Phases on hand-made series, window 3 unless said otherwise."""

import itertools

import numpy as np
import pandas as pd
import pytest

from llds_core.diagnostics.phases import (
    Phase,
    collapse_row,
    decline_row,
    detect_phases,
    windowed_mean,
)
from llds_core.errors import ConfigError


def table(reward, loglik):
    steps = range(1, len(reward) + 1)
    return pd.DataFrame({"step": steps, "reward": reward, "loglik_correct": loglik}, dtype=float)


NOISE = [-0.5, -0.52, -0.48, -0.5, -0.52, -0.48]  # mean -0.5, deviation below 0.02
DECAY = [-0.6, -0.65, -0.7, -0.75, -0.8, -0.85]  # 0.05 a step
CLIFF = [-1.5, -2.2, -2.9, -3.6]  # about 0.7 a step


def test_windowed_mean_is_trailing_and_skips_gaps():
    means = windowed_mean(np.array([1.0, 2.0, np.nan, 4.0, np.nan, np.nan, np.nan]), 3)
    np.testing.assert_allclose(means, [np.nan, np.nan, 1.5, 3.0, 4.0, 4.0, np.nan])


@pytest.mark.parametrize(
    ("reward", "row"),
    [
        # Means of 3 from row 6 on: .4, .2, 0, 0, ... with maximum .6: first below .3 at row 7.
        ([0.6] * 6 + [0.0] * 7, 7),
        ([0.6] * 6 + [0.0] * 6, None),  # two windows of evidence are needed
        ([0.6] * 6 + [0.0] * 4 + [0.6] * 10, None),  # recovers
        ([0.0] * 20, None),
        ([-0.2] * 6 + [-0.9] * 9, None),  # half of what was never positive is no level
        ([-0.2] * 6 + [0.6] * 6 + [0.0] * 7, 13),
    ],
)
def test_collapse_starts_where_the_mean_stays_below_half_of_its_maximum(reward, row):
    assert collapse_row(np.array(reward)) == row


@pytest.mark.parametrize(
    ("loglik", "row"),
    [
        # The maximum -.5 is first reached at row 2; rows 0-2 deviate by .02: the border is -.54.
        # Means: row 6 (-.52-.48-.6)/3 = -.533, row 7 (-.48-.6-.65)/3 = -.577.
        (NOISE + DECAY + CLIFF, 7),
        (NOISE + DECAY + [np.nan] * 6, 7),  # gaps repeat the verdict before them
        (NOISE + DECAY + NOISE, None),  # comes back
        ([-0.1] * 20, None),
        ([np.nan] * 20, None),
        ([], None),
    ],
)
def test_decline_starts_where_the_mean_leaves_its_maximum_for_good(loglik, row):
    assert decline_row(np.array(loglik)) == row


def test_the_whole_story_has_four_phases_that_cover_every_step():
    reward = [0.6] * 14 + [0.0] * 12
    loglik = NOISE + DECAY + CLIFF + [np.nan] * 10
    phases = detect_phases(table(reward, loglik))
    assert [phase.name for phase in phases] == ["stagnation", "decay", "acceleration", "collapse"]
    assert phases[0] == Phase("stagnation", 1, 7)
    # From step 11 on, the next three means fall by 0.77 in total; since the decline 0.05 a step.
    assert phases[2].first == 11
    assert phases[3] == Phase("collapse", 16, 26)
    for before, after in itertools.pairwise(phases):
        assert after.first == before.last + 1


def test_a_steady_decay_does_not_accelerate():
    loglik = NOISE + [-0.6 - 0.05 * k for k in range(14)]
    phases = detect_phases(table([0.6] * 20, loglik))
    assert [phase.name for phase in phases] == ["stagnation", "decay"]
    assert phases[1].last == 20


@pytest.mark.parametrize(
    "reward, loglik",
    [
        ([0.5] * 24, NOISE * 4),
        (np.linspace(0.1, 0.9, 24), np.linspace(-1.0, -0.2, 24)),
        ([0.5] * 24, [np.nan] * 24),
        ([np.nan] * 24, [np.nan] * 24),
    ],
    ids=["stable", "rising", "never correct", "nothing measured"],
)
def test_no_phase_is_claimed_where_no_rule_fires(reward, loglik):
    assert detect_phases(table(reward, loglik)) == [Phase("stagnation", 1, 24)]


def test_noise_alone_hardly_ever_declines_or_collapses():
    rng = np.random.default_rng(0)
    found = [
        len(detect_phases(table(0.6 + r, -0.5 + l)))
        for r, l in rng.normal(0, 0.03, (200, 2, 24))  # noqa: E741
    ]
    assert np.mean(np.array(found) > 1) <= 0.05


def test_a_likelihood_that_comes_back_after_the_collapse_has_declined():
    # The reward collapses at step 12; the likelihood is back where it was from step 15 on.
    reward = [0.6] * 10 + [0.0] * 12
    phases = detect_phases(table(reward, NOISE + DECAY + CLIFF[:2] + [-0.5] * 8))
    assert [phase.first for phase in phases] == [1, 8, 11, 12]


def test_runs_shorter_than_three_windows_have_no_phases():
    assert detect_phases(table([0.5] * 8, [-0.5] * 8)) == []
    assert detect_phases(table([], [])) == detect_phases(pd.DataFrame()) == []
    with pytest.raises(ConfigError, match="window is 0"):
        detect_phases(table([0.5] * 9, [-0.5] * 9), window=0)
    assert len(detect_phases(table([0.5] * 9, [-0.5] * 9))) == 1


def test_steps_are_sorted_and_named_by_their_number():
    metrics = table([0.6] * 6 + [0.0] * 12, [np.nan] * 18)
    metrics["step"] += 100
    found = detect_phases(metrics[::-1])  # nothing but rewards was measured
    assert found == [Phase("stagnation", 101, 107), Phase("collapse", 108, 118)]


def test_a_step_written_twice_counts_once_by_its_last_row():
    """A run that was cut writes the steps after its checkpoint again."""
    once = table([0.6] * 6 + [0.0] * 9, NOISE + DECAY + CLIFF[:3])
    again = pd.concat([once.iloc[:5].assign(reward=-1.0), once]).set_index("step", drop=False)
    assert detect_phases(again) == detect_phases(once) != []
