"""What holds for every loss: what it never reads, what gets no gradient, what it refuses."""

import math
from functools import partial
from inspect import signature

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llds_core.losses import (
    action_ids,
    aggregate,
    answer_weight_ramp,
    displacement,
    group_advantages,
    kl_k3,
    llds_penalty,
    low_probability_bound,
    lp_reg_penalty,
    min_p_proxy,
    policy_loss,
    sampler_correction,
)

ONE, GRID, ROWS = torch.ones(1, 1), torch.zeros(2, 3), torch.zeros(2)
NAN = torch.tensor([1.0, math.nan])


def _aggregate(mode):
    count = 30.0 if mode == "constant" else None
    return lambda logprobs, old, advantages, mask: (aggregate(logprobs, mask, mode, count), {})


def _kl(logprobs, old, advantages, mask):
    values, metrics = kl_k3(logprobs, old, mask)
    return aggregate(values, mask, "token-mean"), metrics


def _llds(logprobs, old, advantages, mask):
    return llds_penalty(logprobs, old, mask, torch.arange(len(mask)) - 1.0)


def _lp_reg(kl):
    def loss(logprobs, old, advantages, mask):
        inside = torch.where(mask.bool(), logprobs, 0.0)
        inside = inside.float() if inside.dtype == torch.bfloat16 else inside
        divergence = (inside - 1) ** 2 if kl == "full" else None
        chosen = {"kl": kl, "divergence_BT": divergence, "share": 1.0}
        return lp_reg_penalty(logprobs, old, mask, torch.arange(len(mask)) - 2.5, **chosen)

    return loss


MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant")
LOSSES = {mode: _aggregate(mode) for mode in MODES} | {
    "kl": _kl,
    # One advantage per token, so that those outside the mask can be spoiled as well.
    "policy": policy_loss,
    "gspo": partial(policy_loss, ratio="sequence", aggregate="seq-mean-token-mean"),
    "llds": _llds,
    "cispo": partial(policy_loss, surrogate="cispo"),
    "lp-reg": _lp_reg("full"),
    "lp-reg-token": _lp_reg("token"),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def draw(rows: int = 3, width: int = 6, seed: int = 1) -> list[torch.Tensor]:
    """Log-probabilities now and then, one advantage per token, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, width, generator=generator, dtype=torch.float64)
    logprobs = old + torch.randn(rows, width, generator=generator, dtype=torch.float64) / 2
    advantages = torch.randn(rows, 1, generator=generator, dtype=torch.float64).expand(rows, width)
    return [logprobs, old, advantages, torch.rand(rows, width, generator=generator) < 0.6]


def evaluate(loss, logprobs, *others) -> tuple[torch.Tensor, torch.Tensor, dict]:
    logprobs = logprobs.clone().requires_grad_()
    value, metrics = loss(logprobs, *others)
    value.backward()
    return value.detach(), logprobs.grad, metrics


@every_loss
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30, 7.0])
def test_nothing_outside_the_mask_is_read_or_moved(loss, poison):
    *tensors, mask = draw()
    value, gradient, metrics = evaluate(loss, *tensors, mask)
    poisoned = evaluate(loss, *(t.masked_fill(~mask, poison) for t in tensors), mask)
    assert poisoned[0] == value
    assert torch.equal(poisoned[1], gradient)
    assert poisoned[2] == metrics
    assert not gradient[~mask].any() and gradient[mask].any()


@every_loss
@pytest.mark.parametrize("shape", [(2, 3), (2, 0)])
def test_without_a_token_the_loss_is_zero_and_has_a_graph(loss, shape):
    values = torch.full(shape, math.nan)
    value, gradient, metrics = evaluate(loss, values, values, values, torch.zeros(shape))
    assert value == 0
    assert torch.equal(gradient, torch.zeros(shape))
    assert all(m.isfinite() for m in metrics.values())


@every_loss
def test_metrics_are_detached_scalars_and_constants_get_no_gradient(loss):
    logprobs, old, advantages, mask = draw()
    old, advantages = old.requires_grad_(), advantages.clone().requires_grad_()
    _, _, metrics = evaluate(loss, logprobs, old, advantages, mask)
    assert all(m.dim() == 0 and not m.requires_grad for m in metrics.values())
    assert old.grad is None and advantages.grad is None


@every_loss
def test_bfloat16_is_computed_in_float32_and_its_gradient_returns_in_bfloat16(loss):
    *tensors, mask = draw()
    half = [tensor.to(torch.bfloat16) for tensor in tensors]
    value, gradient, _ = evaluate(loss, *half, mask)
    expected, expected_gradient, _ = evaluate(loss, *(t.float() for t in half), mask)
    assert value.dtype == torch.float32 and value == expected
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, expected_gradient.to(torch.bfloat16))


@pytest.mark.parametrize("name", [name for name in LOSSES if name[0] != "l"])
@given(rows=st.integers(1, 5), width=st.integers(1, 6), seed=st.integers(0, 999))
def test_padding_and_row_order_do_not_matter(name, rows, width, seed):
    """Of LLDS see its properties; here, Lp-Reg is given advantages by row number."""
    *tensors, mask = draw(rows, width, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    wide = [torch.nn.functional.pad(t, (0, 3), value=7.0)[order] for t in tensors]
    value, gradient, _ = evaluate(LOSSES[name], *tensors, mask)
    moved = evaluate(LOSSES[name], *wide, torch.nn.functional.pad(mask, (0, 3))[order])
    assert moved[0].item() == pytest.approx(value.item(), abs=1e-12)
    torch.testing.assert_close(moved[1][:, :width], gradient[order], atol=1e-12, rtol=0)


def of(function, **changed):
    """A call of `function` with tensors of two rows that fit, but for what is `changed`."""
    required = [n for n, p in signature(function).parameters.items() if p.default is p.empty]
    fitting = {name: GRID if name.endswith("_BT") else ROWS for name in required}
    return lambda: function(**fitting | changed)


REFUSED = [
    (of(sampler_correction, mode="clip"), 'mode is "clip": choose one of'),
    (of(sampler_correction, cap=0.5), "cap is 0.5: give a number of at least"),
    (of(displacement, advantages_B=ONE), r"advantages_B has shape \(1, 1\): give \(2,\)"),
    (of(lp_reg_penalty, kl="reverse"), 'kl is "reverse": choose one of full, token'),
    (of(lp_reg_penalty, share=1.5), "share is 1.5: give a number from 0 to 1"),
    (of(lp_reg_penalty), 'divergence_BT is missing with kl "full"'),
    (of(lp_reg_penalty, kl="token", divergence_BT=GRID), 'divergence_BT is given with kl "token"'),
    (of(lp_reg_penalty, divergence_BT=ONE), r"divergence_BT has shape \(1, 1\): give \(2, 3\)"),
    (
        of(lp_reg_penalty, response_mask_BT=ROWS),
        r"response_mask_BT has shape \(2,\): give \(2, 3\)",
    ),
    (of(lp_reg_penalty, advantages_B=GRID), r"advantages_B has shape \(2, 3\): give \(2,\)"),
    (of(min_p_proxy, min_p=1.0), "min_p is 1.0: give a number from 0 to 0.99"),
    (of(low_probability_bound, share=-0.1), "share is -0.1: give a number from 0"),
    (of(policy_loss, surrogate="ppo"), 'surrogate is "ppo": choose one of clip, cispo'),
    (of(policy_loss, surrogate="cispo", dual_clip=3.0), 'surrogate is "cispo": give ratio "token"'),
    (
        of(policy_loss, surrogate="cispo", ratio="sequence"),
        'surrogate is "cispo": give ratio "token"',
    ),
    (of(group_advantages, mean="median"), 'mean is "median": choose one of group, batch, none'),
    (of(group_advantages, std="running"), 'std is "running": choose one of'),
    (of(group_advantages, eps=-1.0), "eps is -1.0: give a number of at least 0"),
    (of(group_advantages, group_ids_B=ROWS[:1]), r"group_ids_B has shape \(1,\): give \(2,\)"),
    (of(group_advantages, rewards_B=ONE), r"rewards_B has shape \(1, 1\): give \(B,\)"),
    (of(group_advantages, rewards_B=ROWS[:0]), r"rewards_B has shape \(0,\)"),
    (of(group_advantages, rewards_B=NAN), r"rewards_B\[1\] is nan: give finite rewards"),
    (of(action_ids, response_mask_BT=ROWS), r"response_mask_BT has shape \(2,\): give \(traj"),
    (of(aggregate, mode="mean"), 'mode is "mean": choose one of token-mean, seq-mean-token-mean'),
    (of(aggregate, mode="token-mean", mask_BT=ROWS), r"mask_BT has shape \(2,\): give \(2, 3\)"),
    (
        of(aggregate, mode="token-mean", denominator=-1.0),
        "denominator is -1.0: give a number of at least 0",
    ),
    (
        of(aggregate, mode="constant"),
        "denominator is None .*: give trajectories × generation budget",
    ),
    (
        of(aggregate, mode="constant", denominator=0),
        "denominator is 0 .*: give trajectories × generation budget",
    ),
    (of(kl_k3, ref_logprobs_BT=torch.zeros(2, 1)), "ref_logprobs_BT has"),
    (of(kl_k3, response_mask_BT=torch.zeros(1)), "response_mask_BT has"),
    (of(policy_loss, ratio="row"), 'ratio is "row": choose one of token, sequence'),
    (of(policy_loss, aggregate="mean"), 'mode is "mean": choose one of token-mean'),
    (of(policy_loss, clip_low=-0.1), "clip_low is -0.1: give a number from 0 to 1"),
    (of(policy_loss, clip_high=-0.1), "clip_high is -0.1: give a number of at least 0"),
    (of(policy_loss, dual_clip=1.0), "dual_clip is 1.0: give a number above 1, or None"),
    (of(policy_loss, logprobs_BT=ROWS), r"logprobs_BT has shape \(2,\): give \(trajectories, to"),
    (of(policy_loss, old_logprobs_BT=ONE), r"old_logprobs_BT has shape \(1, 1\): give \(2, 3\)"),
    (of(policy_loss, advantages=torch.zeros(3)), r"advantages has shape \(3,\): give \(2,\)"),
    (of(policy_loss, advantages=GRID[:, :1]), r"advantages has shape \(2, 1\): give \(2, 3\)"),
    (
        of(policy_loss, response_mask_BT=GRID[:1]),
        r"response_mask_BT has shape \(1, 3\): give \(2, 3",
    ),
    (of(llds_penalty, gate="chunk"), 'gate is "chunk": choose one of action, response, token'),
    (of(llds_penalty, normalizer="batch"), 'normalizer is "batch": choose one of preserved, all'),
    (
        of(llds_penalty, preserve="right"),
        'preserve is "right": choose one of nonnegative, positive',
    ),
    (of(llds_penalty, answer_weight=1.5), "answer_weight is 1.5: give a number from 0 to 1"),
    (of(llds_penalty, answer_weight=math.nan), "answer_weight is nan"),
    (of(llds_penalty, gate_threshold=-0.1), "gate_threshold is -0.1: give a number of at least 0"),
    (of(llds_penalty, denominator=-1), "denominator is -1: give a number of at least 0"),
    (of(llds_penalty, answer_mask_BT=ONE), r"answer_mask_BT has shape \(1, 1\): give \(2, 3\)"),
    (of(llds_penalty, response_mask_BT=ROWS), r"mask_BT has shape \(2,\): give \(2, 3\)"),
    (of(llds_penalty, advantages_B=GRID), r"advantages_B has shape \(2, 3\): give \(2,\)"),
    (
        of(llds_penalty, old_logprobs_BT=None),
        "old_logprobs_BT is None: keep the log-probabilities of the policy",
    ),
    (of(llds_penalty, logprobs_BT=[[0.0]]), "logprobs_BT is of type list: give a torch.Tensor"),
    (of(llds_penalty, response_mask_BT=None), "response_mask_BT is None: give a torch.Tensor"),
    (of(llds_penalty, advantages_B=[1.0]), "advantages_B is of type list: give a torch.Tensor"),
    (of(group_advantages, group_ids_B=2), "group_ids_B is of type int: give a torch.Tensor"),
    (of(group_advantages, rewards_B=[1.0]), "rewards_B is of type list: give a torch.Tensor"),
    (of(policy_loss, advantages=None), "advantages is None: give a torch.Tensor"),
    (
        of(answer_weight_ramp, searches=1, ramp="linear"),
        'ramp is "linear": choose one of paper, code',
    ),
    (of(answer_weight_ramp, searches=math.nan), "searches is nan"),
    (
        of(answer_weight_ramp, searches=1, budget=0.0),
        'budget is 0.0 with ramp "paper": give .* above 0',
    ),
    (of(answer_weight_ramp, searches=1, ramp="code", budget=1.0), 'budget is 1.0 with ramp "code"'),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_unusable_input_is_refused_in_one_line_with_advice(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
