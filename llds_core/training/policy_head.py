"""Log-probabilities of policy tokens only.

TRL's fused head scores every position of prompt and response where it has no Triton kernel; of a
search trajectory two thirds are prompt and retrieved text. Here the model's forward, when given
`policy_labels`, projects nothing but the positions that predict a policy token, with TRL's own
chunked function. It stays inside `forward`, the projection inside the `forward` of the output
embedding, so that wrappers (DDP, FSDP) see the calls: sharding gathers a weight where its module is
called.
"""

import types
from dataclasses import dataclass
from typing import Any

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
    """

    # Tensors, always given; `ModelOutput` asks for defaults.
    log_probs: Any = None
    entropy: Any = None
    last_hidden_state: Any = None


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
    """
    original = model.forward
    head = model.get_output_embeddings()

    def score(
        self: nn.Linear, states: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if labels is None:
            return type(self).forward(self, states)
        bias: torch.Tensor | None = self.bias
        # A bias, because sharding gathers no slice of a weight; ZeRO-3 gathers no such bias either.
        if vocabulary is not None and not hasattr(self.weight, "ds_status"):
            rows = torch.arange(self.out_features, device=states.device)
            if vocabulary < len(rows):
                bias = _NEVER * (rows >= vocabulary) + (0 if bias is None else bias)
        log_probs, entropy, *_ = ChunkedLogProbFunction.apply(
            states, self.weight, bias, labels, temperature, _VOCABULARY_CHUNK, None, 1.0, _SCORES
        )
        return log_probs, entropy

    def forward(
        self: PreTrainedModel, *args: object, policy_labels: torch.Tensor | None = None, **kwargs
    ):
        if policy_labels is None:
            return original(*args, **kwargs)
        states = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        labels = policy_labels[:, 1:]
        scored = labels != _IGNORED
        log_probs, entropy = self.get_output_embeddings()(states[:, :-1][scored], labels[scored])
        # `masked_scatter` keeps the graph even when no label is valid.
        zeros = log_probs.new_zeros(scored.shape)
        return PolicyHeadOutput(
            log_probs=zeros.masked_scatter(scored, log_probs),
            entropy=zeros.masked_scatter(scored, entropy),
            last_hidden_state=states.detach(),
        )

    head.forward = types.MethodType(score, head)
    model.forward = types.MethodType(forward, model)
