"""The clipped policy-gradient surrogate of PPO and GRPO, Clip-Higher, dual clip, GSPO's ratio and
CISPO's weight.

    rho  = exp(logprob - old_logprob)                                ratio="token"
    rho  = exp(mean over the row's policy tokens of the same)        ratio="sequence"
    loss = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))    surrogate="clip"
    loss = -A constant(clip(rho, 1 - clip_low, 1 + clip_high)) logprob    surrogate="cispo"

then aggregated. The sequence ratio is that of GSPO (arXiv 2507.18071), Clip-Higher that of DAPO
(arXiv 2503.14476). CISPO (arXiv 2506.13585) clips the weight of a token and never its gradient.

The log-ratio is clamped to ±20 before the exponential, as verl does (GSPO's there to at most 10);
the official LLDS code clamps GRPO's after it, where an overflow has already spoilt the gradient.
"""

import torch

from llds_core.losses.aggregate import aggregate as reduce
from llds_core.losses.aggregate import (
    check_choice,
    check_range,
    check_rows,
    check_same_shape,
    check_tensors,
    upcast,
)


def policy_loss(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    advantages: torch.Tensor,
    response_mask_BT: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: str = "token",
    surrogate: str = "clip",
    aggregate: str = "token-mean",
    dual_clip: float | None = None,
    denominator: float | torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped surrogate loss over policy tokens.

    Args:
        logprobs_BT: (B, T) log-probabilities of the sampled tokens under the current policy.
        old_logprobs_BT: (B, T) the same under the policy that sampled; treated as a constant.
        advantages: (B,) one per trajectory, or (B, T) one per token; treated as a constant.
        response_mask_BT: (B, T), 1 on policy tokens; values elsewhere are never read.
        clip_low: lower clip distance in [0, 1].
        clip_high: upper clip distance, >= 0; 0.28 for Clip-Higher.
        ratio: `token` or `sequence`. The sequence ratio keeps its value and lets each token carry
            the whole ratio's gradient (the GSPO-token form), which the row's token mean then shares
            out: pair it with `aggregate="seq-mean-token-mean"` for GSPO.
        surrogate: `clip` or `cispo`; the latter with the token ratio and without dual clip.
        aggregate: mode of `llds_core.losses.aggregate`.
        dual_clip: upper bound on the loss of negative advantages, as a multiple c > 1 of -A; None
            for no bound.
        denominator: see `llds_core.losses.aggregate`.

    Returns:
        The scalar loss in at least float32, and metrics over policy tokens: `clip_fraction`
        (clipping changed the loss), its parts `clip_fraction_low` (A < 0) and `clip_fraction_high`
        (A > 0), `dual_clip_fraction`, `ratio_max`, `ratio_min` (1 without tokens), `ppo_kl` (mean
        of old minus new log-probability) and `tokens`, the weight with which the means of
        micro-batches combine.

    Raises:
        ValueError: for unknown options, unequal shapes or values out of range.
    """
    check_choice("ratio", ratio, ("token", "sequence"))
    check_same_shape(
        logprobs_BT=logprobs_BT, old_logprobs_BT=old_logprobs_BT, response_mask_BT=response_mask_BT
    )
    check_range("clip_low", clip_low, 0, 1)
    check_range("clip_high", clip_high, 0)
    check_choice("surrogate", surrogate, ("clip", "cispo"))
    if surrogate == "cispo" and (ratio != "token" or dual_clip is not None):
        raise ValueError('surrogate is "cispo": give ratio "token" and no dual_clip')
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}: give a number above 1, or None")
    check_tensors(advantages=advantages)
    if advantages.dim() == 1:
        check_rows(logprobs_BT, advantages=advantages)
        advantages = advantages[:, None].expand_as(logprobs_BT)
    check_same_shape(logprobs_BT=logprobs_BT, advantages=advantages)
    mask = response_mask_BT.bool()
    # In float32: bfloat16 has 8 bits for numbers whose small difference is the signal.
    log_ratio = upcast(logprobs_BT) - upcast(old_logprobs_BT).detach()
    log_ratio = torch.where(mask, log_ratio, 0.0)
    if ratio == "sequence":
        mean_B = log_ratio.sum(1) / mask.sum(1).clamp(min=1)
        # Value of the row's mean; the added zero carries the gradient of the token's own logprob.
        log_ratio = mean_B.detach()[:, None] + (log_ratio - log_ratio.detach())
    rho = log_ratio.clamp(-20.0, 20.0).exp()
    advantages = advantages.detach().to(rho.dtype)
    within = rho.clamp(1 - clip_low, 1 + clip_high)
    unclipped, clipped = -advantages * rho, -advantages * within
    losses = torch.maximum(unclipped, clipped)
    if surrogate == "cispo":
        kept = torch.where(mask, upcast(logprobs_BT), 0.0)
        losses = -advantages * within.detach() * kept
    bounded = torch.zeros_like(mask)
    if dual_clip is not None:
        bound = -advantages * dual_clip
        bounded = mask & (advantages < 0) & (losses.detach() > bound)
        losses = torch.where(bounded, bound, losses)
    value = reduce(losses, mask, aggregate, denominator)
    count = mask.sum().clamp(min=1)
    # A sequence ratio reaches observation tokens too: they are not counted.
    active = mask & (clipped.detach() > unclipped.detach())
    ratios = rho.detach()[mask] if mask.any() else rho.new_ones(1)
    return value, {
        "clip_fraction": active.sum() / count,
        "clip_fraction_low": (active & (advantages < 0)).sum() / count,
        "clip_fraction_high": (active & (advantages > 0)).sum() / count,
        "dual_clip_fraction": bounded.sum() / count,
        "ratio_max": ratios.max(),
        "ratio_min": ratios.min(),
        "ppo_kl": reduce(-log_ratio.detach(), mask, "token-mean"),
        "tokens": mask.sum(),
    }
