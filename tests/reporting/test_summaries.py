"""Tables beside figures count and average what the runs did."""

from pathlib import Path

import numpy as np
import pandas as pd

from llds_core.diagnostics.metrics import METRICS
from llds_core.reporting.store import StoredRun
from llds_core.reporting.summaries import changes_table, collapse_table, runs_table

COLLAPSING = [0.6] * 6 + [0.0] * 12
STABLE = [0.6] * 18


def made_run(
    method: str = "grpo", seed: int = 0, reward: list[float] = STABLE, **metrics: object
) -> StoredRun:
    table = pd.DataFrame(np.nan, index=range(len(reward)), columns=list(METRICS))
    table = table.assign(step=range(1, len(reward) + 1), updates=4, reward=reward, **metrics)
    manifest = {"profile": "desk", "method": method, "seed": seed, "status": "complete"}
    manifest |= {"config_hash": "abc", "evaluation": {}}
    manifest["config"] = {"diagnostics": {"window": 3}, "training": {"steps": len(reward)}}
    return StoredRun(Path(f"{method}{seed}"), manifest, table)


def test_a_run_is_a_row_with_the_steps_of_its_phases() -> None:
    falling = np.r_[np.full(4, -0.2), np.linspace(-0.3, -1.6, 14)]
    runs = [made_run(reward=COLLAPSING, loglik_correct=falling), made_run("llds-action", 1)]
    first, second = runs_table([*runs, made_run(reward=[])]).to_dict("records")
    assert (first["method"], first["steps"], first["best reward"]) == ("GRPO", 18, 0.6)
    assert (first["likelihood decays"], first["reward collapses"]) == (5, 8)
    assert first["likelihood declines earlier by"] == 2
    assert second["last reward"] == 0.6 and pd.isna(second["reward collapses"])


def test_collapses_are_counted_of_the_runs_that_are_long_enough() -> None:
    runs = [made_run(reward=COLLAPSING), made_run(seed=1), made_run(seed=2, reward=[0.6, 0.0])]
    grpo, llds = collapse_table([*runs, made_run("llds-action", reward=[0.6])]).to_dict("records")
    assert grpo["reward collapses"] == "1 of 2 (from step 8)"
    assert grpo["likelihood decays"] == "0 of 2" and grpo["median lead of likelihood"] == "–"
    assert llds["method"] == "GRPO + LLDS (action gate)"
    assert llds["reward collapses"] == "too few steps to judge"


def test_changes_are_means_over_runs_of_the_first_and_last_window_with_values() -> None:
    entropy = np.r_[np.nan, np.nan, np.nan, np.arange(15.0)]
    runs = [made_run(entropy=entropy), made_run(seed=1, reward=COLLAPSING)]
    [row] = changes_table(runs, ["reward", "entropy", "grad_norm"]).to_dict("records")
    assert row["reward"] == "0.6 → 0.3"
    assert row["entropy"] == "0 → 13" and row["gradient norm"] == "never measured"
