"""Figures of a study: what each arm did to the collapse, its map, and its settings in their order.

A run that did not collapse within its steps is censored there and drawn as an open triangle: it may
have collapsed later. One that lost more than half of its best reward, but not by the strict rule of
`diagnostics.phases`, has a mark of its own.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.typing import FillStyleType

from llds_core.config.arms import Series, Study
from llds_core.errors import DataError
from llds_core.files import span
from llds_core.reporting.figures import (
    BASELINE,
    GREY,
    METHOD_COLOURS,
    axis_label,
    draw_mean,
    draw_seeds,
    handle,
    legend_above,
    panels,
    scale_axis,
    theme,
)
from llds_core.reporting.run_tables import usual_steps
from llds_core.reporting.run_view import StoredRun
from llds_core.reporting.stats import censored_median

_SEED_ALPHA = 0.75
_FADED = "#777777"
_PALE = "#AAAAAA"
_FELL_BELOW = 0.5  # of the best windowed reward
# What became of a run: colour, marker, fill and name in the legend.
_OUTCOMES: dict[str, tuple[str, str, FillStyleType, str]] = {
    "likelihood lost": ("#D55E00", "o", "full", "collapsed, likelihood lost"),
    "likelihood kept": ("#D55E00", "X", "full", "collapsed, likelihood kept"),
    "fell": ("#AA4499", "v", "full", "not by the rule, but fell below half of its best"),
    "none": ("#0072B2", ">", "none", "no collapse to its last step"),
}
_COLLAPSED = _OUTCOMES["likelihood lost"][0]
_REWARD_SPAN = 0.4


def outcomes_figure(table: pd.DataFrame, study: Study) -> Figure:
    """Draw collapse step and likelihood slope of every run, one row per arm, under group headings.

    Vertical lines repeat GRPO's runs in every row. The axis of steps ends at twice the steps of the
    shortest run without a collapse; later ends and collapses stand there, with their steps.

    Args:
        table: what `outcomes` returns.
        study: its arms from top to bottom, those of its map left out; an arm without runs is named
            "not run". A group for which the study has series is shown by series.
    """
    rows = _rows(study)
    if not table["method"].isin([arm for _, arm, _ in rows]).any():
        raise DataError("none of the arms has a run: run the study first")
    end = table["collapse_step"].fillna(table["steps"]).max()
    whole = table.loc[table["collapse_step"].isna(), "steps"]
    if len(whole):  # a single run much longer than the usual would squeeze all
        end = min(end, 2 * whole.min())
    with theme(grid=True):
        figure = Figure(figsize=(9.6, 0.25 * len(rows) + 1.9), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for _, run in table[table["method"] == BASELINE].iterrows():
            line = {"color": _COLLAPSED, "alpha": 0.2, "linewidth": 1.2, "zorder": 0}
            for axes, place in ((left, run["collapse_step"]), (right, run["slope"])):
                if not np.isnan(place):
                    axes.axvline(place, **line)
        left.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        for text, (place, (_, arm, style)) in zip(
            left.get_yticklabels(), enumerate(rows), strict=True
        ):
            text.set(**style)
            if arm is not None:
                _draw_row(left, right, place, table[table["method"] == arm], end)
        left.set_ylim(len(rows) - 0.5, -0.5)
        left.set_xlim(0, end * 1.05)
        left.set_xlabel("step of the collapse, or last step")
        right.set_xlabel(
            "slope of the log-likelihood of correct\nresponses (nats per token, ten steps)"
        )
        right.xaxis.set_major_locator(MaxNLocator(nbins=5))
        right.axvline(0, color=GREY, linewidth=1)
        handles = [
            Line2D([], [], color=c, marker=m, fillstyle=f, linestyle="none", label=label)
            for c, m, f, label in _OUTCOMES.values()
        ]
        handles.append(Line2D([], [], color=_COLLAPSED, alpha=0.3, label="GRPO's runs"))
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _rows(study: Study) -> list[tuple[str, str | None, dict[str, str]]]:
    """Label, arm and style of every row; a heading has no arm.

    Arms of a group that are in none of its series come before its series.
    """
    groups: dict[str, list[str]] = {}
    for arm in study.arms:
        if arm.name not in study.only_on_map:
            groups.setdefault(arm.group, []).append(arm.name)
    rows: list[tuple[str, str | None, dict[str, str]]] = []
    for heading, arms in groups.items():
        series = study.drawn(heading)
        in_series = {arm for one in series for arm in one.arms}
        rows.append((heading, None, {"fontweight": "bold"}))
        rows += [(study.labels[arm], arm, {}) for arm in arms if arm not in in_series]
        for one in series:
            rows.append((one.title, None, {"fontstyle": "italic"}))
            rows += [(label or study.labels[arm], arm, {}) for arm, label in one.arms.items()]
    return rows


def _draw_row(left: Axes, right: Axes, row: int, runs: pd.DataFrame, end: float) -> None:
    plain = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    if runs.empty:
        left.text(1, row, "not run", va="center", fontsize=8, color=_FADED, bbox=plain)
    offsets = (np.arange(len(runs)) - (len(runs) - 1) / 2) * 0.18
    steps = runs["collapse_step"].fillna(runs["steps"])
    for offset, step, (_, run) in zip(offsets, steps, runs.iterrows(), strict=True):
        kind = run["kind"] or ("fell" if run["lowest_after_best"] < _FELL_BELOW else "none")
        colour, marker, fill, _ = _OUTCOMES[kind]
        style: dict[str, Any] = {"color": colour, "marker": marker, "fillstyle": fill}
        style |= {"markersize": 5, "alpha": _SEED_ALPHA, "linestyle": "none"}
        left.plot(min(step, end), row + offset, **style)
        right.plot(run["slope"], row + offset, **style)
    beyond = steps[steps > end]
    if len(beyond):
        text: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8, "bbox": plain}
        left.annotate(
            f"step {span(beyond, 0, '–')} →",
            (end, row),
            (-7, 0),
            textcoords="offset points",
            **text,
        )


def map_figure(cells: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw updates per rollout against learning rate, one panel per method: where it learns and
    where it breaks.

    Colour is the last reward (mean over a window) minus that of the start policy, on a fixed scale;
    the text says best and last reward and what became of the run, or that the cell was not run.

    Args:
        cells: what `map_cells` returns.
        titles: of panels, by their name.
    """
    if cells.empty:
        raise DataError("the study has no map: name one with series of the figure map")
    rates = sorted(cells["learning_rate"].unique())
    updates = sorted(cells["updates_per_rollout"].unique())
    names = cells["panel"].unique()
    with sns.axes_style("white"), sns.plotting_context("paper", font_scale=1.05):
        figure = Figure(figsize=(3.4 * len(names) + 1, 3.5), layout="constrained")
        grid = figure.subplots(1, len(names), squeeze=False, sharey=True).ravel()
        for axes, panel in zip(grid, names, strict=True):
            shown = cells[cells["panel"] == panel]
            gain = shown.assign(gain=shown["final_reward"] - shown["start_reward"]).pivot_table(
                index="updates_per_rollout", columns="learning_rate", values="gain", dropna=False
            )
            gain = gain.reindex(index=updates, columns=rates)
            scale = {"cmap": "RdBu", "vmin": -_REWARD_SPAN, "vmax": _REWARD_SPAN}
            image = axes.imshow(gain, origin="lower", aspect="auto", **scale)
            # What was not run is no white cell, which would be a reward that stayed as it was.
            axes.patch.set(facecolor="#EFEFEF", hatch="///", edgecolor="#CFCFCF")
            for (row, update), (column, rate) in product(enumerate(updates), enumerate(rates)):
                here = shown["updates_per_rollout"].eq(update) & shown["learning_rate"].eq(rate)
                cell = shown[here].dropna(subset=["steps"])
                dark = abs(gain.iloc[row, column]) > 0.7 * _REWARD_SPAN
                ink = _FADED if cell.empty else "white" if dark else "black"
                text = {"ha": "center", "va": "center", "fontsize": 7.5, "color": ink}
                axes.text(column, row, _cell(cell), **text)
            axes.set_xticks(range(len(rates)), [f"{rate:.3g}" for rate in rates])
            axes.set_yticks(range(len(updates)), updates)
            axes.set_xlabel("learning rate")
            axes.set_title(titles.get(panel, panel))
        grid[0].set_ylabel("updates per rollout")
        seeds = cells["seed"].unique()
        title = f"one seed ({seeds[0]})" if len(seeds) == 1 else f"{len(seeds)} seeds"
        figure.suptitle(title, fontsize=9)
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


def weights_figure(runs: Sequence[StoredRun], metrics: Sequence[str]) -> Figure:
    """Draw metrics against the step, one row per metric, one column per penalty weight.

    Lines as in `draw_seeds`, over the steps that every run was given; dotted verticals mark
    collapses, and a grey line repeats the mean of the smallest weight over the same seeds.

    Args:
        runs: what differs in nothing but the weight.
        metrics: their names.
    """
    if not runs:
        raise DataError("no run of any weight: run the study first")
    steps = usual_steps(runs)
    columns: dict[float, list[StoredRun]] = {}
    for run in runs:
        columns.setdefault(run.setting("loss", "llds_weight"), []).append(run.first(steps))
    weights = sorted(columns)
    with theme():
        size = (max(1.45 * len(weights) + 0.9, 5.5), 1.6 * len(metrics) + 1.0)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(metrics), len(weights), squeeze=False, sharex=True, sharey="row")
        for line, metric in zip(grid, metrics, strict=True):
            line[0].set_ylabel(axis_label(metric))
            tables = {
                weight: pd.DataFrame({r.seed: r.rows.set_index("step")[metric] for r in found})
                for weight, found in sorted(columns.items())
            }
            smallest = tables[weights[0]]
            for axes, (weight, table) in zip(line, tables.items(), strict=True):
                scale_axis(axes, metric, pd.concat(tables.values()).stack())
                same = smallest[smallest.columns.intersection(table.columns)]
                draw_mean(axes, same, _PALE, band=False, linewidth=1.6, zorder=1)
                draw_seeds(axes, table, METHOD_COLOURS["llds-action" if weight else BASELINE])
                for run in columns[weight]:
                    if run.collapse is not None:
                        axes.axvline(run.collapse_step, color=GREY, linestyle=":", linewidth=1)
                axes.set_xlabel("")
                sns.despine(ax=axes)
        for axes, weight in zip(grid[0], weights, strict=True):
            found = [run.collapse is not None for run in columns[weight]]
            name = "0 (GRPO)" if weight == 0 else f"{weight:g}"
            axes.set_title(f"weight {name}\n{sum(found)} of {len(found)} collapse", fontsize=8)
        figure.supxlabel("step", fontsize=9)
        figure.align_ylabels()
        handles = [
            handle("a seed", GREY, linewidth=0.8, alpha=0.6),
            handle("mean", GREY),
            handle(f"mean of weight {weights[0]:g}", _PALE, linewidth=1.6),
            handle("collapse onset", GREY, linestyle=":", linewidth=1),
        ]
        legend_above(figure, handles)
    return figure


def updates_figure(
    runs: Sequence[StoredRun], metrics: Sequence[str], series: Sequence[Series]
) -> Figure:
    """Draw metrics against the optimizer updates made so far, one colour per number of updates on
    a rollout.

    Values are trailing means over the runs' window, lines as in `draw_seeds`, one style per series,
    a way to change that number: an arm of several has that of the first. Runs that reach the same
    place after as many updates are slowed down by fewer updates per rollout; runs that do not are
    changed.

    Args:
        runs: of the series.
        metrics: their names.
        series: of the figure `updates`, two at most.
    """
    if not runs:
        raise DataError("no run of any number of updates: run the study first")
    styles = dict(zip((one.name for one in series), ("-", "--"), strict=False))
    style_of = {arm: styles[one.name] for one in reversed(series) for arm in one.arms}
    arms: dict[tuple[int, str], list[StoredRun]] = {}
    for run in runs:
        place = (run.setting("training", "updates_per_rollout"), run.arm)
        arms.setdefault(place, []).append(run)
    numbers = sorted({updates for updates, _ in arms})
    palette = sns.color_palette("viridis_r", len(numbers)).as_hex()
    colours = dict(zip(numbers, palette, strict=True))
    with theme():
        figure, grid = panels(1, len(metrics), (3.6, 3.9))
        for axes, metric in zip(grid, metrics, strict=True):
            scale_axis(axes, metric, pd.concat([run.metrics[metric] for run in runs]))
            for (updates, arm), chosen in sorted(arms.items(), key=lambda item: item[0]):
                table = pd.DataFrame(
                    {
                        run.seed: pd.Series(run.means(metric), index=run.rows["updates"])
                        for run in chosen
                    }
                )
                draw_seeds(axes, table, colours[updates], linestyle=style_of[arm])
            axes.set(xlabel="optimizer updates so far", ylabel=axis_label(metric), xscale="log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        handles = [handle(f"{number} per rollout", colour) for number, colour in colours.items()]
        ways = [
            handle(name, GREY, linestyle=style, linewidth=1.5) for name, style in styles.items()
        ]
        legend_above(figure, [*handles, *ways])
    return figure
