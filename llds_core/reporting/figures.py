"""Figures: one theme, one fixed colour per method, beside every picture the numbers that drew it.

Nothing here measures anything: curves come from the metrics of runs, phases from
`diagnostics.phases`.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
    SymmetricalLogLocator,
)

from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import ConfigError, DataError, did_you_mean
from llds_core.files import disk_errors, write_table
from llds_core.reporting.artefacts import record
from llds_core.reporting.run_view import StoredRun
from llds_core.reporting.stats import student_interval

BASELINE = "grpo"
# Label, and a colour of Okabe and Ito's palette, told apart by colour-blind readers and in grey.
_METHODS = {
    "grpo": ("GRPO", "#D55E00"),
    "llds-action": ("GRPO + LLDS (action gate)", "#0072B2"),
    "llds-response": ("GRPO + LLDS (response gate)", "#56B4E9"),
    "llds-token": ("GRPO + LLDS (token gate)", "#009E73"),
    "llds-ma": ("GRPO + LLDS-MA", "#CC79A7"),
    "lite-ppo": ("Lite PPO", "#E69F00"),
    "gspo": ("GSPO", "#8C6D31"),
    "gspo-llds": ("GSPO + LLDS", "#333333"),
    "smollm2": ("SmolLM2-135M", "#777777"),
}
METHOD_LABELS = {name: label for name, (label, _) in _METHODS.items()}
METHOD_COLOURS = {name: colour for name, (_, colour) in _METHODS.items()}
_METRIC_LABELS = {
    "loglik_correct": "log-likelihood of correct responses",
    "loglik_incorrect": "log-likelihood of incorrect responses",
    "grad_norm": "gradient norm",
    "valid_searches": "valid searches per trajectory",
    "invalid_actions": "invalid actions per trajectory",
}
GREY = "#555555"
_PHASE_SHADES = {
    "stagnation": "#FFFFFF",
    "decay": "#FAF3DF",
    "acceleration": "#FAE6D8",
    "collapse": "#F0DCDA",
}
_BOLD = 2.2
SEEDS_FOR_INTERVAL = 3
_BY_FACTORS = ("entropy", "grad_norm")


def method_label(method: str) -> str:
    """How a method is called in figures and text."""
    return METHOD_LABELS.get(method, method)


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """Colours of `methods` in their order; what has no fixed one takes the next of a scale."""
    order = dict.fromkeys(methods)
    others = [method for method in order if method not in METHOD_COLOURS]
    scale = sns.color_palette("viridis_r", len(others)).as_hex()
    chosen = METHOD_COLOURS | dict(zip(others, scale, strict=True))
    return {method: chosen[method] for method in order}


def metric_label(metric: str) -> str:
    """Name of a metric for an axis, without its unit."""
    return _METRIC_LABELS.get(metric, metric.replace("_", " "))


def axis_label(metric: str) -> str:
    """Label and unit on lines of their own; a unit that the label already says is left out."""
    label, unit = metric_label(metric), METRICS[metric].unit
    return "\n".join(textwrap.wrap(label, 24) + ([] if unit in label else [f"({unit})"]))


@contextmanager
def theme(*, grid: bool = False) -> Iterator[None]:
    """The look of all figures; `grid` draws lines behind them."""
    style = sns.axes_style("whitegrid" if grid else "ticks")
    with style, sns.plotting_context("paper", font_scale=1.05):
        yield


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of panels, by rows; `size` is of a panel, in inches."""
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid:
        sns.despine(ax=axes)
    return figure, grid


def curves_data(runs: Sequence[StoredRun], metrics: Sequence[str]) -> pd.DataFrame:
    """Return what `curves_figure` draws: one row per run, step and metric."""
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f'unknown metric "{name}": {did_you_mean(name, METRICS)}')
    parts = [
        run.metrics.melt("step", [*metrics], var_name="metric").assign(
            profile=run.profile, method=run.arm, seed=run.seed
        )
        for run in runs
    ]
    columns = ["profile", "method", "seed", "step", "metric", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def curves_figure(
    runs: Sequence[StoredRun], metrics: Sequence[str], *, same_scale: Sequence[str] = ()
) -> Figure:
    """Draw one panel per metric against the step, lines as in `draw_seeds`.

    What changes by factors has a logarithmic axis, see `scale_axis`; panels of `same_scale` are to
    be compared and get one, see `share_scale`. Dotted verticals mark where a run collapses. Shades
    are the phases of the first GRPO run, or of the first run without one.
    """
    data = curves_data(runs, metrics)
    if data.empty:
        raise DataError("nothing to draw: name a metric and runs with a finished step")
    colours = method_colours(run.arm for run in runs)
    collapses = [(run.arm, step) for run in runs if (step := run.collapse_step) is not None]
    columns = 2 if len(metrics) == 4 else min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    with theme():
        figure, grid = panels(rows, columns, (3.9, 2.75 + 1 / rows))
        shown = dict(zip(metrics, grid, strict=False))
        for panel, axes in shown.items():
            values = data[data["metric"] == panel]
            scale_axis(axes, panel, values["value"])
            marker = "o" if values["step"].nunique() <= 40 else ""
            for arm, group in values.groupby("method", sort=False):
                table = group.pivot(index="step", columns="seed", values="value")
                draw_seeds(axes, table, colours[str(arm)], marker=marker)
            for arm, step in collapses:
                axes.axvline(step, color=colours[arm], linestyle=":", linewidth=1.5)
            axes.set(xlabel="step", ylabel=axis_label(panel))
            axes.set_xlim(data["step"].min() - 0.5, data["step"].max() + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.margins(y=0.12)
        share_scale([axes for panel, axes in shown.items() if panel in same_scale])
        for axes in grid[len(metrics) :]:
            axes.set_visible(False)
        figure.align_ylabels()
        handles = method_handles(colours)
        if collapses:
            handles.append(handle("collapse onset", GREY, linestyle=":", linewidth=1.5))
        legend_above(figure, handles)
        _shade_phases(figure, shown.values(), runs)
    return figure


def _shade_phases(figure: Figure, panels: Iterable[Axes], runs: Sequence[StoredRun]) -> None:
    """Colour the background by the phases of one run; a single phase needs no shade."""
    run = next((run for run in runs if run.arm == BASELINE), runs[0])
    if len(run.phases) < 2:
        return
    patches = []
    for phase in run.phases:
        colour = _PHASE_SHADES[phase.name]
        patches.append(Patch(facecolor=colour, edgecolor="#BBBBBB", label=phase.name))
        for axes in panels:
            axes.axvspan(phase.first - 0.5, phase.last + 0.5, color=colour, linewidth=0, zorder=0)
    title = f"background: phases of {method_label(run.arm)}, seed {run.seed}"
    style: dict[str, Any] = {"title": title, "ncols": len(patches), "frameon": False}
    figure.legend(handles=patches, loc="outside lower center", **style)


def save_figure(
    figure: Figure, data: pd.DataFrame, out_dir: Path, name: str, runs: Sequence[StoredRun]
) -> list[Path]:
    """Write and record `name`.png, .pdf and .csv, and return their paths; the same runs give the
    same bytes. `data` are the numbers that drew the figure, `runs` where they come from: their
    fingerprints go into the picture's metadata.
    """
    sources = "; ".join(f"{run.name} {run.fingerprint}" for run in runs)
    paths = [out_dir / f"{name}.{suffix}" for suffix in ("png", "pdf", "csv")]
    with disk_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        png = {"Title": name, "Source": sources, "Software": "llds_core"}
        figure.savefig(paths[0], dpi=150, metadata=png)
        pdf = {"Title": name, "Subject": sources, "Creator": "llds_core", "CreationDate": None}
        with mpl.rc_context({"pdf.fonttype": 42}):
            figure.savefig(paths[1], metadata=pdf)
    write_table(paths[2], data)
    record(paths, runs)
    return paths


def draw_seeds(
    axes: Axes, table: pd.DataFrame, colour: str, *, linestyle: str = "-", **style: Any
) -> None:
    """Draw a thin line per seed of `table`, by step or another number (rows) and seed (columns),
    and the mean of the seeds as in `draw_mean`, which has the `style`. NaN makes a gap.
    """
    thin: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.45, "linestyle": linestyle}
    axes.plot(table.index, table.to_numpy(float), color=colour, **thin)
    # An interval of three seeds may be so wide that the lines beside it would look flat: the lines
    # set the limits of the axis.
    limits = axes.dataLim.frozen()
    draw_mean(axes, table, colour, linestyle=linestyle, **style)
    axes.dataLim.set(limits)


def draw_mean(
    axes: Axes, table: pd.DataFrame, colour: str, *, band: bool = True, **style: Any
) -> None:
    """Draw the mean of the seeds of a table in bold and, from three on, Student's 95 % interval.

    On a logarithmic axis the mean is the geometric one, and the interval that of logarithms. The
    line ends with the shortest seed, as a mean beyond it would be that of the survivors; a seed
    without any value is left out.
    """
    table = table.dropna(axis=1, how="all")
    end = min((table[seed].last_valid_index() for seed in table), default=0)
    table = table.loc[table.first_valid_index() : end]
    is_log = axes.get_yscale() == "log"
    values = np.log(table) if is_log else table
    found = np.array([student_interval(row)[:3] for row in values.to_numpy(float)]).reshape(-1, 3).T
    mean, low, high = np.exp(found) if is_log else found
    style = {"linewidth": _BOLD, "markersize": 4.5, "markeredgewidth": 0} | style
    axes.plot(table.index, mean, color=colour, **style)
    if band and (several := table.count(axis=1) >= SEEDS_FOR_INTERVAL).any():
        shade: dict[str, Any] = {"alpha": 0.18, "linewidth": 0, "where": several}
        axes.fill_between(table.index, low, high, color=colour, **shade)


def student_bounds(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval as seaborn wants it; NaN below three values, for no interval."""
    found = student_interval(values)
    return (found.low, found.high) if found.n >= SEEDS_FOR_INTERVAL else (np.nan, np.nan)


def handle(label: str, colour: str, **style: Any) -> Line2D:
    """An entry of a legend: a bold line unless `style` says otherwise."""
    return Line2D([], [], label=label, color=colour, **{"linewidth": _BOLD, **style})


def method_handles(colours: Mapping[str, str], **style: Any) -> list[Line2D]:
    """Entries of a legend for methods with their colours."""
    return [handle(method_label(method), colour, **style) for method, colour in colours.items()]


def legend_above(figure: Figure, handles: Sequence[Artist], title: str | None = None) -> None:
    """Put a legend of at most four columns above all panels."""
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=4, frameon=False)


def scale_axis(axes: Axes, metric: str, values: pd.Series) -> None:
    """Make the y axis logarithmic for a metric that changes by factors, if its values allow it."""
    if metric in _BY_FACTORS and (values.dropna() > 0).all():
        log_scale(axes)


def log_scale(axes: Axes) -> None:
    """Make the y axis of `axes` logarithmic, with plain numbers at 1, 2, 5 times powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def share_scale(panels: Sequence[Axes]) -> None:
    """Give all `panels` one y axis: linear around 0, logarithmic beyond, so that small values are
    told apart beside large ones. It ends at 0 where no line is above.
    """
    if not panels:
        return
    for axes in panels:
        axes.set_yscale("symlog", linthresh=0.1, linscale=0.3)
        ticks = SymmetricalLogLocator(base=10, linthresh=0.1, subs=[1, 2, 3, 5])
        axes.yaxis.set_major_locator(ticks)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.autoscale(axis="y")
    low, high = np.array([axes.get_ylim() for axes in panels]).T
    above = max(axes.dataLim.ymax for axes in panels) > 0
    for axes in panels:
        axes.set_ylim(low.min(), high.max() if above else 0)
