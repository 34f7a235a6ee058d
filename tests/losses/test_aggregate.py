"""Aggregation: published values and denominators; micro-batches are in `test_policy_loss`."""

import pytest
import torch

from llds_core.losses import aggregate

VALUES = torch.tensor([[1, 2, 3, 9], [4, 9, 9, 9.0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
# What a trainer counts over the whole mini-batch for each mode (`constant`: 2 rows of 4 tokens).
COUNTS = {"token-mean": 4, "seq-mean-token-mean": 2, "seq-mean-token-sum": 2, "constant": 8}
MODES = list(COUNTS)


@pytest.mark.parametrize(("mode", "expected"), zip(MODES, (2.5, 3.0, 5.0, 1.25), strict=True))
def test_modes_give_their_published_values(mode, expected):
    count = COUNTS[mode] if mode == "constant" else None
    assert aggregate(VALUES, MASK, mode, count).item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES[:3])
def test_denominator_replaces_the_count_of_the_mode(mode):
    own = aggregate(VALUES, MASK, mode)
    with_empty = aggregate(torch.cat([VALUES, VALUES]), torch.cat([MASK, 0 * MASK]), mode)
    assert with_empty.item() == pytest.approx(own.item())  # such rows are no sequences
    assert aggregate(VALUES, MASK, mode, COUNTS[mode]).item() == pytest.approx(own.item())
    assert aggregate(VALUES, MASK, mode, 10 * COUNTS[mode]).item() == pytest.approx(own.item() / 10)
