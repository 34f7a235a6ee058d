"""Figure 5 of arXiv 2512.04220: likelihood of first and later actions, and how often a wrong
response began as a right one.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llds_core.reporting.figures import METHOD_COLOURS, draw_seeds, method_label, share_scale
from llds_core.reporting.mechanism_figures import OPTIMIZER, PANEL
from llds_core.reporting.run_view import Measured
from llds_core.reporting.store import StoredRun

_KEYS = ["profile", "method", "seed", "step"]
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


def first_action_data(runs: Sequence[StoredRun], changes: pd.DataFrame) -> pd.DataFrame:
    """What `first_action_figure` draws: `profile`, `method`, `seed`, `step`, `metric` and `value`.

    Args:
        runs: their log-likelihoods of first and later actions, up to the collapse.
        changes: table of `measure`: `first_search_equal` and `first_search_similar` are shares of
            incorrect responses whose first search found the same documents as a correct one's, or
            half of them; searches that were made to fail are left out.
    """
    parts = []
    for run in runs:
        measured = Measured(run)
        kept = measured.rows.iloc[: measured.before_collapse]
        part = kept.melt("step", list(_ACTIONS), var_name="metric")
        parts.append(part.assign(profile=run.profile, method=run.arm, seed=run.seed))
    once = changes[changes["optimizer"] == OPTIMIZER]
    reached = [f"first_search_reached_{name}" for name in ("equal", "similar", "incorrect")]
    counts = once.groupby(_KEYS, sort=False)[reached].sum()
    total = counts.pop("first_search_reached_incorrect").replace(0, np.nan)
    shares = counts.div(total, axis=0).set_axis(list(_SEARCHES), axis=1)
    parts.append(shares.reset_index().melt(_KEYS, var_name="metric"))
    return pd.concat(parts, ignore_index=True)[[*_KEYS, "metric", "value"]]


def first_action_figure(data: pd.DataFrame) -> Figure:
    """One panel a method with the likelihoods, one with the shares; lines as in `draw_seeds`.

    Args:
        data: table of `first_action_data`.
    """
    actions = data[data["metric"].isin(_ACTIONS)]
    methods = list(dict.fromkeys(actions["method"]))
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.05):
        width, height = PANEL
        size = (width * (len(methods) + 1), height + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(1, len(methods) + 1, squeeze=False).ravel()
        for axes, method in zip(grid, methods, strict=False):
            for metric, (label, colour, line) in _ACTIONS.items():
                table = _by_seed(actions, method, metric)
                draw_seeds(axes, table, colour, linestyle=line, label=label)
            axes.set(
                xlabel="step, up to the collapse",
                ylabel="log-likelihood of actions\n(nats per token)",
            )
            axes.set_title(method_label(method), fontsize="medium")
        share_scale(grid[:-1])
        handles, labels = grid[0].get_legend_handles_labels()
        style = {"loc": "outside upper left", "ncols": 4, "frameon": False}
        figure.legend(handles, labels, title="response, action", **style)
        _draw_searches(grid[-1], data[data["metric"].isin(_SEARCHES)])
        for axes in grid:
            sns.despine(ax=axes)
    return figure


def _draw_searches(axes: Axes, searches: pd.DataFrame) -> None:
    for method in dict.fromkeys(searches["method"]):
        colour = METHOD_COLOURS.get(method, "#555555")
        for metric, (label, style) in _SEARCHES.items():
            table = _by_seed(searches, method, metric)
            draw_seeds(axes, table, colour, label=f"{method_label(method)}: {label}", **style)
    axes.set(
        xlabel="step, up to the collapse",
        ylim=(0, 1),
        ylabel="incorrect responses whose first\nsearch matches",
    )
    axes.legend(fontsize=6, frameon=False)


def _by_seed(data: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
    """Metric by step (rows) and seed (columns)."""
    chosen = data[(data["method"] == method) & (data["metric"] == metric)]
    return chosen.pivot(index="step", columns="seed", values="value")
