"""Actions as contiguous runs of policy tokens."""

import torch

from llds_core.losses.checks import check_same_shape


def action_ids(response_mask_BT: torch.Tensor) -> torch.Tensor:
    """Number the actions of each trajectory.

    Args:
        response_mask_BT: (B, T), 1 on policy tokens, 0 on observations and padding.

    Returns:
        (B, T) int64: 0 outside actions, 1..K on the K maximal runs of policy tokens, from the left.

    Raises:
        ValueError: when the mask is not two-dimensional.
    """
    check_same_shape(response_mask_BT=response_mask_BT)
    mask = response_mask_BT.bool()
    starts = mask.clone()
    starts[:, 1:] &= ~mask[:, :-1]
    return starts.cumsum(1) * mask
