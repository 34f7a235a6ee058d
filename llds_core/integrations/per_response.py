"""One advantage per response, of trainers that hand down one per token."""

import torch

from llds_core.errors import ConfigError


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
