"""Group-relative advantages: GRPO and its relatives differ in which mean and deviation they use.

| method | `mean` | `std` |
|---|---|---|
| GRPO (official code) | `group` | `group` |
| Lite PPO (arXiv 2508.08221) | `group` | `batch` |
| Dr. GRPO (arXiv 2503.20783) | `group` | `none` |
| batch normalisation | `batch` | `batch` |
| REINFORCE with the batch mean as baseline | `batch` | `none` |
| REINFORCE without baseline | `none` | `none` |
"""

import torch

from llds_core.losses.aggregate import check_choice, check_range, check_rows, check_tensors


def group_advantages(
    rewards_B: torch.Tensor,
    group_ids_B: torch.Tensor,
    *,
    mean: str = "group",
    std: str = "group",
    eps: float = 1e-6,
) -> torch.Tensor:
    """Return `(reward - mean) / (std + eps)` per trajectory.

    Deviations are unbiased (divided by n - 1). A group of one has no spread to compare with: its
    mean counts as 0 and its deviation as 1, as in the official code. A group of equal rewards has
    advantage 0 exactly. Rewards of a whole rollout belong in one call: those of a mini-batch have
    other statistics.

    Args:
        rewards_B: (B,) scalar rewards, finite.
        group_ids_B: (B,) integers, equal for trajectories of the same question, in any order.
        mean: baseline, `group`, `batch` or `none`.
        std: scale, `group`, `batch` or `none`.
        eps: added to the deviation, >= 0.

    Returns:
        (B,) advantages in float32, or float64 for float64 rewards.

    Raises:
        ValueError: for an unknown option, unequal shapes, an empty batch or a non-finite reward.
    """
    check_choice("mean", mean, ("group", "batch", "none"))
    check_choice("std", std, ("group", "batch", "none"))
    check_range("eps", eps, 0)
    check_tensors(rewards_B=rewards_B)
    if rewards_B.dim() != 1 or not len(rewards_B):
        raise ValueError(
            f"rewards_B has shape {tuple(rewards_B.shape)}: give (B,), one reward per trajectory"
        )
    check_rows(rewards_B, group_ids_B=group_ids_B)
    rewards = rewards_B if rewards_B.dtype == torch.float64 else rewards_B.float()
    if not rewards.isfinite().all():
        bad = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(f"rewards_B[{bad}] is {rewards[bad].item()}: give finite rewards")
    ids = {"group": group_ids_B, "batch": torch.zeros_like(group_ids_B)}
    centered = rewards
    if mean != "none":
        mean_B, _, size_B = _statistics(rewards, ids[mean])
        alone_B = (size_B == 1) & (mean == "group")
        centered = rewards - torch.where(alone_B, 0.0, mean_B)
    if std == "none":
        return centered
    scale = _statistics(rewards, ids[std])[1] + eps
    # Without eps, equal rewards would be 0/0.
    return centered / torch.where(scale == 0, 1.0, scale)


def _statistics(
    rewards: torch.Tensor, ids_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, unbiased deviation (1 for a group of one) and size of each trajectory's group."""
    _, group_of_B, size_G = torch.unique(ids_B, return_inverse=True, return_counts=True)
    zeros_G = torch.zeros_like(size_G, dtype=rewards.dtype)
    mean_G = zeros_G.index_add(0, group_of_B, rewards) / size_G
    low_G = zeros_G.scatter_reduce(0, group_of_B, rewards, "amin", include_self=False)
    high_G = zeros_G.scatter_reduce(0, group_of_B, rewards, "amax", include_self=False)
    # Rounding can put the mean of equal rewards (eight times 0.2) beside them; the sign of what is
    # left would then decide whether LLDS preserves the group.
    mean_B = torch.minimum(torch.maximum(mean_G, low_G), high_G)[group_of_B]
    squares_G = zeros_G.index_add(0, group_of_B, (rewards - mean_B) ** 2)
    std_G = torch.where(size_G == 1, 1.0, (squares_G / (size_G - 1).clamp(min=1)).sqrt())
    return mean_B, std_G[group_of_B], size_G[group_of_B]
