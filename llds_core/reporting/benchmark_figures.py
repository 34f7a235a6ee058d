"""Figure 1 of the paper: averages over the seven benchmarks, by model and method."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from llds_core.reporting.benchmark_tables import METHODS, NOT_RUN
from llds_core.reporting.figures import METHOD_COLOURS, METHOD_LABELS

SHOWN = ("grpo", "llds-action", "llds-ma", "gspo", "gspo-llds")
_LABELS = METHOD_LABELS | {"llds-action": "GRPO + LLDS"}
_BAR = 0.17  # of the distance between two models


def averages_data(comparisons: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of the figure: overall averages of trained policies.

    Returns:
        Columns `model`, `variant`, `method` (ours), `published`, `ours`, `ours_low`, `ours_high`,
        `delta`, `n`, `seeds`, `status` and `source`.
    """
    table = pd.concat(comparisons, ignore_index=True)
    table = table.assign(method=table["method"].map(METHODS))
    chosen = table[(table["benchmark"] == "average") & table["method"].isin(SHOWN)]
    return chosen.drop(columns=["table", "benchmark"]).reset_index(drop=True)


def averages_figure(data: pd.DataFrame) -> Figure:
    """Bars are published; where we ran one, a diamond with its 95 % interval stands on it.

    Args:
        data: of `averages_data`.
    """
    models = data[["model", "variant"]].drop_duplicates().itertuples(index=False, name=None)
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.1):
        figure = Figure(figsize=(8.6, 3.9), layout="constrained")
        axes = figure.subplots()
        names = []
        for place, (model, variant) in enumerate(models):
            names.append(f"{model}\n{variant}")
            group = data[(data["model"] == model) & (data["variant"] == variant)]
            _draw_model(axes, place, group)
        axes.set_xticks(range(len(names)), names)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("exact match, average\nof seven benchmarks (share)")
        axes.set_ylim(0, 1.12 * float(np.nanmax(data[["published", "ours_high"]])))
        sns.despine(ax=axes)
        figure.legend(handles=_handles(data), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _draw_model(axes: Axes, place: int, group: pd.DataFrame) -> None:
    present = [method for method in SHOWN if (group["method"] == method).any()]
    for rank, method in enumerate(present):
        [row] = group[group["method"] == method].itertuples()
        x = place + (rank - (len(present) - 1) / 2) * _BAR
        axes.bar(x, row.published, 0.92 * _BAR, color=METHOD_COLOURS[method])
        axes.annotate(
            f"{row.published:.3f}",
            (x, row.published),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=6.5,
        )
        if row.status != NOT_RUN:
            error = [[row.ours - row.ours_low], [row.ours_high - row.ours]]
            axes.errorbar(
                x, row.ours, error, fmt="D", color="black", mfc="white", ms=4.5, capsize=2
            )


def _handles(data: pd.DataFrame) -> list[Patch | Line2D]:
    shown = [method for method in SHOWN if (data["method"] == method).any()]
    handles: list[Patch | Line2D] = [
        Patch(color=METHOD_COLOURS[method], label=f"{_LABELS[method]}, published")
        for method in shown
    ]
    ran = int((data["status"] != NOT_RUN).sum())
    label = "ours, 95 % interval" if ran else f"ours: {NOT_RUN}"
    if 0 < ran < len(data):
        label += f" ({len(data) - ran} of {len(data)} {NOT_RUN})"
    marker = {"marker": "D", "color": "black", "markerfacecolor": "white", "linestyle": ""}
    return [*handles, Line2D([], [], label=label, **marker)]
