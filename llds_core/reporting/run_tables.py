"""Tables of runs: one row per run, and small ones beside the figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from llds_core.reporting.figures import method_label
from llds_core.reporting.run_view import BASELINE, StoredRun, by_method, usual_steps


def run_row(run: StoredRun) -> dict[str, Any]:
    """One run as a row of `runs.csv`; `method` is the name of its arm.

    `heldout_em` is the greedy exact match of the best checkpoint on test questions without injected
    search failures, `last_heldout_em` that of the last; empty when not evaluated. Other columns are
    those of `outcomes`.
    """
    metrics = run.metrics
    seconds = metrics[["rollout_seconds", "update_seconds"]].sum().sum()
    return run.key | {
        "steps": run.length,
        "updates": int(metrics["updates"].iloc[-1]),
        "collapsed": run.collapse is not None,
        "collapse_step": run.collapse_step,
        "loglik_decline_step": _phase_starts(run).get("decay"),
        "reward_decline_step": run.step_at(run.decline("reward")),
        "best_reward": round(run.best("reward"), 4),
        "final_reward": round(run.last("reward"), 4),
        "heldout_em": run.heldout(),
        "minutes": round(seconds / 60, 2),
        "status": run.status,
        "start_reward": round(float(metrics["reward"].iloc[0]), 4),
        "last_heldout_em": run.heldout("last"),
        "config_hash": run.manifest["config_hash"],
        "lowest_after_best": round(run.lowest_after_best(), 4),
        "entropy_growth": round(run.entropy_growth(), 3),
        # Older than the key are runs that drew single trajectories.
        "mini_batches": run.manifest["config"]["training"].get("mini_batches", "shuffled"),
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
    reward, loglik = run.decline("reward"), run.decline("loglik_correct")
    lead = halfway = None
    if reward is not None and loglik is not None:
        lead = reward - loglik
        if run.collapse is not None:
            halfway = run.halfway("reward") - run.halfway("loglik_correct")
    starts, spiral = _phase_starts(run), run.spiral
    return {
        "method": run.arm,
        "seed": run.seed,
        "steps": run.length,
        "decay": starts.get("decay"),
        "acceleration": starts.get("acceleration"),
        "collapse": run.collapse_step,
        "loglik_decline": run.step_at(loglik),
        "reward_decline": run.step_at(reward),
        "likelihood_lead": lead,
        "halfway_lead": halfway,
        "spiral": spiral.onset if spiral.judged else None,
        "spiral_failed": ";".join(spiral.failed) if spiral.judged else None,
    }


def _phase_starts(run: StoredRun) -> dict[str, int]:
    return {phase.name: phase.first for phase in run.phases}


def outcomes(runs: Sequence[StoredRun], within: int | None = None) -> pd.DataFrame:
    """One row per result among `runs`: when it collapsed and how the likelihood of correct
    responses went, looking only at the first steps `within`, if given.

    `method` is the arm, `start_reward` of the first rollout, before any update; other rewards are
    means over the run's window. `slope` is that of `loglik_correct` in nats per token and ten
    steps: a straight line through the steps that all runs were given, up to the collapse.
    """
    runs = [run for run in runs if run.is_result]
    steps = usual_steps(runs) if within is None else within
    return pd.DataFrame(_outcome(run.first(within), steps) for run in runs)


def _outcome(run: StoredRun, steps: int) -> dict[str, object]:
    loglik = run.rows.set_index("step")["loglik_correct"]
    loglik = loglik.iloc[: min(steps, run.before_collapse)].dropna()
    return run.key | {
        "steps": run.length,
        "updates_per_rollout": run.setting("training", "updates_per_rollout"),
        "learning_rate": run.setting("training", "learning_rate"),
        "collapse_step": np.nan if run.collapse is None else run.collapse_step,
        "kind": run.collapse_kind(),
        "start_reward": run.rows["reward"].iloc[0],
        "best_reward": run.best("reward"),
        "final_reward": run.last("reward"),
        "lowest_after_best": run.lowest_after_best(),
        "entropy_growth": run.entropy_growth(),
        "slope": np.polyfit(loglik.index, loglik, 1)[0] * 10 if len(loglik) > 1 else np.nan,
    }


def gradient_sizes(runs: Sequence[StoredRun], arms: Sequence[str]) -> pd.DataFrame:
    """How large the penalty's gradient is beside that of GRPO, by weight.

    `gradient norm` is the mean over the first window of steps, before the runs have parted, `over
    GRPO's` its ratio on the same seeds (geometric mean), `clipped` the share of steps, within those
    every run was given, whose mean norm is above the clip.
    """
    steps, by_arm = usual_steps(runs), by_method(runs)
    base = {run.seed: run.head("grad_norm") for run in by_arm.get(BASELINE, ())}
    rows = []
    for arm, chosen in ((arm, by_arm[arm]) for arm in arms if arm in by_arm):
        first = {run.seed: run.head("grad_norm") for run in chosen}
        ratios = [first[seed] / base[seed] for seed in first if seed in base]
        norms = pd.concat([run.metrics["grad_norm"].iloc[:steps] for run in chosen])
        rows.append(
            {
                "arm": chosen[0].label or method_label(arm),
                "weight": chosen[0].setting("loss", "llds_weight"),
                "seeds": len(chosen),
                "gradient norm": np.mean([*first.values()]),
                "over GRPO's": np.exp(np.log(ratios).mean()) if ratios else np.nan,
                "clipped": (norms > chosen[0].setting("training", "max_grad_norm")).mean(),
            }
        )
    return pd.DataFrame(rows)


def runs_table(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """One row per run: rewards as means over a window, and the steps at which its phases begin."""
    phases = {
        "decay": "likelihood decays",
        "acceleration": "decays faster",
        "collapse": "reward collapses",
        "likelihood_lead": "likelihood declines earlier by",
    }
    names = {"best_reward": "best reward", "final_reward": "last reward"} | phases
    columns = ["method", "seed", "status", "steps", *names]
    rows = [run_row(run) | phase_row(run) for run in runs if run.length]
    table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(phases, "Int64"))
    return table.assign(method=table["method"].map(method_label)).rename(columns=names)


def collapse_table(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """One row per method: how many runs collapse, at which steps, and by how many steps the
    decline of likelihood begins, and is half-way, before that of reward. Runs shorter than three
    windows, on which phases cannot be judged, are not counted.
    """
    rows = []
    for method, group in by_method(runs).items():
        judged = [phase_row(run) for run in group if run.length >= 3 * run.window]
        columns = ["seed", "decay", "collapse", "likelihood_lead", "halfway_lead"]
        found = pd.DataFrame(judged, columns=columns)
        fell = found.dropna(subset="collapse")
        row = {"method": method_label(method), "likelihood decays": _count_steps(found["decay"])}
        row["reward collapses"] = _count_steps(found["collapse"])
        for column, name in (("likelihood_lead", "begins"), ("halfway_lead", "is half-way")):
            lead = fell[column].dropna()
            known = f"{lead.median():g} steps ({len(lead)} of {len(fell)} collapsed)"
            row[f"its decline {name} before the reward's, median"] = known if len(lead) else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def _count_steps(steps: pd.Series) -> str:
    """`k of n`, with the steps at which it happened."""
    if steps.empty:
        return "too few steps to judge"
    found = ", ".join(f"{step:.0f}" for step in sorted(steps.dropna()))
    return f"{steps.count()} of {len(steps)}" + (f" (from step {found})" if found else "")
