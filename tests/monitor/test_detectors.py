"""Detectors by hand-computed values, and that a growing log gives the alarms of the whole one."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llds_core.monitor import detectors as d
from llds_core.monitor.detectors import ALARMS, DETECTORS, EVIDENCE, SEVERITIES
from llds_core.monitor.diagnosis import judge
from llds_core.monitor.training_log import to_log

NAN = math.nan


@pytest.mark.parametrize(
    ("score", "columns", "expected"),
    [
        (d.clip_saturation, [[0.1, 0.2, 0.3, 0.6]], [NAN, NAN, 0.2, 1.1 / 3]),
        (d.clip_saturation, [[0.1, NAN, 0.3, 0.5]], [NAN, NAN, 0.2, 0.4]),
        (d.entropy_rise, [[1, 1, 1, 4]], [NAN, NAN, 1, 2]),
        (d.entropy_rise, [[0, 0, 0, 3, 3]], [NAN, NAN, NAN, 1, 2]),  # no start at zero
        (d.entropy_rise, [[-1, -1, -1, -4]], [NAN, NAN, 1, 2]),  # of densities
        (d.entropy_fall, [[0, 0, 0, 3, 3]], [NAN, NAN, NAN, 1, 0.5]),  # nor before it
        (d.entropy_fall, [[2, 2, 2, 0.5, 0.5]], [NAN, NAN, 1, 2 / 1.5, 2]),
        (d.kl_drift, [[0, 0, 3]], [NAN, NAN, 1]),
        (d.likelihood_displacement, [[-1, -1, -1, -4]], [NAN, NAN, 0, 1]),
        (d.likelihood_displacement, [[-4, -1, -1, -1, -4]], [NAN, NAN, 0, 0, 1]),  # best so far
        (d.reward_drop, [[1, 1, 1, 0, 0]], [NAN, NAN, 0, 1 / 3, 2 / 3]),
        (d.reward_drop, [[0, 0, 3, 3, 0]], [NAN, NAN, 0, 0, 0]),
        (d.reward_drop, [[-1, -1, -1, -4]], [NAN] * 4),  # half of nothing
        (d.reward_drop, [[1, 1, 1, -3, 1, 1, 1]], [NAN, NAN, 0] + [NAN] * 4),  # zero is no failure
        (d.behaviour_drift, [[1, 1, 1, 4], [2, 2, 2, 2]], [NAN, NAN, 0, math.log(2)]),
        (d.behaviour_drift, [[1, 1, 1], [NAN] * 3], [NAN, NAN, 0]),
        (d.behaviour_drift, [[2] * 6, [3] * 3 + [0] * 3], [NAN, NAN, 0, *np.log([1.5, 3, 1000])]),
        (d.zero_variance, [[1, 1, 1]], [NAN, NAN, 1]),
        (d.sampler_mismatch, [[1, 1, 1, 4]], [NAN, NAN, 1, 2]),
        (d.reuse, [[8, 8]], [8, 8]),
        (d.inert_penalty, [[0, 0, NAN, 0.1, 0]], [1, 1, 1, 0, 0]),
        (d.inert_penalty, [[0, -0.1, 0]], [1, 0, 0]),
        (d.not_finite, [[0, 2]], [0, 2]),
    ],
)
def test_scores_by_hand(score, columns, expected) -> None:
    found = score(*(np.array(values, float) for values in columns))
    assert found == pytest.approx(np.array(expected, float), nan_ok=True)


@pytest.mark.parametrize(
    ("reward", "beyond"),
    [
        # Noise of d / 4 by the fall of d alone: the means of three fall by d, of which chance makes
        # (sqrt(4 ln 3) + 2) sqrt(2 / 3) / 4 = 0.84; one row later they have fallen by 2 d / 3.
        ([1] * 6 + [0.5] * 3, True),
        ([1] * 7 + [0.4] * 2, False),
        ([1] * 6 + [0.7] * 3, False),  # within the threshold
        ([0.9, 1] * 3 + [0.55] * 3, False),  # 0.417, of which chance makes 0.420
        ([1] + [0.5] * 9 + [0.3] * 10, True),  # 0.367 of a best mean of 0.667, by chance 0.339
        ([1] * 6 + [0.2] * 6 + [1] * 6, False),  # it has come back
        ([1, 0] * 24 + [0] * 48, True),  # noise of 0.5: only means of 48 have left it
        ([0] * 9, False),
        ([NAN, 1, 1, NAN, 1, 1, 1, 1, NAN, 0.5, 0.5, 0.5], True),
    ],
)
def test_noise_by_hand(reward: list[float], beyond: bool) -> None:
    for scale in (1, 100):
        assert d.beyond_noise(scale * np.array(reward, float), 0.38) == beyond


@pytest.mark.parametrize("name", DETECTORS)
def test_no_series_is_too_short_or_too_empty(name: str) -> None:
    score, columns = DETECTORS[name].score, DETECTORS[name].columns
    for values in ([], [NAN], [0.0], [NAN] * 9, [0.0] * 9, [math.inf] * 9):
        with np.errstate(invalid="ignore", divide="ignore"):
            assert len(score(*[np.array(values, float)] * len(columns))) == len(values)
    assert "Source:" in (score.__doc__ or "")


VALUES = st.one_of(st.none(), st.floats(0, 10), st.just(NAN), st.just(math.inf))
ROW = dict.fromkeys(("reward", "entropy", "clip_fraction", "kl", "loss"), VALUES)
ROWS = st.lists(st.fixed_dictionaries(ROW), min_size=2, max_size=25)


@settings(max_examples=30, deadline=None)
@given(ROWS.flatmap(lambda rows: st.tuples(st.just(rows), st.integers(1, len(rows)))))
@example(([{"loss": 0.0}] * 10 + [{"entropy": 0.0}, {"entropy": 1.0}], 11))  # a late start
def test_alarms_of_a_growing_log_are_those_of_the_whole_one(log) -> None:
    """No detector looks ahead: once raised at a step an alarm stays there, and none comes late."""
    rows, end = log
    rows = [{"step": step, **row} for step, row in enumerate(rows, 1)]
    if all(value is None for row in rows for key, value in row.items() if key != "step"):
        return
    whole = {a.name: a.step for a in judge(to_log(rows, "log")).alarms}
    try:
        part = {a.name: a.step for a in judge(to_log(rows[:end], "log")).alarms}
    except ValueError:  # no metric yet
        return
    known = to_log(rows[:end], "log").table["step"].max()
    assert part == {name: step for name, step in whole.items() if step <= known}


def test_values_that_are_not_finite_are_never_healthy() -> None:
    for bad in (NAN, math.inf, -math.inf, "nan", "inf"):
        for key in ("loss", "grad_norm", "actor/grad_norm", "entropy", "kl", "reward"):
            # A gradient that overflows once is a skipped update; three in a row are not.
            bads = 3 if "grad_norm" in key else 1
            values = [0.1, *[bad] * bads, 0.1, bad]
            found = judge(to_log([{"step": s, key: v} for s, v in enumerate(values, 1)], "log"))
            (alarm,) = [a for a in found.alarms if a.name == "not_finite"]
            assert (alarm.step, alarm.severity) == (1 + bads, "critical")
            assert alarm.passed == (bads == 3) and found.reaches("critical")
    # Of updates that a step lost one is a skipped one, too.
    rows = [{"step": s, "entropy": 0.1, "nonfinite_updates": n} for s, n in enumerate([0, 1, 2])]
    assert [(a.name, a.step) for a in judge(to_log(rows, "log")).alarms] == [("not_finite", 2)]
    assert not judge(to_log(rows[:2], "log")).alarms
    (at_once,) = judge(to_log([{"step": 7, "loss": NAN}], "log")).alarms
    course = "nonfinite 1 at first, 1 at most, 1 at the alarm, 1 at the end"
    assert (at_once.step, at_once.evidence) == (7, course)
    # What is not there is not a fault: no correct response, no number.
    rows = [{"step": s, "loglik_correct": NAN, "kl": None} for s in (1, 2)]
    assert not judge(to_log(rows, "log")).alarms


def test_presets_name_what_there_is() -> None:
    assert ALARMS["detectors"].keys() == DETECTORS.keys() and len(DETECTORS) <= 12
    assert EVIDENCE["recipe"] == ALARMS["chosen_on"]
    assert {each.severity for each in DETECTORS.values()} <= set(SEVERITIES)
    for each in ALARMS["detectors"].values():
        assert each["cause"] and each["advice"]
        named = [e for e in each["advice"] if "arm" in e]
        asked = {f"{e.get('study', EVIDENCE['recipe'])}/{e['arm']}" for e in named}
        assert asked <= EVIDENCE["arms"].keys()
    assert all(np.isfinite(each.threshold) for each in DETECTORS.values())


def test_scores_leave_the_log_as_it_is() -> None:
    log = to_log([{"step": s, "updates": 8 * s, "clip_fraction": 0.1} for s in range(1, 9)], "log")
    before = log.table.copy()
    judge(log)
    pd.testing.assert_frame_equal(log.table, before)
