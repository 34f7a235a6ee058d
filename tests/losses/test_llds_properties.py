"""What must hold for LLDS on any trajectories: drawn by hypothesis, checked for every gate.

Likelihood changes are multiples of 1/8 and log-probabilities small, hence exact in bfloat16 too:
ties and sums of exactly 0 occur, and no result depends on rounding.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from llds_core.losses import llds_penalty

GATES = ["action", "response", "token"]
NORMALIZERS = ["preserved", "all"]
DTYPES = [torch.float32, torch.bfloat16]
SUMS = (
    "response_tokens",
    "preserved_tokens",
    "gated_tokens",
    "preserved_actions",
    "gated_actions",
    "penalty_sum",
    "delta_sum",
)


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


def slow_penalty(case: Case, gate, normalizer, preserve, threshold, weight) -> float:
    """The definition, one token at a time."""
    total, preserved, everything = 0.0, 0, 0
    for i, advantage in enumerate(case.advantages.tolist()):
        spans, span = [], []
        for t, bit in enumerate([*case.mask[i].tolist(), 0]):
            if bit:
                span.append(t)
            elif span:
                spans.append(span)
                span = []
        length = sum(map(len, spans))
        everything += length
        if advantage < 0 or (preserve == "positive" and advantage == 0):
            continue
        preserved += length
        units = {
            "action": spans,
            "response": [[t for s in spans for t in s]],
            "token": [[t] for s in spans for t in s],
        }[gate]
        for unit in units:
            losses = [float(case.old[i, t] - case.logprobs[i, t]) for t in unit]
            if sum(losses) > threshold:
                for t, loss in zip(unit, losses, strict=True):
                    total += max(0.0, loss) * (weight if case.answers[i, t] else 1.0)
    return total / max(1, preserved if normalizer == "preserved" else everything)


@given(
    cases(),
    st.sampled_from(GATES),
    st.sampled_from(NORMALIZERS),
    st.sampled_from(["nonnegative", "positive"]),
    st.sampled_from([0.0, 0.25]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_penalty_equals_a_plain_python_transcription(
    case, gate, normalizer, preserve, threshold, weight
):
    options = {
        "gate": gate,
        "normalizer": normalizer,
        "preserve": preserve,
        "gate_threshold": threshold,
    }
    value, _, _ = evaluate(case, answer_mask_BT=case.answers, answer_weight=weight, **options)
    expected = slow_penalty(case, gate, normalizer, preserve, threshold, weight)
    assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@given(cases(), st.sampled_from(GATES))
def test_unchanged_policy_has_zero_penalty_and_gradient(dtype, case, gate):
    case = replace(case, logprobs=case.old).to(dtype)
    value, gradient, metrics = evaluate(case, gate=gate)
    assert value == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert metrics["gated_tokens"].item() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@given(cases(), st.sampled_from(GATES), st.sampled_from(NORMALIZERS))
def test_only_losing_policy_tokens_of_preserved_trajectories_are_pushed_and_only_up(
    dtype, case, gate, normalizer
):
    value, gradient, metrics = evaluate(case.to(dtype), gate=gate, normalizer=normalizer)
    assert value >= 0.0 and (gradient <= 0).all()
    assert not gradient[~(case.preserved & (case.old > case.logprobs))].any()
    assert metrics["gated_tokens"].item() == (gradient != 0).sum().item()


@given(cases(), st.sampled_from(GATES))
def test_gradient_does_not_depend_on_the_size_of_the_loss(case, gate):
    _, gradient, _ = evaluate(case, gate=gate)
    _, doubled, _ = evaluate(
        replace(case, logprobs=case.old - 2 * (case.old - case.logprobs)), gate=gate
    )
    assert torch.equal(gradient, doubled)
    assert set(gradient.unique().tolist()) <= {0.0, gradient.min().item()}


@given(cases(), st.sampled_from(GATES), st.floats(-8, 8))
def test_trajectories_that_are_not_preserved_change_nothing(case, gate, shift):
    expected = evaluate(case, gate=gate)
    moved = torch.where((case.advantages < 0)[:, None], case.logprobs + shift, case.logprobs)
    value, gradient, _ = evaluate(replace(case, logprobs=moved), gate=gate)
    assert value == expected[0]
    assert torch.equal(gradient, expected[1])


@given(
    cases(),
    st.sampled_from(GATES),
    st.sampled_from(NORMALIZERS),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_padding_and_row_order_do_not_matter(case, gate, normalizer, columns, random):
    order = random.sample(range(len(case.mask)), len(case.mask))
    value, gradient, metrics = evaluate(case, gate=gate, normalizer=normalizer)
    moved = case.rows(order)
    wide = (
        torch.nn.functional.pad(tensor, (0, columns)) if tensor.dim() == 2 else tensor
        for tensor in vars(moved).values()
    )
    found = evaluate(Case(*wide), gate=gate, normalizer=normalizer)
    assert found[0] == pytest.approx(value, abs=1e-6)
    assert torch.equal(found[1][:, :-columns], gradient[order])
    assert found[2] == metrics


@given(cases(), st.sampled_from(GATES), st.sampled_from(NORMALIZERS), st.integers(1, 3))
def test_micro_batches_add_up_to_the_mini_batch(case, gate, normalizer, size):
    value, gradient, metrics = evaluate(case, gate=gate, normalizer=normalizer)
    options = {"gate": gate, "normalizer": normalizer, "denominator": case.count(normalizer)}
    starts = range(0, len(case.mask), size)
    parts = [evaluate(case.rows(slice(i, i + size)), **options) for i in starts]
    assert sum(part[0] for part in parts) == pytest.approx(value, abs=1e-6)
    assert torch.equal(torch.cat([part[1] for part in parts]), gradient)
    for name in SUMS:
        assert sum(part[2][name].item() for part in parts) == metrics[name].item()


@given(cases(), st.sampled_from(GATES))
def test_normalizers_differ_by_the_preserved_share(case, gate):
    assume(case.preserved.any())
    preserved, _, metrics = evaluate(case, gate=gate)
    everything, _, _ = evaluate(case, gate=gate, normalizer="all")
    share = metrics["preserved_fraction"].item()
    assert everything == pytest.approx(preserved * share, abs=1e-6)


@given(cases())
def test_token_gate_bounds_the_other_gates_from_above(case):
    token = evaluate(case, gate="token")[0]
    assert evaluate(case, gate="action")[0] <= token
    assert evaluate(case, gate="response")[0] <= token


@given(cases())
def test_gates_agree_when_every_token_is_an_action_of_its_own(case):
    assume(case.mask.shape[1] > 1)
    alternating = replace(case, mask=torch.zeros_like(case.mask))
    alternating.mask[:, ::2] = 1
    assert evaluate(alternating, gate="action")[0] == evaluate(alternating, gate="token")[0]


@given(cases(), st.sampled_from(GATES))
def test_bfloat16_equals_float32_on_the_same_numbers(case, gate):
    value, gradient, metrics = evaluate(case.to(torch.bfloat16), gate=gate)
    expected = evaluate(case, gate=gate)
    assert value == expected[0]
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, expected[1].to(torch.bfloat16))
    assert metrics == expected[2]
