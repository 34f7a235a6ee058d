"""Figures of the mechanism: Figures 3, 5, 6 and 9 of arXiv 2512.04220 and a check of its theorem.

The numbers come from `llds_core.diagnostics.measure` (checkpoints measured one by one) and from the
metrics of runs. A collapsed policy hardly has a correct response whose likelihood could fall:
figures and tables are of what went through `before_collapse`, as claims are.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llds_core.config import load_experiment
from llds_core.diagnostics.measure import covered, measure, mechanism_path, read_mechanism
from llds_core.errors import DataError
from llds_core.files import span
from llds_core.reporting.figures import (
    GREY,
    curves_data,
    draw_seeds,
    handle,
    legend_above,
    log_scale,
    method_colours,
    method_handles,
    method_label,
    panels,
    share_scale,
    student_bounds,
    theme,
)
from llds_core.reporting.run_view import StoredRun, before_collapse
from llds_core.reporting.store import is_published

OPTIMIZER = "adamw"  # that of training; each response was counted once for every optimizer
_QUESTIONS = 16  # per checkpoint that is measured for a figure
_KEPT = "checkpoints before the collapse of their run"
_KEYS = ["profile", "method", "seed", "step"]
_CHANGE = "change of log-likelihood\n(nats per response)"
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
_ACTIONS = {
    "loglik_correct_first": ("correct, first", "#0072B2", "-"),
    "loglik_correct_later": ("correct, later", "#0072B2", "--"),
    "loglik_incorrect_first": ("incorrect, first", "#D55E00", "-"),
    "loglik_incorrect_later": ("incorrect, later", "#D55E00", "--"),
}
_SEARCHES = {
    "first_search_equal": ("same documents", {"marker": "o"}),
    "first_search_similar": ("at least half the same", {"linestyle": ":"}),
}


def ensure_mechanism(runs: Sequence[StoredRun], run_root: Path) -> dict[str, pd.DataFrame]:
    """Read the mechanism tables of the seeds of `runs` that were measured, up to the collapse of
    each run. What the first seed lacks is measured where checkpoints are stored; those of a policy
    that was not made here may be large and are measured by command only.
    """
    profile = runs[0].profile
    methods = list(dict.fromkeys(run.method for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    made_here = not load_experiment(f"{profile}/{methods[0]}").policy.path
    folders = [mechanism_path(run_root, profile, seed) for seed in seeds]
    done, asked = covered(folders[0])
    if made_here and not is_published(run_root, profile) and not set(methods) <= set(done):
        measure(profile, methods, seeds[0], run_root, questions=asked or _QUESTIONS)
    found = [read_mechanism(folder) for folder in folders if folder.is_dir()]
    if not found:
        raise DataError(
            f"no checkpoint of seeds {', '.join(map(str, seeds))} is measured: run python -m "
            f"llds_core mechanism {profile}"
        )
    tables = {name: pd.concat([one[name] for one in found], ignore_index=True) for name in found[0]}
    return {name: before_collapse(table, runs) for name, table in tables.items()}


def share_table(changes: pd.DataFrame) -> pd.DataFrame:
    """One row per checkpoint: its `questions`, how many of them were `measured`, and the `share` of
    those whose correct responses lose likelihood, NaN without any.
    """
    once = changes[changes["optimizer"] == OPTIMIZER]
    once = once.assign(falls=(once["delta"] < 0).astype(float).where(once["delta"].notna()))
    falls = once.groupby(_KEYS, sort=False)["falls"]
    return falls.agg(questions="size", measured="count", share="mean").reset_index()


def likelihood_change_figure(changes: pd.DataFrame) -> Figure:
    """Fig. 3: change of each question under one update, share that falls, similarity of states.

    Changes are those of the first seed, a line per checkpoint; shares are drawn as in `draw_seeds`;
    the states are of all seeds.
    """
    measured = changes[(changes["optimizer"] == OPTIMIZER) & changes["delta"].notna()]
    if measured.empty:
        raise DataError("every group had a single outcome: nothing changes, measure more questions")
    colours = method_colours(measured["method"])
    with theme():
        figure, grid = panels(1, len(colours) + 2, (3.315, 3.0))
        share, states = grid[-2:]
        style: dict[str, Any]
        for axes, method in zip(grid, colours, strict=False):
            own = measured[measured["method"] == method]
            own = own[own["seed"] == own["seed"].min()]
            order = own.groupby("step")["delta"].rank("first", pct=True)
            style = {"hue": "step", "palette": "flare", "legend": "full", "estimator": None}
            sns.lineplot(own, x=order, y="delta", ax=axes, **style)
            axes.legend(title="step", fontsize=6, title_fontsize=7, ncols=2, frameon=False)
            axes.set_title(method_label(method), fontsize="medium")
            axes.set(xlabel=f"questions of seed {own['seed'].min()}, sorted", ylabel=_CHANGE)
        # A method none of whose groups had both outcomes has no share.
        shares = share_table(changes[changes["method"].isin(colours)])
        for method, group in shares.groupby("method", sort=False):
            by_seed = group.pivot(index="step", columns="seed", values="share")
            draw_seeds(share, by_seed, colours[method], marker="o")
        share.set(xlabel="step", ylabel="share of questions\nwith a fall", ylim=(0, 1))
        style = {"hue": "method", "palette": colours, "s": 7, "alpha": 0.4, "linewidth": 0}
        sns.scatterplot(measured, x="similarity", y="delta", legend=False, ax=states, **style)
        states.set(xlabel="similarity of correct and\nincorrect states (cosine)", ylabel=_CHANGE)
        for axes in (*grid[:-2], states):
            axes.set_yscale("symlog", linthresh=0.1)
            axes.axhline(0, color="#777777", linewidth=0.8)
        legend_above(figure, method_handles(colours, marker="o", linestyle=""), _KEPT)
    return figure


def rounds_figure(rounds: pd.DataFrame) -> Figure:
    """Fig. 6: negative log-likelihood against search rounds, by position and by total, at the first
    and at the last checkpoint of every seed; lines as in `draw_seeds`.
    """
    steps = rounds.groupby(["method", "seed"])["step"]
    first, last = (rounds["step"] == steps.transform(end) for end in ("min", "max"))
    scripted = rounds["method"] == "smollm2"
    ends = np.select([scripted, first, last], ["scripted", "first", "last"], "")
    rounds = rounds.assign(end=ends)[ends != ""]
    colours = method_colours(rounds["method"])
    views = (
        ("position", "rounds before the action", "actions by position"),
        ("total", "search rounds of the response", "whole responses"),
    )
    with theme():
        figure, grid = panels(1, 2, (5.2, 3.0))
        for axes, (view, xlabel, title) in zip(grid, views, strict=True):
            log_scale(axes)
            for (method, end), group in rounds[rounds["view"] == view].groupby(["method", "end"]):
                by_seed = group.pivot(index="rounds", columns="seed", values="nll")
                label = f"{method_label(str(method))}, {end}"
                if end != "scripted":  # where seeds collapse, their last checkpoints differ
                    label += f": step {span(group['step'], 0, '–')}"
                style = {"marker": "o", "linestyle": ":" if end == "first" else "-"}
                draw_seeds(axes, by_seed, colours[method], label=label, **style)
            axes.set(xlabel=xlabel, ylabel="negative log-likelihood\n(nats per token)", title=title)
            cast(MaxNLocator, axes.xaxis.get_major_locator()).set_params(integer=True)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, title=_KEPT, loc="outside right center", frameon=False)
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
        figure = Figure(figsize=(4.6 * len(optimizers) + 1.5, 4.2), layout="constrained")
        grid = figure.subplots(1, len(optimizers), sharey=True, squeeze=False).ravel()
        for axes, optimizer in zip(grid, optimizers, strict=True):
            part = theorem[theorem["optimizer"] == optimizer]
            axes.barh(factors, expected, height=0.95, color="#EEF3EA", zorder=0, linewidth=0)
            sns.stripplot(part, dodge=True, jitter=False, size=3, alpha=0.35, ax=axes, **common)
            means = part.groupby(["factor", "method", "seed"], as_index=False)["spearman"].mean()
            style = {"linestyle": "none", "markers": "D", "markersize": 6}
            style |= {"errorbar": student_bounds, "err_kws": {"linewidth": 2}}
            dodge = 0.8 * (1 - 1 / len(colours))  # as stripplot does
            sns.pointplot(means, dodge=dodge, ax=axes, **style, **common)
            axes.axvline(0, color=GREY, linewidth=1)
            axes.set(xlim=(-1.02, 1.02), title=optimizer, ylabel="")
            axes.set_xlabel("rank correlation with the change")
        grid[0].set_yticks(range(len(factors)), [_FACTOR_LABELS[name] for name in factors])
        legend_above(figure, method_handles(colours, marker="D"), _KEPT)
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
    shares = counts.div(total, axis=0).set_axis(list(_SEARCHES), axis=1)
    shares = shares.reset_index().melt(_KEYS, var_name="metric")
    return pd.concat([curves_data(kept, list(_ACTIONS)), shares], ignore_index=True)


def first_action_figure(data: pd.DataFrame) -> Figure:
    """Fig. 5: one panel per method with the likelihoods of first and later actions, one with how
    often a wrong response began as a right one; lines as in `draw_seeds`.
    """
    tables = {
        key: group.pivot(index="step", columns="seed", values="value")
        for key, group in data.groupby(["method", "metric"])
    }
    methods = list(dict.fromkeys(data.loc[data["metric"].isin(_ACTIONS), "method"]))
    with theme():
        figure, (*grid, searches) = panels(1, len(methods) + 1, (3.9, 3.5))
        for axes, method in zip(grid, methods, strict=True):
            for metric, (_, colour, line) in _ACTIONS.items():
                draw_seeds(axes, tables[method, metric], colour, linestyle=line)
            axes.set_ylabel("log-likelihood of actions\n(nats per token)")
            axes.set_title(method_label(method), fontsize="medium")
        share_scale(grid)
        colours = method_colours(data["method"])
        for (method, metric), table in tables.items():
            if metric in _SEARCHES:
                name, style = _SEARCHES[metric]
                label = f"{method_label(method)}: {name}"
                draw_seeds(searches, table, colours[method], label=label, **style)
        searches.set(ylim=(0, 1), ylabel="incorrect responses whose first\nsearch matches")
        searches.legend(fontsize=6, frameon=False)
        for axes in (*grid, searches):
            axes.set_xlabel("step, up to the collapse")
        handles = [handle(name, colour, linestyle=line) for name, colour, line in _ACTIONS.values()]
        legend_above(figure, handles, "response, action")
    return figure
