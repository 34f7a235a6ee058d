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

from llds_core.config import load_experiment
from llds_core.diagnostics.measure import covered, measure, mechanism_path, read_mechanism
from llds_core.errors import DataError
from llds_core.reporting.curves import curves_data
from llds_core.reporting.figures import (
    GREY,
    arm_names,
    draw_seeds,
    handle,
    log_scale,
    method_colours,
    method_label,
    name_lines,
    panels,
    set_title,
    short_name,
    student_bounds,
    theme,
    thin,
)
from llds_core.reporting.run_view import StoredRun, before_collapse, same_steps, usual_steps
from llds_core.reporting.store import is_published

OPTIMIZER = "adamw"  # that of training; each response was counted once for every optimizer
_QUESTIONS = 16  # per checkpoint that is measured for a figure
_KEYS = ["profile", "method", "seed", "step"]
_FACTOR_LABELS = {
    "driver": "driver score of Theorem 4.2",
    "pull": "pull of incorrect tokens",
    "own": "gradient of the response itself",
    "support": "support by other correct ones",
    "error_product": "product of prediction errors",
    "state_cosine": "similarity of token states",
    "similarity": "similarity of pooled states",
    "loglik_incorrect": "log-likelihood of incorrect",
    "loglik_correct": "control: log-likelihood of correct",
    "correct": "control: number of correct",
}
_OUTCOMES = ("correct", "incorrect")
_LINES = {"first": "-", "later": "--"}
_ACTIONS = [f"loglik_{outcome}_{place}" for outcome in _OUTCOMES for place in _LINES]
_SEARCHES = ["first_search_equal", "first_search_similar"]
_SIMILARITIES = 5  # bins with equally many questions


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
    methods = list(dict.fromkeys(run.method for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    made_here = not (load_experiment(f"{profile}/{methods[0]}").policy.path or overrides)
    folders = [mechanism_path(run_root, profile, seed) for seed in seeds]
    done, asked = covered(folders[0])
    if made_here and not is_published(run_root, profile) and not set(methods) <= set(done):
        measure(profile, methods, seeds[0], run_root, questions=asked or _QUESTIONS)
    found = [read_mechanism(folder) for folder in folders if folder.is_dir()]
    if not found or overrides:
        command = f"python -m llds_core mechanism {profile}"
        print(f"no checkpoint of these runs is measured: {command} does it")
        return {}
    tables = {name: pd.concat([one[name] for one in found], ignore_index=True) for name in found[0]}
    kept = {name: before_collapse(table, same_steps(runs)) for name, table in tables.items()}
    steps = usual_steps(runs)
    return {name: t[t["method"].isin(methods) & (t["step"] <= steps)] for name, t in kept.items()}


def _measured_names(table: pd.DataFrame, runs: Sequence[StoredRun]) -> dict[str, str]:
    """What stands at the lines: as `arm_names`, of the runs that were measured."""
    pairs = set(zip(table["method"], table["seed"], strict=True))
    known = {method: method_label(method) for method in table["method"].unique()}
    return known | arm_names([run for run in runs if (run.arm, run.seed) in pairs])


def likelihood_change_figure(changes: pd.DataFrame, runs: Sequence[StoredRun]) -> Figure:
    """Fig. 3: the share of questions that one update makes less likely, by step; by how much their
    likelihood changes, median and the middle 80 %; and the share by the similarity of states.

    Shares are drawn as in `draw_seeds`.
    """
    measured = changes[(changes["optimizer"] == OPTIMIZER) & changes["delta"].notna()]
    if measured.empty:
        raise DataError("every group had a single outcome: nothing changes, measure more questions")
    colours = method_colours(measured["method"])
    names = _measured_names(measured, runs)
    ranks = measured["similarity"].rank(method="first", pct=True)
    alike = np.ceil(ranks * _SIMILARITIES)
    measured = measured.assign(alike=alike, share=(measured["delta"] < 0).astype(float))
    with theme():
        figure, (share, change, states) = panels(1, 3, 2.7)
        said: dict[str, list[str]] = {"share": [], "change": [], "states": []}
        ends = []
        for method, colour in colours.items():
            own, name = measured[measured["method"] == method], short_name(method)
            by_step = own.pivot_table("share", "step", "seed")
            draw_seeds(share, by_step, colour, marker="o")
            spread = own.groupby("step")["delta"].quantile([0.1, 0.5, 0.9]).unstack()
            change.plot(spread.index, spread[0.5], color=colour, marker="o")
            shade: dict[str, Any] = {"color": colour, "alpha": 0.18, "linewidth": 0}
            change.fill_between(spread.index, spread[0.1], spread[0.9], **shade)
            by_state = own.pivot_table("share", "alike", "seed")
            end = draw_seeds(states, by_state, colour, marker="o")
            ends.append((*end, names[method], colour))
            mean = by_state.mean(axis=1)
            said["share"].append(f"{name} {by_step.mean(axis=1).max():.0%}")
            said["change"].append(f"{name} {own['delta'].median():+.1f}")
            said["states"].append(f"{name} {mean.iloc[0]:.0%} → {mean.iloc[-1]:.0%}")
        set_title(share, f"Lost at most: {', '.join(said['share'])}", 3)
        set_title(change, f"Median change: {', '.join(said['change'])}", 3)
        set_title(states, f"More alike: {', '.join(said['states'])}", 3)
        for axes in (share, states):
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
            axes.set_ylabel("questions whose correct\nresponses lose likelihood")
        for axes in (share, change):
            axes.set_xlabel("step, up to the collapse")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        change.set_ylabel("change in one update\n(nats per response)")
        change.axhline(0, color=GREY, linewidth=thin(0.8))
        states.set_xticks(range(1, _SIMILARITIES + 1))
        states.set_xlabel("fifth by similarity of states")
        name_lines(states, ends)
    return figure


def rounds_figure(rounds: pd.DataFrame, runs: Sequence[StoredRun]) -> Figure:
    """Fig. 6: negative log-likelihood against search rounds, by position and by total, at the last
    checkpoint of every seed, lines as in `draw_seeds`; dotted is the mean at the first.
    """
    steps = rounds.groupby(["method", "seed"])["step"]
    first, last = (rounds[rounds["step"] == steps.transform(end)] for end in ("min", "max"))
    colours, names = method_colours(rounds["method"]), _measured_names(rounds, runs)
    views = {"position": "searches before the action", "total": "searches of the response"}
    with theme():
        figure, grid = panels(1, 2, 2.7, sharey=True)
        ends: dict[str, tuple[float, float, str, str]] = {}
        for axes, (view, xlabel) in zip(grid, views.items(), strict=True):
            log_scale(axes)
            said = []
            for method, group in last[last["view"] == view].groupby("method", sort=False):
                name, colour = names[str(method)], colours[str(method)]
                by_seed = group.pivot(index="rounds", columns="seed", values="nll")
                end = draw_seeds(axes, by_seed, colour, marker="o")
                ends[str(method)] = (*end, name, colour)
                before = first[(first["view"] == view) & (first["method"] == method)]
                if method != "smollm2":  # whose only checkpoint is drawn
                    mean = before.groupby("rounds")["nll"].mean()
                    axes.plot(mean.index, mean, color=colour, linestyle=":", linewidth=thin(1.4))
                    found = np.exp(np.log(by_seed).mean(axis=1))
                    said.append(f"{short_name(method)} {found.iloc[0]:.2f} → {found.iloc[-1]:.2f}")
            axes.set_xlabel(xlabel)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            set_title(axes, f"More searches: {', '.join(said)}", 2)
        grid[0].set_ylabel("negative log-likelihood\n(nats per token)")
        lines = {"last checkpoint before the collapse": "-", "first checkpoint": ":"}
        handles = [handle(label, GREY, linestyle=line) for label, line in lines.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        name_lines(grid[-1], list(ends.values()))
    return figure


def theorem_figure(theorem: pd.DataFrame) -> Figure:
    """Rank correlation of the measured change with each cause that the theorem names.

    One panel per optimizer; a faint dot per checkpoint, a diamond for the mean over seeds of the
    means of their checkpoints, with Student's 95 % interval from three seeds on; on the shaded side
    the sign is the expected one.
    """
    colours = method_colours(theorem["method"])
    factors = [name for name in _FACTOR_LABELS if name in set(theorem["factor"])]
    expected = theorem.groupby("factor")["expected"].first()[factors]
    optimizers = list(dict.fromkeys(theorem["optimizer"]))
    common: dict[str, Any] = {"x": "spearman", "y": "factor", "hue": "method", "palette": colours}
    common |= {"order": factors, "legend": False}
    with theme(grid=True):
        figure, grid = panels(1, len(optimizers), 4.0, sharey=True)
        for axes, optimizer in zip(grid, optimizers, strict=True):
            part = theorem[theorem["optimizer"] == optimizer]
            axes.barh(factors, expected, height=0.95, color="#EEF3EA", zorder=0, linewidth=0)
            sns.stripplot(
                part, dodge=True, jitter=False, size=thin(2.5), alpha=0.35, ax=axes, **common
            )
            means = part.groupby(["factor", "method", "seed"], as_index=False)["spearman"].mean()
            style = {"linestyle": "none", "markers": "D", "markersize": thin(4.5)}
            style |= {"errorbar": student_bounds, "err_kws": {"linewidth": thin(1.6)}}
            dodge = 0.8 * (1 - 1 / len(colours))  # as stripplot does
            sns.pointplot(means, dodge=dodge, ax=axes, **style, **common)
            axes.axvline(0, color=GREY, linewidth=thin(1))
            axes.set(xlim=(-1.02, 1.02), xlabel="rank correlation with the change", ylabel="")
            driver = means[means["factor"] == "driver"].groupby("method", sort=False)["spearman"]
            said = [f"{short_name(method)} {mean:+.2f}" for method, mean in driver.mean().items()]
            set_title(axes, f"Driver ({optimizer}): {', '.join(said)}", 2)
        grid[0].set_yticks(range(len(factors)), [_FACTOR_LABELS[name] for name in factors])
        marks = {"marker": "D", "linestyle": ""}
        handles = [handle(short_name(name), hue, **marks) for name, hue in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def first_action_data(runs: Sequence[StoredRun], changes: pd.DataFrame) -> pd.DataFrame:
    """What `first_action_figure` draws: `profile`, `method`, `seed`, `step`, `metric` and `value`.

    From runs, the log-likelihoods of first and later actions up to the collapse. From a table of
    `measure`, `first_search_equal` and `first_search_similar`: shares of incorrect responses whose
    first search found the same documents as a correct one's, or half of them; searches that were
    made to fail are left out.
    """
    kept = [replace(run, metrics=run.rows.iloc[: run.before_collapse]) for run in runs]
    once = changes[changes["optimizer"] == OPTIMIZER]
    reached = [f"first_search_reached_{name}" for name in ("equal", "similar", "incorrect")]
    counts = once.groupby(_KEYS, sort=False)[reached].sum()
    total = counts.pop(reached[-1]).replace(0, np.nan)
    shares = counts.div(total, axis=0).set_axis(_SEARCHES, axis=1)
    shares = shares.reset_index().melt(_KEYS, var_name="metric")
    return pd.concat([curves_data(kept, list(_ACTIONS)), shares], ignore_index=True)


def first_action_figure(data: pd.DataFrame, runs: Sequence[StoredRun]) -> Figure:
    """Fig. 5: likelihood of first and later actions of correct and of incorrect responses, and how
    often an incorrect one began as a correct one; lines as in `draw_seeds`.
    """
    tables = {
        key: group.pivot(index="step", columns="seed", values="value")
        for key, group in data.groupby(["method", "metric"])
    }
    colours, names = method_colours(data["method"]), arm_names(runs)
    with theme():
        figure, (*grid, searches) = panels(1, 3, 2.9)
        for axes, outcome in zip(grid, _OUTCOMES, strict=True):
            said = []
            for method, colour in colours.items():
                heights = [
                    draw_seeds(
                        axes, tables[method, f"loglik_{outcome}_{place}"], colour, linestyle=line
                    )
                    for place, line in _LINES.items()
                ]
                said.append(f"{short_name(method)} {heights[0][1] - heights[1][1]:+.2f}")
            set_title(axes, f"First − later: {', '.join(said)}", 3)
            axes.set_ylabel(f"log-likelihood, {outcome}\nresponses (nats per token)")
        ends, said = [], []
        for method, colour in colours.items():
            if (method, "first_search_equal") in tables:
                end = draw_seeds(searches, tables[method, "first_search_equal"], colour)
                ends.append((*end, names[method], colour))
                said.append(f"{short_name(method)} {end[1]:.0%}")
        set_title(searches, f"Begin alike: {', '.join(said)}", 3)
        searches.set(ylim=(0, 1), ylabel="incorrect responses whose\nfirst search matches")
        searches.yaxis.set_major_formatter(PercentFormatter(1, 0))
        for axes in (*grid, searches):
            axes.set_xlabel("step, to the collapse")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        handles = [handle(f"{place} actions", GREY, linestyle=way) for place, way in _LINES.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        name_lines(searches, ends)
    return figure
