"""What is measured of one run, or of a pair of runs with one seed, before seeds are averaged.

An outcome is True, False, or None where the run cannot show it; a value is NaN there. A pair is
compared over the steps both runs were given. In a collapsing run `drop` is the row at which the
reward declines for good, and everything that is said to come before a collapse is measured up to
there or to the collapse itself.
"""

from collections.abc import Callable

import numpy as np

from llds_core.diagnostics.phases import detect_phases
from llds_core.diagnostics.spiral import death_spiral
from llds_core.reporting.run_view import Measured

Value = Callable[[Measured], float]

# The paper sees incorrect responses less likely from step 80 of about 200 before the collapse on.
_EARLY_SHARE = 0.4
_PHASES = ["stagnation", "decay", "acceleration", "collapse"]


def rises_then_collapses(run: Measured) -> bool:
    """Its reward collapses, after its mean rose by more than 2 standard deviations of a step."""
    if run.collapse is None:
        return False
    rise = run.best("reward", run.collapse) - run.head("reward")
    return bool(rise > 2 * run.noise("reward", run.collapse))


def early_rise(run: Measured) -> float:
    """Mean reward of the second and third window, no step of a collapse counted, minus that of the
    first rollout, which the start policy made. Which windows is not chosen by what they show: the
    best one rises by chance alone.
    """
    end = min(3 * run.window, run.before_collapse)
    reward = run.rows["reward"]
    return float(reward.iloc[run.window : end].mean() - reward.iloc[0])


def all_phases(run: Measured) -> bool | None:
    """A collapsing run goes through every phase; their order is part of their definition."""
    names = [phase.name for phase in detect_phases(run.run.metrics, window=run.window)]
    return names == _PHASES if "collapse" in names else None


def spirals(run: Measured) -> bool | None:
    """The death-spiral test fires in a collapsing run."""
    test = death_spiral(run.run.metrics, window=run.window)
    return test.fires if test.judged and test.collapse is not None else None


def no_spiral(run: Measured) -> bool | None:
    """The death-spiral test does not fire."""
    test = death_spiral(run.run.metrics, window=run.window)
    return not test.fires if test.judged else None


def likelihood_gap(run: Measured) -> float:
    """Likelihood of correct minus that of incorrect responses after the early steps, nats per
    token.
    """
    end = run.before_collapse
    rows = run.rows.iloc[int(_EARLY_SHARE * end) : end]
    return float((rows["loglik_correct"] - rows["loglik_incorrect"]).mean())


def likelihood_gap_growth(run: Measured) -> float:
    """Growth of `likelihood_gap` since the first window, nats per token."""
    return likelihood_gap(run) - (run.head("loglik_correct") - run.head("loglik_incorrect"))


def first_action_gap(run: Measured) -> float:
    """Likelihood of later actions minus that of first ones before the collapse, nats per token."""
    end = run.before_collapse
    return run.tail("loglik_correct_later", end) - run.tail("loglik_correct_first", end)


def first_action_fall(run: Measured) -> float:
    """Growth of `first_action_gap` since the first window, nats per token."""
    start = run.head("loglik_correct_later") - run.head("loglik_correct_first")
    return first_action_gap(run) - start


def change(metric: str) -> Value:
    """Change of a metric from the first window of a run to its last."""
    return lambda run: run.tail(metric, run.length) - run.head(metric)


def relative_change(*metrics: str) -> Value:
    """Relative change of a metric from the first window of a collapsing run to the last before its
    reward drops; of several metrics the largest, whatever its sign.
    """

    def value(run: Measured) -> float:
        drop = run.reward_drop()
        if drop < 2 * run.window:
            return np.nan
        changes = [run.tail(metric, drop) / run.head(metric) - 1 for metric in metrics]
        return changes[0] if len(changes) == 1 else float(np.max(np.abs(changes)))

    return value


def gradient_growth(run: Measured) -> float:
    """Logarithm of the highest mean gradient norm around the collapse over the mean of the first
    third of the steps before it.
    """
    late = run.means("grad_norm")[max(run.collapse - run.window, 0) : run.collapse + 2 * run.window]
    early = run.rows["grad_norm"].iloc[: max(run.collapse // 3, run.window)].mean()
    return float(np.log(np.nanmax(late) / early)) if np.isfinite(late).any() else np.nan


def final_gain(run: Measured, baseline: Measured) -> float:
    """Windowed reward at the last step that both runs have, minus the baseline's."""
    end = min(run.length, baseline.length)
    return run.tail("reward", end) - baseline.tail("reward", end)


def best_gain(run: Measured, baseline: Measured) -> float:
    """Best windowed reward within the steps both were given, minus the baseline's.

    A run that collapses has fewer windows to be best in, as its best checkpoint has in the paper.
    """
    end = min(run.planned, baseline.planned)
    known = run.known_to(end) and baseline.known_to(end)
    return run.best("reward", end) - baseline.best("reward", end) if known else np.nan


def likelihood_kept(run: Measured, baseline: Measured) -> float:
    """Change of the likelihood of correct responses until the baseline collapses, minus the
    baseline's, nats per token.
    """
    end = baseline.before_collapse
    if run.length < end:
        return np.nan
    metric = "loglik_correct"
    changes = [each.tail(metric, end) - each.head(metric) for each in (run, baseline)]
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
