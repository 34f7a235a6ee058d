"""Two arms on the same seeds: which numbers the figure draws, and what it says."""

import claim_worlds
import numpy as np

from llds_core.config.arms import Series
from llds_core.study.contrast import contrast_figure, contrasts, in_series

METRIC = "loglik_change_correct"
WAYS = (
    Series("a", "rate 1", {"grpo": "whole", "torn": "torn"}, ("contrast",)),
    Series("b", "rate 2", {"slow": "whole", "slow-torn": "torn"}, ("contrast",)),
)


def made(arm: str, seed: int, change: float, *, falls: bool = False):
    reward = [0.5] * 10 + [0.1 if falls else 0.5] * 10
    columns = {"reward": reward, METRIC: np.where(np.arange(20) < 2, 9.0, change)}
    return claim_worlds.made(arm, seed, columns, training={"steps": 20}, loss={"llds_weight": 0})


def test_pairs_are_compared_and_a_lone_arm_is_left_out() -> None:
    runs = [made("grpo", seed, -1 - seed, falls=seed > 0) for seed in range(4)]
    runs += [made("torn", seed, -seed / 2) for seed in range(3)] + [made("slow", 0, 0.0)]
    data = contrasts(runs, WAYS, METRIC)
    assert set(data["method"]) == {"grpo", "torn"} and len(data) == 7
    assert data.loc[data["method"] == "grpo", "value"].tolist() == [-1, -2, -3, -4]
    assert data["collapsed"].tolist() == [False, True, True, True, False, False, False]
    [axes] = contrast_figure(data, METRIC).axes
    # Three seeds have both: -1, -1.5, -2; Student's half width of 0.5 / sqrt(3).
    title = axes.get_title(loc="left").replace("\n", " ").replace("−", "-").replace("\u202f", " ")
    half = 4.302653 * 0.5 / np.sqrt(3)
    assert f"rate 1: left - right -1.50 [{-1.5 - half:+.2f}, {-1.5 + half:+.2f}], 3 pairs" in title
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["whole\n3 of 4 collapsed", "torn\n0 of 3 collapsed"]


def test_arms_of_a_series_are_called_as_it_calls_them_for_curves() -> None:
    runs = [made("grpo", 0, 0.0), made("slow", 1, 0.0), made("torn", 0, 0.0)]
    two = Series("rates", "rate", {"grpo": "", "slow": "half the rate"}, ("rates",))
    found = [(run.arm, run.seed) for run in in_series(runs, two)]
    assert found == [("grpo", 0), ("half the rate", 1)]
    assert in_series(runs[:1], two) == [] and runs[1].arm == "slow"


def test_no_pair_gives_an_empty_table() -> None:
    assert contrasts([made("grpo", 0, 0.0)], WAYS, METRIC).empty
    one = contrasts([made("grpo", 0, -1.0), made("torn", 0, 1.0)], WAYS, METRIC)
    [axes] = contrast_figure(one, METRIC).axes
    assert axes.get_title(loc="left").replace("\n", " ") == "rate 1: left − right −2.00, 1 pair"
