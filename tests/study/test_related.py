"""Objectives of other papers beside GRPO: the same seeds, and words that follow from intervals."""

import claim_worlds
import pytest

from llds_core.config import Arm, Study
from llds_core.study.evidence import beside
from llds_core.study.related import beside_grpo, objectives, objectives_figure

ARMS = (
    ("grpo", "main", "GRPO"),
    ("llds-action", "main", "GRPO + LLDS (action gate)"),
    ("dapo", "related", "DAPO"),
    ("lp-reg", "related", "Lp-Reg"),
    ("other", "weights", "other"),
)
SEEDS = (0, 1, 2)
MADE = (Arm(name, "grpo", SEEDS, group=group, label=label) for name, group, label in ARMS)
STUDY = Study("desk", "desk", "d", tuple(MADE))


def made(arm: str, seed: int, level: float, *, falls: bool = False, steps: int = 20):
    reward = [level] * 10 + [0.05 if falls else level] * (steps - 10)
    columns = {"reward": reward, "loglik_change_correct": level, "entropy": 0.3}
    columns |= {"rollout_seconds": 2.0, "update_seconds": 3.0}
    run = claim_worlds.made(arm, seed, columns, training={"steps": steps})
    run.manifest["evaluation"] = {}
    return run


RUNS = [
    *(made("grpo", seed, 0.4 + 0.01 * seed, falls=True) for seed in range(4)),
    *(made("dapo", seed, 0.6 + 0.01 * seed) for seed in range(3)),
    *(made("lp-reg", seed, 0.3, falls=True) for seed in range(2)),
    made("llds-action", 0, 0.5, steps=40),
    made("other", 0, 0.5),
]


def test_rows_are_of_seeds_that_an_objective_has_over_common_steps() -> None:
    table = objectives(RUNS, STUDY)
    assert list(dict.fromkeys(table["method"])) == ["grpo", "llds-action", "dapo", "lp-reg"]
    assert set(table["seed"]) == {0, 1, 2} and len(table) == 3 + 1 + 3 + 2
    assert table.loc[table["method"] == "grpo", "collapsed"].all()
    assert set(table["seconds_per_step"]) == {5.0}
    assert objectives(RUNS[:4], STUDY).empty and beside_grpo(objectives([], STUDY)).empty


def test_words_follow_from_the_interval() -> None:
    told = beside_grpo(objectives(RUNS, STUDY)).set_index("objective")
    assert told.loc["GRPO", "best reward"] == "0.41 [0.39, 0.43]"
    assert told.loc["DAPO", "best reward"] == "+0.20 [+0.20, +0.20]"
    assert told.loc["DAPO", "collapsed"] == "0 of 3"
    assert told.loc["DAPO", "here"] == "as said: best reward"
    # Both end at the same reward: the interval holds 0. One seed has no interval.
    assert told.loc["Lp-Reg", "here"] == "open: last reward of the run"
    assert told.loc["LLDS", "here"] == ""  # a claim of its own
    assert told.loc["GRPO", "here"] == "" and (told["held-out EM"] == "–").all()


def test_a_run_stands_beside_the_grpo_of_its_seed_and_of_its_start() -> None:
    runs = [made("grpo", 0, 0.4), made("grpo", 1, 0.4), made("grpo-kept", 0, 0.3)]
    runs += [made(arm, seed, 0.5) for arm in ("grpo-lr-half", "dapo") for seed in (0, 1)]
    for run in runs[3:5]:
        run.manifest["config"]["training"]["learning_rate"] /= 2
    for run in runs[5:]:
        run.manifest["config"]["training"]["updates_per_rollout"] = 4
    for run in runs:
        run.manifest["policy"] = "copy" if run.arm in ("grpo-kept", "dapo") else "original"
    pairs = beside(runs)
    found = [pairs[run.name].name for run in runs]
    # A repeat is compared with the first; without a run of its start, a run with another.
    grpo, other = "desk/grpo/seed0", "desk/grpo/seed1"
    assert found == [grpo, other, grpo, grpo, other, "desk/grpo-kept/seed0", other]
    assert beside(runs[1:]).keys() == {run.name for run in runs if run.seed == 1}


def test_the_figure_has_a_row_per_objective_and_a_mark_per_seed() -> None:
    figure = objectives_figure(objectives(RUNS, STUDY))
    left, right = figure.axes
    names = [tick.get_text() for tick in left.get_yticklabels()]
    assert names[-1] == "DAPO" and set(names) == {"GRPO", "LLDS", "DAPO", "Lp-Reg"}
    [marks] = right.collections
    shapes = [path.vertices.shape for path in marks.get_paths()]  # a circle has more corners
    assert shapes.count(min(shapes)) == 5 and len(shapes) == 9
    assert left.get_title(loc="left") == "Collapse on a seed:\n2 of 4"
    assert right.get_title(loc="left") == "95 % interval above GRPO's:\n1 of 3"
    base = next(line for line in right.lines if line.get_linestyle() == ":")
    assert base.get_xdata()[0] == pytest.approx(0.41)
