"""Outcomes of arms, their figures and tables, from made-up runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llds_core.config import load_experiment
from llds_core.errors import DataError
from llds_core.reporting.store import Run
from llds_core.reporting.study_figures import (
    heldout_table,
    map_cells,
    map_figure,
    outcomes,
    outcomes_figure,
    study_progress,
    weight_arms,
)
from llds_core.studies import load_study

RISING = [0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
FALLING = [0.3, 0.4, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]


def made(
    arm: str, seed: int = 0, reward: list[float] = RISING, *overrides: str, **more: Any
) -> Run:
    config = load_experiment(
        "desk/grpo" if arm.startswith("grpo") else "desk/llds-action", overrides
    )
    steps = np.arange(1, len(reward) + 1)
    metrics = pd.DataFrame(
        {
            "step": steps,
            "updates": steps * config.training.updates_per_rollout,
            "reward": reward,
            "loglik_correct": -0.2 - 0.01 * steps,
        }
    )
    manifest = {
        "profile": "desk",
        "method": config.method,
        "arm": arm,
        "seed": seed,
        "status": "complete",
        "config": config.to_dict(),
        "config_hash": config.hash(),
        "evaluation": more.get("evaluation", {}),
    }
    return Run(Path("nowhere"), manifest, metrics)


def evaluation(em: float) -> dict[str, Any]:
    kinds = {"all": em, "1-hop": em + 0.1, "2-hop": em - 0.1}
    results = {kind: {"em": value, "n": 10} for kind, value in kinds.items()}
    return {"best": {"results": {"greedy": results}}}


def texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_outcomes_find_collapse_update_and_slope() -> None:
    fallen, held = outcomes([made("grpo", 0, FALLING), made("llds-action")]).itertuples()
    assert fallen.collapse_step == 7 and fallen.collapse_update == 7 * 32
    assert np.isnan(held.collapse_step) and held.steps == 12
    assert fallen.slope == pytest.approx(-0.1) and held.slope == pytest.approx(-0.1)
    assert (held.best_reward, fallen.final_reward) == pytest.approx((0.5, 0.1))


def test_a_run_that_held_is_drawn_open_where_it_ended() -> None:
    table = outcomes([made("grpo", 0, FALLING), made("grpo", 1), made("llds-action")])
    figure = outcomes_figure(table, ["grpo", "llds-action", "llds-token"])
    marks = {(line.get_marker(), float(line.get_xdata()[0])) for line in figure.axes[0].lines}
    assert marks == {("o", 7.0), (">", 12.0)}
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][2].endswith(
        "(token gate)"
    )
    assert texts(figure) == ["not run"]
    with pytest.raises(DataError, match="run the study"):
        outcomes_figure(table, ["nothing"])


def test_the_map_says_where_each_cell_learns_and_breaks() -> None:
    runs = [
        made("map-grpo-a", 0, FALLING, "training.learning_rate=1e-4"),
        made("map-grpo-b", 0, RISING, "training.learning_rate=2e-4"),
        made("map-llds-a", 0, RISING, "training.learning_rate=1e-4"),
    ]
    cells = pd.DataFrame(
        [
            (panel, f"map-{panel}-{name}", rate, 32)
            for panel in ("grpo", "llds", "kl")
            for name, rate in (("a", 1e-4), ("b", 2e-4))
        ],
        columns=["panel", "method", "learning_rate", "updates_per_rollout"],
    )
    assert texts(map_figure(outcomes(runs), cells)) == [
        "0.50 → 0.10\ncollapse at 7",
        "0.50 → 0.50\nheld 12",
        "0.50 → 0.50\nheld 12",
        "not run",
        "not run",
        "not run",
    ]
    assert texts(map_figure(outcomes([made("grpo")]), cells)) == ["not run"] * 6


def test_the_map_of_the_desk_study_is_three_by_three_for_three_methods() -> None:
    cells = map_cells(load_study("desk"))
    assert cells.groupby("panel").size().to_dict() == {"grpo": 9, "llds": 9, "kl": 9}
    assert cells["learning_rate"].nunique() == cells["updates_per_rollout"].nunique() == 3


def test_weights_are_ordered_and_other_differences_left_out() -> None:
    runs = [
        made("llds-action"),
        made("llds-weight-0.1", 0, RISING, "loss.llds_weight=0.1"),
        made("llds-weight-odd", 0, RISING, "loss.llds_weight=0.3", "loss.gate=token"),
        made("llds-token", 0, RISING, "loss.gate=token"),
        made("grpo"),
    ]
    assert weight_arms(runs) == ["grpo", "llds-weight-0.1", "llds-action"]


def test_heldout_table_gives_interval_kinds_and_gaps() -> None:
    runs = [made("grpo", seed, evaluation=evaluation(0.2 + 0.1 * seed)) for seed in range(3)]
    runs.append(made("llds-action", 0, evaluation=evaluation(0.4)))
    table = heldout_table(runs, ["grpo", "llds-action", "llds-token"]).set_index("seeds")
    assert table.loc[3, "all"].startswith("0.300 [")
    assert table.loc[3, "two-hop"].startswith("0.200 [")
    assert table.loc[1, "one-hop"] == "0.500" and table.loc[1, "sampled"] == "not run"
    assert table.loc[0, "all"] == "not run"


def test_progress_counts_seeds_of_every_arm() -> None:
    study = load_study("desk")
    table = study_progress(study, [made("grpo", 0), made("grpo", 1)]).set_index("arm")
    assert table.loc["grpo", "seeds run"] == "2 of 5"
    assert table.loc["llds-token", "seeds run"] == "not run"
    assert len(table) == len(study.arms)
