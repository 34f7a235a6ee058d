"""What claims are checked against: the finished runs of one profile, and measurements."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from llds_core.diagnostics.summary import frequent_rounds
from llds_core.errors import DataError
from llds_core.reporting.figures import BASELINE
from llds_core.reporting.run_view import StoredRun, before_collapse

_logger = logging.getLogger("llds_core")
RunsBySeed = Mapping[int, StoredRun]


class Evidence:
    """Finished runs by arm and seed, and measurements on their checkpoints.

    Args:
        runs: runs of one profile. Unfinished ones are left out, and those that failed for another
            reason than divergence.
        mechanism: frames by name, as `diagnostics.measure` writes them.
    """

    def __init__(self, runs: Sequence[StoredRun], mechanism: Mapping[str, pd.DataFrame]) -> None:
        self._mechanism = mechanism
        if len(profiles := sorted({run.profile for run in runs})) > 1:
            raise DataError(f"the runs are of profiles {', '.join(profiles)}: judge one at a time")
        if len({run.window for run in runs}) > 1:
            raise DataError("the runs differ in diagnostics.window: publish them again")
        self._arms: dict[str, dict[int, StoredRun]] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            seeds = self._arms.setdefault(run.arm, {})
            if run.seed in seeds:
                raise DataError(f"{run.arm} seed {run.seed} is given twice: keep one run of each")
            if run.is_result:
                seeds[run.seed] = run

    def arm(self, name: str) -> RunsBySeed:
        """Runs of an arm by seed; three windows long at least, or collapsed."""
        return {
            seed: run
            for seed, run in self._arms.get(name, {}).items()
            if run.length >= 3 * run.window or run.collapse is not None
        }

    def collapsing(self, name: str) -> RunsBySeed:
        """Those runs of an arm whose reward collapses."""
        runs = self.arm(name).items()
        return {s: run for s, run in runs if run.collapse is not None and run.collapse < run.length}

    @cached_property
    def steps(self) -> int:
        """Rows that the baseline was given; 0 without a run of it."""
        return max((run.given for run in self.arm(BASELINE).values()), default=0)

    def measured(self, arm: str, name: str, optimizer: str, *columns: str) -> pd.DataFrame:
        """Rows of a frame on checkpoints of an arm before the collapse; none without the columns.

        A collapsed policy hardly has a correct response whose likelihood could fall.
        """
        needed = ["method", "seed", "step", *columns]
        frame = self._mechanism.get(name, pd.DataFrame())
        if not set(needed) <= set(frame.columns):
            return pd.DataFrame(columns=needed)
        if "optimizer" in frame:
            frame = frame[frame["optimizer"] == optimizer]
        return before_collapse(frame[frame["method"] == arm], self.arm(arm).values())


def _checkpoint_shares(evidence: Evidence, measurement: str, arm: str) -> pd.Series:
    """By seed and step: of first searches that find the same, or of likelihoods that drop."""
    if measurement == "searches_match":
        names = ["first_search_reached_equal", "first_search_reached_incorrect"]
        counts = evidence.measured(arm, "likelihood_change", "adamw", *names)
        sums = counts.groupby(["seed", "step"])[names].sum().sort_index()
        return sums[names[0]] / sums[names[1]]
    frame = evidence.measured(arm, "likelihood_change", "adamw", "delta").dropna(subset="delta")
    drops = frame.assign(drops=frame["delta"] < 0).groupby(["seed", "step"])["drops"].mean()
    return drops.sort_index()


def shares_at(evidence: Evidence, measurement: str, arm: str, place: str) -> pd.Series:
    """`drop_share` or `searches_match` by seed at the `first` or the `last` checkpoint."""
    shares = _checkpoint_shares(evidence, measurement, arm).groupby(level="seed")
    return shares.first() if place == "first" else shares.last()


def _drop_share_growth(evidence: Evidence, arm: str, factor: str) -> pd.Series:
    shares = _checkpoint_shares(evidence, "drop_share", arm).groupby(level="seed")
    return (shares.last() - shares.first())[shares.size() > 1]


def _later_rounds(evidence: Evidence, arm: str, factor: str) -> pd.Series:
    columns = ("view", "rounds", "nll", "trajectories")
    frame = evidence.measured(arm, "nll_by_round", "adamw", *columns)
    frame = frequent_rounds(frame[frame["view"] == "position"])
    last = frame[frame["step"] == frame.groupby("seed")["step"].transform("max")]
    rounds = last.sort_values("rounds").groupby("seed")["nll"]
    return (rounds.last() - rounds.first())[rounds.size() > 1]


def _correlation(kind: str, evidence: Evidence, arm: str, factor: str) -> pd.Series:
    frame = evidence.measured(arm, "theorem", "sgd", "factor", kind)
    return frame[frame["factor"] == factor].groupby("seed")[kind].mean()


# Measures of the checkpoints of an arm before its collapse, by seed: `drop_share` is of questions
# whose correct responses lose likelihood, `searches_match` of incorrect responses whose first
# search finds what a correct one's found, both at the last checkpoint; `later_rounds` is there the
# negative log-likelihood of actions after the most searches minus that of first actions; `spearman`
# and `partial` are rank correlations of the change of likelihood with a factor of the theorem,
# plain or given two controls, averaged over checkpoints, by steps of plain gradient descent.
CHECKPOINTS: dict[str, Callable[[Evidence, str, str], pd.Series]] = {
    "drop_share": lambda found, arm, factor: shares_at(found, "drop_share", arm, "last"),
    "drop_share_growth": _drop_share_growth,
    "searches_match": lambda found, arm, factor: shares_at(found, "searches_match", arm, "last"),
    "later_rounds": _later_rounds,
    "spearman": partial(_correlation, "spearman"),
    "partial": partial(_correlation, "partial"),
}


def published_mechanism(published: Path, profile: str) -> dict[str, pd.DataFrame]:
    """Mechanism tables of the published seeds; empty when there are none.

    Only seeds that were measured alike are put together: those with the most rollouts per question,
    and of these with the most questions. A warning names the seeds that this leaves out.
    """
    folders = {}
    for manifest in sorted((published / profile).glob("mechanism-seed*/manifest.json")):
        values = json.loads(manifest.read_text("utf-8"))
        folders[manifest.parent] = (values["rollouts"], values["questions"])
    most = max(folders.values(), default=None)
    chosen = [folder for folder, measured in folders.items() if measured == most]
    if left := ", ".join(folder.name for folder in folders if folder not in chosen):
        _logger.warning("%s: measured on fewer rollouts or questions, left out", left)
    tables: dict[str, list[pd.DataFrame]] = {}
    for file in (file for folder in chosen for file in sorted(folder.glob("*.csv"))):
        tables.setdefault(file.stem, []).append(pd.read_csv(file))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
