"""Figures: one theme, one fixed colour per method, beside every picture the numbers that drew it.

Nothing here measures anything: curves come from `Run.metrics`, phases from `diagnostics.phases`.
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
from matplotlib.ticker import MaxNLocator

from llds_core.diagnostics.metrics import METRICS
from llds_core.diagnostics.phases import WINDOW, Phase, collapse_step, detect_phases
from llds_core.errors import ConfigError, DataError, did_you_mean
from llds_core.files import disk_errors
from llds_core.reporting.store import Run

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
_FAMILIES = {"grpo": "GRPO", "llds": "LLDS"}
_WORDS = {
    "kl": "KL weight",
    "lr": "learning rate",
    "ma": "MA",
    "p": "$p$ 0.95",
    "grad": "gradient",
    "failure": "failure rate",
    "group": "groups of",
    "entropy": "entropy bonus",
    "negative": "negative advantages",
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
_SEEDS_FOR_INTERVAL = 3


def method_label(method: str) -> str:
    """How a method, or an arm of a study, is called in figures and text."""
    if method in METHOD_LABELS:
        return METHOD_LABELS[method]
    family, _, rest = method.partition("-")
    if not rest or family not in _FAMILIES:
        return method
    words = [_WORDS.get(word, word) for word in rest.split("-")]
    return f"{_FAMILIES[family]}, {' '.join(words)}"


def metric_label(metric: str) -> str:
    """Name of a metric for an axis, without its unit."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def curves_data(runs: Sequence[Run], panels: Sequence[str]) -> pd.DataFrame:
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


def curves_figure(runs: Sequence[Run], panels: Sequence[str], *, window: int = WINDOW) -> Figure:
    """Draw one panel per metric against the step.

    Thin lines are seeds, bold lines the mean of those that have a value; from three seeds on a band
    gives the 95 % bootstrap interval of that mean. Dotted verticals mark where a run collapses.
    Shades are the phases of the first GRPO run, or of the first run without one.

    Args:
        runs: any number of methods and seeds.
        panels: names of metrics.
        window: steps of the means that phases are judged on.

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
            _draw(axes, data[data["metric"] == panel], colours)
            for run, step in collapses:
                if step is not None:
                    axes.axvline(step, color=colours[run.arm], linestyle=":", linewidth=1.5)
            axes.set_xlabel("step")
            axes.set_ylabel(_axis_label(panel))
            axes.set_xlim(data["step"].min() - 0.5, data["step"].max() + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.margins(y=0.12)
            sns.despine(ax=axes)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.align_ylabels()
        collapsed = any(step is not None for _, step in collapses)
        _legend(figure, colours, collapsed=collapsed)
        _phase_legend(figure, shaded, phases)
    return figure


def save_figure(
    figure: Figure, data: pd.DataFrame, out_dir: Path, name: str, runs: Sequence[Run]
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
        data.to_csv(paths[2], index=False)
    return paths


def _colours(arms: Sequence[str]) -> dict[str, str]:
    """Methods keep their colour; other arms share a scale in the order they are given."""
    others = [arm for arm in arms if arm not in METHOD_COLOURS]
    scale = sns.color_palette("viridis_r", len(others)).as_hex()
    chosen = METHOD_COLOURS | dict(zip(others, scale, strict=True))
    return {arm: chosen[arm] for arm in arms}


def _by_step(run: Run, metric: str) -> pd.Series:
    return run.metrics.set_index("step")[metric]


def _shaded_run(runs: Sequence[Run]) -> Run:
    return next((run for run in runs if run.arm == BASELINE), runs[0])


def _draw(axes: Axes, data: pd.DataFrame, colours: Mapping[str, str]) -> None:
    short = data["step"].nunique() <= 40
    for method, group in data.groupby("method", sort=False):
        table = group.pivot(index="step", columns="seed", values="value")
        colour = colours[str(method)]
        for seed in table.columns:
            axes.plot(table.index, table[seed], color=colour, linewidth=0.8, alpha=0.45)
        # Beyond the end of the shortest run the mean would be that of the survivors.
        table = table.dropna(axis=1, how="all")
        table = table.loc[: min((table[s].last_valid_index() for s in table.columns), default=0)]
        mean = table.mean(axis=1)
        marker = {"marker": "o", "markersize": 3} if short else {}
        axes.plot(mean.index, mean, color=colour, linewidth=2.2, **marker)
        if len(table.columns) >= _SEEDS_FOR_INTERVAL:
            low, high = _intervals(table)
            axes.fill_between(table.index, low, high, color=colour, alpha=0.18, linewidth=0)


def _intervals(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    # Imported here: it brings torch, which figures of one or two seeds do without.
    from llds_core.evaluation import interval

    bounds = np.full((2, len(table)), np.nan)
    for row, values in enumerate(table.to_numpy(float)):
        present = values[~np.isnan(values)]
        if len(present) >= _SEEDS_FOR_INTERVAL:
            bounds[:, row] = interval(present)
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


def _phase_legend(figure: Figure, run: Run, phases: Sequence[Phase]) -> None:
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


def _axis_label(metric: str) -> str:
    """Label and unit on lines of their own; a unit that the label already says is left out."""
    label, unit = metric_label(metric), METRICS[metric].unit
    lines = textwrap.wrap(label, 24)
    return "\n".join(lines if unit in label else [*lines, f"({unit})"])
