"""From a loss per token to one number, without depending on how a mini-batch was split.

| mode | value | used by |
|---|---|---|
| `token-mean` | sum over tokens / number of tokens | DAPO, Lite PPO; Search-R1 and LLDS code |
| `seq-mean-token-mean` | mean over sequences of their token mean | GSPO; GRPO, Search-R1 papers |
| `seq-mean-token-sum` | mean over sequences of their token sum | – |
| `constant` | sum / a constant (B times the generation budget) | Dr. GRPO (arXiv 2503.20783) |

The official code takes the mean of each micro-batch and then averages those means, so that a token
weighs more in a micro-batch with few tokens. Here `denominator` carries the count of the whole
mini-batch instead.
"""

import torch

from llds_core.losses.checks import check_choice, check_denominator, check_same_shape

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant")


def aggregate(
    values_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    mode: str,
    denominator: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """Reduce `values_BT` over the tokens where `mask_BT` is 1.

    Args:
        values_BT: (B, T) values; those under a zero mask are never read and may be infinite or NaN.
        mask_BT: (B, T) of 0 and 1, or bool.
        mode: see the table above.
        denominator: replaces the count of the mode (tokens, sequences with a token, or the
            constant) by that of the whole mini-batch, so that the values of its micro-batches add
            up to its own. Required by `constant`.

    Returns:
        A scalar in at least float32; 0, still attached to the graph, when the mask is empty.

    Raises:
        ValueError: for an unknown mode, unequal shapes, a negative denominator, or `constant`
            without a positive one.
    """
    check_choice("mode", mode, MODES)
    check_same_shape(values_BT=values_BT, mask_BT=mask_BT)
    check_denominator(denominator)
    mask = mask_BT.bool()
    values = torch.where(mask, upcast(values_BT), 0.0)
    tokens_B = mask.sum(1)
    if mode == "constant":
        if denominator is None or not (isinstance(denominator, torch.Tensor) or denominator > 0):
            raise ValueError(
                f'denominator is {denominator} with mode "constant": '
                "give trajectories × generation budget"
            )
        return values.sum() / denominator
    if mode == "token-mean":
        return values.sum() / positive(tokens_B.sum() if denominator is None else denominator)
    per_row = values.sum(1)
    if mode == "seq-mean-token-mean":
        per_row = per_row / tokens_B.clamp(min=1)
    # Rows without a token are no sequences: they add nothing to the sum and nothing to the count.
    return per_row.sum() / positive((tokens_B > 0).sum() if denominator is None else denominator)


def positive(count: float | torch.Tensor) -> float | torch.Tensor:
    """Return `count`, or 1 for 0: the sum over nothing is 0 and must stay 0, with a graph.

    A count between 0 and 1 stays as it is: divided among processes, a small one is a fraction.
    """
    if isinstance(count, torch.Tensor):
        return torch.where(count > 0, count, 1)
    return count if count > 0 else 1


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision to float32, for sums and small differences; other types are left alone."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
