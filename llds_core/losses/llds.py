"""LLDS, the likelihood-preserving regulariser (arXiv 2512.04220v2, Eq. 4, 5, 9 and 10).

GRPO's objective plus `weight * L`. Where GRPO weighs every policy token by its advantage, L knows
only the advantage's sign: it looks at trajectories worth preserving (advantage >= 0) and, among
their tokens, at those that became less likely since the rollout:

    d_k   = old_logprob_k - logprob_k                      > 0 when token k lost likelihood
    gate  = 1[sum of d over the token | action | response > threshold]
    L     = (1 / Z) * sum over preserved policy tokens of  gate * w_k * relu(d_k)

The gate is a constant of the gradient: an open gate pulls each losing token up with strength
`w_k / Z`, whatever the size of its loss. `w_k` is 1, or the answer weight on tokens of the final
answer (LLDS-MA).

- Paper v1 gates whole responses, v2 single actions (the default here); v2's ablation gates single
  tokens.
- The papers divide by the policy tokens of preserved trajectories (`normalizer="preserved"`). The
  official code divides by all policy tokens (`"all"`), which weakens L by the preserved share, and
  does so in each micro-batch; `denominator` gives Z for the whole mini-batch.
- The official code has no token gate, and by default the response gate; its launch script sets
  actions.

In the first mini-batch of a rollout d is 0 everywhere, and so are L and its gradient: LLDS needs at
least two updates per rollout.
"""

from __future__ import annotations  # the file is copied to older Pythons: docs/integrations.md

import torch

from llds_core.losses.aggregate import (
    check_choice,
    check_range,
    check_rows,
    check_same_shape,
    divide,
    upcast,
)


def check_penalty_options(gate: str, normalizer: str, preserve: str, gate_threshold: float) -> None:
    """Refuse options that `llds_penalty` does not know, with a `ValueError`."""
    check_choice("gate", gate, ("action", "response", "token"))
    check_choice("normalizer", normalizer, ("preserved", "all"))
    check_choice("preserve", preserve, ("nonnegative", "positive"))
    check_range("gate_threshold", gate_threshold, 0)


def penalty_tokens(
    response_mask_BT: torch.Tensor,
    advantages_B: torch.Tensor,
    *,
    normalizer: str = "preserved",
    preserve: str = "nonnegative",
) -> torch.Tensor:
    """Mask (B, T) of the tokens that Z counts, with the arguments of `llds_penalty`.

    The `denominator` of a micro-batch is their number in the whole mini-batch: summed over its
    micro-batches and processes, divided by the processes where gradients are averaged over them,
    and by the accumulation steps where the loop divides the loss by these.
    """
    policy = response_mask_BT.bool()
    kept_B = advantages_B >= 0 if preserve == "nonnegative" else advantages_B > 0
    return policy if normalizer == "all" else policy & kept_B[:, None]


def llds_penalty(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    response_mask_BT: torch.Tensor,
    advantages_B: torch.Tensor,
    *,
    gate: str = "action",
    normalizer: str = "preserved",
    answer_mask_BT: torch.Tensor | None = None,
    answer_weight: float = 1.0,
    preserve: str = "nonnegative",
    gate_threshold: float = 0.0,
    denominator: float | torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """LLDS penalty, to be multiplied by its weight and added to the policy loss.

    Args:
        logprobs_BT: (B, T) log-probabilities of the sampled tokens under the current policy.
        old_logprobs_BT: (B, T) the same under the policy that sampled, from the same forward path;
            a constant.
        response_mask_BT: (B, T) of 0 and 1, or bool, 1 on policy tokens; log-probabilities
            elsewhere are never read. All but 0 counts as 1, the -100 of labels too: finding it
            would stall a GPU.
        advantages_B: (B,) advantages.
        gate: `action`, `response` or `token`: the unit whose summed loss of likelihood opens the
            gate.
        normalizer: `preserved` (paper) or `all` (official code), see above.
        answer_mask_BT: (B, T), 1 on tokens of the final answer, for LLDS-MA.
        answer_weight: weight of those tokens in [0, 1]; the gate ignores it.
        preserve: `nonnegative` preserves advantages >= 0 (groups with equal rewards included),
            `positive` only > 0.
        gate_threshold: nats by which a unit must have lost likelihood, >= 0; strictly more opens
            its gate. Above 0 it keeps numerical noise from opening gates.
        denominator: Z of the whole mini-batch, so that penalties of its micro-batches add up to its
            own: see `penalty_tokens`.

    Returns:
        The scalar penalty >= 0 in at least float32 (0, attached to the graph, when nothing is
        preserved), and metrics. Sums and counts, which add up over micro-batches:
        `response_tokens`, `preserved_tokens`, `gated_tokens` (those with a gradient),
        `preserved_actions`, `gated_actions` (those holding a token whose gate is open),
        `penalty_sum` (before Z), `delta_sum` (of d over preserved tokens). Their ratios, which do
        not: `preserved_fraction` (tokens), `gated_fraction` (tokens), `gated_fraction_actions`,
        `delta_mean` (nats a token).

    Raises:
        ValueError: for unknown options, unequal shapes, values out of range, or log-probabilities
            of which the old ones alone have a gradient.
    """
    check_penalty_options(gate, normalizer, preserve, gate_threshold)
    grids = {"old_logprobs_BT": old_logprobs_BT, "response_mask_BT": response_mask_BT}
    if answer_mask_BT is not None:
        grids["answer_mask_BT"] = answer_mask_BT
    check_same_shape(logprobs_BT=logprobs_BT, **grids)
    check_rows(logprobs_BT, advantages_B=advantages_B)
    trained = old_logprobs_BT.requires_grad and not logprobs_BT.requires_grad
    if trained and torch.is_grad_enabled():
        raise ValueError(
            "old_logprobs_BT requires a gradient and logprobs_BT does not: "
            "give those of the trained policy first"
        )
    check_range("answer_weight", answer_weight, 0, 1)
    policy = response_mask_BT.bool()
    kept = penalty_tokens(policy, advantages_B, preserve=preserve)
    # In float32: the gate is a sign, and bfloat16 would decide it by rounding.
    delta = torch.where(kept, upcast(old_logprobs_BT).detach() - upcast(logprobs_BT), 0.0)
    actions = action_ids(kept)
    is_open = _open_gates(delta.detach(), kept, actions, gate, gate_threshold)
    # relu, whose gradient at a tie is 0: an unchanged token must feel nothing.
    terms = torch.relu(delta) * is_open
    if answer_mask_BT is not None:
        terms = torch.where(answer_mask_BT.bool(), answer_weight * terms, terms)
    total = terms.sum()
    count = (kept if normalizer == "preserved" else policy).sum()
    sums = {
        "response_tokens": policy.sum(),
        "preserved_tokens": kept.sum(),
        "gated_tokens": (terms.detach() > 0).sum(),
        "preserved_actions": (_sum_by_unit(actions, kept.long()) > 0).sum(),
        "gated_actions": (_sum_by_unit(actions, is_open.long()) > 0).sum(),
        "penalty_sum": total.detach(),
        "delta_sum": delta.detach().sum(),
    }
    return divide(total, count, denominator), sums | {
        "preserved_fraction": divide(sums["preserved_tokens"], sums["response_tokens"]),
        "gated_fraction": divide(sums["gated_tokens"], sums["preserved_tokens"]),
        "gated_fraction_actions": divide(sums["gated_actions"], sums["preserved_actions"]),
        "delta_mean": divide(sums["delta_sum"], sums["preserved_tokens"]),
    }


def displacement(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    response_mask_BT: torch.Tensor,
    advantages_B: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """What the updates since a rollout did to the responses that they reward: lazy likelihood
    displacement is when these hardly gain likelihood, or lose some (arXiv 2512.04220v2, Definition
    4.1). A measurement, without a gradient; it needs no penalty.

    Args:
        logprobs_BT, old_logprobs_BT, response_mask_BT, advantages_B: as of `llds_penalty`.

    Returns:
        Sums and counts over responses of positive advantage, which add up over micro-batches:
        `rewarded` (responses), `rewarded_tokens`, `loglik_sum` (old log-probabilities, nats),
        `change_sum` (new minus old, nats), `displaced` (responses less likely than when they were
        sampled).

    Raises:
        ValueError: for unequal shapes.
    """
    grids = {"old_logprobs_BT": old_logprobs_BT, "response_mask_BT": response_mask_BT}
    check_same_shape(logprobs_BT=logprobs_BT, **grids)
    check_rows(logprobs_BT, advantages_B=advantages_B)
    rewarded = response_mask_BT.bool() & (advantages_B > 0)[:, None]
    old = torch.where(rewarded, upcast(old_logprobs_BT.detach()), 0.0)
    change = (torch.where(rewarded, upcast(logprobs_BT.detach()), 0.0) - old).sum(1)
    return {
        "rewarded": rewarded.any(1).sum(),
        "rewarded_tokens": rewarded.sum(),
        "loglik_sum": old.sum(),
        "change_sum": change.sum(),
        "displaced": (change < 0).sum(),
    }


def action_ids(response_mask_BT: torch.Tensor) -> torch.Tensor:
    """Number the actions of each trajectory.

    Args:
        response_mask_BT: (B, T), 1 on policy tokens, 0 on observations and padding.

    Returns:
        (B, T) int64: 0 outside actions, 1..K on the K maximal runs of policy tokens, from the left.

    Raises:
        ValueError: when the mask is not two-dimensional.
    """
    check_same_shape(response_mask_BT=response_mask_BT)
    mask = response_mask_BT.bool()
    starts = mask.clone()
    starts[:, 1:] &= ~mask[:, :-1]
    return starts.cumsum(1) * mask


def answer_weight_ramp(searches: float, *, ramp: str = "paper", budget: float = 2.0) -> float:
    """Answer weight of LLDS-MA for a mean of `searches` valid searches per trajectory.

    Both ramps are linear and reach 1 at `budget` searches. The paper's starts at no search, the
    official code's at one; its `MASK_WEIGHT`, as a share of the penalty's weight, is
    `1 / (budget - 1)`.

    Args:
        searches: mean valid searches per trajectory, >= 0.
        ramp: `paper`, min(searches / budget, 1), or `code`,
            min(max(searches - 1, 0) / (budget - 1), 1).
        budget: searches at which the ramp ends, > 0, for `code` > 1.

    Returns:
        A weight in [0, 1].

    Raises:
        ValueError: for an unknown ramp or values out of range.
    """
    check_choice("ramp", ramp, ("paper", "code"))
    check_range("searches", searches, 0)
    start = 0.0 if ramp == "paper" else 1.0
    if not budget > start:
        raise ValueError(f'budget is {budget} with ramp "{ramp}": give a number above {start:g}')
    return min(max(searches - start, 0.0) / (budget - start), 1.0)


def _open_gates(
    delta: torch.Tensor, kept: torch.Tensor, actions: torch.Tensor, gate: str, threshold: float
) -> torch.Tensor:
    """(B, T) bool: preserved tokens whose unit lost more than `threshold` in total."""
    if gate == "token":
        return (delta > threshold) & kept
    units = actions if gate == "action" else kept.long()
    # Summed in token order (on a CPU), so that padding cannot tip a sum near 0 by rounding.
    return (_sum_by_unit(units, delta) > threshold).gather(1, units) & kept


def _sum_by_unit(units: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sums of `values` (B, T) by `units`, unit 0 included: (B, U)."""
    rows, width = units.shape
    # Room for all runs that T tokens can hold: reading the last id stalls a GPU.
    return values.new_zeros(rows, (width + 1) // 2 + 1).scatter_add_(1, units, values)
