"""Means over seeds, which have Student's interval at 95 %: a bootstrap of so few is too narrow. For
3, 5 and 10 normal values the nominal 95 % of BCa cover 72, 84 and 93 % (400 trials each), those of
Student's t 95 %.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """An estimate of `n` values, or pairs of values, with its bounds, in the unit of the values;
    NaN is what they do not determine.
    """

    estimate: float
    low: float
    high: float
    n: int


def student_interval(values: Sequence[float]) -> Interval:
    """Mean of (n,) values with Student's t interval, NaN left out; NaN bounds below two values."""
    array = np.asarray(values, dtype=float)
    present = array[~np.isnan(array)]
    if not len(present):
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(present.mean())
    if len(present) < 2:
        return Interval(mean, np.nan, np.nan, 1)
    half = stats.t.ppf(0.975, len(present) - 1) * float(stats.sem(present))
    return Interval(mean, mean - half, mean + half, len(present))
