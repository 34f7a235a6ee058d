"""Outcomes of arms, their figures and tables, from made-up runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llds_core.config import load_experiment
from llds_core.errors import DataError
from llds_core.reporting.store import Run
from llds_core.reporting.study_figures import map_figure, outcomes_figure
from llds_core.reporting.study_tables import (
    effects,
    gradient_sizes,
    heldout_table,
    map_cells,
    outcomes,
    study_progress,
    weight_arms,
)
from llds_core.studies import Arm, Study, load_study

RISING = [0.3, 0.4] + [0.5] * 16
FALLING = [0.3, 0.4] + [0.5] * 8 + [0.1] * 8


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
            "grad_norm": more.get("norm", 0.2),
        }
    )
    manifest = {
        "profile": "desk",
        "method": config.method,
        "arm": arm,
        "seed": seed,
        "status": more.get("status", "complete"),
        "reason": more.get("reason"),
        "config": config.to_dict(),
        "config_hash": config.hash(),
        "evaluation": more.get("evaluation", {}),
    }
    return Run(Path("nowhere"), manifest, metrics)


def evaluation(em: float, checkpoint: str = "best") -> dict[str, Any]:
    kinds = {"all": em, "1-hop": em + 0.1, "2-hop": em - 0.1}
    results = {kind: {"em": value, "n": 10} for kind, value in kinds.items()}
    return {checkpoint: {"results": {"greedy": results}}}


def texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_outcomes_find_collapse_and_slope() -> None:
    fallen, held = outcomes([made("grpo", 0, FALLING), made("llds-action")]).itertuples()
    assert fallen.collapse_step == 12 and fallen.likelihood_falls
    assert np.isnan(held.collapse_step) and held.steps == 18 and not held.likelihood_falls
    assert fallen.slope == pytest.approx(-0.1) and held.slope == pytest.approx(-0.1)
    assert (held.best_reward, fallen.final_reward) == pytest.approx((0.5, 0.1))
    assert held.first_reward == pytest.approx(0.4)


def test_a_slope_ends_at_the_collapse_and_where_the_shortest_plan_does() -> None:
    """After a collapse, and in steps that only long runs have, likelihood moves for itself."""
    bent = made("grpo", 0, FALLING, "training.steps=15")
    bent.metrics.loc[11:, "loglik_correct"] = 5.0
    long = made("llds-action", 0, [0.4] * 20, "training.steps=20")
    long.metrics.loc[15:, "loglik_correct"] = 5.0
    assert outcomes([bent, long])["slope"].tolist() == pytest.approx([-0.1, -0.1])


def test_only_the_first_steps_may_be_looked_at() -> None:
    (row,) = outcomes([made("grpo", 0, FALLING)], within=8).itertuples()
    assert row.steps == 8 and np.isnan(row.collapse_step)


def test_a_run_that_diverged_collapsed_at_the_step_it_did_not_make() -> None:
    why = {"status": "failed", "reason": "TrainingDivergedError: loss was not finite"}
    (row,) = outcomes([made("grpo", 0, RISING, **why)]).itertuples()
    assert row.collapse_step == 19


def test_a_run_that_held_is_drawn_open_where_it_ended() -> None:
    table = outcomes([made("grpo", 0, FALLING), made("grpo", 1), made("llds-action")])
    groups = {"main": ["grpo", "llds-action"], "gates": ["llds-token"]}
    figure = outcomes_figure(table, groups)
    drawn = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    marks = {(line.get_marker(), float(line.get_xdata()[0])) for line in drawn}
    assert marks == {("o", 12.0), (">", 18.0)}
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert (labels[0], labels[3]) == ("main", "gates") and labels[4].endswith("(token gate)")
    assert texts(figure) == ["not run"]
    with pytest.raises(DataError, match="run the study"):
        outcomes_figure(table, {"main": ["nothing"]})


def test_a_collapse_without_loss_of_likelihood_is_crossed_and_updates_are_named() -> None:
    other = made("grpo-epochs-1", 0, FALLING, "training.updates_per_rollout=8", "training.epochs=1")
    other.metrics["loglik_correct"] = -0.2
    figure = outcomes_figure(outcomes([made("grpo"), other]), {"a": ["grpo", "grpo-epochs-1"]})
    assert "X" in {line.get_marker() for line in figure.axes[0].lines}
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["a", "GRPO", "GRPO, epochs 1 (8 updates)"]


def test_the_map_says_where_each_cell_learns_and_breaks() -> None:
    runs = [
        made("map-grpo-a", 0, FALLING, "training.learning_rate=1e-4"),
        made("map-grpo-b", 0, RISING, "training.learning_rate=2e-4"),
        made("map-llds-a", 0, RISING, "training.learning_rate=1e-4"),
        made("map-llds-a", 1, FALLING, "training.learning_rate=1e-4"),
    ]
    cells = pd.DataFrame(
        [
            (panel, 0, f"map-{panel}-{name}", rate, 32)
            for panel in ("grpo", "llds", "kl")
            for name, rate in (("a", 1e-4), ("b", 2e-4))
        ],
        columns=["panel", "seed", "method", "learning_rate", "updates_per_rollout"],
    )
    figure = map_figure(outcomes(runs), cells)
    assert texts(figure) == [
        "0.50 → 0.10\ncollapse at 12\nlikelihood declined",
        "0.50 → 0.50\nheld 18",
        "0.50 → 0.50\nheld 18",
        "not run",
        "not run",
        "not run",
    ]
    assert figure.get_suptitle() == "one seed (0)"
    assert texts(map_figure(outcomes([made("grpo")]), cells)) == ["not run"] * 6
    with pytest.raises(DataError, match="no map"):
        map_figure(outcomes(runs), cells.iloc[:0])


def test_the_map_of_the_desk_study_is_three_by_three_for_three_methods() -> None:
    cells = map_cells(load_study("desk"))
    assert cells.groupby("panel").size().to_dict() == {"grpo": 9, "llds": 9, "kl": 9}
    assert cells["learning_rate"].nunique() == cells["updates_per_rollout"].nunique() == 3
    assert not cells.duplicated(["panel", "learning_rate", "updates_per_rollout"]).any()
    assert set(map_cells(load_study("desk").with_seeds([7, 3]))["seed"]) == {7}


def test_cells_of_the_map_that_repeat_another_arm_are_that_arm() -> None:
    cells = map_cells(load_study("desk"))
    assert set(cells["seed"]) == {30}
    filled = cells[~cells["method"].str.startswith("map-")]
    assert set(filled.drop(columns="seed").itertuples(index=False, name=None)) == {
        ("grpo", 1.75e-4, 32, "grpo-lr-half"),
        ("grpo", 3.5e-4, 8, "grpo-epochs-1"),
        ("grpo", 3.5e-4, 16, "grpo-epochs-2"),
        ("grpo", 3.5e-4, 32, "grpo"),
        ("kl", 3.5e-4, 32, "grpo-kl-0.1"),
        ("llds", 3.5e-4, 32, "llds-action"),  # of which it shows twice the steps
    }


def test_a_cell_without_an_equal_run_of_its_seed_is_missing() -> None:
    """`odd` differs in another key than those of the grid, `late` in its seed."""
    slow = "training.learning_rate=1e-4"
    arms = (
        Arm("odd", "grpo", (3,), (slow, "loss.kl_weight=1")),
        Arm("late", "grpo", (4,), (slow,)),
        Arm("long", "llds-action", (3,), ("training.steps=90",)),
        Arm("map-grpo-a", "grpo", (3,), group="map"),
        Arm("map-llds-a", "llds-action", (3,), (slow,), "map"),
    )
    cells = map_cells(Study("maps", "desk", "", arms))
    assert set(cells[["panel", "learning_rate", "method"]].itertuples(index=False, name=None)) == {
        ("grpo", 3.5e-4, "map-grpo-a"),
        ("llds", 1e-4, "map-llds-a"),
        ("llds", 3.5e-4, "long"),
    }


def test_weights_are_ordered_and_other_differences_left_out() -> None:
    runs = [
        made("llds-action"),
        made("llds-weight-0.1", 0, RISING, "loss.llds_weight=0.1"),
        made("llds-weight-odd", 0, RISING, "loss.llds_weight=0.3", "loss.gate=token"),
        made("llds-token", 0, RISING, "loss.gate=token"),
        made("grpo"),
    ]
    assert weight_arms(runs) == ["grpo", "llds-weight-0.1", "llds-action"]


def test_effects_are_differences_on_shared_seeds() -> None:
    study = Study("s", "desk", "", (Arm("grpo", "grpo", (0, 1)), Arm("llds-action", "grpo", (0,))))
    runs = [made("grpo", seed, FALLING, evaluation=evaluation(0.2)) for seed in (0, 1)]
    runs.append(made("llds-action", 0, evaluation=evaluation(0.5)))
    runs.append(made("unknown", 0))
    (row,) = effects(runs, study).itertuples()
    assert (row.arm, row.seeds, row.collapsed, row.grpo_collapsed) == ("llds-action", 1, 0, 1)
    # 18 steps without collapse prove 13 free of one; GRPO's reward collapses after 11.
    assert row.steps_survived == 2 and np.isnan(row.steps_low)
    assert row.heldout_em == pytest.approx(0.3) and np.isnan(row.last_heldout_em)
    assert effects([], study).empty


def test_gradients_are_compared_on_shared_seeds_and_with_the_clip() -> None:
    runs = [made("grpo", 0, norm=0.2), made("grpo", 1, norm=0.4), made("llds-action", 1, norm=1.2)]
    table = gradient_sizes(runs, ["grpo", "llds-action"]).set_index("weight")
    assert table.loc[10.0, "over GRPO's"] == pytest.approx(3)
    assert table.loc[10.0, "clipped"] == 1 and table.loc[0.0, "clipped"] == 0
    assert weight_arms([]) == []


def test_held_out_scores_of_long_runs_are_those_within_the_usual_steps() -> None:
    long = evaluation(0.9) | evaluation(0.4, "best-30")
    runs = [made("grpo", evaluation=evaluation(0.2))]
    runs.append(made("llds-action", 0, RISING, "training.steps=60", evaluation=long))
    table = heldout_table(runs, ["grpo", "llds-action"])
    assert table["all"].tolist() == ["0.200", "0.400"]


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
