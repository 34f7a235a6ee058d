"""Teacher-forced scores against plain forward passes, and their means by search rounds."""

import pandas as pd
import pytest
import rounding
import torch
from toy_groups import PAD, VOCABULARY, group, plain_scores, policy, trajectory

from llds_core.diagnostics import likelihood
from llds_core.diagnostics.group_update import group_changes
from llds_core.diagnostics.likelihood import Scored, nll_by_round, score_trajectories

MODEL = policy()
MIXED = group([True, False] * 4, seed=1)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=rounding.LOGPROB, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("logits_at_once", [2**24, 150], ids=["whole", "three tokens"])
def test_every_policy_token_gets_the_value_of_a_plain_pass(batch_size, logits_at_once, monkeypatch):
    """Whatever the company in the batch, and the slices of the projection on the vocabulary."""
    monkeypatch.setattr(likelihood, "_LOGITS_AT_ONCE", logits_at_once)
    monkeypatch.setattr(likelihood, "_ROWS_AT_ONCE", batch_size)
    scored = score_trajectories(MODEL, MIXED, pad_id=3)
    for item, made in zip(MIXED, scored, strict=True):
        assert made.trajectory is item
        with torch.no_grad():
            logprobs, entropies = plain_scores(MODEL, item)
        close(made.logprobs, logprobs)
        close(made.entropies, entropies)


def test_rows_of_the_embedding_that_are_no_tokens_take_no_probability():
    """As in the samplers and in the trainer's head."""
    wide = policy()
    wide.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    with torch.no_grad():
        wide.get_output_embeddings().weight[VOCABULARY:] = 9.0
    given = {"pad_id": 3, "vocabulary": VOCABULARY}
    both = [score_trajectories(model, MIXED, **given) for model in (MODEL, wide)]
    for plain, found in zip(*both, strict=True):
        close(found.logprobs, plain.logprobs)
        close(found.entropies, plain.entropies)
    given |= {"learning_rate": 0.1, "optimizer": "sgd", "step": 0}
    changes = [group_changes(model, [MIXED], **given) for model in (MODEL, wide)]
    pd.testing.assert_frame_equal(*changes, atol=1e-3)


def test_scoring_keeps_mode_and_leaves_no_graph():
    model = policy().train()
    made = score_trajectories(model, MIXED, pad_id=PAD)
    assert model.training and not made[0].logprobs.requires_grad
    assert score_trajectories(model, [], pad_id=PAD) == []


def test_a_trajectory_without_policy_tokens_is_refused():
    with pytest.raises(ValueError, match="mark each with 0 or 1"):
        score_trajectories(MODEL, [MIXED[0], trajectory([], found=[])], pad_id=PAD)


def scored(actions, *, found=None, entropy=0.0):
    """One list of log-probabilities per action."""
    made = trajectory([[1] * len(values) for values in actions], found=found)
    flat = torch.tensor([value for values in actions for value in values])
    return Scored(made, flat, torch.full_like(flat, entropy))


ITEMS = [
    scored([[-1.0, -3.0], [-5.0]], entropy=0.5),  # one round
    scored([[-2.0], [-4.0], [-9.0]], entropy=1.5),  # two rounds
    scored([[-7.0]]),  # no search
]


INVALID = scored([[-1.0], [-2.0], [-3.0]], found=[None, ("p0",), None])


@pytest.mark.parametrize(
    ("items", "rows"),
    [
        (
            ITEMS,
            [
                ("position", 0, 2.0, 2.5 / 3, 3, 2),  # actions with a search round to follow
                ("position", 1, 4.0, 1.5, 1, 1),
                ("total", 0, 7.0, 0.0, 1, 1),  # whole responses by their rounds
                ("total", 1, 3.0, 0.5, 3, 1),
                ("total", 2, 5.0, 1.5, 3, 1),
            ],
        ),
        # An action that did not search adds no round.
        ([INVALID], [("position", 0, 1.0, 0.0, 1, 1), ("total", 1, 2.0, 0.0, 3, 1)]),
        ([], []),
    ],
)
def test_likelihood_against_rounds(items, rows):
    columns = ["view", "rounds", "nll", "entropy", "tokens", "trajectories"]
    expected = pd.DataFrame(rows, columns=columns)
    pd.testing.assert_frame_equal(nll_by_round(items), expected)
