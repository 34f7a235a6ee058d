"""Rules about measurements on checkpoints of GRPO: what one more update does to likelihood.

Only checkpoints before the collapse of their run count: a collapsed policy hardly has a correct
response whose likelihood could fall. Two seeds are enough here, as such measurements are dear; the
interval over seeds is accordingly wide.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from llds_core.diagnostics.summary import frequent_rounds
from llds_core.reporting.run_view import Evidence, before_collapse
from llds_core.reporting.stats import student_interval
from llds_core.study.claim_rules import FEW_SEEDS, Finding, Rule, Verdict, above, below


def drop_share_grows(evidence: Evidence) -> Finding | None:
    """The share of questions whose correct responses lose likelihood grows from the first
    checkpoint to the last.
    """
    shares = _drop_shares(evidence)
    growth = {seed: each.iloc[-1] - each.iloc[0] for seed, each in shares.items() if len(each) > 1}
    return _finding(growth, above(0))


def drop_share_late(evidence: Evidence) -> Finding | None:
    """At the last checkpoint more than half of the questions lose likelihood."""
    late = {seed: each.iloc[-1] for seed, each in _drop_shares(evidence).items()}
    return _finding(late, above(0.5))


def searches_match(evidence: Evidence) -> Finding | None:
    """At the last checkpoint more than half of the incorrect responses find with their first search
    what a correct one found; searches that were made to fail, which the paper has not, left out.
    """
    names = ["first_search_reached_equal", "first_search_reached_incorrect"]
    counts = _checkpoints(evidence, "likelihood_change", "adamw", *names)
    sums = counts.groupby(["seed", "step"])[names].sum().sort_index()
    shares = (sums[names[0]] / sums[names[1]]).groupby(level="seed").last()
    return _finding(shares.to_dict(), above(0.5))


def later_rounds_harder(evidence: Evidence) -> Finding | None:
    """At the last checkpoint, actions after the most searches have a higher negative log-likelihood
    than first actions, of `frequent_rounds`.
    """
    names = ["view", "rounds", "nll", "trajectories"]
    frame = _checkpoints(evidence, "nll_by_round", "adamw", *names)
    frame = frequent_rounds(frame[frame["view"] == "position"])
    growth = {}
    for seed, each in frame.groupby("seed"):
        last = each[each["step"] == each["step"].max()].sort_values("rounds")["nll"]
        if len(last) > 1:
            growth[seed] = last.iloc[-1] - last.iloc[0]
    return _finding(growth, above(0))


def factor_correlates(factor: str, sign: int, kind: str = "spearman") -> Rule:
    """Over questions, the change of likelihood correlates with a factor of Theorem 4.2 in the
    direction `sign`; checkpoints are averaged by seed. The theorem is about gradient descent. With
    `kind` "partial", given the likelihood and the number of correct responses.
    """

    def rule(evidence: Evidence) -> Finding | None:
        frame = _checkpoints(evidence, "theorem", "sgd", "factor", kind)
        means = frame[frame["factor"] == factor].groupby("seed")[kind].mean()
        return _finding(means.to_dict(), above(0) if sign > 0 else below(0))

    return rule


def _drop_shares(evidence: Evidence) -> dict[int, pd.Series]:
    """Share of questions with `delta` below 0 by step, for each seed."""
    frame = _checkpoints(evidence, "likelihood_change", "adamw", "delta").dropna(subset=["delta"])
    shares = frame.assign(drops=frame["delta"] < 0).groupby(["seed", "step"])["drops"].mean()
    return {int(seed): each.sort_index() for seed, each in shares.groupby(level="seed")}


def _checkpoints(evidence: Evidence, name: str, optimizer: str, *columns: str) -> pd.DataFrame:
    """Rows of a frame on GRPO's checkpoints before the collapse; none without the columns."""
    needed = ["method", "seed", "step", *columns]
    frame = evidence.mechanism.get(name, pd.DataFrame())
    if not set(needed) <= set(frame.columns):
        return pd.DataFrame(columns=needed)
    if "optimizer" in frame:
        frame = frame[frame["optimizer"] == optimizer]
    return before_collapse(frame[frame["method"] == "grpo"], evidence.arm("grpo").values())


def _finding(values: Mapping[int, float], verdict: Verdict) -> Finding | None:
    present = {int(seed): value for seed, value in values.items() if np.isfinite(value)}
    if len(present) < FEW_SEEDS:
        return None
    interval = student_interval([*present.values()])
    names = tuple(f"grpo-seed{seed}" for seed in sorted(present))
    return Finding(verdict(interval), interval, frozenset(present), names)
