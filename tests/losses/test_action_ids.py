"""Actions are the maximal runs of policy tokens, numbered from the left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llds_core.losses import action_ids

rows = st.lists(st.lists(st.integers(0, 1), min_size=9, max_size=9), min_size=1, max_size=4)


def slow_ids(row: list[int]) -> list[int]:
    ids, count, inside = [], 0, False
    for bit in row:
        if bit and not inside:
            count += 1
        inside = bool(bit)
        ids.append(count if bit else 0)
    return ids


def test_runs_are_numbered_and_observations_are_zero():
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0, 0], [0] * 7])
    expected = [[1, 1, 0, 0, 2, 0, 3], [0, 1, 1, 1, 0, 0, 0], [0] * 7]
    assert action_ids(mask).tolist() == expected


@settings(deadline=None, max_examples=40)
@given(rows)
def test_ids_equal_a_scan_from_left_to_right(mask):
    assert action_ids(torch.tensor(mask)).tolist() == [slow_ids(row) for row in mask]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.float32])
def test_ids_are_int64_for_every_mask_type(dtype):
    ids = action_ids(torch.tensor([[1, 0, 1]]).to(dtype))
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[1, 0, 2]]


def test_mask_is_left_unchanged():
    mask = torch.tensor([[True, True, False]])
    action_ids(mask)
    assert mask.tolist() == [[True, True, False]]


def test_empty_batch_has_empty_ids():
    assert action_ids(torch.zeros(2, 0)).shape == (2, 0)


def test_mask_of_one_dimension_is_refused():
    with pytest.raises(ValueError, match=r"response_mask_BT has shape \(3,\): give \(traj"):
        action_ids(torch.ones(3))
