"""Weights for a sampler that is not quite the trained policy, by hand."""

import math

import pytest
import torch

from llds_core.losses import sampler_correction

LN2 = math.log(2)
# Per token 2, 1/2 and 4 (not a policy token); then 2, not reported, 2.
OLD = torch.tensor([[-1.0, -2.0, -1.0], [-1.0, -1.0, -1.0]])
GAP = torch.tensor([[LN2, -LN2, 2 * LN2], [LN2, math.nan, LN2]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("mode", "cap", "weights"),
    [
        ("token_truncate", 1.5, [[1.5, 0.5, 1], [1.5, 1, 1.5]]),
        ("token_mask", 1.0, [[0, 0.5, 1], [0, 1, 0]]),
        ("sequence_truncate", 3.0, [[1, 1, 1], [3, 3, 3]]),
        ("sequence_mask", 3.0, [[1, 1, 1], [0, 0, 0]]),
        ("sequence_mask", 4.5, [[1, 1, 1], [4, 4, 4]]),
    ],
)
def test_weights_match_hand_computation(mode: str, cap: float, weights: list) -> None:
    found = sampler_correction(OLD.requires_grad_(), OLD - GAP, MASK, mode=mode, cap=cap)
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float32))
