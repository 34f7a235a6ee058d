"""Displacement in the smallest policy that shows it: a linear softmax, two answers, plain gradient
ascent.

A right and a wrong answer say the same word in similar contexts. GRPO raises it in one and lowers
it in the other, each as hard as the policy is surprised by it: by its probability's distance to 1
(arXiv 2512.04220v2, Theorem 4.2). Both pulls act on the same weights, so that a wrong answer that
the policy finds unlikely takes the right one with it.
"""

import math

import torch

from llds_core.losses import llds_penalty


def displacement(
    wrong: float,
    *,
    right: float = 0.9,
    similarity: float = 0.8,
    answers: tuple[float, ...] = (1.0, -1.0),
    weight: float = 0.0,
    rate: float = 0.1,
    updates: int = 8,
) -> float:
    """Change of the right answer's log-probability over `updates` on one rollout, in nats.

    Args:
        wrong: probability of the shared word in the wrong answer's context, in (0, 1).
        right: the same in the right answer's.
        similarity: cosine of the two contexts, in [0, 1).
        answers: advantages of the right and of the wrong answer; of 0, an answer is left out.
        weight: of the LLDS penalty.
        rate: learning rate.
        updates: on the same two answers.
    """
    contexts = torch.tensor([[1.0, 0.0], [similarity, math.sqrt(1 - similarity**2)]]).double()
    # Three words; the others share what is left. These weights give just these probabilities.
    wanted = torch.tensor([[p, (1 - p) / 2, (1 - p) / 2] for p in (right, wrong)]).double().log()
    weights = torch.linalg.solve(contexts, wanted).requires_grad_()
    advantages = torch.tensor(answers).double()
    old = None
    for _ in range(updates + 1):
        logprobs = (contexts @ weights).log_softmax(1)[:, :1]
        old = logprobs.detach() if old is None else old
        ratio = (logprobs - old).exp()
        surrogate = torch.minimum(
            ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None]
        )
        penalty, _ = llds_penalty(logprobs, old, torch.ones_like(logprobs), advantages)
        (gradient,) = torch.autograd.grad(surrogate.sum() - weight * penalty, weights)
        change = (logprobs - old)[0, 0].item()
        weights = (weights + rate * gradient).detach().requires_grad_()
    return change
