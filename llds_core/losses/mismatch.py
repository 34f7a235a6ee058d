"""Weights for rollouts of a sampler that is not quite the trained policy: vLLM's kernels, rounded
weights, another temperature.

    w = exp(old_logprob - sampler_logprob)                   per token
    w = exp(sum over the row's policy tokens of the same)    per sequence

`truncate` takes min(w, cap) (truncated importance sampling), `mask` takes w where it is at most the
cap and 0 elsewhere. The modes are those of `vllm_importance_sampling_mode` of TRL's `GRPOConfig`.
"""

import torch

from llds_core.losses.aggregate import check_choice, check_range, check_same_shape, upcast

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def sampler_correction(
    old_logprobs_BT: torch.Tensor,
    sampler_logprobs_BT: torch.Tensor,
    response_mask_BT: torch.Tensor,
    *,
    mode: str = "token_truncate",
    cap: float = 3.0,
) -> torch.Tensor:
    """Weight of each token's policy loss; multiply the advantages by it.

    Args:
        old_logprobs_BT: (B, T) log-probabilities of the sampled tokens under the trainer's policy
            before the update.
        sampler_logprobs_BT: (B, T) the same as the sampler reported them; NaN (not reported)
            weighs 1.
        response_mask_BT: (B, T), 1 on policy tokens.
        mode: one of `MODES`.
        cap: largest weight, >= 1.

    Returns:
        (B, T) weights in [0, cap], without gradients, in at least float32; 1 outside the mask for
        weights per token.

    Raises:
        ValueError: for an unknown mode, unequal shapes or a cap below 1.
    """
    check_choice("mode", mode, MODES)
    check_range("cap", cap, 1)
    check_same_shape(
        old_logprobs_BT=old_logprobs_BT,
        sampler_logprobs_BT=sampler_logprobs_BT,
        response_mask_BT=response_mask_BT,
    )
    level, beyond = mode.split("_")
    log_ratio = (upcast(old_logprobs_BT) - upcast(sampler_logprobs_BT)).detach().nan_to_num(nan=0.0)
    log_ratio = torch.where(response_mask_BT.bool(), log_ratio, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(log_ratio)
    weight = log_ratio.exp()
    return weight.clamp(max=cap) if beyond == "truncate" else weight.where(weight <= cap, 0.0)
