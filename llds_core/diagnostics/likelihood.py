"""How likely a policy finds given trajectories: teacher-forced scoring, token by token.

The model reads prompt and completion as they stand; only the positions that predict a policy token
are projected on the vocabulary. All log-probabilities are at temperature 1 without nucleus cut,
which is how the paper (arXiv 2512.04220, Figs. 2, 3, 5, 6) measures likelihood, and in nats.

The trainer scores its own micro-batches inside TRL (`llds_core.training.policy_head`); this module
serves everything that looks at a checkpoint from outside.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from llds_core.losses.aggregate import upcast
from llds_core.rollout.masks import validate_response_masks
from llds_core.rollout.protocol import Trajectory

Which = Literal["all", "first", "later"]

_LOGITS_AT_ONCE = 2**24  # tokens × vocabulary: 64 MiB a tensor in float32


@dataclass(frozen=True)
class Scored:
    """What a model thinks of the T policy tokens of one trajectory, in their order.

    Attributes:
        trajectory: what was scored.
        logprobs: (T,) log-probabilities, in at least float32 and on the CPU like all tensors
            here.
        entropies: (T,) entropies of the next-token distributions.
        action_ids: (T,) index 1..K of the action each token belongs to.
        states: (T, D) last-layer states, after the final norm, at the positions that predict
            the tokens; None unless asked for.
    """

    trajectory: Trajectory
    logprobs: torch.Tensor
    entropies: torch.Tensor
    action_ids: torch.Tensor
    states: torch.Tensor | None = None


def score_trajectories(
    model: PreTrainedModel,
    trajectories: Sequence[Trajectory],
    *,
    pad_id: int,
    batch_size: int = 16,
    with_states: bool = False,
) -> list[Scored]:
    """Score the policy tokens of `trajectories`, in evaluation mode and without gradients.

    Rows of similar length share a batch. What a row gets does not depend on its neighbours beyond
    rounding (1e-5 in float32).

    Args:
        model: causal language model whose `base_model` ends in the final norm.
        trajectories: finished trajectories, in any order.
        pad_id: any token id; it fills the right of shorter rows, where no causal model looks.
        batch_size: rows of a forward pass, at least 1.
        with_states: also keep the predicting states.

    Returns:
        One result per trajectory, in the order given.

    Raises:
        ValueError: when a trajectory has no prompt or no policy token, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: score at least 1 trajectory at a time")
    order = sorted(range(len(trajectories)), key=lambda i: trajectories[i].total_tokens)
    results: dict[int, Scored] = {}
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = [trajectories[row] for row in rows]
            states, labels = policy_states(model, batch, pad_id=pad_id)
            logprobs, entropies = _project(model, states, labels)
            lengths = [sum(t.response_mask) for t in batch]
            kept = upcast(states).cpu().split(lengths) if with_states else [None] * len(batch)
            for row, trajectory, *values in zip(
                rows, batch, logprobs.split(lengths), entropies.split(lengths), kept, strict=True
            ):
                results[row] = Scored(
                    trajectory, *values[:2], policy_actions(trajectory), values[2]
                )
    return [results[row] for row in range(len(trajectories))]


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put `model` in evaluation mode and give its own mode back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def policy_states(
    model: PreTrainedModel, trajectories: Sequence[Trajectory], *, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Last-layer states that predict the policy tokens, one trajectory after the other.

    Keeps the graph unless gradients are off.

    Returns:
        States (N, D) and the policy tokens (N,) they predict, N over all trajectories.

    Raises:
        ValueError: when a trajectory has no prompt or no policy token.
    """
    validate_response_masks(
        [t.completion_ids for t in trajectories], [t.response_mask for t in trajectories]
    )
    for trajectory in trajectories:
        if not trajectory.prompt_ids:
            raise ValueError(
                f"the trajectory of question {trajectory.question.id} has no prompt: its first "
                "token has nothing to be predicted from"
            )
    rows = [torch.tensor([*t.prompt_ids, *t.completion_ids]) for t in trajectories]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id).to(model.device)
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    for row, trajectory in enumerate(trajectories):
        start = len(trajectory.prompt_ids)
        mask = torch.tensor(trajectory.response_mask, dtype=torch.bool, device=ids.device)
        chosen[row, start : start + len(mask)] = mask
    # No attention mask: a causal model reads nothing to the right, where the padding stands.
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    # The state that predicts a token stands one position before it.
    return states[:, :-1][chosen[:, 1:]], ids[chosen]


def policy_actions(trajectory: Trajectory) -> torch.Tensor:
    """Action index 1..K of each policy token of `trajectory`, (T,)."""
    return torch.tensor([index for index in trajectory.action_ids if index])


def _project(
    model: PreTrainedModel, states: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `labels` and entropies, both (N,), a slice of tokens at a time."""
    head = model.get_output_embeddings()
    size = max(1, _LOGITS_AT_ONCE // head.weight.shape[0])
    logprobs, entropies = [], []
    for part, wanted in zip(states.split(size), labels.split(size), strict=True):
        log_softmax = upcast(head(part)).log_softmax(-1)
        logprobs.append(log_softmax.gather(1, wanted[:, None]).squeeze(1))
        entropies.append(-(log_softmax.exp() * log_softmax).sum(-1))
    return torch.cat(logprobs).cpu(), torch.cat(entropies).cpu()


def total_logprob(scored: Scored) -> float:
    """Summed log-probability of all policy tokens, not normalised by length."""
    return scored.logprobs.double().sum().item()


def action_sums(scored: Scored) -> torch.Tensor:
    """Summed log-probability of each action, (K,) in float64."""
    actions = scored.action_ids
    sums = torch.zeros(int(actions.max()), dtype=torch.float64)
    return sums.index_add(0, actions - 1, scored.logprobs.double())


def action_means(scored: Scored) -> torch.Tensor:
    """Mean log-probability per token of each action, (K,) in float64."""
    return action_sums(scored) / torch.bincount(scored.action_ids - 1)


def token_mean(scored: Sequence[Scored], which: Which = "all") -> float:
    """Mean log-probability per token, pooled over trajectories.

    Args:
        scored: any number of trajectories; a long one weighs more than a short one.
        which: tokens of `all` actions, the `first` one, or the `later` ones.

    Returns:
        Nats per token; NaN when there is no such token.
    """
    values = [s.logprobs[_chosen(s, which)].double() for s in scored]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *values]).mean().item()


def _chosen(scored: Scored, which: Which) -> torch.Tensor:
    first = scored.action_ids == 1
    return {"all": torch.ones_like(first), "first": first, "later": ~first}[which]


def summed_change(before: Scored, after: Scored, which: Which = "all") -> float:
    """Change of the summed log-probability of one trajectory from one policy to another.

    Args:
        before: scored under the earlier policy.
        after: the same trajectory scored under the later one.
        which: tokens that count, see `token_mean`.

    Raises:
        ValueError: when the two score different trajectories.
    """
    if before.trajectory is not after.trajectory:
        raise ValueError(
            "before and after score different trajectories: score the same list under both policies"
        )
    change = after.logprobs.double() - before.logprobs.double()
    return change[_chosen(before, which)].sum().item()
