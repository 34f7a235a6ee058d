"""One update on one group: what it measures, and that nobody can tell afterwards."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from scripted_rollouts import StubRetriever
from toy_groups import PAD, TOKENIZER, group, plain_scores, policy, trajectory

from llds_core.config import RewardConfig, RolloutConfig
from llds_core.diagnostics import group_update as mechanism
from llds_core.diagnostics.group_update import first_search_matches, group_changes, sample_groups
from llds_core.diagnostics.likelihood import policy_states
from llds_core.losses import group_advantages
from llds_core.retrieval import FailingRetriever, Hit
from llds_core.rollout.loop import RolloutLoop
from llds_core.worlds.records import Question

MIXED = [group([True, False, False, True], seed=s, question=f"q{s}") for s in range(3)]
ALL_WRONG = group([False] * 4, seed=9, question="q9")
QUESTIONS = [Question(f"q{i}", "where is it", ("Paris",), {"kind": "toy"}) for i in range(3)]


def changes(model, groups=MIXED, **options):
    defaults = {"learning_rate": 1e-2, "optimizer": "adamw", "step": 0}
    return group_changes(model, groups, pad_id=PAD, **defaults | options)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_nothing_of_the_model_is_changed(optimizer):
    model = policy().train()
    head = model.lm_head.weight
    head.grad = kept = torch.ones_like(head)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    changes(model, optimizer=optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert head.grad is kept and (kept == 1).all()
    assert all(p.grad is None for p in model.parameters() if p is not head)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_change_is_that_of_a_textbook_update(optimizer):
    """Policy gradient, token mean over the group, on a copy that keeps its new weights."""
    model, chosen = policy().double(), MIXED[0]
    row = changes(model, [chosen], optimizer=optimizer).iloc[0]
    updated = copy.deepcopy(model)
    advantages = group_advantages(torch.tensor([1.0, 0, 0, 1]), torch.zeros(4).long())
    make = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    step = make(updated.parameters(), lr=1e-2, weight_decay=0.0)
    before = [plain_scores(updated, t)[0] for t in chosen]
    terms = [-a * values for a, values in zip(advantages, before, strict=True)]
    torch.cat(terms).mean().backward()
    step.step()
    after = [plain_scores(updated, t)[0] for t in chosen]
    moved = [(new - old).sum().item() for new, old in zip(after, before, strict=True)]
    assert row.delta == pytest.approx((moved[0] + moved[3]) / 2, rel=1e-5)
    assert row.delta_incorrect == pytest.approx((moved[1] + moved[2]) / 2, rel=1e-5)
    right, wrong = torch.cat([before[0], before[3]]), torch.cat([before[1], before[2]])
    assert row.loglik_correct == pytest.approx(right.mean().item(), rel=1e-9)
    assert row.loglik_incorrect == pytest.approx(wrong.mean().item(), rel=1e-9)
    assert abs(row.delta) > (1e-2 if optimizer == "adamw" else 1e-4)
    assert row.delta_first + row.delta_later == pytest.approx(row.delta)
    assert row.driver_first + row.driver_later == pytest.approx(row.driver)
    assert row.delta_first != row.delta
    pooled = [policy_states(model, [t], pad_id=PAD)[0].mean(0) for t in chosen]
    pairs = [torch.cosine_similarity(pooled[i], pooled[j], 0) for i in (0, 3) for j in (1, 2)]
    assert row.similarity == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-9)


def test_every_group_starts_from_the_same_weights_without_dropout():
    model = policy().train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    # A gradient that is there already is neither added to nor used.
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    alone = pd.concat([changes(policy(), [one]) for one in MIXED], ignore_index=True)
    pd.testing.assert_frame_equal(changes(model), alone, check_exact=True)
    row = changes(model, MIXED[:1], learning_rate=1e-30).iloc[0]
    assert row.delta == 0 and row.delta_incorrect == 0


def test_groups_of_one_outcome_are_kept_as_skipped_rows():
    frame = changes(policy(), [ALL_WRONG, MIXED[0]], step=7)
    assert frame["question_id"].tolist() == ["q9", "q0"]
    assert frame["skipped"].tolist() == [True, False]
    assert frame["step"].tolist() == [7, 7] and frame["kind"].tolist() == ["toy", "toy"]
    assert frame["correct"].tolist() == [0, 2] and frame["incorrect"].tolist() == [4, 2]
    measured = frame.columns[7:-6]
    assert measured[0] == "delta" and measured[-1] == "state_cosine"
    assert frame.loc[0, measured].isna().all() and frame.loc[1, measured].notna().all()
    assert frame["first_search_incorrect"].tolist() == [0, 2]


def test_searches_that_were_made_to_fail_are_also_left_out():
    """The same query of a right and of two wrong responses; one search returned something else."""
    responses = group([True, False, False], seed=4)
    for response, failed in zip(responses, (False, False, True), strict=True):
        first = replace(response.actions[0], executed=True, retrieval_failed=failed)
        first = replace(first, hits=(Hit("9" if failed else "1", "", "", 1.0),))
        response.actions[0] = first
    [row] = changes(policy(), [responses]).itertuples()
    assert (row.first_search_incorrect, row.first_search_equal) == (2, 1)
    assert (row.first_search_reached_incorrect, row.first_search_reached_equal) == (1, 1)
    assert row.first_search_reached_similar == 1
    for response in responses:
        response.actions[0] = replace(response.actions[0], retrieval_failed=True)
    assert changes(policy(), [responses])["first_search_reached_incorrect"].tolist() == [0]


def searched(*found, correct=False):
    """Actions that searched and found ids, or None where an action did not search."""
    return trajectory([[1]] * len(found), found=found, correct=correct)


RIGHT, WRONG = searched("123", None, correct=True), searched("123", None)
NOTHING, OTHER = searched((), None, correct=True), searched("789", None, correct=True)


@pytest.mark.parametrize(
    ("group", "counts"),
    [
        # Sets, not lists: 3 2 1 is equal, 1 2 4 has 2 of 4 in common, the last searched nothing.
        ([RIGHT, searched("321", None), searched("124", None), searched(None)], (3, 1, 2)),
        # Groups of one outcome do not count.
        ([RIGHT, RIGHT], (0, 0, 0)),
        ([WRONG, WRONG], (0, 0, 0)),
        # Only the first action can match, ...
        ([RIGHT, searched("9", "123", None), searched(None, "123", None)], (2, 0, 0)),
        # ... and any correct response of the group be matched.
        ([RIGHT, searched(None, correct=True), OTHER, searched("987", None)], (1, 1, 1)),
        # Two searches that find nothing are equal.
        ([NOTHING, searched((), None)], (1, 1, 1)),
        ([NOTHING, searched("1", None)], (1, 0, 0)),
    ],
)
def test_incorrect_responses_that_begin_like_a_correct_one_are_counted(group, counts):
    assert tuple(first_search_matches(group).values()) == counts


def test_groups_are_sampled_and_scored_by_question_seed_and_step(monkeypatch):
    scored = []
    monkeypatch.setattr(mechanism, "score", lambda t, reward: scored.append((t, reward)))
    retriever = FailingRetriever(StubRetriever(()), failure_rate=0.0, passages=(), seed=0)
    limits = RolloutConfig(max_searches=1, max_action_tokens=6, max_total_tokens=200)
    loop = RolloutLoop(TOKENIZER, retriever, limits, top_k=1)
    model = policy(vocabulary=len(TOKENIZER)).train()

    reward = RewardConfig(kind="f1")
    monkeypatch.setattr(mechanism, "_QUESTIONS_AT_ONCE", 2)

    def sample(seed, step):
        torch.rand(3)  # the global stream must not matter
        return sample_groups(
            model, TOKENIZER, loop, QUESTIONS, group_size=2, seed=seed, step=step, reward=reward
        )

    groups = sample(1, 2)
    assert scored == [(t, reward) for g in groups for t in g]
    first, again, *others = (
        [t.completion_ids for g in made for t in g]
        for made in (groups, sample(1, 2), sample(1, 3), sample(2, 2))
    )
    assert first == again and first not in others
    assert model.training
    assert [[t.question.id for t in g] for g in groups] == [["q0"] * 2, ["q1"] * 2, ["q2"] * 2]
    assert [[t.sample for t in g] for g in groups] == [[0, 1]] * 3
