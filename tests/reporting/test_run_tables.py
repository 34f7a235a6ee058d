"""Rows of single runs and tables of several, from made-up runs."""

import numpy as np
import pandas as pd
import pytest
from claim_worlds import COLLAPSE, STEPS, WINDOW, fallen, made, stable

from llds_core.reporting.run_tables import collapse_table, phase_row, runs_table

STEP = np.arange(1, STEPS + 1)
COLLAPSING = {"reward": np.repeat([0.6, 0.0], [6, 12])}
STABLE = {"reward": np.full(18, 0.6), "updates": 4}


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


def test_what_did_not_occur_is_empty_and_a_condition_that_never_holds_is_named() -> None:
    row = phase_row(stable("grpo", 0))
    names = ("decay", "acceleration", "collapse", "likelihood_lead", "halfway_lead", "spiral")
    assert all(row[name] is None for name in names)
    short = {"reward": np.full(5, 0.5), "loglik_correct": -0.2}
    assert phase_row(made("grpo", 0, short))["spiral_failed"] is None
    row = phase_row(fallen("grpo", 0, columns={"loglik_change_correct": 1.0 + 0.1 * STEP}))
    assert row["spiral"] is None
    assert row["spiral_failed"] == "persistent decay;self-amplification"


def test_how_far_the_reward_fell_and_entropy_grew_is_told_in_ratios() -> None:
    reward = np.repeat([0.1, 0.5, 0.2, 0.4], 6)
    assert made("grpo", 0, {"reward": reward}).lowest_after_best() == pytest.approx(0.4)
    assert np.isnan(made("grpo", 0, {"reward": np.zeros(9)}).lowest_after_best())
    entropy = np.repeat([0.5, 2.0, 1.0], WINDOW)
    run = made("grpo", 0, {"reward": np.ones(3 * WINDOW), "entropy": entropy})
    assert run.entropy_growth() == 4 and run.entropy_growth(WINDOW) == 1
    assert np.isnan(run.entropy_growth(WINDOW - 1))


@pytest.mark.parametrize(("slope", "kind"), [(0, "likelihood kept"), (-0.01, "likelihood lost")])
def test_the_kind_of_a_collapse_is_told_against_the_noise(slope: float, kind: str) -> None:
    values = -0.2 + slope * STEP + 0.01 * (-1.0) ** STEP
    assert fallen("grpo", 0, columns={"loglik_correct": values}).collapse_kind() == kind


@pytest.mark.parametrize(("noise", "bias"), [(0.0, 0.3), (0.02, 0.3), (0.04, 0.3), (0.06, 1.0)])
def test_what_falls_together_leads_by_nothing_however_noisy(noise: float, bias: float) -> None:
    """Reward and entropy turn at one step; the noise of 128 answers is 0.04."""
    way = 1 / (1 + np.exp(-(STEP - 16) / 1.5))
    leads = []
    for seed in range(100):
        rng = np.random.default_rng([seed, int(1000 * noise)])
        reward = 0.5 - 0.45 * way + rng.normal(0, noise, STEPS)
        columns = {"reward": reward, "entropy": 0.5 + way + rng.normal(0, 0.01, STEPS)}
        run = fallen("grpo", seed, columns=columns)
        leads.append(run.halfway("reward", 1) - run.halfway("entropy", -1))
    assert abs(np.mean(leads)) <= bias


def test_a_run_is_a_row_with_the_steps_of_its_phases() -> None:
    loglik = {"loglik_correct": np.r_[np.full(4, -0.2), np.linspace(-0.3, -1.6, 14)]}
    runs = [made("grpo", 0, STABLE | COLLAPSING | loglik), made("llds-action", 1, STABLE)]
    first, second = runs_table([*runs, made("grpo", 2, {"reward": []})]).to_dict("records")
    assert (first["method"], first["steps"], first["best reward"]) == ("GRPO", 18, 0.6)
    assert (first["likelihood decays"], first["reward collapses"]) == (5, 8)
    assert first["likelihood declines earlier by"] == 2
    assert second["last reward"] == 0.6 and pd.isna(second["reward collapses"])


def test_collapses_are_counted_of_the_runs_that_are_long_enough() -> None:
    short = {"reward": [0.6, 0.0]}
    runs = [made("grpo", i, columns) for i, columns in enumerate([COLLAPSING, STABLE, short])]
    grpo, llds = collapse_table([*runs, made("llds-action", 0, short)]).to_dict("records")
    assert grpo["reward collapses"] == "1 of 2 (from step 8)"
    assert grpo["likelihood decays"] == "0 of 2"
    for name in ("begins", "is half-way"):
        assert grpo[f"its decline {name} before the reward's, median"] == "–"
    assert llds["method"] == "GRPO + LLDS (action gate)"
    assert llds["reward collapses"] == "too few steps to judge"
