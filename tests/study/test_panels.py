"""Figures and tables of a study, from made-up runs."""

from typing import Any

import claim_worlds
import numpy as np
import pytest

from llds_core.config import Arm, Study, load_study
from llds_core.config.arms import Series
from llds_core.errors import DataError
from llds_core.reporting.run_tables import gradient_sizes, outcomes
from llds_core.reporting.run_view import full_length, usual_steps
from llds_core.reporting.store import StoredRun
from llds_core.study.panels import dose_figure, doses, map_figure, outcomes_figure
from llds_core.study.tables import effects, heldout_table, map_cells, study_progress

DESK = load_study("desk-reuse")
RISING = [0.3, 0.4] + [0.5] * 16
FALLING = [0.3, 0.4] + [0.5] * 8 + [0.1] * 8
SAGGING = [0.3, 0.4] + [0.5] * 11 + [0.1] * 3 + [0.3] * 2
LONG = RISING * 3
DIVERGED = {"status": "failed", "reason": "TrainingDivergedError: loss was not finite"}


def made(arm, seed=0, reward=RISING, loglik=0.01, evaluation=None, training=None, **more):
    """A run of 30 planned steps, of which it made as many as it has rewards."""
    settings = {"steps": 30, "updates_per_rollout": 32, "max_grad_norm": 1} | (training or {})
    steps = np.arange(1, len(reward) + 1)
    columns = {"reward": reward, "entropy": 0.25, "grad_norm": more.pop("norm", 0.2)}
    columns["updates"] = steps * settings["updates_per_rollout"]
    columns["loglik_correct"] = -0.2 - loglik * steps
    weight = {"llds_weight": 0.0 if arm.startswith("grpo") else 10.0}
    run = claim_worlds.made(arm, seed, columns, **{"loss": weight, "training": settings, **more})
    run.manifest["evaluation"] = evaluation or {}
    return run


def evaluation(em: float, checkpoint: str = "best", step: int = 40) -> dict[str, Any]:
    kinds = {"all": em, "1-hop": em + 0.1, "2-hop": em - 0.1}
    results = {kind: {"em": value, "n": 10} for kind, value in kinds.items()}
    return {checkpoint: {"checkpoint": f"step-{step:06d}", "results": {"greedy": results}}}


def small(series: tuple[Series, ...] = (), **groups: list[str]) -> Study:
    arms = [Arm(arm, "grpo", (0,), group=group) for group in groups for arm in groups[group]]
    return Study("small", "desk", arms=tuple(arms), series=series)


def marks(axes: Any) -> set[tuple[str, float]]:
    """Marker and place of every run."""
    lines = [line for line in axes.lines if line.get_marker() != "None"]
    return {(line.get_marker(), float(line.get_xdata()[0])) for line in lines}


def in_one_line(figure: Any) -> str:
    return " ".join(figure.get_suptitle().split())


def row_labels(figure: Any) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_outcomes_find_collapse_and_slope() -> None:
    runs = [made("grpo", 0, FALLING), made("llds-action"), made("grpo", 1, RISING, **DIVERGED)]
    fallen, held, diverged = outcomes(runs).itertuples()
    assert fallen.collapse_step == 12 and fallen.kind == "likelihood lost"
    assert np.isnan(held.collapse_step) and held.steps == 18 and held.kind == ""
    assert fallen.slope == pytest.approx(-0.1) and held.slope == pytest.approx(-0.1)
    assert (held.best_reward, fallen.final_reward) == pytest.approx((0.5, 0.1))
    assert held.start_reward == pytest.approx(0.3)
    assert diverged.collapse_step == 19  # the step it did not make
    (first,) = outcomes(runs[:1], within=8).itertuples()
    assert first.steps == 8 and np.isnan(first.collapse_step)


def test_a_slope_ends_at_the_collapse_and_where_the_shortest_plan_does() -> None:
    """After a collapse, and in steps that only long runs have, likelihood moves for itself."""
    bent = made("grpo", 0, FALLING, training={"steps": 15})
    bent.metrics.loc[11:, "loglik_correct"] = 5.0
    long = made("llds-action", 0, [0.4] * 20, training={"steps": 20})
    long.metrics.loc[15:, "loglik_correct"] = 5.0
    assert outcomes([bent, long])["slope"].tolist() == pytest.approx([-0.1, -0.1])


@pytest.mark.parametrize(
    ("runs", "drawn", "written"),
    [
        # Without collapse: open, where it ended.
        ([made("grpo", 0, FALLING), made("grpo", 1)], {("o", 12), (">", 18)}, []),
        # A collapse without loss of likelihood, and one before there is a slope.
        ([made("grpo", 0, FALLING, loglik=0), made("grpo", 1)], {(">", 18), ("X", 12)}, []),
        ([made("grpo", 0, [0.3], **DIVERGED), made("grpo", 1)], {("X", 2), (">", 18)}, []),
        # It lost most of its reward outside the rule.
        ([made("grpo", 0, SAGGING), made("grpo", 1)], {("v", 18), (">", 18)}, []),
        # Of many times the usual steps: at the edge. Where all collapsed nothing is usual.
        ([made("grpo"), made("grpo", 1, LONG)], {(">", 18), (">", 36)}, ["step 54 →"]),
        ([made("grpo", 0, FALLING), made("grpo", 1, RISING + FALLING)], {("o", 12), ("o", 30)}, []),
    ],
)
def test_a_mark_says_what_became_of_a_run(runs: list[StoredRun], drawn, written) -> None:
    figure = outcomes_figure(outcomes(runs), small(main=["grpo"]))
    assert marks(figure.axes[0]) == drawn and texts(figure) == written
    assert figure.axes[0].get_xlim()[1] < 40


def test_an_arm_without_runs_has_no_row_and_a_study_without_runs_no_figure() -> None:
    table = outcomes([made("grpo")])
    figure = outcomes_figure(table, small(main=["grpo"], gates=["llds-token"]))
    assert row_labels(figure) == ["main", "grpo"]
    with pytest.raises(DataError, match="run the study"):
        outcomes_figure(table, small(main=["nothing"]))


def test_doses_are_over_the_steps_that_all_were_given_and_say_where_none_collapses() -> None:
    runs = [
        made("llds-action", 0, RISING + FALLING, training={"steps": 36}),
        made("llds-weight-0.1", 0, FALLING, training={"steps": 18}, loss={"llds_weight": 0.1}),
        *(made("grpo", seed, FALLING, training={"steps": 18}) for seed in range(3)),
    ]
    data = doses(runs, DESK.drawn("weight"), "loss", "llds_weight")
    assert set(data["steps"]) == {18}
    fates = data.groupby("dose")["collapsed"].agg(["sum", "size"])
    assert fates.to_numpy().tolist() == [[3, 3], [1, 1], [0, 1]]
    assert data.set_index("dose").loc[10.0, "last_reward"] == pytest.approx(0.5)
    figure = dose_figure(data, "penalty weight", {0.2: "none"})
    assert texts(figure) == ["3/3", "1/1", "0/1", "none", "paper", "collapsed"]
    said = "Within 18 steps: 4 of 4 runs collapse at penalty weight 0 to 0.1, none of 1 from 10"
    assert in_one_line(figure) == said
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["0", "0.1", "0.2", "10"]
    gap = [
        made(f"llds-weight-{weight}", 0, rewards, loss={"llds_weight": weight})
        for weight, rewards in ((1, RISING), (30, FALLING))
    ]
    for few, title in (
        (runs[1:2], "1 of 1 runs collapse at penalty weight 0.1"),
        ([made("grpo")], "none of 1 runs collapses at any penalty weight"),
        (runs[:2], "1 of 1 runs collapse at penalty weight 0.1, none of 1 from 10"),
        (
            [runs[1], *gap],
            "1 of 1 runs collapse at penalty weight 0.1, 1 of 1 at 30; none of 1 at others",
        ),
    ):
        found = doses(few, DESK.drawn("weight"), "loss", "llds_weight")
        steps = found["steps"].min()
        assert in_one_line(dose_figure(found, "penalty weight")) == f"Within {steps} steps: {title}"
    with pytest.raises(DataError, match="run the study"):
        doses([], DESK.drawn("weight"), "loss", "llds_weight")


def test_a_second_arm_of_a_dose_is_a_longer_run_of_it() -> None:
    short, long = ({"steps": steps, "updates_per_rollout": 8} for steps in (18, 54))
    runs = [
        made("grpo-epochs-1", 0, RISING, training=short),
        made("grpo-long-epochs-1", 0, [*LONG[:-1], 0.8], training=long),
        made("grpo", 0, FALLING, training={"steps": 18}),
    ]
    data = doses(runs, DESK.drawn("updates"), "training", "updates_per_rollout")
    assert data["steps"].tolist() == [18, 54, 18, 18]  # one arm is in both series
    figure = dose_figure(data, "updates per rollout")
    said = "Within 18 steps: 1 of 1 runs collapse at updates per rollout 32, none of 1 up to 8"
    assert in_one_line(figure) == said
    assert [text for text in texts(figure) if "/" in text] == ["0/1", "1/1", "0/1"]


def test_the_short_figure_of_outcomes_has_the_arms_with_most_seeds_the_stable_ones_first() -> None:
    runs = [made("grpo", 0, FALLING), *(made("llds-action", seed) for seed in range(2))]
    runs.append(made("llds-token"))
    study = small(main=["grpo", "llds-action"], gates=["llds-token", "llds-ma"])
    figure = outcomes_figure(outcomes(runs), study, most=2)
    assert row_labels(figure) == ["llds-action", "grpo"]
    said = "GRPO collapses in 1 of 1 seeds; no collapse within its steps: {0} of {0} other "
    said += "settings,\nalways above half of the best reward: {0}"
    assert figure.get_suptitle() == said.format(2)
    figure = outcomes_figure(outcomes([*runs[:-1], made("llds-token", 1)]), study)
    assert figure.get_suptitle() == said.format(1)  # seed 0 of llds-token is planned, not in
    runs[1] = made("llds-action", 0, RISING[:12])  # out of groups before the end
    assert outcomes_figure(outcomes(runs), study).get_suptitle() == said.format(1)


def test_the_map_says_where_each_cell_learns_and_breaks() -> None:
    runs = [
        made("map-grpo-a", 0, FALLING),
        made("map-grpo-b", 0, RISING),
        made("map-llds-a", 0, SAGGING),
        made("map-llds-a", 1, FALLING),
        made("map-llds-b", 0, [0.3, 0.3], **DIVERGED),
    ]
    rates = {"a": ("training.learning_rate=1e-4",), "b": ("training.learning_rate=2e-4",)}
    names = {panel: [f"map-{panel}-{rate}" for rate in rates] for panel in ("grpo", "kl", "llds")}
    arms = [Arm(arm, "grpo", (0,), rates[arm[-1]]) for panel in names for arm in names[panel]]
    series = [Series(panel, panel, dict.fromkeys(names[panel], ""), ("map",)) for panel in names]
    study = Study("mapped", "desk-reuse", arms=tuple(arms), series=tuple(series))
    cells = map_cells(study, outcomes(runs))
    figure = map_figure(cells, {})
    shown = ["0.10\ncollapse\nat 12", "0.50", "", "", "0.23\nfell", "collapse\nat 3"]
    assert texts(figure) == shown
    assert figure.get_suptitle() == "4 of 6 runs of the map (hatched: not run), seed 0"
    empty = map_cells(study, outcomes([made("grpo")]))
    assert texts(map_figure(empty, {})) == [""] * 6
    with pytest.raises(DataError, match="no map"):
        map_figure(map_cells(small(main=["grpo"]), outcomes(runs)), {})


def test_runs_shorter_than_grpo_by_plan_cut_nothing_and_are_compared_with_nothing() -> None:
    early = made("grpo-traced", 0, RISING[:9], training={"steps": 9})
    runs = [made("grpo", 0, FALLING), early, made("llds-action", training={"steps": 60})]
    assert usual_steps(runs) == 30 and full_length(runs) == [runs[0], runs[2]]
    assert usual_steps(runs[1:]) == 9 and full_length(runs[1:]) == runs[1:]
    study = small(main=["grpo", "llds-action"], traced=["grpo-traced"])
    assert effects(runs, study)["arm"].tolist() == ["llds-action"]
    assert study_progress(study, runs[:2])["seeds run"].tolist() == ["1 of 1", "1 of 1"]


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
    # A gain over the seeds that happen to have scores may be chosen by what became of them.
    runs.append(made("llds-action", 1))
    (row,) = effects(runs, study).itertuples()
    assert row.seeds == 2 and np.isnan(row.heldout_em)


def test_gradients_are_compared_on_shared_seeds_and_with_the_clip() -> None:
    runs = [made("grpo", 0, norm=0.2), made("grpo", 1, norm=0.4), made("llds-action", 1, norm=1.2)]
    table = gradient_sizes(runs, ["grpo", "llds-action"]).set_index("weight")
    assert table.loc[10.0, "over GRPO's"] == pytest.approx(3)
    assert table.loc[10.0, "clipped"] == 1 and table.loc[0.0, "clipped"] == 0
    assert gradient_sizes(runs, ["nothing"]).empty


def test_held_out_scores_of_long_runs_are_those_within_the_usual_steps() -> None:
    long = evaluation(0.9) | evaluation(0.4, "best-30")
    runs = [made("grpo", evaluation=evaluation(0.2))]
    runs.append(made("llds-action", 0, RISING, training={"steps": 60}, evaluation=long))
    table = heldout_table(runs, ["grpo", "llds-action"])
    assert table["all"].tolist() == ["0.200", "0.400"]
    # Where the best checkpoint is early, the whole run says what it was then, and of the last one
    # where the run ended as early.
    told = ((LONG, 40, None, None), (LONG, 30, 0.9, None), (RISING, 18, 0.9, 0.4))
    for rewards, step, best, last in told:
        scores = evaluation(0.9, "best", step) | evaluation(0.4, "last", step)
        run = made("llds-action", 0, rewards, training={"steps": 60}, evaluation=scores)
        assert (run.heldout(within=30), run.heldout("last", within=30)) == (best, last)


def test_heldout_scores_are_over_the_seeds_that_all_arms_share() -> None:
    runs = [made("grpo", seed, evaluation=evaluation(0.2 + 0.1 * seed)) for seed in range(3)]
    table = heldout_table(runs, ["grpo", "llds-token"]).set_index("seeds")
    assert table.loc[3, "all"].startswith("0.300 [")
    assert table.loc[3, "two-hop"].startswith("0.200 [")
    assert table.index.tolist() == [3] and table.loc[3, "all, sampled"] == "–"
    runs.append(made("llds-action", 0, evaluation=evaluation(0.4)))
    table = heldout_table(runs, ["grpo", "llds-action", "llds-token"])
    assert table["seeds"].tolist() == [1, 1]
    assert table["one-hop"].tolist() == ["0.300", "0.500"]
    # Of two seeds one has no score of the last checkpoint.
    runs = [made("grpo", 0, evaluation=evaluation(0.2)), made("grpo", 1)]
    assert heldout_table(runs, ["grpo"])["all"].tolist() == ["0.200 (1 of 2)"]
