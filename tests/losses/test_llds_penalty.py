"""LLDS on hand-computed trajectories: gates, normalisers, answer weight, metrics and refusals."""

import pytest
import torch

from llds_core.losses import action_ids, answer_weight_ramp, displacement, llds_penalty
from llds_core.losses.llds import penalty_tokens

# Three trajectories of seven tokens. Row 0: two actions around an observation, with total losses of
# likelihood 0.3 and -0.4; row 1: one action with 0.2; row 2 has a negative advantage.
DELTA = torch.tensor(
    [[0.5, -0.2, 0, 7, 7, 0.5, -0.9], [0.1, 0.1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]],
    dtype=torch.float64,
)
MASK = torch.tensor([[1, 1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
ADVANTAGES = torch.tensor([1.0, 0.0, -1.0])
ROW_1 = torch.tensor([[0] * 7, [1, 1, 0, 0, 0, 0, 0], [0] * 7])
OLD = torch.full_like(DELTA, -1.0)


def penalty(delta=DELTA, mask=MASK, advantages=ADVANTAGES, **options):
    """Penalty, gradient by log-probability, and metrics when token k lost `delta_k` nats."""
    delta = torch.as_tensor(delta, dtype=torch.float64)
    old = torch.full_like(delta, -1.0)
    logprobs = (old - delta).requires_grad_()
    mask, advantages = torch.as_tensor(mask), torch.as_tensor(advantages)
    value, metrics = llds_penalty(logprobs, old, mask, advantages, **options)
    value.backward()
    return value.item(), logprobs.grad, metrics


@pytest.mark.parametrize(
    ("gate", "total", "pulled", "actions"),
    [
        ("token", 1.2, [(0, 0), (0, 5), (1, 0), (1, 1)], 3),
        ("response", 0.2, [(1, 0), (1, 1)], 1),
        ("action", 0.7, [(0, 0), (1, 0), (1, 1)], 2),
    ],
)
@pytest.mark.parametrize(("normalizer", "count"), [("preserved", 7), ("all", 10)])
def test_every_losing_token_under_an_open_gate_is_pulled_up_equally(
    gate, total, pulled, actions, normalizer, count
):
    expected = torch.zeros_like(DELTA)
    for position in pulled:
        expected[position] = -1 / count
    labels = -100 * MASK  # all but 0 counts as 1
    value, gradient, metrics = penalty(mask=labels, gate=gate, normalizer=normalizer)
    assert value == pytest.approx(total / count)
    assert penalty_tokens(labels, ADVANTAGES, normalizer=normalizer).sum() == count
    assert torch.allclose(gradient, expected)
    assert torch.equal(gradient != 0, expected != 0)
    if gate == "action" and normalizer == "preserved":
        assert penalty()[0] == value  # the defaults
    wanted = {
        "response_tokens": 10,
        "preserved_tokens": 7,
        "gated_tokens": len(pulled),
        "preserved_actions": 3,
        "gated_actions": actions,
        "penalty_sum": total,
        "delta_sum": 0.1,
        "preserved_fraction": 0.7,
        "gated_fraction": len(pulled) / 7,
        "gated_fraction_actions": actions / 3,
        "delta_mean": 0.1 / 7,
    }
    assert {name: m.item() for name, m in metrics.items()} == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("weight", "preserved", "everything"),
    [(0.0, 0.071429, 0.05), (0.5, 0.085714, 0.06), (1.0, 0.1, 0.07)],
)
def test_answer_weight_scales_answer_tokens(weight, preserved, everything):
    options = {"answer_mask_BT": ROW_1, "answer_weight": weight}
    assert penalty(**options)[0] == pytest.approx(preserved, abs=1e-6)
    assert penalty(normalizer="all", **options)[0] == pytest.approx(everything, abs=1e-6)


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
def test_denominator_replaces_the_count(kind):
    assert penalty(denominator=kind(70.0))[0] == pytest.approx(0.7 / 70)
    assert penalty(denominator=kind(70.0), normalizer="all")[0] == pytest.approx(0.7 / 70)
    # One preserved token counted over four processes, each of which is told its share.
    assert penalty([[0.5]], [[1]], [1.0], denominator=kind(0.25))[0] == 2.0


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0.0)])
@pytest.mark.parametrize("options", [{}, {"normalizer": "all"}])
def test_nothing_to_preserve_gives_zero_with_a_graph(options, denominator):
    value, gradient, metrics = penalty(advantages=[-1.0] * 3, denominator=denominator, **options)
    assert value == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert all(m.isfinite() for m in metrics.values())


def test_swapped_arguments_are_refused_where_a_gradient_is_wanted():
    logprobs = (OLD - DELTA).requires_grad_()
    with pytest.raises(ValueError, match="give those of the trained policy first") as error:
        llds_penalty(OLD, logprobs, MASK, ADVANTAGES)
    assert "\n" not in str(error.value)
    with torch.no_grad():
        llds_penalty(OLD, logprobs, MASK, ADVANTAGES)
    llds_penalty(OLD - DELTA, OLD, MASK, ADVANTAGES)  # a measurement


def test_every_action_of_an_open_response_counts_as_gated():
    options = {"gate": "response"}
    _, _, metrics = penalty([[0.5, 0, -0.1, 0]], [[1, 0, 1, 0]], [1.0], **options)
    assert metrics["gated_actions"].item() == 2
    assert metrics["gated_tokens"].item() == 1


def test_bfloat16_gate_is_decided_in_float32():
    # 1000 losses of 2^-7 outweigh one gain of 5, but a sum kept in bfloat16 stalls at 2.
    delta = torch.full((1, 1001), 2.0**-7)
    delta[0, -1] = -5.0
    old = torch.zeros(1, 1001, dtype=torch.bfloat16)
    logprobs = (-delta).to(torch.bfloat16).requires_grad_()
    value, _ = llds_penalty(logprobs, old, torch.ones(1, 1001), torch.ones(1))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1000 * 2.0**-7 / 1001)
    assert logprobs.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.float32])
def test_actions_are_runs_of_policy_tokens_numbered_from_the_left(dtype):
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0, 0], [0] * 7]).to(dtype)
    ids = action_ids(mask)
    assert ids.tolist() == [[1, 1, 0, 0, 2, 0, 3], [0, 1, 1, 1, 0, 0, 0], [0] * 7]
    assert ids.dtype == torch.int64 and mask.dtype == dtype
    assert action_ids(torch.zeros(2, 0)).shape == (2, 0)


@pytest.mark.parametrize(
    ("searches", "paper", "code"),
    [(0, 0, 0), (0.5, 0.25, 0), (1, 0.5, 0), (1.5, 0.75, 0.5), (2, 1, 1), (3, 1, 1)],
)
def test_answer_weight_ramps_match_their_published_values(searches, paper, code):
    assert answer_weight_ramp(searches) == paper
    assert answer_weight_ramp(searches, ramp="code") == code
    # Half the slope of the code's ramp ends at three searches.
    assert answer_weight_ramp(2 * searches - 1 if searches else 0, ramp="code", budget=3.0) == code


def test_displacement_counts_rewarded_responses_alone():
    outside = MASK == 0
    old = OLD.masked_fill(outside, float("nan"))  # never read
    logprobs = (old - DELTA).requires_grad_()
    advantages = torch.tensor([1.0, 2.0, -1.0])
    found = displacement(logprobs, old, MASK, advantages)
    # The first gained 0.1 in all, the second lost 0.2.
    expected = {"rewarded": 2, "rewarded_tokens": 7, "loglik_sum": -7, "displaced": 1}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        expected | {"change_sum": -0.1}
    )
    assert not any(value.requires_grad for value in found.values())
    batch = (logprobs, old, MASK, advantages)
    rows = [displacement(*(tensor[[i]] for tensor in batch)) for i in range(len(MASK))]
    for name, value in found.items():
        torch.testing.assert_close(sum(row[name] for row in rows), value)
    nothing = displacement(logprobs, old, torch.zeros_like(MASK), advantages)
    assert not any(nothing.values())
