"""One stored run, and everything that is derived from its metrics.

A run is counted in *rows*, one per step. Where it collapses is judged by `diagnostics.phases`; a
run that ended because loss or gradient stayed non-finite counts as collapsed at its end. A run that
stopped after its collapse is final: what it would have done later is not known, and it is carried
on from its last window where two runs are compared at a step it did not reach.

What is said to come before a collapse is measured up to the collapse, or to the row at which the
reward declines for good. A value that a run cannot show is NaN, an outcome None.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llds_core.diagnostics.phases import (
    Phase,
    collapse_row,
    decline_row,
    detect_phases,
    judged_rows,
    lowest_after_best,
    windowed_mean,
)
from llds_core.diagnostics.spiral import SpiralTest, death_spiral
from llds_core.runs import FINAL
from llds_core.runs.identity import diverged

BASELINE = "grpo"
SURGE = 2.0  # entropy over that of the first window
EARLY = (3, 15)  # steps on which the change of correct responses is compared


def _from_manifest(key: str) -> Any:
    return property(lambda run: run.manifest[key])


def _from_config(section: str, key: str) -> Any:
    return property(lambda run: run.setting(section, key))


@dataclass(frozen=True, eq=False)
class StoredRun:
    """One stored run, finished or not, published or as it was made, and what follows from it.

    `manifest` says what it is and how it was made; `metrics` have one row per step, one column per
    metric, NaN where nothing was measured.
    """

    path: Path
    manifest: dict[str, Any]
    metrics: pd.DataFrame

    profile = _from_manifest("profile")
    method = _from_manifest("method")
    seed = _from_manifest("seed")
    status = _from_manifest("status")
    window = _from_config("diagnostics", "window")  # steps of the means it is judged on
    planned = _from_config("training", "steps")  # steps it was to make

    @property
    def arm(self) -> str:
        """Its arm in a study; a run outside of studies is an arm by its method."""
        return self.manifest.get("arm", self.method)

    @property
    def label(self) -> str:
        """How its study calls its arm; empty outside of studies."""
        return self.manifest.get("label", "")

    @property
    def start(self) -> str:
        """Digest of the policy it began at; empty where an old manifest does not say."""
        return self.manifest.get("policy", "")

    @property
    def name(self) -> str:
        """`<profile>/<arm>/seed<k>`."""
        return f"{self.profile}/{self.arm}/seed{self.seed}"

    @property
    def key(self) -> dict[str, Any]:
        """`profile`, `method` (its arm) and `seed`: how a row of a table names it."""
        return {"profile": self.profile, "method": self.arm, "seed": self.seed}

    def setting(self, section: str, key: str) -> Any:
        """A value of its configuration."""
        return self.manifest["config"][section][key]

    @property
    def is_result(self) -> bool:
        """Whether it ended as a run may: complete, collapsed, or diverged."""
        return self.status in FINAL and (self.status != "failed" or diverged(self.manifest))

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of what determines the run: configuration, seed and code."""
        keys = ("profile", "method", "seed", "config_hash", "git_commit", "git_diff_sha256")
        parts = [self.manifest.get(key) for key in keys]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def minutes(self) -> float:
        """Minutes from its start to its end."""
        ends = [datetime.fromisoformat(self.manifest[key]) for key in ("started", "finished")]
        return (ends[1] - ends[0]).total_seconds() / 60

    @property
    def evaluation(self) -> dict[str, Any]:
        """Held-out results on test questions by checkpoint (`best`, `last`, of the first steps of a
        long run `best-30`, `last-30`, of its start policy `start`); empty when not evaluated.
        """
        if "evaluation" in self.manifest:
            return self.manifest["evaluation"]
        steps = set(self.path.glob("evaluation-step-*"))
        files = sorted(set(self.path.glob("evaluation-*-test.json")) - steps)
        names = [file.stem.removeprefix("evaluation-").removesuffix("-test") for file in files]
        return {n: json.loads(at.read_text("utf-8")) for n, at in zip(names, files, strict=True)}

    def heldout(
        self,
        checkpoint: str = "best",
        mode: str = "greedy",
        kind: str = "all",
        *,
        within: int | None = None,
    ) -> float | None:
        """Exact match on test questions of a kind, None when it was not measured. `mode` is
        `greedy`, `greedy_with_failures` or `sampled_1`; with `within` only checkpoints of so many
        first steps count.
        """
        results = self.evaluation.get(checkpoint)
        if within is not None and self.planned > within:
            # The best of all steps is the best of the first ones when it is among them, and so is
            # the last one of a run that ended among them.
            step = int(results["checkpoint"].rpartition("-")[2]) if results else np.inf
            ended = self.metrics["step"].max() <= within
            early = results if step <= within and (checkpoint == "best" or ended) else None
            results = self.evaluation.get(f"{checkpoint}-{within}", early)
        if not results or kind not in results["results"].get(mode, {}):
            return None
        return round(results["results"][mode][kind]["em"], 4)

    def first(self, steps: int | None) -> "StoredRun":
        """The run as it was after so many steps; all of it for None."""
        if steps is None:
            return self
        return replace(self, metrics=self.metrics[self.metrics["step"] <= steps])

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Its metrics in the order of steps, indexed 0..n-1."""
        return self.metrics.sort_values("step").reset_index(drop=True)

    @property
    def length(self) -> int:
        """Rows it has."""
        return len(self.metrics)

    @property
    def given(self) -> int:
        """Rows it was given: more than it has when it ended early."""
        return self.length if self.status == "complete" else max(self.length, self.planned)

    def step_at(self, row: int | None) -> int | None:
        """Step of a row, None for None; a run that diverged collapsed at the step it never made."""
        if row is None:
            return None
        steps = self.rows["step"]
        return int(steps.iloc[row]) if row < self.length else int(steps.iloc[-1]) + 1

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

    def early_mean(self, metric: str, less: str = "") -> float:
        """Mean of `metric`, less that of another, over `EARLY`."""
        rows = self.rows[self.rows["step"].between(*EARLY)]
        return float((rows[metric] - (rows[less] if less else 0)).mean())

    def change(self, metric: str, row: int | None = None) -> float:
        """Change of `metric` from the first window of the run to the last before `row`."""
        return self.tail(metric, row) - self.head(metric)

    def best(self, metric: str, row: int | None = None) -> float:
        """Highest windowed mean of `metric` before `row`; NaN when there is none."""
        return float(pd.Series(self.means(metric)[:row]).max())

    def last(self, metric: str) -> float:
        """Last windowed mean of `metric`; NaN when there is none."""
        return float(pd.Series(self.means(metric)).ffill().iloc[-1])

    def noise(self, metric: str, row: int) -> float:
        """Standard deviation of a step of `metric` before `row`, whatever its trend: that of
        successive differences over the square root of 2.
        """
        return float(self.rows[metric].iloc[:row].diff().std()) / np.sqrt(2)

    def lowest_after_best(self) -> float:
        """How far its reward fell, see `diagnostics.phases.lowest_after_best`."""
        return lowest_after_best(self.rows["reward"].to_numpy(float), self.window)

    def entropy_growth(self, row: int | None = None) -> float:
        """Highest windowed entropy before `row` over that of the first window; NaN without a full
        window, or where that is 0.
        """
        first, highest = self.head("entropy"), self.best("entropy", row)
        return highest / first if first > 0 else np.nan

    # The collapse, and what comes before it.

    @cached_property
    def collapse(self) -> int | None:
        """Row at which the reward collapses, or updates stayed non-finite; None when neither. A run
        that dynamic sampling left without groups has ended and not collapsed.
        """
        row = collapse_row(self.rows["reward"].to_numpy(float), self.window)
        broke = diverged(self.manifest) and "not finite" in self.manifest["reason"]
        return self.length if row is None and broke else row

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
        return detect_phases(self.metrics, window=self.window)

    @cached_property
    def spiral(self) -> SpiralTest:
        """The test of Definition 5.1."""
        return death_spiral(self.metrics, window=self.window)

    def collapsed_by(self, row: int) -> bool | None:
        """Whether its first `row` rows prove a collapse; None when it was not watched so long."""
        if self.collapse is not None:
            return min(self.collapse + 2 * self.window, self.length) <= row
        return False if self.length >= row else None

    def known_to(self, row: int) -> bool:
        """Whether it reached `row`, or ended before in a collapse."""
        return self.length >= row or self.collapse is not None

    def collapse_kind(self) -> str:
        """Whether correct responses lost likelihood before the collapse; empty without one.

        "likelihood lost" when the mean of the last window before the collapse is below that of the
        first by more than 2 standard deviations of such a difference; else "likelihood kept". The
        decline by the rule of `phases` takes two windows to prove, more than an early collapse
        leaves.
        """
        if self.collapse is None:
            return ""
        noise = self.noise("loglik_correct", self.collapse) * np.sqrt(2 / self.window)
        lost = self.change("loglik_correct", self.collapse) < -2 * noise
        return "likelihood lost" if lost else "likelihood kept"

    def decline(self, metric: str) -> int | None:
        """Row at which `metric` leaves its maximum for good, judged up to the proof of a collapse;
        None when it does not. Phases see one window less of the likelihood.
        """
        end = None if self.collapse is None else self.collapse + 2 * self.window
        return decline_row(self.rows[metric].to_numpy(float)[:end], self.window)

    def leaves(self, metric: str, sign: int) -> bool:
        """Whether the mean of `metric` leaves its maximum (`sign` 1) or its minimum (-1) for good,
        judged on the rows that the phases are judged on.
        """
        end = judged_rows(self.length, self.collapse, self.window)
        return decline_row(sign * self.rows[metric].to_numpy(float)[:end], self.window) is not None

    def halfway(self, metric: str, sign: int = 1) -> int:
        """Row from which the mean of `metric` is beyond half of its way from its maximum (`sign` 1)
        or minimum (-1) to where it stands when a collapse shows.

        Half of a series' own way is reached at the same time whether it is noisy or not; the first
        step that stands out of the noise comes the earlier the less noise there is.
        """
        means = sign * self.means(metric)[: judged_rows(self.length, self.collapse, self.window)]
        last = means[np.isfinite(means)][-1]
        return int(np.flatnonzero(means >= (np.nanmax(means) + last) / 2)[-1]) + 1

    def rises_then_collapses(self) -> bool:
        """Its reward collapses after its mean rose by more than 2 standard deviations of a step."""
        if self.collapse is None:
            return False
        rise = self.best("reward", self.collapse) - self.head("reward")
        return bool(rise > 2 * self.noise("reward", self.collapse))


def before_collapse(table: pd.DataFrame, runs: Iterable[StoredRun]) -> pd.DataFrame:
    """Leave out the checkpoints that one of `runs` reached once its reward had collapsed. `table`
    has columns `method`, `seed` and `step`; what was measured of other runs is kept.
    """
    ends = {(run.arm, run.seed): run.collapse_step for run in runs if run.collapse is not None}
    keys = zip(table["method"], table["seed"], strict=True)
    return table[table["step"].to_numpy() < [ends.get(key, np.inf) for key in keys]]


def full_length(runs: Iterable[StoredRun]) -> list[StoredRun]:
    """Leave out runs that were planned shorter than every run of GRPO: they make its first steps
    again to measure more of them, and what became of them later is not known. Without a run of
    GRPO, all.
    """
    found = [*runs]
    usual = min((run.planned for run in found if run.arm == BASELINE), default=0)
    return [run for run in found if run.planned >= usual]


def usual_steps(runs: Iterable[StoredRun]) -> int:
    """Steps that every run of full length was given, see `full_length`; 0 without runs."""
    return min((run.planned for run in full_length(runs)), default=0)


def same_steps(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Runs as they were after the steps that every one of them was given."""
    return [run.first(usual_steps(runs)) for run in runs]


def by_method(runs: Iterable[StoredRun]) -> dict[str, list[StoredRun]]:
    """Runs by arm, both in their order."""
    found = [*runs]
    return {arm: [r for r in found if r.arm == arm] for arm in dict.fromkeys(r.arm for r in found)}
