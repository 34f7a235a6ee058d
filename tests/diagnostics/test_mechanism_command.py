"""Mechanism tables of stored runs: measured once, resumed, refused when there is nothing."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from run_helpers import mistake, refused

from llds_core.config import load_experiment
from llds_core.diagnostics import measure as measure_module
from llds_core.diagnostics.measure import measure
from llds_core.diagnostics.summary import TABLES, mechanism_path, read_mechanism
from llds_core.errors import CheckpointError, ConfigError, DataError
from llds_core.reporting import mechanism_figures as figures
from llds_core.reporting.store import load_runs
from llds_core.rollout.environment import build_environment, build_world
from llds_core.rollout.loop import RolloutLoop
from llds_core.runs import Run
from llds_core.worlds.records import Question

METHODS = ("grpo", "llds-action")


@pytest.fixture(scope="module")
def stored(smoke_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, to be measured."""
    return shutil.copytree(smoke_runs, tmp_path_factory.mktemp("mechanism") / "runs")


@pytest.fixture(scope="module")
def tables(stored: Path) -> dict[str, pd.DataFrame]:
    measure("smoke", METHODS, 0, stored, questions=6)
    return read_mechanism(mechanism_path(stored, "smoke", 0))


def test_every_checkpoint_is_measured_with_both_optimizers(tables) -> None:
    changes = tables["likelihood_change"]
    assert set(changes["method"]) == set(METHODS)
    for _, group in changes.groupby(["method", "step", "optimizer"]):
        assert len(group) == group["question_id"].nunique() == 6
    counts = changes.groupby("method")["step"].unique()
    assert all(0 in steps and max(steps) == 3 for steps in counts)
    assert set(changes["optimizer"]) == {"adamw", "sgd"}
    # The start policy is the same for all methods.
    start = changes.query("step == 0")
    first, second = (
        group.drop(columns="method").reset_index(drop=True) for _, group in start.groupby("method")
    )
    pd.testing.assert_frame_equal(first, second)


def test_the_weights_that_a_run_updates_are_measured(stored) -> None:
    """In mixed precision as in single: of rounded weights most would not move at all."""
    run = Run.load("smoke/grpo", 0, stored)
    mixed = replace(run.config, training=replace(run.config.training, dtype="bfloat16"))
    environment = build_environment(run.config)
    asked = (environment, run.start_policy, 0, environment.world.train[:3])
    runs = (run, replace(run, config=mixed))
    one, other = (measure_module._measure(each, *asked) for each in runs)
    for name in TABLES:
        pd.testing.assert_frame_equal(one[name], other[name])


def test_what_is_measured_is_not_measured_again(tables, stored, monkeypatch) -> None:
    monkeypatch.setattr("llds_core.diagnostics.measure._measure", None)
    folder = measure("smoke", METHODS, 0, stored, questions=6)
    again = read_mechanism(folder)
    assert all(len(again[name]) == len(tables[name]) for name in TABLES)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["questions"] == 6 and set(manifest["runs"]) == set(METHODS)
    assert "earlier" not in manifest
    measure("smoke", METHODS[:1], 0, stored, questions=6, steps=[0, 3])
    said, asked = r"no checkpoint at step 7: it has 0, .*3$", ("smoke", METHODS[:1], 0, stored)
    refused(ConfigError, said, measure, *asked, questions=6, steps=[3, 7])
    later = json.loads((folder / "manifest.json").read_text())
    assert later["earlier"] == manifest and set(later["runs"]) == set(METHODS)


def test_rows_of_another_run_and_of_what_was_cut_off_are_measured_again(
    tables, stored, tmp_path: Path, monkeypatch
) -> None:
    root = shutil.copytree(stored, tmp_path / "runs")
    folder = mechanism_path(root, "smoke", 0)
    for name, rest in (("likelihood_change", "step != 3"), ("theorem", "step >= 0")):
        pd.read_csv(folder / f"{name}.csv").query(rest).to_csv(folder / f"{name}.csv", index=False)
    measure("smoke", METHODS, 0, root, questions=6)
    again = read_mechanism(folder)
    assert {name: len(again[name]) for name in TABLES} == {n: len(tables[n]) for n in TABLES}
    made = json.loads((folder / "manifest.json").read_text())
    other = made["runs"] | {METHODS[0]: "another"}
    (folder / "manifest.json").write_text(json.dumps(made | {"runs": other}))
    measured, was = [], measure_module._measure

    def noted(run, *rest):
        measured.append(run.arm)
        return was(run, *rest)

    monkeypatch.setattr(measure_module, "_measure", noted)
    measure("smoke", METHODS, 0, root, questions=6)
    assert set(measured) == {METHODS[0]}
    assert len(read_mechanism(folder)["theorem"]) == len(tables["theorem"])


def test_runs_of_other_worlds_are_not_measured_together(stored, monkeypatch) -> None:
    changes = (["rollout.group_size=6", "retrieval.failure_rate=0.5"], ["rollout.max_searches=1"])
    runs = [
        replace(Run.load("smoke/grpo", 0, stored, change), arm=f"arm{n}")
        for n, change in enumerate(([], *changes))
    ]
    monkeypatch.setattr(measure_module, "_runs", lambda *_: runs)
    said = "arm0 has rollout.max_searches=2 and arm2 1: measure them"
    refused(ConfigError, said, measure, "smoke", ["grpo"], 0, stored)


def test_figures_come_from_the_tables(tables, stored, capsys) -> None:
    runs = load_runs(stored, "smoke", METHODS, [0])
    found = figures.ensure_mechanism(runs, stored)
    changes = found["likelihood_change"]
    assert figures.first_action_figure(figures.first_action_data(runs, changes), runs).axes
    assert figures.rounds_figure(found["nll_by_round"], runs).axes
    assert figures.theorem_figure(found["theorem"]).axes
    assert figures.ensure_mechanism(runs, stored, ["training.steps=3"]) == {}
    assert capsys.readouterr().out.startswith("no checkpoint of these runs is measured")
    if changes["delta"].notna().any():
        assert figures.likelihood_change_figure(changes, runs).axes


def test_questions_that_do_not_fit_are_refused_before_any_work_or_left_out(
    tables, stored, tmp_path: Path, monkeypatch
) -> None:
    """And another number of questions starts anew: of six, and of another method, no row stays."""
    root = shutil.copytree(stored, tmp_path / "runs")
    prompts = RolloutLoop.prompts

    def longer(self: RolloutLoop, questions: Sequence[Question]) -> list[list[int]]:
        made = prompts(self, questions)
        return [ids * 400 if q is first else ids for q, ids in zip(questions, made, strict=True)]

    monkeypatch.setattr(RolloutLoop, "prompts", longer)
    config = load_experiment("smoke/grpo")
    world = build_world(config)
    monkeypatch.setattr("llds_core.rollout.environment.build_world", lambda _: world)
    first = world.train[0]
    said = rf"^1 of 2 training questions \({first.id}\) do not fit"
    refused(ConfigError, said, measure, "smoke", ["grpo"], 0, root, questions=2)
    kept = read_mechanism(mechanism_path(root, "smoke", 0))
    assert len(kept["theorem"]) == len(tables["theorem"])
    skipping = replace(config, data=replace(config.data, too_long="skip"))
    monkeypatch.setattr("llds_core.runs.run.load_experiment", lambda *_: skipping)
    folder = measure("smoke", ["grpo"], 0, root, questions=2)
    changes = read_mechanism(folder)["likelihood_change"]
    assert changes["question_id"].unique().tolist() == [world.train[1].id]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["questions"], manifest["too_long"]) == (2, 1)


def test_missing_runs_and_senseless_numbers_are_one_line(tmp_path: Path, capsys) -> None:
    said = "llds_core train smoke/grpo --seed 0"
    refused(CheckpointError, said, measure, "smoke", ["grpo"], 0, tmp_path)
    refused(DataError, "llds_core mechanism", read_mechanism, tmp_path)
    mistake(capsys, "mechanism", "smoke", "--run-root", str(tmp_path))
