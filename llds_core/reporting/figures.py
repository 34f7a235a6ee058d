"""The look of all figures: sizes for a page or a slide, one colour per method, lines named where
they end, and beside every picture the numbers that drew it.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    LogLocator,
    NullFormatter,
    StrMethodFormatter,
    SymmetricalLogLocator,
)

from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import ConfigError, did_you_mean
from llds_core.files import disk_errors, write_table
from llds_core.reporting.artefacts import record
from llds_core.reporting.run_view import StoredRun, by_method
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
    "loglik_change_correct": "change of log-likelihood of correct responses",
    "grad_norm": "gradient norm",
    "valid_searches": "valid searches per trajectory",
    "invalid_actions": "invalid actions per trajectory",
}
GREY = "#555555"
FAINT = "#999999"
SEEDS_FOR_INTERVAL = 3
# How much larger than on a page: there all text is of 10 points, and a figure 7 inches wide.
_STYLES = {"paper": 1.0, "talk": 1.8}
_WIDTH, _POINTS = 7.0, 10.0
End = tuple[float, float, str, str]  # of a line: x, y, what it is called and its colour


def use_style(style: str) -> None:
    """Draw all figures from here on for a `paper` or a `talk`."""
    if style not in _STYLES:
        raise ConfigError(f'unknown style "{style}": {did_you_mean(style, _STYLES)}')
    mpl.rcParams["font.size"] = _POINTS * _STYLES[style]


def method_label(method: str) -> str:
    """How a method is called in figures and text."""
    return METHOD_LABELS.get(method, method)


def short_name(arm: str) -> str:
    """How a line is called: `LLDS` is the paper's own, with the gate of actions."""
    return method_label(arm).removeprefix("GRPO + ").removesuffix(" (action gate)")


def arm_names(runs: Sequence[StoredRun]) -> dict[str, str]:
    """What stands at the line of each arm: its name, its penalty weight and how many seeds."""
    names = {}
    for arm, own in by_method(runs).items():
        weight = own[0].setting("loss", "llds_weight")
        penalty = f", λ {weight:g}" if weight else ""
        names[arm] = f"{short_name(arm)}{penalty}\n{len(own)} seed{'s' * (len(own) > 1)}"
    return names


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """Colours of `methods` in their order; what has no fixed one takes the next of a scale."""
    order = dict.fromkeys(methods)
    others = [method for method in order if method not in METHOD_COLOURS]
    scale = sns.color_palette("viridis_r", len(others)).as_hex()
    chosen = METHOD_COLOURS | dict(zip(others, scale, strict=True))
    return {method: chosen[method] for method in order}


def axis_label(metric: str) -> str:
    """Label and unit on lines of their own; a unit that the label already says is left out."""
    label, unit = _METRIC_LABELS.get(metric, metric.replace("_", " ")), METRICS[metric].unit
    return "\n".join(textwrap.wrap(label, 24) + ([] if unit in label else [f"({unit})"]))


@contextmanager
def theme(*, grid: bool = False) -> Iterator[None]:
    """The look of all figures; `grid` draws lines behind them."""
    scale = mpl.rcParams["font.size"] / _POINTS
    sizes = {"lines.linewidth": 2.0, "lines.markersize": 4.0, "axes.linewidth": 0.8}
    sizes |= {f"{axis}tick.major.{part}": 3.0 for axis in "xy" for part in ("size", "pad")}
    look: dict[str, Any] = {name: scale * size for name, size in sizes.items()}
    look |= {"axes.titlesize": "medium", "axes.titleweight": "bold", "axes.titlelocation": "left"}
    look |= {"legend.frameon": False, "lines.markeredgewidth": 0}
    with sns.axes_style("whitegrid" if grid else "ticks"), mpl.rc_context(cast(Any, look)):
        yield


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of panels, by rows, each of `height` inches on a page; it is as wide as
    the text. `options` are those of `Figure.subplots`.
    """
    scale = mpl.rcParams["font.size"] / _POINTS
    figure = Figure(figsize=(scale * _WIDTH, scale * height * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, **options).ravel())
    for axes in grid:
        sns.despine(ax=axes)
    return figure, grid


def set_title(axes: Axes, text: str, columns: int = 1) -> None:
    """What a panel shows, in lines as long as one of so many columns has room for, broken where the
    text pauses.
    """
    whole = text.replace(" -", " −").replace(" ", "\xa0")
    for pause in (",", ":", ";"):
        whole = whole.replace(f"{pause}\xa0", f"{pause} ")
    lines = textwrap.wrap(
        whole, (76, 30, 20)[columns - 1], break_long_words=False, break_on_hyphens=False
    )
    axes.set_title("\n".join(lines).replace("\xa0", " "))


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


def thin(width: float) -> float:
    """A width of lines beside those of means, as wide as on a page."""
    return width * mpl.rcParams["font.size"] / _POINTS


def draw_seeds(
    axes: Axes, table: pd.DataFrame, colour: str, *, linestyle: str = "-", **style: Any
) -> tuple[float, float]:
    """Draw a thin line per seed of `table`, by step or another number (rows) and seed (columns),
    and the mean of the seeds as in `draw_mean`, which has the `style`; return where it ends. NaN
    makes a gap.
    """
    faint: dict[str, Any] = {"linewidth": thin(0.7), "alpha": 0.4, "linestyle": linestyle}
    axes.plot(table.index, table.to_numpy(float), color=colour, **faint)
    # An interval of three seeds may be so wide that the lines beside it would look flat: the lines
    # set the limits of the axis.
    limits = axes.dataLim.frozen()
    end = draw_mean(axes, table, colour, linestyle=linestyle, **style)
    axes.dataLim.set(limits)
    return end


def draw_mean(axes: Axes, table: pd.DataFrame, colour: str, **style: Any) -> tuple[float, float]:
    """Draw the mean of the seeds of a table in bold and, from three on, Student's 95 % interval;
    return where it ends.

    On a logarithmic axis the mean is the geometric one, and the interval that of logarithms. The
    bold line ends with the shortest seed, and goes on dotted as the mean of those that are left; a
    seed without any value is left out.
    """
    table = table.dropna(axis=1, how="all").loc[table.first_valid_index() :]
    end = min((table[seed].last_valid_index() for seed in table), default=0)
    is_log = axes.get_yscale() == "log"
    values = np.log(table) if is_log else table
    found = np.array([student_interval(row)[:3] for row in values.to_numpy(float)]).reshape(-1, 3)
    curve = pd.DataFrame(np.exp(found) if is_log else found, table.index, ["mean", "low", "high"])
    whole, left = curve.loc[:end], curve.loc[end:, "mean"].dropna()
    axes.plot(whole.index, whole["mean"], color=colour, **style)
    if len(left) > 1:
        axes.plot(left.index, left, color=colour, linestyle=":", linewidth=thin(1.6))
    if (several := table.loc[:end].count(axis=1) >= SEEDS_FOR_INTERVAL).any():
        shade: dict[str, Any] = {"alpha": 0.18, "linewidth": 0, "where": several}
        axes.fill_between(whole.index, whole["low"], whole["high"], color=colour, **shade)
    return (float(left.index[-1]), float(left.iloc[-1])) if len(left) else (np.nan, np.nan)


def name_lines(axes: Axes, ends: Sequence[End]) -> None:
    """Write the name of each line beside the panel at the height of its end, moved where two would
    lie on each other. Legends and titles come first: they decide how high the panel is.
    """
    figure = cast(Figure, axes.figure)
    figure.draw_without_rendering()
    axes.set_ylim(axes.get_ylim())
    known = [end for end in ends if np.isfinite(end[1])]
    places = [axes.transLimits.transform(axes.transScale.transform(end[:2]))[1] for end in known]
    height = 72 * axes.get_window_extent().height / figure.dpi
    room = [1.25 * mpl.rcParams["font.size"] * (1 + end[2].count("\n")) / height for end in known]
    order = np.argsort(places)
    for before, after in pairwise(order):
        least = places[before] + (room[before] + room[after]) / 2
        places[after] = max(places[after], least)
    for after, before in pairwise(order[::-1]):
        top = 1 - room[after] / 2 if after == order[-1] else places[after]
        places[after] = min(places[after], top)
        most = places[after] - (room[before] + room[after]) / 2
        places[before] = min(places[before], most)
    for (_, _, text, colour), place in zip(known, places, strict=True):
        style: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "weight": "bold"}
        axes.text(1.03, place, text, color=colour, linespacing=1.05, **style)


def mark_paper(axes: Axes, said: str) -> None:
    """A faint line at the value that the paper says, and its words; a percentage is a share."""
    value = float(re.findall(r"[\d.]+", said)[0]) / (100 if "%" in said else 1)
    axes.axhline(value, color=FAINT, linestyle=(0, (1, 2)), linewidth=thin(1.2), zorder=0)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, value), max(high, value + 0.1 * (high - low)))
    style: dict[str, Any] = {"color": FAINT, "va": "bottom", "style": "italic", "zorder": 1}
    said = said.replace("over", ">").replace("about", "≈")
    axes.text(0.02, value, f"paper {said}", transform=axes.get_yaxis_transform(), **style)


def student_bounds(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval as seaborn wants it; NaN below three values, for no interval."""
    found = student_interval(values)
    return (found.low, found.high) if found.n >= SEEDS_FOR_INTERVAL else (np.nan, np.nan)


def handle(label: str, colour: str, **style: Any) -> Line2D:
    """An entry of a legend: a bold line unless `style` says otherwise."""
    return Line2D([], [], label=label, color=colour, **style)


def seed_handles(colour: str) -> list[Line2D]:
    """Entries of a legend for marks of seeds: a dot, and a cross where the run collapsed."""
    marks = {"a seed": "o", "a seed that collapsed": "X"}
    return [handle(label, colour, marker=mark, linestyle="") for label, mark in marks.items()]


def log_scale(axes: Axes, *, wide: bool = False) -> None:
    """Make the y axis of `axes` logarithmic, with plain numbers at 1, 2, 5 times powers of ten, or
    of a `wide` range at these powers.
    """
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=[1] if wide else [1, 2, 5]))
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
        ticks = SymmetricalLogLocator(base=10, linthresh=0.1, subs=[1, 3])
        axes.yaxis.set_major_locator(ticks)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.autoscale(axis="y")
    low, high = np.array([axes.get_ylim() for axes in panels]).T
    above = max(axes.dataLim.ymax for axes in panels) > 0
    for axes in panels:
        axes.set_ylim(low.min(), high.max() if above else 0)
