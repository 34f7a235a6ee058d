"""Four small policies of a published seed: what they are, and that they answer without training."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from run_helpers import mistake, refused

from llds_core.__main__ import main
from llds_core.errors import CheckpointError, DataError
from llds_core.evaluation.held_out import ask_each
from llds_core.reporting.store import load_run
from llds_core.reporting.trajectories import blocks
from llds_core.runs import Run, read_manifest
from llds_core.runs.policies import policy_digest
from llds_core.study.published import publish_run
from llds_core.study.published_agents import ask_agents, take_start
from llds_core.training.warmstart import warmstart

PUBLISHED = Path(__file__).parents[2] / "results/published"
sys.path.insert(0, str(PUBLISHED))

from make_agents import publish_agents  # noqa: E402

QUESTION = "which continent is Tokyo in?"


def test_the_agents_of_a_seed_are_published_and_answer(smoke_runs: Path, tmp_path: Path) -> None:
    grpo, llds = (Run.load(f"smoke/{arm}", 0, smoke_runs) for arm in ("grpo", "llds-action"))
    folder = publish_agents(grpo, llds, tmp_path)
    agents = {agent["name"]: agent for agent in json.loads((folder / "agents.json").read_text())}
    assert list(agents) == ["start", "best", "end", "llds"]
    assert agents["end"]["policy"] == policy_digest(grpo.checkpoint("last"))
    assert agents["best"]["step"] == grpo.manifest()["best_step"]
    assert agents["llds"]["step"] <= grpo.manifest()["last_step"]
    answers = ask_agents("smoke", QUESTION, published=tmp_path)
    assert list(answers) == [agent["title"] for agent in agents.values()]
    # Sixteen bits are enough for the same answer.
    [whole] = ask_each(grpo, QUESTION, ["last"])
    assert blocks(answers[agents["end"]["title"]]) == blocks(whole)
    untrained = Run.load("smoke/llds-action", 9, smoke_runs)
    refused(CheckpointError, "no checkpoint", publish_agents, grpo, untrained, tmp_path)


def test_what_is_no_answer_is_said(capsys: pytest.CaptureFixture) -> None:
    none = "no agents of profile smoke"
    refused(DataError, none, ask_agents, "smoke", QUESTION, published=PUBLISHED)
    ask = ["ask", "desk", "who wrote Hamlet?"]
    assert "are of a run of yours" in mistake(capsys, *ask, "--checkpoint", "best-9")
    assert main([*ask, "--quiet"]) == 0
    out = capsys.readouterr().out
    agents = json.loads((PUBLISHED / "desk/agents/agents.json").read_text())
    assert all(f"== {agent['title']}\n" in out for agent in agents)
    assert "none of the 1446 passages" in out


def test_a_study_goes_on_from_the_published_start(smoke_runs: Path, tmp_path: Path) -> None:
    grpo, llds = (Run.load(f"smoke/{arm}", 0, smoke_runs) for arm in ("grpo", "llds-action"))
    folder, elsewhere = publish_agents(grpo, llds, tmp_path), tmp_path / "runs"
    run = Run.load("smoke/grpo", 1, elsewhere)
    assert not take_start(run, tmp_path)  # the run that began there is not published
    publish_run(load_run(grpo.path), "grpo", tmp_path)
    other = Run.load("smoke/grpo", 1, elsewhere, ["warmstart.steps=3"])
    assert not take_start(other, tmp_path)
    # A copy that a kill cut off is made again.
    shutil.copytree(folder / "start", run.start_policy)
    (run.start_policy / "model.safetensors").write_bytes(b"")
    assert take_start(run, tmp_path)
    manifest = read_manifest(run.warmstart_path)
    assert manifest["status"] == "complete"
    assert manifest["taken_from"] == str(tmp_path / "smoke/agents/start")
    assert manifest["rounded_from"] == policy_digest(grpo.start_policy)
    assert warmstart(run) == run.start_policy
    assert policy_digest(run.start_policy) == policy_digest(folder / "start")
    assert not take_start(run, tmp_path)


def test_training_begins_at_the_published_start(tmp_path: Path, monkeypatch, capsys) -> None:
    run = Run.load("desk/grpo", 7, tmp_path)
    monkeypatch.setattr("llds_core.training.experiment.train", lambda run: None)
    monkeypatch.setattr("llds_core.training.warmstart._build_trainer", pytest.fail)
    words = ["train", "desk/grpo", "--seed", "7", "--run-root", str(tmp_path)]
    assert main(words) == main(words) == 0
    assert policy_digest(run.start_policy) == policy_digest(PUBLISHED / "desk/agents/start")
    assert capsys.readouterr().out.count("the published one, of 1,600 steps") == 1
