"""Log-probabilities of policy tokens only.

TRL's fused head scores every position of prompt and response where it has no Triton kernel; of a
search trajectory two thirds are prompt and retrieved text. Here the model's forward, when given
`policy_labels`, projects nothing but the positions that predict a policy token, with TRL's own
chunked function. It stays inside `forward`, the projection inside the `forward` of the output
embedding, so that wrappers (DDP, FSDP) see the calls: sharding gathers a weight where its module is
called.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from trl.kernels import ChunkedLogProbFunction

_IGNORED = -100
_VOCABULARY_CHUNK = 32768  # TRL's own tile width
_SCORES = ("log_probs", "entropy")
_NEVER = -1e4


@dataclass
class PolicyHeadOutput(ModelOutput):
    """Per-token values (B, T - 1): position t belongs to the token at t + 1; zero where ignored.

    Attributes:
        log_probs: log-probability of the labels.
        entropy: entropy of the next-token distribution, in nats.
        last_hidden_state: (B, T, D) states of the last layer, detached.
        extra: what `also` made of the scored tokens, where it was given.
    """

    # Tensors, always given; `ModelOutput` asks for defaults.
    log_probs: Any = None
    entropy: Any = None
    last_hidden_state: Any = None
    extra: Any = None


class ScoredTokens(NamedTuple):
    """What the head knows of the N tokens that it scores, row by row: states (N, D) before the
    projection, its weight (V, D) and bias (V,), labels and log-probabilities (N,).
    """

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    labels: torch.Tensor
    log_probs: torch.Tensor
    temperature: float


Also = Callable[[ScoredTokens], torch.Tensor]


def policy_labels(input_ids: torch.Tensor, policy_mask: torch.Tensor) -> torch.Tensor:
    """Labels (B, T) that name the policy tokens of the response, which fills the last columns."""
    labels = torch.full_like(input_ids, _IGNORED)
    width = policy_mask.shape[1]
    labels[:, -width:] = torch.where(policy_mask.bool(), input_ids[:, -width:], _IGNORED)
    return labels


def add_policy_head(
    model: PreTrainedModel, *, temperature: float = 1.0, vocabulary: int | None = None
) -> None:
    """Teach `model.forward` the argument `policy_labels`; without it nothing changes. Rows of the
    output embedding from `vocabulary` on stand for no token.

    With it, `also` may name a function that makes one more number (N,) of each scored token: inside
    the head, where its weight is whole.
    """
    original = model.forward
    head = model.get_output_embeddings()

    def score(
        self: nn.Linear,
        states: torch.Tensor,
        labels: torch.Tensor | None = None,
        also: Also | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if labels is None:
            return type(self).forward(self, states)
        bias: torch.Tensor | None = self.bias
        if vocabulary is not None and vocabulary < self.out_features:
            # A bias, because sharding gathers no slice of a weight.
            rows = torch.arange(self.out_features, device=states.device)
            bias = _NEVER * (rows >= vocabulary) + (0 if bias is None else bias)
        log_probs, entropy, *_ = ChunkedLogProbFunction.apply(
            states, self.weight, bias, labels, temperature, _VOCABULARY_CHUNK, None, 1.0, _SCORES
        )
        if also is None:
            return log_probs, entropy
        return (
            log_probs,
            entropy,
            also(ScoredTokens(states, self.weight, bias, labels, log_probs, temperature)),
        )

    def forward(
        self: PreTrainedModel,
        *args: object,
        policy_labels: torch.Tensor | None = None,
        also: Also | None = None,
        **kwargs,
    ):
        if policy_labels is None:
            return original(*args, **kwargs)
        states = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        labels = policy_labels[:, 1:]
        scored = labels != _IGNORED
        found = self.get_output_embeddings()(states[:, :-1][scored], labels[scored], also)
        # `masked_scatter` keeps the graph even when no label is valid.
        zeros = found[0].new_zeros(scored.shape)
        log_probs, entropy, *extra = (zeros.masked_scatter(scored, values) for values in found)
        return PolicyHeadOutput(
            log_probs=log_probs,
            entropy=entropy,
            last_hidden_state=states.detach(),
            extra=extra[0] if extra else None,
        )

    head.forward = types.MethodType(score, head)
    model.forward = types.MethodType(forward, model)
