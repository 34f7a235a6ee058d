"""The clipped policy-gradient surrogate: PPO, GRPO, Clip-Higher (DAPO), dual clip, and GSPO's sequence ratio.

    rho  = exp(logprob - old_logprob)                                    ratio="token"
    rho  = exp(mean over the row's policy tokens of the same)            ratio="sequence" (arXiv 2507.18071)
    loss = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))        then aggregated

The log-ratio is clamped to ±20 before the exponential, as verl does, so that no ratio overflows; the official LLDS
code clamps after it, where an overflow has already spoilt the gradient.
"""

import torch

from llds_core.losses.aggregate import aggregate as reduce
from llds_core.losses.checks import check_at_least, check_choice, check_rows, check_same_shape

_MAX_LOG_RATIO = 20.0


def policy_loss(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    advantages: torch.Tensor,
    response_mask_BT: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: str = "token",
    aggregate: str = "token-mean",
    dual_clip: float | None = None,
    denominator: float | torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped surrogate loss over policy tokens.

    Args:
        logprobs_BT: (B, T) log-probabilities of the sampled tokens under the current policy.
        old_logprobs_BT: (B, T) the same under the policy that sampled; treated as a constant.
        advantages: (B,) one per trajectory, or (B, T) one per token.
        response_mask_BT: (B, T), 1 on policy tokens.
        clip_low: lower clip distance in [0, 1].
        clip_high: upper clip distance, >= 0; 0.28 for Clip-Higher.
        ratio: `token` or `sequence`. The sequence ratio keeps its value and spreads its gradient evenly over the
            row's tokens (the GSPO-token form).
        aggregate: mode of `llds_core.losses.aggregate`.
        dual_clip: upper bound on the loss of negative advantages, as a multiple c > 1 of -A; None for no bound.
        denominator: see `llds_core.losses.aggregate`.

    Returns:
        The scalar loss, and metrics over policy tokens: `clip_fraction`, its parts `clip_fraction_low` (A < 0) and
        `clip_fraction_high` (A > 0), `ratio_max`, `ratio_min`, `ppo_kl` (mean of old minus new log-probability).

    Raises:
        ValueError: for unknown options, unequal shapes or values out of range.
    """
    check_choice("ratio", ratio, ("token", "sequence"))
    check_same_shape(
        logprobs_BT, old_logprobs_BT=old_logprobs_BT, response_mask_BT=response_mask_BT
    )
    check_at_least("clip_low", clip_low, 0)
    check_at_least("clip_high", clip_high, 0)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}: give a number above 1, or None")
    if advantages.dim() == 1:
        check_rows(logprobs_BT, advantages=advantages)
        advantages = advantages[:, None].expand_as(logprobs_BT)
    else:
        check_same_shape(logprobs_BT, advantages=advantages)
    mask = response_mask_BT.bool()
    # Differences are taken in float32: bfloat16 has 8 bits for numbers whose difference is the signal.
    log_ratio = _upcast(logprobs_BT) - _upcast(old_logprobs_BT).detach()
    log_ratio = torch.where(mask, log_ratio, 0.0)
    if ratio == "sequence":
        mean_B1 = (log_ratio.sum(1) / mask.sum(1).clamp(min=1))[:, None]
        # Value of the row's mean, gradient of the token's own log-probability: d/dlogprob = rho for every token.
        log_ratio = mean_B1.detach() + log_ratio - log_ratio.detach()
    rho = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    advantages = torch.where(mask, advantages.to(rho.dtype), 0.0)
    unclipped = -advantages * rho
    clipped = -advantages * rho.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)
    value = reduce(losses, mask, aggregate, denominator)
    return value, _metrics(
        unclipped.detach(), clipped.detach(), rho.detach(), log_ratio.detach(), advantages, mask
    )


def _metrics(
    unclipped: torch.Tensor,
    clipped: torch.Tensor,
    rho: torch.Tensor,
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    count = mask.sum().clamp(min=1)
    active = (clipped > unclipped) & mask
    one = torch.ones((), dtype=rho.dtype, device=rho.device)
    some = bool(mask.any())
    return {
        "clip_fraction": active.sum() / count,
        "clip_fraction_low": (active & (advantages < 0)).sum() / count,
        "clip_fraction_high": (active & (advantages > 0)).sum() / count,
        "ratio_max": rho[mask].max() if some else one,
        "ratio_min": rho[mask].min() if some else one,
        "ppo_kl": -torch.where(mask, log_ratio, 0.0).sum() / count,
    }


def _upcast(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
