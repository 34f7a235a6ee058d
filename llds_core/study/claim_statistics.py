"""Tests and intervals of claims; means over seeds are in `reporting.stats`.

Intervals are at 95 %. Collapse steps are censored: a run that has not collapsed tells no step, only
that it comes later than what was watched.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from llds_core.config.seeding import numpy_generator
from llds_core.reporting.run_view import StoredRun
from llds_core.reporting.stats import Interval, student_interval

_LEVEL = 0.95
_RESAMPLES = 4999
_NONE = student_interval([])


class Trend(NamedTuple):
    """A mean rank correlation over settings, the two-sided p of its permutation test, and the
    smallest p that these outcomes allow, in whatever order; ties raise it.
    """

    correlation: Interval
    p: float
    least_p: float


def proportion_interval(k: int, n: int) -> Interval:
    """Share `k / n`, of one or more, with Wilson's interval, which stays inside [0, 1]."""
    bounds = stats.binomtest(k, n).proportion_ci(_LEVEL, method="wilson")
    # At 0 and n the bound is the share itself, which rounding may miss.
    return Interval(k / n, min(float(bounds.low), k / n), max(float(bounds.high), k / n), n)


def paired_proportions(first: Mapping[int, bool], second: Mapping[int, bool]) -> Interval:
    """Share of yes in `first` minus that in `second`, over the seeds present in both; NaN for none.

    The bounds are Newcombe's (1998, method 10): Wilson's for either share, put together with the
    correlation of the pairs. `mcnemar` is the test that goes with it.
    """
    shared = sorted(first.keys() & second.keys())
    if not (n := len(shared)):
        return _NONE
    yes = np.array([[bool(side[seed]) for seed in shared] for side in (first, second)])
    totals = yes.sum(1)
    one, other = (proportion_interval(int(total), n) for total in totals)
    determinant = float((yes[0] & yes[1]).sum() * n - totals.prod())
    determinant -= np.clip(determinant, 0, n / 2)  # for continuity
    norm = np.sqrt(float((totals * (n - totals)).prod()))
    phi = determinant / norm if norm else 0.0
    difference = one.estimate - other.estimate
    below = (one.estimate - one.low, other.high - other.estimate)
    above = (one.high - one.estimate, other.estimate - other.low)
    down, up = (float(np.sqrt(a * a - 2 * phi * a * b + b * b)) for a, b in (below, above))
    return Interval(difference, difference - down, difference + up, n)


def mcnemar(first: Mapping[int, bool], second: Mapping[int, bool]) -> float:
    """Two-sided p of the exact McNemar test that both share their yes equally often.

    Only seeds whose outcomes differ carry information: of d of them p is 2 · 0.5^d at best, so that
    five cannot reach 0.05. 1 when none differs.
    """
    shared = first.keys() & second.keys()
    only_first = sum(first[seed] and not second[seed] for seed in shared)
    differing = sum(first[seed] != second[seed] for seed in shared)
    return float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0


def survived_steps(runs: Sequence[StoredRun]) -> np.ndarray:
    """Steps of each run before its collapse, (n,), up to the horizon that all were watched to.

    Without a collapse they are those that the length of the run proves free of one, which takes two
    windows. The horizon is where the first such run ends, none where all collapsed; a run that
    lasts longer counts as the horizon.
    """
    free = [max(run.length - 2 * run.window + 1, 0) for run in runs]
    fell = [run.collapse for run in runs]
    horizon = min((n for n, row in zip(free, fell, strict=True) if row is None), default=np.inf)
    steps = [n if row is None else row for n, row in zip(free, fell, strict=True)]
    return np.minimum(np.array(steps, dtype=float), horizon)


def censored_median(steps: Sequence[float]) -> str:
    """Median of collapse steps, NaN for a run that has not collapsed, which comes last; "> n" after
    the last collapse when half of the runs and more have not, and "–" without a collapse.
    """
    known = np.asarray(steps, dtype=float)
    if np.isnan(known).all():
        return "–"
    median = np.median(np.nan_to_num(known, nan=np.inf))
    return f"> {np.nanmax(known):.0f}" if np.isinf(median) else f"{median:g}"


def spearman_trend(
    settings: Sequence[float], outcomes: Sequence[float], strata: Sequence[object]
) -> Trend:
    """Rank correlation of an outcome with the setting of its arm, within each stratum, averaged.

    The interval is a percentile bootstrap that draws runs within strata, the p that of a test which
    permutes outcomes within strata. A stratum, or a resample, in which either side is constant
    shows no trend and counts as 0. Censored outcomes have to be restricted first: runs that reach
    the horizon are then ties, "beyond the last step" in no order among themselves.

    Args:
        settings: (n,) value of the varied setting.
        outcomes: (n,) e.g. `survived_steps`.
        strata: (n,) what runs have to share to be compared, e.g. their seed.

    Returns:
        Correlation in [-1, 1]; `n` counts the runs of strata with three settings or more. All NaN
        without such a stratum, or where in none outcomes differ.
    """
    table = pd.DataFrame({"x": settings, "y": outcomes, "stratum": list(strata)}).dropna()
    groups = [
        group[["x", "y"]].to_numpy(float).T
        for _, group in table.groupby("stratum")
        if group["x"].nunique() > 2
    ]
    n = sum(group.shape[1] for group in groups)
    if all(np.ptp(group[1]) == 0 for group in groups):
        return Trend(_NONE._replace(n=n), np.nan, np.nan)
    estimate = float(np.mean([_rank_correlation(*group) for group in groups]))
    rng = numpy_generator(0, "bootstrap")
    resampled, permuted = [], []
    for x, y in groups:
        chosen = rng.integers(len(x), size=(_RESAMPLES, len(x)))
        resampled.append(_rank_correlation(x[chosen], y[chosen]))
        mixed = rng.permuted(np.tile(y, (_RESAMPLES, 1)), axis=1)
        permuted.append(_rank_correlation(np.broadcast_to(x, mixed.shape), mixed))
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(np.mean(resampled, axis=0), [tail, 1 - tail]).tolist()
    # Rounding must not make an arrangement as extreme as the observed one look less so.
    extreme = np.abs(np.mean(permuted, axis=0)) >= abs(estimate) - 1e-9
    p = float((extreme.sum() + 1) / (_RESAMPLES + 1))
    return Trend(Interval(estimate, low, high, n), p, _least_p(groups))


def _least_p(groups: Sequence[np.ndarray]) -> float:
    """Smallest two-sided p of the permutation test of `spearman_trend` that the outcomes of
    `groups`, each (2, n) of settings and outcomes, could have reached in another order.
    """
    extremes = []
    for sign in (1, -1):
        ordered = [(np.sort(x), np.sort(y)[::sign]) for x, y in groups]
        estimate = abs(float(np.mean([_rank_correlation(*pair) for pair in ordered])))
        # How often a random order pairs the same values with the same settings.
        pairs = [pd.crosstab(*pair).to_numpy() for pair in ordered]
        chances = [stats.random_table(each.sum(1), each.sum(0)).pmf(each) for each in pairs]
        extremes.append((estimate, float(np.prod(chances))))
    top = max(estimate for estimate, _ in extremes)
    return min(1.0, sum(chance for estimate, chance in extremes if estimate > top - 1e-9))


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; 0 where either side is constant."""
    ranks = [stats.rankdata(side, axis=-1) for side in (x, y)]
    centred = [side - side.mean(-1, keepdims=True) for side in ranks]
    norm = np.sqrt((centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1))
    product = (centred[0] * centred[1]).sum(-1)
    return np.divide(product, norm, out=np.zeros_like(product), where=norm > 0)
