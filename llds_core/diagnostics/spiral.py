"""The death spiral as a test: Definition 5.1 and A.3 of arXiv 2512.04220.

Over iterations s let m_s be the mean change of the summed log-probability of correct responses
under the updates of the step, P_s the mean log-probability of incorrect responses, and c_s the mean
similarity of the states of correct and incorrect ones. The spiral turns from s0 on when, for every
s >= s0,

- C1, persistent decay: m_s <= e for some e < 0, that is, the largest m_s is negative;
- C2, confidence erosion: P_s <= P_(s-1), and c_s >= c for some c > 0;
- C3, self-amplification: m_(s+1) < m_s.

The paper compares expected *probabilities* of trajectories in C2, which underflow; log-likelihoods
per token stand in for them. "For every s" is not met by a noisy series, so that the test is applied
to means over consecutive windows that do not overlap; step by step it is the literal definition.
Either way a condition has to hold for three values at least: of fewer, C3 says next to nothing.
A value that was not measured fulfils no condition. The paper averages m_s over the responses to a
question, then over questions; here it is over responses, so that easy questions weigh more.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from llds_core.diagnostics.phases import collapse_step, windowed_mean
from llds_core.errors import ConfigError

ConditionName = Literal["persistent decay", "confidence erosion", "self-amplification"]

_LEAST = 3


@dataclass(frozen=True)
class Condition:
    """Where one condition of the spiral holds.

    Attributes:
        name: which one.
        onset: first iteration from which it holds to the end, for three at least; None when there
            is none.
        broken: last iteration that breaks it; None when none does.
    """

    name: ConditionName
    onset: int | None
    broken: int | None


@dataclass(frozen=True)
class SpiralConditions:
    """The three conditions on one set of series.

    Iterations are positions in plain series, and step numbers in a run.
    """

    decay: Condition
    erosion: Condition
    amplification: Condition

    @property
    def onset(self) -> int | None:
        """First iteration from which all three hold; None when they do not."""
        conditions = (self.decay, self.erosion, self.amplification)
        onsets = [c.onset for c in conditions if c.onset is not None]
        # Each holds from its onset to the end, so all of them do from the last onset on.
        return None if self.failed else max(onsets)

    @property
    def failed(self) -> tuple[ConditionName, ...]:
        """The conditions that hold from nowhere to the end."""
        conditions = (self.decay, self.erosion, self.amplification)
        return tuple(c.name for c in conditions if c.onset is None)


@dataclass(frozen=True)
class SpiralTest:
    """Verdict on a run.

    Attributes:
        windowed: conditions on window means; an iteration is the first step of its window.
        literal: conditions on the values of single steps.
        windows: window means that were judged.
        collapse: step of the collapse up to which the run was judged, None when there is none.
    """

    windowed: SpiralConditions
    literal: SpiralConditions
    windows: int
    collapse: int | None

    @property
    def judged(self) -> bool:
        """Whether there were windows enough for a verdict."""
        return self.windows >= _LEAST

    @property
    def fires(self) -> bool:
        """Whether all conditions hold on window means."""
        return self.windowed.onset is not None


def death_spiral(metrics: pd.DataFrame, *, window: int) -> SpiralTest:
    """Test a run for the death spiral.

    Judged are the steps before the collapse where there is one, else all of them: what few correct
    responses score after a collapse says nothing about what led there. Windows are laid out
    backwards from the last judged step, and steps too few for a further one are left out. A window
    mean skips NaN; a window without any value has none, and fulfils no condition.

    Args:
        metrics: one row a step with columns `step`, `reward`, `loglik_change_correct` (m, nats per
            trajectory), `loglik_incorrect` (P, nats per token) and `hidden_similarity` (c, cosine).
        window: steps of a window mean, at least 1; also the window of the collapse.

    Raises:
        ConfigError: when `window` is not positive.
    """
    if window < 1:
        raise ConfigError(f"window is {window}: the spiral needs windows of at least 1 step")
    table = metrics.sort_values("step").set_index("step")
    collapse = collapse_step(table["reward"], window)
    if collapse is not None:
        table = table[table.index < collapse]
    steps = table.index.to_numpy(int)
    names = ("loglik_change_correct", "loglik_incorrect", "hidden_similarity")
    series = [table[name].to_numpy(float) for name in names]
    # Consecutive windows, the last of which ends with the last step.
    first = len(steps) % window
    means = [windowed_mean(values, window)[first + window - 1 :: window] for values in series]
    return SpiralTest(
        _on_steps(spiral_conditions(*means), steps[first::window]),
        _on_steps(spiral_conditions(*series), steps),
        len(means[0]),
        collapse,
    )


def spiral_conditions(m: np.ndarray, p: np.ndarray, c: np.ndarray) -> SpiralConditions:
    """Check the three conditions literally on plain series.

    Args:
        m: (n,) change of the log-probability of correct responses.
        p: (n,) log-likelihood of incorrect responses; the first has none before it to exceed.
        c: (n,) similarity of correct and incorrect responses.

    Returns:
        Onsets as positions 0..n-1. NaN breaks each condition that needs the value.

    Raises:
        ConfigError: when the series differ in length.
    """
    m, p, c = (np.asarray(values, dtype=float) for values in (m, p, c))
    if not len(m) == len(p) == len(c):
        raise ConfigError(
            f"the series have {len(m)}, {len(p)} and {len(c)} values: give one each per iteration"
        )
    n = len(m)
    # Comparisons with NaN are false.
    decays = m < 0
    erodes = (c > 0) & ~np.isnan(p)
    erodes[1:] &= p[1:] <= p[:-1]
    grows = m[1:] < m[:-1]
    return SpiralConditions(
        _condition("persistent decay", decays, n, 0),
        _condition("confidence erosion", erodes, n, 0),
        # Pair s compares s with s + 1: what breaks it is the later one, and from there it may hold.
        _condition("self-amplification", grows, n, 1),
    )


def _condition(name: ConditionName, holds: np.ndarray, n: int, later: int) -> Condition:
    """Onset of a condition from its truth per value, or (`later` = 1) per pair of neighbours."""
    wrong = np.flatnonzero(~holds)
    onset = int(wrong[-1]) + 1 if len(wrong) else 0
    broken = int(wrong[-1]) + later if len(wrong) else None
    return Condition(name, onset if n - onset >= _LEAST else None, broken)


def _on_steps(found: SpiralConditions, steps: np.ndarray) -> SpiralConditions:
    def step(row: int | None) -> int | None:
        return None if row is None else int(steps[row])

    conditions = (found.decay, found.erosion, found.amplification)
    return SpiralConditions(*(Condition(c.name, step(c.onset), step(c.broken)) for c in conditions))
