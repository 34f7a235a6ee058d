"""The k3 estimate of the divergence from the reference policy, used as a loss by GRPO and Search-R1.

    d = ref_logprob - logprob        k3 = exp(d) - d - 1 >= 0        dk3/dlogprob = 1 - exp(d)

Unbiased for KL(policy || reference) on tokens sampled from the policy; its gradient as a loss is not that of the KL.
"""

import torch

from llds_core.losses.checks import check_same_shape


def kl_k3(
    logprobs_BT: torch.Tensor, ref_logprobs_BT: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return k3 per token, to be reduced with `aggregate` under the response mask.

    Args:
        logprobs_BT: (B, T) log-probabilities under the current policy.
        ref_logprobs_BT: (B, T) the same under the frozen reference; treated as a constant.

    Returns:
        (B, T) values in nats, not clamped (the official code clamps to ±10), in at least float32; and per-token
        `k1` = logprob - ref and `k2` = k1²/2, detached, for logging.

    Raises:
        ValueError: for unequal shapes.
    """
    check_same_shape(logprobs_BT, ref_logprobs_BT=ref_logprobs_BT)
    half = (torch.bfloat16, torch.float16)
    logprobs = logprobs_BT.float() if logprobs_BT.dtype in half else logprobs_BT
    difference = ref_logprobs_BT.detach().to(logprobs.dtype) - logprobs
    # expm1 keeps the small values that exp(d) - 1 would round away.
    values = torch.expm1(difference) - difference
    k1 = -difference.detach()
    return values, {"k1": k1, "k2": 0.5 * k1**2}
