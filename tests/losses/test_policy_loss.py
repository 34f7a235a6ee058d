"""The clipped surrogate: published values, hand gradients, GSPO, and independence of the split."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llds_core.losses import policy_loss

ALL_MODES = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
RATIOS = st.sampled_from(["token", "sequence"])
GSPO = {"ratio": "sequence", "aggregate": "seq-mean-token-mean"}


def random_case(rows: int, width: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, width, generator=generator, dtype=torch.float64)
    logprobs = old + torch.randn(rows, width, generator=generator, dtype=torch.float64) / 2
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < 0.6
    mask[0] &= seed % 3 > 0  # every third case has a row without a policy token
    return logprobs, old, advantages, mask


def value_and_gradient(logprobs, *others, **options) -> tuple[float, torch.Tensor]:
    logprobs = logprobs.clone().requires_grad_()
    loss, _ = policy_loss(logprobs, *others, **options)
    loss.backward()
    return loss.item(), logprobs.grad


def slow_policy_loss(logprobs, old, advantages, mask, low, high, ratio, mode, dual, count) -> float:
    """The formulas token by token."""
    total, tokens, sequences = 0.0, 0, 0
    for i, advantage in enumerate(advantages.tolist()):
        inside = [t for t in range(mask.shape[1]) if mask[i, t]]
        if not inside:
            continue
        steps = {t: float(logprobs[i, t] - old[i, t]) for t in inside}
        row = 0.0
        for t in inside:
            exponent = sum(steps.values()) / len(inside) if ratio == "sequence" else steps[t]
            rho = math.exp(max(-20.0, min(20.0, exponent)))
            loss = max(-advantage * rho, -advantage * max(1 - low, min(1 + high, rho)))
            if dual is not None and advantage < 0:
                loss = min(loss, -advantage * dual)
            row += loss
        total += row / len(inside) if mode == "seq-mean-token-mean" else row
        tokens += len(inside)
        sequences += 1
    if mode == "constant":
        return total / count
    return total / max(1, tokens if mode == "token-mean" else sequences)


@pytest.mark.parametrize(
    ("rho", "advantage", "options", "loss", "gradient"),
    [
        (1.5, 1.0, {}, -1.2, 0.0),
        (1.5, 1.0, {"clip_high": 0.28}, -1.28, 0.0),
        (1.25, 1.0, {}, -1.2, 0.0),
        (1.25, 1.0, {"clip_high": 0.28}, -1.25, -1.25),
        (1.5, -1.0, {}, 1.5, 1.5),
        (1.5, -1.0, {"dual_clip": 3.0}, 1.5, 1.5),
        (0.5, 1.0, {}, -0.5, -0.5),
        (0.5, -1.0, {}, 0.8, 0.0),
        (5.0, -1.0, {}, 5.0, 5.0),
        (5.0, -1.0, {"dual_clip": 3.0}, 3.0, 0.0),
        (1.0, -2.0, {}, 2.0, 2.0),
        (5.0, 1.0, {"dual_clip": 3.0}, -1.2, 0.0),
        (1.0, 2.0, {}, -2.0, -2.0),  # the first update: the gradient of REINFORCE
        (1.1, 0.0, {}, 0.0, 0.0),
    ],
)
def test_loss_and_gradient_match_their_published_values(rho, advantage, options, loss, gradient):
    logprobs = torch.tensor([[math.log(rho)]], dtype=torch.float64)
    tensors = (logprobs, 0 * logprobs, torch.tensor([advantage]), torch.ones(1, 1))
    value, found = value_and_gradient(*tensors, **options)
    assert (value, found.item()) == pytest.approx((loss, gradient))


def test_metrics_count_policy_tokens_only():
    ratios = torch.tensor([[1.5, 0.5, 1.0, 9.0], [0.5, 5.0, 9.0, 0.1]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    advantages = torch.tensor([1.0, -1.0])
    _, metrics = policy_loss(ratios.log(), 0 * ratios, advantages, mask, dual_clip=3.0)
    # Clipped: 1.5 with A > 0 and 0.5 with A < 0; bounded: 5 with A < 0.
    expected = {
        "clip_fraction": 2 / 5,
        "clip_fraction_high": 1 / 5,
        "clip_fraction_low": 1 / 5,
        "dual_clip_fraction": 1 / 5,
        "ratio_max": 5.0,
        "ratio_min": 0.5,
        "ppo_kl": -(math.log(1.5) + 2 * math.log(0.5) + math.log(5)) / 5,
        "tokens": 5,
    }
    assert {name: m.item() for name, m in metrics.items()} == pytest.approx(expected)
    assert policy_loss(ratios, ratios, advantages, mask)[1]["dual_clip_fraction"] == 0


@pytest.mark.parametrize(("sign", "rho"), [(1.0, math.exp(20)), (-1.0, math.exp(-20))])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_huge_log_ratios_are_clamped_before_the_exponential(sign, rho, ratio):
    logprobs = torch.full((1, 2), sign * 1000.0)
    old, advantages, mask = torch.zeros(1, 2), torch.tensor([-1.0]), torch.ones(1, 2)
    options = {"ratio": ratio, "clip_low": 1.0}
    value, gradient = value_and_gradient(logprobs, old, advantages, mask, **options)
    assert value == pytest.approx(rho, rel=1e-5)
    assert torch.equal(gradient, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("advantage", "clips", "loss", "gradient"),
    [
        (1.0, (0.2, 0.2), -1.068939, -0.356313),
        (1.0, (3e-4, 4e-4), -1.0004, 0.0),
        (-1.0, (0.2, 0.2), 1.068939, 0.356313),
        (-1.0, (3e-4, 4e-4), 1.068939, 0.356313),
    ],
)
def test_sequence_ratio_matches_published_gspo_values(advantage, clips, loss, gradient):
    logprobs = torch.tensor([[0.2, -0.1, 9.0, 0.1]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1]])
    tensors = (logprobs, 0 * logprobs, torch.tensor([advantage]), mask)
    options = {"clip_low": clips[0], "clip_high": clips[1], **GSPO}
    value, grad = value_and_gradient(*tensors, **options)
    assert value == pytest.approx(loss, abs=1e-6)
    assert grad[0].tolist() == pytest.approx([gradient, gradient, 0, gradient], abs=1e-6)


def test_token_form_of_gspo_has_the_gradient_of_the_sequence_form():
    logprobs, old, advantages, mask = random_case(4, 5, 2)
    mask[:, 0] = True
    _, token_form = value_and_gradient(logprobs, old, advantages, mask, **GSPO)
    logprobs = logprobs.clone().requires_grad_()
    s = (((logprobs - old) * mask).sum(1) / mask.sum(1)).exp()
    torch.maximum(-s * advantages, -s.clamp(0.8, 1.2) * advantages).mean().backward()
    assert torch.allclose(token_form, logprobs.grad)


def test_advantages_per_token_act_on_their_own_token():
    logprobs = torch.zeros(1, 2)
    advantages = torch.tensor([[3.0, -1.0]])
    _, gradient = value_and_gradient(logprobs, logprobs, advantages, torch.ones(1, 2))
    assert gradient.tolist() == [[-1.5, 0.5]]


@given(
    st.integers(0, 9999),
    RATIOS,
    st.sampled_from(ALL_MODES),
    st.sampled_from([None, 1.5]),
    st.sampled_from([(0.2, 0.2), (0.2, 0.28), (1.0, 9.0)]),
)
def test_loss_equals_a_plain_python_transcription(seed, ratio, mode, dual, clips):
    case = random_case(3, 5, seed)
    count = 15.0 if mode == "constant" else None
    expected = slow_policy_loss(*case, *clips, ratio, mode, dual, count)
    options = {"clip_low": clips[0], "clip_high": clips[1], "ratio": ratio, "aggregate": mode}
    loss, _ = policy_loss(*case, **options, dual_clip=dual, denominator=count)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 9999), st.integers(1, 4), RATIOS, st.sampled_from(ALL_MODES))
def test_micro_batches_add_up_to_the_mini_batch(seed, size, ratio, mode):
    case = random_case(5, 4, seed)
    mask = case[3]
    count = {"token-mean": mask.sum(), "constant": 20.0}.get(mode, mask.any(1).sum())
    options = {"ratio": ratio, "aggregate": mode, "denominator": count}
    value, gradient = value_and_gradient(*case, **options)
    splits = zip(*(tensor.split(size) for tensor in case), strict=True)
    parts = [value_and_gradient(*part, **options) for part in splits]
    assert sum(part[0] for part in parts) == pytest.approx(value, abs=1e-12)
    assert torch.allclose(torch.cat([part[1] for part in parts]), gradient, atol=1e-12)
