"""Losses of group-relative policy optimisation: pure tensors in, `(value, metrics)` out.

They need torch and nothing else of this package, and are the reference that the trainer is tested
against.
"""

from llds_core.losses.advantages import group_advantages
from llds_core.losses.aggregate import aggregate
from llds_core.losses.kl import clamped_reference, kl_k3
from llds_core.losses.llds import (
    action_ids,
    answer_weight_ramp,
    displacement,
    llds_penalty,
    penalty_tokens,
)
from llds_core.losses.lp_reg import low_probability_bound, lp_reg_penalty, min_p_proxy
from llds_core.losses.mismatch import sampler_correction
from llds_core.losses.policy import policy_loss

__all__ = [
    "action_ids",
    "aggregate",
    "answer_weight_ramp",
    "clamped_reference",
    "displacement",
    "group_advantages",
    "kl_k3",
    "llds_penalty",
    "low_probability_bound",
    "lp_reg_penalty",
    "min_p_proxy",
    "penalty_tokens",
    "policy_loss",
    "sampler_correction",
]
