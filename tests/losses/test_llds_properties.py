"""What must hold for LLDS on any trajectories: drawn by hypothesis, checked for every gate.

Likelihood changes are multiples of 1/8 and log-probabilities small, hence exact in bfloat16 too:
ties and sums of exactly 0 occur, and no result depends on rounding.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_llds import slow_penalty
from torch.nn.functional import pad

from llds_core.losses import llds_penalty

GATES = st.sampled_from(["action", "response", "token"])
NORMALIZERS = st.sampled_from(["preserved", "all"])
DTYPES = [torch.float32, torch.bfloat16]
SUMS = ["response_tokens", "preserved_tokens", "gated_tokens", "preserved_actions"]
SUMS += ["gated_actions", "penalty_sum", "delta_sum"]


@dataclass(frozen=True)
class Case:
    logprobs: torch.Tensor
    old: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor
    answers: torch.Tensor

    def rows(self, index) -> "Case":
        return Case(*(tensor[index] for tensor in vars(self).values()))

    def to(self, dtype: torch.dtype) -> "Case":
        return replace(self, logprobs=self.logprobs.to(dtype), old=self.old.to(dtype))

    @property
    def preserved(self) -> torch.Tensor:
        return self.mask.bool() & (self.advantages >= 0)[:, None]

    def count(self, normalizer: str) -> int:
        return int((self.preserved if normalizer == "preserved" else self.mask).sum())


@st.composite
def cases(draw) -> Case:
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 8))

    def grid(elements) -> list[list]:
        row = st.lists(elements, min_size=width, max_size=width)
        return draw(st.lists(row, min_size=rows, max_size=rows))

    old = -torch.tensor(grid(st.integers(0, 16)), dtype=torch.float32) / 8
    delta = torch.tensor(grid(st.integers(-6, 6)), dtype=torch.float32) / 8
    signs = st.lists(st.sampled_from([1.5, 0.0, -0.5]), min_size=rows, max_size=rows)
    bits = st.integers(0, 1)
    mask, answers = torch.tensor(grid(bits)), torch.tensor(grid(bits))
    return Case(old - delta, old, mask, torch.tensor(draw(signs)), answers)


def evaluate(case: Case, **options) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
    logprobs = case.logprobs.clone().requires_grad_()
    value, metrics = llds_penalty(logprobs, case.old, case.mask, case.advantages, **options)
    value.backward()
    return value.item(), logprobs.grad, metrics


@given(
    cases(),
    GATES,
    NORMALIZERS,
    st.sampled_from(["nonnegative", "positive"]),
    st.sampled_from([0.0, 0.25]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_penalty_equals_a_plain_python_transcription(
    case, gate, normalizer, preserve, threshold, weight
):
    options = {"gate": gate, "normalizer": normalizer, "preserve": preserve}
    given = {"answer_mask_BT": case.answers, "answer_weight": weight, "gate_threshold": threshold}
    value, gradient, _ = evaluate(case, **options, **given)
    batch = (case.logprobs, case.old, case.mask, case.advantages.tolist())
    more = {"answers": case.answers, "weight": weight, "threshold": threshold}
    expected, pull = slow_penalty(*batch, **options, **more)
    assert value == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradient, pull)


@pytest.mark.parametrize("dtype", DTYPES)
@given(cases(), GATES, st.sampled_from([0.0, 1.0]))
def test_only_losing_policy_tokens_of_preserved_trajectories_are_pushed_and_only_up(
    dtype, case, gate, weight
):
    options = {"answer_mask_BT": case.answers, "answer_weight": weight}
    value, gradient, metrics = evaluate(case.to(dtype), gate=gate, **options)
    assert value >= 0.0 and (gradient <= 0).all()
    assert not gradient[~(case.preserved & (case.old > case.logprobs))].any()
    assert metrics["gated_tokens"].item() == (gradient != 0).sum().item()
    value, gradient, metrics = evaluate(replace(case, logprobs=case.old).to(dtype), gate=gate)
    assert value == 0.0 and not gradient.any()  # of an unchanged policy
    assert metrics["gated_tokens"].item() == 0


@given(cases(), GATES)
def test_gradient_does_not_depend_on_the_size_of_the_loss(case, gate):
    _, gradient, _ = evaluate(case, gate=gate)
    twice = replace(case, logprobs=case.old - 2 * (case.old - case.logprobs))
    _, doubled, _ = evaluate(twice, gate=gate)
    assert torch.equal(gradient, doubled)
    assert set(gradient.unique().tolist()) <= {0.0, gradient.min().item()}


@given(cases(), GATES, NORMALIZERS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_padding_and_row_order_do_not_matter(case, gate, normalizer, columns, random):
    order = random.sample(range(len(case.mask)), len(case.mask))
    value, gradient, metrics = evaluate(case, gate=gate, normalizer=normalizer)
    moved = case.rows(order)
    wide = (pad(t, (0, columns)) if t.dim() == 2 else t for t in vars(moved).values())
    found = evaluate(Case(*wide), gate=gate, normalizer=normalizer)
    assert found[0] == pytest.approx(value, abs=1e-6)
    assert torch.equal(found[1][:, :-columns], gradient[order])
    assert found[2] == metrics


@given(cases(), GATES, NORMALIZERS, st.integers(1, 3))
def test_micro_batches_add_up_to_the_mini_batch(case, gate, normalizer, size):
    value, gradient, metrics = evaluate(case, gate=gate, normalizer=normalizer)
    options = {"gate": gate, "normalizer": normalizer, "denominator": case.count(normalizer)}
    starts = range(0, len(case.mask), size)
    parts = [evaluate(case.rows(slice(i, i + size)), **options) for i in starts]
    assert sum(part[0] for part in parts) == pytest.approx(value, abs=1e-6)
    assert torch.equal(torch.cat([part[1] for part in parts]), gradient)
    for name in SUMS:
        assert sum(part[2][name].item() for part in parts) == metrics[name].item()
