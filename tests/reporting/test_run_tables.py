"""Rows of single runs, from made-up runs."""

import numpy as np
import pandas as pd
import pytest
from claim_worlds import COLLAPSE, STEPS, WINDOW, fallen, made, stable

from llds_core.reporting.run_tables import outcomes, phase_row
from llds_core.reporting.run_view import Measured
from llds_core.study.tables import map_kinds

STEP = np.arange(1, STEPS + 1)


def test_a_collapse_has_phases_in_order_and_a_spiral() -> None:
    row = phase_row(fallen("grpo", 0))
    assert row["decay"] < row["acceleration"] < row["collapse"] <= COLLAPSE + WINDOW
    assert row["likelihood_lead"] == row["reward_decline"] - row["loglik_decline"] > 0
    assert row["halfway_lead"] is not None
    assert row["spiral"] is not None and row["spiral_failed"] == ""


def test_both_declines_of_a_lead_are_judged_up_to_the_proof_of_the_collapse() -> None:
    """A likelihood that falls just before the reward: too late for the phases to see."""
    loglik = np.where(STEP < COLLAPSE - 1, -0.2, -0.8) + 0.01 * (-1.0) ** STEP
    row = phase_row(fallen("grpo", 0, columns={"loglik_correct": loglik}))
    assert row["decay"] is None and row["loglik_decline"] == 19
    assert row["likelihood_lead"] == row["reward_decline"] - 19


def test_a_condition_that_never_holds_is_named() -> None:
    row = phase_row(fallen("grpo", 0, columns={"loglik_change_correct": 1.0 + 0.1 * STEP}))
    assert row["spiral"] is None
    assert row["spiral_failed"] == "persistent decay;self-amplification"


def test_what_did_not_occur_is_empty() -> None:
    row = phase_row(stable("grpo", 0))
    names = ("decay", "acceleration", "collapse", "likelihood_lead", "halfway_lead", "spiral")
    assert all(row[name] is None for name in names)
    short = {"reward": np.full(5, 0.5), "loglik_correct": -0.2}
    assert phase_row(made("grpo", 0, short))["spiral_failed"] is None


def test_the_lowest_reward_after_the_best_is_a_share_of_it() -> None:
    reward = np.r_[np.full(6, 0.1), np.full(6, 0.5), np.full(6, 0.2), np.full(6, 0.4)]
    run = Measured(made("grpo", 0, {"reward": reward}))
    assert run.lowest_after_best() == pytest.approx(0.4)
    assert np.isnan(Measured(made("grpo", 0, {"reward": np.zeros(9)})).lowest_after_best())


def test_entropy_grows_from_its_first_window_to_its_highest() -> None:
    entropy = np.repeat([0.5, 2.0, 1.0], WINDOW)
    run = Measured(made("grpo", 0, {"reward": np.ones(3 * WINDOW), "entropy": entropy}))
    assert run.entropy_growth() == 4 and run.entropy_growth(WINDOW) == 1
    assert np.isnan(run.entropy_growth(WINDOW - 1))


def test_the_kind_of_a_collapse_is_whether_likelihood_was_lost_against_its_noise() -> None:
    noise = 0.01 * (-1.0) ** STEP
    kept, lost = (
        Measured(fallen("grpo", 0, columns={"loglik_correct": values}))
        for values in (-0.2 + noise, -0.2 - 0.01 * STEP + noise)
    )
    assert (kept.collapse_kind(), lost.collapse_kind()) == ("likelihood kept", "likelihood lost")


def test_the_map_in_words_says_what_each_panel_does_with_a_cell() -> None:
    cells = pd.DataFrame(
        [
            ("grpo", 0, 1e-4, 16, "grpo"),
            ("llds", 0, 1e-4, 16, "llds-action"),
            ("grpo", 0, 1e-4, 8, "map-grpo"),
            ("llds", 0, 1e-4, 8, "map-llds"),
        ],
        columns=["panel", "seed", "learning_rate", "updates_per_rollout", "method"],
    )
    table = map_kinds(outcomes([fallen("grpo", 0), stable("llds-action", 0)]), cells)
    assert table["updates per rollout"].tolist() == [8, 16]
    assert table["grpo"].str.contains("not run|collapse at 2., likelihood lost").all()
    assert table["llds"].tolist()[0] == "not run"
    assert table["llds"].tolist()[1].startswith("no collapse, lowest ")


@pytest.mark.parametrize(("noise", "bias"), [(0.0, 0.3), (0.02, 0.3), (0.04, 0.3), (0.06, 1.0)])
def test_what_falls_together_leads_by_nothing_however_noisy(noise: float, bias: float) -> None:
    """Reward and entropy turn at one step; only the reward's noise differs: 0.04 is that of 128
    answers. A lead that is claimed takes more than a step.
    """
    way = 1 / (1 + np.exp(-(STEP - 16) / 1.5))
    leads = []
    for seed in range(100):
        rng = np.random.default_rng([seed, int(1000 * noise)])
        reward = 0.5 - 0.45 * way + rng.normal(0, noise, STEPS)
        columns = {"reward": reward, "entropy": 0.5 + way + rng.normal(0, 0.01, STEPS)}
        run = Measured(fallen("grpo", seed, columns=columns))
        leads.append(run.halfway("reward", 1) - run.halfway("entropy", -1))
    assert abs(np.mean(leads)) <= bias
