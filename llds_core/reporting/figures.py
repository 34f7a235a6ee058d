"""The look of all figures: sizes for a page or a slide, one colour per method, lines named where
they end, and beside every picture the numbers that drew it.
"""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter, SymmetricalLogLocator

from llds_core.config.load import PRESETS
from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import ConfigError, did_you_mean
from llds_core.files import disk_errors, write_table
from llds_core.reporting.artefacts import record
from llds_core.reporting.run_view import StoredRun, by_method
from llds_core.reporting.stats import student_interval

NAMES = yaml.safe_load((PRESETS / "figures.yaml").read_text("utf-8"))
METHOD_COLOURS = {name: colour for name, (_, colour) in NAMES["methods"].items()}
GREY = "#555555"
FAINT = "#999999"
SEEDS_FOR_INTERVAL = 3
_FATES = {False: "o", True: "X"}  # the mark of a run, by whether it collapsed
SEED_MARKS: dict[str, dict[str, Any]] = {
    "a seed": {"marker": _FATES[False], "linestyle": ""},
    "a seed that collapsed": {"marker": _FATES[True], "linestyle": ""},
}
# Dots per inch of a figure as wide as a page, 7 inches, whose text is of 10 points.
_STYLES = {"paper": 150, "talk": 270}
_WIDTH = 7.0
STEP_PANELS = "Step panels"  # a key of a picture's metadata
Line = tuple[str, str]  # what a line is called, and its colour


def use_style(style: str) -> None:
    """Draw all figures from here on for a `paper` or, nearly twice as large, for a `talk`."""
    if style not in _STYLES:
        raise ConfigError(f'unknown style "{style}": {did_you_mean(style, _STYLES)}')
    mpl.rcParams["savefig.dpi"] = _STYLES[style]


def method_label(method: str) -> str:
    """How a method is called in figures and text."""
    return str(NAMES["methods"].get(method, [method])[0])


def short_name(arm: str) -> str:
    """How a line is called: `LLDS` is the paper's own, with the gate of actions."""
    return method_label(arm).removeprefix("GRPO + ").removesuffix(" (action gate)")


def each_arm(said: Mapping[str, str]) -> str:
    """What is said of each arm, after its short name."""
    return ", ".join(f"{short_name(arm)} {text}" for arm, text in said.items())


def arm_lines(runs: Sequence[StoredRun], others: Iterable[str] = ()) -> dict[str, Line]:
    """What stands at the line of each arm, and its colour: its name, its penalty weight and how
    many seeds, and of `others`, methods without a run, the name.
    """
    names = {method: method_label(method) for method in others}
    for arm, own in by_method(runs).items():
        weight = own[0].setting("loss", "llds_weight")
        penalty = f", λ {weight:g}" if weight else ""
        names[arm] = f"{short_name(arm)}{penalty}\n{len(own)} seed{'s' * (len(own) > 1)}"
    return {arm: (names[arm], colour) for arm, colour in method_colours(names).items()}


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """Colours of `methods` in their order; what has no fixed one takes the next of a scale."""
    order = dict.fromkeys(methods)
    others = [method for method in order if method not in METHOD_COLOURS]
    scale = sns.color_palette("viridis_r", len(others)).as_hex()
    chosen = METHOD_COLOURS | dict(zip(others, scale, strict=True))
    return {method: chosen[method] for method in order}


def axis_label(metric: str) -> str:
    """Label and unit on lines of their own; a unit that the label already says is left out."""
    label, unit = NAMES["metrics"].get(metric, metric.replace("_", " ")), METRICS[metric].unit
    return "\n".join(textwrap.wrap(label, 24) + ([] if unit in label else [f"({unit})"]))


@contextmanager
def theme(*, grid: bool = False) -> Iterator[None]:
    """The look of all figures; `grid` draws lines behind them."""
    look: dict[str, Any] = {"lines.linewidth": 2, "lines.markersize": 4, "lines.markeredgewidth": 0}
    look |= {f"{axis}tick.major.{part}": 3 for axis in "xy" for part in ("size", "pad")}
    look |= {"axes.titlesize": "medium", "axes.titleweight": "bold", "axes.titlelocation": "left"}
    look |= {"axes.linewidth": 0.8, "legend.frameon": False}
    with sns.axes_style("whitegrid" if grid else "ticks"), mpl.rc_context(cast(Any, look)):
        yield


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of panels, by rows, each of `height` inches; it is as wide as the text.
    `options` are those of `Figure.subplots`.
    """
    figure = Figure(figsize=(_WIDTH, height * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, **options).ravel())
    for axes in grid:
        sns.despine(ax=axes)
    return figure, grid


def set_title(axes: Axes, text: str, columns: int = 1) -> None:
    """What a panel shows, in lines as long as one of so many columns has room for, broken where the
    text pauses.
    """
    whole = re.sub(r"(?<!\w)-(?=\d)", "−", text).replace(" ", "\xa0")
    for pause in (",", ":", ";"):
        whole = whole.replace(f"{pause}\xa0", f"{pause} ")
    lines = textwrap.wrap(
        whole, (76, 30, 19)[columns - 1], break_long_words=False, break_on_hyphens=False
    )
    axes.set_title("\n".join(lines).replace("\xa0", " "))


def save_figure(
    figure: Figure, data: pd.DataFrame, out_dir: Path, name: str, runs: Sequence[StoredRun]
) -> list[Path]:
    """Write and record `name`.png, .pdf and .csv, and return their paths; the same runs give the
    same bytes. `data` are the numbers that drew the figure, `runs` where they come from: their
    fingerprints go into the picture's metadata, and where its panels against the step are.
    """
    sources = "; ".join(f"{run.name} {run.fingerprint}" for run in runs)
    paths = [out_dir / f"{name}.{suffix}" for suffix in ("png", "pdf", "csv")]
    with disk_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        pdf = {"Title": name, "Subject": sources, "Creator": "llds_core", "CreationDate": None}
        with mpl.rc_context({"pdf.fonttype": 42}):
            figure.savefig(paths[1], metadata=pdf)
        png = {"Title": name, "Source": sources, "Software": "llds_core"}
        png[STEP_PANELS] = json.dumps(_step_panels(figure))  # known once it has been drawn
        dpi = mpl.rcParams["savefig.dpi"]
        figure.savefig(paths[0], dpi=_STYLES["paper"] if dpi == "figure" else dpi, metadata=png)
    write_table(paths[2], data)
    record(paths, runs)
    return paths


def _step_panels(figure: Figure) -> list[list[float]]:
    """Left, right, top and bottom of each panel against the step, as shares of the figure's size
    from its upper left corner, and the steps at its left and right.
    """
    shown = [axes for axes in figure.axes if axes.get_visible() and axes.get_xlabel() == "step"]
    found = [(axes.get_position(), axes.get_xlim()) for axes in shown]
    places = [[box.x0, box.x1, 1 - box.y1, 1 - box.y0, *steps] for box, steps in found]
    return np.round(places, 4).tolist()


def draw_arms(
    axes: Axes,
    data: pd.DataFrame,
    arms: Mapping[str, Line],
    x: str = "step",
    y: str = "value",
    **style: Any,
) -> dict[str, pd.Series]:
    """Draw column `y` of `data` against `x`: of each arm (`method`) a thin line per seed, their
    mean in bold, in a `style`, and from three seeds on Student's 95 % interval; return the means by
    arm, without NaN, which makes a gap.

    On a logarithmic axis the mean is the geometric one, and the interval that of logarithms. The
    bold line ends with the shortest seed, and goes on dotted as the mean of those that are left; a
    seed without any value is left out.
    """
    return {
        str(arm): _draw_seeds(
            axes, own.pivot_table(y, x, "seed", dropna=False), arms[str(arm)][1], **style
        )
        for arm, own in data.groupby("method", sort=False)
    }


def _draw_seeds(
    axes: Axes, table: pd.DataFrame, colour: str, *, linestyle: str = "-", **style: Any
) -> pd.Series:
    alpha = 0.4 if len(table.columns) <= 5 else 0.2
    faint: dict[str, Any] = {"linewidth": 0.7, "alpha": alpha, "linestyle": linestyle}
    axes.plot(table.index, table.to_numpy(float), color=colour, **faint)
    # An interval of three seeds may be so wide that the lines beside it would look flat: the lines
    # set the limits of the axis.
    limits = axes.dataLim.frozen()
    table = table.dropna(axis=1, how="all").loc[table.first_valid_index() :]
    end = min((table[seed].last_valid_index() for seed in table), default=0)
    is_log = axes.get_yscale() == "log"
    values = np.log(table) if is_log else table
    found = np.array([student_interval(row)[:3] for row in values.to_numpy(float)]).reshape(-1, 3)
    curve = pd.DataFrame(np.exp(found) if is_log else found, table.index, ["mean", "low", "high"])
    whole, left = curve.loc[:end], curve.loc[end:, "mean"].dropna()
    axes.plot(whole.index, whole["mean"], color=colour, linestyle=linestyle, **style)
    if len(left) > 1:
        axes.plot(left.index, left, color=colour, linestyle=":", linewidth=1.6)
    if (several := table.loc[:end].count(axis=1) >= SEEDS_FOR_INTERVAL).any():
        shade: dict[str, Any] = {"alpha": 0.18, "linewidth": 0, "where": several}
        axes.fill_between(whole.index, whole["low"], whole["high"], color=colour, **shade)
    axes.dataLim.set(limits)
    return curve["mean"].dropna()


def name_lines(axes: Axes, curves: Mapping[str, pd.Series], arms: Mapping[str, Line]) -> None:
    """Write the name of each line of `draw_arms` beside the panel at the height of its end, moved
    where two would lie on each other. Legends and titles come first: they decide how high the panel
    is.
    """
    figure = cast(Figure, axes.figure)
    figure.draw_without_rendering()
    axes.set_ylim(axes.get_ylim())
    to_panel = axes.transScale + axes.transLimits
    known = {arm: curve for arm, curve in curves.items() if len(curve)}
    ends = [to_panel.transform((curve.index[-1], curve.iloc[-1]))[1] for curve in known.values()]
    wanted = pd.Series(ends, known, dtype=float).sort_values()
    height = 72 * axes.get_window_extent().height / figure.dpi
    line = 1.25 * mpl.rcParams["font.size"] / height
    rooms = np.array([line * (1 + arms[arm][0].count("\n")) for arm in wanted.index])
    stacked = np.cumsum(rooms) - rooms / 2  # where they are if they begin at 0 and touch
    places = (wanted - stacked).cummax().clip(upper=1 - rooms.sum()) + stacked
    for arm, place in places.items():
        text, colour = arms[str(arm)]
        style: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "weight": "bold"}
        axes.text(1.03, place, text, color=colour, linespacing=1.05, **style)


def mark_paper(axes: Axes, said: str, of: str = "") -> None:
    """A faint line at the value that the paper says, and its words; a percentage is a share. `of`
    says whose it is, where the paper says several.
    """
    value = float(re.findall(r"[\d.]+", said)[0]) / (100 if "%" in said else 1)
    axes.axhline(value, color=FAINT, linestyle=(0, (1, 2)), linewidth=1.2, zorder=0)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, value), max(high, value + 0.1 * (high - low)))
    style: dict[str, Any] = {"color": GREY, "va": "bottom", "style": "italic"}
    style["bbox"] = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}
    said = f"{of or 'paper'} {said.replace('over', '>').replace('about', '≈')}"
    axes.text(0.02, value, said, transform=axes.get_yaxis_transform(), **style)


def draw_runs(axes: Axes, table: pd.DataFrame, **style: Any) -> None:
    """A mark per run, as `SEED_MARKS` says; the `style` is that of `seaborn.scatterplot`."""
    look: dict[str, Any] = {"legend": False, "linewidth": 0, "s": 16}
    sns.scatterplot(table, style="collapsed", markers=_FATES, ax=axes, **look | style)


def draw_means(axes: Axes, table: pd.DataFrame, **style: Any) -> None:
    """A mark for the mean at each place and, from three seeds on, Student's 95 % interval; the
    `style` is that of `seaborn.pointplot`.
    """
    look: dict[str, Any] = {"linestyle": "none", "legend": False, "native_scale": True}
    look |= {"errorbar": _student_bounds, "err_kws": {"linewidth": 1.6}}
    sns.pointplot(table, ax=axes, **look | style)


def _student_bounds(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval as seaborn wants it; NaN below three values, for no interval."""
    found = student_interval(values)
    return (found.low, found.high) if found.n >= SEEDS_FOR_INTERVAL else (np.nan, np.nan)


def legend_below(
    figure: Figure, columns: int, entries: Mapping[str, dict[str, Any]], **common: Any
) -> None:
    """A legend below the panels: labels, and the style of a line for each beside the `common` one,
    grey unless they say otherwise.
    """
    known = {"color": GREY} | common
    handles = [Line2D([], [], label=label, **known | style) for label, style in entries.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


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
    first, *others = panels
    for axes in others:
        axes.sharey(first)
    first.set_yscale("symlog", linthresh=0.1, linscale=0.3)
    first.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.1, subs=[1, 3]))
    first.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    first.autoscale(axis="y")
    if max(axes.dataLim.ymax for axes in panels) <= 0:
        first.set_ylim(top=0)
