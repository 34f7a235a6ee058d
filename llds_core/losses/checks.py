"""Argument checks shared by the losses: one line, the value seen, what to do."""

import torch


def check_choice(name: str, value: str, options: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `options`."""
    if value not in options:
        raise ValueError(f'{name} is "{value}": choose one of {", ".join(options)}')


def check_at_least(name: str, value: float, low: float) -> None:
    """Raise `ValueError` unless `value` is a number of at least `low` (NaN is not)."""
    if not value >= low:
        raise ValueError(f"{name} is {value}: give a number of at least {low}")


def check_same_shape(expected: torch.Tensor, **others: torch.Tensor) -> None:
    """Raise `ValueError` unless all `others` have the (B, T) shape of `expected`."""
    if expected.dim() != 2:
        raise ValueError(
            f"log-probabilities have shape {tuple(expected.shape)}: give (trajectories, tokens)"
        )
    for name, tensor in others.items():
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the log-probabilities {tuple(expected.shape)}"
            )


def check_rows(expected: torch.Tensor, **others: torch.Tensor) -> None:
    """Raise `ValueError` unless all `others` have shape (B,) for `expected` of B rows."""
    for name, tensor in others.items():
        if tensor.shape != expected.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: give one value for each of {len(expected)} rows"
            )
