"""What claims are about: measures of a run, and of two runs of one seed.

Likelihoods are in nats per token; "before the collapse" is up to the end for a run without one.
"""

from collections.abc import Mapping

import numpy as np

from llds_core.reporting.run_view import StoredRun
from llds_core.reporting.stats import restricted_steps

# The paper sees incorrect responses less likely from step 80 of about 200 before the collapse on.
_EARLY_SHARE = 0.4
_EARLY_STEPS = (3, 15)


def early_rise(run: StoredRun) -> float:
    """Mean reward of the second and third window, no step of a collapse counted, minus that of
    the first rollout, which the start policy made. Which windows is not chosen by what they
    show: the best one rises by chance alone.
    """
    reward = run.rows["reward"]
    end = min(3 * run.window, run.before_collapse)
    return float(reward.iloc[run.window : end].mean() - reward.iloc[0])


def early_mean(run: StoredRun, metric: str, less: str = "") -> float:
    """Mean of `metric`, less that of another, over steps 3 to 15: while the reward still rises."""
    rows = run.rows[run.rows["step"].between(*_EARLY_STEPS)]
    return float((rows[metric] - (rows[less] if less else 0)).mean())


def all_phases(run: StoredRun) -> bool | None:
    """A collapsing run goes through every phase; their order is part of their definition."""
    names = [phase.name for phase in run.phases]
    every = ["stagnation", "decay", "acceleration", "collapse"]
    return names == every if "collapse" in names else None


def likelihood_gap(run: StoredRun) -> float:
    """Likelihood of correct minus that of incorrect responses after the early steps."""
    end = run.before_collapse
    rows = run.rows.iloc[int(_EARLY_SHARE * end) : end]
    return float((rows["loglik_correct"] - rows["loglik_incorrect"]).mean())


def likelihood_gap_growth(run: StoredRun) -> float:
    """Growth of `likelihood_gap` since the first window, nats per token."""
    start = run.head("loglik_correct") - run.head("loglik_incorrect")
    return likelihood_gap(run) - start


def first_action_gap(run: StoredRun) -> float:
    """Likelihood of later minus that of first actions before the collapse, nats per token."""
    end = run.before_collapse
    return run.tail("loglik_correct_later", end) - run.tail("loglik_correct_first", end)


def first_action_fall(run: StoredRun) -> float:
    """Growth of `first_action_gap` since the first window, nats per token."""
    start = run.head("loglik_correct_later") - run.head("loglik_correct_first")
    return first_action_gap(run) - start


def relative_change(run: StoredRun, *metrics: str) -> float:
    """Relative change of a metric from the first window of a collapsing run to the last before
    its reward drops; of several metrics the largest, whatever its sign. NaN without a collapse.
    """
    if run.collapse is None:
        return np.nan
    drop = run.decline("reward")
    drop = run.collapse if drop is None else min(drop, run.collapse)
    if drop < 2 * run.window:
        return np.nan
    changes = [run.tail(metric, drop) / run.head(metric) - 1 for metric in metrics]
    return changes[0] if len(changes) == 1 else float(np.max(np.abs(changes)))


def gradient_growth(run: StoredRun) -> float:
    """Logarithm of the highest mean gradient norm around the collapse over the mean of the
    first third of the steps before it; NaN without one.
    """
    if run.collapse is None:
        return np.nan
    start, end = max(run.collapse - run.window, 0), run.collapse + 2 * run.window
    late = run.means("grad_norm")[start:end]
    early = run.rows["grad_norm"].iloc[: max(run.collapse // 3, run.window)].mean()
    return float(np.log(np.nanmax(late) / early)) if np.isfinite(late).any() else np.nan


def final_gain(run: StoredRun, other: StoredRun) -> float:
    """Windowed reward at the last step that both runs have, minus the other's."""
    end = min(run.length, other.length)
    return run.tail("reward", end) - other.tail("reward", end)


def best_gain(run: StoredRun, other: StoredRun) -> float:
    """Best windowed reward within the steps both were given, minus the other's.

    A run that collapses has fewer windows to be best in, as its best checkpoint has in the paper.
    """
    end = min(run.given, other.given)
    known = run.known_to(end) and other.known_to(end)
    return run.best("reward", end) - other.best("reward", end) if known else np.nan


def likelihood_kept(run: StoredRun, other: StoredRun) -> float:
    """Change of the likelihood of correct responses until the other collapses, minus its own."""
    end = other.before_collapse
    if run.length < end:
        return np.nan
    return run.change("loglik_correct", end) - other.change("loglik_correct", end)


def more_searches(run: StoredRun, other: StoredRun) -> float:
    """Searches in the last window before a collapse, within the steps both were given, minus the
    other's.
    """
    end = min(run.given, other.given)
    own, others = (
        each.tail("valid_searches", min(end, each.before_collapse)) for each in (run, other)
    )
    return own - others


def paired_survival(
    first: Mapping[int, StoredRun], second: Mapping[int, StoredRun]
) -> dict[int, float]:
    """Steps that `first` survives beyond `second` on each seed they share, up to the horizon to
    which all these runs were watched.
    """
    seeds = sorted(first.keys() & second.keys())
    steps = restricted_steps([arm[seed].survival() for arm in (first, second) for seed in seeds])
    return dict(zip(seeds, steps[: len(seeds)] - steps[len(seeds) :], strict=True))
