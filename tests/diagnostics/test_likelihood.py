"""Teacher-forced scores against plain forward passes."""

import pytest
import rounding
import torch
from toy_groups import PAD, TOKENIZER, group, policy, trajectory

from llds_core.config import RolloutConfig
from llds_core.diagnostics import likelihood
from llds_core.diagnostics.likelihood import score_trajectories
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


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=rounding.LOGPROB, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("logits_at_once", [2**24, 150], ids=["whole", "three tokens"])
def test_every_policy_token_gets_the_value_of_a_plain_forward_pass(
    batch_size, logits_at_once, monkeypatch
):
    """Whatever the company in the batch, and the slices of the projection on the vocabulary."""
    monkeypatch.setattr(likelihood, "_LOGITS_AT_ONCE", logits_at_once)
    scored = score_trajectories(MODEL, MIXED, pad_id=3, batch_size=batch_size)
    for item, made in zip(MIXED, scored, strict=True):
        assert made.trajectory is item
        logprobs, entropies = reference(item)
        close(made.logprobs, logprobs)
        close(made.entropies, entropies)
        assert made.action_ids.tolist() == [i for i in item.action_ids if i]


def test_scoring_keeps_mode_and_leaves_no_graph():
    model = policy().train()
    made = score_trajectories(model, MIXED, pad_id=PAD)
    assert model.training and not made[0].logprobs.requires_grad
    assert score_trajectories(model, [], pad_id=PAD) == []


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
        close(made.logprobs, torch.tensor(sampled))


@pytest.mark.parametrize(
    "bad, message",
    [
        (trajectory([[1]], prompt=()), "question q0 has no prompt"),
        (trajectory([], found=[]), "no policy token"),
    ],
)
def test_what_cannot_be_scored_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        score_trajectories(MODEL, [MIXED[0], bad], pad_id=PAD)
