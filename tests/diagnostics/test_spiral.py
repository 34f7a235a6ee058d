"""The death-spiral test on hand-made series."""

import numpy as np
import pandas as pd
import pytest

from llds_core.diagnostics.spiral import Condition, death_spiral, spiral_conditions
from llds_core.errors import ConfigError

FALLING = [-1.0, -1.1, -1.2, -1.3, -1.4]
ALIKE = [0.9] * 5


def run(m, p, c, reward=None):
    steps = range(1, len(m) + 1)
    columns = {"loglik_change_correct": m, "loglik_incorrect": p, "hidden_similarity": c}
    reward = [0.5] * len(m) if reward is None else reward
    return pd.DataFrame({"step": steps, "reward": reward, **columns}, dtype=float)


def test_decay_and_amplification_hold_from_the_first_negative_value_on():
    found = spiral_conditions([0.01, -0.01, -0.02, -0.05, -0.11], FALLING, ALIKE)
    assert found.decay == Condition("persistent decay", 1, 0)
    assert found.amplification == Condition("self-amplification", 0, None)
    assert (found.erosion.onset, found.onset, found.failed) == (0, 1, ())


def test_a_change_that_comes_back_does_not_amplify_itself():
    found = spiral_conditions([-0.01, -0.03, -0.02], FALLING[:3], ALIKE[:3])
    assert found.decay == Condition("persistent decay", 0, None)
    assert found.amplification == Condition("self-amplification", None, 2)
    assert found.onset is None and found.failed == ("self-amplification",)


def test_incorrect_responses_may_not_gain_likelihood_nor_states_part():
    m = [-0.1, -0.2, -0.3, -0.4, -0.5]
    rise = spiral_conditions([0.5, *m[1:]], [-1.0, -0.9, -1.0, -1.1, -1.1], ALIKE)
    assert rise.erosion == Condition("confidence erosion", 2, 1)
    assert (rise.decay.onset, rise.onset) == (1, 2)  # where the last condition begins to hold
    parted = spiral_conditions(m, FALLING, [0.9, 0.9, 0.0, 0.9, 0.9])
    assert parted.erosion == Condition("confidence erosion", None, 2)
    assert parted.failed == ("confidence erosion",)


@pytest.mark.parametrize("gap", range(5))
def test_what_was_not_measured_fulfils_no_condition(gap):
    series = [np.array(values, dtype=float) for values in ([-1, -2, -3, -4, -5], FALLING, ALIKE)]
    for place, name in enumerate(("decay", "erosion", "erosion")):
        broken = [values.copy() for values in series]
        broken[place][gap] = np.nan
        found = getattr(spiral_conditions(*broken), name)
        assert found.broken is not None and (found.onset is None or found.onset > gap)


def test_window_means_see_a_spiral_that_noise_hides_from_the_literal_test():
    noise = np.tile([0.3, -0.3, 0.0], 4)
    trend = -np.repeat([1.0, 2.0, 4.0, 8.0], 3)
    test = death_spiral(run(trend + noise, trend - noise, [0.9] * 12), window=3)
    assert test.fires and test.judged and test.windows == 4
    assert (test.windowed.onset, test.windowed.failed) == (1, ())
    assert test.literal.onset is None and "self-amplification" in test.literal.failed


def test_positions_are_steps_and_the_oldest_incomplete_window_is_left_out():
    m = [9.0, 1, 1, 1, -1, -1, -1, -2, -2, -2, -4, -4, -4]
    metrics = run(m, -np.arange(13.0), [0.5] * 13)
    metrics["step"] += 100
    test = death_spiral(metrics[::-1], window=3)
    assert (test.windows, test.windowed.decay.onset, test.windowed.onset) == (4, 105, 105)
    assert test.windowed.decay.broken == 102


def test_what_comes_after_the_collapse_is_not_judged():
    m = [-1] * 3 + [-2] * 3 + [-4] * 3 + [5.0] * 9
    reward = [0.6] * 8 + [0.0] * 10
    test = death_spiral(run(m, -np.arange(18.0), [0.5] * 18, reward), window=3)
    # The mean of steps 8-10 is the first below half of 0.6.
    assert test.collapse == 10 and test.windows == 3 and test.fires
    assert not death_spiral(run(m, -np.arange(18.0), [0.5] * 18), window=3).fires


def test_fewer_than_three_windows_give_no_verdict():
    test = death_spiral(run([-1.0, -2, -3, -4], [-1.0, -2, -3, -4], [0.9] * 4), window=2)
    assert not test.judged and not test.fires and test.literal.onset == 1
    empty = death_spiral(run([], [], []), window=3)
    assert empty.windows == 0 and not empty.judged


def test_gaps_inside_a_window_are_skipped():
    m = [-1, np.nan, np.nan, -2, -2, np.nan, -4, -4, -4]
    assert death_spiral(run(m, -np.arange(9.0), [0.9] * 9), window=3).fires
    m[3:6] = [np.nan] * 3
    assert not death_spiral(run(m, -np.arange(9.0), [0.9] * 9), window=3).fires


def test_unusable_input_is_refused():
    with pytest.raises(ConfigError, match="2, 1 and 1 values"):
        spiral_conditions([1, 2], [1], [1])
    with pytest.raises(ConfigError, match="window is 0"):
        death_spiral(run(FALLING, FALLING, ALIKE), window=0)
