"""The k3 estimate of the divergence from the reference policy, a loss of GRPO and Search-R1.

    d = ref_logprob - logprob        k3 = exp(d) - d - 1 >= 0        dk3/dlogprob = 1 - exp(d)

Unbiased for KL(policy || reference) on tokens sampled from the policy; its gradient as a loss is
not that of the KL. The official code clamps k3 to ±10, so that the tokens that drifted furthest
feel nothing; without the clamp they feel an exponential pull. `clamp` chooses.
"""

import torch

from llds_core.losses.aggregate import aggregate, check_same_shape, upcast


def kl_k3(
    logprobs_BT: torch.Tensor,
    ref_logprobs_BT: torch.Tensor,
    response_mask_BT: torch.Tensor | None = None,
    *,
    clamp: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return k3 per token, to be reduced with `aggregate` under the response mask.

    Args:
        logprobs_BT: (B, T) log-probabilities under the current policy.
        ref_logprobs_BT: (B, T) the same under the frozen reference; treated as a constant.
        response_mask_BT: (B, T), 1 on policy tokens. Elsewhere values are then 0 and
            log-probabilities never read, which matters where they are infinite or NaN: `aggregate`
            alone drops such a value, but not its gradient.
        clamp: largest value, positive; beyond it the gradient is 0. None does not clamp.

    Returns:
        (B, T) values in nats, in at least float32; and the token means `k1`
        (logprob - ref), `k2` (half its square) and `k3`.

    Raises:
        ValueError: for unequal shapes.
    """
    if response_mask_BT is None:
        response_mask_BT = torch.ones_like(logprobs_BT)
    check_same_shape(
        logprobs_BT=logprobs_BT, ref_logprobs_BT=ref_logprobs_BT, response_mask_BT=response_mask_BT
    )
    mask = response_mask_BT.bool()
    difference = torch.where(mask, upcast(ref_logprobs_BT).detach() - upcast(logprobs_BT), 0.0)
    # Far beyond any clamp, and before exp overflows, whose gradient would be 0 times infinity.
    bounded = difference if clamp is None else difference.clamp(max=80.0)
    # expm1 keeps the small values that exp(d) - 1 would round away.
    values = torch.expm1(bounded) - bounded
    if clamp is not None:
        values = values.clamp(max=clamp)
    k1 = -difference.detach()
    means = {"k1": k1, "k2": 0.5 * k1**2, "k3": values.detach()}
    return values, {name: aggregate(value, mask, "token-mean") for name, value in means.items()}


def clamped_reference(
    logprobs_BT: torch.Tensor, ref_logprobs_BT: torch.Tensor, clamp: float
) -> torch.Tensor:
    """Reference log-probabilities (B, T) under which unclamped k3 has the gradient of clamped k3.

    Where k3 exceeds `clamp` they are those of the policy: value and gradient are then 0, where
    `kl_k3(..., clamp=clamp)` has the value `clamp` and the gradient 0. For code that computes k3
    itself, such as TRL's.

    Raises:
        ValueError: for unequal shapes.
    """
    values, _ = kl_k3(logprobs_BT.detach(), ref_logprobs_BT)
    return torch.where(values > clamp, logprobs_BT.detach(), ref_logprobs_BT)
