"""Displacement in the smallest policy that shows it: a linear softmax, two answers, plain gradient
ascent.

A right and a wrong answer say the same word in similar contexts. GRPO raises it in one and lowers
it in the other, each as hard as the policy is surprised by it: by its probability's distance to 1
(arXiv 2512.04220v2, Theorem 4.2). Both pulls act on the same weights, so that a wrong answer that
the policy finds less likely than the right one can take it along.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from llds_core.losses import llds_penalty

if TYPE_CHECKING:
    from ipywidgets import Widget


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


def sliders() -> "Widget":
    """Sliders for `wrong`, `similarity` and `weight`, and below them what `displacement` says.

    Not ipywidgets' `interact`: its output widget sometimes lets a notebook that runs unattended
    wait for ever (jupyter/nbclient issue 312).
    """
    from ipywidgets import FloatSlider, Label, VBox, dlink

    ends = {"wrong": (0.05, 0.95), "similarity": (0.0, 0.95), "weight": (0.0, 5.0)}
    bars = [FloatSlider(0.5, min=a, max=b, step=0.05, description=n) for n, (a, b) in ends.items()]
    label = Label()

    def say(_: float) -> str:
        wrong, similarity, weight = (bar.value for bar in bars)
        [change] = displacement([wrong], similarity=similarity, weight=weight)
        return f"right answer: {change:+.3f} nats"

    for bar in bars:
        dlink((bar, "value"), (label, "value"), say)
    return VBox([*bars, label])


def _of_the_word(contexts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (2N, 1) of the shared word, right and wrong answer in turn."""
    return (contexts @ weights).log_softmax(2)[..., 0].reshape(-1, 1)
