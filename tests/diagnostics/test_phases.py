"""Phases on hand-made series, window 3 unless said otherwise."""

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

NOISE = [-0.5, -0.52, -0.48, -0.5, -0.52, -0.48]  # mean -0.5, deviation below 0.02
DECAY = [-0.6, -0.65, -0.7, -0.75, -0.8, -0.85]  # 0.05 a step
CLIFF = [-1.5, -2.2, -2.9, -3.6]  # about 0.7 a step


def table(reward, loglik):
    steps = range(1, len(reward) + 1)
    return pd.DataFrame({"step": steps, "reward": reward, "loglik_correct": loglik}, dtype=float)


def test_windowed_mean_is_trailing_and_skips_gaps():
    means = windowed_mean(np.array([1.0, 2.0, np.nan, 4.0, np.nan, np.nan, np.nan]), 3)
    np.testing.assert_allclose(means, [np.nan, np.nan, 1.5, 3.0, 4.0, 4.0, np.nan])


@pytest.mark.parametrize(
    ("reward", "row"),
    [
        # Means of 3 from row 6 on: .4, .2, 0, 0, ... with maximum .6: first below .3 at row 7, and
        # no more after two windows.
        ([0.6] * 6 + [0.0] * 7 + [1.0], 7),
        ([0.6] * 6 + [0.0] * 6, None),  # two windows of evidence are needed
        ([0.6] * 6 + [0.0] * 4 + [0.6] * 10, None),  # recovers
        ([0.0] * 20, None),
        ([0.0] * 6 + [-0.9] * 9, None),  # half of what was never positive is no level
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
        (NOISE + DECAY + CLIFF[:1], 7),
        (NOISE + DECAY, None),  # two windows of evidence are needed
        (NOISE + DECAY + [np.nan] * 6, 7),  # gaps repeat the verdict before them
        (NOISE + DECAY + NOISE, None),  # comes back
        ([-0.1] * 20, None),
        ([np.nan] * 20, None),
        ([], None),
    ],
)
def test_decline_starts_where_the_mean_leaves_its_maximum_for_good(loglik, row):
    assert decline_row(np.array(loglik)) == row


@pytest.mark.parametrize(
    ("reward", "loglik", "starts"),
    [
        # From step 11 on, the next three means fall by 0.77 in all; since the decline 0.05 a step.
        ([0.6] * 14 + [0.0] * 12, NOISE + DECAY + CLIFF + [np.nan] * 10, [1, 8, 11, 16]),
        # The reward collapses at step 12; the likelihood is back where it was from step 15 on.
        ([0.6] * 10 + [0.0] * 12, NOISE + DECAY + CLIFF[:2] + [-0.5] * 8, [1, 8, 11, 12]),
        # A steady decay does not accelerate.
        ([0.6] * 20, NOISE + [-0.6 - 0.05 * k for k in range(14)], [1, 8]),
        # No phase is claimed where no rule fires.
        ([0.5] * 24, NOISE * 4, [1]),
        (np.linspace(0.1, 0.9, 24), np.linspace(-1.0, -0.2, 24), [1]),
        ([0.5] * 24, [np.nan] * 24, [1]),
        ([np.nan] * 24, [np.nan] * 24, [1]),
        # Nor any in fewer than three windows.
        ([0.5] * 9, [-0.5] * 9, [1]),
        ([0.5] * 8, [-0.5] * 8, []),
        ([], [], []),
    ],
)
def test_phases_start_where_their_rules_fire_and_cover_every_step(reward, loglik, starts):
    ends = [step - 1 for step in starts[1:]] + [len(reward)]
    names = ["stagnation", "decay", "acceleration", "collapse"]
    expected = [Phase(*phase) for phase in zip(names, starts, ends, strict=False)]
    assert detect_phases(table(reward, loglik)) == expected


def test_noise_alone_hardly_ever_declines_or_collapses():
    rng = np.random.default_rng(0)
    found = [
        len(detect_phases(table(0.6 + r, -0.5 + l)))
        for r, l in rng.normal(0, 0.03, (200, 2, 24))  # noqa: E741
    ]
    assert np.mean(np.array(found) > 1) <= 0.05


def test_no_metrics_have_no_phases_and_no_window_is_refused():
    assert detect_phases(pd.DataFrame()) == []
    with pytest.raises(ConfigError, match="window is 0"):
        detect_phases(table([0.5] * 9, [-0.5] * 9), window=0)


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
