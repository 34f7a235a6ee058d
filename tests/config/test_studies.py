"""Studies: reading them, the order of their runs, and the queue that runs what is left."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from run_helpers import jobs_in_process, refused

from llds_core.__main__ import main
from llds_core.config import load_study, studies
from llds_core.errors import ConfigError
from llds_core.reporting.store import load_run, load_study_runs, read_published
from llds_core.runs.identity import FREE, flat
from llds_core.study.published import publish_run
from llds_core.study.runner import planned_runs, run_study, status

SMALL = """
description: two arms on two seeds
profile: smoke
overrides: [diagnostics.stop_after_collapse=true]
arms:
  - {name: late, method: llds-action, seeds: [0], group: second, overrides: [training.steps=1]}
  - {name: grpo, method: grpo, seeds: [0, 1], overrides: [diagnostics.stop_after_collapse=false]}
  - {name: llds-action, method: llds-action, seeds: [0, 1]}
"""
ARM = "profile: smoke\narms: [{name: a, method: grpo,"


def written(folder: Path, text: str = SMALL) -> str:
    path = folder / "small.yaml"
    path.write_text(text, "utf-8")
    return str(path)


# Arms that make runs of GRPO once more, for checkpoints that were lost.
REPEATED = ("grpo-kept",)


@pytest.mark.parametrize("name", studies())
def test_studies_that_ship_are_valid_and_name_their_arms_once(name: str) -> None:
    for study in (load_study(name), load_study(name).with_seeds(range(5))):
        entries = study.entries()
        assert len({(entry.arm.name, entry.seed) for entry in entries}) == len(entries)
        # Two entries in one folder would overwrite each other, or publish one run twice.
        planned = planned_runs(study, Path("runs"))
        folders = [run.path for run in planned if run.arm not in REPEATED]
        assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", studies())
def test_no_run_of_a_study_repeats_another(name: str) -> None:
    """Whatever number of steps each of the two takes."""
    runs: dict[str, list[str]] = {}
    for entry in load_study(name).entries():
        values = flat(entry.config.to_dict())
        kept = [f"{key}={values[key]}" for key in sorted(values.keys() - FREE)]
        runs.setdefault(f"{entry.seed} {kept}", []).append(entry.arm.name)
    # The long arm goes the way of the short one again, which had been published, and then on.
    longer = ["grpo-epochs-1", "grpo-long-epochs-1"]
    again = [["grpo", arm] for arm in REPEATED]
    repeated = [arms for arms in runs.values() if len(arms) > 1 and arms not in (longer, *again)]
    assert repeated == []


def test_a_study_on_other_seeds_gives_each_arm_as_many_as_it_planned() -> None:
    study = load_study("desk-reuse")
    seeds = {arm.name: arm.seeds for arm in study.with_seeds([4, 0, 4, 1, 2, 3]).arms}
    assert seeds["grpo"] == seeds["llds-action"] == (4, 0, 1, 2, 3)
    assert seeds["llds-weight-3"] == (4, 0, 1) and seeds["grpo-top-p"] == (4, 0)
    assert seeds["llds-action-long"] == (4,)
    assert len(study.with_seeds(range(9)).entries()) == len(study.entries())
    assert {arm.seeds for arm in study.with_seeds([7]).arms} == {(7,)}


def test_runs_go_group_by_group_and_seed_by_seed(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    order = [(entry.arm.name, entry.seed) for entry in study.entries()]
    later = [(arm, seed) for seed in (0, 1) for arm in ("grpo", "llds-action")]
    assert order == [("late", 0), *later]
    entries = study.entries(["main"], [1])
    stops = {entry.arm.name: entry.config.diagnostics.stop_after_collapse for entry in entries}
    assert stops == {"grpo": False, "llds-action": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "not a mapping"),
        ("profile: smoke\narms: []", "has no arms"),
        ("profile: smoke\narm: []", 'unknown key "arm": did you mean "arms"'),
        ("arms: [{name: a, method: grpo, seeds: [0]}]", '"profile" is missing'),
        ("profile: smoke\narms: [{name: a, method: grpo}]", r'"arms\[0\].seeds" is missing'),
        ("profile: smoke\narms: [{nam: a}]", r'key "arms\[0\].nam": did you mean "arms\[0\].name"'),
        (f"{ARM} seeds: 3}}]", "valid list"),
        (f"{ARM} seeds: [0], overrides: [a]}}]", "section.key=value"),
        (f"{ARM} seeds: [0]}}, {{name: a, method: grpo, seeds: [0]}}]", "is there twice"),
        *((text, "not valid YAML") for text in ("a: [", b"description: caf\xe9", "[" * 3000)),
        ("profile: smoke\narms: [{name: ../x, method: grpo, seeds: [0]}]", "name is"),
        ("profile: ../x\narms: [{name: a, method: grpo, seeds: [0]}]", "profile is"),
        (f"{ARM} seeds: [-1]}}]", "seeds"),
    ],
)
def test_a_file_that_is_not_a_study_is_refused_in_one_line(tmp_path, text, message) -> None:
    path = tmp_path / "small.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(ConfigError, f"study .*{message}", load_study, str(path))


def test_unknown_names_have_hints(tmp_path: Path) -> None:
    refused(ConfigError, 'did you mean "desk"', load_study, "dek")
    entries = load_study(written(tmp_path)).entries
    refused(ConfigError, 'no arm or group "mian": did you mean "main"', entries, ["mian"])
    refused(ConfigError, "no such arms and seeds", entries, ["late"], [1])


@pytest.mark.slow
def test_a_study_runs_what_is_left_and_publishes_it(smoke_runs: Path, tmp_path, capsys) -> None:
    root, published = tmp_path / "runs", tmp_path / "published"
    shutil.copytree(smoke_runs, root)
    study = load_study(written(tmp_path, SMALL.replace("seeds: [0, 1]", "seeds: [0]")))
    before = status(planned_runs(study, root), published).set_index("arm")["state"].to_dict()
    assert before == {"late": "complete", "grpo": "complete", "llds-action": "complete"}
    shutil.rmtree(root / "smoke/grpo")
    publish_run(load_run(root / "smoke/llds-action/seed0"), "other", published)
    with jobs_in_process():
        assert run_study(study, root, arms=["main"], published=published) == []
    runs = {run.arm: run for run in read_published("smoke", published)}
    assert runs.keys() == {"grpo", "llds-action", "other"}
    assert runs["grpo"].evaluation["best"]["results"]["greedy"]["all"]["n"] == 16
    table = pd.read_csv(published / "smoke/runs.csv")
    assert table["heldout_em"].notna()[table["method"] == "grpo"].all()
    assert "study: runs left: 0" in capsys.readouterr().out
    again = status(planned_runs(study, root, ["main"]), published)
    assert set(again["state"]) == {"published"}
    assert [run.arm for run in load_study_runs(published, study)] == ["grpo", "llds-action"]


def test_the_command_shows_the_queue(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["study", written(tmp_path), "--status", "--run-root", str(tmp_path)]
    assert main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["arm", "seed", "state", "steps", "of", "minutes"]
    assert lines[1].split()[:3] == ["late", "0", "waiting"]
    assert main([*options, "--arms", "nothing"]) == 2
