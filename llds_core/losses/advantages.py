"""Group-relative advantages: GRPO and its relatives differ only in which mean and which deviation they use.

| method | `mean` | `std` |
|---|---|---|
| GRPO (official code) | `group` | `group` |
| Lite PPO (arXiv 2508.08221) | `group` | `batch` |
| Dr. GRPO (arXiv 2503.20783) | `group` | `none` |
| batch normalisation | `batch` | `batch` |
| REINFORCE without baseline | `none` | `none` |
"""

import torch

from llds_core.losses.checks import check_at_least, check_choice, check_rows


def group_advantages(
    rewards_B: torch.Tensor,
    group_ids_B: torch.Tensor,
    *,
    mean: str = "group",
    std: str = "group",
    eps: float = 1e-6,
) -> torch.Tensor:
    """Return `(reward - mean) / (std + eps)` per trajectory.

    Deviations are unbiased (divided by n - 1). A group of one has no spread to compare with: its mean counts as 0 and
    its deviation as 1, as in the official code. Rewards of a whole rollout belong in one call: `batch` statistics of a
    mini-batch would differ.

    Args:
        rewards_B: (B,) scalar rewards.
        group_ids_B: (B,) integers, equal for trajectories of the same question, in any order.
        mean: baseline, `group`, `batch` or `none`.
        std: scale, `group`, `batch` or `none`.
        eps: added to the deviation, >= 0.

    Returns:
        (B,) advantages in float32, or float64 for float64 rewards.

    Raises:
        ValueError: for an unknown option, unequal shapes or an empty batch.
    """
    check_choice("mean", mean, ("group", "batch", "none"))
    check_choice("std", std, ("group", "batch", "none"))
    check_at_least("eps", eps, 0)
    if rewards_B.dim() != 1 or not len(rewards_B):
        raise ValueError(
            f"rewards_B has shape {tuple(rewards_B.shape)}: give one reward per trajectory"
        )
    check_rows(rewards_B, group_ids_B=group_ids_B)
    rewards = rewards_B if rewards_B.dtype == torch.float64 else rewards_B.float()
    _, group_of_B, size_G = torch.unique(group_ids_B, return_inverse=True, return_counts=True)
    alone_B = size_G[group_of_B] == 1
    mean_G = (
        torch.zeros_like(size_G, dtype=rewards.dtype).index_add_(0, group_of_B, rewards) / size_G
    )
    centered = rewards
    if mean == "group":
        centered = torch.where(alone_B, rewards, rewards - mean_G[group_of_B])
    elif mean == "batch":
        centered = rewards - rewards.mean()
    if std == "none":
        return centered
    if std == "batch":
        scale = (
            rewards.std()
            if len(rewards) > 1
            else torch.ones((), dtype=rewards.dtype, device=rewards.device)
        )
        return centered / (scale + eps)
    squares = (rewards - mean_G[group_of_B]) ** 2
    variance_G = torch.zeros_like(mean_G).index_add_(0, group_of_B, squares) / (size_G - 1).clamp(
        min=1
    )
    scale_B = torch.where(alone_B, 1.0, variance_G.sqrt()[group_of_B])
    return centered / (scale_B + eps)
