"""Figures of a study: what each arm did to the collapse.

A run that did not collapse within its steps is censored there and drawn as an open triangle: it may
have collapsed later. One that lost more than half of its best reward, but not by the strict rule of
`diagnostics.phases`, has a mark of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from llds_core.errors import DataError
from llds_core.reporting.figures import BASELINE, method_label
from llds_core.reporting.stats import censored_median

_SEED_ALPHA = 0.75
_FADED = "#777777"
_FELL_BELOW = 0.5  # of the best windowed reward
# What became of a run: colour, marker, fill and name in the legend.
_OUTCOMES = {
    "likelihood lost": ("#D55E00", "o", "full", "collapsed, likelihood lost"),
    "likelihood kept": ("#D55E00", "X", "full", "collapsed, likelihood kept"),
    "fell": ("#AA4499", "v", "full", "not by the rule, but fell below half of its best"),
    "none": ("#0072B2", ">", "none", "no collapse to its last step"),
}
_COLLAPSED = _OUTCOMES["likelihood lost"][0]
_MAP_TITLES = {"grpo": "GRPO", "llds": "GRPO + LLDS", "kl": "GRPO, KL weight 0.1"}
_REWARD_SPAN = 0.4
_BY_EPOCHS = "updates by epochs (mini-batches of 16)"
_BY_MINI_BATCH = "updates by mini-batch (1 epoch)"
# Arms of a group of the desk study that vary one thing, in the order of the setting; what another
# group or series has run already is shown again.
SERIES = {
    "factors": {
        _BY_EPOCHS: {
            "grpo-epochs-1": "8 updates (1 epoch)",
            "grpo-long-epochs-1": "8 updates (1 epoch), 120 steps",
            "grpo-epochs-2": "16 updates (2 epochs)",
            "grpo": "32 updates (4 epochs) = GRPO",
        },
        _BY_MINI_BATCH: {
            "grpo-one-epoch-1": "1 update (mini-batch of 128)",
            "grpo-one-epoch-2": "2 updates (mini-batches of 64)",
            "grpo-one-epoch-4": "4 updates (mini-batches of 32)",
            "grpo-epochs-1": "8 updates (mini-batches of 16)",
            "grpo-one-epoch-16": "16 updates (mini-batches of 8)",
            "grpo-one-epoch-32": "32 updates (mini-batches of 4)",
        },
        "mini-batch (32 updates a rollout)": {
            "grpo-mini-batch-8": "8 trajectories",
            "grpo": "16 trajectories = GRPO",
            "grpo-large-batch": "32 trajectories",
        },
        "sampling": {"grpo-top-p": "top-p 0.95", "grpo": "top-p 1 = GRPO"},
        "entropy bonus": {
            "grpo": "no entropy bonus = GRPO",
            "grpo-entropy-0.001": "entropy bonus 0.001",
            "grpo-entropy-0.01": "entropy bonus 0.01",
        },
        "search failures": {
            "grpo-failure-0": "no search fails",
            "grpo-failure-0.15": "15 % of searches fail",
            "grpo": "30 % of searches fail = GRPO",
        },
        "group size (128 trajectories)": {
            "grpo": "4 rollouts a prompt = GRPO",
            "grpo-group-8": "8 rollouts a prompt",
            "grpo-group-16": "16 rollouts a prompt",
        },
        "negative advantages": {
            "grpo": "negative advantages kept = GRPO",
            "grpo-no-negative": "negative advantages set to 0",
        },
    }
}
UPDATES = [*{**SERIES["factors"][_BY_EPOCHS], **SERIES["factors"][_BY_MINI_BATCH]}]


@dataclass(frozen=True)
class _Row:
    """A row of the figure: an arm, or a heading without one."""

    label: str
    arm: str | None = None
    weight: str = "normal"
    style: str = "normal"


def outcomes_figure(table: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> Figure:
    """Draw collapse step and likelihood slope of every run, a row an arm, under group headings.

    Vertical lines repeat GRPO's runs in every row. The axis of steps ends at twice the steps of the
    shortest run without a collapse; later ends and collapses stand there, with their steps.

    Args:
        table: what `outcomes` returns.
        groups: arms by heading, from top to bottom; an arm without runs is named "not run". The
            group "factors" gets a heading and the preset's own point for each factor.

    Raises:
        DataError: when no arm has a run.
    """
    rows = _rows(groups)
    if not table["method"].isin([row.arm for row in rows]).any():
        raise DataError("none of the arms has a run: run the study first")
    end = _axis_end(table)
    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.05):
        figure = Figure(figsize=(9.6, 0.25 * len(rows) + 1.9), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for _, run in table[table["method"] == BASELINE].iterrows():
            line = {"color": _COLLAPSED, "alpha": 0.2, "linewidth": 1.2, "zorder": 0}
            for axes, place in ((left, run["collapse_step"]), (right, run["slope"])):
                if not np.isnan(place):
                    axes.axvline(place, **line)
        for place, row in enumerate(rows):
            if row.arm is not None:
                _draw_row(left, right, place, table[table["method"] == row.arm], end)
        left.set_yticks(range(len(rows)), [row.label for row in rows])
        for text, row in zip(left.get_yticklabels(), rows, strict=True):
            text.set(fontweight=row.weight, fontstyle=row.style)
        left.set_ylim(len(rows) - 0.5, -0.5)
        left.set_xlim(0, end * 1.05)
        left.set_xlabel("step of the collapse, or last step")
        right.set_xlabel(
            "slope of the log-likelihood of correct\nresponses (nats per token, ten steps)"
        )
        right.xaxis.set_major_locator(MaxNLocator(nbins=5))
        right.axvline(0, color="#555555", linewidth=1)
        figure.legend(handles=_outcome_legend(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _rows(groups: Mapping[str, Sequence[str]]) -> list[_Row]:
    """Arms in no series of their group come before the series."""
    present = {arm for arms in groups.values() for arm in arms}
    rows = []
    for heading, arms in groups.items():
        # A series is shown for what the group itself has run, not for what it repeats.
        series = {
            title: {arm: label for arm, label in labels.items() if arm in present}
            for title, labels in SERIES.get(heading, {}).items()
            if labels.keys() & set(arms)
        }
        rows.append(_Row(heading, weight="bold"))
        rows += [
            _Row(method_label(arm), arm)
            for arm in arms
            if not any(arm in labels for labels in series.values())
        ]
        for title, labels in series.items():
            rows.append(_Row(title, style="italic"))
            rows += [_Row(label, arm) for arm, label in labels.items()]
    return rows


def _axis_end(table: pd.DataFrame) -> float:
    """Where the axis of steps ends: a single run much longer than the usual would squeeze all."""
    last = table["collapse_step"].fillna(table["steps"]).max()
    whole = table.loc[table["collapse_step"].isna(), "steps"]
    return min(last, 2 * whole.min()) if len(whole) else last


def _draw_row(left: Axes, right: Axes, row: int, runs: pd.DataFrame, end: float) -> None:
    plain = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    if runs.empty:
        left.text(1, row, "not run", va="center", fontsize=8, color=_FADED, bbox=plain)
    offsets = (np.arange(len(runs)) - (len(runs) - 1) / 2) * 0.18
    steps = runs["collapse_step"].fillna(runs["steps"])
    for offset, step, (_, run) in zip(offsets, steps, runs.iterrows(), strict=True):
        colour, marker, fill, _ = _OUTCOMES[_outcome(run)]
        style = {"color": colour, "marker": marker, "fillstyle": fill, "markersize": 5}
        style |= {"alpha": _SEED_ALPHA, "linestyle": "none"}
        left.plot(min(step, end), row + offset, **style)
        right.plot(run["slope"], row + offset, **style)
    beyond = steps[steps > end]
    if len(beyond):
        span = "–".join(f"{step:.0f}" for step in dict.fromkeys([beyond.min(), beyond.max()]))
        text = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 8}
        left.annotate(f"step {span} →", (end, row), (-7, 0), bbox=plain, **text)


def _outcome(run: pd.Series) -> str:
    if not np.isnan(run["collapse_step"]):
        return run["kind"]
    return "fell" if run["lowest_after_best"] < _FELL_BELOW else "none"


def _outcome_legend() -> list[Line2D]:
    handles = [
        Line2D([], [], color=c, marker=m, fillstyle=f, linestyle="none", label=label)
        for c, m, f, label in _OUTCOMES.values()
    ]
    return [*handles, Line2D([], [], color=_COLLAPSED, alpha=0.3, label="GRPO's runs")]


def map_figure(table: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Draw updates per rollout against learning rate, a panel a method: where it learns and breaks.

    Colour is the last reward (mean over a window) minus that of the start policy, on a fixed scale;
    the text says best and last reward and what became of the run, or that the cell was not run.

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
            gain = shown.assign(gain=shown["final_reward"] - shown["start_reward"]).pivot_table(
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
            # What was not run is no white cell, which would be a reward that stayed as it was.
            axes.patch.set(facecolor="#EFEFEF", hatch="///", edgecolor="#CFCFCF")
            for (row, update), (column, rate) in product(enumerate(updates), enumerate(rates)):
                here = shown["updates_per_rollout"].eq(update) & shown["learning_rate"].eq(rate)
                cell = shown[here].dropna(subset=["steps"])
                dark = abs(gain.iloc[row, column]) > 0.7 * _REWARD_SPAN
                ink = _FADED if cell.empty else "white" if dark else "black"
                axes.text(
                    column,
                    row,
                    _cell(cell),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=ink,
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
        figure.colorbar(image, ax=list(grid), label="last reward minus the start policy's")
    return figure


def _cell(runs: pd.DataFrame) -> str:
    if runs.empty:
        return "not run"
    collapsed = runs["collapse_step"].notna()
    rewards = runs[["best_reward", "final_reward"]].mean()
    # A run that diverges before its first full window has no mean reward.
    lines = [] if rewards.isna().all() else [" → ".join(f"{reward:.2f}" for reward in rewards)]
    of = f" ({collapsed.sum()} of {len(runs)})" if len(runs) > 1 else ""
    if collapsed.any():
        kinds = runs.loc[collapsed, "kind"].unique()
        lines.append(f"collapse at {censored_median(runs['collapse_step'])}{of}")
        lines.append(kinds[0] if len(kinds) == 1 else "likelihood lost or kept")
    else:
        lines.append(f"no collapse in {runs['steps'].max():.0f}")
        if (runs["lowest_after_best"] < _FELL_BELOW).any():
            lines.append("fell below half")
    return "\n".join(lines)
