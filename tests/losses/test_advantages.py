"""Group advantages: published vectors, exact zeros, independence of order and other groups."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llds_core.losses import group_advantages

THREE_GROUPS = torch.tensor([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1.0], dtype=torch.float64)
THREE_IDS = torch.arange(3).repeat_interleave(4)

# (reward, group): groups interleave, differ in size, may hold one trajectory or equal rewards.
trajectories = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.7, 1.0, -1.0]), st.integers(0, 3)),
    min_size=2,
    max_size=12,
)
PUBLISHED = [
    ([1, 0, 0, 0, 1], [1.095443, -0.730295, -0.730295, -0.730295, 1.095443]),
    ([1, 0], [0.707106, -0.707106]),
    ([1, 1, 1], [0, 0, 0]),
    ([1, 0, 0, 0, 0], [1.788850] + [-0.447213] * 4),
    ([1, 1, 1, 0, 0], [0.730295] * 3 + [-1.095443] * 2),
    ([1, 1, 1, 1, 0], [0.447213] * 4 + [-1.788850]),
    ([1.0], [0.999999]),  # a group of one keeps its reward
    ([0.0], [0.0]),
]
KINDS = st.sampled_from(["group", "batch", "none"])


def advantages(rewards, ids=None, **options) -> list[float]:
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    ids = torch.as_tensor([0] * len(rewards) if ids is None else ids)
    return group_advantages(rewards, ids, **options).tolist()


def slow_advantages(rewards, ids, mean, std, eps=1e-6) -> list[float]:
    """The definitions with Python's `statistics` (exact fractions), one trajectory at a time."""
    result = []
    for reward, group in zip(rewards, ids, strict=True):
        members = [r for r, g in zip(rewards, ids, strict=True) if g == group]
        alone = len(members) == 1
        means = {"group": 0.0 if alone else statistics.mean(members), "none": 0.0}
        means["batch"] = statistics.mean(rewards)
        scales = {"group": 1.0 if alone else statistics.stdev(members), "none": 1.0 - eps}
        scales["batch"] = statistics.stdev(rewards)
        result.append((reward - means[mean]) / (scales[std] + eps))
    return result


@pytest.mark.parametrize(("rewards", "expected"), PUBLISHED)
def test_grpo_uses_the_unbiased_deviation_of_the_group(rewards, expected):
    assert advantages(rewards) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "mixed", "equal"),
    [
        # Lite PPO, GRPO, batch normalisation, Dr. GRPO, REINFORCE without and with the batch mean.
        ({"std": "batch"}, [1.45651, -0.485503, 0.971006, -0.971006], 0),
        ({}, [1.499997, -0.499999, 0.866024, -0.866024], 0),
        ({"mean": "batch", "std": "batch"}, [0.809172, -1.132841, 0.809172, -1.132841], 0.809172),
        ({"std": "none"}, [0.75, -0.25, 0.5, -0.5], 0),
        ({"mean": "none", "std": "none"}, [1, 0, 1, 0], 1),
        ({"mean": "batch", "std": "none"}, [5 / 12, -7 / 12, 5 / 12, -7 / 12], 5 / 12),
        ({"eps": 0.1}, [0.75 / 0.6, -0.25 / 0.6, 0.5 / 0.6773503, -0.5 / 0.6773503], 0),
    ],
)
def test_means_and_deviations_combine_as_the_methods_do(options, mixed, equal):
    """Three groups: one right of four, two right of four in any order, all right."""
    a, b, c, d = mixed
    expected = [a, b, b, b, c, c, d, d, *[equal] * 4]
    found = advantages(THREE_GROUPS, THREE_IDS, **options)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.1, 0.2, 0.7, 1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("options", [{}, {"mean": "batch"}, {"std": "none"}, {"eps": 0.0}])
@pytest.mark.parametrize("size", [2, 3, 5, 7, 10])
def test_equal_rewards_have_exactly_zero_advantage(dtype, reward, options, size):
    rewards = torch.full((size,), reward, dtype=dtype)
    values = group_advantages(rewards, torch.zeros(size, dtype=torch.long), **options)
    assert torch.equal(values, torch.zeros(size, dtype=dtype))


@given(trajectories, KINDS, KINDS)
def test_advantages_equal_a_plain_python_transcription(pairs, mean, std):
    rewards, ids = zip(*pairs, strict=True)
    expected = slow_advantages(rewards, ids, mean, std)
    labels = [1000 - 17 * group for group in ids]
    assert advantages(rewards, labels, mean=mean, std=std) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float32])
def test_low_precision_rewards_are_computed_in_float32(dtype):
    values = group_advantages(torch.tensor([1, 0, 0, 0, 1], dtype=dtype), torch.zeros(5).long())
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx(PUBLISHED[0][1], abs=1e-6)
