"""Tables of `measure`, as runs and published folders hold them, and what they say: with what
likelihood changes, and which search rounds say something.

Needs no torch, as reports do not.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr

from llds_core.errors import DataError

TABLES = ("likelihood_change", "theorem", "nll_by_round")
_KEYS = ["profile", "method", "seed"]
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


def mechanism_path(root: Path, profile: str, seed: int) -> Path:
    """Folder of the tables of one seed, in a folder of runs."""
    return root / profile / f"mechanism-seed{seed}"


def read_mechanism(*folders: Path) -> dict[str, pd.DataFrame]:
    """Read the tables of `measure`, or published ones, those of several seeds together."""
    parts = {name: [read_table(at / f"{name}.csv") for at in folders] for name in TABLES}
    tables = {name: pd.concat(found, ignore_index=True) for name, found in parts.items()}
    if all(table.empty for table in tables.values()):
        raise DataError(f"{folders[0]} holds no measurement: run python -m llds_core mechanism")
    return tables


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was measured, and by which code; empty before anything was."""
    path = folder / "manifest.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def read_table(path: Path) -> pd.DataFrame:
    """One table; empty before anything was measured."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=_KEYS)


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
