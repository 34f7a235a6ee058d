"""What claims are checked against: the finished runs of one profile, measures of a run and of two
runs of one seed, and measurements on checkpoints.

Likelihoods are in nats per token; "before the collapse" is up to the end for a run without one.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.typing import SeriesGroupBy

from llds_core.diagnostics.summary import frequent_rounds, read_manifest, read_mechanism
from llds_core.errors import DataError
from llds_core.reporting.run_view import BASELINE, EARLY, StoredRun, before_collapse, by_method
from llds_core.runs.identity import FREE, flat
from llds_core.study.claim_statistics import survived_steps

_logger = logging.getLogger("llds_core")
RunsBySeed = Mapping[int, StoredRun]
# The paper sees incorrect responses less likely from step 80 of about 200 before the collapse on.
_EARLY_SHARE = 0.4


class Evidence:
    """Of the `runs` of one profile those that are results, by arm and seed, and measurements on
    their checkpoints: `mechanism`, frames by name as `diagnostics.measure` writes them.
    """

    def __init__(self, runs: Sequence[StoredRun], mechanism: Mapping[str, pd.DataFrame]) -> None:
        self._mechanism = mechanism
        if len({run.window for run in runs}) > 1:
            raise DataError("the runs differ in diagnostics.window: publish them again")
        finished = sorted((run for run in runs if run.is_result), key=lambda run: run.seed)
        self._arms = {a: {run.seed: run for run in own} for a, own in by_method(finished).items()}

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

    def shares(self, measurement: str, arm: str) -> SeriesGroupBy:
        """`drop_share` or `searches_match` by seed, from the first checkpoint of an arm to the
        last: of questions whose correct responses lose likelihood, or of incorrect responses whose
        first search finds what a correct one's found.
        """
        if measurement == "searches_match":
            names = ["first_search_reached_equal", "first_search_reached_incorrect"]
            frame = self.measured(arm, "likelihood_change", "adamw", *names)
            sums = frame.groupby(["seed", "step"])[names].sum()
            shares = sums[names[0]] / sums[names[1]]
        else:
            frame = self.measured(arm, "likelihood_change", "adamw", "delta").dropna(subset="delta")
            drops = frame.assign(drops=frame["delta"] < 0)
            shares = drops.groupby(["seed", "step"])["drops"].mean()
        return shares.groupby(level="seed")


def _early_rise(run: StoredRun) -> float:
    """Mean reward of the second and third window, no step of a collapse counted, minus that of
    the first rollout, which the start policy made. Which windows is not chosen by what they
    show: the best one rises by chance alone.
    """
    reward = run.rows["reward"]
    end = min(3 * run.window, run.before_collapse)
    return float(reward.iloc[run.window : end].mean() - reward.iloc[0])


def _rising_mean(run: StoredRun, metric: str) -> float:
    """Mean of `metric` from step 3 to the end of the window of the best reward."""
    best = int(np.nanargmax(run.means("reward")))
    rows = run.rows[: best + 1]
    return float(rows.loc[rows["step"] >= EARLY[0], metric].mean())


def _likelihood_gap(run: StoredRun, *, growth: bool = False) -> float:
    """Likelihood of correct minus that of incorrect responses after the early steps, or how much
    it has grown since the first window.
    """
    end = run.before_collapse
    rows = run.rows.iloc[int(_EARLY_SHARE * end) : end]
    start = run.head("loglik_correct") - run.head("loglik_incorrect") if growth else 0
    return float((rows["loglik_correct"] - rows["loglik_incorrect"]).mean()) - start


def _first_action_gap(run: StoredRun, *, growth: bool = False) -> float:
    """Likelihood of later minus that of first actions before the collapse, or how much it has
    grown since the first window.
    """
    later, first, end = "loglik_correct_later", "loglik_correct_first", run.before_collapse
    start = run.head(later) - run.head(first) if growth else 0
    return run.tail(later, end) - run.tail(first, end) - start


def _relative_change(run: StoredRun, *metrics: str) -> float:
    """Relative change of a metric from the first window of a run to the last before its reward
    drops; of several metrics the largest, whatever its sign.
    """
    drop, fell = run.decline("reward"), run.before_collapse
    drop = fell if drop is None else min(drop, fell)
    if drop < 2 * run.window:
        return np.nan
    changes = [run.tail(metric, drop) / run.head(metric) - 1 for metric in metrics]
    return changes[0] if len(changes) == 1 else float(np.max(np.abs(changes)))


def _gradient_growth(run: StoredRun) -> float:
    """Logarithm of the highest mean gradient norm around the collapse over the mean of the
    first third of the steps before it.
    """
    fell, window = run.before_collapse, run.window
    late = run.means("grad_norm")[max(fell - window, 0) : fell + 2 * window]
    early = run.rows["grad_norm"].iloc[: max(fell // 3, window)].mean()
    return float(np.log(np.nanmax(late) / early)) if np.isfinite(late).any() else np.nan


def _final_gain(run: StoredRun, other: StoredRun) -> float:
    """Windowed reward at the last step that both runs have, minus the other's."""
    end = min(run.length, other.length)
    return run.tail("reward", end) - other.tail("reward", end)


def _best_gain(run: StoredRun, other: StoredRun) -> float:
    """Best windowed reward within the steps both were given, minus the other's; a run that
    collapses has fewer windows to be best in, as its best checkpoint has in the paper.
    """
    end = min(run.given, other.given)
    known = run.known_to(end) and other.known_to(end)
    return run.best("reward", end) - other.best("reward", end) if known else np.nan


def _likelihood_kept(run: StoredRun, other: StoredRun) -> float:
    """Change of the likelihood of correct responses until the other collapses, minus its own."""
    end = other.before_collapse
    if run.length < end:
        return np.nan
    return run.change("loglik_correct", end) - other.change("loglik_correct", end)


def _more_searches(run: StoredRun, other: StoredRun) -> float:
    """Searches in the last window before a collapse, within the steps both were given, minus the
    other's.
    """
    end = min(run.given, other.given)
    own = run.tail("valid_searches", min(end, run.before_collapse))
    return own - other.tail("valid_searches", min(end, other.before_collapse))


def beside(runs: Sequence[StoredRun]) -> dict[str, StoredRun]:
    """By the name of a run, the run of GRPO that it is compared with: of the same seed and, where
    there is one, from the same start policy, be it of an arm that repeats GRPO. Such an arm is
    compared with GRPO itself. Runs of seeds that GRPO lacks are left out.
    """
    first = {run.seed: run for run in runs if run.arm == BASELINE}

    def repeats(run: StoredRun) -> bool:
        config, grpo = (flat(each.manifest["config"]) for each in (run, first[run.seed]))
        return all(config[key] == grpo[key] for key in config.keys() & grpo.keys() - FREE)

    paired = [run for run in runs if run.seed in first]
    again = {run.name: run for run in paired if repeats(run)}
    starts = {(run.seed, run.start): run for run in reversed(again.values())}
    found = {run.name: starts.get((run.seed, run.start), first[run.seed]) for run in paired}
    return found | {name: first[run.seed] for name, run in again.items()}


def paired_survival(first: RunsBySeed, second: RunsBySeed) -> dict[int, float]:
    """Steps that `first` survives beyond `second` on each seed they share, up to the horizon to
    which all these runs were watched.
    """
    seeds = sorted(first.keys() & second.keys())
    steps = survived_steps([arm[seed] for arm in (first, second) for seed in seeds])
    return dict(zip(seeds, steps[: len(seeds)] - steps[len(seeds) :], strict=True))


def _heldout_gain(run: StoredRun, other: StoredRun, checkpoint: str, steps: int) -> float:
    own, others = (each.heldout(checkpoint, within=steps) for each in (run, other))
    return np.nan if own is None or others is None else own - others


# Of a run.
MEASURES: dict[str, Callable[..., float]] = {
    "early_mean": StoredRun.early_mean,
    "rising_mean": _rising_mean,
    "early_rise": _early_rise,
    "likelihood_gap": _likelihood_gap,
    "likelihood_gap_growth": partial(_likelihood_gap, growth=True),
    "first_action_gap": _first_action_gap,
    "first_action_fall": partial(_first_action_gap, growth=True),
    "change": StoredRun.change,
    "relative_change": _relative_change,
    "gradient_growth": _gradient_growth,
}
# Of two runs of a seed and the steps that the baseline was given.
PAIRS: dict[str, Callable[[StoredRun, StoredRun, int], float]] = {
    "final_reward": lambda run, other, steps: _final_gain(run, other),
    "best_reward": lambda run, other, steps: _best_gain(run, other),
    "likelihood_kept": lambda run, other, steps: _likelihood_kept(run, other),
    "searches": lambda run, other, steps: _more_searches(run, other),
    "heldout_best": lambda run, other, steps: _heldout_gain(run, other, "best", steps),
    "heldout_last": lambda run, other, steps: _heldout_gain(run, other, "last", steps),
}


def _drop_share_growth(evidence: Evidence, arm: str, factor: str) -> pd.Series:
    shares = evidence.shares("drop_share", arm)
    return (shares.last() - shares.first())[shares.size() > 1]


def _later_rounds(evidence: Evidence, arm: str, factor: str) -> pd.Series:
    columns = ("view", "rounds", "nll", "trajectories")
    frame = evidence.measured(arm, "nll_by_round", "adamw", *columns)
    frame = frequent_rounds(frame[frame["view"] == "position"])
    last = frame[frame["step"] == frame.groupby("seed")["step"].transform("max")]
    rounds = last.sort_values("rounds").groupby("seed")["nll"]
    return (rounds.last() - rounds.first())[rounds.size() > 1]


def correlations(
    kind: str, evidence: Evidence, arm: str, factor: str, optimizer: str = "sgd"
) -> pd.Series:
    """Correlation of the change of likelihood with a factor, by seed, with steps of `optimizer`."""
    frame = evidence.measured(arm, "theorem", optimizer, "factor", kind)
    return frame[frame["factor"] == factor].groupby("seed")[kind].mean()


# Measures of the checkpoints of an arm before its collapse, by seed: the shares at the last
# checkpoint; `later_rounds` is there the negative log-likelihood of actions after the most searches
# minus that of first actions; `spearman` and `partial` are rank correlations of the change of
# likelihood with a factor of the theorem, plain or given two controls, averaged over checkpoints,
# by steps of plain gradient descent.
CHECKPOINTS: dict[str, Callable[[Evidence, str, str], pd.Series]] = {
    "drop_share": lambda found, arm, factor: found.shares("drop_share", arm).last(),
    "drop_share_growth": _drop_share_growth,
    "searches_match": lambda found, arm, factor: found.shares("searches_match", arm).last(),
    "later_rounds": _later_rounds,
    "spearman": partial(correlations, "spearman"),
    "partial": partial(correlations, "partial"),
}


def published_mechanism(published: Path, profile: str) -> dict[str, pd.DataFrame]:
    """Mechanism tables of the published seeds; empty when there are none.

    Only seeds that were measured alike are put together: those with the most rollouts per question,
    and of these with the most questions. A warning names the seeds that this leaves out.
    """
    folders = sorted((published / profile).glob("mechanism-seed*"))
    made = {folder: read_manifest(folder) for folder in folders}
    sizes = {folder: (of["rollouts"], of["questions"]) for folder, of in made.items() if of}
    chosen = [folder for folder, size in sizes.items() if size == max(sizes.values())]
    if left := ", ".join(folder.name for folder in sizes if folder not in chosen):
        _logger.warning("%s: measured on fewer rollouts or questions, left out", left)
    return read_mechanism(*chosen) if chosen else {}
