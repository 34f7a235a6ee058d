"""The figure for a first look: reward, likelihood of right answers and entropy, every arm over one
horizon, lines named where they end.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llds_core.errors import DataError
from llds_core.reporting.figures import (
    axis_label,
    curves_data,
    draw_seeds,
    method_colours,
    method_label,
    panels,
    scale_axis,
    theme,
)
from llds_core.reporting.run_tables import by_method, usual_steps
from llds_core.reporting.run_view import StoredRun

_PANELS = {"reward": "", "loglik_correct": "Likelihood of right answers", "entropy": "Entropy"}
_ROOM = 0.075  # of a panel's height, for a label


def hero_data(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """What `hero_figure` draws: trailing means of three steps, over the steps that every run was
    given.
    """
    steps = usual_steps(runs)
    data = curves_data([run.first(steps) for run in runs], list(_PANELS))
    smooth = data.groupby(["method", "seed", "metric"], sort=False)["value"]
    return data.assign(value=smooth.transform(lambda one: one.rolling(3, min_periods=1).mean()))


def hero_figure(runs: Sequence[StoredRun], data: pd.DataFrame) -> Figure:
    """One panel per metric. Thin lines are seeds, bold ones the mean while all of them run, dotted
    ones that of those that are left. The first title counts collapses.
    """
    if data.empty:
        raise DataError("nothing to draw: name runs with a finished step")
    arms = by_method(runs)
    colours = method_colours(arms)
    horizon = int(data["step"].max())
    with theme():
        figure, grid = panels(1, 3, (5.2, 3.9))
        for letter, (metric, title), axes in zip("abc", _PANELS.items(), grid, strict=True):
            values = data[data["metric"] == metric]
            scale_axis(axes, metric, values["value"])
            ends = {}
            for arm in arms:
                of_arm = values[values["method"] == arm]
                table = of_arm.pivot(index="step", columns="seed", values="value")
                draw_seeds(axes, table, colours[arm])
                mean = table.mean(axis=1).dropna()
                whole = min((table[seed].last_valid_index() or 0 for seed in table), default=0)
                left = mean.loc[whole:]
                axes.plot(left.index, left, color=colours[arm], linestyle=":", linewidth=1.8)
                if len(mean):
                    ends[arm] = (float(mean.index[-1]), float(mean.iloc[-1]))
            axes.set_title(f"{letter}  {title or _collapses(arms, horizon)}", loc="left", size=11)
            axes.set(xlabel="rollout step", ylabel=axis_label(metric))
            axes.set_xlim(1, horizon * 1.42)
            ticks = MaxNLocator(nbins=4, integer=True, steps=[1, 2, 5, 10]).tick_values(1, horizon)
            axes.set_xticks([tick for tick in ticks if 1 <= tick <= horizon])
            _name_lines(axes, ends, {arm: _named(arm, arms[arm]) for arm in arms}, colours)
    return figure


def _collapses(arms: Mapping[str, Sequence[StoredRun]], horizon: int) -> str:
    counts = []
    for arm, runs in arms.items():
        collapsed = sum(bool(run.collapsed_by(horizon)) for run in runs)
        counts.append(f"{_short(arm)} {collapsed} of {len(runs)}")
    return f"Collapsed within {horizon} steps: {', '.join(counts)}"


def _short(arm: str) -> str:
    return "LLDS" if arm == "llds-action" else method_label(arm)


def _named(arm: str, runs: Sequence[StoredRun]) -> str:
    weight = runs[0].setting("loss", "llds_weight")
    penalty = f", weight {weight:g}" if weight else ""
    return f"{_short(arm)}{penalty}\n({len(runs)} seed{'' if len(runs) == 1 else 's'})"


def _name_lines(
    axes: Axes,
    ends: Mapping[str, tuple[float, float]],
    names: Mapping[str, str],
    colours: Mapping[str, str],
) -> None:
    """Write the name of each line at its end, moved up where two would lie on each other."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    taken = -1.0
    for arm, (step, value) in sorted(ends.items(), key=lambda item: item[1][1]):
        x, y = axes.transLimits.transform(axes.transScale.transform((step, value)))
        taken = max(float(y), taken + 2.2 * _ROOM)
        style: dict[str, Any] = {"color": colours[arm], "size": 9.5, "weight": "bold"}
        style |= {"transform": axes.transAxes, "va": "center"}
        axes.text(x + 0.02, min(taken, 0.95), names[arm], **style)
