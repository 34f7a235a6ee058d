"""Displacement in the smallest policy that shows it: a linear softmax, two answers, plain gradient
ascent; and its figure, when a right answer loses likelihood.

A right and a wrong answer say the same word in similar contexts. GRPO raises it in one and lowers
it in the other, each as hard as the policy is surprised by it: by its probability's distance to 1
(arXiv 2512.04220v2, Theorem 4.2). Both pulls act on the same weights, so that a wrong answer that
the policy finds unlikely takes the right one with it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llds_core.losses import llds_penalty
from llds_core.reporting.figures import FAINT, METHOD_COLOURS, panels, set_title, theme

_SIMILARITIES = (0.0, 0.4, 0.8, 0.95)
_WEIGHTS = (0.2, 1.0, 5.0)
_SHOWN = 0.8  # similarity of the right panel


def displacement(
    wrong: Sequence[float],
    *,
    right: float = 0.9,
    similarity: float = 0.8,
    answers: tuple[float, float] = (1.0, -1.0),
    weight: float = 0.0,
    rate: float = 0.01,
    updates: int = 80,
) -> list[float]:
    """Change of the right answer's log-probability over `updates` on one rollout, in nats.

    Args:
        wrong: probabilities of the shared word in the wrong answer's context, in (0, 1); each is a
            policy of its own.
        right: the same in the right answer's.
        similarity: cosine of the two contexts, in [0, 1).
        answers: advantages of the right and of the wrong answer; one of 0 is left out.
        weight: of the LLDS penalty.
        rate: learning rate.
        updates: on the same two answers, clipped at 0.2.
    """
    contexts = torch.tensor([[1.0, 0.0], [similarity, math.sqrt(1 - similarity**2)]]).double()
    word = torch.tensor([[right, each] for each in wrong]).double()  # (N, 2)
    # Three words; the others share what is left. These weights give just these probabilities.
    wanted = torch.stack([word, (1 - word) / 2, (1 - word) / 2], dim=2).log()
    weights = torch.linalg.solve(contexts, wanted)
    advantages = torch.tensor(answers).double().repeat(len(word))
    old = word.log().flatten()[:, None]
    for _ in range(updates):
        weights = weights.detach().requires_grad_()
        logprobs = _of_the_word(contexts, weights)
        ratio = (logprobs - old).exp()[:, 0]
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        # Each policy preserves one token.
        penalty, _ = llds_penalty(logprobs, old, torch.ones_like(old), advantages, denominator=1.0)
        (gradient,) = torch.autograd.grad(surrogate.sum() - weight * penalty, weights)
        weights = weights + rate * gradient
    change = (_of_the_word(contexts, weights.detach()) - old).reshape(-1, 2)
    return change[:, 0].tolist()


def _of_the_word(contexts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (2N, 1) of the shared word, right and wrong answer in turn."""
    return (contexts @ weights).log_softmax(2)[..., 0].reshape(-1, 1)


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
