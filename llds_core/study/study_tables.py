"""Tables of a study: what each arm did to the collapse, to held-out scores and to the gradient."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from llds_core.config import Entry, Study
from llds_core.markdown import bounded
from llds_core.reporting.claim_values import best_gain, final_gain
from llds_core.reporting.figures import BASELINE, method_label
from llds_core.reporting.run_view import Measured, paired_survival
from llds_core.reporting.stats import student_interval
from llds_core.reporting.store import Run
from llds_core.runs.identity import changed_keys

EFFECT_COLUMNS = (
    "group",
    "arm",
    "seeds",
    "collapsed",
    "grpo_collapsed",
    "steps_survived",
    "steps_low",
    "steps_high",
    "best_reward",
    "last_reward",
    "last_reward_low",
    "last_reward_high",
    "heldout_em",
    "last_heldout_em",
    "note",
)


def usual_steps(runs: Sequence[Run]) -> int:
    """Steps that every run was given: the shortest plan among them; 0 without runs."""
    return min((run.planned for run in runs), default=0)


def outcomes(runs: Sequence[Run], within: int | None = None) -> pd.DataFrame:
    """One row a run: when it collapsed and how the likelihood of correct responses went.

    Args:
        runs: runs; those that did not end, or failed without having diverged, are left out.
        within: look at so many first steps only; None for whole runs.

    Returns:
        Columns `profile`, `method` (the arm), `seed`, `steps`, `updates_per_rollout`,
        `learning_rate`, `collapse_step` (NaN when the run did not collapse), `kind` of collapse
        ("likelihood lost" or "likelihood kept" by correct responses until then; "" without one),
        `start_reward` (of the first rollout, before any update), `best_reward` and `final_reward`
        (means over the run's window), `lowest_after_best` (a share of the best), `entropy_growth`
        (highest windowed entropy over the first) and `slope` of `loglik_correct` in nats per token
        and ten steps: a straight line through the steps that all runs were given, up to the
        collapse.
    """
    runs = [run for run in runs if run.is_result]
    steps = usual_steps(runs) if within is None else within
    return pd.DataFrame([_outcome(run.first(within), steps) for run in runs])


def _outcome(run: Run, steps: int) -> dict[str, object]:
    training = run.manifest["config"]["training"]
    measured = Measured(run, run.window)
    means = pd.Series(measured.means("reward")).dropna()
    loglik = measured.rows.set_index("step")["loglik_correct"]
    loglik = loglik.iloc[: min(steps, measured.before_collapse)].dropna()
    collapse = measured.collapse
    return {
        "profile": run.profile,
        "method": run.arm,
        "seed": run.seed,
        "steps": measured.length,
        "updates_per_rollout": training["updates_per_rollout"],
        "learning_rate": training["learning_rate"],
        "collapse_step": np.nan if collapse is None else measured.step_at(collapse),
        "kind": "" if collapse is None else collapse_kind(measured),
        "start_reward": measured.rows["reward"].iloc[0],
        "best_reward": means.max(),
        "final_reward": means.iloc[-1] if len(means) else np.nan,
        "lowest_after_best": measured.lowest_after_best(),
        "entropy_growth": measured.entropy_growth(),
        "slope": np.polyfit(loglik.index, loglik, 1)[0] * 10 if len(loglik) > 1 else np.nan,
    }


def collapse_kind(run: Measured) -> str:
    """Whether correct responses lost likelihood before a run collapsed.

    "likelihood lost" when the mean of its last window before the collapse is below that of its
    first by more than 2 standard deviations of such a difference; else "likelihood kept". The
    decline by the rule of `phases` takes two windows to prove, more than an early collapse leaves.
    """
    metric = "loglik_correct"
    noise = run.noise(metric, run.collapse) * np.sqrt(2 / run.window)
    lost = run.tail(metric, run.collapse) - run.head(metric) < -2 * noise
    return "likelihood lost" if lost else "likelihood kept"


def effects(runs: Sequence[Run], study: Study) -> pd.DataFrame:
    """One row an arm of the study that shares seeds with GRPO: what it changes, seed by seed.

    Returns:
        `EFFECT_COLUMNS`: group and name of the arm, seeds it shares with GRPO, how many of them
        collapse and how many of GRPO's do, then means of differences from GRPO's run of the seed:
        steps survived up to the common horizon with Student's 95 % interval, best windowed reward,
        windowed reward at the last step that both have with Student's interval, and held-out exact
        match of the best and the last checkpoint, all within the steps that both were given; NaN
        where it was not measured on every seed.
    """
    names = {arm.name for arm in study.arms}
    runs = [run for run in runs if run.arm in names]
    arms: dict[str, dict[int, Measured]] = {}
    for run in runs:
        arms.setdefault(run.arm, {})[run.seed] = Measured(run, run.window)
    base, steps = arms.get(BASELINE, {}), usual_steps(runs)
    rows = []
    for arm in study.arms:
        own = {s: run for s, run in arms.get(arm.name, {}).items() if s in base}
        if arm.name != BASELINE and own:
            rows.append({"group": arm.group, "arm": arm.name, **_effect(own, base, steps)})
            rows[-1]["note"] = arm.note
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


def _effect(
    own: Mapping[int, Measured], base: Mapping[int, Measured], steps: int
) -> dict[str, object]:
    pairs = [(run, base[seed]) for seed, run in own.items()]
    survived = student_interval([*paired_survival(own, base).values()])
    last = student_interval([final_gain(*pair) for pair in pairs])
    return {
        "seeds": len(pairs),
        "collapsed": sum(bool(run.collapsed_by(steps)) for run, _ in pairs),
        "grpo_collapsed": sum(bool(other.collapsed_by(steps)) for _, other in pairs),
        "steps_survived": survived.estimate,
        "steps_low": survived.low,
        "steps_high": survived.high,
        "best_reward": student_interval([best_gain(*pair) for pair in pairs]).estimate,
        "last_reward": last.estimate,
        "last_reward_low": last.low,
        "last_reward_high": last.high,
        "heldout_em": _heldout_gain(pairs, "best", steps),
        "last_heldout_em": _heldout_gain(pairs, "last", steps),
    }


def _heldout_gain(pairs: Sequence[tuple[Measured, Measured]], checkpoint: str, steps: int) -> float:
    scores = [[each.run.heldout(checkpoint, within=steps) for each in pair] for pair in pairs]
    # Which seeds lack a score may depend on what became of them: a late best checkpoint does.
    known = all(None not in pair for pair in scores)
    return float(np.mean([one - other for one, other in scores])) if known else np.nan


def gradient_sizes(runs: Sequence[Run], arms: Sequence[str]) -> pd.DataFrame:
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
        ratios = [
            first[arm, run.seed] / first[BASELINE, run.seed]
            for run in chosen
            if (BASELINE, run.seed) in first
        ]
        norms = pd.concat([run.metrics["grad_norm"].iloc[:steps] for run in chosen])
        config = chosen[0].manifest["config"]
        rows.append(
            {
                "arm": method_label(arm),
                "weight": config["loss"]["llds_weight"],
                "seeds": len(chosen),
                "gradient norm": np.mean([first[arm, run.seed] for run in chosen]),
                "over GRPO's": np.exp(np.log(ratios).mean()) if ratios else np.nan,
                "clipped": (norms > config["training"]["max_grad_norm"]).mean(),
            }
        )
    return pd.DataFrame(rows)


def heldout_table(
    runs: Sequence[Run], arms: Sequence[str], *, checkpoint: str = "best"
) -> pd.DataFrame:
    """Held-out exact match by question kind, an arm a row: the shape of the paper's Table 3.

    Args:
        runs: runs with their evaluation.
        arms: rows; an arm without evaluation says "not run".
        checkpoint: `best` or `last` within the steps that every run was given.

    Returns:
        Columns `arm`, `seeds`, and mean [95 % interval over seeds] of one-hop, two-hop and all
        questions, greedy, then sampled at temperature 1, and of all questions greedy with the
        search failures of training. Rows are over the seeds that all arms with a run share.
    """
    columns = {
        f"{kind}{suffix}": (mode, key)
        for suffix, mode in (("", "greedy"), (", sampled", "sampled_1"))
        for kind, key in (("one-hop", "1-hop"), ("two-hop", "2-hop"), ("all", "all"))
    }
    columns["all, with failures"] = ("greedy_with_failures", "all")
    steps = usual_steps(runs)
    by_arm = {arm: {run.seed for run in runs if run.arm == arm} for arm in arms}
    shared = set.intersection(*filter(None, by_arm.values())) if any(by_arm.values()) else set()
    rows = []
    for arm in arms:
        chosen = [run for run in runs if run.arm == arm and run.seed in shared]
        row: dict[str, object] = {"arm": method_label(arm), "seeds": len(chosen)}
        for name, (mode, kind) in columns.items():
            values = [run.heldout(checkpoint, mode, kind, within=steps) for run in chosen]
            row[name] = _mean_text([value for value in values if value is not None])
        rows.append(row)
    return pd.DataFrame(rows)


def _mean_text(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    found = student_interval(values)
    return bounded(found.estimate, found.low, found.high, ".3f")


def weight_arms(runs: Sequence[Run]) -> list[str]:
    """Arms that differ from GRPO by nothing but LLDS with the action gate, by weight."""
    reference = {run.arm: run.manifest["config"]["loss"] for run in runs}
    if not reference:
        return []
    base = reference.get("llds-action", next(iter(reference.values())))
    fixed = ("gate", "normalizer", "preserve", "answer_ramp", "kl_weight")
    weights = {
        arm: loss["llds_weight"]
        for arm, loss in reference.items()
        if arm in ("grpo", "llds-action")
        or (arm.startswith("llds-weight-") and all(loss[key] == base[key] for key in fixed))
    }
    return sorted(weights, key=weights.__getitem__)


def map_cells(study: Study) -> pd.DataFrame:
    """Cells of the study's map: `panel`, `seed`, `learning_rate`, `updates_per_rollout` and
    `method`, the arm to show there, of that seed only.

    A cell of the grid that the map leaves out is the arm of another group that makes the same run
    with the map's seed, however many steps it takes; where there is none, it is missing.
    """
    entries = study.entries()
    own = {_place(entry): entry for entry in entries if entry.arm.group == "map"}
    # Cells of a panel agree in all other keys, and epochs follow from updates.
    panels = {(panel, seed): entry.config for (panel, seed, *_), entry in own.items()}
    rates = dict.fromkeys(rate for _, _, rate, _ in own)
    epochs = {updates: entry.config.training.epochs for (*_, updates), entry in own.items()}
    arms = {place: entry.arm.name for place, entry in own.items()}
    for (panel, seed), rate, updates in product(panels, rates, epochs):
        if (panel, seed, rate, updates) in own:
            continue
        config = panels[panel, seed]
        values = {"epochs": epochs[updates], "updates_per_rollout": updates, "learning_rate": rate}
        config = replace(config, training=replace(config.training, **values))
        for entry in entries:
            if entry.seed == seed and not changed_keys({"config": entry.config.to_dict()}, config):
                arms.setdefault((panel, seed, rate, updates), entry.arm.name)
    columns = ["panel", "seed", "learning_rate", "updates_per_rollout", "method"]
    return pd.DataFrame([(*place, arm) for place, arm in arms.items()], columns=columns)


def map_kinds(table: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """What became of each cell of the map: which kind of collapse which panel cures.

    Args:
        table: what `outcomes` returns, of equally many steps each.
        cells: what `map_cells` returns.

    Returns:
        A row a cell, columns `updates per rollout`, `learning rate` and the panels: the collapse
        step and its kind, or "no collapse" with the lowest reward after the best as a share of it,
        and by what entropy grew; or "not run".
    """
    found = table.set_index(["method", "seed"])
    shown = cells.assign(
        outcome=[_fate(found, cell.method, cell.seed) for cell in cells.itertuples()]
    )
    names = {"updates_per_rollout": "updates per rollout", "learning_rate": "learning rate"}
    wide = shown.pivot_table(
        index=list(names), columns="panel", values="outcome", aggfunc="; ".join, sort=False
    )
    return wide.sort_index().rename_axis(columns=None).reset_index().rename(columns=names)


def _fate(table: pd.DataFrame, arm: str, seed: int) -> str:
    if (arm, seed) not in table.index:
        return "not run"
    run = table.loc[(arm, seed)]
    entropy = f"entropy × {run['entropy_growth']:.1f}"
    if not run["kind"]:
        return f"no collapse, lowest {run['lowest_after_best']:.2f} of the best, {entropy}"
    return f"collapse at {run['collapse_step']:.0f}, {run['kind']}, {entropy}"


def _place(entry: Entry) -> tuple[str, int, float, int]:
    """Panel, seed, learning rate and updates per rollout of a cell's run."""
    training = entry.config.training
    panel = entry.arm.name.split("-")[1]
    return panel, entry.seed, training.learning_rate, training.updates_per_rollout


def study_progress(study: Study, runs: Sequence[Run]) -> pd.DataFrame:
    """One row an arm: seeds run of seeds planned, and what it is for."""
    counts = Counter(run.arm for run in runs)
    return pd.DataFrame(
        {
            "group": arm.group,
            "arm": arm.name,
            "seeds run": f"{counts[arm.name]} of {len(arm.seeds)}"
            if counts[arm.name]
            else "not run",
            "note": arm.note,
        }
        for arm in study.arms
    )
