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


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Raise `ValueError` unless `value` lies in [`low`, `high`]."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}: give a number from {low} to {high}")


def check_same_shape(**tensors: torch.Tensor) -> None:
    """Raise `ValueError` unless the first tensor is (B, T) and the others have its shape."""
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
    for name, tensor in others.items():
        if tensor.shape != expected.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: "
                f"give ({len(expected)},), one value a trajectory"
            )


def check_denominator(denominator: float | torch.Tensor | None) -> None:
    """Raise `ValueError` for a negative or NaN number; a tensor passes: reading it stalls a GPU."""
    if denominator is not None and not isinstance(denominator, torch.Tensor):
        check_at_least("denominator", denominator, 0)
