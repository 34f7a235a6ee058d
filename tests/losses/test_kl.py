"""k3: hand-computed values and gradients, precision near 0, and silence outside the mask."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llds_core.losses import clamped_reference, kl_k3


@pytest.mark.parametrize(
    ("logprob", "ref", "value", "gradient"),
    [
        (-1.0, -1.5, 0.106531, 0.393469),
        (-1.5, -1.0, 0.148721, -0.648721),
        (-1.0, -1.0, 0.0, 0.0),
        (-6.0, -1.0, math.exp(5) - 6, 1 - math.exp(5)),  # the official clamp at 10 would bind
    ],
)
def test_value_and_gradient_match_hand_computation(logprob, ref, value, gradient):
    current = torch.tensor([[logprob]], dtype=torch.float64, requires_grad=True)
    values, _ = kl_k3(current, torch.tensor([[ref]], dtype=torch.float64))
    values.sum().backward()
    assert values.item() == pytest.approx(value, abs=1e-6)
    assert current.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_token_means_of_the_three_estimators_are_reported():
    current = torch.tensor([[-1.0, -1.5, -1.0, 9.0]])
    reference = torch.tensor([[-1.5, -1.0, -1.5, 0.0]])
    _, metrics = kl_k3(current, reference, torch.tensor([[1, 1, 1, 0]]))
    assert metrics["k1"].item() == pytest.approx(0.5 / 3)
    assert metrics["k2"].item() == pytest.approx(0.125)
    assert metrics["k3"].item() == pytest.approx((2 * 0.106531 + 0.148721) / 3, abs=1e-6)


def test_small_differences_keep_their_value_in_float32():
    values, _ = kl_k3(torch.tensor([[0.0]]), torch.tensor([[1e-3]]))
    assert values.item() == pytest.approx(1e-6 / 2, rel=1e-3)


@pytest.mark.parametrize("far", [-9.0, -100.0])
def test_a_clamped_value_has_no_gradient_and_others_keep_theirs(far):
    current = torch.tensor([[-1.0, far]], requires_grad=True)
    values, _ = kl_k3(current, torch.tensor([[-1.5, -1.0]]), clamp=10.0)
    values.sum().backward()
    assert values[0].tolist() == pytest.approx([0.106531, 10.0], abs=1e-5)
    assert current.grad[0].tolist() == pytest.approx([0.393469, 0.0], abs=1e-6)


@given(
    current=st.lists(st.floats(-20, 0), min_size=1, max_size=6),
    shift=st.floats(-8, 8),
    clamp=st.floats(0.01, 50),
)
def test_unclamped_divergence_from_the_clamped_reference_has_the_clamped_gradient(
    current, shift, clamp
):
    logprobs = torch.tensor([current], dtype=torch.float64, requires_grad=True)
    reference = logprobs.detach() + shift * torch.linspace(-1, 1, len(current)).double()
    wanted, _ = kl_k3(logprobs, reference, clamp=clamp)
    (expected,) = torch.autograd.grad(wanted.sum(), logprobs)
    values, _ = kl_k3(logprobs, clamped_reference(logprobs, reference, clamp))
    (found,) = torch.autograd.grad(values.sum(), logprobs)
    torch.testing.assert_close(found, expected)
