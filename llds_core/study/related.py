"""Objectives of other papers beside GRPO, on the same recipe and the same seeds."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llds_core.config.arms import Study
from llds_core.files import bounded
from llds_core.reporting import figures as look
from llds_core.reporting.run_view import BASELINE, StoredRun, same_steps
from llds_core.reporting.stats import student_interval
from llds_core.study.evidence import beside

_CHANGE = "loglik_change_correct"
_MEASURES = {
    "best_reward": "best reward",
    "last_reward": "last reward of the run",
    "heldout_em": "held-out EM",
    "change_correct": "change of log-likelihood, nats",
    "entropy_growth": "entropy over its start",
    "seconds_per_step": "seconds per step",
}
# What the paper of an objective says, and the measure of ours that would be higher, if any.
_SAYS = {
    "llds-action": ("no collapse (2512.04220)", ""),
    "lp-reg": ("stable where others collapse (2510.03222)", "last_reward"),
    "clip-higher": ("keeps entropy from falling (2503.14476)", ""),  # here it rises
    "dapo": ("learns more in fewer steps (2503.14476)", "best_reward"),
    "gspo": ("more stable than GRPO (2507.18071)", "last_reward"),
    "dr-grpo": ("no worse without the deviation, no margin said (2503.20783)", "best_reward"),
    "lite-ppo": ("learns more than GRPO (2508.08221)", "best_reward"),
    "cispo": ("learns faster (2506.13585)", "best_reward"),
    "wapo": ("positive advantages suffice (2606.16154)", "last_reward"),
    "sapo-search": ("keeps likelihood and score (2603.10069)", "change_correct"),
}


def objectives(runs: Sequence[StoredRun], study: Study) -> pd.DataFrame:
    """One row per run of GRPO, also of the arms that repeat it, of LLDS and of the objectives of
    group `related`, on seeds that one of these has, within the steps that all of them were given.

    Returns:
        Columns `profile`, `method` (its arm), `seed`, `objective`, `beside` (the arm of GRPO's run
        to compare with, see `evidence.beside`), `collapsed`, windowed `best_reward` and
        `last_reward`, `heldout_em` of the best checkpoint (greedy; NaN where it was not scored),
        `change_correct` (log-likelihood of a rollout's own correct responses over its updates, nats
        per trajectory, mean of steps 3 to 15), `entropy_growth` and median `seconds_per_step`.
    """
    labels = {
        arm.name: look.short_name(arm.label)
        for arm in study.arms
        if arm.group in ("main", "mechanism", "related")
    }
    related = {arm.name for arm in study.arms if arm.group == "related"}
    seeds = {run.seed for run in runs if run.arm in related}
    found = [run for arm in labels for run in runs if run.arm == arm and run.seed in seeds]
    grpo, rows = beside(found), []
    for whole, run in zip(found, same_steps(found), strict=True):
        em = whole.heldout(within=run.rows["step"].max())
        seconds = run.rows["rollout_seconds"] + run.rows["update_seconds"]
        rows.append(
            run.key
            | {
                "objective": labels[run.arm],
                "beside": grpo[run.name].arm if run.name in grpo else "",
                "collapsed": run.collapse is not None,
                "best_reward": run.best("reward"),
                "last_reward": run.last("reward"),
                "heldout_em": np.nan if em is None else em,
                "change_correct": run.early_mean(_CHANGE),
                "entropy_growth": run.entropy_growth(),
                "seconds_per_step": seconds.median(),
            }
        )
    columns = ["profile", "method", "seed", "objective", "beside", "collapsed", *_MEASURES]
    return pd.DataFrame(rows, columns=columns)


def beside_grpo(table: pd.DataFrame) -> pd.DataFrame:
    """What `objectives` returns as one row per objective: how many seeds collapsed, and the mean of
    each measure less that of GRPO's run `beside`, with Student's 95 % interval from two seeds on;
    GRPO's row has its own means. Then what its paper says, and whether the interval of the measure
    that would show it lies on that side, on the other, or on both ("open", as "no worse" is, too,
    while no margin is stated). So have arms that repeat GRPO.
    """
    rows, grpo = [], _of_grpo(table)
    for arm, part in table.groupby("method", sort=False):
        row = {"objective": part["objective"].iloc[0], "seeds": len(part)}
        row["collapsed"] = f"{part['collapsed'].sum()} of {len(part)}"
        says, shown_by, here = *_SAYS.get(str(arm), ("", "")), ""
        for measure, name in _MEASURES.items():
            values, form = (part, ".2f") if arm in grpo else (_differences(table, part), "+.2f")
            found = student_interval(values[measure].dropna().tolist())
            row[name] = bounded(found.estimate, found.low, found.high, form) if found.n else "–"
            if measure == shown_by:
                side = "as said" if found.low > 0 else "the contrary" if found.high < 0 else "open"
                here = f"{side}: {name}"
        rows.append(row | {"its paper says": says, "here": here})
    return pd.DataFrame(rows)


def _of_grpo(table: pd.DataFrame) -> set[str]:
    """GRPO and the arms that repeat it, as far as others are compared with them."""
    return {BASELINE, *table["beside"]}


def _differences(table: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Measures of runs less those of GRPO's runs beside them."""
    base = table.set_index(["method", "seed"])[[*_MEASURES]]
    keys = pd.MultiIndex.from_arrays([own["beside"], own["seed"]])
    return own[[*_MEASURES]] - base.reindex(keys).to_numpy()


def objectives_figure(table: pd.DataFrame) -> Figure:
    """Draw what `objectives` returns, an objective per row, the highest last reward on top: on the
    left from the best reward (a line's end) to the last one (a mark), on the right the change of
    the log-likelihood of correct responses. A mark is a seed, a cross one that collapsed; verticals
    are the means of the arm of GRPO that most runs compare with.
    """
    means = table.groupby("objective")["last_reward"].mean().sort_values()
    places = {name: place for place, name in enumerate(means.index)}
    colours = {name: look.METHOD_COLOURS.get(name, look.GREY) for name in table["method"].unique()}
    with look.theme():
        figure, (left, right) = look.panels(1, 2, 1.8 + 0.3 * len(places), sharey=True)
        y = table["objective"].map(places) + 0.16 * (table["seed"] - table["seed"].mean())
        lines = left.hlines(y, table["best_reward"], table["last_reward"], linewidth=1, alpha=0.5)
        lines.set_color(table["method"].map(colours))
        compared = table["beside"].mode()[0]
        base = table[table["method"] == compared].mean(numeric_only=True)
        for axes, measure in ((left, "last_reward"), (right, "change_correct")):
            look.draw_runs(axes, table, x=measure, y=y, hue="method", palette=colours)
            axes.axvline(base[measure], color=look.GREY, linestyle=":", linewidth=1, zorder=0)
        right.set_xscale("symlog", linthresh=3)  # one seed may lose ten times as much as the others
        right.xaxis.set_major_formatter("{x:g}")
        right.axvline(0, color=look.GREY, linewidth=0.7, zorder=0)
        left.set_yticks(range(len(places)), [name.replace(", ", ",\n") for name in places])
        left.set(ylim=(-0.6, len(places) - 0.4), ylabel="")
        left.set_xlabel("reward: best (line's end), last (mark)")
        right.set_xlabel(look.axis_label(_CHANGE) + ",\nsteps 3 to 15")
        fell = table.groupby("objective")["collapsed"].any()
        look.set_title(left, f"Collapse on a seed: {fell.sum()} of {len(fell)}", 3)
        grpo = _of_grpo(table)
        others = [part for arm, part in table.groupby("method") if arm not in grpo]
        less = [_differences(table, part)["change_correct"].dropna().tolist() for part in others]
        better = sum(student_interval(values).low > 0 for values in less)
        look.set_title(right, f"95 % interval above GRPO's: {better} of {len(less)}", 3)
        look.legend_below(
            figure, 3, look.SEED_MARKS | {"mean of GRPO, same start": {"linestyle": ":"}}
        )
    return figure
