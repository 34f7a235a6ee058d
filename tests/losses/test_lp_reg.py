"""Lp-Reg and CISPO: published values, slow transcriptions, extremes, independence of the split."""

import math

import pytest
import torch

from llds_core.losses import (
    group_advantages,
    low_probability_bound,
    lp_reg_penalty,
    min_p_proxy,
    policy_loss,
)

PI = torch.tensor([0.90, 0.08, 0.015, 0.005], dtype=torch.float64)
ONE = torch.ones(1, 1)
NEGATIVE = torch.tensor([-0.5])


def forward_kl(proxy: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    now = logits.log_softmax(-1)
    return (proxy.exp() * (proxy.masked_fill(proxy == -math.inf, 0.0) - now)).sum(-1)


def test_the_proxy_and_its_divergence_match_their_published_values() -> None:
    logits = PI.log().requires_grad_()
    proxy = min_p_proxy(logits, 0.02)
    assert proxy.exp().tolist() == pytest.approx([0.918367, 0.081633, 0, 0], abs=1e-6)
    divergence = forward_kl(proxy, logits)
    assert divergence.item() == pytest.approx(0.020203, abs=1e-6) == -math.log(0.98)
    divergence.backward()
    expected = [-0.018367, -0.001633, 0.015, 0.005]
    assert logits.grad.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("pi", "value", "gradient"), [(0.08, 0.000205, -0.020408), (0.04, 0.327466, -1.040816)]
)
def test_k3_of_a_token_matches_its_published_values(pi, value, gradient) -> None:
    """Of two copies: one alone is not looked at."""
    logprobs = torch.full((1, 2), math.log(pi), dtype=torch.float64, requires_grad=True)
    proxy = min_p_proxy(PI.log(), 0.02)[1].expand(1, 2)
    options = {"kl": "token", "share": 1.0}
    found, counts = lp_reg_penalty(logprobs, proxy, torch.ones(1, 2), NEGATIVE, **options)
    found.backward()
    assert found.item() == pytest.approx(value, abs=1e-6) and counts["held_tokens"] == 2
    assert logprobs.grad.tolist()[0] == pytest.approx([gradient / 2] * 2, abs=1e-6)
    alone, _ = lp_reg_penalty(logprobs[:, :1], proxy[:, :1], ONE, NEGATIVE, **options)
    noise, _ = lp_reg_penalty(logprobs, proxy - math.inf, torch.ones(1, 2), NEGATIVE, **options)
    assert alone == noise == 0


@pytest.mark.parametrize(
    ("inclusive", "kept"), [(False, [True, False]), (True, [True, True])], ids=["paper", "code"]
)
def test_who_stands_on_the_bound_is_kept_by_the_code_only(inclusive, kept) -> None:
    logits = torch.tensor([0.0, math.log(0.5)])
    assert (min_p_proxy(logits, 0.5, inclusive=inclusive) > -math.inf).tolist() == kept


def draw(seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    rows, width, vocabulary = (int(torch.randint(1, 6, (), generator=random)) for _ in range(3))
    logits, old = 3 * torch.randn(2, rows, width, vocabulary + 1, generator=random)
    if seed % 10 == 0:
        logits = 30 * logits  # ratios beyond every bound
    labels = torch.randint(0, vocabulary + 1, (rows, width, 1), generator=random)
    rewards = torch.randint(0, 2, (rows,), generator=random).float()
    rewards = rewards.clamp(max=0) if seed % 7 == 0 else rewards  # all equal
    ids = torch.randint(0, 2, (rows,), generator=random)
    mask = torch.rand(rows, width, generator=random) < (0 if seed % 13 == 0 else 0.7)
    return {"logits": logits, "old": old, "labels": labels, "mask": mask} | {
        "advantages": group_advantages(rewards, ids, mean=("group", "batch")[seed % 2], std="none")
    }


def gathered(case: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return case[name].log_softmax(-1).gather(2, case["labels"])[..., 0]


def slow_penalty(case: dict[str, torch.Tensor], kl: str, min_p: float, share: float) -> float:
    """Token by token, in double precision."""
    total, tokens, negative = 0.0, 0, []
    sampled = []
    for i, t in case["mask"].nonzero().tolist():
        old, now = (case[name][i, t].double().softmax(0).tolist() for name in ("old", "logits"))
        token = int(case["labels"][i, t])
        tokens += 1
        sampled.append(old[token])
        if case["advantages"][i] < 0:
            tau = min_p * max(old)
            kept = [p if (p > tau or (kl == "token" and p == tau)) else 0.0 for p in old]
            negative.append((now, token, [p / sum(kept) for p in kept]))
    ranked = sorted(sampled)
    place = int(len(ranked) * share)
    delta = ranked[place] if place < len(ranked) else math.inf
    negative.sort(key=lambda entry: entry[0][entry[1]])
    if kl == "token":
        count = int(len(negative) * share)
        negative = negative[:count] if count > 1 else []
    for now, token, proxy in negative:
        if proxy[token] == 0:
            continue
        if kl == "full" and now[token] < delta:
            total += sum(q * math.log(q / p) for q, p in zip(proxy, now, strict=True) if q > 0)
        if kl == "token" and now[token] < proxy[token]:
            d = math.log(proxy[token] / now[token])
            total += min(math.exp(min(d, 20)) - d - 1, 10)
    return total / max(1, tokens)


@pytest.mark.parametrize("kl", ["full", "token"])
def test_penalty_equals_its_slow_transcription_on_random_batches(kl: str) -> None:
    held = 0
    for seed in range(1000):
        case = draw(seed)
        if seed % 10 == 0:
            case["logits"] = case["logits"].clamp(-60, 60)
        old, now = gathered(case, "old"), gathered(case, "logits")
        proxy = min_p_proxy(case["old"], 0.05, inclusive=kl == "token")
        options = {"divergence_BT": forward_kl(proxy, case["logits"])} if kl == "full" else {}
        value, counts = lp_reg_penalty(
            *(now, proxy.gather(2, case["labels"])[..., 0], case["mask"], case["advantages"]),
            **{"kl": kl, "share": 0.6},
            bound=low_probability_bound(old, case["mask"], 0.6),
            **options,
        )
        expected = slow_penalty(case, kl, 0.05, 0.6)
        assert value.item() == pytest.approx(expected, abs=1e-5, rel=1e-5), seed
        held += int(counts["held_tokens"])
    assert held > 200


def test_cispo_equals_its_slow_transcription_and_never_stops_a_gradient() -> None:
    for seed in range(1000):
        case = draw(seed)
        now, old = gathered(case, "logits").requires_grad_(), gathered(case, "old")
        terms = [
            -min(math.exp(min(20.0, (now[i, t] - old[i, t]).item())), 5.0)
            * float(case["advantages"][i])
            * now[i, t].item()
            for i, t in case["mask"].nonzero().tolist()
        ]
        options = {"clip_low": 1.0, "clip_high": 4.0, "surrogate": "cispo"}
        value, _ = policy_loss(now, old, case["advantages"], case["mask"], **options)
        expected = sum(terms) / max(1, len(terms))
        assert value.item() == pytest.approx(expected, abs=1e-5, rel=1e-5), seed
    capped = torch.zeros(1, 1, requires_grad=True)
    policy_loss(capped, ONE - 9, torch.tensor([2.0]), ONE, **options)[0].backward()
    assert capped.grad.item() == -10.0


def test_a_ratio_clipped_from_both_sides_is_the_surrogate_of_the_lp_reg_paper() -> None:
    """clip(rho, 0, 10) A for either sign of A, which the official code bounds for one."""
    log_ratio = torch.linspace(-30, 30, 13, dtype=torch.float64)[:, None]
    advantages = torch.tensor([1.0, -1.0] * 6 + [1.0], dtype=torch.float64)
    expected = -(log_ratio.clamp(-20, 20).exp().clamp(0, 10)[:, 0] * advantages).mean()
    found, _ = policy_loss(
        *(log_ratio, 0 * log_ratio, advantages, torch.ones_like(log_ratio)),
        **{"clip_low": 1.0, "clip_high": 9.0, "dual_clip": 10.0},
    )
    assert found == pytest.approx(expected.item())


@pytest.mark.parametrize("kl", ["full", "token"])
def test_penalties_of_parts_add_up(kl: str) -> None:
    """With `token` parts are whole where all of their negative tokens are looked at."""
    random = torch.Generator().manual_seed(3)
    now = -torch.rand(6, 5, generator=random) * 4
    proxy = (now + torch.rand(6, 5, generator=random)).clamp(max=0)
    mask, advantages = torch.rand(6, 5, generator=random) < 0.7, torch.tensor([-1.0, 1] * 3)
    divergence = torch.rand(6, 5, generator=random)

    def of(rows: slice, count: torch.Tensor | None = None) -> torch.Tensor:
        more = {"divergence_BT": divergence[rows], "bound": -1.0} if kl == "full" else {}
        given = {"kl": kl, "share": 1.0, "denominator": count} | more
        return lp_reg_penalty(now[rows], proxy[rows], mask[rows], advantages[rows], **given)[0]

    whole = of(slice(None))
    assert whole > 0
    parts = [of(slice(start, start + 2), mask.sum()) for start in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), whole)


def test_the_bound_has_the_share_below_it() -> None:
    values = torch.arange(10.0)[None]
    mask = torch.ones(1, 10)
    for share, below in ((0.0, 0), (0.25, 2), (0.3, 3), (1.0, 10)):
        assert (values < low_probability_bound(values, mask, share)).sum() == below
    assert low_probability_bound(values, 0 * mask, 0.5) == -math.inf
