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
to means over consecutive windows that do not overlap. A condition has to hold for three windows at
least: of fewer, C3 says next to nothing. A value that was not measured fulfils no condition. The
paper averages m_s over the responses to a question, then over questions; here it is over responses,
so that easy questions weigh more.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from llds_core.diagnostics.phases import collapse_row, windowed_mean

_LEAST = 3


@dataclass(frozen=True)
class SpiralTest:
    """Verdict on a run: by the name of a condition, the first step of the first window from which
    it holds to the end, for three windows at least; None when there is none.
    """

    onsets: dict[str, int | None]
    judged: bool  # whether there were windows enough
    collapse: int | None  # step up to which the run was judged

    @property
    def onset(self) -> int | None:
        """First step from which all conditions hold; None when they do not."""
        # Each holds from its onset to the end, so all of them do from the last onset on.
        return None if self.failed else max(s for s in self.onsets.values() if s is not None)

    @property
    def failed(self) -> tuple[str, ...]:
        """The conditions that hold from nowhere to the end."""
        return tuple(name for name, onset in self.onsets.items() if onset is None)

    @property
    def fires(self) -> bool:
        """Whether all conditions hold."""
        return not self.failed


def death_spiral(metrics: pd.DataFrame, *, window: int) -> SpiralTest:
    """Test a run for the death spiral.

    Judged are the steps before the collapse where there is one, else all of them: what few correct
    responses score after a collapse says nothing about what led there. Windows are laid out
    backwards from the last judged step, and steps too few for a further one are left out. A window
    mean skips NaN; a window without any value has none, and fulfils no condition.

    Args:
        metrics: one row per step with columns `step`, `reward`, `loglik_change_correct` (m, nats
            per trajectory), `loglik_incorrect` (P, nats per token) and `hidden_similarity` (c,
            cosine).
        window: steps of a window mean, at least 1; also the window of the collapse. With 1 the
            conditions are checked literally.
    """
    table = metrics.sort_values("step")
    steps = table["step"].to_numpy(int)
    collapse = collapse_row(table["reward"].to_numpy(float), window)
    table = table.iloc[:collapse]
    # Consecutive windows, the last of which ends with the last step.
    first = len(table) % window
    starts = steps[first:collapse:window]
    m, p, c = (
        windowed_mean(table[name].to_numpy(float), window)[first + window - 1 :: window]
        for name in ("loglik_change_correct", "loglik_incorrect", "hidden_similarity")
    )
    # Comparisons with NaN are false.
    erodes = (c > 0) & ~np.isnan(p)
    erodes[1:] &= p[1:] <= p[:-1]
    onsets = {
        "persistent decay": _onset(m < 0, starts),
        "confidence erosion": _onset(erodes, starts),
        # Pair s compares s with s + 1: from the later one of the last wrong pair it may hold.
        "self-amplification": _onset(m[1:] < m[:-1], starts),
    }
    at = None if collapse is None else int(steps[collapse])
    return SpiralTest(onsets, len(m) >= _LEAST, at)


def _onset(holds: np.ndarray, starts: np.ndarray) -> int | None:
    """First step of the window after the last False of `holds`, which may lack the last window."""
    wrong = np.flatnonzero(~holds)
    onset = int(wrong[-1]) + 1 if len(wrong) else 0
    return int(starts[onset]) if len(starts) - onset >= _LEAST else None
