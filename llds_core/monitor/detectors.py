"""Detectors: pure functions from series to a score per row, and when a score is an alarm.

A row is what a step logged. Scores look back only, so that a log gives the same alarms while it
grows as when it is whole; the higher a score, the worse. They are computed on trailing means of
three of the rows that have a value, from the third of them on, and count from the sixth: the first
rows are what later ones are compared with. Where a score stands in relation to the start, the start
is the first of these means. Thresholds stand in `presets/alarm_evidence.yaml`, all else that an
alarm is in `presets/alarms.yaml`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import yaml

from llds_core.config.load import PRESETS
from llds_core.diagnostics.phases import WINDOW, windowed_mean
from llds_core.monitor.training_log import TrainingLog

FIRST = 6  # row that may be the first to alarm, of what needs others to compare with
SEVERITIES = ("info", "warning", "critical")
PATIENCE = 6  # rows that an alarm stands before `stop_at` ends a run, as of the collapse itself
_EMPTY = 1e-12
_MARGIN = 2.0  # standard errors, of a fall that is no chance
_level = partial(windowed_mean, window=WINDOW)


def _starts(means: np.ndarray) -> np.ndarray:
    """The first mean that is not zero, from its row on; NaN in the rows that cannot know it."""
    starts = np.full(len(means), np.nan)
    known = np.flatnonzero(np.isfinite(means) & (np.abs(means) > _EMPTY))
    if len(known):
        starts[known[0] :] = means[known[0]]
    return starts


def over_start(values: np.ndarray) -> np.ndarray:
    """Means of three rows over the first of them (n,)."""
    means = _level(values)
    return means / _starts(means)


def clip_saturation(clip_fraction: np.ndarray) -> np.ndarray:
    """Share of tokens outside the clip range: how far the policy moves on one rollout.

    Source: PPO's own diagnostic (Schulman et al., 2017); as an alarm, measured here.
    """
    return _level(clip_fraction)


def entropy_rise(entropy: np.ndarray) -> np.ndarray:
    """Entropy over that of the start. Source: arXiv 2512.04220, Fig. 4: it surges in the spiral."""
    return over_start(entropy)


def entropy_fall(entropy: np.ndarray) -> np.ndarray:
    """Entropy of the start over the present one. Source: arXiv 2505.22617, entropy collapse."""
    means = _level(entropy)
    return _starts(means) / np.maximum(means, _EMPTY)


def kl_drift(kl: np.ndarray) -> np.ndarray:
    """Divergence from the start policy, in nats per token. Source: arXiv 2009.01325."""
    return _level(kl)


def likelihood_displacement(loglik_correct: np.ndarray) -> np.ndarray:
    """Fall of the likelihood of correct responses below its best, in nats per token.

    Source: arXiv 2512.04220, section 5.1.
    """
    means = _level(loglik_correct)
    return np.fmax.accumulate(means) - means


def reward_drop(reward: np.ndarray) -> np.ndarray:
    """Share of the best reward that is lost; NaN while the best is not positive, and from the first
    negative value on: of a reward whose zero is no failure, no share can be lost.

    Source: arXiv 2512.04220, Fig. 2.
    """
    means = _level(reward)
    best, told = np.fmax.accumulate(means), np.fmin.accumulate(reward) >= 0
    lost = np.full(len(means), np.nan)
    return np.divide(best - means, best, out=lost, where=told & (best > _EMPTY))


def beyond_noise(reward: np.ndarray, threshold: float) -> bool:
    """Whether the fall of `reward` (n,) from its best is larger than `threshold` of the best and
    than chance makes it, in means over k = 3, 6, 12, … rows, at most half of all.

    The noise s of a row is the root of half the mean squared difference of successive rows. Of n/k
    means of a reward that does not change, the highest and the lowest differ by about
    sqrt(4 ln(n/k)) standard errors s sqrt(2/k) of a difference; the fall must exceed that by two.

    Source: public logs (`docs/monitor.md`), on most of which a fall in means of three was noise.
    """
    known = reward[np.isfinite(reward)]
    if not len(known) or known.max() <= 0:
        return False
    known = known / known.max()
    noise, rows = np.sqrt(np.mean(np.diff(known) ** 2) / 2), WINDOW
    while 2 * rows <= len(known):
        means = np.convolve(known, np.full(rows, 1 / rows), "valid")
        best, error = means.max(), noise * np.sqrt(2 / rows)
        by_chance = (np.sqrt(4 * np.log(len(known) / rows)) + _MARGIN) * error
        if best - means[-1] > max(threshold * best, by_chance):
            return True
        rows *= 2
    return False


def behaviour_drift(response_length: np.ndarray, valid_searches: np.ndarray) -> np.ndarray:
    """Larger of two absolute logarithms: length and searches over those of the start.

    Source: arXiv 2512.04220, Fig. 4, which says that both stay flat.
    """
    ratios = [np.maximum(over_start(each), 1e-3) for each in (response_length, valid_searches)]
    return np.fmax(*(np.abs(np.log(ratio)) for ratio in ratios))


def zero_variance(zero_variance_groups: np.ndarray) -> np.ndarray:
    """Share of groups whose rewards are all equal, which teach nothing; 1 for groups of one.

    Source: DAPO, arXiv 2503.14476, section 3.2.
    """
    return _level(zero_variance_groups)


def sampler_mismatch(sampler_gap: np.ndarray) -> np.ndarray:
    """Difference of the sampler's and the trainer's log-probabilities over that of the start.

    Source: TRL's and verl's corrections of it; its scale depends on numerics, its growth does not.
    """
    return over_start(sampler_gap)


def reuse(updates_per_rollout: np.ndarray) -> np.ndarray:
    """Updates made on a rollout. Source: the desk study's factor with the clearest effect."""
    return np.asarray(updates_per_rollout, float)


def inert_penalty(llds_penalty: np.ndarray) -> np.ndarray:
    """1 while an LLDS penalty has been zero in every row, else 0.

    Source: on the first update of a rollout old and new policy are one, and the penalty is zero.
    """
    known = np.nan_to_num(llds_penalty, nan=0.0)
    return np.where(np.maximum.accumulate(np.abs(known)) > 0, 0.0, 1.0)


def not_finite(nonfinite: np.ndarray) -> np.ndarray:
    """Logged values of a row that are NaN or infinite, as `training_log.to_log` counts them: a run
    that goes on with them is never healthy. Source: arithmetic, no measurement.
    """
    return np.asarray(nonfinite, float)


ALARMS: dict[str, Any] = yaml.safe_load((PRESETS / "alarms.yaml").read_text("utf-8"))
EVIDENCE: dict[str, Any] = yaml.safe_load((PRESETS / "alarm_evidence.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class Detector:
    """A score and when it is an alarm. The score takes columns of a log, each (n,) and named as its
    arguments, to scores (n,); NaN is no alarm.
    """

    name: str
    score: Callable[..., np.ndarray]
    severity: str = "info"
    threshold: float = np.inf  # above it a score is an alarm
    first: int = FIRST  # row, counted from 1, from which it may alarm

    @classmethod
    def of(cls, score: Callable[..., np.ndarray]) -> "Detector":
        """A score with the severity and the threshold that the presets give it."""
        name = score.__name__
        preset = ALARMS["detectors"].get(name, {"severity": "info"})
        threshold = EVIDENCE["detectors"].get(name, {}).get("threshold", np.inf)
        first = preset.get("first", FIRST)
        return cls(name, score, preset["severity"], float(threshold), first)

    @property
    def columns(self) -> list[str]:
        """The columns it reads."""
        return [*signature(self.score).parameters]

    def scores(self, log: TrainingLog) -> np.ndarray:
        """Scores (n,) of the rows of a log; all NaN where it lacks the columns."""
        found = np.full(len(log.table), np.nan)
        columns = [log.column(name) for name in self.columns]
        # Rows without a value stand for nothing: some trainers log a metric once per rollout.
        known = np.isfinite(columns).any(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.array(self.score(*(values[known] for values in columns)), float)
        scores[: self.first - 1] = np.nan
        found[known] = scores
        return found

    def reads(self, log: TrainingLog) -> bool:
        """Whether the log has any of its columns."""
        return any(name in log.table for name in self.columns)

    def alarm_row(self, scores: np.ndarray) -> int | None:
        """First row, counted from 0, whose score of `scores` (n,) is above the threshold."""
        above = np.flatnonzero(scores > self.threshold)
        return int(above[0]) if len(above) else None


# In the order of the preset, in which one of them names the cause.
DETECTORS = {name: Detector.of(globals()[name]) for name in ALARMS["detectors"]}
