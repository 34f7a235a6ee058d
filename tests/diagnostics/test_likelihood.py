"""Teacher-forced scores against plain forward passes, and what is summed from them by hand."""

import math

import pytest
import torch
from toy_groups import PAD, TOKENIZER, group, policy, trajectory

from llds_core.config import RolloutConfig
from llds_core.diagnostics import likelihood
from llds_core.diagnostics.likelihood import (
    Scored,
    action_means,
    action_sums,
    score_trajectories,
    summed_change,
    token_mean,
    total_logprob,
)
from llds_core.retrieval import FailingRetriever, Hit
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.samplers import TransformersSampler
from llds_core.worlds.records import Question

MODEL = policy()
MIXED = group([True, False] * 4, seed=1)


@torch.no_grad()
def reference(item):
    """Log-probabilities and entropies at policy tokens, from one unpadded pass over all logits."""
    ids = [*item.prompt_ids, *item.completion_ids]
    logprobs = MODEL(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    start = len(item.prompt_ids)
    where = [start + i for i, policy_token in enumerate(item.response_mask) if policy_token]
    return (
        torch.stack([logprobs[p - 1, ids[p]] for p in where]),
        torch.stack([entropies[p - 1] for p in where]),
    )


def scored(logprobs, action_ids):
    values = torch.tensor(logprobs, dtype=torch.float32)
    return Scored(MIXED[0], values, torch.zeros_like(values), torch.tensor(action_ids))


def test_every_policy_token_gets_the_value_of_a_plain_forward_pass():
    for item, made in zip(MIXED, score_trajectories(MODEL, MIXED, pad_id=PAD), strict=True):
        assert made.trajectory is item
        logprobs, entropies = reference(item)
        torch.testing.assert_close(made.logprobs, logprobs, atol=1e-5, rtol=0)
        torch.testing.assert_close(made.entropies, entropies, atol=1e-5, rtol=0)
        assert made.action_ids.tolist() == [i for i in item.action_ids if i]
        assert made.states is None


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_do_not_depend_on_the_company_in_the_batch(batch_size):
    alone = [
        score_trajectories(MODEL, [item], pad_id=PAD, with_states=True)[0] for item in MIXED[::-1]
    ]
    made = score_trajectories(MODEL, MIXED[::-1], pad_id=3, batch_size=batch_size, with_states=True)
    for one, other in zip(alone, made, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.states, other.states, atol=1e-5, rtol=0)


def test_a_state_is_the_one_that_predicts_its_token():
    made = score_trajectories(MODEL, MIXED, pad_id=PAD, with_states=True)[2]
    with torch.no_grad():
        logprobs = MODEL.lm_head(made.states).log_softmax(-1)
    tokens = [t for t, m in zip(MIXED[2].completion_ids, MIXED[2].response_mask, strict=True) if m]
    torch.testing.assert_close(
        logprobs[torch.arange(len(tokens)), tokens], made.logprobs, atol=1e-5, rtol=0
    )


def test_a_slice_of_the_vocabulary_projection_changes_nothing(monkeypatch):
    whole = score_trajectories(MODEL, MIXED, pad_id=PAD)
    monkeypatch.setattr(likelihood, "_LOGITS_AT_ONCE", 150)  # three tokens at a time
    for one, other in zip(whole, score_trajectories(MODEL, MIXED, pad_id=PAD), strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-6, rtol=0)


def test_a_rollout_is_scored_as_it_was_sampled():
    """The sampler's log-probabilities come from a cache built turn by turn."""
    model = policy(vocabulary=len(TOKENIZER))

    class Engine:
        def search(self, queries, k):
            return [[Hit("p0", "Paris", "it was there", 1.0)] for _ in queries]

    engine = FailingRetriever(Engine(), failure_rate=0.0, passages=(), seed=0)
    limits = RolloutConfig(max_searches=2, max_action_tokens=12, max_total_tokens=400)
    sampler = TransformersSampler(
        model, TOKENIZER, torch.Generator().manual_seed(0), stop=lambda ids: ids[-1] % 5 == 0
    )
    tasks = [(Question(f"q{i}", "where is it", ("Paris",)), 0) for i in range(4)]
    rollout = RolloutLoop(TOKENIZER, engine, limits, top_k=1).run(tasks, sampler)
    for made in score_trajectories(model, rollout.trajectories, pad_id=PAD):
        t = made.trajectory
        sampled = [p for p, m in zip(t.sampler_logprobs, t.response_mask, strict=True) if m]
        torch.testing.assert_close(made.logprobs, torch.tensor(sampled), atol=1e-4, rtol=0)


def test_scoring_keeps_mode_and_leaves_no_graph():
    model = policy().train()
    made = score_trajectories(model, MIXED, pad_id=PAD, with_states=True)
    assert model.training
    assert not made[0].logprobs.requires_grad and not made[0].states.requires_grad


def test_sums_and_means_by_hand():
    item = scored([-1.0, -2.0, -4.0, -6.0, -8.0], [1, 1, 2, 2, 2])
    assert total_logprob(item) == -21.0
    assert action_sums(item).tolist() == [-3.0, -18.0]
    assert action_means(item).tolist() == [-1.5, -6.0]


def test_token_means_pool_tokens_not_trajectories():
    items = [scored([-1.0, -2.0, -6.0], [1, 1, 2]), scored([-3.0], [1])]
    assert token_mean(items) == -3.0
    assert token_mean(items, "first") == -2.0
    assert token_mean(items, "later") == -6.0
    assert math.isnan(token_mean(items[1:], "later"))
    assert math.isnan(token_mean([]))


def test_a_change_is_summed_over_the_chosen_actions():
    before, after = scored([-1.0, -2.0, -3.0], [1, 2, 2]), scored([-1.5, -1.0, -1.0], [1, 2, 2])
    assert summed_change(before, after) == 2.5
    assert summed_change(before, after, "first") == -0.5
    assert summed_change(before, after, "later") == 3.0
    other = Scored(MIXED[1], after.logprobs, after.entropies, after.action_ids)
    with pytest.raises(ValueError, match="different trajectories"):
        summed_change(before, other)


@pytest.mark.parametrize(
    "bad, message",
    [
        (trajectory([[1]], prompt=()), "question q0 has no prompt"),
        (trajectory([], found=[]), "no policy token"),
    ],
    ids=["no prompt", "no action"],
)
def test_what_cannot_be_scored_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        score_trajectories(MODEL, [MIXED[0], bad], pad_id=PAD)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        score_trajectories(MODEL, MIXED, pad_id=PAD, batch_size=0)
    assert score_trajectories(MODEL, [], pad_id=PAD) == []
