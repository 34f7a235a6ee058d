"""Figures of one setting of a study in its order: the weight of the penalty, and the updates that a
rollout is used for.
"""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from llds_core.errors import DataError
from llds_core.reporting.figures import (
    BASELINE,
    METHOD_COLOURS,
    axis_label,
    draw_mean,
    draw_seeds,
    scale_axis,
)
from llds_core.reporting.run_view import Measured
from llds_core.reporting.store import Run
from llds_core.study.study_tables import usual_steps


def weights_figure(runs: Sequence[Run], panels: Sequence[str]) -> Figure:
    """Draw metrics against the step, a row a metric, a column a penalty weight in its order.

    Lines as in `draw_seeds`, over the steps that every run was given; dotted verticals mark
    collapses, and a grey line repeats the mean of the smallest weight over the same seeds.

    Args:
        runs: what differs in nothing but the weight, see `weight_arms`.
        panels: names of metrics.

    Raises:
        DataError: without a run.
    """
    if not runs:
        raise DataError("no run of any weight: run the study first")
    steps = usual_steps(runs)
    columns: dict[float, list[Measured]] = {}
    for run in runs:
        weight = run.manifest["config"]["loss"]["llds_weight"]
        columns.setdefault(weight, []).append(Measured(run.first(steps), run.window))
    weights = sorted(columns)
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=0.95):
        size = (max(1.45 * len(weights) + 0.9, 5.5), 1.6 * len(panels) + 1.0)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(panels), len(weights), squeeze=False, sharex=True, sharey="row")
        for line, panel in zip(grid, panels, strict=True):
            line[0].set_ylabel(axis_label(panel))
            tables = {weight: _table(columns[weight], panel) for weight in weights}
            smallest = tables[weights[0]]
            for axes, (weight, table) in zip(line, tables.items(), strict=True):
                scale_axis(axes, panel, pd.concat(tables.values()).stack())
                same = smallest[smallest.columns.intersection(table.columns)]
                draw_mean(axes, same, "#AAAAAA", band=False, linewidth=1.6, zorder=1)
                arm = BASELINE if weight == 0 else "llds-action"
                draw_seeds(axes, table, METHOD_COLOURS[arm])
                for run in columns[weight]:
                    if run.collapse is not None:
                        step = run.step_at(run.collapse)
                        axes.axvline(step, color="#555555", linestyle=":", linewidth=1)
                sns.despine(ax=axes)
        for axes, weight in zip(grid[0], weights, strict=True):
            found = [run.collapse is not None for run in columns[weight]]
            name = "0 (GRPO)" if weight == 0 else f"{weight:g}"
            axes.set_title(f"weight {name}\n{sum(found)} of {len(found)} collapse", fontsize=8)
        figure.supxlabel("step", fontsize=9)
        figure.align_ylabels()
        handles = [
            Line2D([], [], color="#555555", linewidth=0.8, alpha=0.6, label="a seed"),
            Line2D([], [], color="#555555", linewidth=2.2, label="mean"),
            Line2D([], [], color="#AAAAAA", linewidth=1.6, label=f"mean of weight {weights[0]:g}"),
            Line2D([], [], color="#555555", linestyle=":", label="collapse onset"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _table(runs: Sequence[Measured], metric: str) -> pd.DataFrame:
    """Metric by step (rows) and seed (columns)."""
    return pd.DataFrame({run.run.seed: run.rows.set_index("step")[metric] for run in runs})


def updates_figure(runs: Sequence[Run], panels: Sequence[str]) -> Figure:
    """Draw metrics against the optimizer updates made so far, a colour for their number a rollout.

    Values are trailing means over the runs' window, lines as in `draw_seeds`, one style a way to
    change that number: solid by epochs, dashed by mini-batches. Runs that reach the same place
    after as many updates are slowed down by fewer updates a rollout; runs that do not are changed.

    Args:
        runs: of the two series of updates, and longer ones of their settings.
        panels: names of metrics.

    Raises:
        DataError: without a run.
    """
    if not runs:
        raise DataError("no run of any number of updates: run the study first")
    arms: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        updates = run.manifest["config"]["training"]["updates_per_rollout"]
        arms.setdefault((updates, run.arm), []).append(run)
    numbers = sorted({updates for updates, _ in arms})
    palette = sns.color_palette("viridis_r", len(numbers)).as_hex()
    colours = dict(zip(numbers, palette, strict=True))
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.05):
        figure = Figure(figsize=(3.6 * len(panels), 3.9), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=True):
            scale_axis(axes, panel, pd.concat([run.metrics[panel] for run in runs]))
            for (updates, arm), chosen in sorted(arms.items()):
                table = pd.DataFrame({run.seed: _by_updates(run, panel) for run in chosen})
                line = "--" if arm.startswith("grpo-one-epoch-") else "-"
                draw_seeds(axes, table, colours[updates], linestyle=line)
            axes.set(xlabel="optimizer updates so far", ylabel=axis_label(panel), xscale="log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            sns.despine(ax=axes)
        handles = [
            Line2D([], [], color=colour, linewidth=2.2, label=f"{number} a rollout")
            for number, colour in colours.items()
        ]
        for style, label in (("-", "by epochs"), ("--", "by mini-batches")):
            handles.append(Line2D([], [], color="#555555", linestyle=style, label=label))
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _by_updates(run: Run, metric: str) -> pd.Series:
    """Trailing means of a run's metric, by the updates it had made."""
    measured = Measured(run, run.window)
    return pd.Series(measured.means(metric), index=measured.rows["updates"])
