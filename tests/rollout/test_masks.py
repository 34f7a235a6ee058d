"""The check of response masks, one error at a time."""

import pytest

from llds_core.rollout.masks import validate_response_masks

IDS = [[5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "no env_mask"),
        ([[1, 0, 1]], "1 rows for 2 trajectories"),
        ([[1, 0], [1, 1]], "trajectory 0 has 2 values for 3 tokens"),
        ([[1, 0, 1], [1, 1, 0]], "trajectory 1 has 3 values for 2 tokens"),
        ([[1, 0, 2], [1, 1]], r"trajectory 0 holds \[2\]"),
        ([[1, 0, 1], [0, 0]], "trajectory 1 has no policy token"),
        ([[1, 0, 1], []], "trajectory 1 has 0 values"),
    ],
)
def test_bad_masks_are_named(masks: list[list[int]] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        validate_response_masks(IDS, masks)
    assert "\n" not in str(error.value)
    assert validate_response_masks(IDS, [[1, 0, 1], [1, 1]]) is None
