"""LLDS, the likelihood-preserving regulariser (arXiv 2512.04220v2, Eq. 4, 5, 9 and 10).

GRPO's objective plus `weight * L`, where L looks only at trajectories worth preserving (advantage >= 0) and, among
their tokens, only at those that became less likely since the rollout:

    d_k      = old_logprob_k - logprob_k                      > 0 when token k lost likelihood
    gate     = 1[sum of d over the token | action | response > threshold]
    L        = (1 / Z) * sum over preserved policy tokens of  gate * relu(d_k)

The gate is a constant of the gradient: an open gate pulls each losing token up with strength `1 / Z`, whatever the
size of its loss. Versions: v1 of the paper gates whole responses, v2 actions; the token gate is its ablation. The
paper divides by the policy tokens of preserved trajectories (`normalizer="preserved"`), the official code by those of
all trajectories (`"all"`), which makes L smaller by the preserved share. On the first mini-batch of a rollout d is 0
everywhere and so are L and its gradient: LLDS needs at least two updates per rollout.
"""

import torch

from llds_core.losses.checks import check_at_least, check_choice, check_rows, check_same_shape
from llds_core.losses.masks import action_ids

GATES = ("action", "response", "token")


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
        old_logprobs_BT: (B, T) the same under the policy that sampled, from the same forward path; a constant.
        response_mask_BT: (B, T), 1 on policy tokens; values elsewhere are never read.
        advantages_B: (B,) advantages.
        gate: `action`, `response` or `token`: the unit whose summed loss of likelihood opens the gate.
        normalizer: `preserved` (paper) or `all` (official code), see above.
        answer_mask_BT: (B, T), 1 on tokens of the final answer, for LLDS-MA.
        answer_weight: weight of those tokens in [0, 1]; the gate ignores it.
        preserve: `nonnegative` preserves advantages >= 0 (groups with equal rewards included), `positive` only > 0.
        gate_threshold: nats by which a unit must have lost likelihood, >= 0. Strictly more opens the gate.
        denominator: Z of the whole mini-batch, so that penalties of its micro-batches add up to its own.

    Returns:
        The scalar penalty >= 0 (0, attached to the graph, when nothing is preserved) and metrics, all sums, so that
        they may be added over micro-batches: `gated_tokens` (tokens with a gradient), `preserved_tokens`,
        `gated_actions`, `preserved_actions`, `penalty_sum` (before Z), `drop_sum` (of d over preserved tokens).

    Raises:
        ValueError: for unknown options, unequal shapes or values out of range.
    """
    check_choice("gate", gate, GATES)
    check_choice("normalizer", normalizer, ("preserved", "all"))
    check_choice("preserve", preserve, ("nonnegative", "positive"))
    check_same_shape(
        logprobs_BT, old_logprobs_BT=old_logprobs_BT, response_mask_BT=response_mask_BT
    )
    check_rows(logprobs_BT, advantages_B=advantages_B)
    check_at_least("gate_threshold", gate_threshold, 0)
    if not 0 <= answer_weight <= 1:
        raise ValueError(f"answer_weight is {answer_weight}: give a number from 0 to 1")
    if answer_mask_BT is not None:
        check_same_shape(logprobs_BT, answer_mask_BT=answer_mask_BT)
    policy = response_mask_BT.bool()
    kept_B = advantages_B >= 0 if preserve == "nonnegative" else advantages_B > 0
    kept = policy & kept_B[:, None]
    # In float32: the gate is a sign, and bfloat16 would decide it by rounding.
    drop = torch.where(kept, _upcast(old_logprobs_BT).detach() - _upcast(logprobs_BT), 0.0)
    open_gate, actions = _gates(drop.detach(), kept, gate, gate_threshold)
    # relu, whose gradient at a tie is 0: an unchanged token must feel nothing.
    terms = torch.relu(drop) * open_gate
    if answer_mask_BT is not None and answer_weight != 1:
        terms = torch.where(answer_mask_BT.bool(), answer_weight * terms, terms)
    total = terms.sum()
    if denominator is None:
        denominator = (kept if normalizer == "preserved" else policy).sum()
    value = total / torch.as_tensor(denominator, dtype=total.dtype, device=total.device).clamp(
        min=1
    )
    gated = open_gate & (drop.detach() > 0)
    return value, {
        "gated_tokens": gated.sum(),
        "preserved_tokens": kept.sum(),
        "gated_actions": actions[0],
        "preserved_actions": actions[1],
        "penalty_sum": total.detach(),
        "drop_sum": drop.detach().sum(),
    }


def answer_weight_ramp(searches: float, *, ramp: str = "paper", budget: float = 2.0) -> float:
    """Answer weight of LLDS-MA for a mean of `searches` valid searches per trajectory.

    The paper ramps linearly from no search to `budget` searches; the official code starts at one search.

    Args:
        searches: mean valid searches per trajectory, >= 0.
        ramp: `paper`, min(searches / budget, 1), or `code`, min(max(searches - 1, 0), 1).
        budget: searches at which the paper's ramp ends, > 0.

    Returns:
        A weight in [0, 1].

    Raises:
        ValueError: for an unknown ramp or values out of range.
    """
    check_choice("ramp", ramp, ("paper", "code"))
    check_at_least("searches", searches, 0)
    if not budget > 0:
        raise ValueError(f"budget is {budget}: give a number above 0")
    return min(searches / budget, 1.0) if ramp == "paper" else min(max(searches - 1.0, 0.0), 1.0)


def _gates(
    drop: torch.Tensor, kept: torch.Tensor, gate: str, threshold: float
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Open gates per token (B, T) bool, and the numbers of gated and of all preserved actions."""
    ids = action_ids(kept)
    sums = drop.new_zeros(len(drop), int(ids.max()) + 1 if ids.numel() else 1).scatter_add_(
        1, ids, drop
    )
    present = torch.zeros_like(sums, dtype=torch.bool).scatter_(1, ids, True)
    present[:, 0] = False
    open_actions = (sums > threshold) & present
    counts = (open_actions.sum(), present.sum())
    if gate == "action":
        return open_actions.gather(1, ids) & kept, counts
    if gate == "response":
        return (drop.sum(1, keepdim=True) > threshold) & kept, counts
    return (drop > threshold) & kept, counts


def _upcast(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
