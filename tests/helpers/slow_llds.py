"""LLDS token by token in plain Python (arXiv 2512.04220v2, Eq. 4, 5, 9 and 10), and a batch."""

import math
from itertools import groupby

import torch


def four_responses() -> tuple[torch.Tensor, ...]:
    """Log-probabilities now and then, mask and advantages of four responses: two actions, one, two,
    and an observation without an action after it.
    """
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 10, generator=generator)
    new = old - 0.1 + 0.2 * torch.randn(4, 10, generator=generator)
    mask = torch.ones(4, 10)
    mask[0, 4:6] = mask[1, 7:] = mask[2, 2:5] = mask[3, 3:] = 0
    return new, old, mask, torch.tensor([1.0, -1.0, 0.0, 0.5])[:, None].expand(4, 10)


def slow_penalty(
    new: torch.Tensor,
    old: torch.Tensor,
    mask: torch.Tensor,
    advantages: list[float],
    *,
    gate: str,
    normalizer: str,
    preserve: str = "nonnegative",
    threshold: float = 0.0,
    answers: torch.Tensor | None = None,
    weight: float = 1.0,
) -> tuple[float, torch.Tensor]:
    """Penalty and its gradient by `new`."""
    gradient = torch.zeros_like(new)
    total, preserved, everything = 0.0, 0, 0
    for row, advantage in enumerate(advantages):
        runs = groupby(range(len(mask[row])), key=mask[row].tolist().__getitem__)
        spans = [list(run) for is_policy, run in runs if is_policy]
        tokens = [place for span in spans for place in span]
        everything += len(tokens)
        if advantage < 0 or (preserve == "positive" and advantage == 0):
            continue
        preserved += len(tokens)
        units = {"action": spans, "response": [tokens], "token": [[place] for place in tokens]}
        for unit in units[gate]:
            lost = {place: float(old[row, place]) - float(new[row, place]) for place in unit}
            if math.fsum(lost.values()) <= threshold:
                continue
            for place, nats in lost.items():
                share = weight if answers is not None and answers[row, place] else 1.0
                total += share * max(0.0, nats)
                gradient[row, place] = -share * (nats > 0)
    count = max(1, preserved if normalizer == "preserved" else everything)
    return total / count, gradient / count
