"""The rule about measurements on checkpoints: what one more update does to likelihood."""

from typing import Literal

import numpy as np
import pandas as pd

from llds_core.diagnostics.summary import frequent_rounds
from llds_core.reporting.run_view import before_collapse
from llds_core.reporting.stats import student_interval
from llds_core.study.evidence import Bounded, Evidence, Finding

_SEEDS = 2  # measurements on checkpoints are dear; the interval is accordingly wide


class Mechanism(Bounded):
    """The mean over seeds of a measurement on checkpoints before the collapse lies beyond a bound.

    A collapsed policy hardly has a correct response whose likelihood could fall.

    Attributes:
        mechanism: `drop_share`: of questions whose correct responses lose likelihood, at the last
            checkpoint; `drop_share_growth`: that minus the share at the first; `searches_match`:
            share of incorrect responses whose first search finds what a correct one's found, at the
            last checkpoint; `later_rounds`: there, the negative log-likelihood of actions after the
            most searches minus that of first actions; `spearman` and `partial`: rank correlation of
            the change of likelihood with `factor`, plain or given two controls, averaged over
            checkpoints. The theorem is about gradient descent: correlations are of `sgd`.
        factor: of the theorem.
        arm: whose checkpoints.
    """

    mechanism: Literal[
        "drop_share", "drop_share_growth", "searches_match", "later_rounds", "spearman", "partial"
    ]
    arm: str
    factor: str = ""

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rule."""
        values = {int(s): v for s, v in self._by_seed(evidence).items() if np.isfinite(v)}
        if len(values) < _SEEDS:
            return None
        interval = student_interval([*values.values()])
        names = tuple(f"{self.arm}-seed{seed}" for seed in sorted(values))
        return Finding(self.beyond(interval), interval, frozenset(values), names)

    def _by_seed(self, evidence: Evidence) -> dict[int, float]:
        if self.mechanism in ("spearman", "partial"):
            frame = self._rows(evidence, "theorem", "sgd", "factor", self.mechanism)
            chosen = frame[frame["factor"] == self.factor]
            return chosen.groupby("seed")[self.mechanism].mean().to_dict()
        if self.mechanism == "later_rounds":
            names = ["view", "rounds", "nll", "trajectories"]
            frame = self._rows(evidence, "nll_by_round", "adamw", *names)
            frame = frequent_rounds(frame[frame["view"] == "position"])
            last = frame[frame["step"] == frame.groupby("seed")["step"].transform("max")]
            rounds = last.sort_values("rounds").groupby("seed")["nll"]
            return (rounds.last() - rounds.first())[rounds.size() > 1].to_dict()
        shares = self.by_checkpoint(evidence).groupby(level="seed")
        if self.mechanism == "drop_share_growth":
            return (shares.last() - shares.first())[shares.size() > 1].to_dict()
        return shares.last().to_dict()

    def by_checkpoint(self, evidence: Evidence) -> pd.Series:
        """A share by seed and step: of matching first searches, or of likelihoods that drop."""
        if self.mechanism == "searches_match":
            names = ["first_search_reached_equal", "first_search_reached_incorrect"]
            counts = self._rows(evidence, "likelihood_change", "adamw", *names)
            sums = counts.groupby(["seed", "step"])[names].sum().sort_index()
            return sums[names[0]] / sums[names[1]]
        frame = self._rows(evidence, "likelihood_change", "adamw", "delta").dropna(subset="delta")
        drops = frame.assign(drops=frame["delta"] < 0).groupby(["seed", "step"])["drops"].mean()
        return drops.sort_index()

    def _rows(self, evidence: Evidence, name: str, optimizer: str, *columns: str) -> pd.DataFrame:
        """Rows of a frame on checkpoints before the collapse; none without the columns."""
        needed = ["method", "seed", "step", *columns]
        frame = evidence.mechanism.get(name, pd.DataFrame())
        if not set(needed) <= set(frame.columns):
            return pd.DataFrame(columns=needed)
        if "optimizer" in frame:
            frame = frame[frame["optimizer"] == optimizer]
        runs = evidence.arm(self.arm).values()
        return before_collapse(frame[frame["method"] == self.arm], runs)
