"""Why likelihood falls: one GRPO update on one question, seen from its correct responses.

This is Figure 3a (Eq. 3) of arXiv 2512.04220, with what its Theorem 4.2 names as the cause measured
on the same group: the driver score (`theorem`), the likelihood of incorrect responses, and the
similarity of states (Fig. 3b). `summary.correlations` sums a frame up.

The paper leaves optimizer and objective of Fig. 3a open. Here: a fresh optimizer, the plain clipped
surrogate as token mean over the whole group, advantages scaled by the group's deviation; no KL, no
entropy bonus, no weight decay, no gradient clipping. From a fresh start the LLDS penalty is zero in
value and gradient, so that the same numbers hold for every method's checkpoint.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llds_core.config import RewardConfig
from llds_core.config.seeding import torch_generator
from llds_core.diagnostics.likelihood import policy_actions, policy_states, token_logits
from llds_core.diagnostics.theorem import driver_score
from llds_core.losses import group_advantages, policy_loss
from llds_core.losses.aggregate import upcast
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.protocol import Trajectory
from llds_core.rollout.rewards import score
from llds_core.rollout.samplers import StopAtTag, TransformersSampler, evaluation_mode
from llds_core.worlds.records import Question

# The first step of `adamw` moves every weight by about the learning rate, whatever the gradient's
# size; `sgd` follows the gradient.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, weight_decay=0.0),
    "sgd": torch.optim.SGD,
}

# Of one rollout; changes memory, and which random numbers a question meets.
_QUESTIONS_AT_ONCE = 25

_JACCARD = 0.5

# Columns of the frame, NaN for a group of one outcome.
_MEASURED = (
    *("delta", "delta_first", "delta_later", "delta_incorrect"),
    *("loglik_correct", "loglik_incorrect", "similarity", "driver", "driver_first", "driver_later"),
    *("pull", "gain", "own", "support", "error_product", "state_cosine"),
)


def sample_groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    loop: RolloutLoop,
    questions: Sequence[Question],
    *,
    group_size: int,
    step: int,
    seed: int,
    reward: RewardConfig,
) -> list[list[Trajectory]]:
    """Sample `group_size` trajectories, two at least, per question, at temperature 1 and top-p 1,
    and score them by `reward`: one list per question, in their order.

    `step` is the rollout step of the checkpoint: with the root `seed` it names the random stream,
    and search failures of `loop` are keyed by it.
    """
    generator = torch_generator(seed, "likelihood-change", step, device=str(model.device))
    sampler = TransformersSampler(model, tokenizer, generator, stop=StopAtTag(tokenizer))
    groups: list[list[Trajectory]] = []
    for start in range(0, len(questions), _QUESTIONS_AT_ONCE):
        chosen = questions[start : start + _QUESTIONS_AT_ONCE]
        tasks = [(question, sample) for question in chosen for sample in range(group_size)]
        trajectories = loop.run(tasks, sampler, step=step).trajectories
        for trajectory in trajectories:
            score(trajectory, reward)
        groups += [
            trajectories[i : i + group_size] for i in range(0, len(trajectories), group_size)
        ]
    return groups


def group_changes(
    model: PreTrainedModel,
    groups: Sequence[Sequence[Trajectory]],
    *,
    pad_id: int,
    learning_rate: float,
    optimizer: str,
    step: int,
    vocabulary: int | None = None,
) -> pd.DataFrame:
    """Update a copy of `model` on each group of scored trajectories alone, by one of `OPTIMIZERS`,
    and measure what it changed. `step` goes into the frame; see `score_trajectories` for `pad_id`
    and `vocabulary`.

    Returns:
        One row per group. `question_id`, `kind`, `step`, `optimizer`; `correct` and `incorrect`
        responses; `skipped`, true when only one outcome occurs, which leaves the measurements NaN:
        `delta`, the mean change of the summed log-probability of correct responses in nats, its
        parts `delta_first` and `delta_later` (first and later actions) and `delta_incorrect` of the
        others; `loglik_correct` and `loglik_incorrect`, nats per token before the update;
        `similarity`, cosine of mean-pooled states over (correct, incorrect) pairs; `driver`, its
        parts `driver_first` and `driver_later`, `pull`, `gain`, `own`, `support`, `error_product`
        and `state_cosine` (see `driver_score`). The counts of `first_search_matches` end the row:
        `first_search_equal` and `first_search_similar` of `first_search_incorrect`, and after
        `first_search_reached_` the same without responses whose first search was made to fail; 0
        for skipped groups.
    """
    rows = []
    with evaluation_mode(model):
        for group in groups:
            correct = [t.correct for t in group]
            row: dict[str, Any] = {
                "question_id": group[0].question.id,
                "kind": group[0].question.metadata.get("kind"),
                "step": step,
                "optimizer": optimizer,
                "correct": sum(correct),
                "incorrect": len(group) - sum(correct),
                "skipped": len(set(correct)) == 1,
                **dict.fromkeys(_MEASURED, np.nan),
                **_count_search_matches(group),
            }
            if not row["skipped"]:
                make = partial(OPTIMIZERS[optimizer], lr=learning_rate)
                row |= _one_update(copy.deepcopy(model), group, make, pad_id, vocabulary)
            rows.append(row)
    return pd.DataFrame(rows)


def _count_search_matches(group: Sequence[Trajectory]) -> dict[str, int]:
    # Injected failures return unrelated documents to the same query.
    reached = [t for t in group if not t.actions[0].retrieval_failed]
    return {
        f"{prefix}{name}": count
        for prefix, chosen in (("first_search_", group), ("first_search_reached_", reached))
        for name, count in first_search_matches(chosen).items()
    }


def first_search_matches(group: Sequence[Trajectory]) -> dict[str, int]:
    """Count the incorrect responses of a group, scored responses to one question, that begin like a
    correct one (Fig. 5): `incorrect` ones; of them `equal`, whose first action searched and found
    the same set of documents as that of a correct one, and `similar`, with a Jaccard index of at
    least 0.5: the paper does not say when two match. They share a good first action, and are pushed
    down with it. Two searches that find nothing are equal. All 0 without a correct response.
    """
    right, wrong = ([t for t in group if t.correct == side] for side in (True, False))
    found, asked = (
        [{hit.id for hit in t.actions[0].hits} for t in side if t.actions[0].executed]
        for side in (right, wrong)
    )
    similar = [any(a == b or len(a & b) / len(a | b) >= _JACCARD for b in found) for a in asked]
    return {
        "incorrect": len(wrong) if right else 0,
        "equal": sum(ids in found for ids in asked),
        "similar": sum(similar),
    }


def _one_update(
    model: PreTrainedModel,
    group: Sequence[Trajectory],
    optimizer: Callable[..., torch.optim.Optimizer],
    pad_id: int,
    vocabulary: int | None,
) -> dict[str, float]:
    """The measurements of one step on `group`, which leaves the weights changed."""
    states, tokens = policy_states(model, group, pad_id=pad_id)
    rows, first, right = (values.to(tokens.device) for values in _token_labels(group))
    logits = token_logits(model, states, vocabulary)
    before = _token_logprobs(logits, tokens)
    rewards = torch.tensor([t.reward for t in group], device=tokens.device)
    advantages = group_advantages(rewards, torch.zeros_like(rewards, dtype=torch.long))
    # All policy tokens as one row: the token mean does not ask whose they are.
    loss, _ = policy_loss(
        before[None], before.detach()[None], advantages[rows][None], torch.ones_like(tokens)[None]
    )
    loss.backward()
    states, logits, before = states.detach(), logits.detach(), before.detach()
    correct = torch.tensor([t.correct for t in group], device=tokens.device)
    pulled, drive = driver_score(upcast(states), logits, tokens, rows, advantages, correct)
    optimizer(model.parameters()).step()
    with torch.no_grad():
        # Same rows in the same order: what a step of size 0 left unchanged is unchanged exactly.
        states_after, _ = policy_states(model, group, pad_id=pad_id)
        after = _token_logprobs(token_logits(model, states_after, vocabulary), tokens)
    change = after.double() - before.double()

    def per_correct(values: torch.Tensor, chosen: torch.Tensor) -> float:
        return (values[chosen].sum() / correct.sum()).item()

    return {
        "delta": per_correct(change, right),
        "delta_first": per_correct(change, right & first),
        "delta_later": per_correct(change, right & ~first),
        "delta_incorrect": (change[~right].sum() / (~correct).sum()).item(),
        "loglik_correct": before[right].double().mean().item(),
        "loglik_incorrect": before[~right].double().mean().item(),
        "similarity": _pooled_similarity(upcast(states), rows, correct),
        "driver_first": per_correct(pulled, right & first),
        "driver_later": per_correct(pulled, right & ~first),
        **drive,
    }


def _token_labels(group: Sequence[Trajectory]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per policy token of a group, (N,): its trajectory, whether it belongs to the first action,
    whether to a correct response.
    """
    actions = [policy_actions(t) for t in group]
    rows = torch.cat([torch.full_like(ids, row) for row, ids in enumerate(actions)])
    return rows, torch.cat(actions) == 1, torch.tensor([t.correct for t in group])[rows]


def _token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


def _pooled_similarity(states: torch.Tensor, rows: torch.Tensor, correct: torch.Tensor) -> float:
    """Mean cosine of mean-pooled states over (correct, incorrect) pairs (Fig. 3b)."""
    pooled = states.new_zeros(len(correct), states.shape[1]).index_add(0, rows, states)
    # The cosine does not see that a sum is no mean.
    pooled = torch.nn.functional.normalize(pooled, dim=1)
    return (pooled[correct] @ pooled[~correct].T).mean().item()
