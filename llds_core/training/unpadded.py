"""Forward passes over rows laid end to end, without padding.

With padding in a batch, transformers hands SDPA a mask, and FlashAttention, which takes none, drops
out. Here a micro-batch becomes one row of its real tokens; where each trajectory begins goes to
torch's variable-length attention, in 16 bits on a GPU. Elsewhere each trajectory is attended to by
a call of its own: the same numbers, for tests and CPUs.

`use_unpadded_attention` registers one attention function for both: without the starts of
trajectories, as in sampling, it is transformers' SDPA.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from llds_core.training.policy_head import Also, PolicyHeadOutput

_NAME = "llds_unpadded"
_is_unpadded = ContextVar("is_unpadded", default=False)
_SHARES_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # from torch 2.12 on


def use_unpadded_attention(model: PreTrainedModel) -> None:
    """Let `model` take what `forward_unpadded` gives it; other calls stay as they were."""
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
    with _without_mask():
        output = model(
            input_ids=ids[kept][None],
            position_ids=(attention.cumsum(1) - 1)[kept][None],
            policy_labels=labels[kept][None],
            also=also,
            starts=starts,
            longest=int(lengths.max()),
        )

    def padded(values: torch.Tensor) -> torch.Tensor:
        # The score at t belongs to token t + 1; the first token of all has none.
        values = nn.functional.pad(values[0], (1, 0))
        return values.new_zeros(kept.shape).masked_scatter(kept, values)[:, 1:]

    states = output.last_hidden_state[0]
    return PolicyHeadOutput(
        log_probs=padded(output.log_probs),
        entropy=padded(output.entropy),
        last_hidden_state=states.new_zeros(*kept.shape, states.shape[-1]).masked_scatter(
            kept[..., None], states
        ),
        extra=None if output.extra is None else padded(output.extra),
    )


@contextmanager
def _without_mask() -> Iterator[None]:
    token = _is_unpadded.set(True)
    try:
        yield
    finally:
        _is_unpadded.reset(token)


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
