"""Tables of a study: what each arm did to the collapse and to held-out scores, and its map."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from llds_core.config.arms import Study
from llds_core.files import bounded
from llds_core.reporting.figures import method_label
from llds_core.reporting.run_view import BASELINE, StoredRun, by_method, full_length, usual_steps
from llds_core.reporting.stats import student_interval
from llds_core.study.evidence import RunsBySeed, beside, paired_survival
from llds_core.study.rules import PAIRS


def effects(runs: Sequence[StoredRun], study: Study) -> pd.DataFrame:
    """One row per arm of the study that shares seeds with GRPO and makes no fewer steps by plan:
    what it changes, seed by seed, against the run of GRPO from the same start policy where there is
    one, be it of an arm that repeats GRPO.

    Returns:
        Columns `group`, `arm`, `seeds` that it shares with GRPO, on how many of them both began at
        the same start policy (`same_start`), how many have `collapsed` and of GRPO's
        (`grpo_collapsed`), then means of differences from GRPO's run of the seed: `steps_survived`
        up to the common horizon with Student's 95 % interval, `best_reward` of a window,
        `last_reward`, windowed, at the last step that both have with Student's interval, and
        held-out exact match of the best and the last checkpoint (`heldout_em`, `last_heldout_em`),
        all within the steps that both were given; NaN where it was not measured on every seed.
    """
    known = full_length(run for run in runs if run.arm in study.labels)
    steps = usual_steps(known)
    grpo, rows = beside(known), []
    for arm in study.arms:
        own = {run.seed: run for run in known if run.arm == arm.name and run.name in grpo}
        if arm.name != BASELINE and own:
            base = {seed: grpo[run.name] for seed, run in own.items()}
            row = {"group": arm.group, "arm": arm.name, **_effect(own, base, steps)}
            rows.append(row | {"note": arm.note})
    return pd.DataFrame(rows)


def _effect(own: RunsBySeed, base: RunsBySeed, steps: int) -> dict[str, object]:
    def gains(measure: str) -> list[float]:
        return [PAIRS[measure](run, base[seed], steps) for seed, run in own.items()]

    survived = student_interval([*paired_survival(own, base).values()])
    last = student_interval(gains("final_reward"))
    return {
        "seeds": len(own),
        "same_start": sum(run.start == base[seed].start for seed, run in own.items()),
        "collapsed": sum(bool(run.collapsed_by(steps)) for run in own.values()),
        "grpo_collapsed": sum(bool(base[seed].collapsed_by(steps)) for seed in own),
        "steps_survived": survived.estimate,
        "steps_low": survived.low,
        "steps_high": survived.high,
        "best_reward": student_interval(gains("best_reward")).estimate,
        "last_reward": last.estimate,
        "last_reward_low": last.low,
        "last_reward_high": last.high,
        # Which seeds lack a score may depend on what became of them: NaN unless all have one.
        "heldout_em": float(np.mean(gains("heldout_best"))),
        "last_heldout_em": float(np.mean(gains("heldout_last"))),
    }


def heldout_table(
    runs: Sequence[StoredRun], arms: Sequence[str], *, checkpoint: str = "best"
) -> pd.DataFrame:
    """Held-out exact match by question kind, one row per arm: the shape of the paper's Table 3.

    Columns are `arm`, `seeds`, and mean [95 % interval over seeds] of one-hop, two-hop and all
    questions, greedy, then sampled at temperature 1, and of all questions greedy with the search
    failures of training, "–" without a score; of the `best` or `last` checkpoint within the steps
    every run was given, over seeds that all arms with a run share, "(n of m)" if n have a score.
    """
    columns = {
        f"{kind}{suffix}": (mode, key)
        for suffix, mode in (("", "greedy"), (", sampled", "sampled_1"))
        for kind, key in (("one-hop", "1-hop"), ("two-hop", "2-hop"), ("all", "all"))
    }
    columns["all, with failures"] = ("greedy_with_failures", "all")
    steps = usual_steps(runs)
    found = by_method(runs)
    by_arm = {arm: found[arm] for arm in arms if arm in found}
    seeds = [{run.seed for run in own} for own in by_arm.values()]
    rows = []
    for arm, own in by_arm.items():
        chosen = [run for run in own if all(run.seed in of for of in seeds)]
        row: dict[str, object] = {"arm": method_label(arm), "seeds": len(chosen)}
        for name, (mode, kind) in columns.items():
            values = [run.heldout(checkpoint, mode, kind, within=steps) for run in chosen]
            mean = student_interval([value for value in values if value is not None])
            told = bounded(mean.estimate, mean.low, mean.high, ".3f") if mean.n else "–"
            row[name] = told + f" ({mean.n} of {len(chosen)})" * (0 < mean.n < len(chosen))
        rows.append(row)
    return pd.DataFrame(rows, columns=["arm", "seeds", *columns])


def map_cells(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Cells of the study's map, whose panels are the series of the figure `map`: `panel`, `seed`,
    `learning_rate`, `updates_per_rollout` and `method`, the arm to show there, of the seeds that
    all arms of the panel have; then what `table`, of `outcomes`, says of its run, NaN where it was
    not run.
    """
    seeds = {arm.name: set(arm.seeds) for arm in study.arms}
    columns = ["panel", "seed", "learning_rate", "updates_per_rollout", "method"]
    rows = []
    for series in study.drawn("map"):
        shared = set.intersection(*(seeds[arm] for arm in series.arms))
        for entry in study.entries([*series.arms], sorted(shared)):
            training = entry.config.training
            place = (entry.seed, training.learning_rate, training.updates_per_rollout)
            rows.append((series.name, *place, entry.arm.name))
    found = table.drop(columns=["learning_rate", "updates_per_rollout"])
    return pd.DataFrame(rows, columns=columns).merge(found, on=["method", "seed"], how="left")


def study_progress(study: Study, runs: Sequence[StoredRun]) -> pd.DataFrame:
    """One row per arm that has a run: seeds run of seeds planned, and what it is for."""
    done = Counter(run.arm for run in runs)
    return pd.DataFrame(
        {
            "group": arm.group,
            "arm": arm.name,
            "seeds run": f"{done[arm.name]} of {len(arm.seeds)}",
            "note": arm.note,
        }
        for arm in study.arms
        if done[arm.name]
    )
