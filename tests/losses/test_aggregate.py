"""Aggregation: published values, micro-batch invariance, nothing from outside the mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llds_core.losses import aggregate

VALUES = torch.tensor([[1, 2, 3, 9], [4, 9, 9, 9.0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
# What a trainer counts over the whole mini-batch for each mode (`constant`: 2 rows of 4 tokens).
COUNTS = {"token-mean": 4, "seq-mean-token-mean": 2, "seq-mean-token-sum": 2, "constant": 8}
MODES = list(COUNTS)


def grid(rows: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return values, torch.rand(rows, width, generator=generator) < 0.6


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", 2.5),
        ("seq-mean-token-mean", 3.0),
        ("seq-mean-token-sum", 5.0),
        ("constant", 1.25),
    ],
)
def test_modes_give_their_published_values(mode, expected):
    count = COUNTS[mode] if mode == "constant" else None
    assert aggregate(VALUES, MASK, mode, count).item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
def test_micro_batches_of_one_row_add_up_to_the_whole(mode, kind):
    count = kind(COUNTS[mode])
    whole = aggregate(VALUES, MASK, mode, count)
    parts = sum(aggregate(VALUES[i : i + 1], MASK[i : i + 1], mode, count) for i in range(2))
    assert parts.item() == pytest.approx(whole.item())


@pytest.mark.parametrize("mode", MODES[:3])
def test_denominator_replaces_the_count_of_the_mode(mode):
    own = aggregate(VALUES, MASK, mode)
    assert aggregate(VALUES, MASK, mode, COUNTS[mode]).item() == pytest.approx(own.item())
    assert aggregate(VALUES, MASK, mode, 10 * COUNTS[mode]).item() == pytest.approx(own.item() / 10)


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
def test_denominator_below_one_is_taken_as_it_is(kind):
    # One token counted over four processes, each of which is told its share.
    assert aggregate(torch.ones(1, 1), torch.ones(1, 1), "token-mean", kind(0.25)).item() == 4.0


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "seq-mean-token-sum"])
def test_rows_without_tokens_do_not_count_as_sequences(mode):
    with_empty = aggregate(torch.cat([VALUES, VALUES]), torch.cat([MASK, 0 * MASK]), mode)
    assert with_empty.item() == pytest.approx(aggregate(VALUES, MASK, mode).item())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_values_outside_the_mask_never_leak(mode, poison):
    values = VALUES.masked_fill(MASK == 0, poison).requires_grad_()
    result = aggregate(values, MASK, mode, COUNTS[mode])
    result.backward()
    assert result.item() == aggregate(VALUES, MASK, mode, COUNTS[mode]).item()
    assert torch.equal(values.grad != 0, MASK.bool())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [None, 0.0, torch.tensor(0)])
def test_empty_mask_gives_zero_with_a_graph(mode, count):
    if mode == "constant":
        count = 8.0
    values = torch.full((2, 3), float("nan"), requires_grad=True)
    result = aggregate(values, torch.zeros(2, 3), mode, count)
    result.backward()
    assert result.item() == 0.0
    assert torch.equal(values.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("mode", MODES)
def test_batch_without_columns_gives_zero(mode):
    assert aggregate(torch.zeros(2, 0), torch.zeros(2, 0), mode, 1.0).item() == 0.0


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(MODES), st.integers(1, 5), st.integers(1, 6), st.integers(0, 999))
def test_padding_and_row_order_do_not_matter(mode, rows, width, seed):
    values, mask = grid(rows, width, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(values, (0, 3), value=7.0)[order]
    padded_mask = torch.nn.functional.pad(mask, (0, 3))[order]
    count = rows * 5 if mode == "constant" else None
    expected = aggregate(values, mask, mode, count).item()
    assert aggregate(padded, padded_mask, mode, count).item() == pytest.approx(expected, abs=1e-12)


def test_bfloat16_values_are_summed_in_float32():
    # 3001 needs 12 bits; bfloat16 has 8.
    values = torch.ones(1, 3001, dtype=torch.bfloat16)
    assert aggregate(values, torch.ones(1, 3001), "seq-mean-token-sum").item() == 3001.0


@pytest.mark.parametrize(
    ("mask", "mode", "denominator", "message"),
    [
        (MASK, "mean", None, 'mode is "mean": choose one of token-mean, seq-mean-token-mean'),
        (MASK[:1], "token-mean", None, r"mask_BT has shape \(1, 4\): give \(2, 4\)"),
        (MASK, "token-mean", -1.0, "denominator is -1.0: give a number of at least 0"),
        (MASK, "token-mean", float("nan"), "denominator is nan"),
        (MASK, "constant", None, "denominator is None .*: give trajectories × generation budget"),
        (MASK, "constant", 0, "denominator is 0 .*: give trajectories × generation budget"),
    ],
)
def test_unusable_input_is_refused_with_advice(mask, mode, denominator, message):
    with pytest.raises(ValueError, match=message):
        aggregate(VALUES, mask, mode, denominator)
