"""How far float32 rounding alone puts two computations of one number apart.

Processors, threads and processes add up in different orders. Two sums of n terms then differ by
about epsilon * sqrt(n) times the size of the terms; what follows several such sums in a row, by
that of all their terms together. Bounds of tests follow from here, not from what one machine gave.
"""

import math

import torch

EPSILON = 2.0**-23  # of float32
# Through a policy of the tests: two layers of seven products and the head, whose sums have up to
# 128 terms. Relative to the largest of the numbers that come out, which are logits or gradients.
PASS = EPSILON * math.sqrt(15 * 128)  # 5e-6
# Of one token, in nats: the difference of logits up to 16 in size.
LOGPROB = 16 * PASS  # 8e-5


def assert_same_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Gradients of one update by two ways of adding up its tokens."""
    assert one.keys() == other.keys()
    largest = max(gradient.abs().max().item() for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, atol=PASS * largest, rtol=0)
