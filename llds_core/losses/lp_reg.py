"""Lp-Reg, low-probability regularisation (arXiv 2510.03222v2, section 4).

GRPO pushes rare tokens of wrong responses down until they are gone. Lp-Reg holds those that are not
noise. What is noise a proxy decides: the policy without the tokens below a share `min_p` of its
likeliest one (min-p), renormalised. Off-policy it is made of the policy that sampled the rollout:

    q(v) = p(v) / sum of the kept p     if p(v) > min_p * max p, else 0
    L    = (1 / Z) * sum over policy tokens o of  1[A < 0, pi(o) < delta, q(o) > 0] * D

- `kl="full"`, the paper: D = KL(q || pi) over the vocabulary; `delta` is the `share`-quantile of
  the sampled tokens' probabilities in the training batch.
- `kl="token"`, the official code (`compute_policy_loss_lp_reg` of CarlanLark/Lp-Reg-dev): D is k3
  of the sampled token alone, exp(d) - d - 1 with d = ln q(o) - ln pi(o), clamped to 10; held are,
  of the `share` of least likely ones among the micro-batch's tokens with A < 0, at least two of
  them, those that the proxy finds likelier than the policy does. It keeps p >= min_p * max p.

Z is the number of all policy tokens.
"""

import math

import torch

from llds_core.losses.aggregate import (
    check_choice,
    check_range,
    check_rows,
    check_same_shape,
    divide,
    upcast,
)

_K3_CLAMP = 10.0


def min_p_proxy(logits: torch.Tensor, min_p: float, *, inclusive: bool = False) -> torch.Tensor:
    """Log-probabilities (..., V) of the proxy of the policy with these `logits` (..., V): -inf for
    tokens without more than `min_p` in [0, 1) of the largest probability; `inclusive` keeps those
    with exactly that, too. No gradient passes.

    Raises:
        ValueError: for a `min_p` out of range.
    """
    check_range("min_p", min_p, 0, math.nextafter(1, 0))
    logits = upcast(logits.detach())
    # Compared as logits: the normaliser cancels.
    bound = logits.amax(-1, keepdim=True) + (math.log(min_p) if min_p else -math.inf)
    kept = logits >= bound if inclusive else logits > bound
    return logits.masked_fill(~kept, -math.inf).log_softmax(-1)


def low_probability_bound(logprobs_BT: torch.Tensor, mask: torch.Tensor, share: float) -> float:
    """Log-probability below which lie `share` (in [0, 1]) of the tokens under `mask`, rounded down;
    -inf without tokens.

    Raises:
        ValueError: for a `share` out of range.
    """
    check_range("share", share, 0, 1)
    values = logprobs_BT.detach()[mask.bool()].flatten()
    rank = int(len(values) * share) + 1
    if rank > len(values):
        return math.inf if len(values) else -math.inf
    return values.kthvalue(rank).values.item()


def lp_reg_penalty(
    logprobs_BT: torch.Tensor,
    proxy_logprobs_BT: torch.Tensor,
    response_mask_BT: torch.Tensor,
    advantages_B: torch.Tensor,
    *,
    kl: str = "full",
    divergence_BT: torch.Tensor | None = None,
    bound: float = math.inf,
    share: float = 0.01,
    denominator: float | torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Lp-Reg penalty, to be multiplied by its weight and added to the policy loss (arXiv
    2510.03222v2).

    Args:
        logprobs_BT: (B, T) log-probabilities of the sampled tokens under the current policy, nats.
        proxy_logprobs_BT: (B, T) the same under the proxy (`min_p_proxy`), -inf where it filtered
            the token; a constant.
        response_mask_BT: (B, T), 1 on policy tokens; values elsewhere are never read.
        advantages_B: (B,) advantages.
        kl: `full` (paper) or `token` (official code), see above.
        divergence_BT: (B, T) KL(proxy || current policy) over the vocabulary in nats, with its
            gradient; read where a token is held. Required by `full`, unknown to `token`.
        bound: `full`: ln delta, from `low_probability_bound` over the training batch.
        share: `token`: of the tokens with negative advantage, those to look at, in [0, 1].
        denominator: Z of the whole mini-batch, so that penalties of its micro-batches add up to its
            own. With `token` the choice of tokens depends on the micro-batch all the same.

    Returns:
        The scalar penalty in at least float32 (0, attached to the graph, when no token is held),
        and metrics. Sums, which add up over micro-batches: `response_tokens`, `negative_tokens`,
        `held_tokens`, `penalty_sum` (before Z); and `held_fraction` of the policy tokens.

    Raises:
        ValueError: for unknown options, unequal shapes, values out of range, or `full` without
            divergences.
    """
    check_choice("kl", kl, ("full", "token"))
    check_range("share", share, 0, 1)
    grids = {"proxy_logprobs_BT": proxy_logprobs_BT, "response_mask_BT": response_mask_BT}
    if divergence_BT is not None:
        grids["divergence_BT"] = divergence_BT
    check_same_shape(logprobs_BT=logprobs_BT, **grids)
    check_rows(logprobs_BT, advantages_B=advantages_B)
    if (divergence_BT is None) == (kl == "full"):
        raise ValueError(
            f'divergence_BT is {"missing" if kl == "full" else "given"} with kl "{kl}": '
            "full needs the divergence of each token, token computes its own"
        )
    policy = response_mask_BT.bool()
    negative = policy & (advantages_B < 0)[:, None]
    logprobs, proxy = upcast(logprobs_BT), upcast(proxy_logprobs_BT).detach()
    now = logprobs.detach()
    if divergence_BT is not None:
        held = negative & (now < bound) & (proxy > -math.inf)
        values = torch.where(held, upcast(divergence_BT), 0.0)
    else:
        held = _least_likely(now, negative, share) & (now < proxy)
        # Beyond 20 nats the clamped value has no gradient, and the exponential would overflow.
        difference = torch.where(held, proxy - logprobs, 0.0).clamp(max=20.0)
        values = (torch.expm1(difference) - difference).clamp(max=_K3_CLAMP)
    total = values.sum()
    sums = {
        "response_tokens": policy.sum(),
        "negative_tokens": negative.sum(),
        "held_tokens": held.sum(),
        "penalty_sum": total.detach(),
    }
    return divide(total, sums["response_tokens"], denominator), sums | {
        "held_fraction": divide(sums["held_tokens"], sums["response_tokens"])
    }


def _least_likely(now: torch.Tensor, among: torch.Tensor, share: float) -> torch.Tensor:
    """(B, T) bool: the `share` of least likely tokens of `among`; none where that is only one."""
    chosen = torch.zeros_like(among)
    count = int(int(among.sum()) * share)
    if count > 1:
        lowest = now.masked_fill(~among, math.inf).flatten().topk(count, largest=False).indices
        chosen.view(-1)[lowest] = True
    return chosen
