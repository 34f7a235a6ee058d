"""From a loss per token to one number, without depending on how a mini-batch was split.

| mode | value | used by |
|---|---|---|
| `token-mean` | sum over tokens / number of tokens | DAPO, Lite PPO, Lp-Reg; the official Search-R1 and LLDS code |
| `seq-mean-token-mean` | mean over sequences of their token mean | GRPO and Search-R1 as printed, GSPO |
| `seq-mean-token-sum` | mean over sequences of their token sum | – |
| `constant` | sum / a constant (B times the generation budget) | Dr. GRPO (arXiv 2503.20783) |
"""

import torch

from llds_core.losses.checks import check_choice, check_same_shape

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant")


def aggregate(
    values_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    mode: str,
    denominator: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """Reduce `values_BT` over the tokens where `mask_BT` is 1.

    Args:
        values_BT: (B, T) values; those under a zero mask are never read, so they may be infinite or NaN.
        mask_BT: (B, T) of 0 and 1, or bool.
        mode: see the table above.
        denominator: replaces the count of the mode (tokens, sequences with a token, or the constant) by that of the
            whole mini-batch, so that the values of its micro-batches add up to its own. Required by `constant`.

    Returns:
        A scalar with the dtype of `values_BT`; 0, still attached to the graph, when the mask is empty.

    Raises:
        ValueError: for an unknown mode, unequal shapes, or `constant` without a denominator.
    """
    check_choice("mode", mode, MODES)
    check_same_shape(values_BT, mask_BT=mask_BT)
    mask = mask_BT.bool()
    values = torch.where(mask, values_BT, 0.0)
    tokens_B = mask.sum(1)
    if mode == "constant":
        if denominator is None:
            raise ValueError(
                "mode constant has no denominator: give trajectories × generation budget"
            )
        return values.sum() / denominator
    if mode == "token-mean":
        count = tokens_B.sum() if denominator is None else denominator
        return values.sum() / _at_least_one(count)
    per_row = values.sum(1)
    if mode == "seq-mean-token-mean":
        per_row = per_row / tokens_B.clamp(min=1)
    # Rows without a token are no sequences: they add nothing to the sum and nothing to the count.
    count = (tokens_B > 0).sum() if denominator is None else denominator
    return per_row.sum() / _at_least_one(count)


def _at_least_one(count: float | torch.Tensor) -> float | torch.Tensor:
    """An empty mask has a zero sum; dividing it by one keeps it zero and differentiable."""
    if isinstance(count, torch.Tensor):
        return torch.where(count > 0, count, 1)
    return count if count > 0 else 1
