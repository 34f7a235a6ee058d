"""Tables with one row a run: what it came to, and when its phases began."""

from typing import Any

from llds_core.diagnostics.phases import detect_phases
from llds_core.diagnostics.spiral import death_spiral
from llds_core.reporting.run_view import Measured
from llds_core.reporting.store import Run

RUN_COLUMNS = (
    "profile",
    "method",
    "seed",
    "steps",
    "updates",
    "collapsed",
    "collapse_step",
    "loglik_decline_step",
    "reward_decline_step",
    "best_reward",
    "final_reward",
    "heldout_em",
    "minutes",
    "status",
    "start_reward",
    "last_heldout_em",
    "config_hash",
    "lowest_after_best",
    "entropy_growth",
)
PHASE_COLUMNS = (
    "method",
    "seed",
    "steps",
    "decay",
    "acceleration",
    "collapse",
    "loglik_decline",
    "reward_decline",
    "likelihood_lead",
    "halfway_lead",
    "spiral",
    "spiral_failed",
)


def run_row(run: Run) -> dict[str, Any]:
    """One run as a row of `runs.csv`; `method` is the name of its arm.

    `heldout_em` is the greedy exact match of the best checkpoint on test questions without injected
    search failures, `last_heldout_em` that of the last; empty when not evaluated. Rewards are means
    over the run's window, but `start_reward` that of the first rollout, before any update;
    `lowest_after_best` is a share of the best, `entropy_growth` the highest windowed entropy over
    the first.
    """
    metrics = run.metrics.set_index("step")
    measured = Measured(run, run.window)
    phases = detect_phases(run.metrics, window=run.window)
    windowed = metrics["reward"].rolling(run.window).mean()
    seconds = metrics["rollout_seconds"].sum() + metrics["update_seconds"].sum()
    return {
        "profile": run.profile,
        "method": run.arm,
        "seed": run.seed,
        "steps": len(metrics),
        "updates": int(metrics["updates"].iloc[-1]),
        "collapsed": measured.collapse is not None,
        "collapse_step": measured.step_at(measured.collapse),
        "loglik_decline_step": next((p.first for p in phases if p.name == "decay"), None),
        "reward_decline_step": measured.step_at(measured.decline("reward")),
        "best_reward": round(float(windowed.max()), 4),
        "final_reward": round(float(windowed.iloc[-1]), 4),
        "heldout_em": run.heldout(),
        "minutes": round(seconds / 60, 2),
        "status": run.status,
        "start_reward": round(float(metrics["reward"].iloc[0]), 4),
        "last_heldout_em": run.heldout("last"),
        "config_hash": run.manifest["config_hash"],
        "lowest_after_best": round(measured.lowest_after_best(), 4),
        "entropy_growth": round(measured.entropy_growth(), 3),
    }


def phase_row(run: Run) -> dict[str, Any]:
    """When the phases of one run began, and what the death-spiral test says of it.

    Returns:
        `PHASE_COLUMNS`; None where something did not occur. `decay`, `acceleration`, `collapse`,
        `loglik_decline` and `reward_decline` are steps. The two declines, of the likelihood of
        correct responses and of the reward, are judged up to the proof of a collapse, one window
        more than `decay` is. `likelihood_lead` is by how many steps the likelihood's comes first;
        `halfway_lead` by how many the half of its way does, for a run that collapses and in which
        both decline. `spiral` is the step from which Definition 5.1 holds on window means,
        `spiral_failed` names the conditions that hold from nowhere to the end (joined by ";"); both
        empty where the windows are too few to judge.
    """
    measured = Measured(run, run.window)
    first = {phase.name: phase.first for phase in detect_phases(run.metrics, window=run.window)}
    declines = [measured.decline(metric) for metric in ("reward", "loglik_correct")]
    halfway = None
    if measured.collapse is not None and None not in declines:
        halfway = measured.halfway("reward", 1) - measured.halfway("loglik_correct", 1)
    spiral = death_spiral(run.metrics, window=run.window)
    return {
        "method": run.arm,
        "seed": run.seed,
        "steps": measured.length,
        "decay": first.get("decay"),
        "acceleration": first.get("acceleration"),
        "collapse": measured.step_at(measured.collapse),
        "loglik_decline": measured.step_at(declines[1]),
        "reward_decline": measured.step_at(declines[0]),
        "likelihood_lead": None if None in declines else declines[0] - declines[1],
        "halfway_lead": halfway,
        "spiral": spiral.windowed.onset if spiral.judged else None,
        "spiral_failed": ";".join(spiral.windowed.failed) if spiral.judged else None,
    }
