"""Two arms side by side: what one update does to right answers, and how many runs collapse."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from llds_core.config.arms import Series
from llds_core.files import bounded
from llds_core.reporting import figures as look
from llds_core.reporting.run_view import StoredRun, same_steps
from llds_core.reporting.stats import student_interval


def contrasts(runs: Sequence[StoredRun], series: Sequence[Series], metric: str) -> pd.DataFrame:
    """One row per run of the series: `profile`, `method` (its arm), `seed`, `series`, `label` of
    the arm in it, `value` (mean of `metric` over steps 3 to 15), and whether it `collapsed` within
    the steps that all of these runs were given. A series that lacks an arm is left out.
    """
    present = {run.arm for run in runs}
    whole = [one for one in series if present.issuperset(one.arms)]
    found = same_steps([run for run in runs if any(run.arm in one.arms for one in whole)])
    rows = [
        {**run.key, "series": one.title, "label": label}
        | {"value": run.early_mean(metric), "collapsed": run.collapse is not None}
        for one in whole
        for arm, label in one.arms.items()
        for run in found
        if run.arm == arm
    ]
    columns = ["profile", "method", "seed", "series", "label", "value", "collapsed"]
    return pd.DataFrame(rows, columns=columns)


def in_series(runs: Sequence[StoredRun], series: Series) -> list[StoredRun]:
    """Runs of a series, their arms called as it calls them, for curves; none where only one of its
    arms has a run.
    """
    found = [run for run in runs if run.arm in series.arms]
    if len({run.arm for run in found}) < 2:
        return []
    names = {arm: name or arm for arm, name in series.arms.items()}
    return [replace(run, manifest=run.manifest | {"arm": names[run.arm]}) for run in found]


def contrast_figure(data: pd.DataFrame, metric: str) -> Figure:
    """Draw what `contrasts` returns: a panel per series, a line per seed from arm to arm, a cross
    where that run collapsed, the mean of an arm with Student's interval, and above how many
    collapsed. The title tells the mean difference of the first two arms over the seeds that both
    have.
    """
    names = list(data["series"].unique())
    with look.theme():
        figure, grid = look.panels(1, len(names), 3.4, sharey=True)
        for axes, name in zip(grid, names, strict=True):
            part = data[data["series"] == name]
            labels = list(part["label"].unique())
            table = part.pivot(index="seed", columns="label", values="value")[labels]
            axes.axhline(0, color=look.GREY, linewidth=0.7, zorder=0)
            colour = look.METHOD_COLOURS["grpo"]
            axes.plot(range(len(labels)), table.T, color=colour, alpha=0.3, linewidth=0.9)
            place = part["label"].map(labels.index)
            look.draw_runs(axes, part, x=place, y="value", color=colour, alpha=0.6)
            beside = place + (0.24 * (place > 0) - 0.12)
            mark = {"markers": "D", "markersize": 4, "markeredgewidth": 0}
            look.draw_means(axes, part, x=beside, y="value", color=look.GREY, **mark)
            counts = part.groupby("label", sort=False)["collapsed"].agg(["sum", "size"])
            ticks = [f"{at}\n{n} of {of} collapsed" for at, n, of in counts.itertuples()]
            axes.set_xticks(range(len(labels)), ticks)
            axes.set(xlim=(-0.4, len(labels) - 0.6), xlabel="")
            look.set_title(axes, f"{name}: {_finding(table)}", len(names))
        grid[0].set_ylabel(look.axis_label(metric) + "\nmean of steps 3 to 15")
        mean = {"mean, 95 % interval": {"color": look.GREY, "marker": "D"}}
        look.legend_below(figure, 3, look.SEED_MARKS | mean, color=look.METHOD_COLOURS["grpo"])
    return figure


def _finding(table: pd.DataFrame) -> str:
    """The mean of the first arm minus the second over the seeds that both have."""
    first, second = table.columns[:2]
    found = student_interval((table[first] - table[second]).tolist())
    bounds = bounded(found.estimate, found.low, found.high, "+.2f")
    bounds = bounds.replace(", ", ",\u202f")  # no place to break a title
    pairs = f"{found.n} pair{'s' * (found.n != 1)}"
    return f"left − right {bounds}, {pairs}"
