"""Figures of a study: what each arm did to the collapse.

A run that did not collapse within its steps is censored there and drawn as an open triangle: it may
have collapsed later.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llds_core.errors import DataError
from llds_core.reporting.figures import BASELINE, method_label
from llds_core.reporting.stats import censored_median

_SEED_ALPHA = 0.75
_COLLAPSED, _HELD, _FADED = "#D55E00", "#0072B2", "#777777"
_MAP_TITLES = {"grpo": "GRPO", "llds": "GRPO + LLDS", "kl": "GRPO, KL weight 0.1"}
_REWARD_SPAN = 0.3


def outcomes_figure(table: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> Figure:
    """Draw collapse step and likelihood slope of every run, a row an arm, under group headings.

    Vertical lines repeat GRPO's runs in every row.

    Args:
        table: what `outcomes` returns.
        groups: arms by heading, from top to bottom; an arm without runs is named "not run".

    Raises:
        DataError: when no arm has a run.
    """
    rows = [
        row
        for heading, arms in groups.items()
        for row in [(heading, None), *((None, arm) for arm in arms)]
    ]
    drawn = [arm for _, arm in rows if arm is not None]
    if not table["method"].isin(drawn).any():
        raise DataError("none of the arms has a run: run the study first")
    updates = table.groupby("method")["updates_per_rollout"].first()
    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.05):
        figure = Figure(figsize=(9.2, 0.27 * len(rows) + 1.9), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for _, run in table[table["method"] == BASELINE].iterrows():
            line = {"color": _COLLAPSED, "alpha": 0.2, "linewidth": 1.2, "zorder": 0}
            if not np.isnan(run["collapse_step"]):
                left.axvline(run["collapse_step"], **line)
            right.axvline(run["slope"], **line)
        labels = []
        for row, (heading, arm) in enumerate(rows):
            labels.append(heading or _row_label(arm, updates))
            if arm is not None:
                _draw_row(left, right, row, table[table["method"] == arm])
        left.set_yticks(range(len(rows)), labels)
        for text, (heading, _) in zip(left.get_yticklabels(), rows, strict=True):
            text.set_fontweight("bold" if heading else "normal")
        left.set_ylim(len(rows) - 0.5, -0.5)
        left.set_xlim(0, table["steps"].max() * 1.05)
        left.set_xlabel("collapse (step)")
        right.set_xlabel(
            "slope of the log-likelihood of correct responses\n(nats per token, ten steps)"
        )
        right.axvline(0, color="#555555", linewidth=1)
        figure.legend(handles=_outcome_legend(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _row_label(arm: str, updates: pd.Series) -> str:
    """Name of an arm; with its updates per rollout where they are not GRPO's."""
    label = method_label(arm)
    if arm in updates and BASELINE in updates and updates[arm] != updates[BASELINE]:
        label += f" ({updates[arm]} updates)"
    return label


def _draw_row(left: Axes, right: Axes, row: int, runs: pd.DataFrame) -> None:
    if runs.empty:
        plain = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        left.text(1, row, "not run", va="center", fontsize=8, color=_FADED, bbox=plain)
    offsets = (np.arange(len(runs)) - (len(runs) - 1) / 2) * 0.16
    for offset, (_, run) in zip(offsets, runs.iterrows(), strict=True):
        held = np.isnan(run["collapse_step"])
        style = {"alpha": _SEED_ALPHA, "linestyle": "none", "markersize": 5}
        if held:
            style |= {"color": _HELD, "marker": ">", "fillstyle": "none"}
        else:
            style |= {"color": _COLLAPSED, "marker": "o" if run["likelihood_falls"] else "X"}
        left.plot(run["steps"] if held else run["collapse_step"], row + offset, **style)
        right.plot(run["slope"], row + offset, **style)


def _outcome_legend() -> list[Line2D]:
    kinds = (
        (_COLLAPSED, "o", "full", "collapsed, likelihood declined before"),
        (_COLLAPSED, "X", "full", "collapsed, no decline found by rule"),
        (_HELD, ">", "none", "held to its last step"),
    )
    handles = [
        Line2D([], [], color=c, marker=m, fillstyle=f, linestyle="none", label=label)
        for c, m, f, label in kinds
    ]
    return [*handles, Line2D([], [], color=_COLLAPSED, alpha=0.3, label="GRPO's runs")]


def map_figure(table: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Draw updates per rollout against learning rate, a panel a method: where it learns and breaks.

    Colour is the last reward minus the first (means over a window), on a fixed scale; the text says
    best and last reward and the step of the collapse, or that the cell was not run.

    Args:
        table: what `outcomes` returns, of equally many steps each.
        cells: what `map_cells` returns; only its seeds are shown.

    Raises:
        DataError: when the study has no map.
    """
    if cells.empty:
        raise DataError("the study has no map: name one with arms of the group map")
    rates = sorted(cells["learning_rate"].unique())
    updates = sorted(cells["updates_per_rollout"].unique())
    panels = cells["panel"].unique()
    with sns.axes_style("white"), sns.plotting_context("paper", font_scale=1.05):
        figure = Figure(figsize=(3.4 * len(panels) + 1, 3.5), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True).ravel()
        found = table.drop(columns=["learning_rate", "updates_per_rollout"])
        for axes, panel in zip(grid, panels, strict=True):
            shown = cells[cells["panel"] == panel].merge(found, on=["method", "seed"], how="left")
            gain = shown.assign(gain=shown["final_reward"] - shown["first_reward"]).pivot_table(
                index="updates_per_rollout", columns="learning_rate", values="gain", dropna=False
            )
            gain = gain.reindex(index=updates, columns=rates)
            image = axes.imshow(
                gain,
                cmap="RdBu",
                vmin=-_REWARD_SPAN,
                vmax=_REWARD_SPAN,
                origin="lower",
                aspect="auto",
            )
            for (row, update), (column, rate) in product(enumerate(updates), enumerate(rates)):
                here = shown["updates_per_rollout"].eq(update) & shown["learning_rate"].eq(rate)
                cell = shown[here].dropna(subset=["final_reward"])
                dark = abs(gain.iloc[row, column]) > 0.7 * _REWARD_SPAN
                axes.text(
                    column,
                    row,
                    _cell(cell),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if dark else "black",
                )
            axes.set_xticks(range(len(rates)), [f"{rate:.3g}" for rate in rates])
            axes.set_yticks(range(len(updates)), updates)
            axes.set_xlabel("learning rate")
            axes.set_title(_MAP_TITLES.get(panel, panel))
        grid[0].set_ylabel("updates per rollout")
        seeds = cells["seed"].unique()
        figure.suptitle(
            f"one seed ({seeds[0]})" if len(seeds) == 1 else f"{len(seeds)} seeds", fontsize=9
        )
        figure.colorbar(image, ax=list(grid), label="last reward minus first")
    return figure


def _cell(runs: pd.DataFrame) -> str:
    if runs.empty:
        return "not run"
    steps = runs["collapse_step"]
    reward = f"{runs['best_reward'].mean():.2f} → {runs['final_reward'].mean():.2f}"
    if steps.isna().all():
        return f"{reward}\nheld {runs['steps'].max():.0f}"
    falls = runs["likelihood_falls"].astype(bool).sum()
    kind = "likelihood declined" if falls == steps.notna().sum() else "no decline found"
    of = f" ({steps.notna().sum()} of {len(runs)})" if len(runs) > 1 else ""
    return f"{reward}\ncollapse at {censored_median(steps)}{of}\n{kind}"
