"""What frames of measurements say: of `group_changes`, with what likelihood changes; of
`nll_by_round`, the rows that say something.

Needs no torch, as reports do not.
"""

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr

_FREQUENT = 20  # trajectories
# What a driver has to explain the change beyond: the theorem is not needed for their effect.
_CONTROLS = ("loglik_correct", "correct")
# Sign of the rank correlation with the change that the theorem leads one to expect; 0 for none.
_FACTORS = {
    "driver": -1,
    "pull": -1,
    "gain": 1,
    "own": 1,
    "support": 1,
    "error_product": -1,
    "state_cosine": -1,
    "similarity": -1,
    "loglik_incorrect": 1,
    **dict.fromkeys(_CONTROLS, 0),
}


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of `delta` with what Theorem 4.2 names as its causes, and with two plain
    reasons beside them: how likely correct responses are already, and how many there are.

    Returns:
        One row per `factor`: `expected`, the sign that the theorem leads one to expect (0 for none,
        of the plain reasons); `spearman` with its `p` value and a 95 % interval `low`, `high`
        (Fisher's transform with the variance of Bonett and Wright, 2000); `partial`, the rank
        correlation given the two plain reasons; `n` questions. NaN below 3 questions (`partial`: 5)
        or where either side is constant.
    """
    rows = []
    for factor, expected in _FACTORS.items():
        pairs = frame[["delta", factor]].dropna()
        row = {"factor": factor, "expected": expected, "spearman": np.nan, "p": np.nan}
        row |= {"low": np.nan, "high": np.nan, "n": len(pairs), "partial": np.nan}
        if len(pairs) >= 3 and (pairs.nunique() > 1).all():
            result = spearmanr(pairs["delta"], pairs[factor])
            low, high = _fisher_interval(float(result.statistic), len(pairs))
            row |= {"spearman": float(result.statistic), "p": float(result.pvalue)}
            row |= {"low": low, "high": high, "partial": _partial(frame, factor)}
        rows.append(row)
    return pd.DataFrame(rows)


def _partial(frame: pd.DataFrame, factor: str) -> float:
    """Rank correlation of `delta` and a factor, both freed of the controls; NaN for a control."""
    names = ["delta", factor, *_CONTROLS]
    if factor in _CONTROLS or len(known := frame[names].dropna()) < len(names) + 1:
        return np.nan
    ranks = known.rank()
    ranks -= ranks.mean()
    controls, rest = ranks[[*_CONTROLS]].to_numpy(float), ranks[["delta", factor]].to_numpy(float)
    rest = rest - controls @ np.linalg.lstsq(controls, rest)[0]
    if np.ptp(rest, axis=0).min() < 1e-9 * len(known):
        return np.nan
    return float(np.corrcoef(rest.T)[0, 1])


def _fisher_interval(correlation: float, n: int) -> tuple[float, float]:
    if n == 3:
        return -1.0, 1.0  # the variance is infinite
    half = norm.ppf(0.975) * np.sqrt((1 + correlation**2 / 2) / (n - 3))
    # A perfect correlation transforms to infinity, and its interval to a point.
    centre = np.arctanh(np.clip(correlation, -1 + 1e-15, 1 - 1e-15))
    return float(np.tanh(centre - half)), float(np.tanh(centre + half))


def frequent_rounds(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of `nll_by_round` over at least 20 trajectories: fewer say who came so far, not what it
    is like there.
    """
    return frame[frame["trajectories"] >= _FREQUENT]
