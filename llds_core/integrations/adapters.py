"""What adapters of trainers with a registry of losses share: the settings of the penalty, one
advantage per response where a trainer hands down one per token, and what is logged of displacement.
"""

from typing import Any

import torch

from llds_core.errors import ConfigError
from llds_core.losses import displacement
from llds_core.losses.aggregate import check_range
from llds_core.losses.llds import check_penalty_options

DISPLACEMENT = ("rewarded", "rewarded_tokens", "loglik_sum", "change_sum", "displaced")


def penalty_options(settings: Any) -> dict[str, Any]:
    """What `llds_penalty` is called with, of a trainer's configuration that has `llds_` fields."""
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


def displacement_sums(*tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `displacement` returns, by the names that are logged. Trainers take means of them over
    micro-batches; the ratio of two means is that of the sums.
    """
    return {f"llds/{name}": value for name, value in displacement(*tensors).items()}


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
