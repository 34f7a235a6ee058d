"""How likely a policy finds given trajectories: teacher-forced scoring, token by token.

Only the positions that predict a policy token are projected on the vocabulary. All
log-probabilities are at temperature 1 without nucleus cut, as those of the official code of arXiv
2512.04220, and in nats. The trainer scores its own micro-batches inside TRL
(`llds_core.training.policy_head`).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from llds_core.losses.aggregate import upcast
from llds_core.rollout.protocol import Trajectory, validate_response_masks
from llds_core.rollout.samplers import evaluation_mode

_ROWS_AT_ONCE = 16
_LOGITS_AT_ONCE = 2**24  # tokens × vocabulary: 64 MiB a tensor in float32
_ROUND_COLUMNS = ["view", "rounds", "nll", "entropy", "tokens", "trajectories"]


@dataclass(frozen=True)
class Scored:
    """What a model thinks of the T policy tokens of one trajectory, in their order, on the CPU and
    in at least float32.
    """

    trajectory: Trajectory
    logprobs: torch.Tensor  # (T,)
    entropies: torch.Tensor  # (T,) of the next-token distributions


def score_trajectories(
    model: PreTrainedModel,
    trajectories: Sequence[Trajectory],
    *,
    pad_id: int,
    vocabulary: int | None = None,
) -> list[Scored]:
    """Score the policy tokens of finished trajectories, in their order, by a causal model whose
    `base_model` ends in the final norm, in evaluation mode and without gradients.

    Rows of similar length share a batch, which changes a row by no more than rounding (1e-5 in
    float32). `pad_id`, any token, fills the right of shorter rows, where no causal model looks; see
    `token_logits` for `vocabulary`.
    """
    order = sorted(range(len(trajectories)), key=lambda i: trajectories[i].total_tokens)
    results: dict[int, Scored] = {}
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(order), _ROWS_AT_ONCE):
            rows = order[start : start + _ROWS_AT_ONCE]
            batch = [trajectories[row] for row in rows]
            states, labels = policy_states(model, batch, pad_id=pad_id)
            logprobs, entropies = _project(model, states, labels, vocabulary)
            lengths = [sum(t.response_mask) for t in batch]
            for row, trajectory, logprob, entropy in zip(
                rows, batch, logprobs.split(lengths), entropies.split(lengths), strict=True
            ):
                results[row] = Scored(trajectory, logprob, entropy)
    return [results[row] for row in range(len(trajectories))]


def policy_states(
    model: PreTrainedModel, trajectories: Sequence[Trajectory], *, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Last-layer states (N, D), after the final norm, and the policy tokens (N,) of all
    trajectories that they predict, in order; with their graph unless gradients are off.
    """
    validate_response_masks(
        [t.completion_ids for t in trajectories], [t.response_mask for t in trajectories]
    )
    rows = [torch.tensor([*t.prompt_ids, *t.completion_ids]) for t in trajectories]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id).to(model.device)
    masks = [torch.tensor([0] * len(t.prompt_ids) + t.response_mask).bool() for t in trajectories]
    chosen = pad_sequence(masks, batch_first=True).to(model.device)
    # No attention mask: a causal model reads nothing to the right, where the padding stands.
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    # The state that predicts a token stands one position before it.
    return states[:, :-1][chosen[:, 1:]], ids[chosen]


def policy_actions(trajectory: Trajectory) -> torch.Tensor:
    """Action index 1..K of each policy token of `trajectory`, (T,)."""
    return torch.tensor([index for index in trajectory.action_ids if index])


def token_logits(
    model: PreTrainedModel, states: torch.Tensor, vocabulary: int | None
) -> torch.Tensor:
    """Logits (N, V) of `states` in at least float32, of the tokenizer's V = `vocabulary` tokens: an
    embedding may have more rows, which stand for nothing. None takes all rows.
    """
    return upcast(model.get_output_embeddings()(states)[:, :vocabulary])


def _project(
    model: PreTrainedModel, states: torch.Tensor, labels: torch.Tensor, vocabulary: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `labels` and entropies, both (N,), a slice of tokens at a time."""
    size = max(1, _LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])
    logprobs, entropies = [], []
    for part, wanted in zip(states.split(size), labels.split(size), strict=True):
        log_softmax = token_logits(model, part, vocabulary).log_softmax(-1)
        logprobs.append(log_softmax.gather(1, wanted[:, None]).squeeze(1))
        entropies.append(-(log_softmax.exp() * log_softmax).sum(-1))
    return torch.cat(logprobs).cpu(), torch.cat(entropies).cpu()


def nll_by_round(scored: Sequence[Scored]) -> pd.DataFrame:
    """Mean negative log-likelihood per policy token against search rounds, which are executed
    searches (Fig. 6). The paper does not say how rounds are counted; both readings are measured.

    Returns:
        Rows of two views. `position` looks at one action at a time: row t is action t (from 0) of
        the trajectories with more than t rounds. `total` looks at whole responses: row R holds all
        actions of the trajectories with exactly R rounds.

        Columns `view`, `rounds` (t or R), `nll` and `entropy` in nats per token, pooled over
        trajectories, `tokens` and `trajectories`; ascending in `rounds`, and empty without any.
        The entropy is the NLL that the model's own samples would have there.
    """
    collected: defaultdict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
    for item in scored:
        rounds, actions = item.trajectory.searches, policy_actions(item.trajectory)
        values = torch.stack([-item.logprobs, item.entropies], dim=1)
        collected["total", rounds].append(values)
        for position in range(rounds):
            collected["position", position].append(values[actions == position + 1])
    rows = []
    for (view, rounds), parts in sorted(collected.items()):
        nll, entropy = torch.cat(parts).double().mean(0).tolist()
        tokens = sum(map(len, parts))
        rows.append((view, rounds, nll, entropy, tokens, len(parts)))
    return pd.DataFrame(rows, columns=_ROUND_COLUMNS)
