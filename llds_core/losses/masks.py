"""Actions as contiguous runs of policy tokens."""

import torch


def action_ids(response_mask_BT: torch.Tensor) -> torch.Tensor:
    """Number the actions of each trajectory.

    Args:
        response_mask_BT: (B, T), 1 on policy tokens, 0 on observations and padding.

    Returns:
        (B, T) int64: 0 outside actions, 1..K on the K maximal runs of policy tokens, counted from the left.

    Raises:
        ValueError: when the mask is not two-dimensional.
    """
    if response_mask_BT.dim() != 2:
        raise ValueError(
            f"response_mask_BT has shape {tuple(response_mask_BT.shape)}: give (trajectories, tokens)"
        )
    mask = response_mask_BT.bool()
    starts = mask.clone()
    starts[:, 1:] &= ~mask[:, :-1]
    return starts.cumsum(1) * mask
