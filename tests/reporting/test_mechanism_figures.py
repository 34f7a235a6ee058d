"""Figures of the mechanism leave out what comes after a collapse, from made-up tables and runs."""

from typing import Any

import claim_worlds
import numpy as np
import pandas as pd
import pytest

from llds_core.files import project_path
from llds_core.reporting import mechanism_figures
from llds_core.reporting.figures import METHOD_COLOURS
from llds_core.reporting.mechanism_figures import likelihood_change_figure, measured_runs
from llds_core.reporting.run_view import StoredRun, before_collapse
from llds_core.reporting.store import PUBLISHED, load_runs

STEPS = (0, 4, 8, 12, 16)
STABLE = [0.5] * 16
COLLAPSING = [0.5] * 8 + [0.0] * 8  # by windows of 3 from step 10 on


def made(seed: int, reward: list[float] = STABLE, arm: str = "grpo", **values: Any) -> StoredRun:
    falling = -0.1 * np.arange(1, len(reward) + 1)
    names = [f"loglik_{a}_{b}" for a in ("correct", "incorrect") for b in ("first", "later")]
    columns = {"reward": reward} | dict.fromkeys(names, falling)
    return claim_worlds.made(arm, seed, columns, **values)


def tables(seeds: int) -> dict[str, pd.DataFrame]:
    of_grpo = {"profile": "desk", "method": "grpo"}
    keys = [of_grpo | {"seed": seed, "step": step} for seed in range(seeds) for step in STEPS]
    first = {"equal": 1, "similar": 2, "incorrect": 4}
    first = {f"first_search_reached_{name}": count for name, count in first.items()}
    changes = [
        key | first | {"optimizer": "adamw", "delta": delta, "similarity": 0.5}
        for key in keys
        for delta in (1.0, 2.0, -1.0 if key["step"] > 9 else 1.0)
    ]
    rounds = [*keys, {"profile": "desk", "method": "smollm2", "seed": 0, "step": 0}]
    return {"likelihood_change": pd.DataFrame(changes), "nll_by_round": pd.DataFrame(rounds)}


def test_checkpoints_from_the_collapse_on_are_left_out() -> None:
    why = {"status": "failed", "reason": "TrainingDivergedError: loss was not finite"}
    runs = [made(0, COLLAPSING), made(1, **why)]
    kept = {name: before_collapse(table, runs) for name, table in tables(3).items()}
    for table in kept.values():
        steps = table[table["method"] == "grpo"].groupby("seed")["step"].max()
        assert steps.tolist() == [8, 16, 16]  # the second diverged, the third has no run
    assert "smollm2" in set(kept["nll_by_round"]["method"])


def test_the_share_is_a_line_per_seed_and_a_mean_that_ends_with_the_first_of_them() -> None:
    runs = [made(0, COLLAPSING), made(1)]
    changes = before_collapse(tables(2)["likelihood_change"], runs)
    lines = likelihood_change_figure(changes, runs).axes[0].lines
    mean = max(lines, key=lambda line: line.get_linewidth())
    assert len(lines) == 4 and mean.get_xdata()[-1] == 8
    assert max(np.nanmax(line.get_ydata()) for line in lines) == pytest.approx(1 / 3)
    # Groups of one outcome count for nothing.
    last = changes.tail(3).assign(delta=[np.nan, np.nan, -1.0])
    both = pd.concat([last, last.assign(seed=2, delta=np.nan)])
    [line, mean] = likelihood_change_figure(both, runs).axes[0].lines
    assert line.get_ydata().tolist() == mean.get_ydata().tolist() == [1]


def test_actions_are_drawn_up_to_the_collapse_on_one_scale_as_their_table_says() -> None:
    runs = [made(0, COLLAPSING), made(0, arm="llds-action")]
    data = mechanism_figures.first_action_data(runs, tables(1)["likelihood_change"])
    grpo = data[data["method"] == "grpo"].set_index("metric")[["step", "value"]]
    drawn = grpo.loc["loglik_correct_first"]
    assert drawn["step"].tolist() == [*range(1, 10)]
    means = [-0.1, -0.15, *(-0.1 * step for step in range(2, 9))]  # of three steps
    assert drawn["value"].tolist() == pytest.approx(means)
    shares = grpo.loc["first_search_equal"]
    assert shares["step"].tolist() == [*STEPS]
    figure = mechanism_figures.first_action_figure(data, runs)
    for axes in figure.axes[:2]:
        ends = {line.get_color(): line.get_xdata()[-1] for line in axes.lines}
        assert ends == {METHOD_COLOURS["grpo"]: 9, METHOD_COLOURS["llds-action"]: 16}
    lines = [line.get_ydata().tolist() for line in figure.axes[-1].lines]
    assert shares["value"].tolist() in lines


def test_the_published_mechanism_is_that_of_the_runs_that_kept_their_checkpoints(tmp_path) -> None:
    published = project_path(PUBLISHED)
    runs = load_runs(published, "desk", ["grpo", "llds-action"], [40, 41])
    measured = measured_runs(runs, published)
    kept = {("grpo-kept", seed) for seed in range(40, 45)}
    kept |= {("llds-action", seed) for seed in (40, 41)}
    assert {(run.arm, run.seed) for run in measured} == kept
    tables = mechanism_figures.ensure_mechanism(measured, published)
    # GRPO comes first, as in every figure.
    assert list(dict.fromkeys(tables["theorem"]["method"])) == ["grpo-kept", "llds-action"]
    assert measured_runs(runs, tmp_path) == runs
