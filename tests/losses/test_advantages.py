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


def advantages(rewards, ids=None, **options) -> list[float]:
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    ids = torch.zeros(len(rewards), dtype=torch.long) if ids is None else torch.as_tensor(ids)
    return group_advantages(rewards, ids, **options).tolist()


def close(expected: list[float]):
    return pytest.approx(expected, abs=1e-6)


def slow_advantages(rewards, ids, mean, std, eps=1e-6) -> list[float]:
    """The definitions with Python's `statistics` (exact fractions), one trajectory at a time."""
    result = []
    for reward, group in zip(rewards, ids, strict=True):
        members = [r for r, g in zip(rewards, ids, strict=True) if g == group]
        base = {
            "group": statistics.mean(members) if len(members) > 1 else 0.0,
            "batch": statistics.mean(rewards),
            "none": 0.0,
        }[mean]
        scale = {
            "group": statistics.stdev(members) if len(members) > 1 else 1.0,
            "batch": statistics.stdev(rewards),
            "none": None,
        }[std]
        result.append(reward - base if scale is None else (reward - base) / (scale + eps))
    return result


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0, 1], [1.095443, -0.730295, -0.730295, -0.730295, 1.095443]),
        ([1, 0], [0.707106, -0.707106]),
        ([1, 1, 1], [0, 0, 0]),
        ([1, 0, 0, 0, 0], [1.788850] + [-0.447213] * 4),
        ([1, 1, 1, 0, 0], [0.730295] * 3 + [-1.095443] * 2),
        ([1, 1, 1, 1, 0], [0.447213] * 4 + [-1.788850]),
    ],
)
def test_grpo_uses_the_unbiased_deviation_of_the_group(rewards, expected):
    assert advantages(rewards) == close(expected)


def test_group_of_one_keeps_its_reward():
    assert advantages([1.0]) == close([0.999999])
    assert advantages([0.0]) == [0.0]
    assert advantages([1, 1, 0], [7, 3, 3]) == close([0.999999, 0.707106, -0.707106])


def test_eps_is_added_to_the_deviation():
    assert advantages([1, 0], eps=1e-1) == close([0.5 / 0.807107, -0.5 / 0.807107])


@pytest.mark.parametrize(
    ("mean", "std", "mixed", "equal"),
    [
        # Lite PPO, GRPO, batch normalisation, Dr. GRPO.
        ("group", "batch", [1.45651, *[-0.485503] * 3, *[0.971006] * 2, *[-0.971006] * 2], 0),
        ("group", "group", [1.499997, *[-0.499999] * 3, *[0.866024] * 2, *[-0.866024] * 2], 0),
        (
            "batch",
            "batch",
            [0.809172, *[-1.132841] * 3, *[0.809172] * 2, *[-1.132841] * 2],
            0.809172,
        ),
        ("group", "none", [0.75, *[-0.25] * 3, *[0.5] * 2, *[-0.5] * 2], 0),
    ],
)
def test_means_and_deviations_combine_as_the_methods_do(mean, std, mixed, equal):
    found = advantages(THREE_GROUPS, THREE_IDS, mean=mean, std=std)
    assert found == close([*mixed, *[equal] * 4])


@pytest.mark.parametrize(
    ("mean", "expected"), [("none", [1, 0, 0, 1]), ("batch", [0.5, -0.5, -0.5, 0.5])]
)
def test_reinforce_takes_no_or_the_batch_baseline(mean, expected):
    assert advantages([1, 0, 0, 1], [0, 1, 2, 3], mean=mean, std="none") == close(expected)


def test_mean_only_scales_to_leave_one_out():
    centered = advantages([1, 0, 0, 0], mean="group", std="none")
    assert [a * 4 / 3 for a in centered] == close([1, -1 / 3, -1 / 3, -1 / 3])


def test_only_groups_of_mixed_outcome_have_an_advantage():
    values = advantages([1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 2, 2])
    assert [value != 0 for value in values] == [False, False, True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.1, 0.2, 0.7, 1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("options", [{}, {"mean": "batch"}, {"std": "none"}, {"eps": 0.0}])
@pytest.mark.parametrize("size", [2, 3, 5, 7, 10])
def test_equal_rewards_have_exactly_zero_advantage(dtype, reward, options, size):
    rewards = torch.full((size,), reward, dtype=dtype)
    values = group_advantages(rewards, torch.zeros(size, dtype=torch.long), **options)
    assert torch.equal(values, torch.zeros(size, dtype=dtype))


@given(
    trajectories,
    st.sampled_from(["group", "batch", "none"]),
    st.sampled_from(["group", "batch", "none"]),
)
def test_advantages_equal_a_plain_python_transcription(pairs, mean, std):
    rewards, ids = zip(*pairs, strict=True)
    expected = slow_advantages(rewards, ids, mean, std)
    assert advantages(rewards, ids, mean=mean, std=std) == pytest.approx(expected, abs=1e-6)


@given(trajectories, st.randoms(use_true_random=False))
def test_order_and_labels_of_groups_do_not_matter(pairs, random):
    order = random.sample(range(len(pairs)), len(pairs))
    rewards, ids = zip(*pairs, strict=True)
    plain = advantages(rewards, ids)
    moved = advantages([rewards[i] for i in order], [1000 - 17 * ids[i] for i in order])
    assert moved == pytest.approx([plain[i] for i in order], abs=1e-9)


@given(trajectories, trajectories)
def test_group_advantages_ignore_other_groups(pairs, others):
    rewards, ids = zip(*pairs, strict=True)
    more_rewards, more_ids = zip(*others, strict=True)
    together = advantages(rewards + more_rewards, ids + tuple(i + 10 for i in more_ids))
    assert together[: len(pairs)] == pytest.approx(advantages(rewards, ids), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float32])
def test_low_precision_rewards_are_computed_in_float32(dtype):
    values = group_advantages(torch.tensor([1, 0, 0, 0, 1], dtype=dtype), torch.zeros(5).long())
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([1.095443, *[-0.730295] * 3, 1.095443], abs=1e-6)
