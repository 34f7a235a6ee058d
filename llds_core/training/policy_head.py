"""Log-probabilities of policy tokens only, with padding and without.

TRL's fused head scores every position of prompt and response where it has no Triton kernel; of a
search trajectory two thirds are prompt and retrieved text. Here the model's forward, when given
`policy_labels`, projects nothing but the positions that predict a policy token, with TRL's own
chunked function. It stays inside `forward`, the projection inside the `forward` of the output
embedding, so that wrappers (DDP, FSDP) see the calls: sharding gathers a weight where its module is
called.

With padding in a batch, transformers hands SDPA a mask, and FlashAttention, which takes none, drops
out. `forward_unpadded` makes one row of the real tokens of a micro-batch; where each trajectory
begins goes to torch's variable-length attention, in 16 bits on a GPU. Elsewhere each trajectory is
attended to by a call of its own: the same numbers, for tests and CPUs. `use_unpadded_attention`
registers one attention function for both: without the starts of trajectories, as in sampling, it is
transformers' SDPA.
"""

import inspect
import types
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from trl.kernels import ChunkedLogProbFunction

from llds_core.errors import ConfigError

_NAME = "llds_unpadded"
_is_unpadded = ContextVar("is_unpadded", default=False)
_SHARES_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # from torch 2.12 on

_IGNORED = -100
VOCABULARY_CHUNK = 32768  # TRL's own tile width
SCORES = ("log_probs", "entropy")
_NEVER = -1e4
# What models do to logits after the head (Gemma, Cohere, Granite, Falcon-H1), and what moves them
# without an update, each with the value at which it does nothing.
_NEUTRAL = {"final_logit_softcapping": None, "attention_dropout": 0} | dict.fromkeys(
    ("logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier"), 1
)


class PolicyHeadOutput(NamedTuple):
    """Per-token values (B, T - 1): position t belongs to the token at t + 1; zero where ignored."""

    log_probs: torch.Tensor  # of the labels
    entropy: torch.Tensor  # of the next-token distribution, in nats
    last_hidden_state: torch.Tensor  # (B, T, D), detached
    extra: torch.Tensor | None  # what `also` made of the scored tokens, where it was given


class ScoredTokens(NamedTuple):
    """What the head knows of the N tokens that it scores, row by row: states (N, D) before the
    projection, its weight (V, D) and bias (V,), labels and log-probabilities (N,).
    """

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    labels: torch.Tensor
    log_probs: torch.Tensor


Also = Callable[[ScoredTokens], torch.Tensor]


def policy_labels(input_ids: torch.Tensor, policy_mask: torch.Tensor) -> torch.Tensor:
    """Labels (B, T) that name the policy tokens of the response, which fills the last columns."""
    labels = torch.full_like(input_ids, _IGNORED)
    width = policy_mask.shape[1]
    labels[:, -width:] = torch.where(policy_mask.bool(), input_ids[:, -width:], _IGNORED)
    return labels


def add_policy_head(model: PreTrainedModel, *, vocabulary: int | None = None) -> None:
    """Teach `model.forward` the argument `policy_labels`; without it nothing changes. Scores are at
    temperature 1. Rows of the output embedding from `vocabulary` on stand for no token.

    With it, `also` may name a function that makes one more number (N,) of each scored token: inside
    the head, where its weight is whole.
    """
    text = model.config.get_text_config()
    for key, neutral in _NEUTRAL.items():
        if (value := getattr(text, key, None)) not in (None, neutral):
            raise ConfigError(
                f"the policy's {key}={value} changes its log-probabilities, which the trainer does "
                "not: set policy.path to a model without it"
            )
    original = model.forward
    head = model.get_output_embeddings()

    def score(
        self: nn.Linear,
        states: torch.Tensor,
        labels: torch.Tensor | None = None,
        also: Also | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        if labels is None:
            return type(self).forward(self, states)
        bias: torch.Tensor | None = self.bias
        if vocabulary is not None and vocabulary < self.out_features:
            # A bias, because sharding gathers no slice of a weight.
            rows = torch.arange(self.out_features, device=states.device)
            bias = _NEVER * (rows >= vocabulary) + (0 if bias is None else bias)
        log_probs, entropy, *_ = ChunkedLogProbFunction.apply(
            states, self.weight, bias, labels, 1.0, VOCABULARY_CHUNK, None, 1.0, SCORES
        )
        if also is None:
            return log_probs, entropy, None
        found = ScoredTokens(states, self.weight, bias, labels, log_probs)
        return log_probs, entropy, also(found)

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
        head = self.get_output_embeddings()
        log_probs, entropy, extra = head(states[:, :-1][scored], labels[scored], also)
        # `masked_scatter` keeps the graph even when no label is valid.
        zeros = log_probs.new_zeros(scored.shape)
        return PolicyHeadOutput(
            zeros.masked_scatter(scored, log_probs),
            zeros.masked_scatter(scored, entropy),
            states.detach(),
            None if extra is None else zeros.masked_scatter(scored, extra),
        )

    head.forward = types.MethodType(score, head)
    model.forward = types.MethodType(forward, model)


def use_unpadded_attention(model: PreTrainedModel) -> None:
    """Let `model` take what `forward_unpadded` gives it; other calls stay as they were."""
    text = model.config.get_text_config()
    for key in ("sliding_window", "attn_logit_softcapping"):
        if value := getattr(text, key, None):
            raise ConfigError(
                f"the policy's {key}={value} is not kept without padding: set "
                "training.remove_padding=false"
            )
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _mask)
    model.set_attn_implementation(_NAME)


def forward_unpadded(
    model: nn.Module,
    ids: torch.Tensor,
    attention: torch.Tensor,
    labels: torch.Tensor,
    also: Also | None = None,
) -> PolicyHeadOutput:
    """Score a padded batch as `model(ids, attention, policy_labels=labels)` does.

    Args:
        model: with a policy head and `use_unpadded_attention`.
        ids: (B, T) tokens, padding anywhere.
        attention: (B, T), 1 on tokens.
        labels: (B, T) labels of policy tokens; none on the first token of a row.
        also: see `add_policy_head`.

    Returns:
        Scores (B, T - 1) and states (B, T, D), zero on padding. They differ from the padded pass by
        rounding: positions count from a row's first token, and kernels differ.
    """
    kept = attention.bool()
    lengths = attention.sum(1)
    starts = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    token = _is_unpadded.set(True)
    try:
        output = model(
            input_ids=ids[kept][None],
            position_ids=(attention.cumsum(1) - 1)[kept][None],
            policy_labels=labels[kept][None],
            also=also,
            starts=starts,
            longest=int(lengths.max()),
        )
    finally:
        _is_unpadded.reset(token)

    def padded(values: torch.Tensor) -> torch.Tensor:
        # The score at t belongs to token t + 1; the first token of all has none.
        values = nn.functional.pad(values[0], (1, 0))
        return values.new_zeros(kept.shape).masked_scatter(kept, values)[:, 1:]

    states = output.last_hidden_state[0]
    placed = states.new_zeros(*kept.shape, states.shape[-1])
    placed = placed.masked_scatter(kept[..., None], states)
    extra = None if output.extra is None else padded(output.extra)
    return PolicyHeadOutput(padded(output.log_probs), padded(output.entropy), placed, extra)


def _mask(**options: Any) -> torch.Tensor | None:
    return None if _is_unpadded.get() else sdpa_mask(**options)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    starts: torch.Tensor | None = None,
    longest: int = 0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface: (B, heads, T, D) in, (B, T, heads, D) out."""
    if starts is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    if not value.is_cuda or value.dtype == torch.float32:
        sizes = starts.diff().tolist()
        queries, keys, values = (each.split(sizes, dim=2) for each in (query, key, value))
        parts = [
            sdpa_attention_forward(module, q, k, v, None, scaling=scaling, is_causal=True)[0]
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
        return torch.cat(parts, dim=1), None
    shared: dict[str, Any] = {"enable_gqa": True}
    if not _SHARES_HEADS:
        groups = cast(int, module.num_key_value_groups)
        key, value, shared = repeat_kv(key, groups), repeat_kv(value, groups), {}
    # Rotation has promoted queries and keys to the type of the residual stream.
    query, key, value = (each[0].transpose(0, 1).to(value.dtype) for each in (query, key, value))
    bounds = (starts, starts, longest, longest)
    causal = (-1, 0)
    output = varlen_attn(query, key, value, *bounds, scale=scaling, window_size=causal, **shared)
    return cast(torch.Tensor, output)[None], None
