"""The figure of displacement between two answers: when a right one loses likelihood."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llds_core.diagnostics.two_answers import displacement
from llds_core.reporting.figures import FAINT, METHOD_COLOURS, panels, set_title, theme

_SIMILARITIES = (0.0, 0.4, 0.8, 0.95)
_WEIGHTS = (0.2, 1.0, 5.0)
_SHOWN = 0.8  # similarity of the right panel


def displacement_data() -> pd.DataFrame:
    """One row per setting: `similarity`, `weight` of the penalty, `wrong` (probability of the
    shared word in the wrong answer) and `change` of the right answer's log-likelihood in nats.
    """
    settings = [(similarity, 0.0) for similarity in _SIMILARITIES]
    settings += [(_SHOWN, weight) for weight in _WEIGHTS]
    wrong = np.linspace(0.05, 0.95, 19).tolist()
    parts = []
    for similarity, weight in settings:
        change = displacement(wrong, similarity=similarity, weight=weight)
        known = {"similarity": similarity, "weight": weight}
        parts.append(pd.DataFrame(known | {"wrong": wrong, "change": change}))
    return pd.concat(parts)


def displacement_figure(data: pd.DataFrame) -> Figure:
    """Change of the right answer: by similarity without penalty, by weight at one similarity."""
    grpo, llds = METHOD_COLOURS["grpo"], METHOD_COLOURS["llds-action"]
    with theme():
        figure, (left, right) = panels(1, 2, 3.4, sharey=True)
        free, alike = data[data["weight"] == 0], data[data["similarity"] == _SHOWN]
        for similarity, rows in free.groupby("similarity"):
            _draw(left, rows, f"cosine {similarity:g}", grpo, 0.25 + 0.75 * similarity)
        for weight, rows in alike.groupby("weight"):
            name = f"weight {weight:g}" if weight else "GRPO"
            _draw(right, rows, name, llds if weight else grpo, min(0.5 + 0.1 * weight, 1))
        worst = free.groupby("similarity")["change"].min()
        said = [f"{_signed(worst.iloc[end])} at cosine {worst.index[end]:g}" for end in (0, -1)]
        set_title(left, f"The right answer, at worst: {', '.join(said)}", 2)
        worst = alike.groupby("weight")["change"].min()
        last = f"{_signed(worst.iloc[-1])} at weight {worst.index[-1]:g}"
        said_of = f"{_signed(worst.iloc[0])} without penalty, {last}"
        set_title(right, f"At worst, cosine {_SHOWN:g}: {said_of}", 2)
        left.set_ylabel("change of the right answer's\nlog-likelihood (nats)")
        for axes in (left, right):
            axes.axhline(0, color=FAINT, linewidth=0.8)
            axes.set_xlabel("probability of the shared word\nin the wrong answer")
            axes.set_xlim(-0.55, 1)
            axes.set_xticks([0, 0.5, 1])
    return figure


def _signed(change: float) -> str:
    return f"{round(change, 3) + 0.0:+.3f}"


def _draw(axes: Axes, rows: pd.DataFrame, name: str, colour: str, alpha: float) -> None:
    axes.plot(rows["wrong"], rows["change"], color=colour, alpha=alpha)
    text: dict[str, Any] = {"ha": "right", "color": colour}
    # The lines of small weights begin close to each other.
    text["va"] = {"GRPO": "top", f"weight {_WEIGHTS[1]:g}": "bottom"}.get(name, "center")
    axes.text(rows["wrong"].iloc[0] - 0.03, rows["change"].iloc[0], name, **text)
