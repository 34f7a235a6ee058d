"""LLDS on hand-computed trajectories: gates, normalisers, answer weight, metrics and refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llds_core.losses import action_ids, answer_weight_ramp, llds_penalty

# Three trajectories of seven tokens. Row 0: two actions around an observation, with total losses of
# likelihood 0.3 and -0.4; row 1: one action with 0.2; row 2 has a negative advantage.
DELTA = torch.tensor(
    [[0.5, -0.2, 0, 7, 7, 0.5, -0.9], [0.1, 0.1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]],
    dtype=torch.float64,
)
MASK = torch.tensor([[1, 1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
ADVANTAGES = torch.tensor([1.0, 0.0, -1.0])
OLD = torch.full_like(DELTA, -1.0)
ROW_1 = torch.tensor([[0] * 7, [1, 1, 0, 0, 0, 0, 0], [0] * 7])


def penalty(delta=DELTA, mask=MASK, advantages=ADVANTAGES, **options):
    """Penalty, gradient by log-probability, and metrics when token k lost `delta_k` nats."""
    delta = torch.as_tensor(delta, dtype=torch.float64)
    old = torch.full_like(delta, -1.0)
    logprobs = (old - delta).requires_grad_()
    value, metrics = llds_penalty(
        logprobs, old, torch.as_tensor(mask), torch.as_tensor(advantages), **options
    )
    value.backward()
    return value.item(), logprobs.grad, metrics


@pytest.mark.parametrize(
    ("gate", "preserved", "everything"),
    [("token", 1.2 / 7, 0.12), ("response", 0.2 / 7, 0.02), ("action", 0.1, 0.07)],
)
def test_gates_and_normalizers_match_their_published_values(gate, preserved, everything):
    assert penalty(gate=gate)[0] == pytest.approx(preserved)
    assert penalty(gate=gate, normalizer="all")[0] == pytest.approx(everything)


def test_default_is_the_action_gate_over_preserved_tokens():
    assert penalty()[0] == penalty(gate="action", normalizer="preserved")[0]


@pytest.mark.parametrize(
    ("gate", "pulled"),
    [
        ("token", [(0, 0), (0, 5), (1, 0), (1, 1)]),
        ("response", [(1, 0), (1, 1)]),
        ("action", [(0, 0), (1, 0), (1, 1)]),
    ],
)
@pytest.mark.parametrize(("normalizer", "count"), [("preserved", 7), ("all", 10)])
def test_every_losing_token_under_an_open_gate_is_pulled_up_equally(
    gate, pulled, normalizer, count
):
    expected = torch.zeros_like(DELTA)
    for position in pulled:
        expected[position] = -1 / count
    _, gradient, _ = penalty(gate=gate, normalizer=normalizer)
    assert torch.allclose(gradient, expected)
    assert torch.equal(gradient != 0, expected != 0)


@pytest.mark.parametrize(
    ("gate", "delta"),
    [
        ("token", [[0.0, 0.0]]),
        ("action", [[0.5, -0.5]]),
        ("response", [[0.5, -0.5]]),
    ],
)
def test_unit_that_lost_exactly_nothing_keeps_its_gate_closed(gate, delta):
    value, gradient, metrics = penalty(delta, [[1, 1]], [1.0], gate=gate)
    assert value == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert metrics["gated_actions"].item() == 0


@pytest.mark.parametrize("gate", ["action", "response"])
def test_unchanged_token_under_an_open_gate_gets_no_gradient(gate):
    _, gradient, metrics = penalty([[0.5, 0.0]], [[1, 1]], [1.0], gate=gate)
    assert gradient.tolist() == [[-0.5, 0.0]]
    assert metrics["gated_tokens"].item() == 1


@pytest.mark.parametrize(
    ("threshold", "value"), [(0.0, 0.25), (0.25, 0.25), (0.5, 0.0), (0.75, 0.0)]
)
@pytest.mark.parametrize("gate", ["token", "action", "response"])
def test_gate_opens_strictly_above_its_threshold(gate, threshold, value):
    delta = [[0.5, 0.0]]
    assert penalty(delta, [[1, 1]], [1.0], gate=gate, gate_threshold=threshold)[0] == value


def test_threshold_does_not_shrink_the_penalty_of_an_open_gate():
    small_first = [[0.125, 0.5]]
    assert penalty(small_first, [[1, 1]], [1.0], gate_threshold=0.5)[0] == 0.625 / 2


def test_positive_preserves_no_trajectory_of_zero_advantage():
    value, gradient, metrics = penalty(preserve="positive")
    assert value == pytest.approx(0.5 / 5)
    assert torch.equal(gradient[1], torch.zeros(7, dtype=torch.float64))
    assert metrics["preserved_tokens"].item() == 5


@pytest.mark.parametrize(
    ("weight", "preserved", "everything"),
    [(0.0, 0.071429, 0.05), (0.5, 0.085714, 0.06), (1.0, 0.1, 0.07)],
)
def test_answer_weight_scales_answer_tokens(weight, preserved, everything):
    options = {"answer_mask_BT": ROW_1, "answer_weight": weight}
    assert penalty(**options)[0] == pytest.approx(preserved, abs=1e-6)
    assert penalty(normalizer="all", **options)[0] == pytest.approx(everything, abs=1e-6)


@pytest.mark.parametrize("gate", ["action", "response"])
def test_answer_weight_leaves_the_gate_alone(gate):
    # The answer's gain closes the gate even where the answer itself weighs nothing.
    options = {"answer_mask_BT": torch.tensor([[0, 1]]), "answer_weight": 0.0, "gate": gate}
    assert penalty([[0.5, -0.9]], [[1, 1]], [1.0], **options)[0] == 0.0
    assert penalty([[0.5, -0.4]], [[1, 1]], [1.0], **options)[0] == 0.25


def test_answer_weight_needs_an_answer_mask_to_act():
    assert penalty(answer_weight=0.0)[0] == penalty()[0]


def test_denominator_replaces_the_count():
    assert penalty(denominator=70)[0] == pytest.approx(0.7 / 70)
    assert penalty(denominator=torch.tensor(70.0))[0] == pytest.approx(0.7 / 70)
    assert penalty(denominator=70, normalizer="all")[0] == pytest.approx(0.7 / 70)


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
def test_denominator_below_one_is_taken_as_it_is(kind):
    # One preserved token counted over four processes, each of which is told its share.
    assert penalty([[0.5]], [[1]], [1.0], denominator=kind(0.25))[0] == 2.0


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0.0)])
@pytest.mark.parametrize("normalizer", ["preserved", "all"])
@pytest.mark.parametrize(
    ("mask", "advantages"), [(MASK, [-1.0, -1.0, -1.0]), (0 * MASK, [1.0, 1.0, 1.0])]
)
def test_nothing_to_preserve_gives_zero_with_a_graph(mask, advantages, normalizer, denominator):
    options = {"normalizer": normalizer, "denominator": denominator}
    value, gradient, metrics = penalty(mask=mask, advantages=advantages, **options)
    assert value == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert all(m.isfinite() for m in metrics.values())


@pytest.mark.parametrize(
    ("gate", "tokens", "actions", "total"),
    [("action", 3, 2, 0.7), ("response", 2, 1, 0.2), ("token", 4, 3, 1.2)],
)
def test_metrics_count_gated_and_preserved_tokens_and_actions(gate, tokens, actions, total):
    _, _, metrics = penalty(gate=gate)
    expected = {
        "response_tokens": 10,
        "preserved_tokens": 7,
        "gated_tokens": tokens,
        "preserved_actions": 3,
        "gated_actions": actions,
        "penalty_sum": total,
        "delta_sum": 0.1,
        "preserved_fraction": 0.7,
        "gated_fraction": tokens / 7,
        "gated_fraction_actions": actions / 3,
        "delta_mean": 0.1 / 7,
    }
    assert {name: m.item() for name, m in metrics.items()} == pytest.approx(expected)


def test_gated_tokens_are_those_with_a_gradient():
    options = {"answer_mask_BT": ROW_1, "answer_weight": 0.0}
    _, gradient, metrics = penalty(**options)
    assert metrics["gated_tokens"].item() == (gradient != 0).sum().item() == 1


def test_every_action_of_an_open_response_counts_as_gated():
    options = {"gate": "response"}
    _, _, metrics = penalty([[0.5, 0, -0.1, 0]], [[1, 0, 1, 0]], [1.0], **options)
    assert metrics["gated_actions"].item() == 2
    assert metrics["gated_tokens"].item() == 1


def test_response_gate_is_neither_above_nor_below_the_action_gate():
    # Open response over a closed action, then closed response over an open action.
    mask = [[1, 0, 1, 1]]
    above = [[1.0, 0, 0.25, -0.5]]
    below = [[1.0, 0, 0.25, -2.0]]
    assert penalty(above, mask, [1.0], gate="response")[0] > penalty(above, mask, [1.0])[0]
    assert penalty(below, mask, [1.0], gate="response")[0] < penalty(below, mask, [1.0])[0]


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


@given(st.lists(st.integers(0, 1), min_size=1, max_size=9))
def test_action_ids_equal_a_scan_from_left_to_right(row):
    ids, count, before = [], 0, 0
    for bit in row:
        count += bit and not before
        ids.append(count if bit else 0)
        before = bit
    assert action_ids(torch.tensor([row])).tolist() == [ids]


@pytest.mark.parametrize(
    ("searches", "paper", "code"),
    [(0, 0, 0), (0.5, 0.25, 0), (1, 0.5, 0), (1.5, 0.75, 0.5), (2, 1, 1), (3, 1, 1)],
)
def test_answer_weight_ramps_match_their_published_values(searches, paper, code):
    assert answer_weight_ramp(searches) == paper
    assert answer_weight_ramp(searches, ramp="paper") == paper
    assert answer_weight_ramp(searches, ramp="code") == code


@pytest.mark.parametrize(("searches", "expected"), [(1, 0), (2, 0.5), (3, 1), (4, 1)])
def test_code_ramp_with_half_the_slope_ends_at_three_searches(searches, expected):
    assert answer_weight_ramp(searches, ramp="code", budget=3.0) == expected
