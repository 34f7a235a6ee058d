"""The k3 estimate of the divergence from the reference policy, a loss of GRPO and Search-R1.

    d = ref_logprob - logprob        k3 = exp(d) - d - 1 >= 0        dk3/dlogprob = 1 - exp(d)

Unbiased for KL(policy || reference) on tokens sampled from the policy; its gradient as a loss is
not that of the KL. The official code clamps k3 to ±10, so that the tokens that drifted furthest
feel nothing; here it is not clamped.
"""

import torch

from llds_core.losses.aggregate import aggregate, upcast
from llds_core.losses.checks import check_same_shape


def kl_k3(
    logprobs_BT: torch.Tensor,
    ref_logprobs_BT: torch.Tensor,
    response_mask_BT: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return k3 per token, to be reduced with `aggregate` under the response mask.

    Args:
        logprobs_BT: (B, T) log-probabilities under the current policy.
        ref_logprobs_BT: (B, T) the same under the frozen reference; treated as a constant.
        response_mask_BT: (B, T), 1 on policy tokens. Elsewhere values are then 0 and
            log-probabilities never read, which matters where they are infinite or NaN: `aggregate`
            alone drops such a value, but not its gradient.

    Returns:
        (B, T) values in nats, not clamped, in at least float32; and the token means `k1`
        (logprob - ref), `k2` (half its square) and `k3`.

    Raises:
        ValueError: for unequal shapes.
    """
    check_same_shape(logprobs_BT=logprobs_BT, ref_logprobs_BT=ref_logprobs_BT)
    mask = torch.ones_like(logprobs_BT, dtype=torch.bool)
    if response_mask_BT is not None:
        check_same_shape(logprobs_BT=logprobs_BT, response_mask_BT=response_mask_BT)
        mask = response_mask_BT.bool()
    difference = torch.where(mask, upcast(ref_logprobs_BT).detach() - upcast(logprobs_BT), 0.0)
    # expm1 keeps the small values that exp(d) - 1 would round away.
    values = torch.expm1(difference) - difference
    k1 = -difference.detach()
    means = {"k1": k1, "k2": 0.5 * k1**2, "k3": values.detach()}
    return values, {name: aggregate(value, mask, "token-mean") for name, value in means.items()}
