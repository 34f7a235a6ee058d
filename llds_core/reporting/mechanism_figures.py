"""Figures of the mechanism: Figures 3, 5, 6 and 9 of arXiv 2512.04220 and a check of its theorem.

The numbers come from `llds_core.diagnostics.measure` (checkpoints measured one by one) and from the
metrics of runs. A collapsed policy hardly has a correct response whose likelihood could fall:
figures and tables are of what went through `before_collapse`, as claims are.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from llds_core.config import load_experiment, load_study, studies
from llds_core.diagnostics.summary import mechanism_path, read_manifest, read_mechanism
from llds_core.errors import DataError
from llds_core.reporting import figures as look
from llds_core.reporting.curves import curves_data
from llds_core.reporting.run_view import StoredRun, before_collapse, same_steps, usual_steps
from llds_core.reporting.store import find_published, is_published

OPTIMIZER = "adamw"  # that of training; each response was counted once for every optimizer
_QUESTIONS = 16  # per checkpoint that is measured for a figure
_KEYS = ["profile", "method", "seed", "step"]
_OPTIMIZER_NAMES = {"adamw": "AdamW", "sgd": "SGD"}
_OUTCOMES = ("correct", "incorrect")
_LINES = {"first": "-", "later": "--"}
_ACTIONS = [f"loglik_{outcome}_{place}" for outcome in _OUTCOMES for place in _LINES]
_SEARCHES = ["first_search_equal", "first_search_similar"]
_SIMILARITIES = 5  # bins with equally many questions


def measured_runs(runs: Sequence[StoredRun], run_root: Path) -> list[StoredRun]:
    """The runs whose checkpoints show the mechanism: `runs`, and of a published study, in place of
    those of a method, what it has of the arm that repeats it to keep them (group `mechanism`).
    """
    profile, methods = runs[0].profile, {run.method for run in runs}
    if profile not in studies() or not is_published(run_root, profile):
        return [*runs]
    arms = [arm for arm in load_study(profile).chosen() if arm.group == "mechanism"]
    pairs = [(arm.name, seed) for arm in arms if arm.method in methods for seed in arm.seeds]
    kept = [run for pair in pairs if (run := find_published(run_root, profile, *pair))]
    return kept + [run for run in runs if run.arm not in {run.method for run in kept}]


def ensure_mechanism(
    runs: Sequence[StoredRun], run_root: Path, overrides: Sequence[str] = ()
) -> dict[str, pd.DataFrame]:
    """Read the mechanism tables of the seeds of `runs` that were measured, up to the collapse of
    each run and over the steps that all were given. What the first seed lacks is measured where
    checkpoints are stored; those of a policy that was not made here may be large and are measured
    by command only. None, and a line that says so, where nothing is measured or for runs with
    `overrides`, which measurements do not know.
    """
    profile = runs[0].profile
    methods = list(dict.fromkeys(run.arm for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    made_here = not (load_experiment(f"{profile}/{runs[0].method}").policy.path or overrides)
    folders = [mechanism_path(run_root, profile, seed) for seed in seeds]
    known = read_manifest(folders[0])
    if made_here and not is_published(run_root, profile) and {*methods} - {*known.get("runs", ())}:
        from llds_core.diagnostics.measure import measure  # loads transformers

        measure(profile, methods, seeds[0], run_root, questions=known.get("questions", _QUESTIONS))
    found = [folder for folder in folders if folder.is_dir()]
    if not found or overrides:
        command = f"python -m llds_core mechanism {profile}"
        print(f"no checkpoint of these runs is measured: {command} does it")
        return {}
    tables = read_mechanism(*found)
    for name, table in tables.items():
        kept = before_collapse(table, same_steps(runs))
        kept = kept[kept["method"].isin(methods) & (kept["step"] <= usual_steps(runs))]
        tables[name] = kept.sort_values("method", key=lambda m: m.map(methods.index), kind="stable")
    return tables


def _measured_lines(table: pd.DataFrame, runs: Sequence[StoredRun]) -> dict[str, look.Line]:
    """As `arm_lines`, of the runs that were measured."""
    pairs = set(zip(table["method"], table["seed"], strict=True))
    return look.arm_lines([run for run in runs if (run.arm, run.seed) in pairs], table["method"])


def likelihood_change_figure(changes: pd.DataFrame, runs: Sequence[StoredRun]) -> Figure:
    """Fig. 3: the share of questions that one update makes less likely, by step; by how much their
    likelihood changes, median and the middle 80 %; and the share by the similarity of states.

    Shares are drawn as in `draw_arms`.
    """
    measured = changes[(changes["optimizer"] == OPTIMIZER) & changes["delta"].notna()]
    if measured.empty:
        raise DataError("every group had a single outcome: nothing changes, measure more questions")
    arms = _measured_lines(measured, runs)
    ranks = measured["similarity"].rank(method="first", pct=True)
    alike = np.ceil(ranks * _SIMILARITIES)
    measured = measured.assign(alike=alike, share=(measured["delta"] < 0).astype(float))
    with look.theme():
        figure, (share, change, states) = look.panels(1, 3, 2.7)
        look.draw_arms(share, measured, arms, y="share", marker="o")
        by_state = look.draw_arms(states, measured, arms, "alike", "share", marker="o")
        for method, own in measured.groupby("method"):
            spread, colour = own.groupby("step")["delta"], arms[str(method)][1]
            change.plot(spread.median(), color=colour, marker="o")
            shade: dict[str, Any] = {"color": colour, "alpha": 0.18, "linewidth": 0}
            low, high = spread.quantile(0.1), spread.quantile(0.9)
            change.fill_between(low.index, low, high, **shade)
        by_seed = measured.groupby(["method", "seed", "step"])["share"].mean()
        last = by_seed.groupby(["method", "seed"]).last().groupby("method").mean()
        lost = look.each_arm(last.map("{:.0%}".format))
        look.set_title(share, f"Questions that lose, last measured: {lost}", 3)
        medians = measured.groupby("method", sort=False)["delta"].median()
        look.set_title(change, f"Median change: {look.each_arm(medians.map('{:+.1f}'.format))}", 3)
        ends = {m: f"{mean.iloc[0]:.0%} → {mean.iloc[-1]:.0%}" for m, mean in by_state.items()}
        look.set_title(states, f"From unlike to alike: {look.each_arm(ends)}", 3)
        for axes in (share, states):
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
            axes.set_ylabel("questions whose correct\nresponses lose likelihood")
        for axes in (share, change):
            axes.set_xlabel("step, up to the collapse")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        change.set_ylabel("change in one update\n(nats per response)")
        change.axhline(0, color=look.GREY, linewidth=0.8)
        states.set_xticks(range(1, _SIMILARITIES + 1))
        states.set_xlabel("similarity of states, fifths\nfrom low (1) to high (5)")
        look.name_lines(states, by_state, arms)
    return figure


def rounds_figure(rounds: pd.DataFrame, runs: Sequence[StoredRun]) -> Figure:
    """Fig. 6: negative log-likelihood against search rounds, by position and by total, at the last
    checkpoint of every seed, lines as in `draw_arms`; dashed is the mean at the first.
    """
    steps = rounds.groupby(["method", "seed"])["step"]
    first, last = (rounds[rounds["step"] == steps.transform(end)] for end in ("min", "max"))
    arms = _measured_lines(rounds, runs)
    views = {"position": "searches before the action", "total": "searches in the whole response"}
    with look.theme():
        figure, grid = look.panels(1, 2, 2.7, sharey=True)
        named: dict[str, pd.Series] = {}
        for axes, (view, xlabel) in zip(grid, views.items(), strict=True):
            look.log_scale(axes)
            means = look.draw_arms(
                axes, last[last["view"] == view], arms, "rounds", "nll", marker="o"
            )
            named |= means
            means.pop("smollm2", None)  # whose only checkpoint is drawn
            before = first[first["view"] == view].groupby(["method", "rounds"])["nll"].mean()
            for method in means:
                axes.plot(before[method], color=arms[method][1], linestyle="--", linewidth=1.4)
            # Of the seeds that have both ends: fewer reach most searches.
            seeds = last[last["view"] == view].pivot_table("nll", ["method", "rounds"], "seed")
            ends = {m: seeds.loc[m].iloc[[0, -1]].dropna(axis=1).mean(axis=1) for m in means}
            said = {m: f"{a:.2f} → {b:.2f}" for m, (a, b) in ends.items() if a == a}
            look.set_title(axes, f"Fewest to most, same seeds: {look.each_arm(said)}", 2)
            axes.set_xlabel(xlabel)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[0].set_ylabel("negative log-likelihood\n(nats per token)")
        last_ones = {"last checkpoint before the collapse": {}, "in fewer seeds": {"ls": ":"}}
        look.legend_below(figure, 3, last_ones | {"first checkpoint": {"ls": "--"}})
        look.name_lines(grid[-1], named, arms)
    return figure


def theorem_figure(theorem: pd.DataFrame) -> Figure:
    """Rank correlation of the measured change with each cause that the theorem names.

    One panel per optimizer; a faint dot per checkpoint, a diamond for the mean over seeds of the
    means of their checkpoints, with Student's 95 % interval from three seeds on; on the shaded side
    the sign is the expected one.
    """
    colours = look.method_colours(theorem["method"])
    labels = look.NAMES["factors"]
    factors = [name for name in labels if name in set(theorem["factor"])]
    expected = theorem.groupby("factor")["expected"].first()[factors]
    optimizers = list(dict.fromkeys(theorem["optimizer"]))
    common: dict[str, Any] = {"x": "spearman", "y": "factor", "hue": "method", "palette": colours}
    common |= {"order": factors, "legend": False}
    with look.theme(grid=True):
        figure, grid = look.panels(1, len(optimizers), 4.0, sharey=True)
        for axes, optimizer in zip(grid, optimizers, strict=True):
            part = theorem[theorem["optimizer"] == optimizer]
            axes.barh(factors, expected, height=0.95, color="#EEF3EA", zorder=0, linewidth=0)
            sns.stripplot(part, dodge=True, jitter=False, size=2.5, alpha=0.35, ax=axes, **common)
            means = part.groupby(["factor", "method", "seed"], as_index=False)["spearman"].mean()
            dodge = 0.8 * (1 - 1 / len(colours))  # as stripplot does
            look.draw_means(axes, means, dodge=dodge, markers="D", markersize=4.5, **common)
            axes.axvline(0, color=look.GREY, linewidth=1)
            axes.set(xlim=(-1.02, 1.02), ylabel="")
            axes.set_xlabel("rank correlation with\nthe change of likelihood")
            driver = means[means["factor"] == "driver"].groupby("method", sort=False)["spearman"]
            said = look.each_arm(driver.mean().map("{:+.2f}".format))
            look.set_title(axes, f"{_OPTIMIZER_NAMES[optimizer]}, driver score: {said}", 3)
        grid[0].set_yticks(range(len(factors)), [labels[name] for name in factors])
        entries = {look.short_name(name): {"color": hue} for name, hue in colours.items()}
        look.legend_below(figure, 4, entries, marker="D", linestyle="")
    return figure


def first_action_data(runs: Sequence[StoredRun], changes: pd.DataFrame) -> pd.DataFrame:
    """What `first_action_figure` draws: `profile`, `method`, `seed`, `step`, `metric` and `value`.

    From runs, the log-likelihoods of first and later actions up to the collapse, as trailing means
    of three steps. From a table of `measure`, `first_search_equal` and `first_search_similar`:
    shares of incorrect responses whose first search found the same documents as a correct one's,
    or half of them; searches that were made to fail are left out.
    """
    kept = [replace(run, metrics=run.rows.iloc[: run.before_collapse]) for run in runs]
    once = changes[changes["optimizer"] == OPTIMIZER]
    reached = [f"first_search_reached_{name}" for name in ("equal", "similar", "incorrect")]
    counts = once.groupby(_KEYS, sort=False)[reached].sum()
    total = counts.pop(reached[-1]).replace(0, np.nan)
    shares = counts.div(total, axis=0).set_axis(_SEARCHES, axis=1)
    shares = shares.reset_index().melt(_KEYS, var_name="metric")
    actions = curves_data(kept, list(_ACTIONS), glance=True)
    return pd.concat([actions, shares], ignore_index=True)


def _shared_ends(values: pd.DataFrame) -> pd.Series:
    """By arm the last step at which all of its seeds have a value."""
    lasts = values.dropna(subset="value").groupby(["method", "seed"])["step"].max()
    return lasts.groupby(level="method").min()


def first_action_figure(data: pd.DataFrame, runs: Sequence[StoredRun]) -> Figure:
    """Fig. 5: likelihood of first and later actions of correct and of incorrect responses, and how
    often an incorrect one began as a correct one; lines as in `draw_arms`.
    """
    arms, by_metric = look.arm_lines(runs), dict([*data.groupby("metric")])
    with look.theme():
        figure, (*grid, searches) = look.panels(1, 3, 2.9)
        for axes, outcome in zip(grid, _OUTCOMES, strict=True):
            first, later = (
                look.draw_arms(axes, by_metric[f"loglik_{outcome}_{place}"], arms, linestyle=line)
                for place, line in _LINES.items()
            )
            ends = _shared_ends(by_metric[f"loglik_{outcome}_first"])
            known = [arm for arm in first if len(first[arm]) and len(later[arm])]
            gaps = {a: f"{first[a].asof(ends[a]) - later[a].asof(ends[a]):+.2f}" for a in known}
            title = "First − later actions, last step of all seeds"
            look.set_title(axes, f"{title}: {look.each_arm(gaps)}", 3)
            axes.set_ylabel(f"log-likelihood, {outcome}\nresponses (nats per token)")
        shares = look.draw_arms(searches, by_metric["first_search_equal"], arms)
        ends = _shared_ends(by_metric["first_search_equal"])
        said = {arm: f"{share.asof(ends[arm]):.0%}" for arm, share in shares.items() if len(share)}
        look.set_title(searches, f"Begin like a right one, likewise: {look.each_arm(said)}", 3)
        searches.set(ylim=(0, 1), ylabel="incorrect responses whose\nfirst search matches")
        searches.yaxis.set_major_formatter(PercentFormatter(1, 0))
        for axes in (*grid, searches):
            axes.set_xlabel("step, to the collapse")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        look.legend_below(
            figure, 3, {f"{place} actions": {"linestyle": line} for place, line in _LINES.items()}
        )
        measured = _measured_lines(by_metric["first_search_equal"].dropna(), runs)
        look.name_lines(searches, shares, measured)
    return figure
