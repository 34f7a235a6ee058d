"""Lp-Reg's proxies in training: made in the rollout-time pass, compared with in every update.

A min-p proxy is sparse. Of each candidate (a policy token of negative advantage that its own proxy
keeps) the tokens that the proxy keeps are stored, with their log-probabilities: a handful where the
policy is sure, and exact where it is not. The divergence from the current policy needs the logits
of those tokens only,

    ln pi(v) = ln pi(o) + z(v) - z(o)

with ln pi(o) of the sampled token o from the fused head. So nothing of the size of the vocabulary
outlives a tile of the head, neither forward nor backward; the gradient of its weight apart.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from llds_core.config import LossConfig
from llds_core.losses import low_probability_bound, lp_reg_penalty, min_p_proxy
from llds_core.training.policy_head import ScoredTokens

_TILE = 2**25  # logits at a time, a quarter of the head's own tile


class MinPProxies:
    """Proxies of the policy tokens of a micro-batch, in the order of the head: row by row.

    Attributes:
        bound: log-probability below which a token is held.
    """

    def __init__(self, candidates_N: torch.Tensor, loss: LossConfig) -> None:
        self.bound = float("inf")
        self._candidates_N = candidates_N
        self._settings = loss
        self._counts_N = torch.zeros_like(candidates_N, dtype=torch.long)
        # Of all candidates, one after the other.
        self._tokens_S = torch.zeros(0, dtype=torch.long)
        self._logprobs_S = torch.zeros(0)

    def make(self, scored: ScoredTokens) -> torch.Tensor:
        """Store the proxies; return what they give the sampled tokens (N,), -inf where a token is
        noise or no candidate.
        """
        is_full = self._settings.lp_reg_kl == "full"
        sampled_N = torch.full_like(scored.log_probs, -torch.inf)
        kept, values = [], []
        for rows in self._candidates_N.nonzero()[:, 0].split(max(1, _TILE // len(scored.weight))):
            logits = nn.functional.linear(scored.states[rows], scored.weight, scored.bias)
            proxy = min_p_proxy(logits, self._settings.lp_reg_min_p, inclusive=not is_full)
            sampled_N[rows] = proxy.gather(1, scored.labels[rows, None])[:, 0]
            if is_full:
                inside = (proxy > -torch.inf) & (sampled_N[rows] > -torch.inf)[:, None]
                self._counts_N[rows] = inside.sum(1)
                kept.append(inside.nonzero()[:, 1])
                values.append(proxy[inside])
        if kept:
            self._tokens_S, self._logprobs_S = torch.cat(kept), torch.cat(values)
        return sampled_N

    def divergence(self, scored: ScoredTokens) -> torch.Tensor:
        """KL(proxy || current policy) of the tokens that are held now (N,), 0 elsewhere."""
        held_N = (self._counts_N > 0) & (scored.log_probs.detach() < self.bound)
        rows_S = torch.arange(len(held_N), device=held_N.device).repeat_interleave(self._counts_N)
        chosen_S = held_N[rows_S]
        rows, tokens = rows_S[chosen_S], self._tokens_S[chosen_S]
        logprobs = self._logprobs_S[chosen_S]
        held = held_N.nonzero()[:, 0]
        own_N = torch.zeros_like(scored.log_probs)
        own_N = own_N.index_add(0, held, _logits(scored, held, scored.labels[held]))
        now = scored.log_probs[rows] + _logits(scored, rows, tokens) - own_N[rows]
        terms = logprobs.exp() * (logprobs - now)
        return torch.zeros_like(scored.log_probs).index_add(0, rows, terms)


def _logits(scored: ScoredTokens, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of single `tokens` at `rows` of the states."""
    logits = (scored.states[rows].float() * scored.weight[tokens].float()).sum(1)
    return logits if scored.bias is None else logits + scored.bias[tokens]


def proxies_for(micro: dict[str, Any], loss: LossConfig) -> MinPProxies | None:
    """Proxies to be made in the rollout-time pass over a micro-batch; None without Lp-Reg."""
    if loss.lp_reg_weight == 0:
        return None
    mask = micro["policy_mask"].bool()
    negative = (micro["group_advantages"] < 0)[:, None].expand_as(mask)
    return MinPProxies(negative[mask], loss)


def set_bounds(micro_batches: Sequence[dict[str, Any]], loss: LossConfig) -> None:
    """Tell the proxies of a rollout below which probability a token is held: that of its share of
    all policy tokens of all processes, as they were sampled.
    """
    if loss.lp_reg_weight == 0 or loss.lp_reg_kl == "token":
        return
    mine = [micro["old_per_token_logps"][micro["policy_mask"].bool()] for micro in micro_batches]
    sampled = torch.cat(gather_object([torch.cat(mine).cpu()]))
    bound = low_probability_bound(sampled, torch.ones_like(sampled), loss.lp_reg_share)
    for micro in micro_batches:
        micro["proxies"].bound = bound


def proxy_penalty(
    micro: dict[str, Any], logprobs: torch.Tensor, divergence: torch.Tensor | None, loss: LossConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Lp-Reg's penalty on a micro-batch, a part of its mini-batch's."""
    return lp_reg_penalty(
        logprobs,
        micro["proxy_logps"],
        micro["policy_mask"],
        micro["group_advantages"],
        kl=loss.lp_reg_kl,
        divergence_BT=divergence,
        bound=micro["proxies"].bound,
        share=loss.lp_reg_share,
        denominator=micro["policy_count"],
    )
