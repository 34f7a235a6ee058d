"""What the adapters share: the settings of the penalty, its computation where a trainer hands down
an advantage per token, and what is logged of displacement.
"""

from typing import Any

import torch

from llds_core.errors import ConfigError
from llds_core.losses import displacement, llds_penalty, penalty_tokens
from llds_core.losses.aggregate import check_range
from llds_core.losses.llds import check_penalty_options

DISPLACEMENT = ("rewarded", "rewarded_tokens", "loglik_sum", "change_sum", "displaced")


def penalty_options(settings: Any) -> dict[str, Any]:
    """What `llds_penalty` is called with, of something that has `llds_` fields."""
    names = ("gate", "normalizer", "preserve", "gate_threshold")
    return {name: getattr(settings, f"llds_{name}") for name in names}


def check_penalty(settings: Any) -> None:
    """Raise `ValueError` for such fields that `llds_penalty` cannot use."""
    check_range("llds_weight", settings.llds_weight, 0)
    check_penalty_options(**penalty_options(settings))


def one_per_response(
    advantages_BT: torch.Tensor, response_mask_BT: torch.Tensor, remedy: str
) -> torch.Tensor:
    """The advantage that all tokens of a response share.

    Args:
        advantages_BT: (B, T), equal on the tokens of a response.
        response_mask_BT: (B, T), 1 on policy tokens; advantages elsewhere are never read.
        remedy: the setting that gives such advantages, for the error.

    Returns:
        (B,); minus infinity for a response without tokens.

    Raises:
        ConfigError: for advantages that differ within a response.
    """
    mask = response_mask_BT.bool()
    low = advantages_BT.masked_fill(~mask, torch.inf).amin(1)
    high = advantages_BT.masked_fill(~mask, -torch.inf).amax(1)
    if bool((low < high).any()):
        raise ConfigError(
            f"advantages differ by up to {(high - low).max().item():g} within a response: LLDS "
            f"needs one per response, as of {remedy}"
        )
    return high


def penalty_and_sums(
    settings: Any, *tensors: torch.Tensor, denominator: float | torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The penalty, without a gradient where its weight is 0, and with its metrics the sums of
    `displacement`; trainers take means of these over micro-batches, whose ratio is that of the
    sums. The tensors are those of `llds_penalty`.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and settings.llds_weight > 0):
        options = penalty_options(settings)
        penalty, metrics = llds_penalty(*tensors, denominator=denominator, **options)
    return penalty, metrics | displacement(*tensors)


def counted_tokens(
    settings: Any, response_mask_BT: torch.Tensor, advantages_B: torch.Tensor
) -> torch.Tensor:
    """How many tokens the penalty is divided by."""
    options = {"normalizer": settings.llds_normalizer, "preserve": settings.llds_preserve}
    return penalty_tokens(response_mask_BT, advantages_B, **options).sum()


def displacement_metrics(sums: dict[str, float], suffix: str = "") -> dict[str, float]:
    """From sums, or means of them, what they say of a response of positive advantage, names ending
    in `suffix`: nothing without such a response.
    """
    if not sums["rewarded"]:
        return {}
    return {
        "loglik_rewarded": sums["loglik_sum"] / sums["rewarded_tokens"],
        f"change_rewarded{suffix}": sums["change_sum"] / sums["rewarded"],
        f"displaced_fraction{suffix}": sums["displaced"] / sums["rewarded"],
    }
