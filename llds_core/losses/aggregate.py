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

from __future__ import annotations  # the file is copied to older Pythons: docs/integrations.md

import math

import torch

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
        return divide(values.sum(), tokens_B.sum(), denominator)
    per_row = values.sum(1)
    if mode == "seq-mean-token-mean":
        per_row = per_row / tokens_B.clamp(min=1)
    # Rows without a token are no sequences: they add nothing to the sum and nothing to the count.
    return divide(per_row.sum(), (tokens_B > 0).sum(), denominator)


def divide(
    total: torch.Tensor, count: torch.Tensor, denominator: float | torch.Tensor | None = None
) -> torch.Tensor:
    """Return `total` / `denominator`, by default `count`; the sum over nothing stays 0.

    A denominator between 0 and 1 stays as it is: divided among processes, a small one is a
    fraction. A tensor is not checked: reading it stalls a GPU.
    """
    divisor = count if denominator is None else denominator
    if isinstance(divisor, torch.Tensor):
        return total / torch.where(divisor > 0, divisor, 1)
    check_range("denominator", divisor, 0)
    return total / (divisor or 1)


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision to float32, for sums and small differences; other types are left alone."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def check_choice(name: str, value: str, options: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `options`."""
    if value not in options:
        raise ValueError(f'{name} is "{value}": choose one of {", ".join(options)}')


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise `ValueError` unless `value` lies in [`low`, `high`]; NaN does not."""
    if not low <= value <= high:
        wanted = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name} is {value}: give a number {wanted}")


def check_tensors(**values: object) -> None:
    """Raise `ValueError` unless all `values` are tensors."""
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            seen = "None" if value is None else f"of type {type(value).__name__}"
            kept = "keep the log-probabilities of the policy that sampled"
            advice = kept if name == "old_logprobs_BT" else "give a torch.Tensor"
            raise ValueError(f"{name} is {seen}: {advice}")


def check_same_shape(**tensors: torch.Tensor) -> None:
    """Raise `ValueError` unless the first tensor is (B, T) and the others have its shape."""
    check_tensors(**tensors)
    (first, expected), *others = tensors.items()
    if expected.dim() != 2:
        raise ValueError(f"{first} has shape {tuple(expected.shape)}: give (trajectories, tokens)")
    for name, tensor in others:
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: "
                f"give {tuple(expected.shape)}, the shape of {first}"
            )


def check_rows(expected: torch.Tensor, **others: torch.Tensor) -> None:
    """Raise `ValueError` unless all `others` have shape (B,) for `expected` of B rows."""
    check_tensors(**others)
    for name, tensor in others.items():
        if tensor.shape != expected.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: "
                f"give ({len(expected)},), one value per trajectory"
            )
