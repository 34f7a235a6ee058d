"""What claims are checked against, what it says of one, and what a rule is."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from llds_core.errors import DataError
from llds_core.reporting.figures import BASELINE
from llds_core.reporting.run_view import StoredRun
from llds_core.reporting.stats import Interval, student_interval

_logger = logging.getLogger("llds_core")
RunsBySeed = Mapping[int, StoredRun]
SEEDS = 3  # without which a mean or a share says nothing


@dataclass(frozen=True)
class Finding:
    """What the evidence says of a claim.

    Attributes:
        holds: whether its rule is met; None when so few runs could not meet it.
        effect: size of the effect with its 95 % interval.
        seeds: seeds it rests on.
        runs: names of the runs it rests on.
    """

    holds: bool | None
    effect: Interval
    seeds: frozenset[int]
    runs: tuple[str, ...]


class Evidence:
    """All that claims are checked against: the finished runs of one profile, and measurements.

    Attributes:
        mechanism: frames of measurements on checkpoints by name.
    """

    def __init__(self, runs: Sequence[StoredRun], mechanism: Mapping[str, pd.DataFrame]) -> None:
        self.mechanism = mechanism
        if len(profiles := sorted({run.profile for run in runs})) > 1:
            raise DataError(f"the runs are of profiles {', '.join(profiles)}: judge one at a time")
        if len({run.window for run in runs}) > 1:
            raise DataError("the runs differ in diagnostics.window: publish them again")
        self.arms: dict[str, dict[int, StoredRun]] = {}
        for run in runs:
            seeds = self.arms.setdefault(run.arm, {})
            if run.seed in seeds:
                raise DataError(f"{run.arm} seed {run.seed} is given twice: keep one run of each")
            if run.is_result:
                seeds[run.seed] = run

    def arm(self, name: str) -> RunsBySeed:
        """Finished runs of an arm by seed; three windows long at least, or collapsed."""
        return {
            seed: run
            for seed, run in sorted(self.arms.get(name, {}).items())
            if run.length >= 3 * run.window or run.collapse is not None
        }

    def collapsing(self, name: str) -> RunsBySeed:
        """Those runs of an arm whose reward collapses."""
        return {
            seed: run
            for seed, run in self.arm(name).items()
            if run.collapse is not None and run.collapse < run.length
        }

    def steps(self) -> int:
        """Rows that the baseline was given; 0 without a run of it."""
        return max((run.given for run in self.arm(BASELINE).values()), default=0)


def published_mechanism(published: Path, profile: str) -> dict[str, pd.DataFrame]:
    """Mechanism tables of the published seeds; empty when there are none.

    Only seeds that were measured alike are put together: those with the most rollouts per question,
    and of these with the most questions. A warning names the seeds that this leaves out.
    """
    folders: dict[tuple[int, int], list[Path]] = {}
    for manifest in sorted((published / profile).glob("mechanism-seed*/manifest.json")):
        values = json.loads(manifest.read_text("utf-8"))
        # Tables without the key are of groups as large as in training at the time.
        measured = (values.get("rollouts", 4), values["questions"])
        folders.setdefault(measured, []).append(manifest.parent)
    chosen = folders.pop(max(folders)) if folders else []
    if folders:
        left = ", ".join(folder.name for others in folders.values() for folder in others)
        _logger.warning("%s: measured on fewer rollouts or questions, left out", left)
    names = {file.stem: None for folder in chosen for file in sorted(folder.glob("*.csv"))}
    files = {name: [folder / f"{name}.csv" for folder in chosen] for name in names}
    return {
        name: pd.concat(map(pd.read_csv, filter(Path.exists, parts)), ignore_index=True)
        for name, parts in files.items()
    }


class Rule(BaseModel):
    """What a claim takes to hold; the first key of its YAML names the rule and what it measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        raise NotImplementedError

    def named_arms(self) -> set[str]:
        """Arms it is about."""
        values = self.model_dump()
        return {
            name
            for key in ("arm", "against", "arms", "longer", "fewer_collapse")
            for name in np.atleast_1d(values.get(key) or [])
        }


class Bounded(Rule):
    """A rule whose interval has to lie above or below a bound."""

    above: float | None = None
    below: float | None = None

    def beyond(self, interval: Interval) -> bool:
        """Whether the whole interval lies on the claimed side."""
        over = self.above is None or interval.low > self.above
        return bool(over and (self.below is None or interval.high < self.below))


def mean_finding(
    values: Mapping[int, float], arms: Sequence[RunsBySeed], verdict: Callable[[Interval], bool]
) -> Finding | None:
    """Finding on the mean of `values` by seed; None below `SEEDS` of them."""
    present = {seed: value for seed, value in values.items() if np.isfinite(value)}
    if len(present) < SEEDS:
        return None
    interval = student_interval([*present.values()])
    runs = [arm[seed] for arm in arms for seed in sorted(present)]
    return finding(verdict(interval), interval, runs)


def finding(holds: bool | None, interval: Interval, runs: Iterable[StoredRun]) -> Finding:
    """Finding that rests on `runs`."""
    runs = list(runs)
    names = tuple(dict.fromkeys(run.stem for run in runs))
    seeds = frozenset(run.seed for run in runs)
    return Finding(None if holds is None else bool(holds), interval, seeds, names)
