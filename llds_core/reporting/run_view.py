"""Stored runs prepared for the rules of `claim_rules`: what is known of one run, and which runs
there are.

A run is counted in *rows*, one a step. Where it collapses is judged by `diagnostics.phases`; a run
that ended because loss or gradient stayed non-finite counts as collapsed at its end, and one that
failed for any other reason is left out. A run that stopped after its collapse is final: what it
would have done later is not known, and is carried on from its last window where two runs are
compared at a step it did not reach.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from llds_core.diagnostics.phases import (
    collapse_step,
    decline_step,
    judged_rows,
    windowed_mean,
)
from llds_core.errors import ConfigError, DataError
from llds_core.reporting.stats import Survival, common_horizon, restricted_steps
from llds_core.reporting.store import Run
from llds_core.runs.identity import diverged

Measureds = Mapping[int, "Measured"]


@dataclass(frozen=True, eq=False)
class Measured:
    """One run and what follows from its metrics.

    Attributes:
        run: the stored run.
        window: steps of the means it is judged on.
    """

    run: Run
    window: int

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Its metrics in the order of steps, indexed 0..n-1."""
        return self.run.metrics.sort_values("step").reset_index(drop=True)

    @cached_property
    def collapse(self) -> int | None:
        """Row at which the reward collapses, or the run diverged; None when it did neither."""
        row = collapse_step(self.rows["reward"], self.window)
        return len(self.rows) if row is None and diverged(self.run.manifest) else row

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

    def setting(self, section: str, key: str) -> Any:
        """A value of its configuration."""
        return self.run.manifest["config"][section][key]

    def step_at(self, row: int | None) -> int | None:
        """Step of a row, None for None; a run that diverged collapsed at the step it never made."""
        if row is None:
            return None
        steps = self.rows["step"]
        return int(steps.iloc[row]) if row < self.length else int(steps.iloc[-1]) + 1

    @property
    def before_collapse(self) -> int:
        """Rows before its collapse; all of them without one."""
        return self.length if self.collapse is None else self.collapse

    def survival(self) -> Survival:
        """Steps before its collapse; without one, those that its length proves free of it.

        A collapse takes two windows to prove, so that the last rows of a run prove nothing.
        """
        if self.collapse is not None:
            return Survival(self.collapse, True)
        return Survival(max(self.length - 2 * self.window + 1, 0), False)

    def known_to(self, row: int) -> bool:
        """Whether it reached `row`, or ended before in a collapse."""
        return self.length >= row or self.collapse is not None

    def collapsed_by(self, row: int) -> bool | None:
        """Whether its first `row` rows prove a collapse; None when it was not watched so long."""
        if self.collapse is not None:
            return min(self.collapse + 2 * self.window, self.length) <= row
        return False if self.length >= row else None

    def tail(self, metric: str, row: int) -> float:
        """Mean of the last window of `metric` that ends before `row`, or where the run ends."""
        return _mean(self.rows[metric].iloc[max(min(row, self.length) - self.window, 0) : row])

    def head(self, metric: str) -> float:
        """Mean of the first window of `metric`."""
        return _mean(self.rows[metric].iloc[: self.window])

    def noise(self, metric: str, row: int) -> float:
        """Standard deviation of a step of `metric` before `row`, whatever its trend: that of
        successive differences over the square root of 2.
        """
        return float(self.rows[metric].iloc[:row].diff().std()) / np.sqrt(2)

    def best(self, metric: str, row: int) -> float:
        """Highest windowed mean of `metric` before `row`; NaN when there is none."""
        means = self.means(metric)[:row]
        return float(np.nanmax(means)) if np.isfinite(means).any() else np.nan

    def means(self, metric: str) -> np.ndarray:
        """Trailing means of `metric` over the window, (rows,)."""
        return windowed_mean(self.rows[metric].to_numpy(float), self.window)

    def leaves(self, metric: str, sign: int) -> bool:
        """Whether the mean of `metric` leaves its maximum (`sign` 1) or its minimum (-1) for good,
        judged on the rows that the phases are judged on.
        """
        end = judged_rows(self.length, self.collapse, self.window)
        return decline_step(sign * self.rows[metric].iloc[:end], self.window) is not None

    def halfway(self, metric: str, sign: int) -> int:
        """Row from which the mean of `metric` is beyond half of its way from its maximum (`sign` 1)
        or minimum (-1) to where it stands when a collapse shows.

        Half of a series' own way is reached at the same time whether it is noisy or not; the first
        step that stands out of the noise comes the earlier the less noise there is.
        """
        means = sign * self.means(metric)[: judged_rows(self.length, self.collapse, self.window)]
        last = means[np.isfinite(means)][-1]
        return int(np.flatnonzero(means >= (np.nanmax(means) + last) / 2)[-1]) + 1

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
        """Highest windowed entropy before `row`, or of the whole run, over that of the first
        window; NaN without a full window, or where that is 0.
        """
        row = self.length if row is None else row
        first, highest = self.head("entropy"), self.best("entropy", row)
        return highest / first if first > 0 else np.nan

    def decline(self, metric: str) -> int | None:
        """Row at which `metric` leaves its maximum for good, judged up to the proof of a collapse;
        None when it does not. Phases see one window less of the likelihood.
        """
        end = None if self.collapse is None else self.collapse + 2 * self.window
        return decline_step(self.rows[metric].iloc[:end], self.window)

    def reward_drop(self) -> int:
        """Row at which the reward of a collapsing run declines, at the latest its collapse."""
        drop = self.decline("reward")
        return self.collapse if drop is None else min(drop, self.collapse)


class Evidence:
    """All that claims are checked against.

    Attributes:
        mechanism: frames of measurements on checkpoints by name.
        window: steps of the means that runs are judged on.

    Raises:
        DataError: for runs of several profiles, or two of one arm and seed.
        ConfigError: when `window` is not positive.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        mechanism: Mapping[str, pd.DataFrame],
        window: int,
    ) -> None:
        if window < 1:
            raise ConfigError(f"window is {window}: runs are judged on at least 1 step")
        self.mechanism, self.window = mechanism, window
        if len(profiles := sorted({run.profile for run in runs})) > 1:
            raise DataError(f"the runs are of profiles {', '.join(profiles)}: judge one at a time")
        self._arms: dict[str, dict[int, Measured]] = {}
        for run in runs:
            seeds = self._arms.setdefault(run.arm, {})
            if run.seed in seeds:
                raise DataError(f"{run.arm} seed {run.seed} is given twice: keep one run of each")
            if run.is_result:
                seeds[run.seed] = Measured(run, window)

    def arm(self, name: str) -> Measureds:
        """Finished runs of an arm by seed; three windows long at least, or collapsed."""
        runs = self._arms.get(name, {})
        return {
            seed: runs[seed]
            for seed in sorted(runs)
            if runs[seed].length >= 3 * self.window or runs[seed].collapse is not None
        }

    def collapsing(self, name: str) -> Measureds:
        """Those runs of an arm whose reward collapses."""
        return {
            seed: run
            for seed, run in self.arm(name).items()
            if run.collapse is not None and run.collapse < run.length
        }

    def baseline_steps(self) -> int:
        """Rows that GRPO was given; 0 without a run of it."""
        return max((run.planned for run in self.arm("grpo").values()), default=0)

    def score(self, run: Measured, checkpoint: str = "best") -> float:
        """Held-out exact match of the `best` or `last` checkpoint of a run within the steps that
        GRPO was given; NaN when it was not measured.
        """
        found = run.run.heldout(checkpoint, within=self.baseline_steps())
        return np.nan if found is None else found

    def grpo_shows(self, outcome: Callable[["Measured"], bool | None]) -> set[int]:
        """Seeds on which GRPO's run shows `outcome`."""
        return {seed for seed, run in self.arm("grpo").items() if outcome(run)}

    def settings(
        self, arms: Sequence[str], prefixes: tuple[str, ...], section: str, key: str
    ) -> list[tuple[float, Measured]]:
        """Runs of `arms`, and of arms whose name starts with a prefix, each with a value of its
        configuration, in its order.
        """
        found = [
            (float(run.setting(section, key)), run)
            for name in self._arms
            if name in arms or name.startswith(prefixes)
            for run in self.arm(name).values()
        ]
        return sorted(found, key=lambda pair: pair[0])


def before_collapse(table: pd.DataFrame, runs: Iterable[Measured]) -> pd.DataFrame:
    """Leave out the checkpoints that a run reached once its reward had collapsed.

    Args:
        table: measurements with columns `method`, `seed` and `step`.
        runs: where collapses are looked up; what was measured without one of these is kept.
    """
    ends = {
        (run.run.arm, run.run.seed): run.step_at(run.collapse)
        for run in runs
        if run.collapse is not None
    }
    keys = zip(table["method"], table["seed"], strict=True)
    return table[table["step"].to_numpy() < [ends.get(key, np.inf) for key in keys]]


def paired_survival(first: Measureds, second: Measureds) -> dict[int, float]:
    """Steps that `first` survives beyond `second` on each seed they share, up to the horizon to
    which all these runs were watched.
    """
    seeds = sorted(first.keys() & second.keys())
    survivals = [[arm[seed].survival() for seed in seeds] for arm in (first, second)]
    horizon = common_horizon([*survivals[0], *survivals[1]])
    steps = [restricted_steps(each, horizon) for each in survivals]
    return dict(zip(seeds, steps[0] - steps[1], strict=True))


def _mean(values: pd.Series) -> float:
    return float(values.mean())
