"""One stored run, and everything that is derived from its metrics.

A run is counted in *rows*, one per step. Where it collapses is judged by `diagnostics.phases`; a
run that ended because loss or gradient stayed non-finite counts as collapsed at its end. A run that
stopped after its collapse is final: what it would have done later is not known, and it is carried
on from its last window where two runs are compared at a step it did not reach.

What is said to come before a collapse is measured up to the collapse, or to the row at which the
reward declines for good. A value that a run cannot show is NaN, an outcome None.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from llds_core.diagnostics.phases import (
    Phase,
    collapse_step,
    decline_step,
    detect_phases,
    judged_rows,
    windowed_mean,
)
from llds_core.diagnostics.spiral import SpiralTest, death_spiral
from llds_core.reporting.stats import Survival, common_horizon, restricted_steps
from llds_core.reporting.store import StoredRun
from llds_core.runs.identity import diverged

Measureds = Mapping[int, "Measured"]  # by seed

SURGE = 2.0  # entropy over that of the first window
# The paper sees incorrect responses less likely from step 80 of about 200 before the collapse on.
_EARLY_SHARE = 0.4


@dataclass(frozen=True, eq=False)
class Measured:
    """A stored run and what follows from its metrics."""

    run: StoredRun

    @property
    def window(self) -> int:
        """Steps of the means it is judged on."""
        return self.run.window

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Its metrics in the order of steps, indexed 0..n-1."""
        return self.run.metrics.sort_values("step").reset_index(drop=True)

    @property
    def length(self) -> int:
        """Rows it has."""
        return len(self.rows)

    @property
    def planned(self) -> int:
        """Rows it was given: more than it has when it ended early."""
        if self.run.status == "complete":
            return self.length
        return max(self.length, self.run.planned)

    @property
    def name(self) -> str:
        """`<arm>-seed<k>`."""
        return f"{self.run.arm}-seed{self.run.seed}"

    def minutes(self) -> float:
        """Minutes from its start to its end."""
        began, ended = (
            datetime.fromisoformat(self.run.manifest[key]) for key in ("started", "finished")
        )
        return (ended - began).total_seconds() / 60

    def setting(self, section: str, key: str) -> Any:
        """A value of its configuration."""
        return self.run.manifest["config"][section][key]

    def step_at(self, row: int | None) -> int | None:
        """Step of a row, None for None; a run that diverged collapsed at the step it never made."""
        if row is None:
            return None
        steps = self.rows["step"]
        return int(steps.iloc[row]) if row < self.length else int(steps.iloc[-1]) + 1

    # Means over windows.

    def means(self, metric: str) -> np.ndarray:
        """Trailing means of `metric` over the window, (rows,)."""
        return windowed_mean(self.rows[metric].to_numpy(float), self.window)

    def head(self, metric: str) -> float:
        """Mean of the first window of `metric`."""
        return float(self.rows[metric].iloc[: self.window].mean())

    def tail(self, metric: str, row: int | None = None) -> float:
        """Mean of the last window of `metric` before `row`, or of the run where it ends earlier."""
        row = self.length if row is None else row
        first = max(min(row, self.length) - self.window, 0)
        return float(self.rows[metric].iloc[first:row].mean())

    def best(self, metric: str, row: int | None = None) -> float:
        """Highest windowed mean of `metric` before `row`; NaN when there is none."""
        means = self.means(metric)[:row]
        return float(np.nanmax(means)) if np.isfinite(means).any() else np.nan

    def last(self, metric: str) -> float:
        """Last windowed mean of `metric`; NaN when there is none."""
        means = self.means(metric)
        means = means[np.isfinite(means)]
        return float(means[-1]) if len(means) else np.nan

    def noise(self, metric: str, row: int) -> float:
        """Standard deviation of a step of `metric` before `row`, whatever its trend: that of
        successive differences over the square root of 2.
        """
        return float(self.rows[metric].iloc[:row].diff().std()) / np.sqrt(2)

    def lowest_after_best(self) -> float:
        """Lowest windowed reward from the best one on, as a share of it: how far it fell, whether
        or not by the rule of the collapse; NaN without a full window.
        """
        means = self.means("reward")
        if not np.isfinite(means).any():
            return np.nan
        top = int(np.nanargmax(means))
        return float(np.nanmin(means[top:]) / means[top]) if means[top] > 0 else np.nan

    def entropy_growth(self, row: int | None = None) -> float:
        """Highest windowed entropy before `row` over that of the first window; NaN without a full
        window, or where that is 0.
        """
        first, highest = self.head("entropy"), self.best("entropy", row)
        return highest / first if first > 0 else np.nan

    # The collapse, and what comes before it.

    @cached_property
    def collapse(self) -> int | None:
        """Row at which the reward collapses, or the run diverged; None when it did neither."""
        row = collapse_step(self.rows["reward"], self.window)
        return self.length if row is None and diverged(self.run.manifest) else row

    @property
    def collapse_step(self) -> int | None:
        """Step of the collapse."""
        return self.step_at(self.collapse)

    @property
    def before_collapse(self) -> int:
        """Rows before its collapse; all of them without one."""
        return self.length if self.collapse is None else self.collapse

    @cached_property
    def phases(self) -> list[Phase]:
        """Its phases, see `diagnostics.phases`."""
        return detect_phases(self.run.metrics, window=self.window)

    def phase_start(self, name: str) -> int | None:
        """First step of a phase, None when it has no such phase."""
        return next((phase.first for phase in self.phases if phase.name == name), None)

    @cached_property
    def spiral(self) -> SpiralTest:
        """The test of Definition 5.1."""
        return death_spiral(self.run.metrics, window=self.window)

    def collapsed_by(self, row: int) -> bool | None:
        """Whether its first `row` rows prove a collapse; None when it was not watched so long."""
        if self.collapse is not None:
            return min(self.collapse + 2 * self.window, self.length) <= row
        return False if self.length >= row else None

    def known_to(self, row: int) -> bool:
        """Whether it reached `row`, or ended before in a collapse."""
        return self.length >= row or self.collapse is not None

    def survival(self) -> Survival:
        """Steps before its collapse; without one, those that its length proves free of it.

        A collapse takes two windows to prove, so that the last rows of a run prove nothing.
        """
        if self.collapse is not None:
            return Survival(self.collapse, True)
        return Survival(max(self.length - 2 * self.window + 1, 0), False)

    def collapse_kind(self) -> str:
        """Whether correct responses lost likelihood before the collapse; empty without one.

        "likelihood lost" when the mean of the last window before the collapse is below that of the
        first by more than 2 standard deviations of such a difference; else "likelihood kept". The
        decline by the rule of `phases` takes two windows to prove, more than an early collapse
        leaves.
        """
        if self.collapse is None:
            return ""
        metric = "loglik_correct"
        noise = self.noise(metric, self.collapse) * np.sqrt(2 / self.window)
        lost = self.tail(metric, self.collapse) - self.head(metric) < -2 * noise
        return "likelihood lost" if lost else "likelihood kept"

    def decline(self, metric: str) -> int | None:
        """Row at which `metric` leaves its maximum for good, judged up to the proof of a collapse;
        None when it does not. Phases see one window less of the likelihood.
        """
        end = None if self.collapse is None else self.collapse + 2 * self.window
        return decline_step(self.rows[metric].iloc[:end], self.window)

    def leaves(self, metric: str, sign: int) -> bool:
        """Whether the mean of `metric` leaves its maximum (`sign` 1) or its minimum (-1) for good,
        judged on the rows that the phases are judged on.
        """
        end = judged_rows(self.length, self.collapse, self.window)
        return decline_step(sign * self.rows[metric].iloc[:end], self.window) is not None

    def halfway(self, metric: str, sign: int = 1) -> int:
        """Row from which the mean of `metric` is beyond half of its way from its maximum (`sign` 1)
        or minimum (-1) to where it stands when a collapse shows.

        Half of a series' own way is reached at the same time whether it is noisy or not; the first
        step that stands out of the noise comes the earlier the less noise there is.
        """
        means = sign * self.means(metric)[: judged_rows(self.length, self.collapse, self.window)]
        last = means[np.isfinite(means)][-1]
        return int(np.flatnonzero(means >= (np.nanmax(means) + last) / 2)[-1]) + 1

    # What claims are about.

    def early_rise(self) -> float:
        """Mean reward of the second and third window, no step of a collapse counted, minus that of
        the first rollout, which the start policy made. Which windows is not chosen by what they
        show: the best one rises by chance alone.
        """
        reward = self.rows["reward"]
        end = min(3 * self.window, self.before_collapse)
        return float(reward.iloc[self.window : end].mean() - reward.iloc[0])

    def rises_then_collapses(self) -> bool:
        """Its reward collapses after its mean rose by more than 2 standard deviations of a step."""
        if self.collapse is None:
            return False
        rise = self.best("reward", self.collapse) - self.head("reward")
        return bool(rise > 2 * self.noise("reward", self.collapse))

    def all_phases(self) -> bool | None:
        """A collapsing run goes through every phase; their order is part of their definition."""
        names = [phase.name for phase in self.phases]
        every = ["stagnation", "decay", "acceleration", "collapse"]
        return names == every if "collapse" in names else None

    def likelihood_gap(self) -> float:
        """Likelihood of correct minus that of incorrect responses after the early steps, nats per
        token.
        """
        end = self.before_collapse
        rows = self.rows.iloc[int(_EARLY_SHARE * end) : end]
        return float((rows["loglik_correct"] - rows["loglik_incorrect"]).mean())

    def likelihood_gap_growth(self) -> float:
        """Growth of `likelihood_gap` since the first window, nats per token."""
        start = self.head("loglik_correct") - self.head("loglik_incorrect")
        return self.likelihood_gap() - start

    def first_action_gap(self) -> float:
        """Likelihood of later minus that of first actions before the collapse, nats per token."""
        end = self.before_collapse
        return self.tail("loglik_correct_later", end) - self.tail("loglik_correct_first", end)

    def first_action_fall(self) -> float:
        """Growth of `first_action_gap` since the first window, nats per token."""
        start = self.head("loglik_correct_later") - self.head("loglik_correct_first")
        return self.first_action_gap() - start

    def change(self, metric: str) -> float:
        """Change of a metric from the first window of the run to its last."""
        return self.tail(metric) - self.head(metric)

    def relative_change(self, *metrics: str) -> float:
        """Relative change of a metric from the first window of a collapsing run to the last before
        its reward drops; of several metrics the largest, whatever its sign.
        """
        drop = self.decline("reward")
        drop = self.collapse if drop is None else min(drop, self.collapse)
        if drop < 2 * self.window:
            return np.nan
        changes = [self.tail(metric, drop) / self.head(metric) - 1 for metric in metrics]
        return changes[0] if len(changes) == 1 else float(np.max(np.abs(changes)))

    def gradient_growth(self) -> float:
        """Logarithm of the highest mean gradient norm around the collapse over the mean of the
        first third of the steps before it.
        """
        start, end = max(self.collapse - self.window, 0), self.collapse + 2 * self.window
        late = self.means("grad_norm")[start:end]
        early = self.rows["grad_norm"].iloc[: max(self.collapse // 3, self.window)].mean()
        return float(np.log(np.nanmax(late) / early)) if np.isfinite(late).any() else np.nan


# Pairs of runs of one seed.


def final_gain(run: Measured, other: Measured) -> float:
    """Windowed reward at the last step that both runs have, minus the other's."""
    end = min(run.length, other.length)
    return run.tail("reward", end) - other.tail("reward", end)


def best_gain(run: Measured, other: Measured) -> float:
    """Best windowed reward within the steps both were given, minus the other's.

    A run that collapses has fewer windows to be best in, as its best checkpoint has in the paper.
    """
    end = min(run.planned, other.planned)
    known = run.known_to(end) and other.known_to(end)
    return run.best("reward", end) - other.best("reward", end) if known else np.nan


def likelihood_kept(run: Measured, other: Measured) -> float:
    """Change of the likelihood of correct responses until the other collapses, minus the other's,
    nats per token.
    """
    end = other.before_collapse
    if run.length < end:
        return np.nan
    changes = [
        each.tail("loglik_correct", end) - each.head("loglik_correct") for each in (run, other)
    ]
    return changes[0] - changes[1]


def more_searches(run: Measured, other: Measured) -> float:
    """Searches in the last window before a collapse, within the steps both were given, minus the
    other's.
    """
    end = min(run.planned, other.planned)
    own, others = (
        each.tail("valid_searches", min(end, each.before_collapse)) for each in (run, other)
    )
    return own - others


def paired_survival(first: Measureds, second: Measureds) -> dict[int, float]:
    """Steps that `first` survives beyond `second` on each seed they share, up to the horizon to
    which all these runs were watched.
    """
    seeds = sorted(first.keys() & second.keys())
    survivals = [[arm[seed].survival() for seed in seeds] for arm in (first, second)]
    horizon = common_horizon([*survivals[0], *survivals[1]])
    steps = [restricted_steps(each, horizon) for each in survivals]
    return dict(zip(seeds, steps[0] - steps[1], strict=True))


def before_collapse(table: pd.DataFrame, runs: Iterable[Measured]) -> pd.DataFrame:
    """Leave out the checkpoints that a run reached once its reward had collapsed.

    Args:
        table: measurements with columns `method`, `seed` and `step`.
        runs: where collapses are looked up; what was measured without one of these is kept.
    """
    ends = {
        (run.run.arm, run.run.seed): run.collapse_step for run in runs if run.collapse is not None
    }
    keys = zip(table["method"], table["seed"], strict=True)
    return table[table["step"].to_numpy() < [ends.get(key, np.inf) for key in keys]]
