"""Tests and intervals of claims: hand-computed constants, and few or censored values."""

import numpy as np
import pytest
from claim_worlds import WINDOW, made

from llds_core.reporting.stats import student_interval
from llds_core.study import claim_statistics as statistics
from llds_core.study.claim_statistics import mcnemar, paired_proportions, spearman_trend


def test_students_interval_equals_the_textbook_and_needs_two_values():
    # Mean 2, deviation 1, t(2) at 97.5 % is 4.3027: half width 4.3027 / sqrt(3) = 2.4842.
    interval = student_interval([1, 2, 3])
    assert [interval.low, interval.high] == pytest.approx([2 - 2.4842, 2 + 2.4842], abs=1e-4)
    one = student_interval([0.5, np.nan])
    assert (one.estimate, one.n) == (0.5, 1) and np.isnan([one.low, one.high]).all()
    assert np.isnan(student_interval([]).estimate) and student_interval([]).n == 0


def test_shares_have_wilsons_interval():
    # 5 of 5 at z = 1.95996: n / (n + z²) = 0.5655.
    share = statistics.proportion_interval(5, 5)
    assert [share.estimate, share.low, share.high] == pytest.approx([1, 0.5655, 1], abs=1e-4)


def test_the_interval_of_paired_shares_is_newcombes():
    """An example of Newcombe's (1998): of 50 pairs 20 both, 12 the first, 2 the second, 16 none."""
    pairs = [(True, True)] * 20 + [(True, False)] * 12 + [(False, True)] * 2 + [(False, False)] * 16
    first, second = (dict(enumerate(side)) for side in zip(*pairs, strict=True))
    found = paired_proportions(first, second)
    assert (found.estimate, found.n) == (pytest.approx(0.2), 50)
    assert [found.low, found.high] == pytest.approx([0.0562, 0.3292], abs=5e-5)
    mirrored = paired_proportions(second, first)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_mcnemar_counts_only_seeds_that_differ():
    first = dict.fromkeys(range(5), True)
    second = {0: True, 1: False, 2: False, 3: False, 4: False, 9: False}
    assert mcnemar(first, second) == pytest.approx(2 * 0.5**4) == mcnemar(second, first)
    assert mcnemar(first, first) == 1
    assert mcnemar(*(dict.fromkeys(range(6), each) for each in (True, False))) < 0.05
    assert paired_proportions(first, first).estimate == 0
    assert np.isnan(paired_proportions({}, first).estimate)


def test_a_censored_run_lasts_to_the_horizon_that_all_were_watched_to():
    fell = {"status": "failed", "reason": "TrainingDivergedError: loss not finite"}
    runs = [made("grpo", 0, {"reward": np.ones(n)}, **fell) for n in (5, 30)]
    runs += [made("grpo", 0, {"reward": np.ones(n + 2 * WINDOW - 1)}) for n in (20, 50)]
    assert statistics.survived_steps(runs).tolist() == [5, 20, 20, 20]
    assert statistics.survived_steps(runs[:2]).tolist() == [5, 30]  # no censored run bounds these


@pytest.mark.parametrize(
    ("steps", "median"),
    [
        ([13, 14, 16], "14"),
        ([np.nan, 13, np.nan, 14, 16], "16"),
        ([13, 16], "14.5"),
        ([13, np.nan], "> 13"),
        ([12, 13, np.nan, np.nan, np.nan], "> 13"),
        ([np.nan], "–"),
    ],
)
def test_runs_without_collapse_come_last_in_a_median(steps, median):
    assert statistics.censored_median(steps) == median


def test_a_trend_over_arms_has_its_sign_and_counts_ties_as_ties():
    weights = np.repeat([0, 0.01, 0.2, 2, 20], 3)
    seeds = [1, 2, 3] * 5
    steps = [9, 10, 11, 11, 12, 13, 15, 16, 19, 19, 19, 19, 19, 19, 19]
    trend = spearman_trend(weights, steps, seeds)
    found = trend.correlation
    assert trend == spearman_trend(weights, steps, seeds)
    assert 0 < found.low < found.estimate <= found.high and trend.p < 0.001
    falling = spearman_trend(weights, [-each for each in steps], seeds)
    assert falling.correlation.high < 0 and falling.p == trend.p
    assert falling.correlation.estimate == pytest.approx(-found.estimate)
    # Ranks of (1, 1, 2) are (1.5, 1.5, 3): correlation with (1, 2, 3) is sqrt(3) / 2.
    ties = spearman_trend([1, 2, 3], [1, 1, 2], [0] * 3)
    assert ties.correlation.estimate == pytest.approx(np.sqrt(3) / 2)


def test_a_trend_is_taken_within_seeds():
    """Seeds that differ in level would hide it; a seed where nothing varies shows none."""
    weights, seeds = [1, 2, 3, 1, 2, 3], [0, 0, 0, 1, 1, 1]
    for outcomes, rho in (([1, 2, 3, 101, 102, 103], 1), ([1, 2, 3, 9, 9, 9], 0.5)):
        trend = spearman_trend(weights, outcomes, seeds)
        assert trend.correlation.estimate == pytest.approx(rho)
    # One setting of a seed is no trend, and leaves the others alone.
    assert spearman_trend([1, 2, 3, 1], [1, 2, 3, 50], [0, 0, 0, 1]).correlation.n == 3


@pytest.mark.parametrize(
    ("settings", "outcomes", "strata", "p"),
    [
        # Of 36 arrangements two are as extreme as perfect order, in either direction.
        ([1, 2, 3] * 2, [3, 2, 1] * 2, ["a"] * 3 + ["b"] * 3, 2 / 36),
        # Of 27 places of the one collapse in three strata the two at the ends are most extreme.
        ([1, 2, 3] * 3, [30, 30, 14] * 3, [0] * 3 + [1] * 3 + [2] * 3, 2 / 27),
        # Equal settings, too: six of 24 orders of the outcomes pair them alike.
        ([1, 1, 2, 3], [5, 5, 5, 9], [0] * 4, 3 * 2 / 24),
    ],
)
def test_the_p_of_a_trend_is_that_of_permutations_within_strata(settings, outcomes, strata, p):
    trend = spearman_trend(settings, outcomes, strata)
    assert trend.least_p == pytest.approx(p)
    if len(strata) > 4:
        assert trend.p == pytest.approx(p, abs=0.01)


def test_no_trend_is_claimed_where_nothing_varies():
    for settings, outcomes in (([1, 2, 3], [5, 5, 5]), ([1, 1, 1], [1, 2, 3]), ([1, 2], [1, 2])):
        trend = spearman_trend(settings, outcomes, [0] * len(settings))
        assert np.isnan([trend.correlation.estimate, trend.p]).all()
