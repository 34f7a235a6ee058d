"""Teacher-forced scores against plain forward passes."""

import pandas as pd
import pytest
import rounding
import torch
from toy_groups import PAD, VOCABULARY, group, plain_scores, policy, trajectory

from llds_core.diagnostics import likelihood
from llds_core.diagnostics.group_update import group_changes
from llds_core.diagnostics.likelihood import score_trajectories

MODEL = policy()
MIXED = group([True, False] * 4, seed=1)


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
        with torch.no_grad():
            logprobs, entropies = plain_scores(MODEL, item)
        close(made.logprobs, logprobs)
        close(made.entropies, entropies)
        assert made.action_ids.tolist() == [i for i in item.action_ids if i]


def test_rows_of_the_embedding_that_are_no_tokens_take_no_probability():
    """As in the samplers and in the trainer's head."""
    wide = policy()
    wide.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    with torch.no_grad():
        wide.get_output_embeddings().weight[VOCABULARY:] = 9.0
    both = [
        score_trajectories(model, MIXED, pad_id=3, vocabulary=VOCABULARY) for model in (MODEL, wide)
    ]
    for plain, found in zip(*both, strict=True):
        close(found.logprobs, plain.logprobs)
        close(found.entropies, plain.entropies)
    changes = [
        group_changes(
            *(model, [MIXED]),
            **{"pad_id": 3, "learning_rate": 0.1, "optimizer": "sgd", "step": 0},
            vocabulary=VOCABULARY,
        )
        for model in (MODEL, wide)
    ]
    pd.testing.assert_frame_equal(*changes, atol=1e-3)


def test_scoring_keeps_mode_and_leaves_no_graph():
    model = policy().train()
    made = score_trajectories(model, MIXED, pad_id=PAD)
    assert model.training and not made[0].logprobs.requires_grad
    assert score_trajectories(model, [], pad_id=PAD) == []


def test_a_trajectory_without_policy_tokens_is_refused():
    with pytest.raises(ValueError, match="no policy token"):
        score_trajectories(MODEL, [MIXED[0], trajectory([], found=[])], pad_id=PAD)
