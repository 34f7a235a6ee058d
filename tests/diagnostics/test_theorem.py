"""The driver score against loops, against autograd, and against the update it predicts."""

import math

import pytest
import torch
from toy_groups import PAD, group, policy

from llds_core.diagnostics.group_update import group_changes
from llds_core.diagnostics.likelihood import policy_actions, policy_states
from llds_core.diagnostics.theorem import driver_score
from llds_core.losses import group_advantages

OUTCOMES = [True, False, False, True, False]


def measured(model, trajectories):
    """Inputs of `driver_score` for a group, with graph, and the tokens' log-probabilities."""
    states, tokens = policy_states(model, trajectories, pad_id=PAD)
    logits = model.lm_head(states)
    counts = torch.tensor([len(policy_actions(t)) for t in trajectories])
    rows = torch.repeat_interleave(torch.arange(len(trajectories)), counts)
    advantages = group_advantages(
        torch.tensor([t.reward for t in trajectories]), torch.zeros(len(trajectories)).long()
    )
    logprobs = logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]
    return (states.detach(), logits.detach(), tokens, rows, advantages), logprobs


def test_the_score_is_the_inner_product_of_gradients_of_the_unembedding():
    """Descent on the surrogate changes the correct responses' log-probability by -lr * G."""
    model = policy(tied=False).double()
    trajectories = group(OUTCOMES, seed=3)
    given, logprobs = measured(model, trajectories)
    *_, rows, advantages = given
    loss = -(advantages.double()[rows] * logprobs).mean()
    right = torch.tensor(OUTCOMES)[rows]
    head = model.lm_head.weight
    (down,) = torch.autograd.grad(loss, head, retain_graph=True)
    (up,) = torch.autograd.grad(logprobs[right].sum() / sum(OUTCOMES), head)
    _, made = driver_score(*given, torch.tensor(OUTCOMES))
    assert made["driver"] == pytest.approx((down * up).sum().item(), rel=1e-6)
    assert abs(made["driver"]) > 1e-3


def test_a_small_step_on_the_unembedding_does_what_the_score_says():
    model = policy(tied=False).double().requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    groups = [group(OUTCOMES, seed=s) for s in range(3)]
    options = {"learning_rate": 1e-5, "optimizer": "sgd", "step": 0}
    frame = group_changes(model, groups, pad_id=PAD, **options)
    for row in frame.itertuples():
        assert row.delta == pytest.approx(-1e-5 * row.driver, rel=1e-3)
        assert row.delta_first == pytest.approx(-1e-5 * row.driver_first, rel=1e-3)


@pytest.mark.parametrize(
    ("tokens", "states", "pull", "gain", "error_product", "cosine"),
    [
        # Errors (.5, -.5) and (-.5, .5): alpha .5 with itself, -.5 with the other; p+ = p- = .25.
        ([0, 1], ((1.0,), (1.0,)), 0.25 * -0.5, 0.25 * 0.5, -0.5, 1.0),
        ([0, 0], ((1.0,), (1.0,)), 0.25 * 0.5, 0.25 * 0.5, 0.5, 1.0),
        # Inner products 4 with itself, -2 with the other.
        ([0, 0], ((2.0,), (-1.0,)), 0.25 * 0.5 * -2, 0.25 * 0.5 * 4, 0.5, -1.0),
    ],
)
def test_a_wrong_response_pulls_by_its_token_and_its_state(
    tokens, states, pull, gain, error_product, cosine
):
    """One correct and one wrong response of one token each, two words, both equally likely."""
    predicted = torch.tensor(states), torch.zeros(2, 2), torch.tensor(tokens)
    advantages, right = torch.tensor([0.5, -0.5]), torch.tensor([True, False])
    _, made = driver_score(*predicted, torch.tensor([0, 1]), advantages, right)
    found = [made[name] for name in ("pull", "gain", "error_product", "state_cosine")]
    assert found == pytest.approx([pull, gain, error_product, cosine])
    assert made["driver"] == pytest.approx(pull - gain, abs=1e-9)


def test_what_correct_responses_gain_is_their_own_doing_and_that_of_others():
    """Two equal correct responses of one token and a wrong one: each does half of what both do."""
    predicted = torch.ones(3, 1), torch.zeros(3, 2), torch.tensor([0, 0, 1])
    advantages, right = torch.tensor([0.5, 0.5, -1.0]), torch.tensor([True, True, False])
    _, made = driver_score(*predicted, torch.arange(3), advantages, right)
    # alpha .5 between the correct tokens, p+ = .5 / 3.
    assert made["own"] == made["support"] == pytest.approx(0.5 * 0.5 / 3)
    assert made["gain"] == made["own"] + made["support"]
    assert made["driver"] == made["pull"] - made["gain"]
    _, one = driver_score(*predicted, torch.tensor([0, 0, 1]), advantages[1:], right[1:])
    assert one["support"] == 0 and one["own"] == one["gain"] == pytest.approx(4 * 0.5 * 0.5 / 3)


def test_a_group_without_contrast_has_no_factors():
    rows = torch.tensor([0, 1])
    given = torch.ones(2, 1), torch.zeros(2, 2), rows, rows, torch.zeros(2)
    _, none = driver_score(*given, torch.tensor([False, False]))
    assert math.isnan(none["driver"]) and math.isnan(none["error_product"])
    _, every = driver_score(*given, torch.tensor([True, True]))
    assert every["driver"] == 0 and math.isnan(every["state_cosine"])
