"""Figures: one theme, one fixed colour per method, beside every picture the numbers that drew it.

Nothing here measures anything: curves come from stored runs, phases from `diagnostics.phases`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
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
from llds_core.diagnostics.phases import WINDOW, Phase, collapse_step, detect_phases
from llds_core.errors import ConfigError, DataError, did_you_mean
from llds_core.files import disk_errors, write_table
from llds_core.reporting.stats import student_interval
from llds_core.reporting.store import StoredRun

BASELINE = "grpo"
# Okabe and Ito's palette, told apart by colour-blind readers and in grey.
METHOD_COLOURS = {
    "grpo": "#D55E00",
    "llds-action": "#0072B2",
    "llds-response": "#56B4E9",
    "llds-token": "#009E73",
    "llds-ma": "#CC79A7",
    "lite-ppo": "#E69F00",
    "lp-reg": "#7A5195",
    "gspo": "#8C6D31",
    "gspo-llds": "#333333",
}
METHOD_LABELS = {
    "grpo": "GRPO",
    "llds-action": "GRPO + LLDS (action gate)",
    "llds-response": "GRPO + LLDS (response gate)",
    "llds-token": "GRPO + LLDS (token gate)",
    "llds-ma": "GRPO + LLDS-MA",
    "lite-ppo": "Lite PPO",
    "lp-reg": "Lp-Reg",
    "gspo": "GSPO",
    "gspo-llds": "GSPO + LLDS",
}
# Arms of a study; a name that ends in its setting is found by what stands before it.
_ARM_LABELS = {
    "llds-action-long": "GRPO + LLDS (action gate), long",
    "llds-preserved": "LLDS, normaliser: preserved tokens",
    "llds-positive": "LLDS, groups without variance left out",
    "llds-ma-fixed": "LLDS-MA, answer weight fixed at 0.5",
    "grpo-lr-half": "GRPO, half the learning rate",
    "grpo-lr-seventh": "GRPO, a seventh of the learning rate",
    "grpo-large-batch": "GRPO, mini-batches of 32",
    "grpo-grad-clip": "GRPO, gradient clipped at 0.1",
    "grpo-top-p": "GRPO, top-p 0.95",
    "grpo-no-negative": "GRPO, no negative advantages",
}
_SETTING_LABELS = {
    "llds-weight-": "LLDS, weight {}",
    "grpo-kl-": "GRPO, KL weight {}",
    "grpo-epochs-": "GRPO, epochs a rollout: {}",
    "grpo-one-epoch-": "GRPO, updates in one epoch: {}",
    "grpo-mini-batch-": "GRPO, mini-batches of {}",
    "grpo-entropy-": "GRPO, entropy bonus {}",
    "grpo-failure-": "GRPO, share of failing searches {}",
    "grpo-group-": "GRPO, groups of {}",
}
METRIC_LABELS = {
    "loglik_correct": "log-likelihood of correct responses",
    "loglik_incorrect": "log-likelihood of incorrect responses",
    "grad_norm": "gradient norm",
    "valid_searches": "valid searches per trajectory",
    "invalid_actions": "invalid actions per trajectory",
}
_PHASE_SHADES = {
    "stagnation": "#FFFFFF",
    "decay": "#FAF3DF",
    "acceleration": "#FAE6D8",
    "collapse": "#F0DCDA",
}
_PANEL = (3.9, 2.75)  # inches
SEEDS_FOR_INTERVAL = 3
_LINEAR_TO = 0.1
_BY_FACTORS = ("entropy", "grad_norm")


def method_label(method: str) -> str:
    """How a method, or an arm of a study, is called in figures and text."""
    named = METHOD_LABELS | _ARM_LABELS
    if method in named:
        return named[method]
    for start, label in _SETTING_LABELS.items():
        if method.startswith(start):
            return label.format(method.removeprefix(start))
    return method


def metric_label(metric: str) -> str:
    """Name of a metric for an axis, without its unit."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def axis_label(metric: str) -> str:
    """Label and unit on lines of their own; a unit that the label already says is left out."""
    label, unit = metric_label(metric), METRICS[metric].unit
    lines = textwrap.wrap(label, 24)
    return "\n".join(lines if unit in label else [*lines, f"({unit})"])


def curves_data(runs: Sequence[StoredRun], panels: Sequence[str]) -> pd.DataFrame:
    """Return what `curves_figure` draws: one row per run, step and metric.

    Raises:
        ConfigError: for a metric that does not exist.
    """
    for panel in panels:
        if panel not in METRICS:
            raise ConfigError(f'unknown metric "{panel}": {did_you_mean(panel, METRICS)}')
    columns = ["profile", "method", "seed", "step", "metric", "value"]
    parts = [
        pd.DataFrame(
            {
                "profile": run.profile,
                "method": run.arm,
                "seed": run.seed,
                "step": run.metrics["step"],
                "metric": panel,
                "value": run.metrics[panel],
            }
        )
        for run in runs
        for panel in panels
        if len(run.metrics)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def curves_figure(
    runs: Sequence[StoredRun],
    panels: Sequence[str],
    *,
    window: int = WINDOW,
    same_scale: Sequence[str] = (),
) -> Figure:
    """Draw one panel per metric against the step.

    Thin lines are seeds, bold lines the mean of those that have a value; from three seeds on a band
    gives Student's 95 % interval of that mean. What changes by factors has a logarithmic axis, see
    `scale_axis` and `seed_means`. Dotted verticals mark where a run collapses. Shades are the
    phases of the first GRPO run, or of the first run without one.

    Args:
        runs: any number of methods and seeds.
        panels: names of metrics.
        window: steps of the means that phases are judged on.
        same_scale: panels that are to be compared: one y axis, see `share_scale`.

    Raises:
        ConfigError: for a metric that does not exist, or no panel.
        DataError: when no run has a step to draw.
    """
    if not panels:
        raise ConfigError('a figure needs at least one metric: name some, e.g. "reward"')
    data = curves_data(runs, panels)
    if data.empty:
        raise DataError("none of the runs has a finished step: train at least one step first")
    columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.1):
        width, height = _PANEL
        shaded = _shaded_run(runs)
        phases = detect_phases(shaded.metrics, window=window)
        legends = 1.0 if len(phases) > 1 else 0.4
        size = (width * columns, height * rows + legends)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        colours = _colours(list(dict.fromkeys(run.arm for run in runs)))
        collapses = [(run, collapse_step(_by_step(run, "reward"), window)) for run in runs]
        for axes, panel in zip(grid, panels, strict=False):
            _shade(axes, phases)
            shown = data[data["metric"] == panel]
            scale_axis(axes, panel, shown["value"])
            _draw(axes, shown, colours)
            for run, step in collapses:
                if step is not None:
                    axes.axvline(step, color=colours[run.arm], linestyle=":", linewidth=1.5)
            axes.set_xlabel("step")
            axes.set_ylabel(axis_label(panel))
            axes.set_xlim(data["step"].min() - 0.5, data["step"].max() + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.margins(y=0.12)
            sns.despine(ax=axes)
        share_scale(
            [axes for axes, panel in zip(grid, panels, strict=False) if panel in same_scale]
        )
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.align_ylabels()
        collapsed = any(step is not None for _, step in collapses)
        _legend(figure, colours, collapsed=collapsed)
        _phase_legend(figure, shaded, phases)
    return figure


def save_figure(
    figure: Figure, data: pd.DataFrame, out_dir: Path, name: str, runs: Sequence[StoredRun]
) -> list[Path]:
    """Write `name`.png, .pdf and .csv under `out_dir`; the same runs give the same bytes.

    Args:
        figure: the picture.
        data: the numbers that drew it.
        out_dir: folder, made when missing.
        name: file name without suffix.
        runs: where the numbers come from; their fingerprints go into the picture's metadata.

    Returns:
        The three paths.

    Raises:
        RunError: when the folder cannot be written.
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
    return paths


def _colours(arms: Sequence[str]) -> dict[str, str]:
    """Methods keep their colour; other arms share a scale in the order they are given."""
    others = [arm for arm in arms if arm not in METHOD_COLOURS]
    scale = sns.color_palette("viridis_r", len(others)).as_hex()
    chosen = METHOD_COLOURS | dict(zip(others, scale, strict=True))
    return {arm: chosen[arm] for arm in arms}


def _by_step(run: StoredRun, metric: str) -> pd.Series:
    return run.metrics.set_index("step")[metric]


def _shaded_run(runs: Sequence[StoredRun]) -> StoredRun:
    return next((run for run in runs if run.arm == BASELINE), runs[0])


def _draw(axes: Axes, data: pd.DataFrame, colours: Mapping[str, str]) -> None:
    marker = "o" if data["step"].nunique() <= 40 else ""
    for method, group in data.groupby("method", sort=False):
        table = group.pivot(index="step", columns="seed", values="value")
        draw_seeds(axes, table, colours[str(method)], marker=marker)


def draw_seeds(
    axes: Axes,
    table: pd.DataFrame,
    colour: str,
    *,
    marker: str = "",
    linestyle: str = "-",
    label: str | None = None,
) -> None:
    """Draw a thin line a seed, their mean in bold and, from three seeds on, its interval, as in
    `seed_means`.

    Args:
        axes: where.
        table: values by step or another number (rows) and seed (columns).
        colour: of everything.
        marker: of the mean.
        linestyle: of the lines.
        label: of the mean in a legend.
    """
    for _, values in table.items():
        axes.plot(table.index, values, color=colour, linewidth=0.8, alpha=0.45, linestyle=linestyle)
    means = seed_means(axes, table)
    style = {"color": colour, "linewidth": 2.2, "linestyle": linestyle, "label": label}
    axes.plot(means.index, means["mean"], marker=marker, markersize=3, **style)
    if means["low"].notna().any():
        # Three seeds can give an interval beside which the lines would be flat: they set the axis.
        limits = axes.dataLim.frozen()
        band = {"color": colour, "alpha": 0.18, "linewidth": 0}
        axes.fill_between(means.index, means["low"], means["high"], **band)
        axes.dataLim.set(limits)


def seed_means(axes: Axes, table: pd.DataFrame) -> pd.DataFrame:
    """Columns `mean`, `low` and `high`: the mean of the seeds of a table and Student's 95 %
    interval, from three seeds on. On a logarithmic axis the mean is the geometric one, and the
    interval that of logarithms.

    Rows end with the shortest seed, as a mean beyond it would be that of the survivors. A seed
    without a value is left out.
    """
    table = table.dropna(axis=1, how="all")
    table = table.loc[: min((table[s].last_valid_index() for s in table.columns), default=0)]
    by_factors = axes.get_yscale() == "log"
    values = np.log(table) if by_factors else table
    columns = np.array([values.mean(axis=1), *_intervals(values)])
    names = ["mean", "low", "high"]
    return pd.DataFrame((np.exp(columns) if by_factors else columns).T, table.index, names)


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
    ticks = {"base": 10, "linthresh": _LINEAR_TO, "subs": [1, 2, 3, 5]}
    for axes in panels:
        axes.set_yscale("symlog", linthresh=_LINEAR_TO, linscale=0.3)
        axes.yaxis.set_major_locator(SymmetricalLogLocator(**ticks))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.autoscale(axis="y")
    if not len(panels):
        return
    limits = [axes.get_ylim() for axes in panels]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    curves = (
        line for axes in panels for line in axes.lines if line.get_transform() == axes.transData
    )
    if not any((np.asarray(line.get_ydata()) > 0).any() for line in curves):
        high = 0
    for axes in panels:
        axes.set_ylim(low, high)


def _intervals(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Student's 95 % interval of every row with enough seeds; NaN elsewhere."""
    bounds = np.full((2, len(table)), np.nan)
    for row, values in enumerate(table.to_numpy(float)):
        found = student_interval(values)
        if found.n >= SEEDS_FOR_INTERVAL:
            bounds[:, row] = found.low, found.high
    return bounds[0], bounds[1]


def _shade(axes: Axes, phases: Sequence[Phase]) -> None:
    """Colour the background by phase; a run with a single phase needs no shade."""
    for phase in phases if len(phases) > 1 else ():
        span = (phase.first - 0.5, phase.last + 0.5)
        axes.axvspan(*span, color=_PHASE_SHADES[phase.name], linewidth=0, zorder=0)


def _legend(figure: Figure, colours: Mapping[str, str], *, collapsed: bool) -> None:
    handles = [
        Line2D([], [], color=colour, linewidth=2.2, label=method_label(arm))
        for arm, colour in colours.items()
    ]
    if collapsed:
        handles.append(Line2D([], [], color="#555555", linestyle=":", label="collapse onset"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)


def _phase_legend(figure: Figure, run: StoredRun, phases: Sequence[Phase]) -> None:
    if len(phases) < 2:
        return
    patches = [
        Patch(facecolor=_PHASE_SHADES[phase.name], edgecolor="#BBBBBB", label=phase.name)
        for phase in phases
    ]
    figure.legend(
        handles=patches,
        title=f"background: phases of {method_label(run.arm)}, seed {run.seed}",
        loc="outside lower center",
        ncols=len(patches),
        frameon=False,
    )
