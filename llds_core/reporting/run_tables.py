"""Tables with one row per run: what it came to, its phases, the size of its gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from llds_core.reporting.figures import BASELINE, method_label
from llds_core.reporting.run_view import Measured
from llds_core.reporting.store import StoredRun


def usual_steps(runs: Sequence[StoredRun]) -> int:
    """Steps that every run was given: the shortest plan among them; 0 without runs."""
    return min((run.planned for run in runs), default=0)


def run_row(run: StoredRun) -> dict[str, Any]:
    """One run as a row of `runs.csv`; `method` is the name of its arm.

    `heldout_em` is the greedy exact match of the best checkpoint on test questions without injected
    search failures, `last_heldout_em` that of the last; empty when not evaluated. Rewards are means
    over the run's window, but `start_reward` that of the first rollout, before any update;
    `lowest_after_best` is a share of the best, `entropy_growth` the highest windowed entropy over
    the first.
    """
    metrics = run.metrics
    measured = Measured(run)
    seconds = metrics["rollout_seconds"].sum() + metrics["update_seconds"].sum()
    return {
        "profile": run.profile,
        "method": run.arm,
        "seed": run.seed,
        "steps": measured.length,
        "updates": int(metrics["updates"].iloc[-1]),
        "collapsed": measured.collapse is not None,
        "collapse_step": measured.collapse_step,
        "loglik_decline_step": measured.phase_start("decay"),
        "reward_decline_step": measured.step_at(measured.decline("reward")),
        "best_reward": round(measured.best("reward"), 4),
        "final_reward": round(measured.last("reward"), 4),
        "heldout_em": run.heldout(),
        "minutes": round(seconds / 60, 2),
        "status": run.status,
        "start_reward": round(float(metrics["reward"].iloc[0]), 4),
        "last_heldout_em": run.heldout("last"),
        "config_hash": run.manifest["config_hash"],
        "lowest_after_best": round(measured.lowest_after_best(), 4),
        "entropy_growth": round(measured.entropy_growth(), 3),
    }


def phase_row(run: StoredRun) -> dict[str, Any]:
    """One run as a row of `phases.csv`; None where something did not occur.

    `decay`, `acceleration`, `collapse`, `loglik_decline` and `reward_decline` are steps. The two
    declines, of the likelihood of correct responses and of the reward, are judged up to the proof
    of a collapse, one window more than `decay` is. `likelihood_lead` is by how many steps the
    likelihood's comes first; `halfway_lead` by how many the half of its way does, for a run that
    collapses and in which both decline. `spiral` is the step from which Definition 5.1 holds on
    window means, `spiral_failed` names the conditions that hold from nowhere to the end (joined by
    ";"); both None where the windows are too few to judge.
    """
    measured = Measured(run)
    reward, loglik = (measured.decline(metric) for metric in ("reward", "loglik_correct"))
    both = reward is not None and loglik is not None
    halfway = None
    if both and measured.collapse is not None:
        halfway = measured.halfway("reward") - measured.halfway("loglik_correct")
    spiral = measured.spiral
    return {
        "method": run.arm,
        "seed": run.seed,
        "steps": measured.length,
        "decay": measured.phase_start("decay"),
        "acceleration": measured.phase_start("acceleration"),
        "collapse": measured.collapse_step,
        "loglik_decline": measured.step_at(loglik),
        "reward_decline": measured.step_at(reward),
        "likelihood_lead": reward - loglik if both else None,
        "halfway_lead": halfway,
        "spiral": spiral.windowed.onset if spiral.judged else None,
        "spiral_failed": ";".join(spiral.windowed.failed) if spiral.judged else None,
    }


def outcomes(runs: Sequence[StoredRun], within: int | None = None) -> pd.DataFrame:
    """One row per run: when it collapsed and how the likelihood of correct responses went.

    Args:
        runs: runs; those that did not end, or failed without having diverged, are left out.
        within: look at so many first steps only; None for whole runs.

    Returns:
        Columns `profile`, `method` (the arm), `seed`, `steps`, `updates_per_rollout`,
        `learning_rate`, `collapse_step` (NaN when the run did not collapse), `kind` of collapse,
        `start_reward` (of the first rollout, before any update), `best_reward` and `final_reward`
        (means over the run's window), `lowest_after_best` (a share of the best), `entropy_growth`
        (highest windowed entropy over the first) and `slope` of `loglik_correct` in nats per token
        and ten steps: a straight line through the steps that all runs were given, up to the
        collapse.
    """
    runs = [run for run in runs if run.is_result]
    steps = usual_steps(runs) if within is None else within
    return pd.DataFrame([_outcome(Measured(run.first(within)), steps) for run in runs])


def _outcome(measured: Measured, steps: int) -> dict[str, object]:
    run = measured.run
    loglik = measured.rows.set_index("step")["loglik_correct"]
    loglik = loglik.iloc[: min(steps, measured.before_collapse)].dropna()
    collapse = measured.collapse_step
    return {
        "profile": run.profile,
        "method": run.arm,
        "seed": run.seed,
        "steps": measured.length,
        "updates_per_rollout": measured.setting("training", "updates_per_rollout"),
        "learning_rate": measured.setting("training", "learning_rate"),
        "collapse_step": np.nan if collapse is None else collapse,
        "kind": measured.collapse_kind(),
        "start_reward": measured.rows["reward"].iloc[0],
        "best_reward": measured.best("reward"),
        "final_reward": measured.last("reward"),
        "lowest_after_best": measured.lowest_after_best(),
        "entropy_growth": measured.entropy_growth(),
        "slope": np.polyfit(loglik.index, loglik, 1)[0] * 10 if len(loglik) > 1 else np.nan,
    }


def gradient_sizes(runs: Sequence[StoredRun], arms: Sequence[str]) -> pd.DataFrame:
    """How large the penalty's gradient is beside that of GRPO, by weight.

    Returns:
        Columns `arm`, `weight`, `seeds`, `gradient norm` (mean over the first window of steps,
        before the runs have parted), `over GRPO's` (ratio on the same seeds, geometric mean) and
        `clipped`: share of steps, within those every run was given, whose mean norm is above the
        clip.
    """
    steps = usual_steps(runs)
    first = {(r.arm, r.seed): r.metrics["grad_norm"].iloc[: r.window].mean() for r in runs}
    rows = []
    for arm in arms:
        chosen = [run for run in runs if run.arm == arm]
        if not chosen:
            continue
        ratios = [
            first[arm, run.seed] / first[BASELINE, run.seed]
            for run in chosen
            if (BASELINE, run.seed) in first
        ]
        norms = pd.concat([run.metrics["grad_norm"].iloc[:steps] for run in chosen])
        config = chosen[0].manifest["config"]
        rows.append(
            {
                "arm": chosen[0].label or method_label(arm),
                "weight": config["loss"]["llds_weight"],
                "seeds": len(chosen),
                "gradient norm": np.mean([first[arm, run.seed] for run in chosen]),
                "over GRPO's": np.exp(np.log(ratios).mean()) if ratios else np.nan,
                "clipped": (norms > config["training"]["max_grad_norm"]).mean(),
            }
        )
    return pd.DataFrame(rows)
