"""The toy of `diagnostics.toy` as a figure: when a right answer loses likelihood."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llds_core.diagnostics.toy import displacement
from llds_core.reporting.figures import METHOD_COLOURS, theme

_SIMILARITIES = (0.0, 0.4, 0.8, 0.95)
_WEIGHTS = (0.2, 1.0, 5.0)
_SHOWN = 0.8  # similarity of the right panel


def displacement_data(points: int = 19) -> pd.DataFrame:
    """One row per setting: `similarity`, `weight` of the penalty, `wrong` (probability of the
    shared word in the wrong answer) and `change` of the right answer's log-likelihood in nats.
    """
    settings = [(similarity, 0.0) for similarity in _SIMILARITIES]
    settings += [(_SHOWN, weight) for weight in _WEIGHTS]
    wrong = np.linspace(0.05, 0.95, points).tolist()
    return pd.concat(
        pd.DataFrame(
            {
                "similarity": similarity,
                "weight": weight,
                "wrong": wrong,
                "change": displacement(wrong, similarity=similarity, weight=weight),
            }
        )
        for similarity, weight in settings
    )


def displacement_figure(data: pd.DataFrame) -> Figure:
    """Change of the right answer: by similarity without penalty, by weight at one similarity."""
    grpo, llds = METHOD_COLOURS["grpo"], METHOD_COLOURS["llds-action"]
    with theme():
        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        free = data[data["weight"] == 0]
        for similarity, rows in free.groupby("similarity"):
            shade = 0.25 + 0.75 * similarity
            left.plot(rows["wrong"], rows["change"], color=grpo, alpha=shade)
            _name(left, rows, f"cosine {similarity:g}")
        for weight, rows in data[data["similarity"] == _SHOWN].groupby("weight"):
            colour, shade = (llds, 0.4 + 0.12 * weight) if weight else (grpo, 0.85)
            right.plot(rows["wrong"], rows["change"], color=colour, alpha=min(shade, 1))
            _name(right, rows, f"weight {weight:g}" if weight else "GRPO")
        left.set_title("the more alike, the more is lost", loc="left")
        right.set_title(f"LLDS holds it (cosine {_SHOWN:g})", loc="left")
        left.set_ylabel("change of the right answer's\nlog-likelihood (nats)")
        for axes in (left, right):
            axes.axhline(0, color="#999999", linewidth=0.8)
            axes.set_xlabel("probability of the shared word in the wrong answer")
            axes.set_xlim(-0.25, 1)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    return figure


def _name(axes: Axes, rows: pd.DataFrame, label: str) -> None:
    first = rows.iloc[0]
    axes.text(first["wrong"] - 0.02, first["change"], label, ha="right", va="center", fontsize=9)
