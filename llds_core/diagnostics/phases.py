"""Phases of a run, read off its metrics by rules that are fixed before looking.

The paper (arXiv 2512.04220, Fig. 2) tells the story in three phases and an end: the likelihood of
correct responses *stagnates*, *decays*, falls ever faster (*acceleration*), and the reward
*collapses*. It draws the borders by eye. Here they are rules. Everything is judged on trailing
means over `window` steps, defined from the `window`-th step on; a window without any value has no
mean and takes the verdict of the window before it.

- collapse: the first step from which the mean reward stays below half of its running maximum for
  two windows.
- decline: the first step after the maximum of the mean `loglik_correct` from which the mean stays
  below that maximum by more than 2 standard deviations of the values up to the maximum, to the end
  and for two windows at least. The end is that of the run, or of the first of the two windows that
  prove the collapse: what few correct responses score after it says nothing about the decline.
- acceleration: the first step, at least one window after the decline and before the collapse, from
  which the mean falls over the next window more than twice as fast as it did since the decline, and
  by more than the 2 standard deviations of the decline.

A rule that does not fire claims nothing: a stable run has the one phase `stagnation`, whether its
reward rises or not, and a run shorter than three windows, where no rule could fire, has none.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from llds_core.errors import ConfigError

PhaseName = Literal["stagnation", "decay", "acceleration", "collapse"]

WINDOW = 3
COLLAPSE_SHARE = 0.5  # of the best mean reward: below it a run collapses
_DECLINE_DEVIATIONS = 2.0
_ACCELERATION = 2.0


@dataclass(frozen=True)
class Phase:
    """Steps `first` to `last` of a run, both included."""

    name: PhaseName
    first: int
    last: int


def detect_phases(metrics: pd.DataFrame, *, window: int = WINDOW) -> list[Phase]:
    """Phases of a run in order, which together cover every step: `stagnation` and whatever follows,
    or none for fewer than `3 * window` steps.

    Args:
        metrics: one row per step with columns `step`, `reward` and `loglik_correct`; NaN is
            allowed, of rows for one step the last counts, and an empty frame needs no columns.
        window: steps of the trailing means; a `ConfigError` below 1.
    """
    if window < 1:
        raise ConfigError(f"window is {window}: phases need windows of at least 1 step")
    if metrics.empty:
        return []
    table = metrics.reset_index(drop=True).drop_duplicates("step", keep="last")
    table = table.sort_values("step")
    steps = table["step"].to_numpy(int)
    if len(steps) < 3 * window:
        return []
    collapse = collapse_row(table["reward"].to_numpy(float), window)
    loglik = table["loglik_correct"].to_numpy(float)[: judged_rows(len(steps), collapse, window)]
    end = len(steps) if collapse is None else collapse
    decline = decline_row(loglik, window)
    starts: list[tuple[PhaseName, int]] = [("stagnation", 0)]
    if decline is not None and decline < end:
        starts.append(("decay", decline))
        faster = _acceleration_row(loglik, window, decline)
        if faster is not None and faster < end:
            starts.append(("acceleration", faster))
    if collapse is not None:
        starts.append(("collapse", collapse))
    borders = [row for _, row in starts[1:]] + [len(steps)]
    return [
        Phase(name, int(steps[row]), int(steps[border - 1]))
        for (name, row), border in zip(starts, borders, strict=True)
    ]


def judged_rows(rows: int, collapse: int | None, window: int) -> int:
    """How many of `rows` rows declines are judged on, with the collapse at row `collapse`."""
    return rows if collapse is None else collapse + window


def windowed_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Trailing mean over `window` values (n,) that skips NaN; NaN before the first full window."""
    means = np.full(len(values), np.nan)
    if len(values) >= window:
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(values, float), window)
        sums, counts = np.nansum(windows, axis=1), (~np.isnan(windows)).sum(axis=1)
        np.divide(sums, counts, out=means[window - 1 :], where=counts > 0)
    return means


def collapse_row(reward: np.ndarray, window: int = WINDOW, rows: int | None = None) -> int | None:
    """Row of the collapse of `reward` (n,), in the order of steps, or None. Means stay low for
    `rows` rows, two windows by default.
    """
    rows = 2 * window if rows is None else rows
    means = windowed_mean(reward, window)
    highest = np.fmax.accumulate(means)
    # Half of a reward that was never positive is no level to fall below.
    below = _below(means, np.where(highest > 0, COLLAPSE_SHARE * highest, -np.inf))
    for row in range(len(below) - rows + 1):
        if below[row : row + rows].all():
            return row
    return None


def lowest_after_best(reward: np.ndarray, window: int = WINDOW) -> float:
    """Lowest windowed mean of `reward` (n,) from the best one on, as a share of it: how far it
    fell, whether or not by the rule of the collapse; NaN without a full window.
    """
    means = pd.Series(windowed_mean(reward, window))
    best = means.max()
    return float(means[means.eq(best).cummax()].min() / best) if best > 0 else np.nan


def decline_row(values: np.ndarray, window: int = WINDOW) -> int | None:
    """Row from which `values` (n,) have left their maximum for good, or None."""
    means = windowed_mean(values, window)
    if np.isnan(means).all():
        return None
    top = int(np.nanargmax(means))
    below = _below(means, np.full(len(means), means[top] - _margin(values, window)))
    last_above = int(np.flatnonzero(~below)[-1])
    first = last_above + 1
    return first if first > top and len(values) - first >= 2 * window else None


def _acceleration_row(values: np.ndarray, window: int, decline: int) -> int | None:
    means = windowed_mean(values, window)
    margin = _margin(values, window)
    for row in range(decline + window, len(means) - window):
        so_far = (means[decline] - means[row]) / (row - decline)
        drop = means[row] - means[row + window]
        # Comparisons with NaN are false: a gap accelerates nothing.
        if so_far > 0 and drop / window > _ACCELERATION * so_far and drop > margin:
            return row
    return None


def _margin(values: np.ndarray, window: int) -> float:
    """How far below its maximum a windowed mean counts as declined; infinite when unknown."""
    top = int(np.nanargmax(windowed_mean(values, window)))
    before = values[: top + 1]
    before = before[~np.isnan(before)]
    return _DECLINE_DEVIATIONS * float(before.std(ddof=1)) if len(before) > 1 else np.inf


def _below(means: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Whether each mean lies below its threshold; undefined ones repeat the verdict before."""
    verdicts = pd.Series(np.where(np.isnan(means), np.nan, means < threshold))
    return verdicts.ffill().fillna(0).to_numpy(bool)
